"""Discriminative learning rates: a factor on the learning rate for chosen layers, for any Keras 3 model."""

import keras


def discriminative(optimizer_class: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """Make a subclass of a Keras optimizer that scales the learning rate layer by layer.

    The new class takes one more argument, `factors`: layer name -> factor. A name covers a
    layer, a block or a nested model; what is not named keeps the factor 1, and a factor of 0 freezes.

    Reference: Howard and Ruder, Universal Language Model Fine-tuning for Text Classification (ACL 2018), section 3.2.

    Args:
        optimizer_class: any `keras.optimizers` class whose update is made variable by variable (all but LossScale and
            multi-device wrappers).

    Returns:
        The subclass, named `Discriminative<Name>`, serialisable.

    Example:
        optimizer = discriminative(keras.optimizers.Adam)(1e-3, factors={"conv1": 0.01})
    """
    name = f"Discriminative{optimizer_class.__name__}"
    registered = keras.saving.get_registered_object(f"tfface>{name}")
    if registered is not None:
        return registered

    class Discriminative(optimizer_class):
        __doc__ = f"{optimizer_class.__name__} with a factor on the learning rate of chosen layers."

        def __init__(self, *args, factors=None, **kwargs):
            super().__init__(*args, **kwargs)
            self.factors = dict(factors or {})

        def factor_of(self, path):
            return next((self.factors[part] for part in path.split("/")[:-1] if part in self.factors), 1.0)

        def build(self, variables):
            frozen = [variable for variable in variables if not self.factor_of(variable.path)]
            if frozen and not self.built:
                self.exclude_from_weight_decay(var_list=frozen)
            super().build(variables)

        def update_step(self, gradient, variable, learning_rate):
            # TensorFlow's trainer hands over the bare tf.Variable, which has no path.
            factor = self.factor_of(self._trainable_variables[self._get_variable_index(variable)].path)
            if factor:
                super().update_step(gradient, variable, learning_rate * factor)

        def get_config(self):
            return {**super().get_config(), "factors": self.factors}

    Discriminative.__name__ = Discriminative.__qualname__ = name
    return keras.saving.register_keras_serializable(package="tfface")(Discriminative)


DiscriminativeAdam = discriminative(keras.optimizers.Adam)
DiscriminativeSGD = discriminative(keras.optimizers.SGD)

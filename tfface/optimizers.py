"""Discriminative learning rates: a factor on the learning rate for chosen layers, for any Keras 3 model."""

import keras


def discriminative(optimizer_class: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """Make a subclass of a Keras optimizer that scales the learning rate layer by layer.

    The new class takes one more argument, `factors`: layer name -> factor. A variable belongs to the layer that its
    path begins with; layers that are not named keep the factor 1, and a factor of 0 freezes.

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

    def __init__(self, *args, factors=None, **kwargs):
        super(cls, self).__init__(*args, **kwargs)
        self.factors = dict(factors or {})

    def update_step(self, gradient, variable, learning_rate):
        # TensorFlow's trainer hands over the bare tf.Variable, which has no path.
        path = self._trainable_variables[self._get_variable_index(variable)].path
        factor = self.factors.get(path.split("/")[0], 1.0)
        if factor:
            super(cls, self).update_step(gradient, variable, learning_rate * factor)

    def get_config(self):
        return {**super(cls, self).get_config(), "factors": self.factors}

    methods = {"__init__": __init__, "update_step": update_step, "get_config": get_config}
    cls = type(name, (optimizer_class,), {**methods, "__doc__": f"{optimizer_class.__name__} with layer factors."})
    return keras.saving.register_keras_serializable(package="tfface")(cls)


DiscriminativeAdam = discriminative(keras.optimizers.Adam)
DiscriminativeSGD = discriminative(keras.optimizers.SGD)

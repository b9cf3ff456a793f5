"""Learning rates for any Keras 3 model and backend: a factor for chosen layers, the one-cycle policy, a cosine."""

import math
import warnings
from collections.abc import Sequence

import keras

from tfface.errors import UserError


def discriminative(optimizer_class: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """Make a subclass of a Keras optimizer that scales the learning rate layer by layer.

    The new class takes one more argument, `factors`: layer name -> factor. A name covers a layer or a block, with all
    that is in it; what is not named keeps the factor 1, and a factor of 0 freezes. Weight decay goes with the learning
    rate, so with the factor too. Names of nothing that is trained are told in a warning. Such is the name of a
    functional model that is a layer of another: Keras leaves it out of the names of its variables. For that one
    `discriminative_factors` takes the model itself.

    Reference: Howard and Ruder, Universal Language Model Fine-tuning for Text Classification (ACL 2018), section 3.2.

    Args:
        optimizer_class: any `keras.optimizers` class whose update is made variable by variable (all but LossScale and
            multi-device wrappers).

    Returns:
        The subclass, named `Discriminative<Name>`. To load what was saved with it in a new process, make it there too
        (those of Adam and SGD are made here).

    Example:
        optimizer = discriminative(keras.optimizers.Adam)(1e-3, factors={"conv1": 0.01})
    """
    name = f"Discriminative{optimizer_class.__name__}"
    registered = keras.saving.get_registered_object(f"tfface>{name}")
    if registered is not None and registered.__base__ is optimizer_class:  # not another class of the same name
        return registered

    class Discriminative(optimizer_class):
        __doc__ = f"{optimizer_class.__name__} with a factor on the learning rate of chosen layers."

        def __init__(self, *args, factors=None, **kwargs):
            super().__init__(*args, **kwargs)
            self.factors = dict(factors or {})

        def factor_of(self, path):
            return next((self.factors[part] for part in path.split("/")[:-1] if part in self.factors), 1.0)

        def build(self, variables):
            if not self.built:
                known = {part for variable in variables for part in variable.path.split("/")[:-1]}
                unknown = [name for name in self.factors if name not in known]
                if unknown:
                    words = f"factors name nothing that is trained: {', '.join(unknown[:5])}"
                    mend = "A functional model in another goes by the names of its layers: see discriminative_factors."
                    warnings.warn(f"{len(unknown)} of {len(self.factors)} {words}. {mend}", stacklevel=2)
            super().build(variables)

        def update_step(self, gradient, variable, learning_rate):
            if factor := self._factor(variable):
                super().update_step(gradient, variable, learning_rate * factor)

        def _factor(self, variable):
            # TensorFlow's trainer hands over the bare tf.Variable, which has no path.
            return self.factor_of(self._trainable_variables[self._get_variable_index(variable)].path)

        def _apply_weight_decay(self, variables):
            alike = {}
            for variable in variables:
                alike.setdefault(self._factor(variable), []).append(variable)
            for factor, members in alike.items():
                optimizer_class._apply_weight_decay(_WithFactor(self, factor), members)

        def get_config(self):
            return {**super().get_config(), "factors": self.factors}

    Discriminative.__name__ = Discriminative.__qualname__ = name
    return keras.saving.register_keras_serializable(package="tfface")(Discriminative)


class _WithFactor:
    """An optimizer at a learning rate of its own, of which Keras takes a share off each variable as weight decay.

    Nothing is changed for a while in the optimizer itself: the replicas of tf.distribute take turns amid the decay.
    """

    def __init__(self, optimizer, factor):
        self._optimizer, self._factor = optimizer, factor

    def __getattr__(self, name):
        return getattr(self._optimizer, name)

    @property
    def __class__(self):  # what `super()` asks for in a decay that goes on to that of a base class
        return type(self._optimizer)

    @property
    def learning_rate(self):
        return self._optimizer.learning_rate * self._factor


DiscriminativeAdam = discriminative(keras.optimizers.Adam)
DiscriminativeSGD = discriminative(keras.optimizers.SGD)


def discriminative_factors(groups: Sequence[Sequence[str | keras.Layer]], low: float, high: float) -> dict[str, float]:
    """Factors that spread learning rates from `low` to `high` over groups of layers, in equal ratios.

    The layers nearest the pixels hold what every task needs and should move least. Used with a learning rate (or the
    peak of a schedule) of `high`, this is fastai's `slice(low, high)`.

    Reference: Howard and Gugger, fastai: A Layered API for Deep Learning (Information 2020), section 2.3.

    Args:
        groups: layers, blocks or nested models of each group, or their names, the group nearest the input first; one
            group alone gets `high`. A functional model that is a layer of another, such as one of `keras.applications`,
            must be given itself: its name covers nothing.
        low: learning rate of the first group, above 0.
        high: learning rate of the last group, at least `low`.

    Returns:
        name -> factor in (0, 1], for the `factors` of a discriminative optimizer.

    Raises:
        UserError: rates out of order, no group, a name in place of a group, a name that stands twice, or a layer that
            is not built.

    Example:
        factors = discriminative_factors([["stem", "stage1"], ["stage2"], ["head"]], 1e-5, 1e-4)
        optimizer = DiscriminativeAdam(1e-4, factors=factors)
    """
    if not 0 < low <= high:
        raise UserError(f"Learning rates must hold 0 < low <= high. Received: low={low}, high={high}.")
    lists = not any(isinstance(group, str | keras.Layer) for group in groups)
    named = [[name for member in group for name in _names(member)] for group in groups] if lists else []
    names = [name for group in named for name in group]
    if not names or len(names) != len(set(names)):
        raise UserError(f"Groups must name layers, lists of names, each in one group only. Received: {groups}.")
    last = len(groups) - 1
    return {
        name: (low / high) ** ((last - index) / max(1, last)) for index, group in enumerate(named) for name in group
    }


def _names(member: str | keras.Layer) -> list[str]:
    """The names by which the variables of a layer go: its own, or the outermost in it that stands in their paths."""
    if isinstance(member, str):
        return [member]
    if not member.built:
        raise UserError(f"Groups must hold layers that are built. Received: {member.name}. Call the model on a batch.")
    # Frozen ones too: `trainable_variables` has none of them.
    variables = [variable for layer in member._flatten_layers() for variable in layer._trainable_variables]
    paths = [variable.path.split("/")[:-1] for variable in variables]
    return list(dict.fromkeys(member.name if member.name in path else path[0] for path in paths))


@keras.saving.register_keras_serializable(package="tfface")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """The one-cycle policy: the learning rate rises to a peak, then falls far below where it began.

    The high rates in the middle regularise and cross flat ground fast; the long fall settles into a minimum. Both
    halves follow a cosine, as fastai has them (the paper's are straight). The first update is made at
    `highest / start_division`, the last one (step `steps - 1`) at `highest / end_division`, which then stays.

    References: Smith and Topin, Super-Convergence (2018); Smith, A disciplined approach to neural network
    hyper-parameters (2018), section 4; the defaults are those of fastai's `fit_one_cycle`.

    Args:
        highest: learning rate of the peak, as the learning-rate range test suggests it.
        steps: updates in the whole training, at least 2.
        rising: share of the steps before the peak, between 0 and 1.
        start_division: how far below the peak the rate begins.
        end_division: how far below the peak the rate ends.

    Raises:
        UserError: an argument out of its range.

    Example:
        model.compile(keras.optimizers.SGD(OneCycle(0.1, epochs * steps_per_epoch), momentum=0.95), "mse")
    """

    def __init__(self, highest, steps, rising=0.25, start_division=25.0, end_division=1e5):
        super().__init__()
        if highest is None:  # as a learning-rate test suggests it where the loss fell nowhere
            raise UserError("OneCycle needs highest > 0. Received: None.")
        if not (highest > 0 and steps >= 2 and 0 < rising < 1 and start_division > 0 and end_division > 0):
            raise UserError(
                "OneCycle needs highest > 0, steps >= 2, 0 < rising < 1 and divisions > 0. Received: "
                f"highest={highest}, steps={steps}, rising={rising}, start_division={start_division}, "
                f"end_division={end_division}."
            )
        self.highest, self.steps, self.rising = highest, steps, rising
        self.start_division, self.end_division = start_division, end_division

    def __call__(self, step):
        """Learning rate of the update number `step`, from 0: a float32 scalar."""
        return self.between(step, self.highest / self.start_division, self.highest, self.highest / self.end_division)

    def between(self, step, start: float, middle: float, end: float):
        """Any quantity that goes with the cycle: `start` at step 0, `middle` at the peak, `end` at the last step.

        Args:
            step: number of the update, from 0: an integer, a tensor or a variable.
            start, middle, end: values that are passed through.

        Returns:
            float32 scalar.
        """
        step = keras.ops.cast(step, "float32")
        last = self.steps - 1
        peak = self.rising * last
        rise = keras.ops.minimum(step / peak, 1.0)
        fall = keras.ops.clip((step - peak) / (last - peak), 0.0, 1.0)
        return keras.ops.where(step < peak, _cosine(start, middle, rise), _cosine(middle, end, fall))

    def get_config(self):
        return {
            "highest": self.highest,
            "steps": self.steps,
            "rising": self.rising,
            "start_division": self.start_division,
            "end_division": self.end_division,
        }


def warm_cosine(learning_rate: float, steps: int) -> keras.optimizers.schedules.CosineDecay:
    """A short warm-up, then half a cosine to zero.

    Args:
        learning_rate: the highest, reached from a tenth of it over a fiftieth of the steps.
        steps: of the whole training, >= 1.

    Returns:
        A Keras schedule.
    """
    warm = max(1, steps // 50)
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 10, max(1, steps - warm), warmup_target=learning_rate, warmup_steps=warm
    )


def _cosine(start, end, share):
    # A weighted sum, not start + share * (end - start): that would lose a tiny `end` to float32's rounding.
    weight = (1.0 + keras.ops.cos(math.pi * share)) / 2.0
    return start * weight + end * (1.0 - weight)

"""The momentum's half of the one-cycle policy (the learning rate's half is `tfface.optimizers.OneCycle`)."""

from __future__ import annotations

import keras

from tfface.errors import UserError
from tfface.optimizers import OneCycle

MOMENTUM_OF = {keras.optimizers.SGD: "momentum", keras.optimizers.RMSprop: "momentum", keras.optimizers.Adam: "beta_1"}
"""Optimizer (and its subclasses, such as AdamW) -> the attribute that is its momentum."""


class OneCycleMomentum(keras.callbacks.Callback):
    """Let the momentum fall while the learning rate of `OneCycle` rises, and rise again while it falls.

    High rates and high momentum together diverge; a low momentum at the peak lets the peak be higher. Works for SGD and
    RMSprop (`momentum`), Adam and AdamW (`beta_1`), their discriminative subclasses, and inside LossScaleOptimizer.

    Keras reads the momentum as a Python number when it traces the training step, so setting another number between
    steps changes nothing, in silence. This callback makes the update rule compute it from `optimizer.iterations`
    inside the graph: it needs no state, so a resumed training goes on where it was, and it holds for XLA, for
    `steps_per_execution` and on JAX. Outside the update rule the optimizer keeps its number, so saving works as ever.
    The training step is traced afresh at each `fit`. After a `fit` that was broken off, the cycle stays in the
    optimizer until a `fit` with this callback ends: compile the model with a new optimizer to train without it.

    References: Smith, A disciplined approach to neural network hyper-parameters (2018), section 4.3; Smith and Topin,
    Super-Convergence (2018). The defaults are those of fastai's `fit_one_cycle`.

    Args:
        highest: momentum at the first and at the last step, in [0, 1).
        lowest: momentum at the peak of the learning rate, in [0, highest].

    Raises:
        UserError: momenta out of order; at the start of `fit`: the model's learning rate is not a `OneCycle`, the
            optimizer has no momentum that could follow it, or the backend is neither TensorFlow nor JAX.

    Example:
        model.compile(keras.optimizers.SGD(OneCycle(0.1, steps), momentum=0.95), "mse")
        model.fit(data, callbacks=[OneCycleMomentum()])
    """

    def __init__(self, highest: float = 0.95, lowest: float = 0.85):
        super().__init__()
        if not 0 <= lowest <= highest < 1:
            raise UserError(
                f"Momenta must hold 0 <= lowest <= highest < 1. Received: lowest={lowest}, highest={highest}."
            )
        self.highest, self.lowest = highest, lowest

    def on_train_begin(self, logs=None):
        optimizer = _innermost(self.model.optimizer)
        schedule = optimizer._learning_rate  # the public property gives this step's number only
        attribute = next((name for kind, name in MOMENTUM_OF.items() if isinstance(optimizer, kind)), None)
        if not isinstance(schedule, OneCycle):
            raise UserError(
                "OneCycleMomentum follows the learning rate: expected an optimizer whose learning rate is a OneCycle. "
                f"Received: {schedule}. Compile the model with SGD(OneCycle(rate, steps), momentum=0.95), for example."
            )
        if not attribute or not getattr(optimizer, attribute):
            raise UserError(
                "OneCycleMomentum needs an optimizer with momentum: SGD or RMSprop made with momentum above 0 (else "
                f"Keras keeps no room for it), Adam or AdamW. Received: {type(optimizer).__name__}."
            )
        if keras.backend.backend() not in ("tensorflow", "jax"):
            raise UserError(
                "OneCycleMomentum works with Keras' TensorFlow and JAX backends, whose optimizers update one variable "
                f"after the other. Received: {keras.backend.backend()}. Leave it out, or change KERAS_BACKEND."
            )

        def update_step(gradient, variable, learning_rate):
            # The step that OneCycle sees too: `iterations` counts differently where gradients are accumulated.
            momentum = schedule.between(optimizer._iterations, self.highest, self.lowest, self.highest)
            number = getattr(optimizer, attribute)
            setattr(optimizer, attribute, _Momentum(momentum))
            try:
                type(optimizer).update_step(optimizer, gradient, variable, learning_rate)
            finally:
                setattr(optimizer, attribute, number)

        optimizer.update_step = update_step
        self.model.make_train_function(force=True)

    def on_train_end(self, logs=None):
        del _innermost(self.model.optimizer).update_step
        self.model.train_function = None


def _innermost(optimizer):
    """The optimizer that LossScaleOptimizer wraps, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


class _Momentum:
    """A tensor as Keras' update rules use the momentum: they ask in Python whether it is above 0, then compute."""

    def __init__(self, value):
        self.value, self.dtype = value, value.dtype

    def __ne__(self, other):
        return True

    def __gt__(self, other):
        return True

    def __rsub__(self, other):
        return other - self.value

    def __tf_tensor__(self, dtype=None, name=None):
        return self.value

    def __jax_array__(self):
        return self.value

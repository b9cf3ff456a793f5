import warnings

import keras
import numpy as np
import pytest

from tfface.errors import UserError
from tfface.optimizers import DiscriminativeSGD, OneCycle, discriminative_factors, warm_cosine
from tfface.training.one_cycle import OneCycleMomentum

STEPS = 5
# Five steps of OneCycle(1.0, 5, rising=0.5), worked by hand: half way up the rate is (1 + 0.04) / 2, half way down
# (1 + 0.00001) / 2, and the momentum is half way too.
RATES = (0.04, 0.52, 1.0, 0.500005, 0.00001)
MOMENTA = (0.95, 0.90, 0.85, 0.90, 0.95)


def cycle():
    return OneCycle(1.0, STEPS, rising=0.5)


def test_the_learning_rate_by_hand():
    schedule = cycle()
    np.testing.assert_allclose([float(schedule(step)) for step in range(STEPS)], RATES, rtol=1e-6)
    assert float(schedule(STEPS + 100)) == float(schedule(STEPS - 1))
    assert float(OneCycle(1.0, 101)(25)) == 1.0  # the peak is a quarter of the way


@pytest.mark.parametrize("steps", [2, 3, 101, 1234, 1_000_003])
@pytest.mark.parametrize("rising", [0.25, 0.3])
def test_the_ends_and_the_peak_are_exact(steps, rising):
    schedule = OneCycle(3e-3, steps, rising)
    assert float(schedule(0)) == np.float32(3e-3 / 25)
    assert float(schedule(steps - 1)) == np.float32(3e-3 / 1e5)
    rates = np.asarray(schedule(np.arange(min(steps, 2000)) * max(1, steps // 2000)))
    assert rates.max() <= np.float32(3e-3)
    peak = rates.argmax()
    assert (np.diff(rates[: peak + 1]) >= 0).all()
    assert (np.diff(rates[peak:]) <= 0).all()
    if steps == 101 and rising == 0.25:
        assert peak == 25
        assert rates[peak] == np.float32(3e-3)


def test_it_is_saved_and_loaded():
    schedule = OneCycle(0.1, 100, 0.3, 10.0, 1e4)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again._learning_rate.get_config() == schedule.get_config()


@pytest.mark.parametrize(
    "arguments", [(0.0, 10), (0.1, 1), (0.1, 10, 0.0), (0.1, 10, 1.0), (0.1, 10, 0.25, 0.0), (0.1, 10, 0.25, 25, -1)]
)
def test_bad_arguments_of_the_schedule(arguments):
    with pytest.raises(UserError, match="OneCycle needs"):
        OneCycle(*arguments)


def steady(optimizer, **settings):
    """One weight from 0 whose gradient is always 1."""
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="low")]
    )
    model.compile(optimizer, lambda truth, said: said, **settings)
    return model


class Weights(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.model.get_weights()[0].item())


def fit(model, steps=STEPS, callbacks=None):
    weights = Weights()
    x = np.ones((steps, 1), "float32")
    model.fit(x, x, batch_size=1, verbose=0, callbacks=[*(callbacks or [OneCycleMomentum()]), weights])
    return weights.seen


def path_of_sgd(momenta=MOMENTA, factor=1.0):
    weight, velocity, path = 0.0, 0.0, []
    for rate, momentum in zip(RATES, momenta, strict=True):
        velocity = momentum * velocity - factor * rate
        weight += velocity
        path.append(weight)
    return path


def path_of_adam():
    weight, mean, square, path = 0.0, 0.0, 0.0, []
    for step, (rate, momentum) in enumerate(zip(RATES, MOMENTA, strict=True), 1):
        mean += (1 - momentum) * (1 - mean)
        square += 0.001 * (1 - square)
        weight -= rate * mean / (1 - momentum**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-7)
        path.append(weight)
    return path


def path_of_rmsprop():
    weight, velocity, square, path = 0.0, 0.0, 0.0, []
    for rate, momentum in zip(RATES, MOMENTA, strict=True):
        square += 0.1 * (1 - square)
        velocity = momentum * velocity + rate / np.sqrt(square + 1e-7)
        weight -= velocity
        path.append(weight)
    return path


PATHS = {
    keras.optimizers.SGD: path_of_sgd,
    keras.optimizers.RMSprop: path_of_rmsprop,
    keras.optimizers.Adam: path_of_adam,
    keras.optimizers.AdamW: path_of_adam,
}
OPTIONS = {
    keras.optimizers.SGD: {"momentum": 0.9},
    keras.optimizers.RMSprop: {"momentum": 0.9},
    keras.optimizers.AdamW: {"weight_decay": 0.0},
}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [*((kind, {}) for kind in PATHS), (keras.optimizers.SGD, {"jit_compile": True})],
    ids=lambda value: getattr(value, "__name__", "jit" if value else "graph"),
)
def test_the_momentum_of_each_step(kind, settings):
    optimizer = kind(cycle(), **OPTIONS.get(kind, {}))
    config = optimizer.get_config()
    np.testing.assert_allclose(fit(steady(optimizer, **settings)), PATHS[kind](), rtol=2e-5)
    assert optimizer.get_config() == config


def test_the_path_depends_on_the_momentum():
    # What a momentum that never changes gives: the trajectories above would notice a callback without effect.
    assert not np.allclose(path_of_sgd(), path_of_sgd(momenta=[0.95] * 5), rtol=1e-3)
    assert not np.allclose(path_of_sgd(), path_of_sgd(momenta=[0.9] * 5), rtol=1e-3)


def test_the_momentum_inside_loss_scaling():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(cycle(), momentum=0.9), initial_scale=8.0)
    np.testing.assert_allclose(fit(steady(optimizer)), path_of_sgd(), rtol=1e-5)


def test_the_momentum_with_factors_by_layer_and_several_steps_at_once():
    model = steady(DiscriminativeSGD(cycle(), momentum=0.9, factors={"low": 0.5}), steps_per_execution=STEPS)
    np.testing.assert_allclose(fit(model), path_of_sgd(factor=0.5)[-1:], rtol=1e-5)


def test_a_resumed_training_goes_on_where_it_was(tmp_path):
    whole = fit(steady(keras.optimizers.SGD(cycle(), momentum=0.9)))
    model = steady(keras.optimizers.SGD(cycle(), momentum=0.9))
    first = fit(model, 2)
    model.save_weights(tmp_path / "state.weights.h5")  # the optimizer's variables too
    other = steady(keras.optimizers.SGD(cycle(), momentum=0.9))
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "state.weights.h5")
    assert first + fit(other, 3) == whole


def test_it_leaves_with_the_training():
    model = steady(keras.optimizers.SGD(cycle(), momentum=0.9))
    fit(model)  # traced with the cycle
    for variable in [*model.variables, *model.optimizer.variables]:
        variable.assign(keras.ops.zeros_like(variable))
    constant = fit(model, callbacks=[keras.callbacks.Callback()])
    np.testing.assert_allclose(constant, path_of_sgd(momenta=[0.9] * 5), rtol=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9), "expected an optimizer whose learning rate is a OneCycle"),
        (lambda: keras.optimizers.SGD(cycle()), "made with momentum above 0"),
        (lambda: keras.optimizers.Adagrad(cycle()), "Received: Adagrad"),
    ],
)
def test_an_optimizer_that_cannot_follow_is_refused(optimizer, message):
    with pytest.raises(UserError, match=message):
        fit(steady(optimizer()))


def test_bad_momenta_are_said():
    with pytest.raises(UserError, match=r"lowest=0\.9, highest=0\.8"):
        OneCycleMomentum(0.8, 0.9)


def test_factors_are_spread_in_equal_ratios():
    factors = discriminative_factors([["stem", "stage1"], ["stage2"], ["head"]], 1e-5, 1e-3)
    assert factors == pytest.approx({"stem": 0.01, "stage1": 0.01, "stage2": 0.1, "head": 1.0})
    assert discriminative_factors([["all"]], 1e-5, 1e-3) == {"all": 1.0}  # fastai: the highest


def test_layers_and_models_within_a_model_stand_for_the_names_of_their_variables():
    class Block(keras.layers.Layer):
        def __init__(self, backbone):
            super().__init__(name="block")
            self.backbone, self.own = backbone, keras.layers.Dense(2, name="own")

        def call(self, x):
            return self.own(self.backbone(x))

    def functional(name):
        image = keras.Input((2,))
        x = keras.layers.Dense(2, name=f"{name}_low")(image)
        return keras.Model(image, keras.layers.BatchNormalization(name=f"{name}_norm")(x), name=name)

    def sequential(name):
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="in_it")], name=name)

    base, stack, block = functional("base"), sequential("stack"), Block(functional("inner"))
    model = keras.Sequential([keras.Input((2,)), base, stack, block, keras.layers.Dense(1, name="head")], name="all")
    base.trainable = False
    factors = discriminative_factors([[base, "stack"], [block], [model.layers[-1]]], 1e-4, 1e-2)
    base.trainable = True
    optimizer = DiscriminativeSGD(1.0, factors=factors)
    paths = [(layer.name, variable.path) for layer in model.layers for variable in layer.trainable_variables]
    assert len(paths) == 14
    expected = {"base": 0.01, "stack": 0.01, "block": 0.1, "head": 1.0}
    for name, path in paths:
        assert optimizer.factor_of(path) == pytest.approx(expected[name])
    model.compile(optimizer, "mse")
    with warnings.catch_warnings(action="error"):  # of names of nothing that is trained
        optimizer.build(model.trainable_variables)


@pytest.mark.parametrize(
    ("groups", "low", "high", "message"),
    [
        ([[keras.layers.Dense(1, name="fresh")]], 1e-5, 1e-4, "built. Received: fresh"),
        ([keras.layers.Dense(1)], 1e-5, 1e-4, "lists of names"),
        ([["a"], ["a"]], 1e-5, 1e-4, "one group only"),
        ([], 1e-5, 1e-4, "must name layers"),
        ([["a"]], 1e-3, 1e-4, "0 < low <= high"),
        ([["a"]], 0.0, 1e-4, "0 < low <= high"),
    ],
)
def test_bad_groups_are_said(groups, low, high, message):
    with pytest.raises(UserError, match=message):
        discriminative_factors(groups, low, high)


def test_a_cosine_that_is_warmed_up():
    rate = warm_cosine(1.0, 100)  # two steps up, 98 down
    values = [float(rate(step)) for step in (0, 1, 2, 51, 100)]
    assert values == pytest.approx([0.1, 0.55, 1.0, 0.5, 0.0], abs=1e-6)
    assert float(warm_cosine(1.0, 1)(0)) == pytest.approx(0.1)

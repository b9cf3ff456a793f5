import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from tqdm import tqdm

from tfface.errors import UserError
from tfface.optimizers import DiscriminativeAdam, DiscriminativeSGD, OneCycle
from tfface.training import lr_find
from tfface.training.lr_find import LearningRateCurve, find_for_recipe, find_learning_rate

RATES = np.geomspace(1e-4, 1e-2, 12)


def blobs(n=96):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4)).astype("float32")
    return x, x[:, :2].argmax(1)


def network(optimizer, dtype="float32", **settings):
    """Weights, statistics of a batch norm and the state of a seed: everything that a step moves."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu", name="low", dtype=dtype),
            keras.layers.BatchNormalization(dtype=dtype),
            keras.layers.Dropout(0.3, dtype=dtype),
            keras.layers.Dense(2, activation="softmax", dtype="float32"),
        ]
    )
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **settings)
    return model


def line(optimizer, **settings):
    """One weight w from 0, loss w: with plain SGD the loss of a step is minus the sum of the rates before it."""
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="low")]
    )
    model.compile(optimizer, lambda truth, said: said, **settings)
    return model


def ones(n):
    return np.ones((n, 1), "float32"), np.ones((n, 1), "float32")


def state(model):
    return [
        (variable.path, keras.ops.convert_to_numpy(variable.value).tobytes())
        for variable in [*model.variables, *model.optimizer.variables]
    ]


def settings_of(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)._learning_rate


OPTIMIZERS = {
    "a number": lambda: keras.optimizers.Adam(1e-3),
    "a schedule, scaled loss": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(OneCycle(0.1, 60), momentum=0.9), initial_scale=2.0**40
    ),
    "by layer": lambda: DiscriminativeAdam(OneCycle(0.1, 60), factors={"low": 0.1}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_everything_is_put_back(name):
    model = network(OPTIMIZERS[name](), "mixed_float16" if "scaled" in name else "float32")
    model.fit(*blobs(), verbose=0)
    before, rate, history = state(model), settings_of(model.optimizer), model.history
    curve = find_learning_rate(model, blobs(), steps=12)
    assert len(curve.rates) == 12
    assert state(model) == before
    assert settings_of(model.optimizer) is rate
    assert model.history is history
    assert not model.stop_training
    assert all(float(metric.result()) == 0 for metric in model.metrics if metric.name != "compile_metrics")


def test_training_goes_on_as_if_nothing_had_been():
    model, twin = (network(keras.optimizers.Adam(1e-2)) for _ in range(2))
    find_learning_rate(model, blobs(), steps=12)
    for each in (model, twin):
        each.fit(*blobs(), verbose=0, shuffle=False)
    assert [value for _, value in state(model)] == [value for _, value in state(twin)]


def test_everything_is_put_back_after_ctrl_c(monkeypatch):
    model = network(keras.optimizers.SGD(OneCycle(0.1, 60), momentum=0.9))
    model.fit(*blobs(), verbose=0)
    before, rate, traced = state(model), settings_of(model.optimizer), model.train_function

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))
        if len(self.losses) == 5:
            assert state(self.model) != before
            raise KeyboardInterrupt

    monkeypatch.setattr(lr_find._RangeTest, "on_train_batch_end", on_train_batch_end)
    with pytest.raises(KeyboardInterrupt):
        find_learning_rate(model, blobs())
    assert state(model) == before
    assert settings_of(model.optimizer) is rate
    assert model.train_function is traced


@pytest.mark.parametrize(
    ("optimizer", "share"),
    [
        (lambda: keras.optimizers.SGD(0.5), 1.0),
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(OneCycle(0.5, 100))), 1.0),
        (lambda: keras.optimizers.SGD(lambda: 0.5), 1.0),
        (lambda: DiscriminativeSGD(0.5, factors={"low": 0.25}), 0.25),
    ],
)
def test_each_step_is_made_at_its_rate(optimizer, share):
    curve = find_learning_rate(line(optimizer()), ones(8), RATES[0], RATES[-1], len(RATES), batch_size=2)
    np.testing.assert_allclose(curve.rates, RATES)
    np.testing.assert_allclose(curve.losses, -share * np.cumsum([0, *RATES[:-1]]), rtol=1e-5)
    assert not curve.diverged


def test_a_schedule_and_several_steps_at_once_that_were_traced_before_stand_aside():
    model = line(keras.optimizers.SGD(OneCycle(0.5, 100)), steps_per_execution=4)
    model.fit(*ones(8), batch_size=2, verbose=0)
    start = model.get_weights()[0].item()
    curve = find_learning_rate(model, ones(8), RATES[0], RATES[-1], len(RATES), batch_size=2)
    np.testing.assert_allclose(curve.losses, start - np.cumsum([0, *RATES[:-1]]), rtol=1e-5)
    assert model.steps_per_execution == 4


@pytest.fixture(scope="module")
def sgd():
    return line(keras.optimizers.SGD())


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return ones(2)


@pytest.mark.parametrize(
    "data",
    [
        lambda: ones(70),
        lambda: (*ones(70), np.ones(70)),
        Batches,
        lambda: tf.data.Dataset.from_tensors(ones(2)).repeat(3),
        lambda: tf.data.Dataset.from_tensors(ones(2)).repeat(3).filter(lambda x, y: True),
        lambda: tf.data.Dataset.from_tensors(ones(2)).repeat(),
        lambda: (ones(2) for _ in range(12)),
    ],
)
def test_data_of_any_kind_are_read_until_the_last_step(data, sgd, recwarn):
    curve = find_learning_rate(sgd, data(), RATES[0], RATES[-1], len(RATES))
    np.testing.assert_allclose(curve.losses, -np.cumsum([0, *RATES[:-1]]), rtol=1e-5)
    assert not [warning for warning in recwarn if "ran out of data" in str(warning.message)]


def test_the_defaults_are_a_hundred_steps_over_eight_decades(sgd):
    np.testing.assert_allclose(find_learning_rate(sgd, ones(3200)).rates, np.geomspace(1e-7, 10, 100))


def test_a_generator_that_ends_is_said(sgd):
    with pytest.raises(UserError, match="ended after 11 of 12 steps"):
        find_learning_rate(sgd, (ones(2) for _ in range(11)), 1e-4, 1e-2, 12)


def feed(losses, smoothing=0.0, stop_factor=4.0):
    test = lr_find._RangeTest(np.geomspace(1e-3, 1, 8), smoothing, stop_factor, tqdm(disable=True))
    test.set_model(SimpleNamespace(stop_training=False))
    for loss in losses:
        test.on_train_batch_end(0, {"loss": loss})
    return test


def test_the_average_is_corrected_for_its_start():
    np.testing.assert_allclose(feed([1, 2, 3], smoothing=0.5).smoothed, [1, 1.25 / 0.75, 2.125 / 0.875])


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([2, 1, 4], False),
        ([2, 1, 4.01], True),
        ([-1, 2], False),  # a rise of three times the lowest value, below zero too
        ([-1, 2.01], True),
        ([1, float("nan")], True),
        ([1, float("inf")], True),
    ],
)
def test_it_stops_when_the_loss_diverges(losses, ends):
    test = feed(losses)
    assert test.diverged == test.model.stop_training == ends
    assert np.isfinite(test.losses).all()


def test_it_stops_at_the_last_step():
    test = feed([1] * 8)
    assert test.model.stop_training
    assert not test.diverged


def hill(*corners):
    """A curve over rates from 1e-7 to 10, ten to the decade, straight between corners (place, value)."""
    smoothed = np.interp(np.arange(81), *zip(*corners, strict=True))
    losses = np.where(np.arange(81) == 5, -9.0, smoothed)  # what a single batch says counts for nothing
    return LearningRateCurve(np.logspace(-7, 1, 81), losses, smoothed)


def test_suggestions():
    # Flat to 1e-4, falling to 1e-1, steepest at 10**-2.5, then rising.
    curve = hill((0, 1.0), (30, 1.0), (44, 0.9), (46, 0.6), (60, 0.5), (80, 5.0))
    assert curve.steepest == pytest.approx(10**-2.5)
    assert curve.valley == pytest.approx(1e-2)
    assert curve.minimum_tenth == pytest.approx(1e-2)


def test_a_bump_does_not_end_the_valley():
    curve = hill((0, 1.0), (30, 1.0), (44, 0.8), (45, 0.83), (46, 0.79), (60, 0.5), (80, 5.0))
    assert curve.valley == pytest.approx(1e-2)


def test_a_fall_after_the_loss_has_blown_up_is_not_the_steepest():
    assert hill((0, 1.0), (30, 1.0), (60, 0.5), (70, 3.0), (75, 2.0), (80, 2.0)).steepest < 0.1


def test_the_first_fifth_is_not_the_steepest():
    curve = hill((0, 1.0), (9, 1.0), (13, 0.5), (60, 0.3), (80, 5.0))
    assert curve.steepest == pytest.approx(10**-5.4)  # place 16, whose tenth of the test reaches back into the fall


def test_nothing_is_suggested_where_the_loss_does_not_fall(tmp_path):
    curve = hill((0, 1.0), (80, 5.0))
    assert curve.suggestions == {"steepest": None, "valley": None, "minimum_tenth": None}
    assert hill((0, 1.0), (80, 1.0 - 1e-12)).valley is None  # a loss that stays falls too, by its rounding
    assert json.loads(curve.to_json(tmp_path / "lr.json").read_text())["suggestions"]["valley"] is None
    curve.plot(tmp_path / "lr.png")


def test_the_longest_fall_is_the_longest():
    def longest(values):  # by the definition, slowly
        best = []
        for i, value in enumerate(values):
            best.append(1 + max((best[j] for j in range(i) if values[j] > value), default=0))
        return max(best), {i for i, length in enumerate(best) if length == max(best)}

    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.integers(0, 9, 12)
        length, ends = longest(values)
        first, last = lr_find._longest_fall(values)
        assert last in ends
        assert longest(values[first : last + 1])[0] == length


def test_a_plot_and_a_file(tmp_path):
    curve = hill((0, 1.0), (30, 1.0), (60, 0.5), (80, 5.0))
    assert curve.plot(tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads(curve.to_json(tmp_path / "lr.json").read_text())
    assert written["suggestions"] == curve.suggestions
    np.testing.assert_array_equal(written["rates"], curve.rates)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lr.json", "lr.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lowest": 1.0, "highest": 0.1}, "lowest=1.0, highest=0.1"),
        ({"steps": 9}, "steps >= 10"),
        ({"smoothing": 1.0}, "smoothing=1.0"),
        ({"stop_factor": 1.0}, "stop_factor=1.0"),
    ],
)
def test_bad_arguments_are_said(change, message, sgd):
    with pytest.raises(UserError, match=message):
        find_learning_rate(sgd, ones(4), **change)


def test_a_model_that_is_not_ready_is_said():
    model = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(UserError, match="compiled=False"):
        find_learning_rate(model, ones(4))
    model.compile("sgd", "mse")
    with pytest.raises(UserError, match="built=False"):
        find_learning_rate(model, ones(4))


def test_a_train_step_around_a_built_network_is_tested():
    class Around(keras.Model):  # never called itself, so never built
        def __init__(self, network):
            super().__init__()
            self.network = network

        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self.network(data[0], training=True))
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            return {"loss": loss}

    model = Around(line("sgd"))
    model.compile(keras.optimizers.SGD(0.1))
    curve = find_learning_rate(model, ones(4), 1e-4, 1e-2, steps=12, stop_factor=1e6, progress=False)
    np.testing.assert_allclose(curve.losses, -np.concatenate([[0], np.cumsum(RATES)[:-1]]), rtol=1e-4, atol=1e-9)
    assert model.network.get_weights()[0] == 0


def test_a_model_without_one_rate_or_without_a_loss_is_said():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.MultiOptimizer(lambda variable: keras.optimizers.SGD()), "mse")
    with pytest.raises(UserError, match="one learning rate"):
        find_learning_rate(model, ones(4))
    model.compile("sgd", "mse")
    model.train_step = lambda data: {"own": keras.ops.sum(data[0])}
    with pytest.raises(UserError, match="Received: own"):
        find_learning_rate(model, ones(4))


def test_a_loss_that_diverges_at_once_is_said():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(UserError, match="lowest rate below 1000"):
        find_learning_rate(model, ones(64), lowest=1e3, highest=1e9, batch_size=1)
    assert np.isfinite(model.get_weights()[0]).all()


def test_for_a_recipe(colour, colours, tmp_path, capsys):
    curve = find_for_recipe(colour(), tmp_path / "out", colours, steps=30)
    assert 10 <= len(curve.rates) <= 30
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"lr_find.json", "lr_find.png"}
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        *curve.suggestions,
        "curve",
    ]


CHECK_ON_JAX = """
import keras
from test_lr_find import *
from test_one_cycle import *

assert keras.backend.backend() == "jax"
with pytest.MonkeyPatch.context() as patch:
    test_everything_is_put_back_after_ctrl_c(patch)
test_the_momentum_of_each_step(keras.optimizers.Adam, {"jit_compile": True})
test_the_momentum_inside_loss_scaling()
"""


def test_on_jax():
    folder = Path(__file__).parent
    result = subprocess.run(
        [sys.executable, "-c", CHECK_ON_JAX],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]

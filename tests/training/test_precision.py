"""Half precision by a recipe's field: it trains to the loss of float32, and leaves no trace."""

import keras
import numpy as np
import pytest

from tfface import labels, tasks
from tfface.errors import UserError
from tfface.models import rnet
from tfface.training.fit import PRECISIONS, compile_for, fit, precision
from tfface.training.run import split_at


def test_every_precision_trains_to_the_same_loss():
    race = (tasks.classification("race", tuple(labels.GROUPINGS["four_races"][1])),)
    pixels = np.random.default_rng(0).uniform(0, 255, (16, 16, 16, 3)).astype("float32")
    truth = {"race": np.eye(4, dtype="float32")[np.arange(16) % 4]}
    losses = {}
    for policy in PRECISIONS:
        with precision(policy):
            keras.utils.set_random_seed(0)
            model = rnet(race, (16, 16, 3), filters=(8, 16), dropout_rate=0.0)
        optimizer = keras.optimizers.SGD(0.05)
        if policy == "mixed_float16":  # a scale at which no step overflows: those that do are skipped
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=256)
        model.compile(optimizer, "categorical_crossentropy")
        losses[policy] = model.fit(pixels, truth, batch_size=16, epochs=10, shuffle=False, verbose=0).history["loss"]
    assert losses["float32"][-1] < losses["float32"][0] / 2
    for values in losses.values():  # in between it falls steeply, and rounding shifts it by a part of a step
        assert values[0] == pytest.approx(losses["float32"][0], abs=0.02)
        assert values[-1] == pytest.approx(losses["float32"][-1], abs=0.03)


def test_a_run_in_float16(colour, colours, tmp_path):
    run = fit(colour(precision="mixed_float16"), tmp_path / "run", colours, verbose=0)
    assert np.isfinite(run.history()[0]["val_loss"])
    assert run.model(float32=False).get_layer("hidden").compute_dtype == "float16"
    assert run.model().get_layer("hidden").compute_dtype == "float32"  # what is measured and served
    assert keras.mixed_precision.dtype_policy().name == "float32"  # of what is built next


def test_float16_scales_the_loss_of_a_part_of_a_network_too(colour):
    recipe = colour(precision="mixed_float16")
    with precision(recipe.precision):
        whole = recipe.model()
    _, part = split_at(whole, "mean")
    for model in (whole, part):
        compile_for(model, recipe, 10)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert type(model.optimizer.inner_optimizer) is keras.optimizers.Adam


def test_a_frozen_part_computes_in_float32_whatever_keras_is_set_to(colour, colours, tmp_path):
    run = fit(colour(train_from="mean"), tmp_path / "run", colours, verbose=0)
    with precision("mixed_bfloat16"):
        assert run.model().get_layer("mean").compute_dtype == "float32"


def test_another_precision_is_refused():
    with pytest.raises(UserError, match="mixed_float16"), precision("float8"):
        pass

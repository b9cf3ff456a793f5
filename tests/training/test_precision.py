"""Half precision by a recipe's field: it trains to the loss of float32, and leaves no trace."""

import keras
import pytest

from tfface import recipes
from tfface.errors import UserError
from tfface.training.fit import PRECISIONS, fit, precision


def test_all_precisions_train_to_the_same_loss(data_dir, tmp_path):
    rows = {}
    for policy in PRECISIONS:
        small = [f"precision={policy}", "image_size=(16, 16)", "train_split=train[:30%]", "batch_size=16"]
        recipe = recipes.load("race", settings=small, tiny=True)  # CPUs compute float16 very slowly
        run = fit(recipe, tmp_path / policy, data_dir, verbose=0)
        rows[policy] = run.history()
        assert keras.mixed_precision.dtype_policy().name == "float32"
    half = keras.saving.load_model(tmp_path / "mixed_float16" / "trained.keras", compile=False)
    assert half.get_layer("block1_conv1").compute_dtype == "float16"
    for history in rows.values():
        for row, expected in zip(history, rows["float32"], strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], rel=0.05)
        assert history[1]["loss"] < history[0]["loss"]


def test_another_precision_is_refused():
    with pytest.raises(UserError, match="mixed_float16"), precision("float8"):
        pass

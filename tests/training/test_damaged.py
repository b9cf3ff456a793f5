"""Files of a training that were cut off: one line says which, and what to do."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from tfface.data import pipeline
from tfface.errors import UserError
from tfface.training import features
from tfface.training.run import Run


def small_model():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile(optimizer="adam", loss="mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_state_that_was_cut_off(share, tmp_path):
    run, model = Run(tmp_path), small_model()
    run.save_state(model, [{"epoch": 0}])
    assert run.restore_state(model) == [{"epoch": 0}]
    data = run.state_file.read_bytes()
    run.state_file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"state.npz is damaged .* Remove it"):
        run.restore_state(model)


@pytest.mark.parametrize("size", [0, 60, 500])
def test_cached_features_that_were_cut_off(size, tmp_path, monkeypatch):
    def compute(*arguments):
        target = arguments[-2]
        target.parent.mkdir(parents=True)
        np.save(target, np.zeros((100, 4), "float16"))
        target.write_bytes(target.read_bytes()[:size])

    monkeypatch.setenv("TFFACE_HOME", str(tmp_path))
    monkeypatch.setattr(pipeline, "fingerprint", lambda builder, split: "of the data")
    monkeypatch.setattr(features, "_compute", compute)
    info = SimpleNamespace(full_name="tiny/1.0.0", splits={"train": SimpleNamespace(num_examples=100)})
    with pytest.raises(UserError, match=r"cached features .*npy are damaged .* Remove that file"):
        features.cached_features(small_model(), SimpleNamespace(info=info), "train", (8, 8), [pipeline.View()])

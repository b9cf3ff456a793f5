"""Files of a training that were cut off: one line says which, and what to do."""

import errno
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds

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


def test_a_state_never_stands_without_its_rows(tmp_path, monkeypatch):
    run, model, seen = Run(tmp_path), small_model(), []
    with monkeypatch.context() as patch:  # killed as soon as the state is there: of the last epoch nothing comes after
        patch.setattr(np, "savez", lambda file, **arrays: (file.touch(), seen.extend(run.history())))
        run.save_state(model, [{"epoch": 0}])
    assert seen == [{"epoch": 0}]


def test_figures_stay_where_the_new_network_cannot_be_written(tmp_path):
    run = Run(tmp_path)
    run.figures_file.write_text("{}")

    def save(path):
        raise OSError(errno.ENOSPC, "no room")

    with pytest.raises(UserError, match=r"The disk is full: .*trained\.keras"):
        run.save_trained(SimpleNamespace(save=save))
    assert run.figures_file.exists()
    run.save_trained(small_model())
    assert not run.figures_file.exists()


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Features of a hundred images, which `compute(target)` writes."""

    def cached(compute):
        monkeypatch.setattr(features, "_compute", lambda *arguments: compute(arguments[-2]))
        return features.cached_features(small_model(), builder, "train", (8, 8), [pipeline.View()])

    monkeypatch.setenv("TFFACE_HOME", str(tmp_path))
    for of in ("fingerprint", "image_digest"):
        monkeypatch.setattr(pipeline, of, lambda builder, split: "of the data")
    splits = {"train": SimpleNamespace(num_examples=100)}
    builder = SimpleNamespace(info=SimpleNamespace(full_name="tiny/1.0.0", splits=splits))
    return cached


@pytest.mark.parametrize("size", [0, 60, 500])
def test_cached_features_that_were_cut_off(size, cached):
    def compute(target):
        np.save(target, np.zeros((100, 4), "float16"))
        target.write_bytes(target.read_bytes()[:size])

    with pytest.raises(UserError, match=r"cached file .*npy is damaged .* Remove it"):
        cached(compute)


def test_two_trainings_compute_their_features_once(cached, monkeypatch, capsys):
    keras.utils.set_random_seed(0)
    model = small_model()
    monkeypatch.setattr(sys.modules[__name__], "small_model", lambda: model)
    computed = []

    def compute(target):
        computed.append(target)
        time.sleep(0.3)  # the other one comes
        np.save(target, np.zeros((100, 4), "float16"))

    with ThreadPoolExecutor(2) as pool:
        for (array,) in pool.map(cached, [compute] * 2):
            assert array.shape == (100, 4)
    assert len(computed) == 1
    assert "is being written by another process; waiting for its end" in capsys.readouterr().err
    assert [path.name for path in computed[0].parent.iterdir()] == [computed[0].name]


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_cached_archive_that_was_cut_off(share, tmp_path):
    file = tmp_path / "outputs.npz"
    np.savez(file, gender=np.zeros((100, 2)), race=np.ones((100, 5)))
    assert set(features.load_cached(file)) == {"gender", "race"}
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(UserError, match=r"cached file .*npz is damaged"):
        features.load_cached(file)


def test_what_a_killed_run_left_of_its_features_does_no_harm(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TFFACE_HOME", str(tmp_path))
    monkeypatch.setattr(features, "PART", 100)
    builder = pipeline.open_dataset("synthetic_faces/small", data_dir)
    arguments = (small_model(), builder, "validation", (8, 8), [pipeline.View()])
    (expected,) = features.cached_features(*arguments, progress=False)
    (file,) = (tmp_path / "features").glob("*.npy")
    file.unlink()
    parts = file.with_suffix(".parts")
    parts.mkdir()
    np.save(parts / "000000.npy", expected[:100])
    (parts / ".000001.npy.7.part.npy").write_bytes(b"half of an array")
    np.testing.assert_array_equal(features.cached_features(*arguments, progress=False)[0], expected)


def test_photos_that_exchange_their_contents_are_looked_at_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("TFFACE_HOME", str(tmp_path / "home"))
    parts = {"image": tfds.features.Image(shape=(8, 8, 3)), "key": tfds.features.Text()}
    model, found, prints = small_model(), [], set()
    for name, greys in (("before", (10, 20)), ("after", (20, 10))):
        rows = [
            (key, {"image": np.full((8, 8, 3), grey, "uint8"), "key": key})
            for key, grey in (("a", greys[0]), ("b", greys[1]))
        ]
        tfds.dataset_builders.store_as_tfds_dataset(
            name="photos",
            version="1.0.0",
            features=tfds.features.FeaturesDict(parts),
            split_datasets={"train": rows},
            data_dir=tmp_path / name,
            disable_shuffling=True,
        )
        builder = pipeline.open_dataset("photos", tmp_path / name)
        prints.add(pipeline.fingerprint(builder, "train"))
        found += features.cached_features(model, builder, "train", (8, 8), [pipeline.View()], progress=False)
    assert len(prints) == 1  # as long as before
    np.testing.assert_array_equal(found[0], found[1][::-1])
    assert not np.array_equal(*found)

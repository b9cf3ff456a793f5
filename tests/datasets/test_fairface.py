"""The FairFace builder on 4,000 real files, with ages as a spreadsheet mangled them."""

import csv
import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from fairface import fairface_dataset_builder as fairface

from tfface import labels, recipes
from tfface.data import originals
from tfface.evaluation.calibrate import calibrate
from tfface.tasks import AGES
from tfface.training.run import Run


@pytest.fixture(scope="module")
def prepared(samples, tmp_path_factory):
    builder = fairface.Builder(data_dir=tmp_path_factory.mktemp("data"))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=samples))
    return builder


def test_counts(prepared):
    assert not any(prepared.info.metadata["left_out"].values())
    counts = {split: info.num_examples for split, info in prepared.info.splits.items()}
    assert counts == {"train": 2866, "validation": 134, "test": 1000}


def test_every_image_stands_once_with_the_labels_of_its_row(prepared, samples):
    features = prepared.info.features
    digests, ages = set(), set()
    rows = {}
    for part in ("train", "val"):
        with (samples / "fairface" / f"fairface_label_{part}.csv").open() as file:
            rows |= {row["file"]: row for row in csv.DictReader(file)}
    for split in prepared.info.splits:
        examples = prepared.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        for example in tfds.as_numpy(examples):
            name = example["key"].decode()
            assert name.startswith("val/") == (split == "test")
            row = rows[name]
            assert features["gender"].int2str(example["gender"]) == row["gender"]
            assert features["race"].int2str(example["race"]) == row["race"]
            assert str(example["service_test"]).upper() == row["service_test"]
            ages.add((row["age"], features["age_group"].int2str(example["age_group"])))
            digests.add(hashlib.sha256(example["image"]).hexdigest())
    assert len(digests) == len(rows) == 4000
    decades = {(f"{first}-{first + 9}",) * 2 for first in range(20, 70, 10)}
    assert ages == decades | {
        ("0-2", "0-2"),
        ("03-Sep", "3-9"),
        ("Oct-19", "10-19"),
        ("more than 70", "more than 70"),
    }


def test_years_are_calibrated_by_the_groups_that_sum_them(prepared, tmp_path):
    run = Run(tmp_path / "run")
    recipe = recipes.load("compact", "fairface", ["image_size=(48, 48)", "blocks=(1, 1, 1, 1)"])
    run.begin(recipe, {}, "cpu")
    model = recipe.model()
    layer = model.get_layer("age_logits")
    layer.set_weights([3 * weight for weight in layer.get_weights()])  # too sure
    model.save(run.trained_file)
    faces = np.random.default_rng(0).uniform(0, 255, (8, 48, 48, 3)).astype("float32")
    before = model.predict(faces, verbose=0)
    temperatures = calibrate(run.folder, prepared._data_dir_root)
    assert set(temperatures) == {"age", "gender", "race"}
    assert temperatures["age"] > 1.5
    years = before["age"].astype("float64") ** (1 / temperatures["age"])
    groups = years / years.sum(axis=1, keepdims=True) @ np.eye(9)[labels.age_bin(AGES, labels.FAIRFACE_AGE_STARTS)]
    np.testing.assert_allclose(run.model().predict(faces, verbose=0)["age_group"], groups, atol=1e-4)


def test_landmarks_are_where_mtcnn_finds_them(samples, monkeypatch):
    monkeypatch.setattr(originals, "MEASURED", 60)
    paths = sorted((samples / "fairface" / "val").glob("*.jpg"))
    found = originals.typical_landmarks([originals.Photo(path.name, path, None) for path in paths])
    np.testing.assert_allclose(found, fairface.LANDMARKS, atol=0.02)

"""The BUPT-Balancedface builder on 200 synthetic faces in its layout: the real set is under an agreement."""

from collections import defaultdict

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from bupt_balancedface import bupt_balancedface_dataset_builder as bupt

from tfface.faces import synthesize

PEOPLE, SHOTS = 10, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four races of ten people of five pictures each."""
    root = tmp_path_factory.mktemp("bupt")
    for race in bupt.RACES:
        for person in range(PEOPLE):
            identity = bupt.RACES.index(race) * PEOPLE + person
            place = root / "race_per_7000" / race / f"m.{identity:04}"
            place.mkdir(parents=True)
            for shot in range(SHOTS):
                image = synthesize.face(shot, identity=identity, size=64).image
                cv2.imwrite(str(place / f"{shot:06}.jpg"), image[:, :, ::-1])
    return root


@pytest.mark.parametrize("config", ["by_image", "by_identity"])
def test_sets_are_disjoint_balanced_and_in_proportion(folder, tmp_path, config, monkeypatch):
    if config == "by_identity":  # once is enough to measure the faces
        monkeypatch.setattr(bupt.originals, "typical_landmarks", lambda photos, seed: None)
    builder = bupt.Builder(data_dir=tmp_path, config=config)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    keys, people = defaultdict(set), defaultdict(set)
    for split in builder.info.splits:
        races = []
        for example in tfds.as_numpy(builder.as_dataset(split=split)):
            races.append(example["race"])
            keys[example["key"]].add(split)
            people[example["identity"]].add(split)
        assert len(set(np.bincount(races, minlength=4))) == 1
    assert {len(splits) for splits in keys.values()} == {1}
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    if config == "by_image":
        assert sizes == {"set1_train": 92, "set1_validation": 8, "train": 80, "validation": 4, "test": 16}
        assert max(len(splits) for splits in people.values()) > 1
        (left, _), (right, _), (nose, _), *_ = builder.info.metadata["landmarks"]
        assert 0.3 < left < nose < right < 0.7
    else:
        assert sizes == {"set1_train": 80, "set1_validation": 20, "train": 60, "validation": 20, "test": 20}
        assert {len(splits) for splits in people.values()} == {1}

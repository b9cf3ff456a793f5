"""The UTKFace builder on 3,020 real files: 3 malformed names, 17 groups of copies."""

import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from utkface import utkface_dataset_builder as utkface

from tfface.data import originals


@pytest.fixture(scope="module")
def prepared(samples, tmp_path_factory):
    builder = utkface.Builder(data_dir=tmp_path_factory.mktemp("data"))
    config = tfds.download.DownloadConfig(manual_dir=samples / "utkface")
    builder.download_and_prepare(download_config=config)
    return builder


def test_counts(prepared):
    left_out = prepared.info.metadata["left_out"]
    assert left_out["malformed"] == [
        "39_1_20170116174525125.jpg.chip.jpg",
        "61_1_20170109142408075.jpg.chip.jpg",
        "61_1_20170109150557335.jpg.chip.jpg",
    ]
    assert left_out["undecodable"] == []
    assert left_out["copies"] == [["44_0_4_20170104001913293.jpg.chip.jpg", "44_0_4_20170117204035832.jpg.chip.jpg"]]
    assert len(left_out["conflicting"]) == 16
    assert sum(map(len, left_out["conflicting"])) == 32
    counts = {split: info.num_examples for split, info in prepared.info.splits.items()}
    assert counts == {"train": 2116, "validation": 245, "test": 623}
    assert sum(counts.values()) == 3020 - 3 - 1 - 32


def test_every_image_stands_once_where_its_bytes_put_it_with_the_labels_of_its_name(prepared):
    left_out = prepared.info.metadata["left_out"]
    conflicting = {name for names in left_out["conflicting"] for name in names}
    digests = set()
    for split in prepared.info.splits:
        examples = prepared.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        for example in tfds.as_numpy(examples):
            name = example["key"].decode()
            digest = hashlib.sha256(example["image"]).hexdigest()
            assert utkface.split_of(digest) == split
            assert (example["age"], example["gender"], example["race"]) == utkface.parse_name(name)
            assert name not in conflicting
            digests.add(digest)
    assert len(digests) == 2984


def test_landmarks_are_where_mtcnn_finds_them(samples, monkeypatch):
    monkeypatch.setattr(originals, "MEASURED", 60)
    paths = sorted((samples / "utkface" / "UTKFace").glob("*.jpg"))
    found = originals.typical_landmarks([originals.Photo(path.name, path, None) for path in paths])
    np.testing.assert_allclose(found, utkface.LANDMARKS, atol=0.02)

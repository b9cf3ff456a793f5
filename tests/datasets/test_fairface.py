"""The FairFace builder on 4,000 real files, with ages as a spreadsheet mangled them."""

import csv
import hashlib

import pytest
import tensorflow_datasets as tfds
from fairface import fairface_dataset_builder as fairface


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

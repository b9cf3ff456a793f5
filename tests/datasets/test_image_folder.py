"""The builder for any folder of classes, on 400 real crops of men and women."""

import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from image_folder import image_folder_dataset_builder as image_folder

from tfface import labels
from tfface.data import pipeline
from tfface.data.regrouped import Regrouped

SIZES = {"train": 147, "validation": 16, "test": 41}
"""Of the 204 images of each class."""


@pytest.fixture(scope="module")
def prepared(samples, tmp_path_factory):
    """400 crops, and of eight of them another copy: darker, half as large, mirrored."""
    root = tmp_path_factory.mktemp("pictures") / "men_women"
    shutil.copytree(samples / "men_women", root)
    for path in sorted(root.glob("*/*.jpg"))[::50]:
        half = cv2.resize(cv2.imread(str(path)), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(path.with_suffix(".png")), (0.7 * half[:, ::-1]).astype("uint8"))
    builder = image_folder.Builder(data_dir=tmp_path_factory.mktemp("data"), config="men_women")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=root.parent))
    return builder


@pytest.fixture(scope="module")
def splits(prepared):
    return {
        example["key"].decode(): split
        for split in prepared.info.splits
        for example in tfds.as_numpy(prepared.as_dataset(split=split))
    }


def test_split_is_80_to_20_in_each_class(prepared, splits):
    assert prepared.info.features["label"].names == ["men", "women"]
    counts = Counter((split, key.partition("/")[0]) for key, split in splits.items())
    assert counts == {(split, name): n for name in ("men", "women") for split, n in SIZES.items()}
    assert not any(prepared.info.metadata["left_out"].values())


def test_classes_can_be_grouped_by_what_they_are(monkeypatch, prepared):
    groups = {"Female": ("women",), "Male": ("men",)}
    monkeypatch.setitem(labels.GROUPINGS, "two", ("gender", groups))
    grouped = Regrouped(prepared, "two")
    before, after = (pipeline.label_arrays(builder, "test") for builder in (prepared, grouped))
    assert pipeline.class_names(grouped) == {"gender": ("Female", "Male")}
    np.testing.assert_array_equal(after["gender"], 1 - before["label"])
    assert set(after) == set(grouped.info.features) - {"image"} == {"gender", "key"}


def test_near_copies_are_found_and_stay_together(prepared, splits):
    groups = prepared.info.metadata["near_copies"]
    assert [sorted(Path(name).suffix for name in names) for names in groups] == 8 * [[".jpg", ".png"]]
    for jpeg, png in groups:
        assert Path(jpeg).with_suffix("") == Path(png).with_suffix("")
        assert splits[jpeg] == splits[png]


def test_landmarks_are_those_of_a_face_in_a_tight_crop(prepared):
    left_eye, right_eye, nose, left_mouth, right_mouth = np.array(prepared.info.metadata["landmarks"])
    np.testing.assert_allclose(left_eye, (0.26, 0.40), atol=0.03)
    np.testing.assert_allclose(right_eye, (0.72, 0.40), atol=0.03)
    assert left_eye[1] < nose[1] < left_mouth[1] < 0.8
    assert left_mouth[0] < nose[0] < right_mouth[0]

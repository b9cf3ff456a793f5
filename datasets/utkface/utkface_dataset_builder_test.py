"""The builder on drawn pictures with every fault of the real set."""

import hashlib
import itertools
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tfface.errors import UserError

from . import utkface_dataset_builder as utkface

DUMMY = utkface.Builder.code_path.parent / "dummy_data"


class UTKFaceTest(tfds.testing.DatasetBuilderTestCase):
    """Registration, tags, features, splits without overlap."""

    DATASET_CLASS = utkface.Builder
    SPLITS = {"train": 4, "validation": 2, "test": 3}  # noqa: RUF012


def build(manual_dir, data_dir):
    builder = utkface.Builder(data_dir=data_dir)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return builder


def splits_of_keys(builder):
    return {
        example["key"].decode(): split
        for split in builder.info.splits
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("26_0_1_20170117195838909.jpg.chip.jpg", (26, 0, 1)),
        ("116_1_4_20170112213500903.jpg.chip.jpg", (116, 1, 4)),
        ("9_1_2_20161219204347420.jpg", (9, 1, 2)),
        ("30_0_0_6.JPG", (30, 0, 0)),
        ("30_0_0_5.jpeg", (30, 0, 0)),
        ("30_0_0_7.png", (30, 0, 0)),
        ("200_0_1_20161219204347420.jpg", None),
        ("24_0_1_20170116220224657 .jpg.chip.jpg", (24, 0, 1)),
        ("55_0_0_20170116232725357jpg.chip.jpg", (55, 0, 0)),
        ("39_1_20170116174525125.jpg.chip.jpg", None),
        ("61_1_20170109142408075.jpg.chip.jpg", None),
        ("61_1_20170109150557335.jpg.chip.jpg", None),
        ("26_2_1_20170117195838909.jpg.chip.jpg", None),
        ("26_0_5_20170117195838909.jpg.chip.jpg", None),
        ("_26_0_1_20170117195838909.jpg.chip.jpg", None),
        ("Aaron_Peirsol_0001.jpg", None),
    ],
)
def test_labels_are_read_from_names(name, expected):
    assert utkface.parse_name(name) == expected


def test_split_is_a_share_of_the_hashes():
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
    splits = [utkface.split_of(digest) for digest in digests]
    assert splits.count("test") / 20_000 == pytest.approx(0.20848, abs=0.01)
    assert splits.count("validation") / 20_000 == pytest.approx(0.08, abs=0.01)
    assert utkface.split_of("0" * 64) == "test"
    assert utkface.split_of("f" * 64) == "train"


def test_values_and_bytes_are_those_of_the_files(tmp_path):
    builder = build(DUMMY / "UTKFace", tmp_path)
    raw = builder.as_dataset(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    example = next(e for e in tfds.as_numpy(raw) if e["key"] == b"116_1_4_20170101000000003.jpg.chip.jpg")
    assert example["image"] == (DUMMY / "UTKFace" / example["key"].decode()).read_bytes()
    assert (example["age"], example["gender"], example["race"]) == (116, 1, 4)
    assert builder.info.features["gender"].names == ["Male", "Female"]
    assert builder.info.features["race"].int2str(4) == "Others"


def test_left_out_files_are_named_and_in_no_split(tmp_path):
    build(DUMMY, tmp_path)
    builder = tfds.builder("utkface", data_dir=tmp_path)  # as a reader gets it: from the prepared files
    left_out = builder.info.metadata["left_out"]
    assert left_out == {
        "malformed": ["61_1_20170109142408075.jpg.chip.jpg"],
        "uncropped_twins": [],
        "undecodable": ["28_0_0_20170101000000013.jpg.chip.jpg"],
        "copies": [["40_0_3_20170101000000007.jpg.chip.jpg", "40_0_3_20170101000000008.jpg.chip.jpg"]],
        "conflicting": [
            ["30_0_0_20170101000000011.jpg.chip.jpg", "30_1_0_20170101000000012.jpg.chip.jpg"],
            ["50_1_2_20170101000000009.jpg.chip.jpg", "57_1_2_20170101000000010.jpg.chip.jpg"],
        ],
    }
    kept = set(splits_of_keys(builder))
    assert "40_0_3_20170101000000007.jpg.chip.jpg" in kept
    files = {path.name for path in (DUMMY / "UTKFace").iterdir()}
    assert files - kept == {
        *left_out["malformed"],
        *left_out["undecodable"],
        left_out["copies"][0][1],
        *itertools.chain(*left_out["conflicting"]),
    }


def test_a_photo_does_not_stand_beside_the_face_that_was_cut_out_of_it(tmp_path):
    (tmp_path / "UTKFace").mkdir()
    rng = np.random.default_rng(0)
    names = ("30_0_0_1.jpg.chip.jpg", "30_0_0_1.jpg", "40_1_2_2.jpg", "50_1_2_3.JPG", "50_1_2_3.JPG.CHIP.JPG")
    for name in names:
        cv2.imwrite(str(tmp_path / "UTKFace" / name), rng.integers(0, 256, (8, 8, 3), np.uint8))
    images, left_out = utkface.scan(tmp_path)
    assert {photo.name for photo in images.values()} == {names[0], "40_1_2_2.jpg", names[-1]}
    assert left_out["uncropped_twins"] == ["30_0_0_1.jpg", "50_1_2_3.JPG"]


def test_photos_have_any_suffix_and_links_to_nothing_are_named(tmp_path):
    names = ["30_0_0_5.jpeg", "30_0_0_6.JPG", "30_0_0_7.png"]
    for number, name in enumerate([*names, "200_0_1_1.jpg"]):
        cv2.imwrite(str(tmp_path / name), np.full((8, 8, 3), 50 * number, np.uint8))
    (tmp_path / "31_0_0_8.jpg").mkdir()
    (tmp_path / "._33_0_0_4.jpg").write_bytes(b"of a Mac")
    (tmp_path / "32_0_0_9.jpg").symlink_to("nowhere.jpg")
    images, left_out = utkface.scan(tmp_path)
    assert [photo.name for photo in images.values()] == names
    assert left_out["malformed"] == ["200_0_1_1.jpg"]
    assert left_out["undecodable"] == ["32_0_0_9.jpg"]


def test_adding_removing_and_renaming_files_moves_no_image(tmp_path):
    before = splits_of_keys(build(DUMMY, tmp_path / "before"))
    names = sorted(before)
    for number, name in enumerate(names[1:]):
        folder = tmp_path / "renamed" / "part" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(DUMMY / "UTKFace" / name, folder / f"{90 - number}_0_0_{number:017}.jpg.chip.jpg")
    after = splits_of_keys(build(tmp_path / "renamed", tmp_path / "after"))
    assert after == {
        f"{90 - number}_0_0_{number:017}.jpg.chip.jpg": before[name] for number, name in enumerate(names[1:])
    }


def test_wrong_folder_is_one_clear_line_and_leaves_nothing(tmp_path):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    with pytest.raises(UserError, match=r"wrong does not exist or is empty.*give the folder UTKFace"):
        build(wrong, tmp_path / "data")
    (wrong / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no photo of UTKFace in .*wrong.*found no \.jpg or \.png file"):
        build(wrong, tmp_path / "data")
    shutil.copy(DUMMY / "UTKFace" / "1_0_2_20170101000000001.jpg.chip.jpg", wrong / "Aaron_0001.jpg")
    with pytest.raises(UserError, match=r"found 1 \.jpg or \.png files, the first 'Aaron_0001.jpg'") as error:
        build(wrong, tmp_path / "data")
    assert "\n" not in str(error.value)
    (wrong / "26_0_1_20170117195838909.jpg.chip.jpg").touch()
    with pytest.raises(UserError, match=r"found 0 that can be used.* \(1 cannot be decoded\)"):
        build(wrong, tmp_path / "data")
    shutil.copy(DUMMY / "UTKFace" / "1_0_2_20170101000000001.jpg.chip.jpg", wrong)
    with pytest.raises(UserError, match=r"found 1 that can be used, none for validation and test"):
        build(wrong, tmp_path / "data")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert not utkface.Builder(data_dir=tmp_path / "data").is_prepared()

"""The builder on drawn pictures with every fault of the copies in circulation."""

import hashlib
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tfface import labels
from tfface.errors import UserError

from . import fairface_dataset_builder as fairface

DUMMY = fairface.Builder.code_path.parent / "dummy_data"
HEADER = "file,age,gender,race,service_test\n"


class FairFaceTest(tfds.testing.DatasetBuilderTestCase):
    """Registration, tags, features of both configs, splits without overlap."""

    DATASET_CLASS = fairface.Builder
    SPLITS = {"train": 5, "validation": 2, "test": 3}  # noqa: RUF012


def build(manual_dir, data_dir, config=None):
    builder = fairface.Builder(data_dir=data_dir, config=config)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return builder


def examples(builder):
    return {
        example["key"].decode(): (split, example)
        for split in builder.info.splits
        for example in tfds.as_numpy(
            builder.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()}),
        )
    }


@pytest.mark.parametrize(
    ("text", "age_group"),
    [
        *((name, name) for name in labels.FAIRFACE_AGES),
        *(
            (text, "3-9")
            for text in ("03-09", "03-Sep", "3-Sep", "Sep-03", "Sep-3", "09-Mar", "9-Mar", "Mar-09", "Mar-9")
        ),
        *((text, "10-19") for text in ("Oct-19", "19-Oct")),
    ],
)
def test_mangled_ages_are_read(tmp_path, text, age_group):
    path = tmp_path / "labels.csv"
    path.write_text(f"{HEADER}train/1.jpg,{text},Female,Middle Eastern,TRUE\n")
    assert fairface.read_labels(path, "train") == {"train/1.jpg": (labels.FAIRFACE_AGES.index(age_group), 1, 6, True)}


def test_every_spelling_is_tested():
    marks = test_mangled_ages_are_read.pytestmark[0]
    assert {text for text, _ in marks.args[1]} == set(fairface.AGE_GROUPS)


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEADER}val/1.jpg,0-2,Male,White,FALSE\n".replace("\n", "\r\n").encode())
    assert fairface.read_labels(path, "val") == {"val/1.jpg": (0, 0, 0, False)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,age,gender,race\n", r"lacking service_test; get the original"),
        (f"{HEADER}train/1.jpg,2003-09-01,Male,White,TRUE\n", r"line 2: age is '2003-09-01', expected one of 0-2, 3-9"),
        (f"{HEADER}train/1.jpg,0-2,Male,Latino,TRUE\n", r"line 2: race is 'Latino', expected one of White, Black"),
        (f"{HEADER}train/1.jpg,0-2,Male\n", r"line 2: race is None"),
        (f"{HEADER}" + 2 * "train/1.jpg,0-2,Male,White,TRUE\n", r"line 3: train/1.jpg is listed twice"),
        (
            f"{HEADER}val/1.jpg,0-2,Male,White,TRUE\n",
            r"line 2: file is 'val/1.jpg', expected train/NAME.jpg: rows",
        ),
        (
            f"{HEADER}./train/1.jpg,0-2,Male,White,TRUE\n",
            r"file is './train/1.jpg', expected train/.*before the",
        ),
    ],
)
def test_what_cannot_be_read_is_never_guessed(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        fairface.read_labels(path, "train")
    assert "\n" not in str(error.value)


def test_another_encoding_is_one_clear_line(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(HEADER, encoding="utf-16")
    with pytest.raises(UserError, match="is not UTF-8"):
        fairface.read_labels(path, "train")


def test_a_quote_that_is_not_closed_is_one_clear_line(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(HEADER + '"' + "train/1.jpg,0-2,Male,White,TRUE\n" * 5000)
    with pytest.raises(UserError, match=r"line \d+: field larger than .*: is a quote left open\?"):
        fairface.read_labels(path, "train")


def test_rows_of_the_other_part_are_refused(tmp_path):
    root = shutil.copytree(DUMMY / "fairface", tmp_path / "fairface")
    for part, other in (("train", "val"), ("val", "train")):
        path = root / f"fairface_label_{part}.csv"
        text = path.read_text()
        path.write_text(f"{text.rstrip()}\n{other}/1.jpg,0-2,Male,White,TRUE\n")
        with pytest.raises(UserError, match=rf"{path.name}, line \d+: file is '{other}/1.jpg', expected {part}/NAME"):
            build(tmp_path, tmp_path / "data")
        path.write_text(text)


def test_rows_and_files_that_do_not_meet_are_named(tmp_path):
    root = shutil.copytree(DUMMY / "fairface", tmp_path / "fairface")
    for file in (root / "train").iterdir():
        file.rename(file.with_name(f"{file.stem:0>5}.jpg"))
    with pytest.raises(UserError, match=r"a file: train/1\.jpg, the first file without a row: train/00001\.jpg"):
        build(tmp_path, tmp_path / "data")


def test_junk_and_links_come_first_and_capital_suffixes_are_named(tmp_path):
    root = shutil.copytree(DUMMY / "fairface", tmp_path / "fairface")
    (root / "val" / "1.jpg").write_bytes(b"no image")
    (root / "val" / "2.jpg").rename(root / "val" / "7.JPG")
    (root / "val" / "2.jpg").symlink_to("nowhere.jpg")
    left_out = build(tmp_path, tmp_path / "data").info.metadata["left_out"]
    assert left_out["undecodable"] == ["val/1.jpg", "val/2.jpg", "train/11.jpg"]
    assert left_out["file_without_a_row"] == ["train/13.jpg", "val/6.jpg", "val/7.JPG"]


def test_val_is_test_and_train_is_split_by_hash():
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
    assert {fairface.split_of("val/1.jpg", digest) for digest in digests} == {"test"}
    splits = [fairface.split_of("train/1.jpg", digest) for digest in digests]
    assert splits.count("validation") / 20_000 == pytest.approx(0.05, abs=0.005)
    assert splits.count("train") == 20_000 - splits.count("validation")


def test_labels_and_bytes_are_those_of_the_files(tmp_path):
    builder = build(DUMMY, tmp_path)
    found = examples(builder)
    split, example = found["train/2.jpg"]
    assert split == "train"
    assert example["image"] == (DUMMY / "fairface" / "train" / "2.jpg").read_bytes()
    assert [builder.info.features[name].int2str(example[name]) for name in ("age_group", "gender", "race")] == [
        "3-9",
        "Female",
        "Indian",
    ]
    assert not example["service_test"]
    assert found["val/2.jpg"][0] == "test"
    assert {name for name, (split, _) in found.items() if split == "validation"} == {"train/4.jpg", "train/5.jpg"}


def test_left_out_files_are_named_and_in_no_split(tmp_path):
    build(DUMMY / "fairface", tmp_path)
    builder = tfds.builder("fairface", data_dir=tmp_path)  # as a reader gets it: from the prepared files
    assert builder.info.full_name == "fairface/padding025/1.0.0"
    left_out = builder.info.metadata["left_out"]
    assert left_out == {
        "row_without_a_file": ["val/5.jpg", "train/12.jpg"],
        "file_without_a_row": ["train/13.jpg", "val/6.jpg"],
        "undecodable": ["train/11.jpg"],
        "copies": [["val/1.jpg", "train/14.jpg"], ["train/6.jpg", "train/7.jpg"]],
        "conflicting": [["val/3.jpg", "train/15.jpg"], ["train/9.jpg", "train/10.jpg"]],
    }
    files = {f"{path.parent.name}/{path.name}" for path in (DUMMY / "fairface").glob("*/*.jpg")}
    assert files - examples(builder).keys() == {
        *left_out["file_without_a_row"],
        *left_out["undecodable"],
        "train/14.jpg",
        "train/7.jpg",
        *(name for names in left_out["conflicting"] for name in names),
    }


def test_paddings_are_not_taken_for_one_another(tmp_path):
    root = tmp_path / "fairface"
    shutil.copytree(DUMMY / "fairface", root)
    crop = root / "val" / "1.jpg"  # the first that is looked at
    crop.write_bytes(cv2.imencode(".jpg", np.zeros((448, 448, 3), np.uint8))[1].tobytes())
    with pytest.raises(UserError, match=r"not hold the images of padding025: expected 224 pixels, val/1.jpg has 448"):
        build(tmp_path, tmp_path / "data")
    wide = build(tmp_path, tmp_path / "data", "padding125")
    assert examples(wide)["val/1.jpg"][1]["image"] == crop.read_bytes()
    # Both archives side by side: each config finds its own.
    archive = root / "fairface-img-margin125-trainval"
    for part in ("train", "val"):
        shutil.move(root / part, archive / part)
        shutil.copytree(DUMMY / "fairface" / part, root / part)
    assert fairface.find_folders(tmp_path, archive.name) == (root, archive)
    assert fairface.find_folders(tmp_path, "fairface-img-margin025-trainval") == (root, root)


def test_landmarks_of_the_wide_crops_are_nearer_the_centre():
    narrow, wide = (np.array(config.landmarks) for config in fairface.Builder.BUILDER_CONFIGS)
    np.testing.assert_allclose((wide - 0.5) * 3.5, (narrow - 0.5) * 1.5, atol=2e-4)


def test_wrong_folder_is_one_clear_line_and_leaves_nothing(tmp_path):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    with pytest.raises(UserError, match=r"wrong does not exist or is empty.*fairface_label_train\.csv"):
        build(wrong, tmp_path / "data")
    (wrong / "notes.txt").touch()
    with pytest.raises(
        UserError, match=r"no FairFace in .*wrong: expected fairface_label_train\.csv.*found notes\.txt"
    ):
        build(wrong, tmp_path / "data")
    for part in ("train", "val"):
        (wrong / part).mkdir()
        (wrong / f"fairface_label_{part}.csv").write_text(f"{HEADER}{part}/1.jpg,0-2,Male,White,TRUE\n")
    with pytest.raises(UserError, match=r"found 0 that have a row.*none for train and validation and test") as error:
        build(wrong, tmp_path / "data")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").rglob("*tfrecord*"))

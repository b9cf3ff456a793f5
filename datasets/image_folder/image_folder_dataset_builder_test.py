"""The builder on a folder of drawn shapes with copies, near copies and files that are no images."""

import os
import shutil
from collections import Counter

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tfface.data import originals
from tfface.data.aligned import aligned_config
from tfface.errors import UserError

from . import image_folder_dataset_builder as image_folder

DUMMY = image_folder.Builder.code_path.parent / "dummy_data"


@pytest.fixture(autouse=True)
def no_faces(monkeypatch):
    """Drawn pictures have no face: spare the seconds that a detector would take to say so."""
    monkeypatch.setattr(originals, "typical_landmarks", lambda photos, seed: None)


class ImageFolderTest(tfds.testing.DatasetBuilderTestCase):
    """Registration, tags, features, splits without overlap."""

    DATASET_CLASS = image_folder.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = [  # noqa: RUF012
        image_folder.ImageFolderConfig(name="shapes", description="Circles and squares.")
    ]
    SPLITS = {"train": 12, "validation": 2, "test": 4}  # noqa: RUF012


def build(manual_dir, data_dir, config="shapes"):
    builder = image_folder.Builder(data_dir=data_dir, config=config)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return builder


def places(builder):
    return {
        example["key"].decode(): (split, builder.info.features["label"].int2str(example["label"]))
        for split in builder.info.splits
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    }


def test_classes_are_the_folders_and_copies_stay_together(tmp_path, capsys):
    build(DUMMY / "shapes", tmp_path)
    builder = tfds.builder("image_folder/shapes", data_dir=tmp_path)  # as a reader gets it: from the prepared files
    assert builder.info.features["label"].names == ["circle", "square"]
    metadata = builder.info.metadata
    assert metadata["left_out"] == {
        "undecodable": ["square/10.jpg", "square/notes.txt"],
        "copies": [["square/6.jpg", "square/6_copy.jpg"]],
        "conflicting": [["circle/8.jpg", "square/8.jpg"]],
        "of_no_class": [],
    }
    assert metadata["near_copies"] == [
        ["circle/1.jpg", "circle/1_small.jpg"],
        ["circle/2.jpg", "circle/part/2_mirror.png"],
        ["circle/9.jpg", "square/9.jpg"],
    ]
    assert "landmarks" not in metadata  # no faces here
    found = places(builder)
    for names in metadata["near_copies"]:
        assert len({found[name][0] for name in names}) == 1
    assert found["circle/9.jpg"][0] == "train"  # one of two labels is wrong: never in test
    assert all(name.startswith(label) for name, (_, label) in found.items())
    assert Counter(found.values()) == {
        ("train", "circle"): 7,
        ("train", "square"): 5,
        ("validation", "circle"): 1,
        ("validation", "square"): 1,
        ("test", "circle"): 2,
        ("test", "square"): 2,
    }
    printed = capsys.readouterr().out
    assert "image_folder/shapes/1.0.0: test 4 (circle 2, square 2)" in printed
    assert "3 groups of near copies (6 images), each in one split; 1 of them in several classes" in printed


def test_two_folders_have_two_names(tmp_path):
    shutil.copytree(DUMMY / "shapes", tmp_path / "archive" / "all" / "pictures")
    build(DUMMY, tmp_path / "data", "shapes")
    other = build(tmp_path / "archive", tmp_path / "data", "other.shapes-2")  # class folders further down
    assert other.info.full_name == "image_folder/other.shapes-2/1.0.0"
    assert places(other) == places(tfds.builder("image_folder/shapes", data_dir=tmp_path / "data"))
    with pytest.raises(UserError, match=r"needs a name: tfface build image_folder/shapes --manual-dir .*shapes$"):
        build(DUMMY / "shapes", tmp_path / "data", None)
    with pytest.raises(UserError, match=r"letters, digits, '_', '-' and '\.', received 'a/b'"):
        image_folder.Builder(data_dir=tmp_path, config="a/b")
    with pytest.raises(UserError, match=r"'-eyes' are those of sets that --align eyes made of others"):
        image_folder.Builder(data_dir=tmp_path, config="shapes-eyes")
    aligned = aligned_config(image_folder.Builder(data_dir=tmp_path, config="shapes"), "eyes")
    assert image_folder.Builder(data_dir=tmp_path, config=aligned).info.full_name == "image_folder/shapes-eyes/1.0.0"


def test_files_beside_the_classes_and_links_to_nothing_are_named(tmp_path):
    root = shutil.copytree(DUMMY / "shapes", tmp_path / "archive" / "pictures")
    for folder in (root, root.parent):
        shutil.copy(root / "circle" / "1.jpg", folder / "stray.jpg")
    (root / "circle" / "link.jpg").symlink_to("nowhere.jpg")
    left_out = build(root.parent, tmp_path / "data").info.metadata["left_out"]
    assert left_out["of_no_class"] == ["stray.jpg", "pictures/stray.jpg"]
    assert left_out["undecodable"] == ["circle/link.jpg", "square/10.jpg", "square/notes.txt"]


def test_names_that_are_no_utf_8_become_text(tmp_path):
    folder = shutil.copytree(DUMMY / "shapes", tmp_path / "shapes")
    (folder / "square").rename(folder / os.fsdecode(b"quadrat\xe9"))
    (folder / "circle" / "1.jpg").rename(folder / "circle" / os.fsdecode(b"\x94.jpg"))
    found = places(build(folder, tmp_path / "data"))
    assert {name for _, name in found.values()} == {"circle", r"quadrat\xe9"}
    assert {r"circle/\x94.jpg", r"quadrat\xe9/1.jpg"} <= found.keys()


def test_a_folder_that_is_divided_already_is_refused(tmp_path):
    root = tmp_path / "pictures"
    for part in ("Test", "train"):
        shutil.copytree(DUMMY / "shapes", root / part)
    with pytest.raises(
        UserError, match=r"pictures is divided already: .*found Test and train with folders in them \(circle, square\)"
    ):
        build(root, tmp_path / "data")
    assert build(root / "train", tmp_path / "data").info.features["label"].names == ["circle", "square"]
    for part in ("Test", "train"):  # classes that are called so
        shutil.rmtree(root / part)
        shutil.copytree(DUMMY / "shapes" / ("circle" if part == "Test" else "square"), root / part)
    shutil.rmtree(root / "Test" / "part")
    assert image_folder.find_classes(root)[0].keys() == {"Test", "train"}


@pytest.mark.parametrize("parts", [("Training", "Validation"), ("training_set", "test_set"), ("dev", "eval", "more")])
def test_parts_are_known_by_other_names(tmp_path, parts):
    for part in parts:
        (tmp_path / part / "man").mkdir(parents=True)
    with pytest.raises(UserError, match=r"is divided already: .*with folders in them \(man\)"):
        image_folder.find_classes(tmp_path)


def images(counts):
    photos = (
        originals.Photo(f"{name}/{number}", DUMMY, name) for name, count in counts.items() for number in range(count)
    )
    return {f"{hash(photo.name) & 0xFFFFFFFF:08x}{photo.name}": photo for photo in photos}


def test_split_is_stratified_seeded_and_blind_to_names():
    some = images({"man": 1000, "woman": 500, "other": 37})
    config = image_folder.ImageFolderConfig(name="any")
    drawn = image_folder.divide(some, np.arange(len(some)), config)
    counts = Counter((drawn[digest], photo.labels) for digest, photo in some.items())
    assert {name: counts["test", name] for name in ("man", "woman", "other")} == {"man": 200, "woman": 100, "other": 7}
    assert {name: counts["validation", name] for name in ("man", "woman", "other")} == {
        "man": 80,
        "woman": 40,
        "other": 3,
    }
    renamed = {digest: photo._replace(name=f"{photo.labels}/{i}") for i, (digest, photo) in enumerate(some.items())}
    reversed_ = dict(reversed(renamed.items()))
    assert image_folder.divide(reversed_, np.arange(len(some)), config) == drawn
    assert image_folder.divide(some, np.arange(len(some)), image_folder.ImageFolderConfig(name="any", seed=1)) != drawn


def test_groups_are_never_divided():
    some = images({"man": 300, "woman": 300})
    groups = np.arange(600) // 3  # threes of one class
    drawn = image_folder.divide(some, groups, image_folder.ImageFolderConfig(name="any"))
    splits = np.array([drawn[digest] for digest in some]).reshape(-1, 3)
    assert (splits == splits[:, :1]).all()
    assert Counter(splits[:100].ravel()) == {"train": 216, "test": 60, "validation": 24}


def test_wrong_folders_are_one_clear_line(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()

    def fails(message):
        with pytest.raises(UserError, match=message) as error:
            build(root, tmp_path / "data")
        assert "\n" not in str(error.value)

    fails("pictures does not exist or is empty")
    (root / "1.jpg").touch()
    fails(r"no classes in .*pictures: expected a folder of images for each of two classes or more, found no folder")
    (root / "man").mkdir()
    fails(r"found only man; give the folder that holds the class folders")
    (root / "woman").mkdir()
    (root / "woman" / "notes.txt").touch()
    (root / "woman" / ".hidden").touch()
    fails(r"class man in .*pictures has no image; fill its folder or remove it")
    shutil.copy(DUMMY / "shapes" / "circle" / "1.jpg", root / "man")
    fails(r"too few different images in .*found man 1, woman 0 that can be used \(1 files cannot be decoded, 0 stand")
    assert not list((tmp_path / "data").rglob("*tfrecord*"))

"""The builder on drawn pictures in the layout of the original set."""

import itertools
import shutil
from collections import Counter, defaultdict

import cv2
import pytest
import tensorflow_datasets as tfds

from tfface.data import originals
from tfface.errors import UserError

from . import bupt_balancedface_dataset_builder as bupt

DUMMY = bupt.Builder.code_path.parent / "dummy_data"


@pytest.fixture(autouse=True)
def no_faces(monkeypatch):
    """Drawn pictures have no face: spare the seconds that a detector would take to say so."""
    monkeypatch.setattr(originals, "typical_landmarks", lambda photos, seed: None)


class BUPTBalancedFaceTest(tfds.testing.DatasetBuilderTestCase):
    """Registration, tags, features, splits without overlap."""

    DATASET_CLASS = bupt.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["by_image"]  # noqa: RUF012 (the splits of the other have other sizes)
    SPLITS = {"set1_train": 32, "set1_validation": 4, "train": 24, "validation": 4, "test": 8}  # noqa: RUF012


def build(manual_dir, data_dir, config):
    builder = bupt.Builder(data_dir=data_dir, config=config)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return builder


def rows(builder):
    return {
        example["key"].decode(): (split, example["race"], example["identity"].decode())
        for split in builder.info.splits
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    }


def full(people=7000):
    return {f"m.{person:04}": [f"{shot:06}.jpg" for shot in range(3 + person % 3)] for person in range(people)}


def test_sizes_are_those_of_the_paper():
    assert len(bupt.RACES) * sum(bupt.PER_RACE.values()) == 96_000
    assert bupt.PER_RACE["set1_train"] + bupt.PER_RACE["set1_validation"] == 12_000
    assert 4 * (bupt.PER_RACE["train"] + bupt.PER_RACE["validation"]) == 40_000
    assert 4 * bupt.PER_RACE["test"] == 8_000


@pytest.mark.parametrize("by_identity", [False, True])
def test_a_whole_race_fills_every_split(by_identity):
    drawn = bupt.candidates(full(), by_identity, seed=0)  # 28,000 images
    assert {split: len(images) for split, images in drawn.items()} == {
        "set1_train": 11_514,
        "set1_validation": 606,
        "train": 9_595,
        "validation": 505,
        "test": 2_020,
    }
    images = list(itertools.chain(*drawn.values()))
    assert len(set(images)) == len(images)
    people = {split: {image.partition("/")[0] for image in names} for split, names in drawn.items()}
    shared = [first for first, second in itertools.combinations(people, 2) if people[first] & people[second]]
    assert bool(shared) is not by_identity
    assert all(max(names) > "m.6900" for names in people.values())  # drawn from all, not from the first in the list
    assert bupt.candidates(full(), by_identity, seed=0) == drawn
    assert bupt.candidates(full(), by_identity, seed=1) != drawn


def test_people_are_divided_in_proportion():
    units = {f"m.{person:04}": 10 + person % 70 for person in range(2000)}
    places = bupt.divide(units, seed=0)
    images = Counter()
    for person, split in places.items():
        images[split] += units[person]
    for split, wanted in bupt.PER_RACE.items():
        assert images[split] / images.total() == pytest.approx(wanted / 24_000, abs=0.002)


def test_race_and_identity_are_the_folders(tmp_path):
    builder = build(DUMMY, tmp_path, "by_image")
    assert builder.info.features["race"].names == ["African", "Asian", "Caucasian", "Indian"]
    found = rows(builder)
    for key, (_, race, identity) in found.items():
        assert key.split("/")[:2] == [bupt.RACES[race], identity]
    for split, count in Counter((split, race) for split, race, _ in found.values()).items():
        assert count == builder.info.splits[split[0]].num_examples / 4
    assert builder.info.metadata["left_out"] == {
        "undecodable": ["Caucasian/m.c02/000002.jpg"],
        "copies": [["Asian/m.a03/000002.jpg", "Asian/m.a00/000000.jpg"]],
        "conflicting": [["African/m.a01/000001.jpg", "Indian/m.i05/000002.jpg"]],
        "other_files": [],
    }
    assert not found.keys() & {"Asian/m.a00/000000.jpg", "African/m.a01/000001.jpg", "Indian/m.i05/000002.jpg"}


def test_no_person_is_in_two_splits_by_identity(tmp_path):
    builder = build(DUMMY / "race_per_7000", tmp_path, "by_identity")
    splits = defaultdict(set)
    for split, race, identity in rows(builder).values():
        splits[race, identity].add(split)
    assert {len(some) for some in splits.values()} == {1}
    assert all(info.num_examples and info.num_examples % 4 == 0 for info in builder.info.splits.values())


def test_other_files_change_nothing_but_their_own_place(tmp_path):
    before = rows(build(DUMMY, tmp_path / "before", "by_image"))
    root = tmp_path / "again"
    shutil.copytree(DUMMY / "race_per_7000", root)
    (root / "notes.txt").touch()
    (root / "African" / "list.txt").touch()
    (root / "African" / "m.empty").mkdir()
    shutil.copytree(root / "Asian" / "m.a01", root / "Asian" / "m.a01" / "deeper" / "still")
    for file in (root / "Asian" / "m.a01" / "deeper" / "still").iterdir():
        if file.name != "000000.jpg":
            file.unlink()
    shutil.copy(root / "Asian" / "m.a01" / "000000.jpg", root / "Asian" / "stray.jpg")
    shutil.copy(root / "Asian" / "m.a01" / "000000.jpg", root / "Asian" / "m.a01" / "._000000.jpg")
    (root / "Indian" / "m.i01" / "000000.gif").touch()
    after = build(root, tmp_path / "after", "by_image")
    assert rows(after) == before
    assert after.info.metadata["left_out"]["other_files"] == [
        "notes.txt",
        "African/list.txt",
        "Asian/stray.jpg",
        "Asian/m.a01/deeper/still/000000.jpg",
        "Indian/m.i01/000000.gif",
    ]


def test_photos_are_read_whatever_their_suffix(tmp_path):
    root = shutil.copytree(DUMMY / "race_per_7000", tmp_path / "again")
    suffixes = (".jpeg", ".JPG", ".png", ".PNG", ".jpg")
    files = sorted(root.glob("*/*/*.jpg"))
    for file, suffix in zip(files, itertools.cycle(suffixes), strict=False):
        image = cv2.imread(str(file))
        file = file.rename(file.with_suffix(suffix))
        if suffix.lower() == ".png" and image is not None:
            cv2.imwrite(str(file), image)
    _, faces, others = bupt.find_faces(root)
    assert sum(len(names) for identities in faces.values() for names in identities.values()) == len(files)
    assert not others
    assert {f".{key.rpartition('.')[2]}" for key in rows(build(root, tmp_path / "data", "by_image"))} == set(suffixes)


def test_wrong_folders_are_one_clear_line(tmp_path):
    root = tmp_path / "faces"
    root.mkdir()

    def fails(message):
        with pytest.raises(UserError, match=message) as error:
            build(root, tmp_path / "data", "by_identity")
        assert "\n" not in str(error.value)

    fails("faces does not exist or is empty")
    for race in bupt.RACES:
        fails(rf"no BUPT-Balancedface in .*lacking .*{race}|does not exist")
        (root / race).mkdir()
    fails(r"African has no images: expected a folder for each person with \.jpg, \.jpeg, \.png files in it")
    for race in bupt.RACES:
        shutil.copytree(DUMMY / "race_per_7000" / race / f"m.{race[0].lower()}04", root / race / "m.0")
    fails(r"expected some of each race for each split \(11,400 set1_train.*Indian 2 images of 1 people; unpack")
    assert not list((tmp_path / "data").rglob("*tfrecord*"))

"""The builder on drawn pictures: two folds of two and two pairs."""

import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tfface.data.aligned import aligned_config
from tfface.errors import UserError
from tfface.faces.detect import Faces
from tfface.faces.occluders import load_occluders

from . import lfw_pairs_dataset_builder as lfw_pairs
from . import occlusion

DUMMY = lfw_pairs.Builder.code_path.parent / "dummy_data"


class PairsTest(tfds.testing.DatasetBuilderTestCase):
    """Registration, tags, features of the pairs."""

    DATASET_CLASS = lfw_pairs.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["pairs"]  # noqa: RUF012
    SPLITS = {"test": 8}  # noqa: RUF012


class ImagesTest(tfds.testing.DatasetBuilderTestCase):
    """Features of the images; one stands in no pair."""

    DATASET_CLASS = lfw_pairs.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["images"]  # noqa: RUF012
    SPLITS = {"test": 8}  # noqa: RUF012


def build(manual_dir, data_dir, config="pairs"):
    builder = lfw_pairs.Builder(data_dir=data_dir, config=config)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return builder


@pytest.fixture
def manual_dir(tmp_path):
    """A copy of the dummy data that a test may break."""
    return shutil.copytree(DUMMY, tmp_path / "manual" / "lfw")


def test_pairs_come_in_file_order_with_their_fold(tmp_path):
    examples = tfds.as_numpy(build(DUMMY, tmp_path).as_dataset(split="test"))
    got = [(e["first_key"].decode(), e["second_key"].decode(), bool(e["same"]), int(e["fold"])) for e in examples]
    assert got == [
        ("Ann_Example_0001.jpg", "Ann_Example_0002.jpg", True, 0),
        ("Ann_Example_0001.jpg", "Ann_Example_0003.jpg", True, 0),
        ("Ann_Example_0001.jpg", "Bob_de_la_Example_0002.jpg", False, 0),
        ("Ann_Example_0003.jpg", "Di_Example_0001.jpg", False, 0),
        ("Bob_de_la_Example_0001.jpg", "Bob_de_la_Example_0002.jpg", True, 1),
        ("Cy_Example_0001.jpg", "Cy_Example_0002.jpg", True, 1),
        ("Bob_de_la_Example_0001.jpg", "Di_Example_0001.jpg", False, 1),
        ("Cy_Example_0002.jpg", "Ann_Example_0002.jpg", False, 1),
    ]


def test_bytes_are_those_of_the_files(tmp_path):
    skip = tfds.decode.SkipDecoding()
    pairs = build(DUMMY, tmp_path).as_dataset(split="test", decoders={"first": skip, "second": skip})
    images = build(DUMMY, tmp_path, "images").as_dataset(split="test", decoders={"image": skip})
    content = {e["key"]: e["image"] for e in tfds.as_numpy(images)}
    folder = DUMMY / "lfw-deepfunneled" / "Bob_de_la_Example"
    assert content[b"Bob_de_la_Example_0002.jpg"] == (folder / "Bob_de_la_Example_0002.jpg").read_bytes()
    for e in tfds.as_numpy(pairs):
        assert e["first"] == content[e["first_key"]]
        assert e["second"] == content[e["second_key"]]


def test_images_are_those_in_pairs_once_with_their_identity(tmp_path):
    builder = build(DUMMY, tmp_path, "images")
    examples = [(e["key"].decode(), e["identity"].decode()) for e in tfds.as_numpy(builder.as_dataset(split="test"))]
    assert examples[3:6] == [
        ("Bob_de_la_Example_0001.jpg", "Bob_de_la_Example"),
        ("Bob_de_la_Example_0002.jpg", "Bob_de_la_Example"),
        ("Cy_Example_0001.jpg", "Cy_Example"),
    ]
    assert examples == sorted(set(examples))
    assert "Unpaired_Example" not in {identity for _, identity in examples}
    assert builder.info.metadata["folder"] == "lfw-deepfunneled"


def test_parent_folder_and_raw_images_are_found(tmp_path, manual_dir):
    (manual_dir / "lfw-deepfunneled").rename(manual_dir / "lfw")
    builder = build(manual_dir.parent, tmp_path)
    assert builder.info.splits["test"].num_examples == 8
    assert builder.info.metadata["folder"] == "lfw"


def test_missing_and_broken_images_are_named(tmp_path, manual_dir):
    image = manual_dir / "lfw-deepfunneled" / "Di_Example" / "Di_Example_0001.jpg"
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(UserError, match=r"Di_Example_0001\.jpg is not a whole JPEG"):
        build(manual_dir, tmp_path)
    image.unlink()
    with pytest.raises(UserError, match=r"1 of the 8 images .* missing, the first: .*Di_Example_0001\.jpg"):
        build(manual_dir, tmp_path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda text: "", "not enough values"),
        (lambda text: text.replace("2\t2\n", "", 1), "invalid literal"),
        (lambda text: text.replace("2\t2\n", "3\t2\n", 1), "8 pairs"),
        (lambda text: text.replace("2\t2\n", "2\t0\n", 1), "line 1 is"),
        (lambda text: text.replace("\n", "\n" + text.splitlines()[1] + "\n", 1), "for the second time"),
        (lambda text: text.replace("Ann_Example\t1\t2\n", "Ann_Example\t1\t2\nAnn_Example\t2\t1\n", 1), "second time"),
        (lambda text: text.replace("Cy_Example\t1\t2\n", ""), "line 7 is .* where the other kind"),
        (lambda text: text.replace("Cy_Example\t1\t2\n", "Cy_Example\t1\n"), r"line 7 is 'Cy_Example\\t1'"),
    ],
)
def test_spoilt_list_of_pairs_is_one_clear_line(tmp_path, manual_dir, change, found):
    path = manual_dir / "pairs.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=f"not LFW's list of pairs.*{found}") as error:
        build(manual_dir, tmp_path)
    assert "\n" not in str(error.value)


def test_what_an_editor_on_windows_leaves_is_read(manual_dir):
    path = manual_dir / "pairs.txt"
    pairs = lfw_pairs.read_pairs(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n \r\n")
    assert lfw_pairs.read_pairs(path) == pairs


def test_wrong_folder_is_one_clear_line(tmp_path, manual_dir):
    shutil.rmtree(manual_dir / "lfw-deepfunneled")
    with pytest.raises(UserError, match=r"expected pairs\.txt and a folder .*found pairs\.txt"):
        build(manual_dir, tmp_path)


class OccludedTest(tfds.testing.DatasetBuilderTestCase):
    """Features of the occluded images; drawn pictures have no face, so it is taken to be where LFW's are."""

    DATASET_CLASS = lfw_pairs.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["occ_lfw", "mask_lfw", "lower_half"]  # noqa: RUF012
    SPLITS = {"test": 5}  # noqa: RUF012


@pytest.mark.parametrize("config", ["occ_lfw", "mask_lfw", "lower_half"])
def test_images_without_a_face_are_occluded_where_faces_are_and_named(tmp_path, config):
    builder = build(DUMMY, tmp_path, config)
    examples = {e["key"].decode(): e for e in tfds.as_numpy(builder.as_dataset(split="test"))}
    assert builder.info.metadata["typical_face"] == sorted(examples)
    for name, example in examples.items():
        height, width, _ = example["image"].shape
        x0, y0, x1, y1 = example["box"]
        assert 0 <= x0 < 0.5 * width < x1 <= width
        assert 0 <= y0 < 0.7 * height < y1 <= height or config == "occ_lfw", name


def test_images_without_a_face_are_aligned_at_the_centre_or_refused(tmp_path, monkeypatch):
    nobody = Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    monkeypatch.setattr(occlusion, "load_detector", lambda *_, **__: lambda photos: [nobody] * len(photos))
    plain = lfw_pairs.Builder(data_dir=tmp_path, config="mask_lfw")
    builder = build(DUMMY, tmp_path, aligned_config(plain, "five-point", no_face="centre"))
    names = sorted(e["key"].decode() for e in tfds.as_numpy(builder.as_dataset(split="test")))
    assert builder.info.metadata["cut_at_centre"] == names
    with pytest.raises(UserError, match=f"no face was found in 5 images: {names[0]}, .*--no-face centre"):
        build(DUMMY, tmp_path, aligned_config(plain, "margin", no_face="error"))


@pytest.mark.parametrize("config", occlusion.CONFIGS, ids=lambda config: config.name)
def test_what_is_hidden_depends_on_key_and_seed_and_lies_in_the_photo(config):
    photo = np.full((120, 200, 3), 90, np.uint8)
    points = [[130.0, 50], [170, 50], [150, 70], [135, 90], [165, 90]]
    face = {"box": [110.0, 20, 190, 110], "landmarks": points}
    other, occluders = dataclasses.replace(config, seed=1), load_occluders()
    first, again, key, seed = (
        occlusion.hide(photo, face, name, choice, occluders).alpha
        for name, choice in (("a.jpg", config), ("a.jpg", config), ("b.jpg", config), ("a.jpg", other))
    )
    np.testing.assert_array_equal(first, again)
    by_chance = config.occlusion != "lower_half"
    assert (first != key).any() == (first != seed).any() == by_chance
    if not by_chance:  # from the middle of the box down, the margin and a pixel at the sides; what hangs over is cut
        rows, columns = np.nonzero(first)
        assert (columns.min(), rows.min(), columns.max(), rows.max()) == (99, 65, 199, 119)


def test_a_person_who_is_not_there_is_named(tmp_path, manual_dir):
    path = manual_dir / "pairs.txt"
    path.write_text(path.read_text().replace("Di_Example\t1", "No_Body\t1"))
    with pytest.raises(UserError, match=r"1 of the 8 images in pairs\.txt are missing, the first: .*No_Body_0001\.jpg"):
        build(manual_dir, tmp_path, "mask_lfw")

"""Files become distinct images: what is a copy, what contradicts, what cannot be read."""

import errno
import functools
import hashlib
import os

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfface.data import originals
from tfface.errors import UserError
from tfface.faces.detect import Faces
from tfface.faces.photos import read_photo


@pytest.fixture
def photos(tmp_path):
    """Seven files: two images with one copy each, one of them under another label, and two that are broken."""
    rng = np.random.default_rng(0)
    pictures = [cv2.imencode(".png", rng.integers(0, 256, (8, 8, 3), np.uint8))[1].tobytes() for _ in range(3)]
    contents = {
        "b": (pictures[0], "man"),
        "a": (pictures[0], "man"),
        "c": (pictures[1], "man"),
        "d": (pictures[1], "woman"),
        "e": (pictures[2], "woman"),
        "f": (pictures[2][:-30], "woman"),
        "g": (b"", "man"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    return [originals.Photo(name, tmp_path / name, label) for name, (_, label) in contents.items()]


def test_copies_count_once_and_contradictions_not_at_all(photos):
    images, left_out = originals.distinct(photos)
    assert [photo.name for photo in images.values()] == ["b", "e"]
    assert left_out == {"undecodable": ["f", "g"], "copies": [["b", "a"]], "conflicting": [["c", "d"]]}
    for digest, photo in images.items():
        assert digest == hashlib.sha256(photo.path.read_bytes()).hexdigest()
    _, left_out = originals.distinct(reversed(photos))
    assert left_out["copies"] == [["a", "b"]]  # the first that is given is the one kept


def test_what_is_left_out_is_counted_and_named(photos, caplog):
    images, left_out = originals.distinct(photos)
    with caplog.at_level("INFO", logger="absl"):
        originals.log_left_out("faces", len(images), {"row_without_a_file": list("hijkl"), **left_out})
    assert [record.getMessage() for record in caplog.records] == [
        "faces: 2 images kept",
        "faces: left out as row without a file: 5 files, named in metadata.json: h, i, j ...",
        "faces: left out as undecodable: 2 files, named in metadata.json: f, g",
        "faces: left out as copies: 1 files in 1 groups, named in metadata.json: b = a",
        "faces: left out as conflicting: 2 files in 1 groups, named in metadata.json: c = d",
    ]


def test_fraction_is_the_first_64_bits():
    assert originals.fraction("0" * 64) == 0
    assert originals.fraction("8" + "0" * 63) == 0.5
    assert originals.fraction("f" * 13 + "0" * 51) < 1
    fractions = [originals.fraction(hashlib.sha256(bytes([i])).hexdigest()) for i in range(256)]
    assert np.mean(fractions) == pytest.approx(0.5, abs=0.06)


def test_a_truncated_file_is_refused(photos):
    whole = photos[4].path.read_bytes()
    assert originals.decode(whole).shape == (8, 8, 3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        originals.decode(whole[:-30])


def test_pictures_without_faces_have_no_landmarks(photos):
    assert originals.typical_landmarks([photos[0], photos[2]]) is None


def test_landmarks_of_crops_are_the_medians_of_their_shares(tmp_path, monkeypatch):
    places = np.array([[0.3, 0.2], [0.7, 0.2], [0.5, 0.5], [0.35, 0.8], [0.65, 0.8]])
    photos = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (40, 60 + 20 * number), (number, 0, 0)).save(path)  # higher than wide
        photos.append(originals.Photo(path.name, path, None))

    def found(images, without):
        for image in images:
            size = np.array(image.shape[1::-1])
            faceless = image[0, 0, 0] < without
            points = np.array([places * size + (image[0, 0, 0] == 7) * 50])  # one is far off
            yield Faces(np.zeros((0, 4)), np.zeros(0)) if faceless else Faces(np.zeros((1, 4)), np.ones(1), points)

    for without in (0, 4, 5):
        detect = functools.partial(found, without=without)
        monkeypatch.setattr(originals, "load_detector", lambda _, detect=detect: detect)
        landmarks = originals.typical_landmarks(photos)
        if without <= 4:
            np.testing.assert_allclose(landmarks, places, atol=1e-3)
    assert landmarks is None  # of most there are none: these are no crops of faces


def test_what_decoders_read_otherwise_is_stored_upright_and_plain(tmp_path, capfd):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "plain.jpg")
    picture.save(tmp_path / "turned.jpg", exif=exif)
    for name in ("film.gif", "film.webp"):
        picture.save(tmp_path / name, save_all=True, append_images=[picture])
    for name in ("scan.tif", "scan.jp2"):
        picture.save(tmp_path / name)
    picture.putalpha(100)
    picture.save(tmp_path / "glass.png")
    assert originals.content(tmp_path / "plain.jpg") == tmp_path / "plain.jpg"  # as it is
    names = ("turned.jpg", "film.gif", "film.webp", "scan.tif", "scan.jp2", "glass.png")
    assert not originals.distinct([originals.Photo(name, tmp_path / name, 0) for name in names])[1]["undecodable"]
    for name in names:
        stored = originals.content(tmp_path / name)
        assert isinstance(stored, bytes)
        np.testing.assert_array_equal(originals.decode(stored), read_photo(tmp_path / name))
        np.testing.assert_array_equal(originals.pixels(tmp_path / name), read_photo(tmp_path / name))
    assert originals.pixels(tmp_path / "turned.jpg").shape == (12, 8, 3)
    assert "WARN" not in capfd.readouterr().err  # OpenCV's, once a picture


def test_the_colours_of_a_palette_are_kept(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)).quantize(16)
    picture.save(tmp_path / "few.bmp")
    stored = originals.content(tmp_path / "few.bmp")
    for pixels in (originals.decode(stored), originals.pixels(tmp_path / "few.bmp")):
        np.testing.assert_array_equal(pixels, picture.convert("RGB"))


def test_what_could_not_be_stored_is_left_out_before_anything_is_written(tmp_path, monkeypatch):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.save(tmp_path / "film.gif", save_all=True, append_images=[picture.rotate(90)])
    whole = (tmp_path / "film.gif").read_bytes()
    (tmp_path / "film.gif").write_bytes(b"GIF89x" + whole[6:])  # TensorFlow reads on
    photos = [originals.Photo(name, tmp_path / name, 0) for name in ("turned.jpg", "film.gif")]
    assert originals.decode(photos[1].path.read_bytes()).shape == (30, 40, 3)
    assert originals.distinct(photos)[1]["undecodable"] == ["film.gif"]
    monkeypatch.setattr("tfface.faces.photos.MAX_PIXELS", 1000)
    assert originals.distinct(photos)[1]["undecodable"] == ["turned.jpg", "film.gif"]


def test_few_of_many_files_wait_to_be_read(tmp_path):
    photos = [originals.Photo(str(index), tmp_path / str(index), 0) for index in range(5000)]
    called = []
    results = originals.of_each(photos, lambda path: called.append(path) or path.name, "Reading")
    assert next(results) == "0"
    assert len(called) <= 1024
    assert list(results) == [photo.name for photo in photos[1:]]


def test_hidden_folders_are_passed_over(tmp_path):
    for place in ("a/b.jpg", "a/.thumbnails/b.jpg", ".c.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    assert originals.files_below(tmp_path) == [tmp_path / "a" / "b.jpg"]


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c.jpg").touch()
    scandir = os.scandir

    def forbidden(path):
        if os.path.basename(path) == "b":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert originals.files_below(tmp_path, deep=False) == [tmp_path / "c.jpg"]
    with pytest.raises(UserError, match=r"a/b cannot be listed: Permission denied"):
        originals.files_below(tmp_path)

"""Reading photos: every kind comes out upright, RGB and 8 bits, or is refused in one line."""

import errno
import io
import os
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from tfface.errors import UserError
from tfface.faces import photos
from tfface.faces.photos import find_photos, read_photo

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corners() -> Image.Image:
    """A picture 6 wide and 4 high whose left top pixel alone is red."""
    image = Image.new("RGB", (6, 4), BLUE)
    image.putpixel((0, 0), RED)
    return image


def test_rgb_file_and_bytes_are_the_same(tmp_path):
    data = encoded(corners())
    (tmp_path / "a.png").write_bytes(data)
    photo = read_photo(tmp_path / "a.png")
    assert photo.shape == (4, 6, 3)
    assert photo.dtype == np.uint8
    assert photo.flags.c_contiguous
    assert tuple(photo[0, 0]) == RED
    assert (photo == read_photo(data)).all()


def test_grey_becomes_three_equal_channels():
    photo = read_photo(encoded(Image.new("L", (5, 3), 77)))
    assert photo.shape == (3, 5, 3)
    assert (photo == 77).all()


def test_cmyk_jpeg():
    photo = read_photo(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert photo.shape == (16, 16, 3)
    assert np.abs(photo.astype(int) - RED).max() <= 4


def test_transparent_pixels_lie_over_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 128))
    photo = read_photo(encoded(image))
    assert tuple(photo[0, 0]) == WHITE
    assert np.abs(photo[0, 1].astype(int) - (255, 127, 127)).max() <= 1


def test_palette_with_transparency():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([*GREEN, *RED])
    image.putpixel((1, 0), 1)
    photo = read_photo(encoded(image, "GIF", transparency=0))
    assert tuple(photo[0, 0]) == WHITE
    assert tuple(photo[0, 1]) == RED


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    photo = read_photo(encoded(Image.fromarray(values)))
    assert photo[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_colour(suffix):
    bgr = np.full((3, 5, 3), (0, 32896, 65535), np.uint16)
    photo = read_photo(cv2.imencode(suffix, bgr)[1].tobytes())
    assert photo.shape == (3, 5, 3)
    assert tuple(photo[0, 0]) == (255, 128, 0)


@pytest.mark.parametrize(
    ("orientation", "shape", "red"),
    [(1, (4, 6), (0, 0)), (3, (4, 6), (3, 5)), (6, (6, 4), (0, 3)), (8, (6, 4), (5, 0)), (2, (4, 6), (0, 5))],
)
def test_exif_orientation_is_applied(orientation, shape, red):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = read_photo(encoded(corners(), "PNG", exif=exif))
    assert photo.shape[:2] == shape
    assert tuple(photo[red]) == RED


@pytest.mark.parametrize(
    "field",
    [
        (0x011A, 2, 6, b"72/1\0\0"),  # a resolution as text
        (0x010F, 5, 1, struct.pack(">II", 1, 2)),  # a maker as a fraction
        (0x011A, 9, 1, struct.pack(">i", -72)),  # a resolution below nothing
    ],
)
def test_odd_exif_says_nothing_of_the_pixels(field):
    """Beside an orientation; a rewriting of all fields ends in an error of Pillow's."""
    table, beyond = b"", b""
    for tag, kind, count, value in sorted([(0x0112, 3, 1, struct.pack(">H", 6)), field]):
        if len(value) > 4:
            value, beyond = struct.pack(">I", 8 + 2 + 2 * 12 + 4 + len(beyond)), beyond + value
        table += struct.pack(">HHI", tag, kind, count) + value.ljust(4, b"\0")
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + table + b"\0\0\0\0" + beyond
    data = encoded(corners(), "JPEG", quality=95, subsampling=0)
    turned = read_photo(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    np.testing.assert_array_equal(turned, np.rot90(read_photo(data), -1))


def test_first_frame_of_an_animation(samples):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    photo = read_photo(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (photo == RED).all()
    assert read_photo(samples / "videos" / "two_heads.gif").ndim == 3


def test_one_pixel():
    assert read_photo(encoded(Image.new("RGB", (1, 1), GREEN))).tolist() == [[list(GREEN)]]


def test_20000_pixels_wide():
    assert read_photo(encoded(Image.new("RGB", (20_000, 30), RED), "JPEG")).shape == (30, 20_000, 3)


def test_too_large_is_refused_before_it_is_decoded(monkeypatch):
    data = encoded(Image.new("L", (300, 200)))
    monkeypatch.setattr(photos, "MAX_PIXELS", 59_999)
    with pytest.raises(UserError, match=r"300 x 200 pixels, expected at most 59999"):
        read_photo(data)


def test_a_decompression_bomb_is_refused():
    # 300 million pixels in some 40 KB
    with pytest.raises(UserError, match="too large"):
        read_photo(encoded(Image.new("1", (30_000, 10_000))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_truncated(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(UserError, match=r"damaged or truncated|not a picture") as error:
        read_photo(data[: len(data) // 2])
    assert "\n" not in str(error.value)


def test_empty_not_a_picture_and_missing(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("a letter to my aunt, longer than any header")
    for name, word in (("empty.jpg", "is empty"), ("text.jpg", "not a picture"), ("gone.jpg", "No such file")):
        with pytest.raises(UserError, match=word) as error:
            read_photo(tmp_path / name)
        assert name in str(error.value)


@pytest.mark.parametrize("source", [io.BytesIO(b"photo"), bytearray(b"photo"), None])
def test_what_is_neither_path_nor_bytes_is_refused(source):
    with pytest.raises(UserError, match=f"is a {type(source).__name__}; expected the path of a file, or its bytes"):
        read_photo(source)


def test_floating_point_pixels_are_refused():
    with pytest.raises(UserError, match="floating-point"):
        read_photo(encoded(Image.new("F", (2, 2), 0.5), "TIFF"))


@pytest.fixture
def tree(tmp_path):
    for name in ("b/2.jpg", "b/10.PNG", "a/1.jpeg", "c.jpg", "b/notes.txt", "b/._2.jpg", ".hidden/3.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(found, tree):
    return [path.relative_to(tree).as_posix() for path in found]


def test_a_folder_is_searched_in_a_fixed_order(tree):
    assert names(find_photos([tree]), tree) == ["c.jpg", "a/1.jpeg", "b/10.PNG", "b/2.jpg"]


def test_files_globs_and_no_photo_twice(tree):
    found = find_photos([tree / "b" / "notes.txt", str(tree / "b" / "*.jpg"), tree / "b", str(tree / "**" / "1.*")])
    assert names(found, tree) == ["b/notes.txt", "b/2.jpg", "b/10.PNG", "a/1.jpeg"]


def test_missing_paths_are_refused_at_once_and_empty_folders_when_reached(tree):
    with pytest.raises(UserError, match="no such file or folder"):
        find_photos([tree, tree / "gone"])
    with pytest.raises(UserError, match="no such file or folder"):
        find_photos([str(tree / "*.tiff")])
    (tree / "empty").mkdir()
    with pytest.raises(UserError, match="no photo in folder"):
        list(find_photos([tree / "empty"]))


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tree, monkeypatch):
    scandir = os.scandir

    def forbidden(path):
        if os.fspath(path) == os.fspath(tree / "a"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert names(find_photos([tree]), tree) == ["c.jpg", "b/10.PNG", "b/2.jpg", "a"]
    assert list(find_photos([tree / "a"])) == [tree / "a"]
    with pytest.raises(UserError, match=r"cannot read .*/a: "):
        read_photo(tree / "a")


def test_what_is_read_may_be_drawn_on(tmp_path):
    for name in ("a.png", "a.jpg", "grey.png"):
        Image.new("L" if name == "grey.png" else "RGB", (8, 6)).save(tmp_path / name)
        photo = read_photo(tmp_path / name)
        photo[0] = 255
        assert photo.flags.c_contiguous


def test_one_folder_needs_no_list(tree):
    assert list(find_photos(str(tree))) == list(find_photos(tree)) == list(find_photos([tree]))

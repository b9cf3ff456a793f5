"""Photos from disk: find them, read them as upright RGB, say in one line what is wrong with the rest."""

from __future__ import annotations

import glob
import io
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from tfface import files
from tfface.errors import UserError

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"))
"""What `find_photos` takes for a photo inside a folder, whatever the case; a file named directly is always
taken."""

MAX_PIXELS = Image.MAX_IMAGE_PIXELS
"""Greatest width x height that `read_photo` decodes: 89,478,485 pixels, 268 MB as RGB. It is Pillow's own
threshold of a decompression bomb; a photo 20,000 pixels wide may be 4,473 high."""

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, AttributeError, struct.error)
"""What Pillow's decoders raise on a damaged file."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes it upright."""


def read_photo(source: str | os.PathLike | bytes) -> np.ndarray:
    """Reads a photo as the eye sees it: upright, RGB, 8 bits.

    The EXIF orientation is applied; grey, palette and CMYK become RGB; transparent pixels are laid over
    white; 16 bits a channel are scaled down to 8; of an animation the first frame is taken. Colour profiles
    are not applied.

    Args:
        source: path of a file, or the bytes of one.

    Returns:
        Array (height, width, 3), uint8, RGB, contiguous.

    Raises:
        UserError: the file is missing, empty, truncated, not a picture, of an unknown depth, or above
            `MAX_PIXELS`.
    """
    if not isinstance(source, str | os.PathLike | bytes):
        raise UserError(
            f"a photo to read is a {type(source).__name__}; expected the path of a file, or its bytes: of an open one "
            "pass what its read() gives"
        )
    name = f"of {len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}; check the path") from error
    if not data:
        raise UserError(f"photo {name} is empty: expected an encoded picture, received 0 bytes; copy it again")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(name, *image.size)
            image.load()
            # Not by ImageOps.exif_transpose: it writes all EXIF fields anew, and stumbles over odd ones.
            turn = _TURNS.get(orientation(image))
            return np.ascontiguousarray(_as_rgb(name, image if turn is None else image.transpose(turn)))
    except UnidentifiedImageError as error:
        return _read_with_opencv(name, data, error)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"photo {name} is too large: {error}; expected at most {MAX_PIXELS} pixels") from error
    except _BROKEN as error:
        raise UserError(f"photo {name} is damaged or truncated ({error}); copy it again or leave it out") from error


def orientation(image: Image.Image) -> int:
    """EXIF's orientation of a picture, 1 (upright) to 8; 1 where it has none, another, or EXIF that cannot be read."""
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation)
        return turn if turn in _TURNS else 1
    except Exception:  # whatever is wrong with EXIF says nothing of the pixels
        return 1


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(
            f"photo {name} is too large: {width} x {height} pixels, expected at most "
            f"{MAX_PIXELS} in all; shrink it first"
        )


def _as_rgb(name: str, image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return _stack_grey(_scale_16_bit(np.asarray(image, np.uint16)))
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"photo {name} holds 32-bit integers; expected 8 or 16 bits a channel: convert it first")
        return _stack_grey(_scale_16_bit(values))
    if image.mode == "F":
        raise UserError(f"photo {name} holds floating-point pixels; expected 8 or 16 bits a channel: convert it first")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))  # a copy: what Pillow lends may not be written to


def _scale_16_bit(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _stack_grey(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def _read_with_opencv(name: str, data: bytes, error: Exception) -> np.ndarray:
    """Reads what Pillow does not know, 16-bit RGB TIFF above all, with OpenCV."""
    import cv2

    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
    except cv2.error:  # above OpenCV's own limit of pixels
        pixels = None
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"photo {name} is not a picture that Pillow or OpenCV can read; leave it out or convert it"
        ) from error
    _check_size(name, pixels.shape[1], pixels.shape[0])
    return _scale_16_bit(pixels) if pixels.dtype == np.uint16 else pixels


def find_photos(paths: Iterable[str | os.PathLike]) -> Iterator[Path]:
    """Photos named by files, folders and globs, in an order that is the same on every machine.

    A file is taken whatever its suffix. A folder is searched with all below it for `SUFFIXES`, each folder's
    files before its subfolders, both sorted by name; names that begin with a dot are left out, links to folders
    elsewhere are followed (`tfface.files.walk`). A glob (`*`, `?`, `[`, `**`) gives its matches sorted, folders
    searched in turn. A photo named twice comes once. A folder that cannot be listed comes itself, last, so that it is
    not passed over in silence: `read_photo` says why.

    Args:
        paths: files, folders or globs, taken in the order given; or one of them.

    Returns:
        Iterator over paths. Folders are read as the iterator reaches them, so a million photos need no list.

    Raises:
        UserError: at once for a path that does not exist or a glob without a match; while iterating for a
            folder that holds no photo.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    named = [match for path in paths for match in _expand(os.fspath(path))]

    def walk() -> Iterator[Path]:
        seen: set[Path] = set()
        for path in named:
            for photo in _photos_below(path):
                if len(named) > 1:  # one folder cannot name a photo twice: no need to remember a million paths
                    if photo in seen:
                        continue
                    seen.add(photo)
                yield photo

    return walk()


def usable_paths(paths: Iterable[str | os.PathLike], to: str | os.PathLike) -> tuple[list[str], int, list[str]]:
    """What of the paths that were named holds photos; what does not is said on standard error, in a line each.

    Args:
        paths: files, folders or globs.
        to: folder of results, in which nothing is looked for.

    Returns:
        The files and folders that hold photos, how many they hold, and those that do not.
    """
    named, total, wrong = [], 0, []

    def refused(path, error):
        print(f"tfface: {error}", file=sys.stderr)
        wrong.append(path)

    for path in map(os.fspath, paths):
        try:
            matches = _expand(path)
        except UserError as error:
            refused(path, error)
            continue
        for match in map(os.fspath, matches):
            try:
                if os.path.isdir(match) and _inside(match, to):
                    raise UserError(
                        f"{match} lies in the folder of the results, {to}, in which no photos are looked for; name "
                        "another with --to"
                    )
                total += sum(1 for _ in photos_outside([match], to))
                named.append(match)
            except UserError as error:
                refused(match, error)
    return named, total, wrong


def _inside(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    return os.path.join(os.path.abspath(path), "").startswith(os.path.join(os.path.abspath(folder), ""))


def photos_outside(paths: Iterable[str], to: str | os.PathLike) -> Iterator[Path]:
    """What `find_photos` gives, but for the pictures that an earlier run put into the folder of results `to`."""
    paths = [os.fspath(path) for path in paths]
    asked = set(paths)
    for photo in find_photos(paths):
        if not _inside(photo, to) or str(photo) in asked:
            yield photo


def common_folder(named: Iterable[str]) -> str:
    """The deepest folder above all files and folders named; results are named by what is below it."""
    folders = (path if os.path.isdir(path) else os.path.dirname(path) for path in named)
    return os.path.commonpath([os.path.abspath(folder) for folder in folders])


def counted(number: int, what: str) -> str:
    """A number and what it counts, as in "1 photo, 2 faces"; only for words that take an s."""
    return f"{number} {what}{'s' * (number != 1)}"


def _expand(path: str) -> list[Path]:
    if os.path.exists(path):
        return [Path(path)]
    matches = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
    if not matches:
        raise UserError(f"no such file or folder: {path}; expected a photo, a folder of photos or a glob")
    return [Path(match) for match in matches]


def _photos_below(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    found = False
    unreadable: list[str] = []
    for folder, _, names in files.walk(path, onerror=lambda error: unreadable.append(error.filename)):
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES:
                found = True
                yield Path(folder, name)
    yield from map(Path, unreadable)  # whoever reads one is told why it cannot be
    if not (found or unreadable):
        raise UserError(
            f"no photo in folder {path}: expected files such as .jpg or .png in it or below; check the path"
        )

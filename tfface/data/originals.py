"""Original image files on disk: read once, told apart by their bytes, split by their content.

What every builder of downloaded photos has to do before it may write a record, so that no image stands in two splits
and nothing is left out unseen.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image
from tqdm import tqdm

from tfface import files
from tfface.data.pipeline import in_groups
from tfface.errors import UserError
from tfface.faces.crops import encode
from tfface.faces.detect import load_detector
from tfface.faces.photos import orientation, read_photo

Result = TypeVar("Result")

PART = re.compile("(train|test)(ing)?([ _-]?set)?|val|valid|validation|dev|eval|evaluation", re.IGNORECASE)
"""What the folders of a set that is divided already are called."""

MEASURED = 200
"""Photos whose landmarks are measured. The median of 500 lies within 0.01 of it."""


class Photo(NamedTuple):
    """A file of the original set.

    Attributes:
        name: what the set calls it: a file name, with folders where they matter.
        path: where its bytes are.
        labels: what copies of one image must agree on.
    """

    name: str
    path: Path
    labels: Hashable


def manual_folder(dl_manager) -> Path:
    """The folder that the user named with `--manual-dir`.

    Args:
        dl_manager: `tfds.download.DownloadManager`.

    Raises:
        UserError: it does not exist or is empty.
    """
    try:
        return Path(dl_manager.manual_dir)
    except AssertionError as error:  # TFDS' own check, in several lines
        raise UserError(" ".join(str(error).split())) from error


def files_below(folder: Path, deep: bool = True) -> list[Path]:
    """Files of a folder and, if `deep`, of all folders below it (`tfface.files.walk`), sorted; hidden ones aside.

    Links to files that lead nowhere are among them: `distinct` leaves them out by name. A folder that is not there has
    none.

    Raises:
        UserError: a folder cannot be listed. A glob would pass over it in silence.
    """

    def refuse(error):
        if not isinstance(error, FileNotFoundError):
            raise UserError(
                f"{error.filename} cannot be listed: {error.strerror}. Expected a folder whose photos may be read: "
                "allow it, or move it away."
            ) from error

    found = []
    for path, folders, names in files.walk(folder, onerror=refuse):
        if not deep:
            folders.clear()
        found += [Path(path, name) for name in names]
    return sorted(path for path in found if path.is_file() or not path.exists())


def subfolders(folder: Path) -> list[Path]:
    """Folders of a folder, sorted, hidden ones and what a Mac puts into archives aside."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX")))


def grouped(folder: Path, of: str) -> tuple[Path, list[Path], list[Path]]:
    """The folders by which photos are grouped: those of a folder, or of the only one that it holds.

    Args:
        folder: what the user named.
        of: what each group is of, "class" or "person".

    Returns:
        The folder that holds them, they themselves, and the files beside and above them.

    Raises:
        UserError: they are parts of a set that is divided already.
    """
    top, groups, outside = folder, subfolders(folder), files_below(folder, deep=False)
    while len(groups) == 1 and subfolders(groups[0]):  # the archive's own folder, or several
        top, groups = groups[0], subfolders(groups[0])
        outside += files_below(top, deep=False)
    parts = [path for path in groups if PART.fullmatch(path.name)]
    if len(parts) > 1 and (below := sorted({path.name for part in parts for path in subfolders(part)})):
        raise UserError(
            f"{top} is divided already: expected a folder of images for each {of}, found "
            f"{' and '.join(path.name for path in parts)} with folders in them ({', '.join(below[:3])}); give the "
            f"folder of one part, such as {parts[0]}, as manual_dir, or put what is in them side by side"
        )
    return top, groups, outside


def readable(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8, as an archive from elsewhere leaves them, become "\\xff"."""
    return os.fsencode(name).decode(errors="backslashreplace")


def fraction(digest: str) -> float:
    """A number in [0, 1) that depends on nothing but a file's bytes: a split by it moves nobody when others come or go.

    Args:
        digest: SHA-256 of the file, hexadecimal.
    """
    return int(digest[:16], 16) / 2**64


def distinct(photos: Iterable[Photo]) -> tuple[dict[str, Photo], dict[str, list]]:
    """Reads every photo once and sets apart what cannot be used.

    Files of the same bytes are one image. It is kept, under its first name, where all copies agree on the labels.
    Where they do not, nothing tells which label is right, and the image is left out.

    Args:
        photos: the files, in the order in which the first of several copies is chosen.

    Returns:
        The images, SHA-256 -> `Photo`, and what was left out: 'undecodable' lists names, 'copies' and 'conflicting'
        list groups of names; the first of each group of copies is the one kept.
    """
    photos = list(photos)
    left_out = {"undecodable": [], "copies": [], "conflicting": []}
    same_bytes = defaultdict(list)
    for photo, digest in zip(photos, of_each(photos, _digest, "Reading photos"), strict=True):
        if digest is None:
            left_out["undecodable"].append(photo.name)
        else:
            same_bytes[digest].append(photo)

    images = {}
    for digest, copies in same_bytes.items():
        names = [photo.name for photo in copies]
        if len({photo.labels for photo in copies}) > 1:
            left_out["conflicting"].append(names)
            continue
        images[digest] = copies[0]
        if len(copies) > 1:
            left_out["copies"].append(names)
    return images, left_out


def of_each(photos: Sequence[Photo], function: Callable[[Path], Result], doing: str) -> Iterator[Result]:
    """What a function makes of each photo's file, in their order, by threads; a bar says what is being done.

    Of a million photos only a thousand wait for a thread at a time: as tasks they take 1.5 GB.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for group in in_groups(tqdm(photos, doing, unit=" files", leave=False), 1024):
            yield from pool.map(function, (photo.path for photo in group))


def decode(content: bytes) -> tf.Tensor:
    """Decodes the bytes of a file with training's own decoder, which refuses truncated files.

    Returns:
        `(height, width, 3)` uint8, RGB.

    Raises:
        tf.errors.InvalidArgumentError: they are not a whole image.
    """
    return tf.io.decode_image(content, channels=3, expand_animations=False)


def content(path: Path) -> Path | bytes:
    """A file as a builder stores it: as it is where every decoder reads it alike, else as `read_photo` does, as PNG.

    Training's decoder knows neither EXIF's orientation nor what lies under transparent pixels, and takes the palette of
    a BMP for greys; TFDS's takes a GIF for a film.

    Raises:
        UserError: it cannot be read.
    """
    return path if _is_read_alike(path) else encode(read_photo(path), ".png")


def pixels(path: Path) -> np.ndarray:
    """What is learnt of a file: `(height, width, 3)` uint8, RGB."""
    return decode(path.read_bytes()).numpy() if _is_read_alike(path) else read_photo(path)


def _is_read_alike(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            known = image.format in ("JPEG", "MPO", "PNG")
            return known and orientation(image) == 1 and not image.has_transparency_data
    except Exception:  # what Pillow cannot open
        return False


def _digest(path: Path) -> str | None:
    """SHA-256 of a file, None where it cannot be read or is not a whole image."""
    try:
        data = path.read_bytes()
        # By what learns from it: `content` stores as PNG what training's own decoder reads otherwise, or not at all.
        (decode if _is_read_alike(path) else read_photo)(data)
    except (OSError, UserError, tf.errors.InvalidArgumentError):
        return None
    return hashlib.sha256(data).hexdigest()


def typical_landmarks(photos: Sequence[Photo], seed: int = 0) -> list[list[float]] | None:
    """Where the face lies in these crops; faces of other photos are aligned to it before they are predicted.

    Args:
        photos: crops of faces, of any sizes.
        seed: which of them are looked at.

    Returns:
        `(5, 2)`: medians of left eye, right eye, nose and mouth corners, as shares of width and height; None where
        MTCNN finds no face in half of the photos: then they are not crops of faces.
    """
    detect = load_detector("mtcnn")
    chosen = np.random.default_rng(seed).permutation(len(photos))[:MEASURED]
    found = []
    for group in in_groups(tqdm(chosen, desc="Measuring faces", unit=" files", leave=False), 32):
        images = [pixels(photos[index].path) for index in group]
        for image, faces in zip(images, detect(images), strict=True):
            if len(faces):
                found.append(faces.landmarks[0] / (image.shape[1], image.shape[0]))
    return np.median(found, axis=0).round(4).tolist() if len(found) >= len(chosen) / 2 else None


def log_left_out(data: str, kept: int, left_out: dict[str, list]) -> None:
    """Counts and names, in the log, what is not in the data set; the whole lists stand in its metadata.json.

    Args:
        data: name of the data set.
        kept: number of images kept.
        left_out: reason -> names of files, or groups of names for copies.
    """
    logging.info("%s: %d images kept", data, kept)
    for reason, entries in left_out.items():
        if not entries:
            continue
        groups = [[entry] if isinstance(entry, str) else entry for entry in entries]
        files = sum(map(len, groups)) - (len(groups) if reason == "copies" else 0)  # one of each group is kept
        logging.warning(
            "%s: left out as %s: %d files%s, named in metadata.json: %s%s",
            data,
            reason.replace("_", " "),
            files,
            "" if isinstance(entries[0], str) else f" in {len(groups)} groups",
            ", ".join(" = ".join(group) for group in groups[:3]),
            " ..." if len(groups) > 3 else "",
        )

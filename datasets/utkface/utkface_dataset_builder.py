"""UTKFace: 23 thousand cropped faces whose file names carry age, gender and race.

Some names are broken, and hundreds of files are copies of one another, often under other labels. The builder
sorts that out once, by the bytes of the files, so that no image stands in two splits. Counts: README.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import tensorflow as tf
import tensorflow_datasets as tfds

from tfface import labels
from tfface.data import aligned, originals
from tfface.errors import UserError

FOLDER = "UTKFace"
"""The folder that the original archive unpacks to."""

NAME = re.compile(r"(?P<age>\d{1,3})_(?P<gender>[01])_(?P<race>[0-4])_\d+\.(jpe?g|png)(\.chip\.jpg)?", re.I)
"""`age_gender_race_datetime.jpg.chip.jpg` of the aligned crops; `.jpg` alone in the uncropped parts."""

SUFFIXES = (".jpg", ".jpeg", ".png")
"""What files of photos end in, in any case of the letters."""

CHIP = ".chip.jpg"
"""What the name of a face that was cut out ends in."""

TYPOS = {
    "24_0_1_20170116220224657 .jpg.chip.jpg": "24_0_1_20170116220224657.jpg.chip.jpg",
    "55_0_0_20170116232725357jpg.chip.jpg": "55_0_0_20170116232725357.jpg.chip.jpg",
}
"""Names of the original set with a slip of the keyboard -> as they were meant. No label is in doubt."""

TEST_SHARE = 0.20848
"""Hashes below it are `test`: the shortest decimal that gives the 4,741 images of the ARG poster exactly."""

VALIDATION_SHARE = 0.08
"""The next share of the hashes is `validation`: about a tenth of what `test` leaves over."""


LANDMARKS = [[0.2993, 0.2897], [0.6858, 0.2910], [0.4876, 0.5167], [0.3157, 0.6849], [0.6657, 0.6866]]
"""Where left eye, right eye, nose and mouth corners lie in these tight crops, as shares of width and height: medians
over MTCNN's landmarks of 495 random ones. Faces of other photos are aligned to them before they are predicted."""


def parse_name(name: str) -> tuple[int, int, int] | None:
    """Reads the labels from a file name.

    Args:
        name: name without its folder.

    Returns:
        Age in years and indices into `labels.GENDERS` and `labels.UTKFACE_RACES`; None where it is malformed.
    """
    match = NAME.fullmatch(TYPOS.get(name, name))
    if not match or int(match["age"]) > labels.OLDEST:
        return None
    return tuple(int(match[field]) for field in ("age", "gender", "race"))


def split_of(digest: str) -> str:
    """The split of an image, from nothing but its own bytes: adding or removing other files moves nobody.

    Args:
        digest: SHA-256 of the file, hexadecimal.

    Returns:
        'train', 'validation' or 'test'.
    """
    fraction = originals.fraction(digest)
    if fraction < TEST_SHARE:
        return "test"
    return "validation" if fraction < TEST_SHARE + VALIDATION_SHARE else "train"


def scan(folder: Path) -> tuple[dict[str, originals.Photo], dict[str, list]]:
    """Reads every photo below a folder once and sets apart what cannot be used.

    Args:
        folder: where the photos are, at any depth.

    Returns:
        The images, SHA-256 -> photo, its labels age (years), gender and race (indices), and what was left out:
        'malformed' lists file names, the rest is as `originals.distinct` tells it.

    Raises:
        UserError: no file has a name of UTKFace.
    """
    paths = [path for path in originals.files_below(folder) if path.suffix.lower() in SUFFIXES]
    photos = [originals.Photo(path.name, path, parse_name(path.name)) for path in paths]
    if not any(photo.labels for photo in photos):
        received = f"{len(paths)} .jpg or .png files, the first {paths[0].name!r}" if paths else "no .jpg or .png file"
        raise UserError(
            f"no photo of UTKFace in {folder}: expected names like 26_0_1_20170117195838909.jpg.chip.jpg "
            f"(age_gender_race_datetime), found {received}; give {FOLDER} or its parent as manual_dir"
        )
    # A photo and the face cut out of it differ in their bytes, and would be split apart: the face is kept.
    meant = {path.name: TYPOS.get(path.name, path.name).lower() for path in paths}
    cut = {name.removesuffix(CHIP) for name in meant.values() if name.endswith(CHIP)}
    twins = [path.name for path in paths if meant[path.name] in cut]
    beside = set(twins)
    images, left_out = originals.distinct(photo for photo in photos if photo.labels and photo.name not in beside)
    malformed = [photo.name for photo in photos if not photo.labels]
    left_out = {"malformed": malformed, "uncropped_twins": twins, **left_out}
    originals.log_left_out("UTKFace", len(images), left_out)
    return images, left_out


class Builder(aligned.AlignableBuilder):
    """UTKFace with exact age, gender and race, free of copies, split by content."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Split by content; copies with conflicting labels left out."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get the aligned and cropped faces of https://susanqq.github.io/UTKFace/ (non-commercial research), "
        f"unpack them and give the folder {FOLDER} or its parent as manual_dir."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "age": tf.int32,
                    "gender": tfds.features.ClassLabel(names=labels.GENDERS),
                    "race": tfds.features.ClassLabel(names=labels.UTKFACE_RACES),
                    "key": tfds.features.Text(),
                }
            ),
            homepage="https://susanqq.github.io/UTKFace/",
            metadata=tfds.core.MetadataDict(landmarks=LANDMARKS),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        folder = originals.manual_folder(dl_manager)
        if (folder / FOLDER).is_dir():
            folder /= FOLDER
        images, left_out = scan(folder)
        self.info.metadata["left_out"] = left_out
        splits = {"train": {}, "validation": {}, "test": {}}
        for digest, photo in images.items():
            splits[split_of(digest)][digest] = photo
        if empty := [split for split, photos in splits.items() if not photos]:
            raise UserError(
                f"too few photos in {folder}: expected some for each split, found {len(images)} that can be used, "
                f"none for {' and '.join(empty)} ({len(left_out['undecodable'])} cannot be decoded); "
                "unpack all of UTKFace again"
            )
        return self.aligned({split: self._generate_examples(photos) for split, photos in splits.items()})

    def _generate_examples(self, images):
        for digest, photo in images.items():
            age, gender, race = photo.labels
            image = self.image_of(photo)
            yield digest, {"image": image, "age": age, "gender": gender, "race": race, "key": photo.name}

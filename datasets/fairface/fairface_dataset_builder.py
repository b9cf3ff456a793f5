"""FairFace: faces balanced over seven races, labelled with race, gender and one of nine age groups.

The labels travel in CSV files that spreadsheets like to mangle, and many copies hold only a part of the images. The
builder reads both as they are, says what is missing, and keeps the published validation set as `test`.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
from pathlib import Path
from typing import ClassVar, NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds

from tfface import labels
from tfface.data import aligned, originals
from tfface.errors import UserError

FOLDER = "fairface"
"""The folder that holds the label files and the images, if the user names its parent."""

PARTS = ("val", "train")
"""Folders of the original set. `val` first: of two copies the one in `test` is kept."""

COLUMNS = ("file", "age", "gender", "race", "service_test")

AGE_GROUPS = {
    **{name: index for index, name in enumerate(labels.FAIRFACE_AGES)},
    # Spreadsheets take 3-9 and 10-19 for days or months.
    **dict.fromkeys(("03-09", "3-Sep", "03-Sep", "Sep-3", "Sep-03", "9-Mar", "09-Mar", "Mar-9", "Mar-09"), 1),
    **dict.fromkeys(("Oct-19", "19-Oct"), 2),
}
"""Every way in which an age group is written -> its index in `labels.FAIRFACE_AGES`."""

SERVICE_TEST = {"TRUE": True, "FALSE": False, "True": True, "False": False}

VALIDATION_SHARE = 0.05
"""Hashes of training images below it are `validation`."""

LANDMARKS = [[0.3136, 0.3009], [0.6725, 0.2982], [0.4918, 0.5096], [0.3405, 0.6896], [0.6519, 0.6869]]
"""Where left eye, right eye, nose and mouth corners lie in crops of padding 0.25, as shares of width and height:
medians over MTCNN's landmarks of 470 random ones. Faces of other photos are aligned to them to be predicted."""


@dataclasses.dataclass(eq=False, kw_only=True)
class FairFaceConfig(aligned.AlignableConfig):
    """How much of the surroundings is in the crop.

    Attributes:
        archive: name of the original archive without its suffix, and of the folder that it may be unpacked to.
        side: width and height of its images, pixels.
        landmarks: where the eyes, the nose and the mouth corners lie in it, shares of width and height.
    """

    archive: str
    side: int
    landmarks: list


class Row(NamedTuple):
    """A row of the label files; the first three are indices into `labels`."""

    age_group: int
    gender: int
    race: int
    service_test: bool


def read_labels(path: Path, part: str) -> dict[str, Row]:
    """Reads a label file.

    Args:
        path: CSV file with the columns file, age, gender, race and service_test.
        part: 'train' or 'val', the folder of all its files.

    Returns:
        File as it is named there ('val/1.jpg') -> its row.

    Raises:
        UserError: the file is not of that form, or holds a label that FairFace does not have, or a file of the other
            part.
    """
    tables = {
        "age": AGE_GROUPS,
        "gender": {name: index for index, name in enumerate(labels.GENDERS)},
        "race": {name: index for index, name in enumerate(labels.FAIRFACE_RACES)},
        "service_test": SERVICE_TEST,
    }
    rows = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            lines = [(reader.line_num, cells) for cells in reader]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: save the table as CSV UTF-8, or get the original file") from error
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}: is a quote left open? Mend it, or get the original file"
        ) from error
    if lacking := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
        raise UserError(
            f"{path} is not a label file of FairFace: expected the columns {', '.join(COLUMNS)}, "
            f"lacking {', '.join(lacking)}; get the original file"
        )
    for line, cells in lines:
        for column, table in tables.items():
            if cells[column] not in table:
                raise UserError(
                    f"{path}, line {line}: {column} is {cells[column]!r}, expected one of "
                    f"{', '.join(table)}; get the original file"
                )
        if not (cells["file"] or "").startswith(f"{part}/"):
            raise UserError(
                f"{path}, line {line}: file is {cells['file']!r}, expected {part}/NAME.jpg: rows of "
                "train/ stand in fairface_label_train.csv, those of val/ in fairface_label_val.csv, with nothing "
                "before the folder; mend the row, or get the original file"
            )
        if cells["file"] in rows:
            raise UserError(f"{path}, line {line}: {cells['file']} is listed twice; keep one row")
        rows[cells["file"]] = Row(*(table[cells[column]] for column, table in tables.items()))
    return rows


def find_folders(manual_dir: Path, archive: str) -> tuple[Path, Path]:
    """Finds the label files and the images.

    Args:
        manual_dir: what the user named: the folder itself or its parent.
        archive: name of the folder that the images may have been unpacked to.

    Returns:
        Folder of the label files, folder of `train` and `val`.

    Raises:
        UserError: they are not there.
    """
    for root in (manual_dir, manual_dir / FOLDER):
        for images in (root / archive, root):
            if all((images / part).is_dir() and label_file(root, part).is_file() for part in PARTS):
                return root, images
    found = ", ".join(sorted(path.name for path in manual_dir.iterdir())[:5])
    raise UserError(
        f"no FairFace in {manual_dir}: expected fairface_label_train.csv, fairface_label_val.csv and the folders train "
        f"and val (or {archive} with them), found {found}; give the folder that holds them as manual_dir"
    )


def label_file(root: Path, part: str) -> Path:
    """Path of the label file of a part."""
    return root / f"fairface_label_{part}.csv"


def split_of(name: str, digest: str) -> str:
    """The split of an image: `val` is `test`; `train` is divided by nothing but the bytes of each file.

    Args:
        name: 'train/1.jpg' or 'val/1.jpg'.
        digest: SHA-256 of the file, hexadecimal.

    Returns:
        'train', 'validation' or 'test'.
    """
    if name.startswith("val/"):
        return "test"
    return "validation" if originals.fraction(digest) < VALIDATION_SHARE else "train"


class Builder(aligned.AlignableBuilder):
    """FairFace with age group, gender and race; the published validation set is `test`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "The published validation set is `test`; `validation` is a part of `train`."}
    BUILDER_CONFIGS: ClassVar = [
        FairFaceConfig(
            name="padding025",
            description="Crops with a margin of 0.25 of the face, 224x224: what models are trained on.",
            archive="fairface-img-margin025-trainval",
            side=224,
            landmarks=LANDMARKS,
        ),
        FairFaceConfig(
            name="padding125",
            description="Crops with a margin of 1.25 of the face, 448x448: to detect and align anew.",
            archive="fairface-img-margin125-trainval",
            side=448,
            # The face is as large as before in a square that is 3.5 instead of 1.5 faces wide, about the same centre.
            landmarks=[[round(0.5 + (share - 0.5) * 1.5 / 3.5, 4) for share in point] for point in LANDMARKS],
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get fairface_label_train.csv, fairface_label_val.csv and an archive of images "
        "(fairface-img-margin025-trainval.zip for padding025, fairface-img-margin125-trainval.zip for padding125) "
        "linked from https://github.com/joojs/fairface (CC BY 4.0), unpack the images beside the label files or into a "
        f"folder named as the archive, and give that folder, or its parent if it is called {FOLDER}, as manual_dir."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "age_group": tfds.features.ClassLabel(names=labels.FAIRFACE_AGES),
                    "gender": tfds.features.ClassLabel(names=labels.GENDERS),
                    "race": tfds.features.ClassLabel(names=labels.FAIRFACE_RACES),
                    "service_test": tf.bool,
                    "key": tfds.features.Text(),
                }
            ),
            homepage="https://github.com/joojs/fairface",
            metadata=tfds.core.MetadataDict(landmarks=self.builder_config.landmarks),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        root, folder = find_folders(originals.manual_folder(dl_manager), self.builder_config.archive)
        rows, files = {}, set()
        for part in PARTS:
            rows |= read_labels(label_file(root, part), part)
            there = originals.files_below(folder / part, deep=False)
            files |= {f"{part}/{path.name}" for path in there if path.suffix.lower() == ".jpg"}
        photos = [originals.Photo(name, folder / name, row[:3]) for name, row in rows.items() if name in files]
        self._check_size(photos, folder)
        images, left_out = originals.distinct(photos)
        left_out = {
            "row_without_a_file": [name for name in rows if name not in files],
            "file_without_a_row": sorted(files - rows.keys()),
            **left_out,
        }
        originals.log_left_out(self.info.full_name, len(images), left_out)
        self.info.metadata["left_out"] = left_out
        splits = {"train": {}, "validation": {}, "test": {}}
        for digest, photo in images.items():
            splits[split_of(photo.name, digest)][digest] = photo
        if empty := [split for split, photos in splits.items() if not photos]:
            lacking = tuple({"val/" if split == "test" else "train/" for split in empty})
            row, file = (
                next((name for name in left_out[reason] if name.startswith(lacking)), "none")
                for reason in ("row_without_a_file", "file_without_a_row")
            )
            raise UserError(
                f"too few photos in {folder}: expected some for each split, found {len(images)} that have a row and "
                f"can be decoded, none for {' and '.join(empty)} (the first row without a file: {row}, the first file "
                f"without a row: {file}); unpack all of FairFace again, or name the files as the rows do"
            )
        return self.aligned({split: self._generate_examples(photos, rows) for split, photos in splits.items()})

    def _check_size(self, photos, folder):
        """Nothing but the size tells the two paddings apart: one must not be prepared under the other's name."""
        for first in photos:  # that can be decoded
            with contextlib.suppress(OSError, tf.errors.InvalidArgumentError):
                side = tf.image.decode_jpeg(first.path.read_bytes()).shape[0]
                break
        else:
            return
        if side in {config.side for config in self.BUILDER_CONFIGS} - {self.builder_config.side}:
            raise UserError(
                f"{folder} does not hold the images of {self.builder_config.unaligned}: expected "
                f"{self.builder_config.side} pixels, {first.name} has {side}; unpack "
                f"{self.builder_config.archive}.zip, or build the other config"
            )

    def _generate_examples(self, images, rows):
        for digest, photo in images.items():
            yield (
                digest,
                {
                    "image": self.image_of(photo),
                    **rows[photo.name]._asdict(),
                    "key": photo.name,
                },
            )

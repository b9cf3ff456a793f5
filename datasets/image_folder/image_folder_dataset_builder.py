"""Any folder whose subfolders are classes: man/ and woman/, or as many as there are.

TFDS' own ImageFolder wants the split made. Here it is made: stratified, seeded, and with copies and near copies of
one photo kept on one side.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from tfface.data import aligned, near_copies, originals
from tfface.errors import UserError
from tfface.faces import ALIGNMENTS

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(eq=False, kw_only=True)
class ImageFolderConfig(aligned.AlignableConfig):
    """One folder. Its name is free; it keeps the data sets of different folders apart.

    Attributes:
        test: share of each class for `test`.
        validation: share of what is left of each class for `validation`.
        seed: another seed draws another split.
    """

    test: float = 0.2
    validation: float = 0.1
    seed: int = 0


def find_classes(folder: Path) -> tuple[dict[str, list[originals.Photo]], list[str]]:
    """Finds the class folders and their files.

    Args:
        folder: holds a folder for each class; or holds nothing but such a folder.

    Returns:
        Class -> its files at any depth, hidden ones aside, sorted; classes sorted by name. And the names of the
        files beside class folders, which are of no class.

    Raises:
        UserError: fewer than two classes, or one without a file; or parts of a set that is divided already.
    """
    top, classes, outside = originals.grouped(folder, "class")
    if len(classes) < 2:
        found = f"only {classes[0].name}" if classes else "no folder"
        raise UserError(
            f"no classes in {top}: expected a folder of images for each of two classes or more, found {found}; "
            "give the folder that holds the class folders as manual_dir"
        )
    files = {
        name: [
            originals.Photo(originals.readable(file.relative_to(top).as_posix()), file, name)
            for file in originals.files_below(path)
        ]
        for name, path in ((originals.readable(path.name), path) for path in classes)
    }
    if empty := [name for name, photos in files.items() if not photos]:
        raise UserError(f"class {' and '.join(empty)} in {top} has no image; fill its folder or remove it")
    return files, [file.relative_to(folder).as_posix() for file in outside]


def perceptual_hashes(photos: list[originals.Photo]) -> np.ndarray:
    """`(n, 2, 256)` bool: hashes of each photo and of its mirror image."""

    def both(path):
        image = originals.pixels(path)
        return [near_copies.perceptual_hash(view) for view in (image, image[:, ::-1])]

    return np.array(list(originals.of_each(photos, both, "Comparing photos")))


def divide(images: dict[str, originals.Photo], groups: np.ndarray, config: ImageFolderConfig) -> dict[str, str]:
    """Divides the images of each class, groups of near copies as one.

    The order in which groups are drawn depends on the bytes of the files and on the seed, not on names. A group that
    stands in several classes holds a wrong label (or a false likeness), so it goes to `train`.

    Args:
        images: SHA-256 -> photo, its labels a class.
        groups: `(len(images),)`, equal for near copies.
        config: shares and seed.

    Returns:
        SHA-256 -> 'train', 'validation' or 'test'.
    """
    members = defaultdict(list)
    for digest, group in zip(images, groups, strict=True):
        members[group].append(digest)
    room = {}
    for name, count in Counter(photo.labels for photo in images.values()).items():
        room["test", name] = max(1, round(config.test * count))
        room["validation", name] = max(1, round(config.validation * (count - room["test", name])))

    drawn = {}
    for digests in sorted(members.values(), key=lambda digests: _lot(min(digests), config.seed)):
        classes = {images[digest].labels for digest in digests}
        place = "train"
        if len(classes) == 1:
            name = classes.pop()
            place = next((split for split in ("test", "validation") if room[split, name] >= len(digests)), "train")
            if place != "train":
                room[place, name] -= len(digests)
        drawn |= dict.fromkeys(digests, place)
    return drawn


def _lot(digest, seed):
    return hashlib.sha256(f"{seed} {digest}".encode()).hexdigest()


class Builder(aligned.AlignableBuilder):
    """Images and the class folder that each was in."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Stratified split; copies and near copies on one side."}
    BUILDER_CONFIGS: ClassVar = [
        ImageFolderConfig(name="unnamed", description="Stands for any name: image_folder/NAME names a folder's data.")
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Give the folder that holds a folder of images for each class, or its parent if it is called as the config, as "
        "manual_dir."
    )

    def __init__(self, *, config=None, **options):
        """Takes any name as a config: the user's name for the folder."""
        if isinstance(config, str) and config not in self.builder_configs:
            if not re.fullmatch(r"\w[\w.-]*", config):
                raise UserError(f"a name has letters, digits, '_', '-' and '.', received {config!r}")
            if taken := re.search(rf"-({'|'.join(ALIGNMENTS)})(-|$)", config):
                raise UserError(
                    f"names with '{taken[0]}' are those of sets that --align {taken[1]} made of others: "
                    f"give the folder another one, received {config!r}"
                )
            config = ImageFolderConfig(name=config, description=f"The folder that was named {config}.")
        super().__init__(config=config, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(),  # its names are those of the folders, known when it is built
                    "key": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        folder = originals.manual_folder(dl_manager)
        config = self.builder_config
        if config.unaligned == "unnamed":
            raise UserError(
                "a data set of your own needs a name: tfface build image_folder/"
                f"{re.sub(r'[^a-zA-Z0-9_]', '_', folder.name)} --manual-dir {folder}"
            )
        if (folder / config.unaligned).is_dir() and originals.subfolders(folder / config.unaligned):
            folder /= config.unaligned
        classes, outside = find_classes(folder)
        images, left_out = originals.distinct(photo for photos in classes.values() for photo in photos)
        left_out["of_no_class"] = outside
        originals.log_left_out(self.info.full_name, len(images), left_out)
        photos = list(images.values())
        groups = near_copies.near_groups(perceptual_hashes(photos)) if photos else np.zeros(0, int)
        places = divide(images, groups, config)

        splits = {split: {} for split in SPLITS}
        for digest, photo in images.items():
            splits[places[digest]][digest] = photo
        counts = {split: Counter(photo.labels for photo in members.values()) for split, members in splits.items()}
        if lacking := [name for name in classes if not all(counts[split][name] for split in SPLITS)]:
            usable = ", ".join(f"{name} {sum(counts[split][name] for split in SPLITS)}" for name in lacking)
            raise UserError(
                f"too few different images in {folder}: expected some of each class in train, validation and test, "
                f"found {usable} that can be used ({len(left_out['undecodable'])} files cannot be decoded, "
                f"{sum(map(len, left_out['conflicting']))} stand in several classes); add images"
            )
        near = defaultdict(list)
        for photo, group in zip(photos, groups, strict=True):
            near[group].append(photo.name)
        near = [names for names in near.values() if len(names) > 1]
        self._report(counts, near)
        self.info.features["label"].names = list(classes)
        self.info.metadata.update(left_out=left_out, near_copies=near)
        if not config.align and (landmarks := originals.typical_landmarks(photos, config.seed)):
            self.info.metadata["landmarks"] = landmarks
        return self.aligned({split: self._generate_examples(members) for split, members in splits.items()})

    def _report(self, counts, near):
        """Prints the images of each class and split."""
        for split, count in counts.items():
            by_class = ", ".join(f"{name} {number:,}" for name, number in sorted(count.items()))
            tqdm.write(f"{self.info.full_name}: {split} {count.total():,} ({by_class})")
        several = [names for names in near if len({name.partition("/")[0] for name in names}) > 1]
        tqdm.write(
            f"{self.info.full_name}: {len(near)} groups of near copies ({sum(map(len, near))} images), each in one "
            f"split; {len(several)} of them in several classes, in train: "
            f"{'; '.join(' = '.join(names) for names in several) or 'none'}"
        )

    def _generate_examples(self, images):
        for digest, photo in images.items():
            yield digest, {"image": self.image_of(photo), "label": photo.labels, "key": photo.name}

"""BUPT-Balancedface: 1.3 million faces of 28,000 people, 7,000 of each of four races.

The builder draws from it the two disjoint sets of 48,000 images by which race classification was reported: set I, from
which weights are transferred, and set II, on which the network is trained and tested.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from tfface.data import aligned, originals
from tfface.errors import UserError

RACES = ("African", "Asian", "Caucasian", "Indian")
"""The folders of the original set; their order is the meaning of the integers."""

FOLDERS = ("race_per_7000", "images/race_per_7000", "BUPT-Balancedface/race_per_7000")
"""Where the race folders may be below what the user names."""

PER_RACE = {"set1_train": 11_400, "set1_validation": 600, "train": 9_500, "validation": 500, "test": 2_000}
"""Images of each race in each split. Set I has 12,000, set II 10,000 to train and 2,000 to test, as published; 5 % of
what is trained on is for choosing models, which the paper leaves open."""

SUFFIXES = (".jpg", ".jpeg", ".png")
"""Of photos, in any case."""

RESERVE = 0.01
"""So many more images than needed are drawn, in case that some cannot be used."""


@dataclasses.dataclass(eq=False, kw_only=True)
class BUPTConfig(aligned.AlignableConfig):
    """What is disjoint.

    Attributes:
        by_identity: no person stands in two splits; otherwise no image does.
        seed: another seed draws other images.
    """

    by_identity: bool
    seed: int = 0


def find_faces(manual_dir: Path) -> tuple[Path, dict[str, dict[str, list[str]]], list[str]]:
    """Finds the images.

    Args:
        manual_dir: what the user named: the folder of the race folders, or one above it.

    Returns:
        The folder of the race folders; race -> identity -> names of its photos, sorted; and the names of all other
        files: beside the folders of races or people, deeper than those, or no photos.

    Raises:
        UserError: a race is missing, or has no images in folders of identities.
    """
    root = next((manual_dir / name for name in FOLDERS if (manual_dir / name).is_dir()), manual_dir)
    if missing := [race for race in RACES if not (root / race).is_dir()]:
        found = ", ".join(sorted(path.name for path in root.iterdir())[:5])
        raise UserError(
            f"no BUPT-Balancedface in {root}: expected the folders {', '.join(RACES)}, lacking {', '.join(missing)}, "
            f"found {found}; give the folder race_per_7000 or one above it as manual_dir"
        )
    faces, others = {}, originals.files_below(root, deep=False)
    for race in tqdm(RACES, desc="Listing photos", unit=" races", leave=False):
        identities = sorted(path for path in (root / race).iterdir() if path.is_dir())
        others += originals.files_below(root / race, deep=False)
        files = defaultdict(list)
        for path in identities:
            for file in originals.files_below(path):
                if file.parent == path and file.suffix.lower() in SUFFIXES:
                    files[path.name].append(file.name)
                else:
                    others.append(file)
        faces[race] = dict(files)
        if not faces[race]:
            raise UserError(
                f"{root / race} has no images: expected a folder for each person with {', '.join(SUFFIXES)} files "
                "in it; unpack BUPT-Balancedface again"
            )
    return root, faces, [file.relative_to(root).as_posix() for file in others]


def divide(units: Mapping[str, int], seed: int) -> dict[str, str]:
    """Divides people, or single images, over the splits in the proportions of `PER_RACE`.

    In an order drawn by their names, each goes to the split that is furthest from its share.

    Args:
        units: name -> number of images.
        seed: another seed, another order.

    Returns:
        Name -> split.
    """
    filled = dict.fromkeys(PER_RACE, 0.0)
    places = {}
    for name in sorted(units, key=lambda name: _lot(name, seed)):
        places[name] = min(filled, key=filled.get)
        filled[places[name]] += units[name] / PER_RACE[places[name]]
    return places


def _lot(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


def candidates(identities: Mapping[str, list[str]], by_identity: bool, seed: int) -> dict[str, list[str]]:
    """The images of a race that each split may draw, in the order of drawing.

    Args:
        identities: identity -> names of its images.
        by_identity: whether whole people are divided.
        seed: of the order.

    Returns:
        Split -> 'identity/file', a few more than the split needs where there are so many.
    """
    images = [f"{identity}/{name}" for identity, names in identities.items() for name in names]
    if by_identity:
        people = divide({identity: len(names) for identity, names in identities.items()}, seed)
        places = {image: people[image.partition("/")[0]] for image in images}
    else:
        places = divide(dict.fromkeys(images, 1), seed)
    drawn = {split: [] for split in PER_RACE}
    for image in sorted(images, key=lambda image: _lot(image, seed)):
        drawn[places[image]].append(image)
    return {split: images[: math.ceil(PER_RACE[split] * (1 + RESERVE))] for split, images in drawn.items()}


def draw(images: Mapping[str, originals.Photo], splits: Mapping[str, str]) -> dict[str, dict[str, originals.Photo]]:
    """As many images of each race for each split as the paper took, or as the scarcest race has.

    Args:
        images: SHA-256 -> photo, in the order of drawing.
        splits: name of a photo -> its split.

    Returns:
        Split -> SHA-256 -> photo.
    """
    pools = defaultdict(dict)
    for digest, photo in images.items():
        pools[splits[photo.name], photo.labels][digest] = photo
    drawn = {}
    for split, wanted in PER_RACE.items():
        count = min(wanted, *(len(pools[split, race]) for race in RACES))
        drawn[split] = {
            digest: pools[split, race][digest] for race in RACES for digest in list(pools[split, race])[:count]
        }
    return drawn


class Builder(aligned.AlignableBuilder):
    """Two disjoint sets drawn from BUPT-Balancedface, the same number of images of each race."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Sets I and II, disjoint by image or by identity."}
    BUILDER_CONFIGS: ClassVar = [
        BUPTConfig(
            name="by_image",
            description="No image in two splits, as published; people do stand in several, which flatters accuracy.",
            by_identity=False,
        ),
        BUPTConfig(name="by_identity", description="No person in two splits.", by_identity=True),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Ask for BUPT-Balancedface at http://www.whdeng.cn/RFW/Trainingdataste.html (non-commercial research, under an "
        "agreement), unpack it and give the folder race_per_7000, which holds African, Asian, Caucasian and Indian, or "
        "one above it as manual_dir."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "race": tfds.features.ClassLabel(names=RACES),
                    "identity": tfds.features.Text(),
                    "key": tfds.features.Text(),
                }
            ),
            homepage="http://www.whdeng.cn/RFW/Trainingdataste.html",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        root, faces, others = find_faces(originals.manual_folder(dl_manager))
        config = self.builder_config
        photos = defaultdict(list)
        for race, identities in faces.items():
            for split, names in candidates(identities, config.by_identity, config.seed).items():
                photos[split] += [
                    originals.Photo(originals.readable(f"{race}/{name}"), root / race / name, race) for name in names
                ]
        order = ("test", "validation", "train", "set1_validation", "set1_train")  # of two copies the first is kept
        images, left_out = originals.distinct(photo for split in order for photo in photos[split])
        splits = draw(images, {photo.name: split for split, some in photos.items() for photo in some})
        left_out["other_files"] = others
        originals.log_left_out(self.info.full_name, sum(map(len, splits.values())), left_out)
        if empty := [split for split, members in splits.items() if not members]:
            raise UserError(
                f"too few photos in {root}: expected some of each race for each split "
                f"({', '.join(f'{count:,} {split}' for split, count in PER_RACE.items())}), found none for "
                f"{', '.join(empty)}; {_counts(faces)}; unpack all of BUPT-Balancedface again"
            )
        if any(len(splits[split]) < count * len(RACES) for split, count in PER_RACE.items()):
            logging.warning(
                "%s: smaller than published, in its proportions: %s for each race, where %s were taken; %s",
                self.info.full_name,
                ", ".join(f"{len(members) // len(RACES):,} {split}" for split, members in splits.items()),
                ", ".join(f"{count:,}" for count in PER_RACE.values()),
                _counts(faces),
            )
        self.info.metadata["left_out"] = left_out
        if not config.align and (landmarks := originals.typical_landmarks(list(images.values()), config.seed)):
            self.info.metadata["landmarks"] = landmarks
        return self.aligned({split: self._generate_examples(members) for split, members in splits.items()})

    def _generate_examples(self, images: Mapping[str, originals.Photo]) -> Iterable:
        for digest, photo in images.items():
            yield (
                digest,
                {
                    "image": self.image_of(photo),
                    "race": photo.labels,
                    "identity": originals.readable(photo.path.parent.name),
                    "key": photo.name,
                },
            )


def _counts(faces) -> str:
    images = Counter({race: sum(map(len, identities.values())) for race, identities in faces.items()})
    return "the folder holds " + ", ".join(
        f"{race} {images[race]:,} images of {len(identities):,} people" for race, identities in faces.items()
    )

"""Photos of many people, told apart by who is shown: what the builders of recognition sets share.

A builder derives from `IdentityBuilder` and says where its files lie; see datasets/celeba_identities. What is read is
a list of lines `FILE IDENTITY`, or a folder for each identity.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from tfface.data import aligned, originals
from tfface.errors import UserError


@dataclasses.dataclass(eq=False, kw_only=True)
class IdentityConfig(aligned.AlignableConfig):
    """Images of people, or pairs of them.

    Attributes:
        validation: share of the people whose images are for validation, in (0, 1).
        seed: another seed draws other people and other pairs.
        folds: folds of pairs; no person stands in two.
        pairs: pairs of one person in a fold, and as many of two; fewer where there are not so many.
    """

    validation: float = 0.1
    seed: int = 0
    folds: int = 10
    pairs: int = 300


CONFIGS = (
    IdentityConfig(name="images", description="Each image with its identity; nobody stands in both splits."),
    IdentityConfig(name="pairs", description="Names of two images of validation, same person or not, fold."),
)
"""What the builders offer; `images` is the default."""


def read_list(path: Path) -> dict[str, str]:
    """Reads a list of images.

    Args:
        path: text, a line `FILE IDENTITY` for each image, such as identity_CelebA.txt. A first line whose FILE has no
            suffix is a header; blank lines are skipped.

    Returns:
        File -> identity, in the order of the list.

    Raises:
        UserError: a line of another form, or a file that is listed under two identities.
    """
    identities = {}
    lines = [(number, line) for number, line in enumerate(_lines(path, "FILE IDENTITY"), start=1) if line.strip()]
    for index, (number, line) in enumerate(lines):
        name, *identity = line.rsplit(maxsplit=1)
        if index == 0 and not Path(name).suffix:
            continue
        if not identity:
            raise UserError(f"{path}, line {number}: expected 'FILE IDENTITY', received {line!r}; mend the line")
        if identities.setdefault(name, identity[0]) != identity[0]:
            raise UserError(
                f"{path}, line {number}: {name} is {identity[0]} here and {identities[name]} further up; a file shows "
                "one person, remove one of the lines"
            )
    return identities


def find_listed(path: Path, images: Path) -> tuple[list[originals.Photo], dict[str, list[str]], list[str]]:
    """The images that are both in a list and on disk.

    Args:
        path: the list, see `read_list`.
        images: the folder that its files are relative to.

    Returns:
        The images in the order of their names, their labels the identities; {"unlisted": the files that are in no
        line}; the names without a file.

    Raises:
        UserError: see `read_list`; or none of the files is there.
    """
    identities = read_list(path)
    there = {
        file.relative_to(images).as_posix(): file for file in originals.files_below(images) if file.suffix != ".txt"
    }
    photos = [originals.Photo(name, there[name], identities[name]) for name in sorted(there.keys() & identities)]
    if not photos:
        raise UserError(
            f"none of the {len(identities)} files in {path} is in {images}: expected "
            f"{', '.join(list(identities)[:3])}, found {', '.join(sorted(there)[:3]) or 'nothing'}; "
            "unpack the images again"
        )
    return photos, {"unlisted": sorted(there.keys() - identities)}, sorted(identities.keys() - there)


def find_folders(folder: Path) -> tuple[list[originals.Photo], dict[str, list[str]]]:
    """The images of a folder that holds a folder for each identity, or nothing but such a folder.

    Returns:
        The images; {"of_nobody": the files beside the folders, lists (`*.txt`) aside}.

    Raises:
        UserError: no folders, or nothing in them; or parts of a set that is divided already.
    """
    top, people, outside = originals.grouped(folder, "person")
    photos = [
        originals.Photo(originals.readable(file.relative_to(top).as_posix()), file, originals.readable(path.name))
        for path in people
        for file in originals.files_below(path)
    ]
    if not photos:
        raise UserError(
            f"no identities in {top}: expected a folder of images for each person, found "
            f"{', '.join(sorted(path.name for path in top.iterdir())[:5]) or 'nothing'}; give the folder that holds "
            "them as manual_dir"
        )
    return photos, {"of_nobody": [file.name for file in outside if file.suffix != ".txt"]}


def _lines(path: Path, form: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no UTF-8 text: expected lines '{form}'; save it anew") from error


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def excluded(folder: Path, identities: Iterable[str]) -> list[str]:
    """Identities that are to be left out, as they also stand in a set that is tested on.

    Args:
        folder: may hold `exclude.txt`, a person at the start of each line (LFW's own list of people, `NAME COUNT`, is
            of that form, with a tab, a space or a comma between), and `names.txt`, lines `IDENTITY NAME` (or
            `IDENTITY, NAME`), where identities are not called as the people.
        identities: those of the set.

    Returns:
        Those which `exclude.txt` names by identity or by name, sorted. Case does not matter, "_" is a space. Where
        it names people and none of them is there, the log warns.

    Raises:
        UserError: a list that is no UTF-8 text.
    """

    def plain(name):
        return name.strip().replace(" ", "_").casefold()

    names = {}
    if (folder / "names.txt").is_file():
        for line in _lines(folder / "names.txt", "IDENTITY NAME"):
            identity, name = [*re.split(r"\s*,\s*|\s+", line.strip(), maxsplit=1), ""][:2]
            names[identity] = plain(name)
    if not (folder / "exclude.txt").is_file():
        return []
    called = {name: {plain(name), names.get(name, plain(name))} for name in set(identities)}
    known = set().union(*called.values())
    lines = [line.strip() for line in _lines(folder / "exclude.txt", "PERSON") if line.strip()]
    # A line that is somebody's name as it stands, such as 'person 12', ends in no count.
    people = {
        plain(line) if plain(line) in known else plain(re.sub(r"\t[^\t]*$|[\s,]+\d+$", "", line)) for line in lines
    }
    gone = sorted(name for name, own in called.items() if own & people)
    if people and not gone:
        logging.warning(
            "%d names in %s match nobody, and nobody is left out: expected identities, such as %s%s, found %s",
            len(people), folder / "exclude.txt", min(called, default="none"),
            "" if names else ", or names.txt with lines 'IDENTITY NAME' beside it", lines[0],
        )  # fmt: skip
    return gone


def divide(people: Mapping[str, int], share: float, seed: int) -> list[str]:
    """Draws the people for validation, in an order that depends on their names and the seed alone.

    Args:
        people: identity -> number of images. One with a single image makes no pair and stays for training.
        share: of all people, in (0, 1); at least two.
        seed: another seed draws others.

    Returns:
        The identities that are drawn, sorted.
    """
    able = sorted((name for name, count in people.items() if count > 1), key=lambda name: _lot(name, seed))
    return sorted(able[: max(2, round(share * len(people)))])


def _lot(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def draw_pairs(people: Mapping[str, list[str]], config: IdentityConfig) -> Iterator[dict]:
    """Pairs in the form of LFW's View 2: in each fold those of one person, then as many of two.

    People are drawn evenly, whatever the number of their images.

    Args:
        people: identity -> names of its images, two or more.
        config: folds, pairs and seed.

    Yields:
        {"first_key", "second_key", "same", "fold"}, no pair twice.
    """
    drawn = sorted(people, key=lambda name: _lot(name, config.seed))
    folds = min(config.folds, len(drawn) // 2)
    for fold in range(folds):
        members = [sorted(people[name]) for name in drawn[fold::folds]]
        counts = [len(names) for names in members]
        same = sum(count * (count - 1) // 2 for count in counts)
        different = sum(first * second for first, second in itertools.combinations(counts, 2))
        rng = np.random.default_rng([config.seed, fold])
        for kind in (True, False):
            pairs = set()
            while len(pairs) < min(config.pairs, same, different):
                one, two = (rng.integers(len(members)),) * 2 if kind else rng.choice(len(members), 2, replace=False)
                pair = members[one][rng.integers(counts[one])], members[two][rng.integers(counts[two])]
                if pair[0] != pair[1] and pair not in pairs and pair[::-1] not in pairs:
                    pairs.add(pair)
                    yield {"first_key": pair[0], "second_key": pair[1], "same": kind, "fold": fold}


class IdentityBuilder(aligned.AlignableBuilder, skip_registration=True):
    """Images of many people.

    Attributes:
        LISTS: where the list that says who is on which image may lie, below manual_dir. Without it, folders say it.
        IMAGES: where the images of the list may lie, below manual_dir; in manual_dir itself where none of these is.
        HOMEPAGE: of the set.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Nobody stands in both splits."}
    BUILDER_CONFIGS: ClassVar = list(CONFIGS)
    LISTS: tuple[str, ...] = ("list.txt",)
    IMAGES: tuple[str, ...] = ()
    HOMEPAGE = ""

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            # The names are those of the set, known when it is built: first those of train.
            "images": {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "identity": tfds.features.ClassLabel(),
                "key": text,
            },
            "pairs": {"first_key": text, "second_key": text, "same": tf.bool, "fold": tf.int32},
        }
        pairs = self.builder_config.unaligned == "pairs"
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features["pairs" if pairs else "images"]),
            supervised_keys=None if pairs else ("image", "identity"),
            disable_shuffling=pairs,
            homepage=self.HOMEPAGE,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        config = self.builder_config
        if config.align and config.unaligned == "pairs":
            raise UserError(f"{self.name}/pairs names images and holds none: align {self.name}/images")
        folder = originals.manual_folder(dl_manager)
        photos, more_left_out, absent = self._find(folder)
        left = set(excluded(folder, (photo.labels for photo in photos)))
        images, left_out = originals.distinct(photo for photo in photos if photo.labels not in left)
        left_out |= more_left_out | {"excluded_identities": sorted(left)}
        originals.log_left_out(self.info.full_name, len(images), left_out)

        people = defaultdict(dict)
        for digest, photo in images.items():
            people[photo.labels][digest] = photo
        counts = {name: len(some) for name, some in sorted(people.items())}
        single = [name for name, count in counts.items() if count == 1]
        validation = divide(counts, config.validation, config.seed)
        train = [name for name in counts if name not in set(validation)]
        if len(validation) < 2 or not train:
            raise UserError(
                f"too few people in {folder}: expected two with two images or more each for validation and another for "
                f"train, found {len(counts) - len(single)}, and {len(single)} with one; {self._read_as(folder)}; add "
                "images"
            )
        for split, names in {"train": train, "validation": validation}.items():
            number = sum(counts[name] for name in names)
            tqdm.write(f"{self.info.full_name}: {split} {number:,} images of {len(names):,} people")
        if left:
            tqdm.write(f"{self.info.full_name}: {len(left):,} people left out, whom exclude.txt names")
        if absent:
            named = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            tqdm.write(f"{self.info.full_name}: {len(absent):,} images of the list are not there: {named}")
        if single:
            logging.warning(
                "%s: %d people with one image, in train and in no pair: %s%s",
                self.info.full_name, len(single), ", ".join(single[:5]), ", ..." if len(single) > 5 else "",
            )  # fmt: skip
        self.info.metadata.update(left_out=left_out, absent=len(absent), one_image=single, train_identities=len(train))
        if config.unaligned == "pairs":
            names = {name: [photo.name for photo in people[name].values()] for name in validation}
            return {"validation": enumerate(draw_pairs(names, config))}
        self.info.features["identity"].names = [*train, *validation]
        splits = {"train": train, "validation": validation}
        return self.aligned({split: self._generate_examples(people, names) for split, names in splits.items()})

    def _find(self, folder: Path) -> tuple[list[originals.Photo], dict[str, list[str]], list[str]]:
        """The images, what is left out of them, and those that the list names in vain."""
        if not (path := _first(folder, self.LISTS)):
            return *find_folders(folder), []
        return find_listed(path, _first(folder, self.IMAGES) or folder)

    def _read_as(self, folder: Path) -> str:
        path = _first(folder, self.LISTS)
        return f"{path.name} says who is who" if path else f"without {self.LISTS[0]} each folder is a person"

    def _generate_examples(self, people: Mapping[str, Mapping[str, originals.Photo]], names: Iterable[str]) -> Iterator:
        for name in names:
            for digest, photo in people[name].items():
                yield digest, {"image": self.image_of(photo), "identity": name, "key": photo.name}

"""LFW's View 2: the 6,000 pairs of faces by which verification is reported.

TFDS' own `lfw` has images without the pairs, from a host that is gone. Here are the pairs, in file order.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds
from tqdm import tqdm

from tfface.data import aligned
from tfface.errors import UserError

from . import occlusion

FOLDERS = ("lfw-deepfunneled", "lfw")
"""Folder of the images: deep-funneled, preferred where both are there, or as they were published first."""


class Pair(NamedTuple):
    """A line of pairs.txt, images by their file names."""

    first: str
    second: str
    same: bool
    fold: int


def read_pairs(path: Path) -> list[Pair]:
    """Reads LFW's list of pairs.

    Its first line gives the number of folds and the number of pairs of each kind in a fold. A fold lists the
    pairs of one person (name and two image numbers), then those of two persons (name, number, name, number).

    Args:
        path: `pairs.txt`.

    Returns:
        The pairs in file order; folds count from 0.

    Raises:
        UserError: the file is not of that form, or does not hold what its first line says.
    """
    pairs, seen = [], set()
    try:
        header, *lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
        folds, of_a_kind = (int(field) for field in header.split())
        if folds < 1 or of_a_kind < 1:
            raise ValueError(f"line 1 is {header!r}")
        for index, line in enumerate(lines):
            match line.split():
                case [name, first, second]:
                    other = name
                case [name, first, other, second]:
                    pass
                case _:
                    raise ValueError(f"line {index + 2} is {line!r}")
            fold, position = divmod(index, 2 * of_a_kind)
            if (name == other) != (position < of_a_kind):
                raise ValueError(f"line {index + 2} is {line!r} where the other kind of pair belongs")
            pairs.append(Pair(_file_name(name, first), _file_name(other, second), name == other, fold))
            if (both := frozenset(pairs[-1][:2])) in seen:
                raise ValueError(f"line {index + 2}, {line!r}, for the second time")
            seen.add(both)
        if len(pairs) != 2 * folds * of_a_kind:
            raise ValueError(f"{len(pairs)} pairs")
    except ValueError as error:
        raise UserError(
            f"{path} is not LFW's list of pairs: expected a line 'FOLDS PAIRS' (10 300), then for each fold so "
            f"many lines 'NAME N M' and so many 'NAME N NAME M', found {error}; get pairs.txt of View 2"
        ) from error
    return pairs


def _file_name(name: str, number: str) -> str:
    return f"{name}_{int(number):04}.jpg"


def find_images(folder: Path, pairs: list[Pair]) -> dict[str, Path]:
    """Finds the images of the pairs and makes sure that every one can be decoded.

    A pair that is skipped would change the figure, so a missing image is an error.

    Args:
        folder: holds a folder for each person, named as the person.
        pairs: what `read_pairs` returned.

    Returns:
        File name -> path, sorted by name.

    Raises:
        UserError: an image is missing or broken.
    """
    names = sorted({name for pair in pairs for name in (pair.first, pair.second)})
    images = {name: folder / name.rpartition("_")[0] / name for name in names}
    if missing := [path for path in images.values() if not path.is_file()]:
        raise UserError(
            f"{len(missing)} of the {len(names)} images in pairs.txt are missing, the first: {missing[0]}; "
            "unpack the images of LFW again"
        )
    for path in tqdm(images.values(), desc="Reading photos", unit=" files", leave=False):
        try:
            tf.io.decode_jpeg(path.read_bytes(), channels=3)
        except tf.errors.InvalidArgumentError as error:
            raise UserError(f"{path} is not a whole JPEG image; unpack the images of LFW again") from error
    return images


class Builder(aligned.AlignableBuilder):
    """The pairs of LFW, or each of their images once, or those that come second, occluded."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "View 2 in file order."}
    BUILDER_CONFIGS: ClassVar = [
        aligned.AlignableConfig(name="pairs", description="Two images, same person or not, fold; in file order."),
        aligned.AlignableConfig(name="images", description="Each image of the pairs once, sorted by name."),
        *occlusion.CONFIGS,
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get the deep-funneled images and pairs.txt of Labeled Faces in the Wild (figshare article 5976018), "
        "unpack them and give the folder that holds pairs.txt and lfw-deepfunneled as manual_dir."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        text = tfds.features.Text()
        features = {
            "pairs": {
                "first": image,
                "second": image,
                "same": tf.bool,
                "fold": tf.int32,
                "first_key": text,
                "second_key": text,
            },
            "images": {"image": image, "identity": text, "key": text},
        }
        occluded = features["images"] | {"box": tfds.features.Tensor(shape=(4,), dtype=tf.float32)}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features.get(self.builder_config.unaligned, occluded)),
            disable_shuffling=True,
            homepage="https://vis-www.cs.umass.edu/lfw/",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        config = self.builder_config
        if config.align and (config.unaligned == "pairs" or config.no_face == "skip"):
            raise UserError(
                f"LFW is aligned image by image and without a gap, or its figures would change; received the config "
                f"{config.name} with no_face {config.no_face}: build lfw_pairs/images, or an occluded one, with "
                "--no-face centre"
            )
        try:
            root = Path(dl_manager.manual_dir)
        except AssertionError as error:  # TFDS' own check that it exists and is not empty, in several lines
            raise UserError(" ".join(str(error).split())) from error
        if not (root / "pairs.txt").is_file() and (root / "lfw" / "pairs.txt").is_file():
            root /= "lfw"
        folder = next((root / name for name in FOLDERS if (root / name).is_dir()), None)
        if folder is None or not (root / "pairs.txt").is_file():
            found = ", ".join(sorted(path.name for path in root.iterdir())[:5])
            raise UserError(
                f"no LFW in {root}: expected pairs.txt and a folder {' or '.join(FOLDERS)}, found {found}; "
                "give the folder that holds them as manual_dir"
            )
        self.info.metadata["folder"] = folder.name
        pairs = read_pairs(root / "pairs.txt")
        images = find_images(folder, pairs)
        if config.unaligned == "images":
            return self.aligned({"test": self._generate_images(images)})
        if isinstance(config, occlusion.OccludedConfig):
            second = {name: images[name] for name in sorted({pair.second for pair in pairs})}
            return {"test": self._generate_occluded(second)}
        return {"test": self._generate_examples(pairs, images)}

    def _generate_examples(self, pairs, images):
        for index, pair in enumerate(pairs):
            yield (
                index,
                {
                    "first": images[pair.first],
                    "second": images[pair.second],
                    "same": pair.same,
                    "fold": pair.fold,
                    "first_key": pair.first,
                    "second_key": pair.second,
                },
            )

    def _generate_images(self, images):
        for index, (name, path) in enumerate(images.items()):
            yield index, {"image": path, "identity": path.parent.name, "key": name}

    def _generate_occluded(self, images):
        config, without = self.builder_config, []
        yield from enumerate(occlusion.occluded(images, config, without))
        if without and config.no_face == "error":
            raise UserError(f"no face was found in {len(without)} images: {', '.join(without)}; give --no-face centre")
        self.info.metadata["cut_at_centre" if config.align else "typical_face"] = without

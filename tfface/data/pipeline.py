"""Prepared data sets become batches: read, decode, view, balance, shuffle, batch. All randomness is seeded by epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tfface.errors import UserError


class View(NamedTuple):
    """How an image is looked at.

    Attributes:
        zoom: share of each side that is kept, about the centre, in (0, 1].
        mirror: whether left and right are exchanged.
    """

    zoom: float = 1.0
    mirror: bool = False


def open_dataset(data: str, data_dir: str | Path | None = None) -> tfds.core.DatasetBuilder:
    """Open a prepared data set, by `name` or `name/config` (no builder code is needed).

    Raises:
        UserError: it is not prepared in `data_dir`.
    """
    try:
        builder = tfds.builder(data, data_dir=data_dir, try_gcs=False)
        prepared = bool(builder.info.splits)
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError):
        prepared = False
    if not prepared:
        folder = data_dir or tfds.core.constants.DATA_DIR
        raise UserError(
            f"The data set {data} is not prepared in {folder}. Build it first: "
            f"`tfface build {data} --manual-dir FOLDER_OF_ITS_FILES`, or name its place with --data-dir."
        )
    return builder


def fingerprint(builder: tfds.core.DatasetBuilder, split: str) -> str:
    """Hexadecimal digest of what a split holds: its version, its files and their sizes."""
    info = builder.info.splits[split]
    parts = [builder.info.full_name, split, *map(str, info.shard_lengths)]
    for path in info.filepaths:
        parts += [Path(path).name, str(Path(path).stat().st_size)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def examples(builder: tfds.core.DatasetBuilder, split: str, images: tuple[str, ...] = ("image",)) -> tf.data.Dataset:
    """Examples of a split in their fixed order, images still encoded (`image` is a string of JPEG or PNG bytes)."""
    if split not in builder.info.splits:
        raise UserError(
            f"{builder.info.full_name} has no split {split}. Expected one of: {', '.join(builder.info.splits)}."
        )
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders={name: tfds.decode.SkipDecoding() for name in images},
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    return dataset.with_options(_options())


def label_arrays(
    builder: tfds.core.DatasetBuilder, split: str, images: tuple[str, ...] = ("image",)
) -> dict[str, np.ndarray]:
    """Every feature of a split but its images, as arrays in the split's fixed order."""
    rows = examples(builder, split, images).map(lambda row: {k: v for k, v in row.items() if k not in images})
    batches = list(rows.batch(1024).as_numpy_iterator())
    if not batches:
        raise UserError(f"The split {split} of {builder.info.full_name} is empty.")
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return {k: v.astype(str) if v.dtype == object else v for k, v in arrays.items()}


def class_names(builder: tfds.core.DatasetBuilder) -> dict[str, tuple[str, ...]]:
    """Class names of every feature that has them, in the order of its integers."""
    features = builder.info.features.items()
    return {name: tuple(f.names) for name, f in features if isinstance(f, tfds.features.ClassLabel)}


def decode(data, size: tuple[int, int], zoom: float = 1.0) -> tf.Tensor:
    """Decode JPEG or PNG bytes and scale them to `size`.

    Args:
        data: scalar string tensor.
        size: `(height, width)`, pixels.
        zoom: share of each side that is kept, about the centre, in (0, 1].

    Returns:
        `(height, width, 3)` float32 RGB in [0, 255]; antialiased bilinear scaling.
    """
    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return resize(image, size, zoom)


def resize(image, size: tuple[int, int], zoom: float = 1.0) -> tf.Tensor:
    """Scale one image or a batch, `(..., height, width, 3)`, as `decode` does."""
    if zoom < 1.0:
        image = tf.image.central_crop(image, zoom)
    return tf.image.resize(tf.cast(image, tf.float32), size, antialias=True)


def repeats(labels: Mapping[str, np.ndarray], oversample: Mapping[str, Sequence[int]]) -> np.ndarray:
    """How often each example is shown in an epoch: the product of its classes' factors.

    Args:
        labels: arrays of integer labels, each `(n,)`.
        oversample: label -> a factor for each of its classes, integers >= 1.

    Returns:
        `(n,)` int64.
    """
    counts = np.ones(len(next(iter(labels.values()))), "int64")
    for name, factors in oversample.items():
        counts *= np.asarray(factors, "int64")[labels[name]]
    return counts


def epoch_order(counts: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Indices of the examples of one epoch, each as often as `counts` says, in an order fixed by seed and epoch."""
    order = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng((seed, epoch)).shuffle(order)
    return order


def in_groups(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one shorter: of a long stream only so many are held at a time."""
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _options() -> tf.data.Options:
    options = tf.data.Options()
    # The autotuner was seen to stall an epoch's end by up to two seconds; fixed parallelism costs nothing here.
    options.autotune.enabled = False
    options.deterministic = True
    return options

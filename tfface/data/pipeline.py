"""Prepared data sets become batches: read, decode, view, balance, shuffle, batch. All randomness is seeded by epoch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError
from tensorflow_datasets.core.dataset_info import DatasetInfoFileError

from tfface import files
from tfface.errors import UserError
from tfface.faces import ALIGNMENTS

PARALLEL = max(2, os.cpu_count() or 2)
"""Images decoded at once: one a core."""

LABELS_KEPT = 8
"""Splits whose labels a process keeps: a command asks for those of its few splits dozens of times."""

DAMAGED = (json.JSONDecodeError, ParseError, DatasetInfoFileError)
"""What TFDS raises where the files that describe a prepared data set are not whole."""

_labels: dict[tuple, dict[str, np.ndarray]] = {}


class View(NamedTuple):
    """How an image is looked at.

    Attributes:
        zoom: share of each side that is kept, about the centre, in (0, 1].
        mirror: whether left and right are exchanged.
    """

    zoom: float = 1.0
    mirror: bool = False


class Combined(ABC):
    """Prepared data sets seen as another one, which the functions of this module read as they read a TFDS builder.

    Attributes:
        parts: the builders that it is made of.
        info: what is read of a TFDS builder's info: `full_name`, `features`, `splits` and `metadata`.
        classes: class names of every label that has them.
        signature: what tells it from the same parts combined otherwise, in its fingerprint.
    """

    parts: tuple
    classes: dict[str, tuple[str, ...]]
    signature: str = ""

    @abstractmethod
    def examples(self, split: str, images: tuple[str, ...]) -> tf.data.Dataset:
        """Examples of a split in a fixed order, as the function `examples` gives those of one data set."""

    @abstractmethod
    def count(self, split: str) -> int:
        """How many examples a split or a part of one, "test[:1000]", holds."""


class JoinedInfo(NamedTuple):
    """What is read of a TFDS builder's info, for several data sets as one.

    Attributes:
        full_name: their full names, joined by "+".
        features: every label that one of them has, and the type of its values.
        splits: those that all of them have; each with `num_examples`.
        metadata: where their landmarks lie and how wide faces are, if all agree; the rest each keeps for itself.
    """

    full_name: str
    features: dict[str, tf.DType]
    splits: dict
    metadata: dict


class JoinedSplit(NamedTuple):
    """The size of a split of joined data sets."""

    num_examples: int


class Joined(Combined):
    """Several prepared data sets as one, their examples evenly mixed in a fixed order.

    A label that one of them lacks is -1 there, or "". Where two have a label of one name with other classes (race:
    seven in FairFace, five in UTKFace), or text or numbers in place of classes, that of the later is called
    `LABEL_DATASET` (race_utkface). Of several data sets of one name, such as two folders of `image_folder`, the second
    counts as DATASET_2, the third as DATASET_3.

    Args:
        parts: the builders.

    Attributes:
        prefixes: for each of them what its keys begin with, "DATASET/".
        renamed: for each of them label -> what it is called here.
    """

    def __init__(self, parts: Sequence[Builder]):
        self.parts = tuple(parts)
        shared = [name for name in parts[0].info.splits if all(name in part.info.splits for part in parts)]
        sizes = {name: sum(part.info.splits[name].num_examples for part in parts) for name in shared}
        splits = {name: JoinedSplit(size) for name, size in sizes.items()}
        shapes = [
            {name: value for name, value in (part.info.metadata or {}).items() if name in ("landmarks", "stretch")}
            for part in parts
        ]
        metadata = shapes[0] if shapes.count(shapes[0]) == len(parts) else {}
        kinds: dict[str, tuple] = {}  # label -> its type and its class names
        self.renamed: list[dict[str, str]] = []
        called: list[str] = []
        for part in self.parts:
            before = sum(part.name == other.name for other in self.parts[: len(called)])
            called.append(f"{part.name}_{before + 1}" if before else part.name)
            names, classes = {}, class_names(part)
            for label, feature in part.info.features.items():
                dtype = feature.tf_dtype if hasattr(feature, "tf_dtype") else None
                if dtype is not None and feature.shape == () and (dtype.is_integer or dtype == tf.string):
                    kind = tf.int64 if dtype.is_integer else dtype, classes.get(label)
                    free = (label, f"{label}_{part.name}", f"{label}_{called[-1]}")
                    names[label] = next(name for name in free if kinds.get(name, kind) == kind)
                    kinds[names[label]] = kind
            self.renamed.append(names)
        self.classes = {label: names for label, (_, names) in kinds.items() if names is not None}
        self.prefixes = tuple(f"{name}/" for name in called)
        full_name = "+".join(part.info.full_name for part in parts)
        self.info = JoinedInfo(full_name, {label: dtype for label, (dtype, _) in kinds.items()}, splits, metadata)

    def order(self, split: str) -> np.ndarray:
        """Which of the data sets each example of a split is from, `(n,)` int64; those of each keep their order."""
        sizes = [num_examples(part, split) for part in self.parts]
        # The i-th of n examples stands at (i + 1/2) / n: each data set is spread evenly over the whole.
        places = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
        return np.repeat(np.arange(len(sizes)), sizes)[np.argsort(places, kind="stable")].astype("int64")

    def count(self, split: str) -> int:
        return sum(num_examples(part, split) for part in self.parts)

    def examples(self, split: str, images: tuple[str, ...]) -> tf.data.Dataset:
        """Examples of a split, as `examples` gives those of one data set; keys begin with `prefixes`."""
        labels = self.info.features

        def unified(prefix, renamed, row):
            row = {renamed.get(name, name): value for name, value in row.items()}
            row["key"] = tf.strings.join([prefix, row["key"]])
            absent = {tf.int64: tf.constant(-1, tf.int64), tf.string: tf.constant("")}
            known = {
                name: tf.cast(row[name], dtype) if name in row else absent[dtype] for name, dtype in labels.items()
            }
            return {**{name: row[name] for name in images}, **known}

        parts = [
            examples(part, split, images).map(lambda row, prefix=prefix, renamed=renamed: unified(prefix, renamed, row))
            for part, prefix, renamed in zip(self.parts, self.prefixes, self.renamed, strict=True)
        ]
        order = self.order(split)
        choices = tf.data.Dataset.from_tensor_slices(order)
        mixed = tf.data.Dataset.choose_from_datasets(parts, choices, stop_on_empty_dataset=False)
        # Where the number is not known Keras warns, after a whole pass, that the data ran out.
        return mixed.apply(tf.data.experimental.assert_cardinality(len(order))).with_options(options())


Builder = tfds.core.DatasetBuilder | Combined
"""What a prepared data set is opened as."""


def open_dataset(data: str, data_dir: str | Path | None = None) -> Builder:
    """Open a prepared data set, by `name` or `name/config` (no builder code is needed).

    Several of them joined by "+" are opened as one, see `Joined`; "@" and a name in `labels.GROUPINGS` behind one
    groups its classes anew, see `tfface.data.regrouped`.

    Raises:
        UserError: it is not prepared in `data_dir`, or damaged there, or as files that tf.data cannot read.
    """
    if "+" in data:
        return Joined([open_dataset(part, data_dir) for part in data.split("+")])
    if "@" in data:
        from tfface.data.regrouped import Regrouped  # it reads through this module

        data, _, grouping = data.partition("@")
        return Regrouped(open_dataset(data, data_dir), grouping)
    try:
        builder = tfds.builder(data, data_dir=data_dir, try_gcs=False)
        prepared = bool(builder.info.splits)
        _ = builder.info.metadata  # TFDS reads it when it is asked for
    except DAMAGED as error:
        raise damaged(data, data_dir, error) from error
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError):
        prepared = False
    if not prepared:
        name = data.partition("/")[0]
        others = sorted(path.parts[-3] for path in data_folder(data_dir).glob(f"{name}/*/*/dataset_info.json"))
        there = f" There are: {', '.join(f'{name}/{config}' for config in others)}." if others else ""
        if name not in (own := files.builders_in(files.BUILDERS)):
            there += f" tfface has no builder of it, but of: {', '.join(own)}."
        raise UserError(
            f"The data set {data} is not prepared in {data_folder(data_dir)}.{there} Build it first: "
            f"`{build_command(data)}`, or name its place with --data-dir. `tfface doctor` lists what is prepared."
        )
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"The data set {data} is prepared in {builder.data_dir} as array_record, which tf.data cannot read. Remove "
            f"that folder and build it without that file format: `{build_command(data)}`."
        )
    return builder


def data_folder(data_dir: str | Path | None) -> Path:
    """Where data sets are prepared: TFDS's own folder if None."""
    return Path(data_dir or tfds.core.constants.DATA_DIR)


def damaged(data: str, data_dir: str | Path | None, error: Exception) -> UserError:
    """What to say of one of `DAMAGED` that TFDS raised of a data set prepared in `data_dir`."""
    return UserError(
        f"The data set {data} in {data_folder(data_dir)} is damaged, perhaps copied in part: "
        f"{' '.join(str(error).split())} Copy it again, or remove its folder and build it again: "
        f"`{build_command(data)}`."
    )


def build_command(data: str) -> str:
    """The command that prepares a data set, of which an aligned one bears the alignment in its config's name.

    One of a builder of your own wants its folder, too.

    Args:
        data: `name` or `name/config`, such as "utkface/margin"; see `tfface.data.aligned.aligned_config`.
    """
    name, _, config = data.partition("/")
    aligns = "|".join(ALIGNMENTS)
    found = re.fullmatch(rf"(?:(.+)-)?({aligns})(?:-(\d+x\d+))?(?:-(.+?))??(-centre)?", config)
    base, align, size, detector, centre = found.groups() if found else (config, None, None, None, None)
    words = ["tfface build", f"{name}/{base}" if base else name]
    words += [f"--align {align}"] * bool(align) + [f"--size {size}"] * bool(size)
    if detector:  # in a config's name the colon of "dlib:68-point" is an underscore
        detector = re.sub(r"^(dlib|yolo)_", r"\1:", detector)
    words += [f"--detector {detector}"] * bool(detector) + ["--no-face centre"] * bool(centre)
    words += ["--builders FOLDER"] * (name not in files.builders_in(files.BUILDERS))
    return " ".join(words + ["--manual-dir FOLDER"] * (name != "synthetic_faces"))


def with_extra(builder: Builder, extra: str, data_dir: str | Path | None = None) -> Builder:
    """A prepared data set joined with further ones, named as in `open_dataset`; as it is if `extra` is empty.

    Raises:
        UserError: one of them is not prepared in `data_dir`.
    """
    if not extra:
        return builder
    more = open_dataset(extra, data_dir)
    return Joined([part for one in (builder, more) for part in (one.parts if isinstance(one, Joined) else (one,))])


def num_examples(builder: Builder, split: str) -> int:
    """How many examples a split or a part of one, "test[:1000]", holds."""
    if isinstance(builder, Combined):
        return builder.count(split)
    return builder.info.splits[split].num_examples


def fingerprint(builder: Builder, split: str) -> str:
    """Hexadecimal digest of what a split holds: its version, its files and their sizes."""
    if isinstance(builder, Combined):
        signature = builder.signature + "".join(fingerprint(part, split) for part in builder.parts)
        return hashlib.sha256(signature.encode()).hexdigest()[:16]
    info = builder.info.splits[split]
    parts = [builder.info.full_name, split, *map(str, info.shard_lengths)]
    for path in _files(builder, split):
        parts += [path.name, str(path.stat().st_size)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def split_names(split: str) -> set[str]:
    """The splits of which "test", a part of one, "test[:1000]", or several together, "train+test", are made."""
    return {part.partition("[")[0] for part in split.split("+")}


def overlap(builder: Builder, split: str, other: str) -> bool:
    """Whether two of what `examples` takes, "train[:50%]" and "train+test", have an example in common."""
    if isinstance(builder, Combined):
        return any(overlap(part, split, other) for part in builder.parts)
    one, two = (builder.info.splits[name].file_instructions for name in (split, other))
    return any(
        a.filename == b.filename and max(a.skip, b.skip) < min(a.skip + a.take, b.skip + b.take)
        for a in one
        for b in two
    )


def _check_split(builder: Builder, split: str) -> None:
    whole = builder.info.splits
    if not whole.keys() >= split_names(split) or (isinstance(builder, Combined) and "+" in split):
        raise UserError(f"{builder.info.full_name} has no split {split}. Expected one of: {', '.join(whole)}.")
    if isinstance(builder, Combined):
        return
    try:
        count = whole[split].num_examples
    except ValueError as error:
        raise UserError(
            f"{split} is no part of a split of {builder.info.full_name}. Expected one such as 'train[:50%]'."
        ) from error
    if count < 1:
        raise UserError(f"The split {split} of {builder.info.full_name} is empty.")


def examples(builder: Builder, split: str, images: tuple[str, ...] = ("image",)) -> tf.data.Dataset:
    """Examples of a split in their fixed order, images still encoded (`image` is a string of JPEG or PNG bytes).

    A part of a split is named as in TFDS, "train[:50%]": the order is by a hash of the keys, so parts are random.
    Several splits are joined by "+", but for data sets that are joined themselves.
    """
    _check_split(builder, split)
    if isinstance(builder, Combined):
        return builder.examples(split, images)
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders={name: tfds.decode.SkipDecoding() for name in images},
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    return dataset.with_options(options())


def label_arrays(builder: Builder, split: str, images: tuple[str, ...] = ("image",)) -> dict[str, np.ndarray]:
    """Every feature of a split but its images, as arrays in the split's fixed order that cannot be written to.

    A process reads them again only if the files have changed, or after those of many other splits.
    """
    return {name: array for name, array in _read_once(builder, split, images).items() if name not in images}


def image_digest(builder: Builder, split: str) -> str:
    """Hexadecimal digest of the encoded images of a split, of which `fingerprint` sees how long all of them are."""
    return hashlib.sha256(_read_once(builder, split, ("image",))["image"].tobytes()).hexdigest()[:16]


def _read_once(builder: Builder, split: str, images: tuple[str, ...]) -> dict[str, np.ndarray]:
    known = (split, images, builder.info.full_name, _states(builder, split))
    arrays = _labels.get(known)
    if arrays is None:
        arrays = _read(builder, split, images)
        for array in arrays.values():
            array.flags.writeable = False
        for oldest in list(_labels)[: 1 - LABELS_KEPT]:
            _labels.pop(oldest, None)
        _labels[known] = arrays
    return arrays


def _states(builder: Builder, split: str) -> tuple:
    """Path, size and time of change of each file of a split."""
    _check_split(builder, split)
    if isinstance(builder, Combined):
        return tuple(_states(part, split) for part in builder.parts)
    stats = {str(path): path.stat() for path in _files(builder, split)}
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items())


def _files(builder: tfds.core.DatasetBuilder, split: str) -> list[Path]:
    paths = [Path(path) for path in builder.info.splits[split].filepaths]
    if not all(path.exists() for path in paths):
        check_shards(builder, split)  # which says what is missing
    return paths


def _read(builder: Builder, split: str, images: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Every feature as an array; in place of each image a number that another image has not."""
    rows = examples(builder, split, images).map(
        lambda row: row | {name: tf.strings.to_hash_bucket_fast(row[name], 1 << 62) for name in images if name in row}
    )
    try:
        batches = list(rows.batch(1024).as_numpy_iterator())
    except tf.errors.OpError:
        check_shards(builder, split)
        raise
    if not batches:
        raise UserError(f"The split {split} of {builder.info.full_name} is empty.")
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    for name, values in arrays.items():
        if values.dtype == object:
            arrays[name] = np.char.decode(values.astype("S"), "utf-8", "backslashreplace")
    if "key" in arrays:  # by which embeddings and predictions are found again
        keys, counts = np.unique(arrays["key"], return_counts=True)
        if len(keys) < len(arrays["key"]):
            raise UserError(
                f"Each image wants a key of its own. Received: {builder.info.full_name}, whose split {split} has "
                f"{keys[counts.argmax()]} {counts.max()} times. Name each otherwise in its builder, such as by its "
                "path, and build it again."
            )
    return arrays


def label_digest(builder: Builder, split: str) -> str:
    """Hexadecimal digest of the labels of a split, which `fingerprint` does not see: another class is as long."""
    digest = hashlib.sha256()
    for name, values in sorted(label_arrays(builder, split).items()):
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


def check_shards(builder: Builder, split: str) -> None:
    """Read the files of a split from end to end and count their records.

    TensorFlow's own error names no file, and its reader takes a file that was cut off for a shorter one. `label_arrays`
    reads a whole split before anything is trained or measured, so what is damaged is said there, by this.

    Raises:
        UserError: a file is missing, cut off, or fails its checksums.
    """
    if isinstance(builder, Combined):
        for part in builder.parts:
            check_shards(part, split)
        return
    infos = [builder.info.splits[name] for name in sorted(split_names(split))]
    for path, expected in [row for info in infos for row in zip(info.filepaths, info.shard_lengths, strict=True)]:
        try:
            count = tf.data.TFRecordDataset(str(path)).reduce(np.int64(0), lambda n, _: n + 1).numpy()
            reason = "" if count == expected else f"it holds {count} of its {expected} records"
        except tf.errors.NotFoundError:
            reason = "it is missing"
        except tf.errors.DataLossError as error:
            reason = "corrupted record at byte " + re.search(r"record at (\d+)", str(error))[1]
        if reason:
            raise UserError(
                f"The file {path} of the data set {builder.info.full_name} is damaged: {reason}. Remove "
                f"{Path(path).parent} and build it again: `{build_command(builder.info.full_name.rpartition('/')[0])}`."
            )


def class_names(builder: Builder) -> dict[str, tuple[str, ...]]:
    """Class names of every feature that has them, in the order of its integers."""
    if isinstance(builder, Combined):
        return dict(builder.classes)  # whose caller may change it
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
    image = tf.convert_to_tensor(image)
    for side in size:
        image = _turned(_scale_rows(image, side))
    return tf.reshape(image, (*size, 3)) if image.shape.rank == 3 else image


LARGE = 512 * 512
"""Pixels of an image that more than one thread may scale."""


def _scale_rows(images, height: int) -> tf.Tensor:
    """Scale `(..., rows, columns, 3)` to `height` rows; twice, turned in between, it is tf.image.resize to the bit.

    TensorFlow's kernel adds up vectors of channels. Over columns those are three numbers long, which takes most of the
    time; a whole row, seen as the channels of one pixel, is scaled many times as fast. Those pixels lie below each
    other in a large image, since the kernel gives each thread some rows. A pipeline scales small ones side by side, and
    the threads would spend more time waiting for each other than scaling: there they lie in one row.
    """
    shape = tf.shape(images)
    rows, columns = shape[-3], shape[-2]
    alone = images.shape.rank == 3
    in_one_row = tf.constant(alone) & (rows * columns <= LARGE)

    def placed(other, along):
        return tf.where(in_one_row, tf.stack([other, along]), tf.stack([along, other]))

    count = [1] if alone else shape[:1]
    scaled = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(images, tf.concat([count, placed(1, rows), [columns * 3]], 0)),
        size=placed(1, height),
        scale=placed(1.0, height / tf.cast(rows, tf.float32)),
        translation=[0.0, 0.0],
        kernel_type="triangle",
        antialias=True,
    )
    return tf.reshape(scaled, tf.concat([shape[:-3], [height, columns, 3]], 0))


def _turned(images) -> tf.Tensor:
    """Rows for columns, `(..., rows, columns, 3)` to `(..., columns, rows, 3)`."""
    if images.shape.rank == 4:
        return tf.transpose(images, (0, 2, 1, 3))
    # Blocks as long as a row put the first pixels of all rows into one, and so on: what tf.transpose does, in the
    # thread that calls it (see above).
    rows, columns = tf.unstack(tf.shape(images))[:2]
    blocks = tf.raw_ops.SpaceToBatchND(
        input=tf.reshape(images, tf.stack([1, rows * columns, 3])), block_shape=[columns], paddings=[[0, 0]]
    )
    return tf.reshape(blocks, tf.stack([columns, rows, 3]))


def repeats(labels: Mapping[str, np.ndarray], oversample: Mapping[str, Sequence[int]]) -> np.ndarray:
    """How often each example is shown in an epoch: the product of its classes' factors.

    Args:
        labels: arrays of integer labels, each `(n,)`.
        oversample: label -> a factor for each of its classes, integers >= 1. A label of an example that is not known,
            -1, counts 1.

    Returns:
        `(n,)` int64.

    Raises:
        UserError: another label, another factor, or fewer of them than classes.
    """
    counts = np.ones(len(next(iter(labels.values()))), "int64")
    for name, factors in oversample.items():
        if name not in labels or labels[name].dtype.kind != "i":
            raise UserError(f"oversample names a label with classes. Received: {name}; there are: {', '.join(labels)}.")
        whole = isinstance(factors, Sequence) and all(isinstance(f, int | float) and f == int(f) >= 1 for f in factors)
        if not whole:
            raise UserError(f"The factors of oversample must be integers, at least 1. Received for {name}: {factors}.")
        if len(factors) <= labels[name].max():
            raise UserError(
                f"oversample wants a factor for each class of {name}, of which there are {labels[name].max() + 1} or "
                f"more. Received: {factors}."
            )
        counts *= np.array([*factors, 1], "int64")[labels[name]]  # -1 is the last of them
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


def options() -> tf.data.Options:
    """Of every pipeline here: examples in a fixed order, and no autotuner."""
    options = tf.data.Options()
    # The autotuner was seen to stall an epoch's end by up to two seconds; fixed parallelism costs nothing here.
    options.autotune.enabled = False
    options.deterministic = True
    return options

"""Outputs of a frozen network, computed once for each image and view, kept on disk, resumed where they stopped."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from tfface import files
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.recipes.recipe import Recipe
from tfface.training import batches
from tfface.training.run import split_at

PART = 512  # images a part file: what is lost at most when the work is killed


def model_fingerprint(model: keras.Model) -> str:
    """Hexadecimal digest of a model's graph and weights."""
    # The layers alone: the same network under another name, or with other layers frozen, gives the same outputs.
    layers = [
        {**layer, "config": {key: value for key, value in layer["config"].items() if key != "trainable"}}
        for layer in model.get_config()["layers"]
    ]
    digest = hashlib.sha256(json.dumps(layers, sort_keys=True, default=str).encode())
    for variable in sorted(model.weights, key=lambda variable: variable.path):
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
    return digest.hexdigest()[:16]


def cache_digest(builder: pipeline.Builder, split: str, model: keras.Model, *how: object) -> str:
    """Hexadecimal digest that stands in the name of a cached file: of a split, a model, and how it looks at images."""
    data = pipeline.fingerprint(builder, split), pipeline.image_digest(builder, split)
    identity = [*data, model_fingerprint(model), *map(str, how)]
    return hashlib.sha256(" ".join(identity).encode()).hexdigest()[:16]


@contextlib.contextmanager
def bfloat16_convolutions(on: bool):
    """Let TensorFlow compute the graphs that are traced inside in bfloat16 where the processor can; off again after.

    Args:
        on: False leaves everything as it is; so does another Keras backend.
    """
    if not on or keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": False})


class JoinedArrays:
    """Rows of several arrays as those of one, in a given order, read where they lie.

    Args:
        arrays: each `(n of its own, ...)`, alike but for n.
        order: `(n,)` which array each row is from; those of each array keep their order.
    """

    def __init__(self, arrays: Sequence[np.ndarray], order: np.ndarray):
        self.arrays, self.order = tuple(arrays), order
        self.shape, self.dtype = (len(order), *arrays[0].shape[1:]), arrays[0].dtype
        self.rows = np.empty(len(order), "int64")
        for index, array in enumerate(self.arrays):
            self.rows[order == index] = np.arange(len(array))

    def __len__(self):
        return len(self.order)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        order, rows = self.order[places], self.rows[places]
        chosen = np.empty((*order.shape, *self.shape[1:]), self.dtype)
        for index, array in enumerate(self.arrays):
            chosen[order == index] = array[rows[order == index]]
        return chosen

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[np.arange(len(self))].astype(dtype or self.dtype, copy=False)


def cached_features(
    model: keras.Model,
    builder: pipeline.Builder,
    split: str,
    size: tuple[int, int],
    views: Sequence[pipeline.View],
    batch_size: int = 32,
    bfloat16: bool = False,
    progress: bool = True,
) -> list[np.ndarray] | list[JoinedArrays]:
    """Outputs of `model` for every image of a split, from the cache or computed and put there.

    Args:
        model: the frozen network, `(batch, height, width, 3)` in [0, 255] -> one tensor.
        builder: a prepared data set (`pipeline.open_dataset`).
        split: name of the split.
        size: `(height, width)` that the model takes, pixels.
        views: how each image is looked at.
        batch_size: images a forward pass.
        bfloat16: compute convolutions in bfloat16 where the processor can (TensorFlow on CPUs with AMX: 2.5 times
            as fast; outputs agree to about 3e-4 in cosine). Kept apart in the cache.
        progress: draw a progress bar.

    Returns:
        An array for each view, memory-mapped, `(images, *output shape)` float16, in the split's fixed order. Of joined
        data sets each has its own, and what is returned reads from them.
    """
    if isinstance(builder, pipeline.Joined):
        of_parts = [
            cached_features(model, part, split, size, views, batch_size, bfloat16, progress) for part in builder.parts
        ]
        return [JoinedArrays(arrays, builder.order(split)) for arrays in zip(*of_parts, strict=True)]
    key = {
        "data": pipeline.fingerprint(builder, split),
        "images": pipeline.image_digest(builder, split),
        "model": model_fingerprint(model),
        "size": list(size),
        "bfloat16": bfloat16,
    }
    count = pipeline.num_examples(builder, split)
    name = f"{builder.info.full_name.replace('/', '-')}-{split}"
    result = []
    for view in views:
        digest = hashlib.sha256(json.dumps({**key, "view": list(view)}).encode()).hexdigest()[:16]
        target = files.home() / "features" / f"{name}-{digest}.npy"
        if not target.exists():
            parts = target.with_suffix(".parts")
            with files.held(parts):
                if not target.exists():  # another training may have computed it meanwhile
                    _compute(model, builder, split, size, view, batch_size, bfloat16, count, target, progress)
                shutil.rmtree(parts, ignore_errors=True)
        result.append(load_cached(target, mmap_mode="r"))
    return result


def load_cached(file: Path, **options) -> np.ndarray | dict[str, np.ndarray]:
    """What `np.save` or `np.savez` put into the cache; `options` are those of `np.load`.

    Raises:
        UserError: the file is damaged.
    """
    try:
        loaded = np.load(file, **options)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"The cached file {file} is damaged ({error}). Remove it, and run again.") from error


def _compute(model, builder: pipeline.Builder, split, size, view, batch_size, bfloat16, count, target: Path, progress):
    parts = target.with_suffix(".parts")

    def prepare(row):
        return pipeline.decode(row["image"], size, view.zoom)

    done = 0
    while (parts / f"{done:06d}.npy").exists():
        done += 1
    images = pipeline.examples(builder, split).skip(done * PART).map(prepare, num_parallel_calls=2)
    groups = iter(images.batch(batch_size).prefetch(2).as_numpy_iterator())
    bar = tqdm(
        total=count,
        initial=min(done * PART, count),
        unit="image",
        desc=f"features of {split}, zoom {view.zoom:g}{', mirrored' if view.mirror else ''}",
        disable=not progress,
    )

    def outputs():
        for batch in groups:
            if view.mirror:
                batch = batch[:, :, ::-1]
            valid = len(batch)
            if valid < batch_size:  # one shape, one compiled graph
                batch = np.concatenate([batch, np.repeat(batch[-1:], batch_size - valid, axis=0)])
            yield from np.asarray(model.predict_on_batch(batch)[:valid], "float16")
            bar.update(valid)

    stream = outputs()
    with bfloat16_convolutions(bfloat16), bar:
        for part in itertools.count(done):
            rows = list(itertools.islice(stream, PART))
            if not rows:
                break
            with files.written_aside(parts / f"{part:06d}.npy") as aside:
                np.save(aside, np.stack(rows))
    arrays = [np.load(parts / f"{index:06d}.npy") for index in range(part)]  # not what a killed run left aside
    total = sum(map(len, arrays))
    if total != count:
        raise RuntimeError(f"{target.name}: {count} images were expected, {total} were computed; remove {parts}")
    with files.written_aside(target) as aside:
        np.save(aside, np.concatenate(arrays))


def outputs_of(
    recipe: Recipe,
    model: keras.Model,
    builder: pipeline.Builder,
    split: str,
    bfloat16: bool = False,
    progress: bool = True,
    change: Callable | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Outputs of a model on a split, the mean over the recipe's test views: name -> `(n, width)`.

    Where features are cached, those that the recipe's tasks name, unless `names` does; else every output. Images
    that `change` changes (see `batches.evaluation_images`) go through the whole network: nothing is cached.
    """
    if recipe.train_from and change is None:
        names = names or [task.name for task in recipe.tasks()]
        lower, upper = split_at(model, recipe.train_from, names)
        features = cached_features(
            lower, builder, split, recipe.image_size, recipe.test_views, bfloat16=bfloat16, progress=progress
        )
        results = [upper.predict(np.asarray(array, "float32"), batch_size=256, verbose=0) for array in features]
    else:
        results = []
        for view in recipe.test_views:
            images = batches.evaluation_images(builder, split, recipe, view, change=change)
            words = f"outputs for {split}{', mirrored' if view.mirror else ''}"
            # Keras' own bar would stand among what is printed.
            with tqdm(total=int(images.cardinality()), unit="batch", desc=words, disable=not progress) as bar:
                shown = keras.callbacks.LambdaCallback(on_predict_batch_end=lambda _, logs, bar=bar: bar.update())
                results.append(model.predict(images, verbose=0, callbacks=[shown]))
    return {name: np.mean([result[name] for result in results], axis=0) for name in results[0]}

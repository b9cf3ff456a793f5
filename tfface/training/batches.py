"""Training and validation batches of a recipe, from pixels or from cached features. Epoch by epoch the order, the views
and the noise depend on the seed and the epoch alone, so that a resumed run sees what an unbroken one would."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfface.data import augment, pipeline
from tfface.recipes.recipe import Recipe
from tfface.tasks import Task

SHUFFLE_BUFFER = 4096  # encoded images, about 40 MB


def encode(tasks: Sequence[Task], labels) -> dict:
    """Targets of every task from a mapping of integer labels, in NumPy or in a tf.data graph."""
    if isinstance(next(iter(labels.values())), np.ndarray):
        return {task.name: task.targets[labels[task.label]] for task in tasks}
    return {task.name: tf.gather(task.targets, labels[task.label]) for task in tasks}


def steps_of(labels: dict[str, np.ndarray], recipe: Recipe) -> tuple[int, int]:
    """Examples a step and steps an epoch: the remainder of an epoch's (oversampled) order is dropped."""
    total = int(pipeline.repeats(labels, recipe.oversample).sum())
    size = min(recipe.batch_size, total)
    return size, total // size


def feature_batches(
    features: Sequence[np.ndarray], labels: dict[str, np.ndarray], recipe: Recipe, first_epoch: int
) -> tf.data.Dataset:
    """Training batches from cached features, from `first_epoch` on.

    Args:
        features: for each view an array `(n, ...)`, as `cached_features` gives them.
        labels: integer labels, each `(n,)`.
        recipe: batch size, oversampling, seed and epochs.
        first_epoch: the epoch to begin with, from 0.

    Returns:
        Batches `(inputs float32, targets)`.
    """
    tasks = recipe.tasks()
    counts = pipeline.repeats(labels, recipe.oversample)
    size, steps = steps_of(labels, recipe)
    targets = encode(tasks, labels)

    def batches():
        for epoch in range(first_epoch, recipe.run_epochs):
            order = pipeline.epoch_order(counts, recipe.seed, epoch)
            views = np.random.default_rng((recipe.seed, epoch, 1)).integers(len(features), size=len(order))
            for step in range(steps):
                chosen = order[step * size : (step + 1) * size]
                view = views[step * size : (step + 1) * size]
                inputs = np.empty((size, *features[0].shape[1:]), "float32")
                for index, array in enumerate(features):
                    inputs[view == index] = array[chosen[view == index]]
                yield inputs, {name: table[chosen] for name, table in targets.items()}

    signature = (
        tf.TensorSpec((size, *features[0].shape[1:]), tf.float32),
        {task.name: tf.TensorSpec((size, task.width), tf.float32) for task in tasks},
    )
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(4)


def image_batches(builder, split: str, recipe: Recipe, first_epoch: int) -> tf.data.Dataset:
    """Training batches from pixels, from `first_epoch` on.

    Args:
        builder: a prepared data set.
        split: its split to train on.
        recipe: views, noise, batch size, oversampling, seed and epochs.
        first_epoch: the epoch to begin with, from 0.

    Returns:
        Batches `(images float32 in [0, 255], targets)`.
    """
    tasks = recipe.tasks()
    size, steps = steps_of(pipeline.label_arrays(builder, split), recipe)
    factors = {name: tf.constant(values, tf.int64) for name, values in recipe.oversample.items()}
    rows = pipeline.examples(builder, split)

    def repeated(row):
        count = tf.constant(1, tf.int64)
        for name, values in factors.items():
            count *= tf.gather(values, row[name])
        return tf.data.Dataset.from_tensors(row).repeat(count)

    def prepare(epoch, index, row):
        seed = tf.stack([epoch * steps * size + index, tf.constant(recipe.seed, tf.int64)])
        image = tf.cast(tf.io.decode_image(row["image"], channels=3, expand_animations=False), tf.float32)
        image.set_shape((None, None, 3))
        image = augment.draw_view(image, recipe.views, seed)
        if recipe.random_crop < 1:
            image = augment.crop_at_random(image, recipe.random_crop, seed + tf.constant([0, 1 << 33], tf.int64))
        image = pipeline.resize(image, recipe.image_size)
        if recipe.noise:
            image = augment.add_noise(image, recipe.noise, seed + tf.constant([0, 1 << 32], tf.int64))
        return image, encode(tasks, row)

    def one_epoch(epoch):
        shuffled = rows.flat_map(repeated).shuffle(
            SHUFFLE_BUFFER, seed=recipe.seed * 100_003 + epoch, reshuffle_each_iteration=False
        )
        examples = shuffled.enumerate().map(lambda i, row: prepare(epoch, i, row), num_parallel_calls=4)
        return examples.batch(size, drop_remainder=True).take(steps)

    # One pipeline after the other, rather than a flat_map over epochs: `shuffle` takes a tensor as its seed only where
    # TensorFlow's global seed is not 0.
    epochs = map(one_epoch, range(first_epoch, recipe.run_epochs))
    return functools.reduce(tf.data.Dataset.concatenate, epochs).prefetch(2)


def evaluation_images(builder, split: str, recipe: Recipe, view: pipeline.View, batch_size: int = 64):
    """Batches of the images of a split in their fixed order, seen in one view: `(images float32, targets)`."""
    tasks = recipe.tasks()

    def prepare(row):
        image = pipeline.decode(row["image"], recipe.image_size, view.zoom)
        return (image[:, ::-1] if view.mirror else image), encode(tasks, row)

    rows = pipeline.examples(builder, split)
    return rows.map(prepare, num_parallel_calls=4).batch(batch_size).prefetch(2)


def in_order(inputs: np.ndarray, targets: dict[str, np.ndarray], batch_size: int = 256) -> tf.data.Dataset:
    """Batches of arrays in their order."""
    return tf.data.Dataset.from_tensor_slices((inputs, targets)).batch(batch_size)

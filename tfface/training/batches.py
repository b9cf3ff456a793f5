"""Training and validation batches of a recipe, from pixels or from cached features. Epoch by epoch the order, the views
and the noise depend on the seed and the epoch alone, so that a resumed run sees what an unbroken one would."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import tensorflow as tf

from tfface.data import augment, pipeline
from tfface.errors import UserError
from tfface.recipes.recipe import Recipe
from tfface.tasks import Task
from tfface.training.distribute import ONE, Devices

SHUFFLE_BUFFER = 4096  # encoded images, about 40 MB
PIXELS = {"random_crop": 1.0, "occluded": 0.0, "mixup": 0.0}
"""Field of a recipe that changes pixels -> the value at which it changes none."""
NOTHING: Mapping[str, np.ndarray] = MappingProxyType({})


def encode(tasks: Sequence[Task], labels, taught: Mapping[str, np.ndarray] = NOTHING) -> dict:
    """Targets of every task from a mapping of integer labels, in NumPy or in a tf.data graph.

    A label that is not in a task's table (-1 where joined data sets lack it, somebody new among identities) gets the
    targets of class 0: `weights` takes them out.

    Args:
        tasks: what is learnt.
        labels: label -> integers; "example", the place in the split, where there is a teacher.
        taught: task -> a teacher's word on every example, `(examples, width)`, which is the target in place of a label.
    """
    if isinstance(next(iter(labels.values())), np.ndarray):
        return {task.name: table[index] for task, table, index, _ in _looked_up(tasks, labels, taught, np.where)}
    return {
        task.name: tf.cast(tf.gather(table, index), tf.float32)
        for task, table, index, _ in _looked_up(tasks, labels, taught, tf.where)
    }


def weights(tasks: Sequence[Task], labels, taught: Mapping[str, np.ndarray] = NOTHING) -> dict:
    """For each task 1.0 where its target is known, 0.0 where it is not; arguments as those of `encode`."""
    if isinstance(next(iter(labels.values())), np.ndarray):
        return {task.name: known.astype("float32") for task, *_, known in _looked_up(tasks, labels, taught, np.where)}
    return {task.name: tf.cast(known, tf.float32) for task, *_, known in _looked_up(tasks, labels, taught, tf.where)}


def _looked_up(tasks, labels, taught, where):
    """For each task the table of its targets, the rows of it that are looked up, and which of them are known."""
    for task in tasks:
        table = taught.get(task.name, task.targets)
        index = labels["example" if task.name in taught else task.label]
        known = (index >= 0) & (index < len(table))
        yield task, table, where(known, index, 0), known


def partly_labelled(
    labels: Mapping[str, np.ndarray], tasks: Sequence[Task], taught: Mapping[str, np.ndarray] = NOTHING
) -> bool:
    """Whether some targets are not known; arguments as those of `encode`. What is drawn, as a pattern is, is known."""
    labelled = [task for task in tasks if task.name not in taught and task.label in labels]
    return any(not known.all() for *_, known in _looked_up(labelled, labels, taught, np.where))


def require_labels(recipe: Recipe, builder: pipeline.Builder, verb: str) -> None:
    """Say that a data set lacks a label of a recipe's attributes, or has an age that is no number of years.

    Args:
        recipe: the recipe, adapted to the data set.
        builder: a prepared data set.
        verb: what the recipe does with it, for the message.

    Raises:
        UserError: it does, or its images have no names.
    """
    held, classes = builder.info.features, pipeline.class_names(builder)
    if "key" not in held:
        raise UserError(
            f"{builder.info.full_name} has no feature key, the name of each image. Give one in its builder, and build "
            "it again."
        )
    for task in recipe.tasks():
        if task.is_attribute and task.label not in held:
            raise UserError(
                f"The recipe {recipe.name} {verb} {task.label}, which {builder.info.full_name} does not hold. Name "
                "another data set with --data."
            )
        if task.is_age:
            dtype = getattr(held[task.label], "tf_dtype", held[task.label])
            if task.label in classes or not dtype.is_integer:  # the number of a class would be taken for years
                names = ", ".join(classes.get(task.label, ())) or dtype.name
                raise UserError(
                    f"The recipe {recipe.name} {verb} age in whole years. Received: {builder.info.full_name}, whose "
                    f"{task.label} is {names}. Give years as integers in its builder, and groups of ages another name, "
                    "such as age_group."
                )


def check_labels(recipe: Recipe, builder: pipeline.Builder) -> None:
    """Say before any work that a data set has not the labels that a recipe learns.

    Args:
        recipe: the recipe, adapted to the data set.
        builder: a prepared data set.

    Raises:
        UserError: a label is absent, or its classes have other names, or another order, than the network's outputs; or
            people are named by texts.
    """
    require_labels(recipe, builder, "learns")
    classes, held = pipeline.class_names(builder), builder.info.features
    for task in recipe.tasks():
        if task.label == "identity":
            feature = dict(held.items()).get("identity")
            dtype = getattr(feature, "tf_dtype", feature)
            if dtype is None or not dtype.is_integer:
                raise UserError(
                    f"The recipe {recipe.name} learns who is who, as classes or integers. Received: "
                    f"{builder.info.full_name}, whose identity is {dtype.name if dtype else 'not there'}. Name a data "
                    "set of people with --data, such as casia_webface/images, or a variant that learns from a teacher."
                )
        names = classes.get(task.label, ())
        if len(names) == len(task.classes) and not same_names(names, task.classes):
            raise UserError(
                f"{builder.info.full_name} has the classes of {task.label} in another order or by other names. "
                f"Expected: {', '.join(task.classes)}. Received: {', '.join(names)}. Give them so in its builder."
            )


def same_names(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether classes have the same names in the same order; small and capital letters do not matter."""
    return [name.casefold() for name in names] == [name.casefold() for name in others]


def _labelled(tasks: Sequence[Task], row: dict) -> dict:
    """What of a row `_examples` reads."""
    wanted = {task.label for task in tasks} | {"share", "example"}
    return {name: value for name, value in row.items() if name in wanted}


def _examples(tasks: Sequence[Task], images, rows, taught, partial: bool):
    """What `fit` takes: images, targets and, where a label may be unknown, weights.

    Of a whole batch: its labels are looked up at once; one by one they cost a twentieth of decoding the images.
    """
    targets = encode(tasks, rows, taught)
    if not partial and "share" not in rows:
        return images, targets
    share = rows.get("share", 1.0)
    return images, targets, {name: weight * share for name, weight in weights(tasks, rows, taught).items()}


def steps_of(labels: dict[str, np.ndarray], recipe: Recipe) -> tuple[int, int]:
    """Examples a step and steps an epoch: the remainder of an epoch's (oversampled) order is dropped."""
    total = int(pipeline.repeats(labels, recipe.oversample).sum())
    size = min(recipe.batch_size, total)
    return size, total // size


def feature_batches(
    features: Sequence[np.ndarray],
    labels: dict[str, np.ndarray],
    recipe: Recipe,
    first_epoch: int,
    across: Devices = ONE,
    partial: bool = False,
    taught: Mapping[str, np.ndarray] = NOTHING,
) -> tf.data.Dataset:
    """Training batches from cached features, from `first_epoch` on.

    Args:
        features: for each view an array `(n, ...)`, as `cached_features` gives them.
        labels: integer labels, each `(n,)`.
        recipe: batch size, oversampling, seed and epochs.
        first_epoch: the epoch to begin with, from 0.
        across: the devices of the training.
        partial: whether some labels may be unknown, see `partly_labelled`.
        taught: what a teacher says of the split, see `encode`.

    Returns:
        Batches `(inputs float32, targets)`, with weights as a third where labels may be unknown; of each the part that
        belongs to this process.
    """
    tasks = recipe.tasks()
    counts = pipeline.repeats(labels, recipe.oversample)
    size, steps = steps_of(labels, recipe)
    part = size // across.processes
    labels = {**labels, "example": np.arange(len(features[0]))}
    parts = (encode(tasks, labels, taught), *([weights(tasks, labels, taught)] if partial else []))

    def batches():
        for epoch in range(first_epoch, recipe.run_epochs):
            order = pipeline.epoch_order(counts, recipe.seed, epoch)
            views = np.random.default_rng((recipe.seed, epoch, 1)).integers(len(features), size=len(order))
            for step in range(steps):
                start = step * size + across.process * part
                chosen, view = order[start : start + part], views[start : start + part]
                inputs = np.empty((part, *features[0].shape[1:]), "float32")
                for index, array in enumerate(features):
                    inputs[view == index] = array[chosen[view == index]]
                yield inputs, *({name: values[chosen] for name, values in array.items()} for array in parts)

    signature = (
        tf.TensorSpec((part, *features[0].shape[1:]), tf.float32),
        {task.name: tf.TensorSpec((part, task.width), tf.float32) for task in tasks},
        *([{task.name: tf.TensorSpec((part,), tf.float32) for task in tasks}] if partial else []),
    )
    generated = tf.data.Dataset.from_generator(batches, output_signature=signature)
    return generated.prefetch(4).with_options(pipeline.options())


def image_batches(
    builder: pipeline.Builder,
    split: str,
    recipe: Recipe,
    first_epoch: int,
    taught: Mapping[str, np.ndarray] = NOTHING,
    across: Devices = ONE,
) -> tf.data.Dataset:
    """Training batches from pixels, from `first_epoch` on.

    Args:
        builder: a prepared data set.
        split: its split to train on.
        recipe: views, noise, occlusion, batch size, oversampling, seed and epochs.
        first_epoch: the epoch to begin with, from 0.
        taught: what a teacher says of the split, see `encode`.
        across: the devices of the training.

    Returns:
        Batches `(images float32 in [0, 255], targets)`, with weights as a third where labels may be unknown; of each
        the part that belongs to this process, which decodes no others (and, with mixup, blends within it).

    Raises:
        UserError: mixup where labels may be unknown, or of identities.
    """
    tasks = recipe.tasks()
    labels = pipeline.label_arrays(builder, split)
    size, steps = steps_of(labels, recipe)
    # The last factor is that of labels that are not known, as in `pipeline.repeats`.
    factors = {name: tf.constant([*values, 1], tf.int64) for name, values in recipe.oversample.items()}
    rows = _numbered(builder, split, recipe, taught)
    partial = partly_labelled(labels, tasks, taught)
    check_mixup(recipe, partial)
    epoch_size, part = steps * size, size // across.processes
    cover, landmarks = covering(recipe, builder)

    def repeated(row):
        count = tf.constant(1, tf.int64)
        for name, values in factors.items():
            label, unknown = tf.cast(row[name], tf.int64), tf.size(values, tf.int64) - 1
            count *= tf.gather(values, tf.where(label < 0, unknown, label))
        return {name: tf.repeat(value[None], count, axis=0) for name, value in row.items()}

    def prepare(index, row):
        seed = tf.stack([index, tf.constant(recipe.seed, tf.int64)])
        image = tf.io.decode_image(row["image"], channels=3, expand_animations=False)
        image.set_shape((None, None, 3))
        image, places = augment.draw_view(image, landmarks, recipe.views, seed)
        if recipe.random_crop < 1:
            crop_seed = seed + tf.constant([0, 1 << 33], tf.int64)
            image, places = augment.crop_at_random(image, places, recipe.random_crop, crop_seed)
        image = pipeline.resize(image, recipe.image_size)
        if recipe.occluded:
            image, row["pattern"] = cover(image, places, row["key"], index // epoch_size)
        if recipe.noise:
            image = augment.add_noise(image, recipe.noise, seed + tf.constant([0, 1 << 32], tf.int64))
        return image, _labelled(tasks, row)

    if factors:
        rows = rows.map(repeated).unbatch()
    # An epoch's order begins with a full buffer: `prefetch` reads it while the images of the epoch before are decoded.
    seeds = (recipe.seed * 100_003 + epoch for epoch in range(first_epoch, recipe.run_epochs))
    orders = [rows.shuffle(SHUFFLE_BUFFER, seed, reshuffle_each_iteration=False).take(epoch_size) for seed in seeds]
    examples = _one_after_another(orders).prefetch(SHUFFLE_BUFFER).enumerate(first_epoch * epoch_size)
    if across.processes > 1:
        examples = examples.filter(lambda index, row: index % size // part == across.process)
    examples = examples.map(prepare, num_parallel_calls=pipeline.PARALLEL)
    together = examples.batch(part, drop_remainder=True, num_parallel_calls=2)
    together = together.map(lambda images, rows: _examples(tasks, images, rows, taught, partial))
    if recipe.mixup:

        def blended(step, batch):
            seed = tf.stack([step, tf.constant(recipe.seed + (1 << 34), tf.int64)])
            return augment.mixup(*batch, recipe.mixup, seed)

        together = together.enumerate(first_epoch * steps).map(blended, num_parallel_calls=2)
    return together.prefetch(2)


def check_effects(recipe: Recipe) -> None:
    """Say that a field which is set would do nothing. Noise, which `arg` has from its authors' code, is let pass.

    Raises:
        UserError: a field of `PIXELS` where cached features are trained on, `label_smoothing` and no class that is
            learnt by cross-entropy, or patterns of occlusion and no face that is covered.
    """
    if recipe.label_smoothing and all(task.loss != "crossentropy" for task in recipe.tasks()):
        raise UserError(
            f"label_smoothing is of classes that are learnt by cross-entropy, and the recipe {recipe.name} has none "
            "here: set label_smoothing=0.0."
        )
    if not recipe.occluded and any(task.label == "pattern" for task in recipe.tasks()):
        raise UserError(
            f"The recipe {recipe.name} learns here which part of a face is covered, and covers none: set occluded too, "
            "such as occluded=0.67, or masked=False."
        )
    acting = [name for name, none in PIXELS.items() if getattr(recipe, name) != none]
    if recipe.train_from and acting:
        none = " ".join(f"{name}={PIXELS[name]}" for name in acting)
        raise UserError(
            f"{', '.join(acting)}: changes pixels, and what is trained here sees features that were cached before "
            f"(train_from={recipe.train_from}). Set {none}, or train from pixels: train_from= (nothing behind it)."
        )


def check_mixup(recipe: Recipe, partial: bool) -> None:
    """Say that labels which are not known cannot be blended, nor indices, whose mean is somebody else.

    Raises:
        UserError: mixup, and `partial`: some are not known; or mixup of identities.
    """
    if recipe.mixup and any(task.label == "identity" for task in recipe.tasks()):
        raise UserError("mixup blends labels, and between two identities there is none: set mixup=0.0.")
    if recipe.mixup and partial:
        raise UserError(
            "mixup blends labels, and here not every label is known: set mixup=0.0, train on one data set, or name in "
            "distill_from a run that knows them."
        )


def _one_after_another(datasets: Sequence[tf.data.Dataset]) -> tf.data.Dataset:
    """Concatenated as a tree: in a chain a row would pass through as many iterators as there are data sets.

    No flat_map over epochs: `shuffle` takes a tensor as its seed only where TensorFlow's global seed is not 0.
    """
    if len(datasets) == 1:
        return datasets[0]
    half = len(datasets) // 2
    return _one_after_another(datasets[:half]).concatenate(_one_after_another(datasets[half:]))


def _filled(count: int, batch_size: int, across: Devices) -> tuple[np.ndarray, np.ndarray, int]:
    """Places of this process's examples when `count` are filled up to whole batches, their weights, and its batch size.

    Devices take only equal parts. Those that fill have the weight 0 and the others a little more than 1, as Keras takes
    the mean of the losses over all of them.
    """
    size = across.count * -(-min(batch_size, count) // across.count)
    total = size * -(-count // size)
    own = np.arange(across.process, total, across.processes)
    return own % count, np.where(own < count, total / count, 0).astype("float32"), size // across.processes


def validation_images(
    builder: pipeline.Builder,
    recipe: Recipe,
    taught: Mapping[str, np.ndarray] = NOTHING,
    batch_size: int = 64,
    across: Devices = ONE,
):
    """Batches of the validation split in its fixed order, as `image_batches` gives those of training.

    Where training covers faces, the same are covered here, in every epoch alike. On several devices with weights, see
    `_filled`.
    """
    tasks, view = recipe.tasks(), recipe.test_views[0]
    labels = pipeline.label_arrays(builder, recipe.validation_split)
    partial = partly_labelled(labels, tasks, taught)
    cover, landmarks = covering(recipe, builder)

    def prepare(row):
        image = pipeline.decode(row["image"], recipe.image_size, view.zoom)
        if recipe.occluded:
            image, row["pattern"] = cover(image, landmarks, row["key"], 0)
        return image, _labelled(tasks, row)

    rows = _numbered(builder, recipe.validation_split, recipe, taught)
    if across.count > 1:
        count = len(labels["key"])
        _, shares, batch_size = _filled(count, batch_size, across)
        own = rows.repeat().shard(across.processes, across.process)
        shared = tf.data.Dataset.zip(own, tf.data.Dataset.from_tensor_slices(shares))
        rows = shared.map(lambda row, share: {**row, "share": share})
    together = rows.map(prepare, num_parallel_calls=pipeline.PARALLEL).batch(batch_size, num_parallel_calls=2)
    return together.map(lambda images, rows: _examples(tasks, images, rows, taught, partial)).prefetch(2)


def covering(recipe: Recipe, builder: pipeline.Builder) -> tuple[Callable, np.ndarray]:
    """How this recipe covers the faces of a data set.

    Returns:
        `(image, landmarks, key, epoch)` to `(image, pattern)`, see `augment.occlude`; and where the landmarks lie in
        the data set's images, `(5, 2)` float32, shares of width and height, zeros where no masks are worn.

    Raises:
        UserError: masks are to be worn, but no faces covered, or the data set does not say where landmarks lie.
    """
    landmarks = (builder.info.metadata or {}).get("landmarks")
    if recipe.worn_masks and not recipe.occluded:
        raise UserError("worn_masks is a share of the faces that are covered: set occluded too, such as occluded=0.67.")
    if recipe.worn_masks and not landmarks:
        raise UserError(
            f"worn_masks needs faces whose landmarks lie in one place, which {builder.info.full_name} does not say: "
            "build it with --align five-point."
        )
    cover = functools.partial(augment.occlude, seed=recipe.seed, share=recipe.occluded, worn_masks=recipe.worn_masks)
    return cover, np.array(landmarks if recipe.worn_masks else np.zeros((5, 2)), "float32")


def _numbered(
    builder: pipeline.Builder, split: str, recipe: Recipe, taught: Mapping[str, np.ndarray]
) -> tf.data.Dataset:
    """What a recipe reads of the examples of a split, and their place in it as the label `example`, by which what a
    teacher says is found."""
    wanted = {"image", "key", *recipe.oversample, *(task.label for task in recipe.tasks())}
    if taught:
        wanted.add("example")

    def numbered(place, row):
        # Each value is carried through the shuffle as a tensor of its own: no more than are read.
        return {name: value for name, value in {**row, "example": place}.items() if name in wanted}

    return pipeline.examples(builder, split).enumerate().map(numbered)


def evaluation_images(
    builder: pipeline.Builder,
    split: str,
    recipe: Recipe,
    view: pipeline.View,
    batch_size: int = 64,
    change: Callable | None = None,
):
    """Batches of the images of a split in their fixed order, seen in one view: `(batch, height, width, 3)` float32.

    Args:
        builder: a prepared data set.
        split: its split, or a part of it.
        recipe: says how large the network's input is.
        view: how each image is looked at.
        batch_size: images a batch.
        change: `(image (height, width, 3) uint8, key)` -> an image of the same shape, before it is scaled.
    """

    def prepare(row):
        if change is None:
            image = pipeline.decode(row["image"], recipe.image_size, view.zoom)
        else:
            image = tf.io.decode_image(row["image"], channels=3, expand_animations=False)
            image = tf.numpy_function(change, [image, row["key"]], tf.uint8)
            image.set_shape((None, None, 3))
            image = pipeline.resize(image, recipe.image_size, view.zoom)
        return tf.reverse(image, [1]) if view.mirror else image

    images = pipeline.examples(builder, split).map(prepare, num_parallel_calls=pipeline.PARALLEL)
    return images.batch(batch_size, num_parallel_calls=2).prefetch(2)


def in_order(
    inputs: np.ndarray,
    labels: dict[str, np.ndarray],
    recipe: Recipe,
    across: Devices = ONE,
    partial: bool = False,
    taught: Mapping[str, np.ndarray] = NOTHING,
) -> tf.data.Dataset:
    """Batches of features in their order, as `feature_batches` gives those of training; on several devices with
    weights, see `_filled`."""
    tasks, size = recipe.tasks(), 256
    labels = {**labels, "example": np.arange(len(inputs))}
    arrays = (inputs, encode(tasks, labels, taught), *([weights(tasks, labels, taught)] if partial else []))
    if across.count > 1:
        places, shares, size = _filled(len(inputs), size, across)
        known = weights(tasks, labels, taught)  # 1 for all where every label is known
        shared = {name: values[places] * shares for name, values in known.items()}
        arrays = (inputs[places], {name: values[places] for name, values in arrays[1].items()}, shared)
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size).with_options(pipeline.options())

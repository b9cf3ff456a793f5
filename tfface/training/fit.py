"""The only training loop: a recipe and a prepared data set become a run."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from tfface import files
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.losses import AgeDistributionLoss, CrossentropyLoss
from tfface.metrics import MeanAgeError
from tfface.optimizers import OneCycle
from tfface.recipes.recipe import Recipe
from tfface.tasks import Task
from tfface.training import batches
from tfface.training.batch_norm import fused_batch_norms
from tfface.training.callbacks import Recorder
from tfface.training.distribute import ONE, Devices, several
from tfface.training.features import cached_features
from tfface.training.one_cycle import OneCycleMomentum
from tfface.training.run import Run, carry_weights, split_at
from tfface.training.teacher import taught_targets

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def loss_of(task: Task, label_smoothing: float) -> keras.losses.Loss:
    """The Keras loss that a task names; `label_smoothing` is that of classes."""
    if isinstance(task.loss, keras.losses.Loss):
        return task.loss
    if task.loss == "age_distribution":
        return AgeDistributionLoss(task.years)
    if task.loss == "crossentropy":
        return CrossentropyLoss(label_smoothing)
    return {"absolute": keras.losses.MeanAbsoluteError, "cosine": keras.losses.CosineSimilarity}[task.loss]()


def metrics_of(task: Task) -> list[keras.metrics.Metric]:
    """What is shown of a task during training: accuracy of classes, mean error in years of an age, a cosine."""
    if task.loss == "cosine":
        return [keras.metrics.CosineSimilarity(name="cosine")]
    if task.label == "identity":
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
    if not task.is_age:
        return [keras.metrics.CategoricalAccuracy(name="accuracy")]
    if task.years is None:
        return [keras.metrics.MeanAbsoluteError(name="mae")]
    return [MeanAgeError(task.years, name="mae")]


@contextlib.contextmanager
def precision(policy: str):
    """Give the layers that are made inside a Keras dtype policy.

    Raises:
        UserError: another policy than float32, mixed_bfloat16 or mixed_float16.
    """
    if policy not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}. Received: {policy}.")
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def compile_for(model: keras.Model, recipe: Recipe, steps: int) -> None:
    """Compile a network (or the trained part of one) with the recipe's losses, weights, metrics and optimizer.

    In mixed_float16 the loss is scaled, or small gradients would be rounded to zero.

    Args:
        model: what is trained.
        recipe: its recipe.
        steps: steps of the whole training, for the schedule of the learning rate.
    """
    tasks, optimizer = recipe.tasks(), recipe.optimizer(model, steps)
    if recipe.precision == "mixed_float16" and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        # Keras does so by the policy of the model, which its layers have, but not what is cut out of it or around it.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
    model.compile(
        optimizer=optimizer,
        loss={task.name: loss_of(task, recipe.label_smoothing) for task in tasks},
        loss_weights={task.name: task.weight for task in tasks},
        # "Weighted", for joined data sets: a label that is not known has the weight 0. Without weights it is the same.
        weighted_metrics={task.name: metrics_of(task) for task in tasks},
    )


def monitored(recipe: Recipe) -> set[str]:
    """Names of the figures that Keras gives of a recipe's epochs, which `monitor` may be: each also of validation."""
    tasks, names = recipe.tasks(), {"loss"}
    for task in tasks:
        own = {"loss", *(metric.name for metric in metrics_of(task))}
        names |= {f"{task.name}_{name}" for name in own} if len(tasks) > 1 else own
    return names | {f"val_{name}" for name in names}


def device_name(device: str = "auto") -> str:
    """The device that training will run on: "cpu", or the accelerator's name.

    Args:
        device: "auto", "cpu" or "gpu".

    Raises:
        UserError: a GPU was asked for and Keras' backend sees none. It never falls back in silence.
    """
    if keras.backend.backend() == "jax":
        import jax

        if device == "cpu":  # else JAX computes on an accelerator wherever there is one
            jax.config.update("jax_default_device", jax.local_devices(backend="cpu")[0])
        found = [d.device_kind for d in jax.devices() if d.platform != "cpu"]
    else:
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        found = [
            tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
            for gpu in tf.config.get_visible_devices("GPU")
        ]
    if device == "gpu" and not found:
        raise UserError(
            f"A GPU was asked for, but {keras.backend.backend()} sees none. "
            "Install the backend's GPU build (`pip install tensorflow[and-cuda]` or `jax[cuda]`), check "
            "`tfface doctor`, or say --device cpu."
        )
    return found[0] if found and device != "cpu" else "cpu"


@dataclass(frozen=True)
class Prepared:
    """What `model.fit` needs: a recipe's network, compiled, and its data.

    Attributes:
        model: what is trained: the whole network, or the part above the frozen layers, with the tasks' outputs.
        whole: what a run keeps: the same layers with every output of the network, and those that are frozen below them
            where they are not the recipe's own, but carried, given or read from a file of the user's.
        training: batches from an epoch on, `training(first_epoch)`.
        validation: batches of the validation split, in their fixed order.
        steps: steps an epoch.
        carried, fresh: layers whose weights came from the recipe's `initial` run, and those of `model` that did not;
            both empty without one.
    """

    model: keras.Model
    whole: keras.Model
    training: Callable[[int], tf.data.Dataset]
    validation: tf.data.Dataset
    steps: int
    carried: list[str]
    fresh: list[str]


def prepared(
    recipe: Recipe,
    builder: pipeline.Builder,
    bfloat16: bool = False,
    model: keras.Model | None = None,
    data_dir: str | Path | None = None,
    across: Devices = ONE,
) -> Prepared:
    """Build the network of a recipe, compile it, and open its data.

    Args:
        recipe: what to train.
        builder: its prepared data set, with the splits that the recipe names.
        bfloat16: compute frozen features in bfloat16 (see `cached_features`).
        model: a network with the recipe's outputs to train in place of its own, such as a pruned one.
        data_dir: where data sets are prepared, for a recipe whose teacher looks at another one.
        across: the devices to train on.

    Raises:
        UserError: no such split, an `initial` run that does not fit, a field that would do nothing, or a batch that the
            devices cannot share evenly.
    """
    batches.check_labels(recipe, builder)
    batches.check_effects(recipe)
    if recipe.monitor not in monitored(recipe):
        raise UserError(f"monitor must be one of {', '.join(sorted(monitored(recipe)))}. Received: {recipe.monitor}.")
    keras.utils.set_random_seed(recipe.seed)
    given = model is not None
    with across.scope(), precision(recipe.precision):
        model = model if given else recipe.model()
    carried, fresh = [], []
    if recipe.initial:
        initial = Path(recipe.initial)
        file = initial if initial.suffix == ".keras" else Run(initial).trained_file
        carried, fresh = carry_weights(model, file)
        recipe.carried(model, carried, fresh)
    sources = {
        "train": (pipeline.with_extra(builder, recipe.extra_data, data_dir), recipe.train_split),
        "validation": (builder, recipe.validation_split),
    }
    batches.covering(recipe, sources["train"][0])
    labels = {part: pipeline.label_arrays(*source) for part, source in sources.items()}
    size, steps = batches.steps_of(labels["train"], recipe)
    across.check(size)
    with across.one_at_a_time():
        taught = {
            part: taught_targets(recipe, *source, labels[part], data_dir, bfloat16) for part, source in sources.items()
        }
    names, whole = [task.name for task in recipe.tasks()], model
    if recipe.train_from:
        with across.scope():
            lower, model = split_at(model, recipe.train_from, names)
        lower = across.alone(lower)
        with across.one_at_a_time():
            features = {
                part: cached_features(lower, *sources[part], recipe.image_size, views, bfloat16=bfloat16)
                for part, views in (("train", recipe.views), ("validation", recipe.test_views))
            }
        partly = batches.partly_labelled(labels["train"], recipe.tasks(), taught["train"])
        training = partial(
            batches.feature_batches,
            features["train"],
            labels["train"],
            recipe,
            across=across,
            partial=partly,
            taught=taught["train"],
        )
        inputs = np.asarray(features["validation"][0], "float32")
        partly = batches.partly_labelled(labels["validation"], recipe.tasks(), taught["validation"])
        validation = batches.in_order(inputs, labels["validation"], recipe, across, partly, taught["validation"])
        # What lies below is frozen and the recipe's own, which a run need not keep, unless it was given or carried, or
        # read from a file of the user's, which may be another one tomorrow.
        own = {layer.name for layer in model.layers}
        fresh = [name for name in fresh if name in own]
        read = getattr(recipe, "network", "").endswith(".keras")
        if not given and not read and own.issuperset(carried):
            whole = model
    else:
        batches.check_mixup(recipe, batches.partly_labelled(labels["train"], recipe.tasks(), taught["train"]))
        training = partial(batches.image_batches, *sources["train"], recipe, taught=taught["train"], across=across)
        validation = batches.validation_images(builder, recipe, taught["validation"], across=across)
    with across.scope():
        if set(names) != set(model.output):  # Keras wants a target for every output
            model = keras.Model(model.input, {name: model.output[name] for name in names}, name=model.name)
        compile_for(model, recipe, steps * recipe.run_epochs)
        # Build the optimizer's variables now, so that a saved state finds them.
        model.optimizer.build(model.trainable_variables)
    return Prepared(model, whole, training, validation, steps, carried, fresh)


def _policy(model: keras.Model) -> list[keras.callbacks.Callback]:
    """The one-cycle policy moves the momentum against the learning rate."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # of mixed precision's LossScaleOptimizer
    return [OneCycleMomentum()] if isinstance(optimizer._learning_rate, OneCycle) else []


def _data_of(recipe: Recipe, builder: pipeline.Builder, data_dir: str | Path | None) -> dict:
    """Which data a run learns from, as its config.json keeps it: a run goes on with the same only."""
    learnt = (recipe.train_split, recipe.validation_split)
    digests = {split: pipeline.label_digest(builder, split) for split in learnt}
    fingerprints = {split: pipeline.fingerprint(builder, split) for split in builder.info.splits}
    data = {"name": builder.info.full_name, "fingerprints": fingerprints, "labels": digests}
    if recipe.extra_data:
        whole = pipeline.with_extra(builder, recipe.extra_data, data_dir)
        data["with_extra"] = pipeline.fingerprint(whole, recipe.train_split)
        digests["with_extra"] = pipeline.label_digest(whole, recipe.train_split)
    metadata = builder.info.metadata or {}
    data["landmarks"] = metadata.get("landmarks")
    stretch = metadata.get("stretch", 1.0)
    if data["landmarks"]:
        stretch *= _stretch(recipe, builder)
    if stretch != 1:
        data["stretch"] = stretch
    return data


def _stretch(recipe: Recipe, builder: pipeline.Builder) -> float:
    """How many times as wide, beside its height, an image becomes that is brought to the recipe's size.

    Of five-point crops of 112x96 it is 7 / 6 in a square network, which must be shown other photos' faces as wide. Of
    images of many shapes, as a folder's may be, it is the median over the first ones, which stand in random order.
    """
    rows = pipeline.examples(builder, recipe.train_split).take(256).as_numpy_iterator()
    sizes = [Image.open(io.BytesIO(row["image"])).size for row in rows]  # by the header: nothing is decoded
    height, width = recipe.image_size
    return float(width / height / np.median([columns / rows for columns, rows in sizes]))


def fit(
    recipe: Recipe,
    folder: str | Path,
    data_dir: str | Path | None = None,
    device: str = "auto",
    bfloat16: bool = False,
    verbose: int = 2,
    model: keras.Model | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    about: Mapping | None = None,
    devices: int = 1,
) -> Run:
    """Train a recipe, or go on where a killed run stopped; a run that is done is left as it is.

    Args:
        recipe: what to train.
        folder: the run's folder.
        data_dir: where data sets are prepared; TFDS's own default if None.
        device: "auto", "cpu" or "gpu".
        bfloat16: compute frozen features in bfloat16 (see `cached_features`).
        verbose: Keras' `verbose`: 0 silent, 1 a bar, 2 a line an epoch.
        model: a network with the recipe's outputs to train in place of its own, such as a pruned one. It ends with the
            weights of the last epoch, also where the run was done before.
        callbacks: what else acts during the training, such as pruning.
        about: plain values that say what `model` is: a folder that holds a run of another one is refused.
        devices: devices of this machine that share each batch, see `tfface.training.distribute.several`. In a training
            that `tfface.training.distribute.join` made one of several processes, all that there are; the first
            process alone writes and speaks, and all must see the same `folder` where a run is to go on.

    Returns:
        The run.

    Raises:
        UserError: the data set is not prepared, the folder holds another run or another process trains there, no GPU
            where one was asked for, or fewer devices.
    """
    across = several(devices, device)
    if model is not None and across.count > 1:
        raise UserError("A network that was made before cannot be spread over devices: train it on one.")
    where = device_name(device) if across.count == 1 else f"{across.count} x {device_name(device)}"
    run = Run(folder)

    def begin():
        builder = pipeline.open_dataset(recipe.data, data_dir)
        adapted = recipe.adapted(pipeline.class_names(builder))
        for split in (recipe.train_split, recipe.validation_split):
            pipeline.examples(builder, split)  # names a split that is absent before any work is done
        data = _data_of(adapted, builder, data_dir)
        if about is not None:
            data["model"] = dict(about)
        if across.first and run.config_file.exists():
            run.begin(adapted, data, where)
        return builder, adapted, data

    builder, recipe, data = across.together(begin)
    across.same("the recipe and the data set", {"recipe": recipe.to_json(), "data": data})
    if across.gathered("done" if run.done else "")[0] and model is None:
        return run

    if not across.first:
        verbose = 0
    ready = across.together(lambda: prepared(recipe, builder, bfloat16, model, data_dir, across))
    # Only now: choices that cannot be prepared do not take the folder.
    with files.held(run.folder, "--out") if across.first else contextlib.nullcontext():
        if across.first:
            run.begin(recipe, data, where)
            for file in (run.state_file, run.trained_file):  # written by whoever holds the folder alone
                files.remove_leftovers(file, age=0)
        if recipe.initial and across.first:
            carried = {"from": recipe.initial, "carried": ready.carried, "fresh": ready.fresh}
            files.write_json(run.folder / "carried.json", carried)
            if verbose:
                others = ", ".join(ready.fresh[:8]) + ", ..." * (len(ready.fresh) > 8) or "none"
                print(
                    f"{len(ready.carried)} layers start from {recipe.initial}, the {len(ready.fresh)} others as the "
                    f"recipe makes them: {others}."
                )
        history = across.together(lambda: run.restore_state(ready.model))
        across.same("the state of the run (all machines must see one folder)", history)
        first = len(history)
        recorder = Recorder(run, ready.whole, history, recipe.monitor, recipe.patience, writes=across.first)
        if first < recipe.run_epochs and not recorder.exhausted():
            if verbose and first:
                print(f"Going on after epoch {first} of {recipe.run_epochs}, found in {run.folder}.")
            events = [keras.callbacks.TensorBoard(run.folder / "events", write_graph=False)] if across.first else []
            with across.scope(), fused_batch_norms(ready.model):
                ready.model.fit(
                    ready.training(first),
                    steps_per_epoch=ready.steps,
                    shuffle=False,
                    epochs=recipe.run_epochs,
                    initial_epoch=first,
                    validation_data=ready.validation,
                    callbacks=[*_policy(ready.model), *callbacks, recorder, *events],
                    verbose=verbose,
                )
        if across.first and not run.done:
            seconds = round(sum(row["seconds"] for row in recorder.history), 1)
            files.write_json(run.done_file, {"best_epoch": recorder.best_epoch(), "seconds": seconds})
    return run

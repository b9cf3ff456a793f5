"""The only training loop: a recipe and a prepared data set become a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfface import files
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.losses import AgeDistributionLoss
from tfface.metrics import MeanAgeError
from tfface.optimizers import OneCycle
from tfface.recipes.recipe import Recipe
from tfface.tasks import Task
from tfface.training import batches
from tfface.training.callbacks import Recorder
from tfface.training.features import cached_features
from tfface.training.one_cycle import OneCycleMomentum
from tfface.training.run import Run, carry_weights, split_at


def loss_of(task: Task) -> keras.losses.Loss:
    """The Keras loss that a task names."""
    if task.loss == "age_distribution":
        return AgeDistributionLoss(task.years)
    return {"crossentropy": keras.losses.CategoricalCrossentropy, "absolute": keras.losses.MeanAbsoluteError}[
        task.loss
    ]()


def metrics_of(task: Task) -> list[keras.metrics.Metric]:
    """What is shown of a task during training: accuracy of classes, mean error in years of an age."""
    if not task.is_age:
        return [keras.metrics.CategoricalAccuracy(name="accuracy")]
    if task.years is None:
        return [keras.metrics.MeanAbsoluteError(name="mae")]
    return [MeanAgeError(task.years, name="mae")]


def compile_for(model: keras.Model, recipe: Recipe, steps: int) -> None:
    """Compile a network (or the trained part of one) with the recipe's losses, weights, metrics and optimizer.

    Args:
        model: what is trained.
        recipe: its recipe.
        steps: steps of the whole training, for the schedule of the learning rate.
    """
    tasks = recipe.tasks()
    model.compile(
        optimizer=recipe.optimizer(model, steps),
        loss={task.name: loss_of(task) for task in tasks},
        loss_weights={task.name: task.weight for task in tasks},
        metrics={task.name: metrics_of(task) for task in tasks},
    )


def device_name(device: str = "auto") -> str:
    """The device that training will run on: "cpu", or the accelerator's name.

    Args:
        device: "auto", "cpu" or "gpu".

    Raises:
        UserError: a GPU was asked for and Keras' backend sees none. It never falls back in silence.
    """
    if keras.backend.backend() == "jax":
        import jax

        found = [d.device_kind for d in jax.devices() if d.platform != "cpu"]
    else:
        import tensorflow as tf

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
        model: what is trained: the whole network, or the part above the frozen layers.
        training: batches from an epoch on, `training(first_epoch)`.
        validation: batches of the validation split, in their fixed order.
        steps: steps an epoch.
        carried, fresh: layers of `model` whose weights came from the recipe's `initial` run, and those that did not;
            both empty without one.
    """

    model: keras.Model
    training: Callable[[int], tf.data.Dataset]
    validation: tf.data.Dataset
    steps: int
    carried: list[str]
    fresh: list[str]


def prepared(recipe: Recipe, builder, bfloat16: bool = False, model: keras.Model | None = None) -> Prepared:
    """Build the network of a recipe, compile it, and open its data.

    Args:
        recipe: what to train.
        builder: its prepared data set, with the splits `train` and `validation`.
        bfloat16: compute frozen features in bfloat16 (see `cached_features`).
        model: a network with the recipe's outputs to train in place of its own, such as a pruned one.

    Raises:
        UserError: no such split, or an `initial` run that does not fit.
    """
    keras.utils.set_random_seed(recipe.seed)
    model = model or recipe.model()
    carried, fresh = [], []
    if recipe.initial:
        carried, fresh = carry_weights(model, Run(recipe.initial).trained_file)
    labels = {split: pipeline.label_arrays(builder, split) for split in ("train", "validation")}
    _, steps = batches.steps_of(labels["train"], recipe)
    if recipe.train_from:
        lower, model = split_at(model, recipe.train_from)
        features = {
            split: cached_features(lower, builder, split, recipe.image_size, views, bfloat16=bfloat16)
            for split, views in (("train", recipe.views), ("validation", recipe.test_views))
        }
        training = partial(batches.feature_batches, features["train"], labels["train"], recipe)
        inputs = np.asarray(features["validation"][0], "float32")
        validation = batches.in_order(inputs, batches.encode(recipe.tasks(), labels["validation"]))
        # What lies below is frozen: it was neither carried nor will it be trained.
        own = {layer.name for layer in model.layers}
        carried, fresh = ([name for name in names if name in own] for names in (carried, fresh))
    else:
        training = partial(batches.image_batches, builder, "train", recipe)
        validation = batches.evaluation_images(builder, "validation", recipe, recipe.test_views[0])
    compile_for(model, recipe, steps * recipe.run_epochs)
    # Build the optimizer's variables now, so that a saved state finds them.
    model.optimizer.build(model.trainable_variables)
    return Prepared(model, training, validation, steps, carried, fresh)


def _policy(model: keras.Model) -> list[keras.callbacks.Callback]:
    """The one-cycle policy moves the momentum against the learning rate."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # of mixed precision's LossScaleOptimizer
    return [OneCycleMomentum()] if isinstance(optimizer._learning_rate, OneCycle) else []


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

    Returns:
        The run.

    Raises:
        UserError: the data set is not prepared, the folder holds another run, no GPU where one was asked for.
    """
    where = device_name(device)
    builder = pipeline.open_dataset(recipe.data, data_dir)
    recipe = recipe.adapted(pipeline.class_names(builder))
    for split in ("train", "validation"):
        pipeline.examples(builder, split)  # names a split that is absent before any work is done
    fingerprints = {split: pipeline.fingerprint(builder, split) for split in builder.info.splits}
    run = Run(folder)
    data = {"name": builder.info.full_name, "fingerprints": fingerprints}
    data["landmarks"] = (builder.info.metadata or {}).get("landmarks")
    if about is not None:
        data["model"] = dict(about)
    run.begin(recipe, data, where)
    if run.done and model is None:
        return run

    started = time.monotonic()
    ready = prepared(recipe, builder, bfloat16, model)
    if recipe.initial:
        carried = {"from": recipe.initial, "carried": ready.carried, "fresh": ready.fresh}
        files.write_json(run.folder / "carried.json", carried)
        if verbose:
            fresh = ", ".join(ready.fresh) or "none"
            print(f"{len(ready.carried)} layers start from {recipe.initial}, fresh: {fresh}.")
    history = run.restore_state(ready.model)
    first = len(history)
    recorder = Recorder(run, history, recipe.monitor, recipe.patience)
    if first < recipe.run_epochs and not recorder.exhausted():
        if verbose and first:
            print(f"Going on after epoch {first} of {recipe.run_epochs}, found in {run.folder}.")
        ready.model.fit(
            ready.training(first),
            steps_per_epoch=ready.steps,
            shuffle=False,
            epochs=recipe.run_epochs,
            initial_epoch=first,
            validation_data=ready.validation,
            callbacks=[
                *_policy(ready.model),
                *callbacks,
                recorder,
                keras.callbacks.TensorBoard(run.folder / "events", write_graph=False),
            ],
            verbose=verbose,
        )
    if not run.done:
        seconds = round(time.monotonic() - started, 1)
        files.write_json(run.done_file, {"best_epoch": recorder.best_epoch(), "seconds": seconds})
    return run

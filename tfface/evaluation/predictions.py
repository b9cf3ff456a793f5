"""Run a trained network over a split: probabilities averaged over the recipe's test views, beside the truth."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from tfface import labels
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.evaluation.evaluate import Predictions
from tfface.recipes.recipe import Recipe
from tfface.tasks import Task, bins_of, years_of
from tfface.training import batches
from tfface.training.features import outputs_of
from tfface.training.run import Run


def predict_split(
    run: Run,
    split: str,
    data: str = "",
    data_dir: str | Path | None = None,
    bfloat16: bool = False,
    progress: bool = True,
    model: keras.Model | None = None,
) -> Predictions:
    """What the model of a run, loaded unless it is given, says on a split; see `predict_with`.

    Raises:
        UserError: no model, no such data set or split.
    """
    return predict_with(run.recipe(), model or run.model(), split, data, data_dir, bfloat16, progress)


def predict_with(
    recipe: Recipe,
    model: keras.Model,
    split: str,
    data: str = "",
    data_dir: str | Path | None = None,
    bfloat16: bool = False,
    progress: bool = True,
) -> Predictions:
    """What a model says on a split.

    Args:
        recipe: the recipe that the model was trained by.
        model: the whole network, from pixels to outputs.
        split: name of the split.
        data: another prepared data set with the same labels; the recipe's own if empty.
        data_dir: where data sets are prepared.
        bfloat16: compute frozen features in bfloat16.
        progress: draw progress bars.

    Returns:
        The predictions with the truth. An age head of any kind gives years and the nine bins of the ARG poster.

    Raises:
        UserError: no such data set or split, joined ones of which one lacks a label, or classes of other names than the
            network learnt.
    """
    builder = pipeline.open_dataset(data or recipe.data, data_dir)
    tasks, truth, classes = truth_of(recipe, builder, split)
    check_outputs(tasks, model.output, builder)
    outputs = outputs_of(recipe.adapted(pipeline.class_names(builder)), model, builder, split, bfloat16, progress)
    return to_predictions(tasks, outputs, truth, classes)


LEARNT_FROM = "The network learnt from images of {split}: its figures are better than those of faces it has not seen."


def learnt_from(run: Run, builder: pipeline.Builder, split: str) -> bool:
    """Whether a run learnt from images of a split, or of a part of one, of a prepared data set.

    One that is cut otherwise is another data set, though its people are the same.
    """
    config = run.config()
    recipe = config["recipe"]
    names = f"{config['data']['name']}+{recipe.get('extra_data', '')}".split("+")
    learnt = recipe["train_split"]
    return (
        _without_version(builder.info.full_name) in map(_without_version, names)
        and pipeline.split_names(learnt) <= set(builder.info.splits)
        and pipeline.overlap(builder, split, learnt)
    )


def _without_version(name: str) -> str:
    return re.sub(r"(/\d+\.\d+\.\d+)?(@.*)?$", "", name)


def check_outputs(tasks: Sequence[Task], outputs: Collection[str], builder: pipeline.Builder) -> None:
    """Say that a data set has other labels than a network learnt.

    Raises:
        UserError: a task that the data set's labels would measure is none of the network's outputs.
    """
    absent = [task.name for task in tasks if task.is_attribute and task.name not in outputs]
    if absent:
        raise UserError(
            f"{builder.info.full_name} has labels for {', '.join(absent)}, which this network does not tell. Expected "
            f"labels for: {', '.join(outputs)}. Name another data set with --data."
        )


def measured_parts(recipe: Recipe, data_dir: str | Path | None = None) -> list[str]:
    """Which of the data sets that a recipe joins hold a label that it learns; of a single one always that.

    The others teach an embedding, or what an earlier run says; nothing can be measured on them.

    Raises:
        UserError: one of them is not prepared.
    """
    names = recipe.data.split("+")
    if len(names) == 1:
        return names
    joined = pipeline.open_dataset(recipe.data, data_dir)
    learnt = {task.label for task in recipe.adapted(pipeline.class_names(joined)).tasks() if task.is_attribute}
    return [
        name
        for name, part, renamed in zip(names, joined.parts, joined.renamed, strict=True)
        if learnt & {renamed.get(label, label) for label in part.info.features}
    ]


def truth_of(
    recipe: Recipe, builder: pipeline.Builder, split: str
) -> tuple[tuple[Task, ...], dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """The labels of a split, its classes in the order of the network's.

    Args:
        recipe: the recipe that the network was trained by.
        builder: a prepared data set.
        split: name of the split.

    Returns:
        What the network's outputs mean on this data set, its labels (-1: not known) and their class names.

    Raises:
        UserError: no such split, a label that is absent, or classes of other names than the network learnt.
    """
    classes = pipeline.class_names(builder)
    outputs = {task.name: task.classes for task in recipe.tasks()}
    recipe = recipe.adapted(classes)
    batches.require_labels(recipe, builder, "tells")
    truth = pipeline.label_arrays(builder, split)
    tasks = []
    for task in recipe.tasks():
        # By the output, which may have learnt a label of another name, or be a sum that learnt nothing itself.
        names, own = classes.get(task.label, ()), outputs.get(task.name, task.classes)
        if len(own) != len(task.classes):  # of a recipe that learns any classes
            raise UserError(
                f"The network tells {', '.join(own)} apart. Received: {builder.info.full_name} with "
                f"{', '.join(task.classes)}. Name a data set of the same classes with --data."
            )
        if len(names) == len(own) and names != own:
            if set(names) == set(own):  # in another order: that of the network counts
                order = np.array([*map(own.index, names), -1])  # what is not known stays -1
                truth[task.label], classes[task.label] = order[truth[task.label]], own
                task = replace(task, classes=own)
            elif not batches.same_names(names, own):
                raise UserError(
                    f"The network tells {', '.join(own)} apart. Received: {builder.info.full_name} with "
                    f"{', '.join(names)}, and which is which is not said: call its classes as the network does, and "
                    "build it again."
                )
        tasks.append(task)
    return tuple(tasks), truth, classes


def to_predictions(
    tasks: tuple[Task, ...],
    outputs: dict[str, np.ndarray],
    truth: dict[str, np.ndarray],
    classes: dict[str, tuple[str, ...]],
) -> Predictions:
    """Put a model's outputs and the labels of a split together.

    Args:
        tasks: what the outputs mean.
        outputs: task -> `(n, width)`.
        truth: label -> `(n,)`, and "key" -> `(n,)` names.
        classes: label -> class names, for every label that has them; what no task learns forms groups of people.

    Raises:
        UserError: a label that is not known, -1, as in joined data sets.
    """
    for task in tasks:
        if task.is_attribute and (truth[task.label] < 0).any():
            known, n = (truth[task.label] >= 0).sum(), len(truth["key"])
            raise UserError(
                f"The {task.label} of {known} of {n} images is known: predict where all are known, on each of joined "
                "data sets alone."
            )
    classes = {name: names for name, names in classes.items() if name in truth}
    years_known = "age" in truth and "age" not in classes and truth["age"].dtype.kind in "iuf"
    if "age" in classes:  # groups of ages by that name: their numbers are no years
        truth, classes = {"age_group": truth["age"], **truth}, {"age_group": classes["age"], **classes}
        del classes["age"]
    # What no task learns need not be known of every face: of such a label no groups are formed.
    known = {name: truth[name] for name in (*classes, *["age"] * years_known) if (truth[name] >= 0).all()}
    probabilities, ordered = {}, [name for name in classes if name == "age_group"]
    years = spread = None
    for task in tasks:
        if not task.is_attribute:
            continue
        if task.is_age:
            years, spread = years_of(task, outputs[task.name])
            # a standard deviation of zero would claim certainty
            spread = None if spread is None else np.maximum(spread, 1e-3)
            probabilities["age_bins"] = bins_of(task, outputs[task.name])
            classes["age_bins"] = labels.ARG_AGES
            ordered.append("age_bins")
            known["age_bins"] = labels.age_bin(truth["age"])
        else:
            probabilities[task.name], classes[task.name] = outputs[task.name], task.classes
            # The targets say which class a label counts as, where a task joins labels into fewer classes.
            known[task.name] = task.targets[truth[task.label]].argmax(axis=1)
            if task.ordered and task.name not in ordered:
                ordered.append(task.name)
    return Predictions(truth["key"], known, probabilities, classes, years, spread, tuple(ordered))

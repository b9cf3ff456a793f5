"""Temperature scaling: probabilities that say how often they are right, fitted on validation, kept in the weights.

Reference: Guo et al., On Calibration of Modern Neural Networks (ICML 2017), section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

from tfface import files
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.evaluation.predictions import measured_parts
from tfface.layers import Regroup
from tfface.models.saved import load_saved
from tfface.recipes import Recipe
from tfface.training import batches
from tfface.training.features import outputs_of
from tfface.training.run import Run


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray, groups: Sequence[int] | None = None) -> float:
    """The temperature at which a softmax would have been least surprised by the truth.

    Args:
        probabilities: `(n, classes)` of a softmax at temperature 1; rows sum to 1.
        truth: `(n,)` int, the right class, or the right group of classes.
        groups: for each class the group that it counts for, where the truth is known by groups (ages by age groups).

    Returns:
        The temperature, in [1/20, 20]: above 1 the probabilities were too sure.

    Raises:
        ValueError: no row, a probability that is not finite, or a truth that is no class.
    """
    probabilities = np.asarray(probabilities, "float64")
    if not len(probabilities) or not np.isfinite(probabilities).all():
        raise ValueError(f"Probabilities must be finite, one row or more. Received: shape {probabilities.shape}")
    logits = np.log(np.clip(probabilities, np.finfo("float32").tiny, 1.0))
    right = np.asarray(range(probabilities.shape[1]) if groups is None else groups) == np.asarray(truth)[:, None]

    if not right.any(axis=1).all():
        raise ValueError(f"Each truth must be a class. Received: {np.asarray(truth)[~right.any(axis=1)][:5]}")

    def surprise(log_temperature):
        scaled = logits / np.exp(log_temperature)
        scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return float(np.mean(np.log(scaled.sum(axis=1)) - np.log((scaled * right).sum(axis=1) + 1e-300)))

    return float(np.exp(minimize_scalar(surprise, bounds=(-math.log(20), math.log(20)), method="bounded").x))


def calibrate(folder: str | Path, data_dir: str | Path | None = None, bfloat16: bool = False) -> dict[str, float]:
    """Fit a temperature for each softmax of a run on its validation split, and divide the logits' weights by it.

    A softmax whose classes no data set has labels of, but whose sums are labelled (years by age groups), is fitted by
    its sums. No label of a softmax changes, as all logits of a head shrink alike; one of sums may, and one of a mean
    over views (`test_mirror`). The figures of the run must be measured again.

    Args:
        folder: a run's folder.
        data_dir: where data sets are prepared.
        bfloat16: compute frozen features in bfloat16.

    Returns:
        Head -> temperature. They are kept in calibration.json, too; where the run was calibrated before, as products.

    Raises:
        UserError: no trained model, none of its heads is a softmax, or another process trains or calibrates there.
    """
    run = Run(folder)
    recipe = run.recipe()
    with files.held(run.folder, "run"):  # or the network that a training keeps meanwhile would be lost
        return _calibrated(run, recipe, data_dir, bfloat16)


def _calibrated(run: Run, recipe: Recipe, data_dir: str | Path | None, bfloat16: bool) -> dict[str, float]:
    model = run.model()
    part = load_saved(run.trained_file)
    heads = {layer.name.removesuffix("_logits") for layer in part.layers if layer.name.endswith("_logits")}
    # Output that sums a head's probabilities -> that head, and the group of each of its classes.
    sums = {
        layer.name: (layer.input._keras_history.operation.name, layer.groups)
        for layer in part.layers
        if isinstance(layer, Regroup)
    }
    opened = []
    for data in measured_parts(recipe, data_dir):
        builder = pipeline.open_dataset(data, data_dir)
        known = recipe.adapted(pipeline.class_names(builder))
        opened.append((builder, known, [task for task in known.tasks() if task.classes]))
    labelled = {task.name for _, _, tasks in opened for task in tasks if task.name in heads}
    sums = {name: (head, groups) for name, (head, groups) in sums.items() if head in heads - labelled}
    fitted: dict[str, list] = {}
    for builder, known, tasks in opened:
        tasks = {task: sums.get(task.name, (task.name, range(task.width))) for task in tasks}
        tasks = {task: (head, groups) for task, (head, groups) in tasks.items() if head in heads}
        if not tasks:
            continue
        truth = pipeline.label_arrays(builder, known.validation_split)
        names = sorted({head for head, _ in tasks.values()})
        outputs = outputs_of(known, model, builder, known.validation_split, bfloat16, names=names)
        for task, (head, groups) in tasks.items():
            known_here = batches.weights([task], truth)[task.name] > 0
            right = batches.encode([task], truth)[task.name].argmax(axis=1)
            fitted.setdefault(head, []).append((outputs[head][known_here], right[known_here], groups))
    if not fitted:
        raise UserError(
            f"{run.folder} has no head to calibrate: expected for a task T a Dense layer T_logits with a softmax T of "
            "its own after it, as tfface.layers.task_heads makes them."
        )
    temperatures = {}
    for name, parts in fitted.items():
        probabilities, right, (groups, *_) = zip(*parts, strict=True)
        temperatures[name] = fit_temperature(np.concatenate(probabilities), np.concatenate(right), groups)
    for name, temperature in temperatures.items():
        layer = part.get_layer(f"{name}_logits")
        layer.set_weights([weight / temperature for weight in layer.get_weights()])
    before = run.temperatures()
    products = {name: value * before.get(name, 1.0) for name, value in temperatures.items()}
    run.save_trained(part, products)
    files.write_json(run.calibration_file, products)
    return temperatures

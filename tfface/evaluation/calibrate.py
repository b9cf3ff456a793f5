"""Temperature scaling: probabilities that say how often they are right, fitted on validation, kept in the weights.

Reference: Guo et al., On Calibration of Modern Neural Networks (ICML 2017), section 4.2.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

from tfface import files
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.models.saved import load_saved
from tfface.training.features import outputs_of
from tfface.training.run import Run


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The temperature at which a softmax would have been least surprised by the truth.

    Args:
        probabilities: `(n, classes)` of a softmax at temperature 1; rows sum to 1.
        truth: `(n,)` int, the right class.

    Returns:
        The temperature, in [1/20, 20]: above 1 the probabilities were too sure.
    """
    logits = np.log(np.clip(probabilities.astype("float64"), 1e-12, 1.0))
    rows = np.arange(len(truth))

    def surprise(log_temperature):
        scaled = logits / np.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - scaled[rows, truth]))

    return float(np.exp(minimize_scalar(surprise, bounds=(-3.0, 3.0), method="bounded").x))


def calibrate(folder: str | Path, data_dir: str | Path | None = None, bfloat16: bool = False) -> dict[str, float]:
    """Fit a temperature for each softmax of a run on its validation split, and divide the logits' weights by it.

    No label changes, as all logits of a head shrink alike. The figures of the run must be measured again.

    Args:
        folder: a run's folder.
        data_dir: where data sets are prepared.
        bfloat16: compute frozen features in bfloat16.

    Returns:
        Head -> temperature. They are kept in calibration.json, too; where the run was calibrated before, as products.

    Raises:
        UserError: no trained model, or none of its heads is a softmax.
    """
    run = Run(folder)
    recipe, model = run.recipe(), run.model()
    part = load_saved(run.trained_file)
    heads = {layer.name for layer in part.layers}
    fitted = {}
    for data in recipe.data.split("+"):
        builder = pipeline.open_dataset(data, data_dir)
        known = recipe.adapted(pipeline.class_names(builder))
        truth = pipeline.label_arrays(builder, known.validation_split)
        tasks = [task for task in known.tasks() if task.classes and f"{task.name}_logits" in heads]
        if not tasks:
            continue
        outputs = outputs_of(known, model, builder, known.validation_split, bfloat16)
        for task in tasks:
            right = task.targets[truth[task.label]].argmax(axis=1)
            fitted.setdefault(task.name, []).append((outputs[task.name], right))
    if not fitted:
        raise UserError(f"{run.folder} has no head that is a softmax: there is nothing to calibrate.")
    temperatures = {
        name: fit_temperature(*(np.concatenate(arrays) for arrays in zip(*pairs, strict=True)))
        for name, pairs in fitted.items()
    }
    for name, temperature in temperatures.items():
        layer = part.get_layer(f"{name}_logits")
        layer.set_weights([weight / temperature for weight in layer.get_weights()])
    with files.written_aside(run.trained_file) as aside:
        part.save(aside)
    record = run.folder / "calibration.json"
    before = files.read_json(record, "The run's calibration") if record.exists() else {}
    files.write_json(record, {name: value * before.get(name, 1.0) for name, value in temperatures.items()})
    (run.folder / "metrics.json").unlink(missing_ok=True)  # they were those of the network as it was
    return temperatures

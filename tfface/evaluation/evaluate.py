"""What a model said on one split, and how good it was: the numbers of metrics.json.

Every figure comes with the number of examples behind it and, where it is a share or a mean, with a 95 %
confidence interval, so that a difference can be told from chance. The same figures per group of people are in
`fairness`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.metrics import brier_score_loss, confusion_matrix, precision_recall_fscore_support

from tfface.errors import UserError
from tfface.files import written_aside

CALIBRATION_BINS = 15
"""Equal-width bins of confidence, as in Guo et al. (2017)."""

WITHIN_YEARS = 20
"""The within-k curve goes from 0 to this many years."""

COVERAGE_LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95)
"""Central intervals whose coverage is checked when a model predicts its own spread."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said on one split, with the truth.

    A task is one classification: "gender", "race", "age_bins". Ages in years stand apart. The truth may name
    more than the model predicts (race, for a model of gender only): it then serves to form groups.

    Attributes:
        key: (n,) str, the name of each example; no two alike.
        truth: for each task (n,) int class indices; "age", when known, (n,) exact age in years, >= 0.
        probabilities: for each task (n, classes) float in [0, 1], rows sum to 1.
        classes: names of the classes of each task, and of each other entry of `truth` except "age".
        age_years: (n,) float predicted age in years, or None.
        age_spread: (n,) float predicted standard deviation of the age in years, > 0, or None.
        ordered: tasks whose classes stand in order, so that being off by one class has a meaning.

    Raises:
        ValueError: shapes that do not match, values that are not finite or out of range, missing truth or
            names.
        UserError: there is no example at all.
    """

    key: np.ndarray
    truth: Mapping[str, np.ndarray]
    probabilities: Mapping[str, np.ndarray]
    classes: Mapping[str, tuple[str, ...]]
    age_years: np.ndarray | None = None
    age_spread: np.ndarray | None = None
    ordered: tuple[str, ...] = ("age_bins",)

    def __post_init__(self):
        if len(self.key) == 0:
            raise UserError(
                "There is nothing to evaluate: expected a split with at least one example, received an empty "
                "one. Build the data set again, or name another split."
            )
        names, counts = np.unique(self.key, return_counts=True)
        if counts.max() > 1:
            raise ValueError(
                f"Each example must be evaluated once, {str(names[counts.argmax()])!r} came {counts.max()} times."
            )
        for name, values in self.truth.items():
            values = self._numbers(f"truth[{name!r}]", values, (len(self.key),))
            if name == "age":
                _require(values.min() >= 0, "truth['age'] must be years >= 0", values.min())
                continue
            _require(name in self.classes, "`classes` must name the classes of every truth but age", name)
            _require(
                values.dtype.kind in "iu" and values.min() >= 0 and values.max() < len(self.classes[name]),
                f"truth[{name!r}] must be integers in [0, {len(self.classes[name])})",
                f"{values.dtype} from {values.min()} to {values.max()}",
            )
        for task, values in self.probabilities.items():
            _require(task != "age", "a task of ages must be called 'age_bins', 'age' is the age in years", task)
            _require(task in self.truth, "`truth` must hold every task of `probabilities`", task)
            what = f"probabilities[{task!r}]"
            values = self._numbers(what, values, (len(self.key), len(self.classes[task])))
            _require(values.min() >= 0 and values.max() <= 1.001, f"{what} must be in [0, 1]", values.max())
            worst = np.abs(values.sum(axis=1, dtype=np.float64) - 1).max()
            _require(worst < 0.01, f"rows of {what} must sum to 1", f"a row that is {worst:.3g} off")
        if self.age_years is not None:
            _require("age" in self.truth, "`age_years` needs truth['age']", sorted(self.truth))
            self._numbers("age_years", self.age_years, (len(self.key),))
        if self.age_spread is not None:
            _require(self.age_years is not None, "`age_spread` needs `age_years`", None)
            spread = self._numbers("age_spread", self.age_spread, (len(self.key),))
            _require(spread.min() > 0, "`age_spread` must be > 0", spread.min())
        _require(self.probabilities or self.age_years is not None, "a task or an age must be predicted", "neither")

    @staticmethod
    def _numbers(what: str, values, shape: tuple[int, ...]) -> np.ndarray:
        values = np.asarray(values)
        _require(values.shape == shape, f"{what} must have the shape {shape}", values.shape)
        _require(np.isfinite(values).all(), f"{what} must be finite", f"{(~np.isfinite(values)).sum()} NaN or Inf")
        return values

    def chosen(self, which: np.ndarray) -> Predictions:
        """Those of the examples that a mask `(n,)` keeps."""

        def part(values):
            return None if values is None else np.asarray(values)[which]

        return Predictions(
            part(self.key),
            {name: part(values) for name, values in self.truth.items()},
            {name: part(values) for name, values in self.probabilities.items()},
            self.classes,
            part(self.age_years),
            part(self.age_spread),
            self.ordered,
        )

    def save(self, path: str | Path) -> Path:
        """Write an .npz without pickles, aside first and then renamed.

        Args:
            path: the file, its name ending in .npz.

        Returns:
            The path.
        """
        arrays = {"key": np.asarray(self.key, dtype=str), "ordered": np.asarray(self.ordered, dtype=str)}
        arrays |= {f"truth/{name}": np.asarray(values) for name, values in self.truth.items()}
        arrays |= {f"probabilities/{task}": np.asarray(values) for task, values in self.probabilities.items()}
        arrays |= {f"classes/{name}": np.asarray(names, dtype=str) for name, names in self.classes.items()}
        ages = {"age_years": self.age_years, "age_spread": self.age_spread}
        arrays |= {name: np.asarray(values) for name, values in ages.items() if values is not None}
        with written_aside(path) as aside, open(aside, "wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        """Read what `save` wrote.

        Raises:
            UserError: the file is absent, or is not a file of predictions.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            part = {
                kind: {name.split("/", 1)[1]: array for name, array in arrays.items() if name.startswith(f"{kind}/")}
                for kind in ("truth", "probabilities", "classes")
            }
            return cls(
                key=arrays["key"],
                truth=part["truth"],
                probabilities=part["probabilities"],
                classes={name: tuple(names.tolist()) for name, names in part["classes"].items()},
                age_years=arrays.get("age_years"),
                age_spread=arrays.get("age_spread"),
                ordered=tuple(arrays["ordered"].tolist()),
            )
        except (FileNotFoundError, IsADirectoryError) as error:
            raise UserError(f"The predictions are not there: expected {path}. Evaluate the run first.") from error
        except (ValueError, KeyError, EOFError, TypeError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(
                f"{path} is not a file of predictions ({error}): expected the .npz that `tfface evaluate` "
                "writes. Evaluate the run again."
            ) from error


def _require(holds: bool, what: str, received) -> None:
    if not holds:
        raise ValueError(f"Predictions: {what}. Received: {received}")


def proportion(hits, n) -> dict:
    """A share with its 95 % score interval (Wilson, 1927), which stays in [0, 1] and holds for small n.

    Args:
        hits: number of examples that count, in [0, n].
        n: number of examples.

    Returns:
        `value` and `interval` [low, high], both None when n is 0.
    """
    if n == 0:
        return {"value": None, "interval": None}
    interval = stats.binomtest(int(hits), int(n)).proportion_ci(0.95, method="wilson")
    return {"value": float(hits) / float(n), "interval": [float(interval.low), float(interval.high)]}


def mean(values, least: float = -np.inf) -> dict:
    """A mean with its 95 % interval by Student's t; from a few dozen examples on the bootstrap gives the
    same.

    Args:
        values: (n,) numbers.
        least: the smallest value that a mean can have, which cuts the interval: 0 for absolute errors.

    Returns:
        `value` and `interval` [low, high]; the interval is None below two examples, the value is None at
        none.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return {"value": None, "interval": None}
    if len(values) == 1:
        return {"value": float(values[0]), "interval": None}
    value, half = values.mean(), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return {"value": float(value), "interval": [float(max(value - half, least)), float(value + half)]}


def evaluate(predictions: Predictions) -> dict:
    """All figures of one split.

    Args:
        predictions: what the model said, and the truth.

    Returns:
        A dictionary that goes to JSON as it stands: `n`, `tasks` (task -> `classification`) and, when ages
        were predicted, `age` (see `age_errors`). `fairness.by_group` gives the same per group.
    """
    metrics = {"n": len(predictions.key), "tasks": {}}
    for task, probabilities in predictions.probabilities.items():
        metrics["tasks"][task] = classification(
            predictions.truth[task], probabilities, predictions.classes[task], task in predictions.ordered
        )
    if predictions.age_years is not None:
        metrics["age"] = age_errors(predictions.truth["age"], predictions.age_years, predictions.age_spread)
    return metrics


def classification(truth, probabilities, classes, ordered: bool = False) -> dict:
    """Figures of one classification task.

    Args:
        truth: (n,) int class indices.
        probabilities: (n, classes) float, rows sum to 1.
        classes: names of the classes.
        ordered: whether the classes stand in order; adds `one_off`.

    Returns:
        accuracy (with interval), one_off (share at most one class away, with interval), majority (accuracy of
        always naming the commonest class), balanced_accuracy (mean recall of the classes that occur),
        macro_f1 (mean over the same classes), negative_log_likelihood (nats), brier (sum over the classes, in
        [0, 2]), per_class, confusion (rows are the truth), confused_pairs (the five commonest), calibration.
    """
    truth, probabilities = np.asarray(truth), np.asarray(probabilities, dtype=np.float64)
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    predicted, indices, n = probabilities.argmax(axis=1), np.arange(len(classes)), len(truth)
    confusion = confusion_matrix(truth, predicted, labels=indices)
    precision, recall, f1, count = precision_recall_fscore_support(
        truth, predicted, labels=indices, zero_division=np.nan
    )
    present = count > 0
    one_hot = np.eye(len(classes))[truth]
    metrics = {
        "classes": list(classes),
        "ordered": bool(ordered),
        "n": n,
        "accuracy": proportion(np.trace(confusion), n),
        "majority": float(count.max() / n),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[present].mean()),
        "negative_log_likelihood": float(_surprise(truth, probabilities).mean()),
        "brier": float(brier_score_loss(one_hot, probabilities, scale_by_half=False)),
        "per_class": [
            {
                "name": classes[i],
                "n": int(count[i]),
                "predicted": int(confusion[:, i].sum()),
                "recall": proportion(confusion[i, i], count[i]),
                "precision": _number(precision[i]),
                "f1": _number(f1[i]) if present[i] else None,
            }
            for i in indices
        ],
        "confusion": confusion.tolist(),
        "confused_pairs": _confused_pairs(confusion, classes),
        "calibration": calibration(predicted == truth, probabilities.max(axis=1)),
    }
    if ordered:
        metrics["one_off"] = proportion((np.abs(predicted - truth) <= 1).sum(), n)
    return metrics


def _surprise(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Cross-entropy of each example, nats, `(n,)`; that of 0 as of the least number that float32, an output, knows."""
    right = np.take_along_axis(probabilities, truth[:, None], axis=1)[:, 0]
    return -np.log(np.maximum(right, np.finfo("float32").tiny))


def _number(value) -> float | None:
    return float(value) if np.isfinite(value) else None


def _confused_pairs(confusion: np.ndarray, classes) -> list[dict]:
    """The five pairs of classes that are confused most."""
    wrong = confusion * (1 - np.eye(len(classes), dtype=int))
    pairs = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:5]]
    return [
        {
            "truth": classes[i],
            "predicted": classes[j],
            "n": int(wrong[i, j]),
            "share": float(wrong[i, j] / confusion[i].sum()),
        }
        for i, j in pairs
        if wrong[i, j]
    ]


def calibration(correct, confidence, bins: int = CALIBRATION_BINS) -> dict:
    """Whether a confidence of 0.9 is right nine times in ten.

    Expected calibration error of Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), equation
    3, with equal-width bins that are open below and closed above.

    Args:
        correct: (n,) bool.
        confidence: (n,) float in [0, 1], probability of the class that was named.
        bins: number of bins.

    Returns:
        expected_calibration_error, mean_confidence, over_confidence (mean confidence minus accuracy) and
        reliability, one row for each bin that holds an example.
    """
    correct, confidence = np.asarray(correct, dtype=bool), np.asarray(confidence, dtype=np.float64)
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(confidence, edges[1:-1], right=True)
    rows = []
    for i in np.unique(place):
        inside = place == i
        rows.append(
            {
                "low": float(edges[i]),
                "high": float(edges[i + 1]),
                "n": int(inside.sum()),
                "confidence": float(confidence[inside].mean()),
                "accuracy": proportion(correct[inside].sum(), inside.sum()),
            }
        )
    error = sum(row["n"] * abs(row["accuracy"]["value"] - row["confidence"]) for row in rows) / len(correct)
    return {
        "bins": bins,
        "expected_calibration_error": float(error),
        "mean_confidence": float(confidence.mean()),
        "over_confidence": float(confidence.mean() - correct.mean()),
        "reliability": rows,
    }


def age_errors(truth, predicted, spread=None) -> dict:
    """Figures of ages predicted in years.

    The within-k curve is the cumulative score of Geng et al., "Automatic Age Estimation Based on Facial Aging
    Patterns" (TPAMI 2007): the share of examples whose absolute error is at most k years.

    Args:
        truth: (n,) true age in years.
        predicted: (n,) predicted age in years.
        spread: (n,) predicted standard deviation in years, or None.

    Returns:
        mae and bias (mean of predicted minus true), in years with intervals; median_absolute_error, rmse;
        exact (share whose rounded prediction is the rounded truth); correlation; within (k from 0 to 20);
        decades; and spread when given: its mean and how often the central 50 to 95 % interval of a normal
        distribution holds the truth.

    Raises:
        ValueError: another number of ages than of true ones.
    """
    truth, predicted = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if truth.shape != predicted.shape:
        raise ValueError(f"Ages must be as many as true ages. Received: {predicted.shape} for {truth.shape}")
    error, n = predicted - truth, len(truth)
    distance = np.abs(error)
    decade = (truth // 10).astype(int)
    varied = np.ptp(truth) > 0 and np.ptp(predicted) > 0
    metrics = {
        "n": n,
        "mae": mean(distance, least=0),
        "bias": mean(error),
        "median_absolute_error": float(np.median(distance)),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "exact": proportion((np.rint(predicted) == np.rint(truth)).sum(), n),
        "correlation": float(np.corrcoef(truth, predicted)[0, 1]) if varied else None,
        "within": [{"years": k, **proportion((distance <= k).sum(), n)} for k in range(WITHIN_YEARS + 1)],
        "decades": [
            {
                "decade": f"{10 * d}-{10 * d + 9}",
                "n": int((decade == d).sum()),
                "mae": mean(distance[decade == d], least=0),
                "bias": mean(error[decade == d]),
            }
            for d in np.unique(decade)
        ],
    }
    if spread is not None:
        spread = np.asarray(spread, dtype=np.float64)
        metrics["spread"] = {
            "mean": float(spread.mean()),
            "coverage": [
                {
                    "nominal": level,
                    **proportion((distance <= spread * stats.norm.ppf((1 + level) / 2)).sum(), n),
                }
                for level in COVERAGE_LEVELS
            ],
        }
    return metrics


def worst_mistakes(predictions: Predictions, task: str, count: int = 24) -> list[tuple[int, str]]:
    """The examples that cost the most, in the spirit of the "top losses" of paper 3.

    Args:
        predictions: what the model said, and the truth.
        task: a task of `predictions.probabilities`, ranked by cross-entropy, or "age", ranked by the error in
            years.
        count: how many at most; examples that were right are never among them.

    Returns:
        For each, the worst first, its index in the split and a caption: truth, prediction, loss and key.

    Raises:
        ValueError: a task that was not predicted.
    """
    known = [*predictions.probabilities, *(["age"] if predictions.age_years is not None else [])]
    if task not in known:
        raise ValueError(f"The worst mistakes of a task need its predictions, one of {known}. Received: {task!r}")
    truth = np.asarray(predictions.truth[task])
    if task == "age":
        said = np.asarray(predictions.age_years, dtype=np.float64)
        loss = np.abs(said - truth)
        wrong = np.rint(said) != np.rint(truth)
        words = "true {truth:.0f}, said {said:.0f} years, {loss:.0f} off, {key}".format
    else:
        names = np.asarray(predictions.classes[task])
        probabilities = np.asarray(predictions.probabilities[task], dtype=np.float64)
        indices = probabilities.argmax(axis=1)
        loss = _surprise(truth, probabilities)
        wrong, truth, said = indices != truth, names[truth], names[indices]
        words = "true {truth}, said {said}, loss {loss:.2f}, {key}".format
    order = [int(i) for i in np.argsort(-loss, kind="stable") if wrong[i]][:count]
    return [(i, words(truth=truth[i], said=said[i], loss=loss[i], key=predictions.key[i])) for i in order]

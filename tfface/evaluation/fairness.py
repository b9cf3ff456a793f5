"""Every figure per group of people: perceived gender, race, age group, and the cells between them.

A mean over everybody hides who is served badly. Each group stands here with its number of examples and its
interval; a group below `SMALLEST_GROUP` is shown and marked as too small to judge, and never names a gap.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from tfface.evaluation.evaluate import Predictions, mean, proportion
from tfface.labels import ARG_AGE_STARTS, age_bin

SMALLEST_GROUP = 30
"""Below this many examples a group is too small to judge: at 30, a share of 0.9 may be 0.74 or 0.97."""


def by_group(predictions: Predictions, age_starts: Sequence[int] = ARG_AGE_STARTS) -> dict:
    """Accuracy of every task and error of age for every group, with the gap between the best and the worst.

    Args:
        predictions: what the model said, and the truth. Groups are formed from what the truth names: gender,
            race and any other class, and age; who somebody is, an "identity", makes no group.
        age_starts: first age (years) of each age group, ascending, the first 0. Where the truth has no age in
            years, an "age_group" or "age_bins" forms the age groups.

    Returns:
        A dictionary that goes to JSON as it stands: `smallest_group`; `figures`, each with `title` and
        `better` ("high", "low", "zero"); `overall`, each figure over everybody; `by`, from "gender", "race",
        "age group", "gender x race" and "gender x race x age group" to `groups` (`group` the names, `n`,
        `too_small`, `figures`) and `gaps` (figure -> `gap` worst minus best, `interval`, `best`, `worst`;
        None where fewer than two groups are large enough, or where no direction is better).
    """
    figures, outcomes = _outcomes(predictions)
    of = attributes(predictions, age_starts)
    overall = {name: _summary(outcomes[name], figure["better"]) for name, figure in figures.items()}
    by = {}
    for names in _combinations(list(of)):
        groups = []
        for members in itertools.product(*(range(len(of[name][1])) for name in names)):
            inside = np.ones(len(predictions.key), dtype=bool)
            for name, member in zip(names, members, strict=True):
                inside &= of[name][0] == member
            n = int(inside.sum())
            groups.append(
                {
                    "group": [of[name][1][member] for name, member in zip(names, members, strict=True)],
                    "n": n,
                    "too_small": n < SMALLEST_GROUP,
                    "figures": {
                        name: _summary(outcomes[name][inside], figure["better"]) for name, figure in figures.items()
                    },
                }
            )
        by[" x ".join(names)] = {
            "groups": groups,
            "gaps": {name: _gap(groups, name, figure["better"]) for name, figure in figures.items()},
        }
    return {"smallest_group": SMALLEST_GROUP, "figures": figures, "overall": overall, "by": by}


def _outcomes(predictions: Predictions) -> tuple[dict, dict]:
    """Figures by name, and for each what every single example adds to it: right or not, or an error in
    years."""
    figures, outcomes = {}, {}
    for task, probabilities in predictions.probabilities.items():
        distance = np.abs(np.argmax(probabilities, axis=1) - np.asarray(predictions.truth[task]))
        title = task.replace("_", " ")
        figures[f"{task}_accuracy"] = {"title": f"{title} accuracy", "better": "high"}
        outcomes[f"{task}_accuracy"] = distance == 0
        if task in predictions.ordered:
            figures[f"{task}_one_off"] = {"title": f"{title} within one", "better": "high"}
            outcomes[f"{task}_one_off"] = distance <= 1
    if predictions.age_years is not None:
        error = np.asarray(predictions.age_years, dtype=np.float64) - predictions.truth["age"]
        figures["age_mae"] = {"title": "age MAE, years", "better": "low"}
        outcomes["age_mae"] = np.abs(error)
        figures["age_bias"] = {"title": "age bias, years", "better": "zero"}
        outcomes["age_bias"] = error
    return figures, outcomes


def attributes(
    predictions: Predictions, age_starts: Sequence[int] = ARG_AGE_STARTS
) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
    """What people are grouped by: attribute -> the index of each example's group `(n,)`, and the groups' names.

    Raises:
        ValueError: age groups that do not begin at 0, or do not rise.
    """
    found = {
        name: (np.asarray(predictions.truth[name]), tuple(predictions.classes[name]))
        for name in sorted(predictions.truth, key=lambda name: (name != "gender", name != "race", name))
        if name not in ("age", "identity", *predictions.ordered)
    }
    if "age" in predictions.truth:
        if age_starts[0] != 0 or list(age_starts) != sorted(set(age_starts)):
            raise ValueError(f"Age groups must begin at 0 and rise, or people are in none. Received: {age_starts}")
        ends = [f"-{following - 1}" for following in age_starts[1:]] + ["+"]
        names = tuple(f"{start}{end}" for start, end in zip(age_starts, ends, strict=True))
        found["age group"] = (age_bin(np.floor(predictions.truth["age"]), age_starts), names)
    else:
        for name in ("age_group", "age_bins"):
            if name in predictions.truth:
                found["age group"] = (np.asarray(predictions.truth[name]), tuple(predictions.classes[name]))
                break
    return found


def _combinations(names: list[str]) -> list[tuple[str, ...]]:
    """Each attribute alone, then gender x race and gender x race x age group as far as they are known."""
    wanted = [(name,) for name in names]
    for cell in (("gender", "race"), ("gender", "race", "age group")):
        known = tuple(name for name in cell if name in names)
        if len(known) > 1 and known not in wanted:
            wanted.append(known)
    return wanted


def _summary(values: np.ndarray, better: str) -> dict:
    if values.dtype == bool:
        return proportion(values.sum(), len(values))
    return mean(values, least=0 if better == "low" else -np.inf)


def _gap(groups: list[dict], figure: str, better: str) -> dict | None:
    """Worst minus best of the groups that are large enough.

    The interval of the difference is built from the two groups' own intervals (Zou and Donner, "Construction
    of confidence limits about effect measures", 2008; for shares it is Newcombe's method 10). The two groups
    were picked for being extreme, so with many groups of like quality the gap is too large on average.
    """
    judged = [group for group in groups if not group["too_small"]]
    if better == "zero" or len(judged) < 2:
        return None
    judged.sort(key=lambda group: group["figures"][figure]["value"], reverse=better == "high")
    best, worst = judged[0], judged[-1]
    (b, (b_low, b_high)), (w, (w_low, w_high)) = (
        (group["figures"][figure]["value"], group["figures"][figure]["interval"]) for group in (best, worst)
    )
    return {
        "gap": w - b,
        "interval": [
            w - b - np.hypot(w - w_low, b_high - b).item(),
            w - b + np.hypot(w_high - w, b - b_low).item(),
        ],
        "best": best["group"],
        "worst": worst["group"],
    }

"""Runs beside each other on the same images: which of them is better, and is the difference more than luck?

What an ablation needs: every run's figure with its spread over seeds, and its difference from the first run with a 95 %
interval that counts both kinds of luck, that of training (the seeds) and that of the images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from tfface import __version__
from tfface.errors import UserError
from tfface.evaluation import plots
from tfface.evaluation.evaluate import Predictions
from tfface.evaluation.fairness import SMALLEST_GROUP, attributes
from tfface.evaluation.pages import Page, Picture, Section, Table, Text, slug
from tfface.evaluation.report import RESPONSIBLE_USE
from tfface.files import write_json
from tfface.training.run import Run, runs_in

BETTER = {"accuracy": "high", "error": "low"}
"""Last word of a figure's name -> which end of it is better."""


class Scores(NamedTuple):
    """What the seeds of one run scored on each image.

    Attributes:
        folder: the run's folder.
        fields: the fields of its recipe; and "pruned", how its network was, or "no".
        key: (n,) names of the images, sorted.
        figures: name of the figure -> (seeds, n): "TASK accuracy", 1 where the answer is right and 0 where not, or
            "age error", years >= 0.
        groups: attribute -> (n,) the group of each image, and the groups' names (`fairness.attributes`).
        truth: name of the figure -> (n,) what is right for each image, by name or in years, and between what it had to
            choose: two figures of one name are comparable where both are the same.
    """

    folder: Path
    fields: dict
    key: np.ndarray
    figures: dict[str, np.ndarray]
    groups: dict[str, tuple[np.ndarray, tuple[str, ...]]]
    truth: dict[str, tuple[np.ndarray, frozenset[str]]]

    def chosen(self, which: np.ndarray) -> Scores:
        """Those of the images that a mask `(n,)` keeps."""
        figures = {name: values[:, which] for name, values in self.figures.items()}
        groups = {name: (member[which], names) for name, (member, names) in self.groups.items()}
        truth = {name: (right[which], among) for name, (right, among) in self.truth.items()}
        return self._replace(key=self.key[which], figures=figures, groups=groups, truth=truth)


def scores(folder: str | Path, split: str = "test") -> Scores:
    """The scores of a run, or of all seeds of a folder of runs, from the predictions that `tfface evaluate` left.

    Args:
        folder: of one run, or of several with the names seed-*; "FOLDER:SPLIT" where another split is meant, such as
            "runs/compact/seed-0:utkface-five-point-test".
        split: name of the split.

    Raises:
        UserError: no run is there, it was not evaluated on the split, or its seeds were on different images or labels.
    """
    folder, _, named = str(folder).partition(":")
    folder, split = Path(folder), named or split
    runs = runs_in(folder)
    fields = runs[0].recipe().to_json() | {"pruned": runs[0].pruned or "no"}
    every = [Predictions.load(run.folder / f"predictions-{split}.npz") for run in runs]
    every = [predictions.chosen(np.argsort(predictions.key)) for predictions in every]
    truths = [_truth(predictions) for predictions in every]
    for run, predictions, truth in zip(runs, every, truths, strict=True):
        _same_images(runs[0].folder, every[0].key, run.folder, predictions.key)
        _same_labels(runs[0].folder, truths[0], run.folder, truth)
    of_seeds = [_figures(predictions) for predictions in every]
    figures = {name: np.stack([scored[name] for scored in of_seeds]) for name in of_seeds[0]}
    return Scores(folder, fields, every[0].key, figures, attributes(every[0]), truths[0])


def _truth(predictions: Predictions) -> dict[str, tuple[np.ndarray, frozenset[str]]]:
    found = {
        f"{task} accuracy": (np.array(predictions.classes[task])[predictions.truth[task]], predictions.classes[task])
        for task in predictions.probabilities
    }
    if predictions.age_years is not None:
        found["age error"] = (predictions.truth["age"], ())
    return {name: (right, frozenset(among)) for name, (right, among) in found.items()}


def _comparable(base: Scores, other: Scores, figure: str) -> str:
    """Why a figure that both have cannot be compared; empty where it can."""
    (right, among), (theirs, others) = base.truth[figure], other.truth[figure]
    if among != others:
        return f"{other.folder} tells {', '.join(sorted(others))} apart, {base.folder} {', '.join(sorted(among))}"
    if not np.array_equal(right, theirs):
        return f"{np.sum(right != theirs)} of {len(right)} images have another label in {other.folder}"
    return ""


def _figures(predictions: Predictions) -> dict[str, np.ndarray]:
    figures = {
        f"{task} accuracy": np.asarray(probabilities.argmax(axis=1) == predictions.truth[task], float)
        for task, probabilities in predictions.probabilities.items()
    }
    if predictions.age_years is not None:
        figures["age error"] = np.abs(predictions.age_years - predictions.truth["age"])
    return figures


def _same_images(folder, key, other_folder, other_key) -> None:
    if not np.array_equal(key, other_key):
        both = len(np.intersect1d(key, other_key))
        raise UserError(
            f"Only runs that were evaluated on the same images can be compared. Received: {folder} with {len(key):,}, "
            f"{other_folder} with {len(other_key):,}, {both:,} of them in both. Evaluate both on one data set, or "
            "compare them on what both have (--common)."
        )


def _same_labels(folder, truth, other_folder, other_truth) -> None:
    """Of two seeds, whose mean would be that of nothing where one was evaluated before the data set was built anew."""
    others = [
        name
        for name in truth.keys() | other_truth.keys()
        if name not in truth
        or name not in other_truth
        or truth[name][1] != other_truth[name][1]
        or not np.array_equal(truth[name][0], other_truth[name][0])
    ]
    if others:
        raise UserError(
            f"Only seeds that were evaluated on the same labels have a mean. Received: {folder} and {other_folder}, "
            f"which differ in those of {', '.join(sorted(others))}. Evaluate both again."
        )


def difference(ours: np.ndarray, base: np.ndarray, share: bool = False) -> dict:
    """The mean of our scores minus that of others, with a 95 % interval by Student's t (Welch and Satterthwaite).

    Its variance is that of the images' mean differences plus that of either side's seeds, where it has more than one.
    The seeds' variance holds a little of the images' too, which errs on the careful side.

    Of shares of right answers the interval is that of two images more, half an image in each cell of the table of who
    was right: of few images, or where both were right on nearly all, it would be far too narrow otherwise. Agresti and
    Min, Simple improved confidence intervals for comparing matched proportions (Statistics in Medicine 24, 2005).

    Args:
        ours: (seeds, n) scores.
        base: (other seeds, n) scores on the same images.
        share: whether the scores are 1 for a right answer and 0 for a wrong one.

    Returns:
        `value` and `interval` [low, high]; None of a single image's other score.
    """
    each = ours.mean(axis=0) - base.mean(axis=0)
    value = centre = float(each.mean())
    if share:
        count = len(each) + 2
        centre = each.sum() / count
        parts = [((((each**2).sum() + 1) / count - centre**2) / count, count - 1)]
    elif len(each) > 1:
        parts = [(each.var(ddof=1) / len(each), len(each) - 1)]
    else:
        return {"value": value, "interval": None}
    parts += [(side.mean(axis=1).var(ddof=1) / len(side), len(side) - 1) for side in (ours, base) if len(side) > 1]
    variance, half = sum(part for part, _ in parts), 0.0
    if variance > 0:
        freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
        half = stats.t.ppf(0.975, freedom) * variance**0.5
    low, high = float(centre - half), float(centre + half)
    return {"value": value, "interval": [max(low, -1.0), min(high, 1.0)] if share else [low, high]}


def compare(folders: Sequence[str | Path], split: str = "test", common: bool = False) -> dict:
    """Set runs beside the first of them.

    Args:
        folders: of runs, or of several seeds each, see `scores`; the first is what the others are measured against.
        split: name of the split.
        common: compare on the images that all runs have, where they were evaluated on different ones, such as faces
            that two alignments found.

    Returns:
        A dictionary that goes to JSON as it stands: `split`, `n`, `left_out` (of each run: images that not all have),
        `not_compared` (figure -> why, such as other classes) and
        `figures`: name -> `better` ("high" or "low"), `rows`, of which each has `name`, `folder`, `changed`
        (fields of the recipe: [the first run's, its own]), `seeds` (one value each), `value` (their mean), `spread`
        (their standard deviation, None for one) and, but for the first, `difference` (see `difference`), and `groups`:
        the same rows for every group of people, with `attribute`, `group`, `n` and `too_small`.

    Raises:
        UserError: fewer than two runs, a run that was not evaluated, different images, or no task in common.
    """
    if len(folders) < 2:
        raise UserError(f"expected two runs or more to compare, received {len(folders)}")
    every = [scores(folder, split) for folder in folders]
    sizes = [len(one.key) for one in every]
    if common:
        shared = functools.reduce(np.intersect1d, [one.key for one in every])
        if not len(shared):
            raise UserError(f"expected runs with images in common, received none: {', '.join(map(str, folders))}")
        every = [one.chosen(np.isin(one.key, shared)) for one in every]
    base = every[0]
    for other in every[1:]:
        _same_images(base.folder, base.key, other.folder, other.key)
    shared = [name for name in base.figures if all(name in other.figures for other in every)]
    why = {name: next(filter(None, (_comparable(base, other, name) for other in every)), "") for name in shared}
    names = [name for name in shared if not why[name]]
    if not names:
        received = "; ".join(why.values()) or "; ".join(f"{one.folder} with {', '.join(one.figures)}" for one in every)
        raise UserError(f"expected runs with a task in common, received {received}")
    figures = {}
    for figure in names:
        groups = []
        for attribute, (member, members) in base.groups.items():
            for place, group in enumerate(members):
                inside = member == place
                about = {"attribute": attribute, "group": group, "n": int(inside.sum())}
                if about["n"]:
                    rows = _rows([one.chosen(inside) for one in every], figure)
                    groups.append({**about, "too_small": about["n"] < SMALLEST_GROUP, "rows": rows})
        rows = _rows(every, figure)
        for row, name, one in zip(rows, _names([one.folder for one in every]), every, strict=True):
            changed = {
                field: [base.fields.get(field), value]
                for field, value in one.fields.items()
                if value != base.fields.get(field) and field != "seed"
            }
            row.update(name=name, folder=str(one.folder), changed=changed)
        figures[figure] = {"better": BETTER[figure.split()[-1]], "rows": rows, "groups": groups}
    n = len(base.key)
    left = {name: reason for name, reason in why.items() if reason}
    return {"split": split, "n": n, "left_out": [size - n for size in sizes], "figures": figures, "not_compared": left}


def _rows(every: Sequence[Scores], figure: str) -> list[dict]:
    """What each run scored, and its difference from the first."""
    rows = []
    for one in every:
        values = one.figures[figure].mean(axis=1)
        spread = float(values.std(ddof=1)) if len(values) > 1 else None
        row = {"seeds": values.tolist(), "value": float(values.mean()), "spread": spread}
        if one is not every[0]:
            row["difference"] = difference(
                one.figures[figure], every[0].figures[figure], share=figure.endswith("accuracy")
            )
        rows.append(row)
    return rows


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names without the words that all begin or end with; their paths where that leaves nothing."""
    parts = [Run(folder).name.split("-") for folder in folders]
    least = min(map(len, parts))
    head = next((i for i in range(least) if len({part[i] for part in parts}) > 1), least)
    tail = next((i for i in range(least - head) if len({part[-1 - i] for part in parts}) > 1), least - head)
    names = ["-".join(part[head : len(part) - tail]) for part in parts]
    return names if all(names) and len(set(names)) == len(names) else [str(folder) for folder in folders]


def verdict(row: dict, better: str) -> str:
    """What a row's interval says: "better", "worse", or "not told apart"."""
    if "difference" not in row:
        return ""
    low, high = row["difference"]["interval"] or (0, 0)
    if low <= 0 <= high:
        return "not told apart"
    return "better" if (low > 0) == (better == "high") else "worse"


HEAD = ("run", "what is different", "value", "seeds", "difference (95 % interval)", "verdict")


def cells(row: dict, better: str) -> tuple[str, ...]:
    """One row of the table of a figure, under the names of `HEAD`."""
    # The fields of another recipe are other fields: only its name says something.
    shown = {"recipe": row["changed"]["recipe"]} if "recipe" in row["changed"] else row["changed"]
    changed = ", ".join(f"{field}: {new}" for field, (_, new) in shown.items())
    value, told = _value(row, better), _difference(row, better)
    what = changed or "nothing" if told else "(base)"
    return row["name"], what, value, str(len(row["seeds"])), told, verdict(row, better)


def _value(row: dict, better: str) -> str:
    digits = 3 if better == "high" else 2
    spread = "" if row["spread"] is None else f" ± {row['spread']:.{digits}f}"
    return f"{row['value']:.{digits}f}{spread}"


def _difference(row: dict, better: str) -> str:
    if "difference" not in row:
        return ""
    digits = 3 if better == "high" else 2
    ends = (row["difference"]["value"], *(row["difference"]["interval"] or ()))
    told, *interval = (f"{end:+.{digits}f}" for end in ends)
    return f"{told} ({' to '.join(interval) or 'one image'})"


def _groups(about: dict) -> Table:
    """Every group of people: what the first run scores there, and how far each of the others is from it."""
    first, *others = [row["name"] for row in about["rows"]]
    rows = []
    for group in about["groups"]:
        base, *compared = group["rows"]
        small = " (too few to judge)" * group["too_small"]
        told = [_difference(row, about["better"]) for row in compared]
        rows.append(
            (f"{group['attribute']}: {group['group']}{small}", str(group["n"]), _value(base, about["better"]), *told)
        )
    caption = (
        "For each group of people, the difference from the first run with its 95 % interval. Of so many groups one in "
        "twenty leaves zero out by chance."
    )
    small_rows = [index for index, group in enumerate(about["groups"]) if group["too_small"]]
    return Table(("group", "n", first, *others), rows, caption, small_rows=small_rows, folded=True)


def write_comparison(compared: dict, folder: str | Path, command: str = "") -> dict[str, Path]:
    """Write what `compare` gives as report.html, report.md and report.json, with a picture of each figure.

    Returns:
        The paths by kind: "html", "markdown", "json", "figures".
    """
    sections = []
    for figure, about in compared["figures"].items():
        title = figure.replace("_", " ").capitalize()
        rows = [cells(row, about["better"]) for row in about["rows"]]
        caption = (
            "± is the standard deviation over the seeds. The interval of a difference counts the luck of the seeds and "
            "that of the images."
        )
        if any(len(row["seeds"]) == 1 for row in about["rows"]):
            caption += (
                " Of a run with one seed the luck of training is not counted: its interval (hollow) is too narrow."
            )
        unit = "years" if about["better"] == "low" else "share of images"
        picture = Picture(
            slug(figure),
            f"{title}, {unit}: every seed, the means, and the differences from the first.",
            partial(plots.comparison, about["rows"]),
            size="wide",
        )
        blocks = [picture, Table(HEAD, rows, caption, text_columns=(0, 1, 5))]
        sections.append(Section(title, [*blocks, _groups(about)] if about["groups"] else blocks))
    sections.append(Section("Use", [Text(words) for words in RESPONSIBLE_USE]))
    first = next(iter(compared["figures"].values()))["rows"]
    summary = f"{len(first)} runs on {compared['split']}, the same {compared['n']:,} images each."
    if any(compared["left_out"]):
        names = [row["name"] for row in first]
        left_out = ", ".join(f"{count:,} of {name}" for name, count in zip(names, compared["left_out"], strict=True))
        summary += f" Left out, as not all runs have them: {left_out}."
    footer = f"Written by tfface {__version__}" + f": {command}" * bool(command)
    paths = Page("Runs compared", summary, [], sections, footer).write(Path(folder))
    paths["json"] = write_json(Path(folder) / "report.json", {**compared, "command": command})
    return paths

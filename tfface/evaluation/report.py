"""The report of a run: one self-contained HTML page, and the same in Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfface import __version__
from tfface.evaluation import plots
from tfface.evaluation.evaluate import Predictions
from tfface.evaluation.pages import Code, Gallery, Page, Picture, Section, Table, Text, Tile, slug
from tfface.files import write_json

RESPONSIBLE_USE = (
    "Age, gender and race here are perceived labels: what annotators saw in a picture. They are not a person's "
    "identity, and the categories are those of the data set.",
    "Do not use these predictions to identify anybody, or to decide about people: not for access, policing, hiring, "
    "credit, health or border control. The errors differ between groups of people.",
)
"""The words on use that every report carries."""


class Comparison(NamedTuple):
    """One row of the table that sets a published figure beside ours.

    Attributes:
        metric: what was measured, e.g. "gender accuracy".
        published: the published value, or None where the paper gives none.
        source: where it stands in the paper, e.g. "poster, results table".
        ours: our value in the same unit (the mean over the seeds), or None where it was not measured.
        spread: standard deviation over the seeds, or None for one seed.
        n: number of examples (or pairs) behind our value.
        seeds: number of seeds, stated when there is a spread.
    """

    metric: str
    published: float | None
    source: str
    ours: float | None
    spread: float | None = None
    n: int | None = None
    seeds: int | None = None


def write_report(
    folder: str | Path,
    *,
    title: str,
    summary: str = "",
    metrics: Mapping | None = None,
    predictions: Predictions | None = None,
    comparison: Sequence[Comparison | Sequence] = (),
    history: Sequence[Mapping] = (),
    worst: Mapping[str, Sequence[tuple[np.ndarray, str]]] | Sequence[tuple[np.ndarray, str]] = (),
    headline: Sequence[Tile] = (),
    sections: Sequence[Section] = (),
    config: Mapping | None = None,
    versions: Mapping[str, str] | None = None,
    command: str | None = None,
    licences: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Path]:
    """Write report.html, report.md, report.json and pictures in figures/, each aside first and then renamed.

    Args:
        folder: where to; made when absent. An earlier report there is replaced.
        title: heading of the page.
        summary: one line: what was trained, on what data.
        metrics: what `evaluate` gives, with `fairness.by_group` under "groups", for one split or by name of
            split. The split "test", else the first, is shown in full, the others in one table.
        predictions: of the split shown in full; adds the figure of predicted against true age.
        comparison: published figures beside ours, see `Comparison`; plain tuples in its order do.
        history: one mapping for each epoch, see `plots.training_curves`.
        worst: worst mistakes with their captions (see `evaluate.worst_mistakes`), by name of task or in one
            list.
        headline: headline figures of the recipe's own, after those of the metrics.
        sections: sections of the recipe's own, such as ablations, shown after the training curves.
        config: configuration of the run, nested mappings allowed.
        versions: version of each package that took part.
        command: the command that makes this result.
        licences: licence of each data set and each file of weights that the recipe may use.
        notes: what the reader must know: deviations, left-out data, what was not reached.

    Returns:
        The paths by kind: "html", "markdown", "json", "figures".
    """
    splits = {"evaluation": metrics} if metrics and "n" in metrics else dict(metrics or {})
    shown = "test" if "test" in splits else next(iter(splits), None)
    comparison = [Comparison(*row) for row in comparison]
    worst = dict(worst) if isinstance(worst, Mapping) else {"": worst}

    contents: list[Section] = []
    if comparison:
        contents.append(Section("Published and ours", [_comparison_table(comparison)]))
    if shown:
        contents += _split_sections(splits, shown, predictions)
    if history:
        caption = f"Training curves over {len(history)} epoch{'s' * (len(history) > 1)}."
        draw = partial(plots.training_curves, history)
        contents.append(Section("Training", [Picture("training", caption, draw, size="wide")]))
    contents += sections
    galleries = [_gallery(task, tiles) for task, tiles in worst.items() if len(tiles)]
    if galleries:
        contents.append(Section("Worst mistakes", galleries))
    contents.append(Section("How it was made", _making(config, versions, command, notes)))
    contents.append(_use_section(licences or {}))

    written = datetime.now().astimezone().isoformat(timespec="seconds")
    footer = (
        f"Written {written} by tfface {__version__}. Intervals are 95 %: Wilson's score interval for shares, "
        "Student's t for means. Figures without an interval have none."
    )
    tiles = [*(_headline(shown, splits[shown]) if shown else []), *headline]
    paths = Page(title, summary, tiles, contents, footer).write(Path(folder))
    record = {
        "title": title,
        "summary": summary,
        "written": written,
        "tfface": __version__,
        "command": command,
        "headline": [tile._asdict() for tile in tiles],
        "comparison": [row._asdict() for row in comparison],
        "metrics": splits,
        "history": history,
        "config": config or {},
        "versions": versions or {},
        "licences": licences or {},
        "responsible_use": RESPONSIBLE_USE,
        "notes": notes,
        "worst": {task: [caption for _, caption in tiles] for task, tiles in worst.items() if len(tiles)},
    }
    paths["json"] = write_json(Path(folder) / "report.json", _plain(record))
    return paths


def _gallery(task: str, tiles: Sequence[tuple[np.ndarray, str]]) -> Gallery:
    caption = f"{_name(task)}: the {len(tiles)} costliest mistakes, the worst first.".lstrip(": ")
    return Gallery(f"worst-{slug(task)}".strip("-"), caption, tiles)


def _use_section(licences: Mapping[str, str]) -> Section:
    use = [Text(words) for words in RESPONSIBLE_USE]
    if licences:
        caption = "Licences of what this recipe may use; photos of your own have theirs."
        use.append(Table(("data or weights", "licence"), [*licences.items()], caption, text_columns=(0, 1)))
    return Section("Use and licences", use)


def _name(task: str) -> str:
    return task.replace("_", " ").capitalize()


def _number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    if value is None:
        return "–"
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "−")


def _interval(figure: Mapping, digits: int = 3) -> str:
    return " to ".join(_number(end, digits) for end in figure["interval"]) if figure["interval"] else "–"


def _comparison_table(rows: Sequence[Comparison]) -> Table:
    cells = []
    for row in rows:
        sizes = [abs(value) for value in (row.published, row.ours) if value is not None]
        digits = 3 if max(sizes, default=0) <= 2 else 2
        ours = _number(row.ours, digits)
        if row.spread is not None:
            ours += f" ± {_number(row.spread, digits)}" + (f" ({row.seeds} seeds)" if row.seeds else "")
        difference = None if None in (row.published, row.ours) else row.ours - row.published
        n = "–" if row.n is None else f"{row.n:,}"
        published = _number(row.published, digits)
        cells.append((row.metric, published, ours, _number(difference, digits, sign=True), n, row.source))
    caption = "Difference is ours minus published: where the images are others, a hint and no ranking."
    if any(row.spread is not None for row in rows):
        caption += " ± is the standard deviation over the seeds."
    return Table(("metric", "paper", "ours", "difference", "n", "source"), cells, caption, text_columns=(0, 5))


def _headline(split: str, metrics: Mapping) -> list[Tile]:
    tiles = [Tile("Faces", f"{metrics['n']:,}", f"split: {split}")]
    for task, figures in metrics["tasks"].items():
        accuracy = figures["accuracy"]
        tiles.append(Tile(f"{_name(task)} accuracy", _number(accuracy["value"]), _interval(accuracy)))
    if "age" in metrics:
        mae = metrics["age"]["mae"]
        tiles.append(Tile("Age, mean error", _number(mae["value"], 2), f"{_interval(mae, 2)} years"))
    return tiles


def _split_sections(splits: Mapping, shown: str, predictions: Predictions | None) -> list[Section]:
    metrics = splits[shown]
    overview = [_tasks_table(metrics)] if metrics["tasks"] else []
    if len(splits) > 1:
        overview.append(_splits_table(splits))
    contents = [Section("Results", overview)] if overview else []
    contents += [_task_section(task, figures) for task, figures in metrics["tasks"].items()]
    if "age" in metrics:
        contents.append(_age_section(metrics["age"], predictions))
    if "groups" in metrics:
        contents.append(_groups_section(metrics["groups"]))
    return contents


def _tasks_table(metrics: Mapping) -> Table:
    rows = []
    for task, figures in metrics["tasks"].items():
        values = [figures["accuracy"]["value"], figures.get("one_off", {}).get("value"), figures["majority"]]
        values += [figures["balanced_accuracy"], figures["macro_f1"], figures["negative_log_likelihood"]]
        values += [figures["brier"], figures["calibration"]["expected_calibration_error"]]
        row = [_name(task), *map(_number, values)]
        rows.append((*row[:2], _interval(figures["accuracy"]), *row[2:]))
    head = ("task", "accuracy", "95 % interval", "within one class", "majority class", "balanced accuracy")
    head += ("macro F1", "NLL", "Brier", "ECE")
    caption = (
        "Majority class: accuracy of always naming the commonest class. Balanced accuracy and macro F1: means over the "
        "classes. NLL: negative log likelihood in nats. Brier: squared error summed over the classes, 0 to 2. ECE: "
        "expected calibration error, 15 bins."
    )
    return Table(head, rows, caption)


def _splits_table(splits: Mapping) -> Table:
    tasks = list(dict.fromkeys(task for metrics in splits.values() for task in metrics["tasks"]))
    years = any("age" in metrics for metrics in splits.values())
    rows = []
    for split, metrics in splits.items():
        row = [split, f"{metrics['n']:,}"]
        for task in tasks:
            row.append(_number(metrics["tasks"].get(task, {}).get("accuracy", {}).get("value")))
        if years:
            row.append(_number(metrics["age"]["mae"]["value"], 2) if "age" in metrics else "–")
        rows.append(row)
    head = ["split", "n", *(f"{_name(task)} accuracy" for task in tasks), *(["age MAE, years"] if years else [])]
    return Table(head, rows, "The same model on every split that was evaluated.")


def _task_section(task: str, figures: Mapping) -> Section:
    result = figures["calibration"]
    accuracy = figures["accuracy"]
    right, over = round(accuracy["value"] * figures["n"]), result["over_confidence"]
    text = f"Right on {right:,} of {figures['n']:,} faces: {_number(accuracy['value'])} ({_interval(accuracy)})."
    if "one_off" in figures:
        one_off = figures["one_off"]
        text += f" At most one class away: {_number(one_off['value'])} ({_interval(one_off)})."
    text += (
        f" The mean confidence, {_number(result['mean_confidence'])}, is {_number(abs(over))} "
        f"{'above' if over > 0 else 'below'} the accuracy."
    )
    classes = [
        (
            row["name"],
            f"{row['n']:,}",
            f"{row['predicted']:,}",
            _number(row["recall"]["value"]),
            _interval(row["recall"]),
            _number(row["precision"]),
            _number(row["f1"]),
        )
        for row in figures["per_class"]
    ]
    head = ("class", "n", "named", "recall", "95 % interval", "precision", "F1")
    pairs = [
        (pair["truth"], pair["predicted"], f"{pair['n']:,}", _number(pair["share"]))
        for pair in figures["confused_pairs"]
    ]
    blocks: list = [
        Text(text),
        Picture(
            f"confusion-{slug(task)}",
            "Confusion matrix: share of each true class, and counts.",
            partial(plots.confusion, figures),
            size="dense" if len(figures["classes"]) > 5 else "half",
        ),
        Picture(
            f"reliability-{slug(task)}",
            "Reliability: accuracy of the predictions made with each confidence, with intervals; below, how many. The "
            f"expected calibration error is {_number(result['expected_calibration_error'])}.",
            partial(plots.reliability, figures),
        ),
        Table(head, classes, "Each class.", folded=len(classes) > 12),
    ]
    if pairs:
        caption = "Most confused pairs, with their share of the true class."
        blocks.append(Table(("truth", "named", "n", "share"), pairs, caption, text_columns=(0, 1)))
    return Section(_name(task), blocks)


def _age_section(age: Mapping, predictions: Predictions | None) -> Section:
    mae, bias, exact = age["mae"], age["bias"], age["exact"]
    text = (
        f"The mean absolute error is {_number(mae['value'], 2)} years ({_interval(mae, 2)}), the median "
        f"{_number(age['median_absolute_error'], 2)}, the root mean square {_number(age['rmse'], 2)}. The bias, "
        f"predicted minus true, is {_number(bias['value'], 2, sign=True)} years ({_interval(bias, 2)}). To the year, "
        f"{_number(exact['value'])} are right ({_interval(exact)})."
    )
    blocks: list = [Text(text)]
    caption = "Share of faces whose age is at most k years off."
    blocks.append(Picture("age-within", caption, partial(plots.within_years, age)))
    if predictions is not None and predictions.age_years is not None:
        draw = partial(plots.age_density, predictions.truth["age"], predictions.age_years)
        caption = "Predicted against true age, with the median and the 10th to 90th percentile."
        blocks.append(Picture("age-density", caption, draw))
    caption = "Error and bias in each decade of true age, with intervals from ten faces on."
    blocks.append(Picture("age-decades", caption, partial(plots.age_decades, age)))
    if "spread" in age:
        caption = "How often the interval that the model claims holds the true age; its mean standard deviation is "
        caption += f"{_number(age['spread']['mean'], 2)} years."
        blocks.append(Picture("age-coverage", caption, partial(plots.spread_coverage, age)))
    within = [row for row in age["within"] if row["years"] in (0, 1, 2, 3, 5, 7, 10, 15, 20)]
    head = ("years off, at most", *(str(row["years"]) for row in within))
    rows = [("share of faces", *(_number(row["value"]) for row in within))]
    blocks.append(Table(head, rows))
    rows = [
        (
            row["decade"],
            f"{row['n']:,}",
            _number(row["mae"]["value"], 2),
            _interval(row["mae"], 2),
            _number(row["bias"]["value"], 2, sign=True),
            _interval(row["bias"], 2),
        )
        for row in age["decades"]
    ]
    head = ("true age", "n", "MAE, years", "95 % interval", "bias, years", "95 % interval")
    blocks.append(Table(head, rows, "Each decade of true age.", folded=True))
    return Section("Age in years", blocks)


def _groups_section(groups: Mapping) -> Section:
    figures, smallest = groups["figures"], groups["smallest_group"]
    blocks: list = [
        Text(
            f"Groups are those of the labels. A group of fewer than {smallest} faces is too small to judge: it is "
            "shown hollow or grey and names no gap."
        ),
        Picture(
            "groups",
            "Each figure of each group, with its interval and number of faces; the broken line is everybody.",
            partial(plots.groups, groups),
            size="wide",
        ),
        *_gaps_table(groups, [name for name in groups["by"] if " x " not in name]),
    ]
    deepest = list(groups["by"])[-1] if groups["by"] else ""
    if deepest.count(" x ") == 2:
        blocks += [
            Picture(
                f"cells-{slug(key)}",
                f"Each cell of {deepest}: {about['title']}, and number of faces. Strong colour is worse, grey is too "
                "small to judge.",
                partial(plots.cells, groups, deepest, key),
                size="dense",
            )
            for key, about in figures.items()
            if key.endswith(("_accuracy", "_mae"))
        ]
    if crossed := [name for name in groups["by"] if " x " in name]:
        blocks += _gaps_table(groups, crossed, folded=True)
    blocks += [_groups_table(name, result, figures) for name, result in groups["by"].items()]
    return Section("Groups", blocks)


def _digits(about: Mapping) -> int:
    return 3 if about["better"] == "high" else 2


def _gaps_table(groups: Mapping, names: Sequence[str], folded: bool = False) -> list[Table]:
    """None where fewer than two groups are large enough."""
    rows = [
        (
            about["title"],
            name,
            _number(gap["gap"], _digits(about), sign=True),
            _interval(gap, _digits(about)),
            ", ".join(gap["worst"]),
            ", ".join(gap["best"]),
        )
        for key, about in groups["figures"].items()
        for name in names
        if (gap := groups["by"][name]["gaps"][key])
    ]
    caption = "Gaps between the cells."
    if not folded:
        caption = (
            "Gap: the worst group minus the best. The two were picked for being extreme, so a gap between many groups "
            "comes out too large rather than too small."
        )
    head = ("figure", "between groups of", "gap", "95 % interval", "worst", "best")
    return [Table(head, rows, caption, text_columns=(0, 1, 4, 5), folded=folded)] if rows else []


def _groups_table(name: str, result: Mapping, figures: Mapping) -> Table:
    rows = []
    for group in result["groups"]:
        row = [", ".join(group["group"]), f"{group['n']:,}" + (" (too small)" if group["too_small"] else "")]
        for key, about in figures.items():
            value = group["figures"][key]
            text = _number(value["value"], _digits(about))
            row.append(f"{text} ({_interval(value, _digits(about))})" if value["interval"] else text)
        rows.append(row)
    small = [i for i, group in enumerate(result["groups"]) if group["too_small"]]
    head = (name, "n", *(about["title"] for about in figures.values()))
    return Table(head, rows, f"All figures by {name}, {len(rows)} groups.", small_rows=small, folded=True)


def _making(config, versions, command, notes) -> list:
    blocks: list = [Text(note) for note in notes]
    if command:
        blocks.append(Code(command))
    if config:
        rows = [(name, str(value)) for name, value in _flat(config)]
        blocks.append(Table(("setting", "value"), rows, "Configuration.", text_columns=(0, 1)))
    rows = list({"tfface": __version__, **(versions or {})}.items())
    blocks.append(Table(("package", "version"), rows, "Versions.", text_columns=(0, 1)))
    return blocks


def _flat(config: Mapping, prefix: str = ""):
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value):
    """The same value in what JSON knows; NaN and Inf, which it does not know, become null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)

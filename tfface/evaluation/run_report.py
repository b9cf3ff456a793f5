"""The report of a run, or of the same recipe over several seeds: what `tfface report` writes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tfface import files
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.evaluation import plots
from tfface.evaluation.evaluate import Predictions, worst_mistakes
from tfface.evaluation.pages import Picture, Section, Table
from tfface.evaluation.predictions import measured_parts
from tfface.evaluation.report import Comparison, write_report
from tfface.recipes import Recipe
from tfface.training.run import Run, runs_in


def figure(figures: dict, task: str, metric: str) -> float | None:
    """One figure of a split by the name that a recipe's published rows give it, or None where it was not measured.

    Args:
        figures: those of the split, as `evaluate` gives them.
        task: a task, or "age".
        metric: such as "accuracy", "balanced_accuracy" (the mean recall), "recall of CLASS", or "mae" of an age.
    """
    part = figures.get("age", {}) if task == "age" else figures.get("tasks", {}).get(task, {})
    if metric.startswith("recall of "):
        part = {f"recall of {row['name']}": row["recall"] for row in part.get("per_class", ())}
    value = part.get(metric)
    return value["value"] if isinstance(value, dict) else value


def report(folder: str | Path, data_dir: str | Path | None = None, command: str = "") -> dict[str, Path]:
    """Write report.html, report.md and report.json for a run, or for a folder of runs with several seeds.

    Returns:
        The files by kind.

    Raises:
        UserError: no run, seeds that differ in more than their seed, or one that was not evaluated on its own data.
    """
    folder = Path(folder)
    runs = runs_in(folder)
    first = runs[0]
    recipe, config = first.recipe(), first.config()
    attributes = any(task.is_attribute for task in recipe.tasks())
    verb = "evaluate" if attributes else f"reproduce {recipe.name}"  # which keeps the figures of pairs
    every = [files.read_json(run.figures_file, f"The run's figures (`tfface {verb}`)") for run in runs]
    verified = [figures.pop("verification", {}) for figures in every]
    builder = pipeline.open_dataset(recipe.data, data_dir)

    rows, predictions, worst, shown = [], None, {}, ""
    if every[0]:
        # Of joined data sets each has a test split of its own; the first is shown in full.
        parts = measured_parts(recipe, data_dir)
        split = "test" if set(figures_names(parts, recipe, "test")) & set(every[0]) else "validation"
        named = dict(zip(figures_names(parts, recipe, split), parts, strict=True))
        names = [name for name in named if name in every[0]]
        if not names:
            raise UserError(
                f"{first.folder} was not evaluated on its own data, {recipe.data}, of which a report tells. Received "
                f"figures of: {', '.join(every[0])}. Run `tfface evaluate {first.folder}`."
            )
        for name in names:
            rows += _rows(recipe, [figures.get(name, {}) for figures in every], name if len(names) > 1 else "")
        shown = names[0]
        predictions = Predictions.load(first.folder / f"predictions-{shown}.npz")
        worst = _worst(predictions, pipeline.open_dataset(named[shown], data_dir), split)
    rows += _verification_rows(recipe, verified)
    seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
    reported = (
        f", reported on {shown} (n = {every[0][shown]['n']:,}{seeds})" if shown else ", reported on pairs of faces"
    )
    chosen = (
        "; the epoch was chosen on validation." if recipe.monitor.startswith("val_") else "; the last epochs count."
    )
    synthetic = " Synthetic faces: this proves that the machinery runs, not how good it is on people."
    return write_report(
        folder,
        title=recipe.title,
        summary=f"{_learnt_from(first)}{reported}{chosen}" + synthetic * config["data"]["name"].startswith("synthetic"),
        metrics={shown: every[0][shown], **every[0]} if shown else None,
        predictions=predictions,
        comparison=rows,
        history=first.history(),
        worst=worst,
        sections=[_verification(verified[0])] if verified[0] else (),
        config=config["recipe"],
        versions=config["environment"],
        command=command or f"tfface report {folder}",
        licences=recipe.licences,
        notes=notes_on(builder, recipe, len(runs)),
    )


def figures_names(parts: Sequence[str], recipe: Recipe, split: str) -> list[str]:
    """Under which names `tfface evaluate` keeps the figures of a split of the recipe's own data.

    Args:
        parts: the data sets that are measured, `tfface.evaluation.predictions.measured_parts`.
        recipe: their recipe.
        split: name of the split.
    """
    joined = "+" in recipe.data
    return [f"{part.replace('/', '-')}-{split}" if joined else split for part in parts]


def _learnt_from(run: Run) -> str:
    """On what a run was trained, and from which others it learnt."""
    config = run.config()
    recipe = config["recipe"]
    words = f"trained on {config['data']['name']}"
    if recipe.get("extra_data"):
        words += f" and the training faces of {recipe['extra_data']}"
    if recipe.get("distill_from"):
        words += f", from labels and from what {recipe['distill_from']} says of each face"
    if run.pruned:
        words += f", its network pruned ({run.pruned})"
    if "soup" in config:
        words = f"the mean of the weights of {' and '.join(config['soup'])}; the best of them was {words}"
    return words[0].upper() + words[1:]


def _mean_and_spread(values: list[float]) -> tuple[float | None, float | None]:
    mean = float(np.mean(values)) if values else None
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else None


def _rows(recipe: Recipe, every: list[dict], data: str) -> list[Comparison]:
    """Published figures beside ours, then what was measured and nobody published."""

    def row(task, metric, published, source):
        values = [value for value in (figure(figures, task, metric) for figures in every) if value is not None]
        name = {"age": "age, mean absolute error (years)", "age_bins": "age, nine bins, accuracy"}.get(
            task, f"{task}, {metric}"
        )
        name += f", {data}" * bool(data)
        return Comparison(name, published, source, *_mean_and_spread(values), every[0]["n"], len(values))

    measured = {(task, "accuracy") for task in every[0]["tasks"]}
    if "age" in every[0]:
        measured.add(("age", "mae"))
    more = sorted(measured - {published[:2] for published in recipe.published})
    return [row(*published) for published in recipe.published] + [row(*names, None, "") for names in more]


def _worst(predictions: Predictions, builder: pipeline.Builder, split: str) -> dict[str, list]:
    """The costliest mistakes of each task, with their images."""
    worst = {task: worst_mistakes(predictions, task, 18) for task in predictions.probabilities if task != "age_bins"}
    wanted = {int(index) for entries in worst.values() for index, _ in entries}
    images = {
        index: pipeline.decode(example["image"], (160, 160)).numpy().astype("uint8")
        for index, example in enumerate(pipeline.examples(builder, split))
        if index in wanted
    }
    return {task: [(images[index], text) for index, text in entries] for task, entries in worst.items()}


def _verification_rows(recipe: Recipe, verified: list[dict]) -> list[Comparison]:
    published = {data: (value, source) for data, value, source in recipe.published_pairs}
    rows = []
    for data, one in verified[0].items():
        values = [results[data]["accuracy"] for results in verified if data in results]
        value, source = published.get(data, (None, ""))
        rows.append(
            Comparison(f"same person or not, {data}", value, source, *_mean_and_spread(values), one["n"], len(values))
        )
    return rows


def _verification(verified: dict[str, dict]) -> Section:
    """Accuracy on pairs, and the ROC curves."""
    head = ("pairs", "accuracy", "deviation over folds", "threshold", "AUC", "TAR at FAR 0.01", "n")
    rows = []
    for data, one in verified.items():
        at = one["tar"].get("0.01")
        low, high = at["interval"] if at else (None, None)
        rate = f"{at['value']:.3f} ({low:.3f} to {high:.3f})" if at else "too few pairs"
        numbers = (f"{one[name]:.4f}" for name in ("accuracy", "deviation", "threshold", "auc"))
        rows.append((data, *numbers, rate, f"{one['n']:,}"))
    caption = "Ten folds, the threshold of each chosen on the nine others. Of covered sets the second image is covered."
    curves = Picture("roc", "True accepts against false accepts.", partial(plots.roc, verified))
    return Section("Verification", [Table(head, rows, caption), curves])


def notes_on(builder: pipeline.Builder, recipe: Recipe, seeds: int) -> list[str]:
    """What a reader of a report must know of the data and the choices."""
    notes = []
    counts = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
    notes.append(f"{builder.info.full_name}: {counts} images.")
    left_out = (builder.info.metadata or {}).get("left_out")
    if left_out:
        sizes = ", ".join(f"{reason} {len(names)}" for reason, names in left_out.items())
        notes.append(f"Left out of the data set (names or groups of names in its metadata): {sizes}.")
    if recipe.train_from:
        notes.append(f"Layers up to {recipe.train_from} are the pretrained network's, frozen.")
    if seeds > 1:
        notes.append("Figures with ± are means and standard deviations over seeds; all plots show the first seed.")
    return notes

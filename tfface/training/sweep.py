"""A sweep: a recipe trained over and over with other hyper-parameters, proposed by Optuna, judged on validation.

study.db      the Optuna study: what was tried and what came of it
trial-0007/   the run of a trial (see `run`); its state and events are removed once it is scored
sweep.csv     one row a trial, written anew after each
report.html   table and plots, with report.md and figures/

Which fields are searched, and where, is the recipe's choice: `Recipe.search_space`. Trial 0 is the recipe as it stands,
so that the table says what the search brought.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import keras
import numpy as np
import optuna
import sqlalchemy.exc
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from tfface import __version__, files
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.evaluation import plots
from tfface.evaluation.evaluate import Predictions, evaluate
from tfface.evaluation.pages import Code, Page, Picture, Section, Table, Text, Tile
from tfface.evaluation.predictions import measured_parts, predict_split
from tfface.recipes.recipe import Recipe
from tfface.training.fit import fit
from tfface.training.run import Run, differences

SCORE = (
    "The score is the mean skill over the tasks on validation, 1 - error / error of the best constant answer: 0 for a "
    "model that has learnt nothing, 1 for one that is always right. The error of a classification is 1 - accuracy and "
    "its constant the commonest class; the error of the age, whatever its encoding, is the mean absolute error in "
    "years and its constant the median. The test split takes no part."
)
"""What a page says of its score; see `score`."""


def sweep(
    recipe: Recipe,
    folder: str | Path,
    trials: int,
    data_dir: str | Path | None = None,
    device: str = "auto",
    bfloat16: bool = False,
) -> dict[str, Path]:
    """Search a recipe's hyper-parameters, or go on with a search; print a line a trial.

    A search that is killed at any point goes on inside the trial it was in, and comes to the same trials as an unbroken
    one. A trial whose loss becomes NaN has failed; it counts, as it would fail again, and the search avoids its like.

    Args:
        recipe: what is searched; its seed is that of the search and of every trial.
        folder: the sweep's folder.
        trials: how many trials are wanted in all, those of earlier runs included.
        data_dir: where data sets are prepared; TFDS's own default if None.
        device: "auto", "cpu" or "gpu".
        bfloat16: compute frozen features in bfloat16.

    Returns:
        The files by kind: "csv", "html", "markdown", "figures".

    Raises:
        UserError: no trials were asked for, the recipe has no search space or a value that cannot be in it, the folder
            holds a sweep of something else or a damaged study, or another process sweeps there, every trial failed, or
            what `fit` raises.
    """
    if trials < 1:
        raise UserError(f"--trials must be at least 1. Received: {trials}.")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _check_space(recipe)
    builder = pipeline.open_dataset(recipe.data, data_dir)
    splits = (recipe.train_split, recipe.validation_split)
    data = {f"{split} split": pipeline.fingerprint(builder, split) for split in splits}
    data |= {f"{split} labels": pipeline.label_digest(builder, split) for split in splits}
    if recipe.extra_data:
        whole = pipeline.with_extra(builder, recipe.extra_data, data_dir)
        data["with_extra"] = pipeline.fingerprint(whole, recipe.train_split)
        data["with_extra labels"] = pipeline.label_digest(whole, recipe.train_split)
    folder = Path(folder)
    with files.held(folder, "--out"), _database(folder / "study.db"):
        study = _open_study(folder, recipe, {**recipe.to_json(), **data, "bfloat16": bfloat16})
        while len(_finished(study)) < trials:
            trial = _next_trial(study, recipe)
            changed = recipe.changed(**recipe.search_space(trial))
            run = Run(folder / f"trial-{trial.number:04d}")
            keras.utils.clear_session()  # else the graphs of all trials stay in memory
            try:
                fit(changed, run.folder, data_dir, device, bfloat16, verbose=0)
            except FloatingPointError as error:
                trial.set_user_attr("failure", str(error))
                value = None
            else:
                # Of joined data sets one by one: each has labels that the others lack.
                names = measured_parts(recipe, data_dir)
                each = {name: predict_split(run, recipe.validation_split, name, data_dir, bfloat16) for name in names}
                figures = {
                    f"{data} {name}" if "+" in recipe.data else name: value
                    for data, predictions in each.items()
                    for name, value in figures_of(predictions).items()
                }
                trial.set_user_attr("figures", figures)
                trial.set_user_attr("best_epoch", files.read_json(run.done_file, "The end of the trial")["best_epoch"])
                trial.set_user_attr("seconds", round(sum(row["seconds"] for row in run.history()), 1))
                value = float(np.mean([score(predictions) for predictions in each.values()]))
            run.state_file.unlink(missing_ok=True)
            shutil.rmtree(run.folder / "events", ignore_errors=True)
            # The sampler would not hear of a trial with FAIL, and propose its like over and over.
            study.tell(trial, value, TrialState.PRUNED if value is None else TrialState.COMPLETE)
            finished = _finished(study)
            _write_table(finished, folder / "sweep.csv")
            print(_line(finished, trials), flush=True)
        finished = _finished(study)
    _write_table(finished, folder / "sweep.csv")
    if not _ranked(finished):
        raise UserError(
            f"None of the {len(finished)} trials in {folder} succeeded: the loss became NaN in each. Lower the "
            "learning rates of the recipe's search space, and name another folder with --out."
        )
    made = {"csv": folder / "sweep.csv", **_page(finished, recipe, folder, builder).write(folder)}
    for kind, path in made.items():
        print(f"{kind}: {path}")
    return made


def score(predictions: Predictions) -> float:
    """What a sweep maximises: the mean skill over the tasks.

    The skill of a task is the share of the error of the best constant answer that is removed, 1 - error / error of the
    constant (Murphy, Skill Scores Based on the Mean Square Error, Monthly Weather Review 116, 1988, with the error of
    each task in place of the square). The error of a classification is 1 - accuracy and its constant the commonest
    class; that of an age is the mean absolute error in years and its constant the median. So tasks of unlike units
    weigh the same. Losses cannot serve: those of differently weighted or encoded tasks do not compare.

    Args:
        predictions: of the validation split; both constants are taken from its truth. Of joined data sets
            each has its own score, and their mean counts.

    Returns:
        0 for a model that has learnt nothing, 1 for one that is always right, below 0 for one that constants beat. A
        task of which all have one label takes no part.

    Raises:
        UserError: that is so of every task.
    """
    errors = []
    for task, probabilities in predictions.probabilities.items():
        if task == "age_bins" and predictions.age_years is not None:
            continue  # the same age once more
        truth = predictions.truth[task]
        errors.append((np.mean(np.argmax(probabilities, axis=1) != truth), 1 - np.bincount(truth).max() / len(truth)))
    if predictions.age_years is not None:
        truth = predictions.truth["age"]
        errors.append((np.abs(predictions.age_years - truth).mean(), np.abs(truth - np.median(truth)).mean()))
    skills = [1 - error / constant for error, constant in errors if constant > 0]
    if not skills:
        raise UserError("Every face of the validation split has the same labels: there is nothing to judge trials by.")
    return float(np.mean(skills))


def figures_of(predictions: Predictions) -> dict[str, float]:
    """The accuracy of each task, and the mean absolute error of the age in years."""
    measured = evaluate(predictions)
    figures = {f"{task} accuracy": values["accuracy"]["value"] for task, values in measured["tasks"].items()}
    if "age" in measured:
        figures["age MAE"] = measured["age"]["mae"]["value"]
    return figures


@contextlib.contextmanager
def _database(file: Path) -> Iterator[None]:
    """Say in words what SQLite refuses inside.

    Raises:
        UserError: the study is damaged, the disk is full, or nothing can be written there.
    """
    try:
        yield
    except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError) as error:
        reason = getattr(error if hasattr(error, "orig") else error.__cause__, "orig", error)
        raise UserError(
            f"{file} cannot be read or written as an Optuna study ({reason}). Where the disk is full or read-only, "
            "mend that and run the same command again; else name another folder with --out."
        ) from error


def _open_study(folder: Path, recipe: Recipe, searched: dict) -> optuna.Study:
    """The study of a folder, made when absent; SQLite, as its transactions survive a kill."""
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'study.db'}", study_name="sweep", direction="maximize", load_if_exists=True
    )
    wanted = json.loads(json.dumps(searched))
    present = study.user_attrs.get("searched")
    if present is None:
        study.set_user_attr("searched", wanted)
    # What a version before did not know: fields at their defaults, and labels that it did not look at.
    defaults = json.loads(json.dumps(type(recipe)().to_json()))
    present = {
        **defaults,
        **{key: value for key, value in wanted.items() if key.endswith(" labels")},
        **(present or wanted),
    }
    if changed := differences(present, wanted):
        raise UserError(
            f"{folder} holds a sweep with other choices ({changed}). Name another folder with --out, or remove it."
        )
    return study


def _check_space(recipe: Recipe) -> None:
    """Say before anything is written that a search cannot begin where its recipe stands.

    Raises:
        UserError: the recipe has no search space, or a field that is searched has a value that cannot be there.
    """
    trial = optuna.create_study().ask()
    try:
        recipe.search_space(trial)
    except ValueError as error:  # an end of a range is a field of the recipe
        raise UserError(f"The recipe {recipe.name} as it stands leaves nothing to search: {error}") from error
    own = _own_values(recipe)
    for name in own.keys() & trial.distributions:
        kind = trial.distributions[name]
        try:
            # What lies beyond an end will do, but 0 has no place on a logarithmic scale.
            kind.to_internal_repr(own[name])
        except ValueError as error:
            raise UserError(
                f"A sweep begins with the recipe as it stands, and searches {name} over {kind}. Received: "
                f"{name}={own[name]}. Set another value."
            ) from error


def _own_values(recipe: Recipe) -> dict:
    values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    return {name: value for name, value in values.items() if isinstance(value, str | int | float)}


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    # FAIL is what a version before told of those that failed.
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))


def _failed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state != TrialState.COMPLETE]


def _ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that have a score, the best first."""
    return sorted((trial for trial in trials if trial.state == TrialState.COMPLETE), key=lambda trial: -trial.value)


def _next_trial(study: optuna.Study, recipe: Recipe) -> optuna.Trial:
    """The trial that a killed sweep left behind, which knows the values it had drawn; else a new one."""
    running = study.get_trials(states=(TrialState.RUNNING,))
    if not study.trials:
        study.enqueue_trial(_own_values(recipe))
    # A seed for each trial: a sampler that began anew after a kill would propose its first trials again.
    seed = (recipe.seed * 100_003 + len(_finished(study))) % (1 << 32)  # NumPy takes no larger one
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    return optuna.Trial(study, running[0]._trial_id) if running else study.ask()


def _rows(trials: Sequence[FrozenTrial]) -> tuple[list[str], list[dict]]:
    """Columns, and a row for each trial; a failed one has no figures."""
    rows = [
        {
            "trial": trial.number,
            "state": "complete" if trial.state == TrialState.COMPLETE else "fail",
            "score": trial.value,
            **trial.params,
            **trial.user_attrs.get("figures", {}),
            **{key: value for key, value in trial.user_attrs.items() if key != "figures"},
        }
        for trial in trials
    ]
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _write_table(trials: Sequence[FrozenTrial], path: Path) -> None:
    columns, rows = _rows(trials)
    with files.written_aside(path) as aside, open(aside, "w", newline="") as stream:
        table = csv.DictWriter(stream, columns)
        table.writeheader()
        table.writerows(rows)


def _text(value) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _texts(values: dict) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in values.items())


def _line(finished: Sequence[FrozenTrial], trials: int) -> str:
    """What is printed of the trial that has just finished."""
    last, ranked = finished[-1], _ranked(finished)
    if last.state == TrialState.COMPLETE:
        came = f"score {last.value:.4f} ({_texts(last.user_attrs['figures'])}) in {last.user_attrs['seconds']:.0f} s"
    else:
        came = f"failed ({last.user_attrs['failure']})"
    best = f"; best {ranked[0].value:.4f}, trial {ranked[0].number}" if ranked else ""
    return f"trial {last.number}, {len(finished)} of {trials}: {came}; {_texts(last.params)}{best}"


def _page(trials: Sequence[FrozenTrial], recipe: Recipe, folder: Path, builder: pipeline.Builder) -> Page:
    ranked, n = _ranked(trials), pipeline.num_examples(builder, recipe.validation_split)
    best, own = ranked[0], trials[0]
    failed = _failed(trials)
    columns, rows = _rows([*ranked, *failed])
    words = [i for i, name in enumerate(columns) if any(isinstance(row.get(name), str) for row in rows)]
    table = Table(
        columns,
        [[_text(row.get(name)) for name in columns] for row in rows],
        "All trials, the best first; those that failed are last. Trial 0 is the recipe as it stands.",
        text_columns=words,
        small_rows=range(len(ranked), len(rows)),
    )
    changes = recipe.search_space(optuna.trial.FixedTrial(best.params))
    before = own.user_attrs.get("figures", {})
    tiles = [
        Tile("trials", str(len(trials)), f"{len(failed)} failed"),
        Tile("best score", f"{best.value:.4f}", f"trial {best.number}; the recipe as it stands {_text(own.value)}"),
        *(
            Tile(name, _text(value), f"the recipe as it stands {_text(before.get(name))}")
            for name, value in best.user_attrs["figures"].items()
        ),
    ]
    sections = [
        Section(
            "The best",
            [
                Text(
                    f"Trial {best.number}. The best of several trials owes a part of its lead to luck. Before it is "
                    "believed, train it with other seeds: `tfface reproduce` with the options of the sweep and"
                ),
                Code(" \\\n".join(f"--set {name}={value}" for name, value in changes.items())),
                Picture("history", "Score of each trial, and the best so far.", partial(score_history, trials)),
            ],
        ),
        Section(
            "Each field",
            [
                Picture(
                    "fields",
                    "Score against each field; the ringed trial is the best, crosses at the foot failed. The other "
                    "fields vary too, so a trend in one panel may be another's.",
                    partial(score_by_field, trials),
                    size="wide",
                )
            ],
        ),
        Section("Trials", [table]),
        Section(
            "How it was made",
            [
                Text(SCORE),
                Text(
                    f"Trials are proposed by Optuna {optuna.__version__}, tree-structured Parzen estimator, seed "
                    f"{recipe.seed}; their runs are {folder}/trial-*."
                ),
                Table(
                    ("setting", "value"),
                    [(name, str(value)) for name, value in recipe.to_json().items()],
                    "The recipe as it stands.",
                    text_columns=(0, 1),
                    folded=True,
                ),
            ],
        ),
    ]
    written = datetime.now().astimezone().isoformat(timespec="seconds")
    return Page(
        f"Sweep of {recipe.title}",
        f"{len(trials)} trials on {builder.info.full_name}, judged on {recipe.validation_split} (n = {n:,}).",
        tiles,
        sections,
        f"Written {written} by tfface {__version__}.",
    )


@plots.styled
def score_history(trials: Sequence[FrozenTrial]) -> Figure:
    """Score of each trial in their order, and the best so far.

    Args:
        trials: finished trials, at least one with a score.
    """
    scored = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    numbers, scores = [trial.number for trial in scored], [trial.value for trial in scored]
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(numbers, scores, "o", markersize=5, label="trial")
    best = np.maximum.accumulate(scores)
    axes.step([*numbers, trials[-1].number], [*best, best[-1]], where="post", label="best so far")
    _mark_failed(axes, [trial.number for trial in _failed(trials)])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="trial", ylabel="score")
    figure.legend(loc="outside upper left", ncols=3)  # inside it would cover trials
    return figure


@plots.styled
def score_by_field(trials: Sequence[FrozenTrial]) -> Figure:
    """Score against each searched field, a panel each, on one scale of scores.

    Args:
        trials: finished trials, at least one with a score.
    """
    fields = {name: kind for trial in trials for name, kind in trial.distributions.items()}
    best = _ranked(trials)[0]
    rows = -(-len(fields) // 3)
    figure = Figure(figsize=(9.6, 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, sharey=True, squeeze=False)
    for axes in panels.flat[len(fields) :]:
        axes.remove()
    for axes, (name, kind) in zip(panels.flat, fields.items(), strict=False):
        choices = getattr(kind, "choices", None)

        def place(trial, name=name, choices=choices):
            return choices.index(trial.params[name]) if choices else trial.params[name]

        drawn = [trial for trial in trials if name in trial.params]
        scored = [trial for trial in drawn if trial.state == TrialState.COMPLETE]
        axes.plot([place(trial) for trial in scored], [trial.value for trial in scored], "o", markersize=5)
        if best in scored:
            axes.plot(place(best), best.value, "o", color=plots.ORANGE, markersize=11, fillstyle="none")
        _mark_failed(axes, [place(trial) for trial in _failed(drawn)])
        if choices:
            axes.set_xticks(range(len(choices)), [str(choice) for choice in choices])
            axes.set_xlim(-0.5, len(choices) - 0.5)
        elif kind.log:
            axes.set_xscale("log")
        axes.set_title(name)
    for axes in panels[:, 0]:
        axes.set_ylabel("score")
    return figure


def _mark_failed(axes, places) -> None:
    """Crosses at the foot: a failed trial has no score."""
    if places:
        axes.plot(
            places, [0.03] * len(places), "x", color=plots.INK, transform=axes.get_xaxis_transform(), label="failed"
        )

"""A sweep: a recipe trained over and over with other hyper-parameters, proposed by Optuna, judged on validation.

study.db      the Optuna study: what was tried and what came of it
trial-0007/   the run of a trial (see `run`); its state and events are removed once it is scored
sweep.csv     one row a trial, written anew after each
report.html   table and plots, with report.md and figures/

Which fields are searched, and where, is the recipe's choice: `Recipe.search_space`. Trial 0 is the recipe as it stands,
so that the table says what the search brought.
"""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections.abc import Sequence
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
from tfface.evaluation.predictions import predict_split
from tfface.recipes.recipe import Recipe
from tfface.training.fit import fit
from tfface.training.run import Run

STATES = {TrialState.COMPLETE: "scored", TrialState.FAIL: "failed"}


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
    one. A trial whose loss becomes NaN has failed; it counts, as it would fail again. One process at a time.

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
        UserError: the recipe has no search space, the folder holds a sweep of something else, no trial succeeded, or
            what `fit` raises.
    """
    if trials < 1:
        raise UserError(f"--trials must be at least 1. Received: {trials}.")
    folder = Path(folder)
    builder = pipeline.open_dataset(recipe.data, data_dir)
    data = {split: pipeline.fingerprint(builder, split) for split in ("train", "validation")}
    study = _open_study(folder, {"recipe": recipe.to_json(), "data": data, "bfloat16": bfloat16})
    table = folder / "sweep.csv"
    while len(_finished(study)) < trials:
        trial = _next_trial(study, recipe)
        changed = recipe.changed(**recipe.search_space(trial))
        run = Run(folder / f"trial-{trial.number:04d}")
        keras.utils.clear_session()  # else the graphs of all trials stay in memory
        try:
            fit(changed, run.folder, data_dir, device, bfloat16, verbose=0)
        except FloatingPointError as error:
            trial.set_user_attr("failure", str(error))
            study.tell(trial, state=TrialState.FAIL)
        else:
            predictions = predict_split(run, "validation", data_dir=data_dir, bfloat16=bfloat16)
            trial.set_user_attr("figures", figures_of(predictions))
            trial.set_user_attr("best_epoch", files.read_json(run.done_file, "The trial's end")["best_epoch"])
            trial.set_user_attr("seconds", round(sum(row["seconds"] for row in run.history()), 1))
            study.tell(trial, score(predictions))
        run.state_file.unlink(missing_ok=True)
        shutil.rmtree(run.folder / "events", ignore_errors=True)
        _write_table(_finished(study), table)
        print(_line(study, study.trials[trial.number], trials), flush=True)
    finished = _finished(study)
    _write_table(finished, table)
    if not _ranked(finished):
        raise UserError(
            f"None of the {len(finished)} trials in {folder} succeeded: the loss became NaN in each. Lower the learning "
            "rates in the recipe's search space, then name another folder with --out."
        )
    made = {"csv": table, **_page(finished, recipe, builder.info.splits["validation"].num_examples).write(folder)}
    for kind, path in made.items():
        print(f"{kind}: {path}")
    return made


def score(predictions: Predictions) -> float:
    """What a sweep maximises: the mean skill over the tasks.

    The skill of a task is the share of the error of the best constant answer that is removed, 1 - error / error of the
    constant: 0 for a model that has learnt nothing, 1 for one that is always right (Murphy, Skill Scores Based on the
    Mean Square Error, Monthly Weather Review 116, 1988, equation 4, with the error of each task in place of the
    square). The error of a classification is 1 - accuracy and its constant the commonest class; that of an age is the
    mean absolute error in years and its constant the median. Losses cannot serve: those of differently weighted or
    encoded tasks do not compare.

    Args:
        predictions: of the validation split; both constants are taken from its truth.

    Returns:
        At most 1.
    """
    skills = []
    for task, probabilities in predictions.probabilities.items():
        if task == "age_bins" and predictions.age_years is not None:
            continue  # the same age once more
        truth = predictions.truth[task]
        error = np.mean(np.argmax(probabilities, axis=1) != truth)
        skills.append(1 - error / (1 - np.bincount(truth).max() / len(truth)))
    if predictions.age_years is not None:
        truth = predictions.truth["age"]
        error = np.abs(predictions.age_years - truth).mean()
        skills.append(1 - error / np.abs(truth - np.median(truth)).mean())
    return float(np.mean(skills))


def figures_of(predictions: Predictions) -> dict[str, float]:
    """The accuracy of each task, and the mean absolute error of the age in years."""
    measured = evaluate(predictions)
    figures = {f"{task} accuracy": values["accuracy"]["value"] for task, values in measured["tasks"].items()}
    if "age" in measured:
        figures["age MAE"] = measured["age"]["mae"]["value"]
    return figures


def _open_study(folder: Path, searched: dict) -> optuna.Study:
    """The study of a folder, made when absent; SQLite, as its transactions survive a kill."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "study.db"
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{file}", study_name="sweep", direction="maximize", load_if_exists=True
        )
    except sqlalchemy.exc.DatabaseError as error:
        raise UserError(
            f"{file} cannot be opened as an Optuna study ({error.orig}). Name another folder with --out, or remove it."
        ) from error
    wanted = json.loads(json.dumps(searched))
    present = study.user_attrs.get("searched")
    if present is None:
        study.set_user_attr("searched", wanted)
    elif present != wanted:
        changed = [
            f"{key} was {present.get(key)!r}, is {wanted.get(key)!r}"
            for key in {**present, **wanted}
            if present.get(key) != wanted.get(key)
        ]
        raise UserError(
            f"{folder} holds a sweep with other choices ({'; '.join(changed)}). Name another folder with --out, or "
            "remove that one."
        )
    return study


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=tuple(STATES))


def _ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that have a score, the best first."""
    return sorted((trial for trial in trials if trial.state in SCORED), key=lambda trial: -trial.value)


def _next_trial(study: optuna.Study, recipe: Recipe) -> optuna.Trial:
    """The trial that a killed sweep left behind, which knows the values it had drawn; else a new one."""
    running = study.get_trials(states=(TrialState.RUNNING,))
    if not study.trials:
        own = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
        study.enqueue_trial({name: value for name, value in own.items() if isinstance(value, str | int | float)})
    # A seed for each trial: a sampler that began anew after a kill would propose its first trials again.
    study.sampler = optuna.samplers.TPESampler(seed=recipe.seed * 100_003 + len(_finished(study)))
    return optuna.Trial(study, running[0]._trial_id) if running else study.ask()


def _row(trial: FrozenTrial) -> dict:
    """What the table says of a finished trial."""
    known = trial.user_attrs
    return {
        "trial": trial.number,
        "state": STATES[trial.state],
        "score": trial.value,
        **trial.params,
        **known.get("figures", {}),
        **{name: known[name] for name in ("best_epoch", "seconds", "failure") if name in known},
    }


def _write_table(trials: Sequence[FrozenTrial], path: Path) -> None:
    rows = [_row(trial) for trial in trials]
    # A failed trial has no figures: the columns are those of the fullest row, and the failures'.
    columns = {**max(rows, key=len), "failure": None}
    with files.written_aside(path) as aside, open(aside, "w", newline="") as stream:
        table = csv.DictWriter(stream, columns)
        table.writeheader()
        table.writerows(rows)


def _text(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""What each verb of the command line does. The verbs and their options are in `tfface.cli`."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tfface import files
from tfface.errors import UserError

if TYPE_CHECKING:
    import keras

    from tfface.recipes import Recipe


def say(*words) -> None:
    """Print a line at once, also into a pipe."""
    print(*words, flush=True)


# --- data


def build(
    data: str,
    manual_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
    builders: str | Path = files.BUILDERS,
    beam_pipeline_options: str | None = None,
    align: dict | None = None,
    workers: int = 1,
) -> Path:
    """Prepare a data set with its TFDS builder; one that is prepared is left as it is.

    Args:
        data: `name` or `name/config`.
        manual_dir: folder of the original files, for data sets that are under licence.
        data_dir: where to prepare it; TFDS's own default if None.
        builders: folder of the builders.
        beam_pipeline_options: options for Apache Beam, "key=value,key=value".
        align: how its faces are to be aligned, arguments of `tfface.data.aligned.aligned_config`; as they are if None.
        workers: how many align at once on this machine; 0 for one a core.

    Returns:
        The prepared folder.

    Raises:
        UserError: no such data set, files that are not those of the data set, or an error in a builder of your own.
    """
    import tensorflow_datasets as tfds

    # Workers have other working directories.
    manual_dir = manual_dir and Path(manual_dir).absolute()
    if data_dir and "://" not in str(data_dir):
        data_dir = Path(data_dir).expanduser().absolute()
    builders = Path(builders)
    with _said_by_place(builders):
        builder = _builder(data, manual_dir, data_dir, builders, align)
    ready = Path(builder.data_dir)
    if ready.exists():
        without = (builder.info.metadata or {}).get("left_out", {}).get("no_face")
        if without and align and align.get("no_face") == "error":
            named = f"{', '.join(without[:5])}{', ...' if len(without) > 5 else ''}"
            raise UserError(
                f"{builder.info.full_name} is prepared already; no face was found in {len(without)} of its photos, "
                f"which it lacks: {named}. Take it as it is with --no-face skip, or remove {ready} first."
            )
        say(f"{builder.info.full_name} is prepared already: {ready}. To build it anew, remove that folder first.")
        return ready
    options = {}
    if align or beam_pipeline_options:
        from tfface.data.alignment_pipeline import pipeline_options

        options["beam_options"] = pipeline_options(workers, beam_pipeline_options or "")
    # Of two that build at once, each would take the other's half for one that was killed.
    alone = contextlib.nullcontext() if "://" in str(builder.data_dir) else files.held(ready.parent, "--data-dir")
    with alone:
        for leftover in ready.parent.glob("incomplete.*"):
            say(f"Removing {leftover.name}, which a build that was killed left behind.")
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            with _said_by_place(builders):
                builder.download_and_prepare(
                    download_config=tfds.download.DownloadConfig(
                        manual_dir=str(manual_dir) if manual_dir else None, try_download_gcs=False, **options
                    )
                )
        except BaseException:
            for leftover in ready.parent.glob("incomplete.*"):
                shutil.rmtree(leftover, ignore_errors=True)
            for folder in (ready.parent, ready.parent.parent):
                with contextlib.suppress(OSError):  # it holds something
                    folder.rmdir()
            raise
    counts = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
    say(f"{builder.info.full_name} is prepared: {counts}\n{ready}")
    return ready


@contextlib.contextmanager
def _said_by_place(builders: Path):
    """An error in a builder of one's own is said by its place there, as dozens of lines of TFDS and Beam hide it."""
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, SyntaxError):
            places = [(error.filename or "", error.lineno, "", error.text or "")]
        else:
            frames = traceback.extract_tb(error.__traceback__)
            places = [(frame.filename, frame.lineno, f", in {frame.name}", frame.line) for frame in frames]
        own = [place for place in places if Path(place[0]).resolve().is_relative_to(builders.resolve())]
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)  # the command line says it
        if full or not own or builders == files.BUILDERS:  # an error of ours is to be reported, all of it
            raise
        file, line, function, text = own[-1]
        said = f"{type(error).__name__}: {getattr(error, 'msg', error)}"
        inner = f"; from {places[-1][0]}, line {places[-1][1]}: {places[-1][3]}" if places[-1] != own[-1] else ""
        raise UserError(f"{file}, line {line}{function}: {said}. The line: {text.strip()}{inner}") from error


def _builder(data, manual_dir, data_dir, builders, align):
    """The TFDS builder of `name` or `name/config` in the folder of builders, its faces to be aligned as asked."""
    from tfface.data import pipeline

    name, _, config = data.partition("/")
    known = files.builders_in(builders)
    if name not in known:
        if not known:
            raise UserError(f"No builders are in {builders}. Expected there: NAME/NAME_dataset_builder.py.")
        raise UserError(f"Unknown data set. Expected one of: {', '.join(known)}. Received: {name}.")
    if manual_dir is not None and not Path(manual_dir).is_dir():
        raise UserError(f"--manual-dir must be a folder that holds the files of {name}. Received: {manual_dir}.")
    # As `tfds build` does: a builder is imported under one name only, or TFDS calls it registered twice.
    if str(builders) not in sys.path:
        sys.path.insert(0, str(builders))
    module = importlib.import_module(f"{name}.{name}_dataset_builder")
    try:
        builder = module.Builder(config=config or None, data_dir=data_dir)
        if align:
            from tfface.data.aligned import aligned_config

            builder = module.Builder(config=aligned_config(builder, **align), data_dir=data_dir)
    except pipeline.DAMAGED as error:
        raise pipeline.damaged(data, data_dir, error) from error
    except ValueError as error:
        configs = module.Builder.builder_configs
        if not config or config in configs:
            raise
        raise UserError(f"{name} has no config {config}. Expected one of: {', '.join(configs) or 'none'}.") from error
    return builder


# --- training and its results


def run_folder(recipe: Recipe, variant: str = "", data: str = "") -> Path:
    """Where the runs of a recipe go by default: `runs/RECIPE[-VARIANT][-DATA]`."""
    parts = [recipe.name, variant, data.replace("/", "-")]
    return Path("runs") / "-".join(part for part in parts if part)


def evaluate(
    folder: str | Path,
    split: str = "test",
    data: str = "",
    data_dir: str | Path | None = None,
    bfloat16: bool = False,
    near_copies: bool = True,
    model: keras.Model | None = None,
) -> dict:
    """Run the model of a run over a split; write predictions and figures beside it and print the main ones.

    Args:
        folder: the run's folder.
        split: name of the split.
        data: another prepared data set with the same labels; the run's own if empty.
        data_dir: where data sets are prepared.
        bfloat16: compute frozen features in bfloat16.
        near_copies: False leaves out the images that are near copies of one in another split: the same photo, scaled,
            coloured or encoded anew, which no comparison of bytes finds.
        model: the run's network, where it is loaded already.

    Returns:
        The figures, as they stand in metrics.json under the split's name; of joined data sets those of each.

    Raises:
        UserError: the recipe tells people apart and nothing else, the data set has not its labels, or the run was given
            another network meanwhile.
    """
    import numpy as np

    from tfface.data import pipeline
    from tfface.evaluation.evaluate import evaluate as figures_of
    from tfface.evaluation.fairness import by_group
    from tfface.evaluation.predictions import LEARNT_FROM, learnt_from, measured_parts, predict_split
    from tfface.training.run import Run

    run = Run(folder)
    recipe = run.recipe()
    if not any(task.is_attribute for task in recipe.tasks()):
        raise UserError(
            f"The recipe {recipe.name} says who a face is, nothing of it: `tfface verify {folder} --data lfw`."
        )
    if not data and "+" in recipe.data:
        parts = measured_parts(recipe, data_dir)
        for other in set(recipe.data.split("+")) - set(parts):
            say(f"{other} holds none of the labels of {recipe.name}: nothing is measured on it.")
        return {part: evaluate(folder, split, part, data_dir, bfloat16, near_copies, model) for part in parts}
    files.check_writable(run.folder)
    written = run.trained_file.exists() and run.trained_file.stat().st_mtime_ns
    predictions = predict_split(run, split, data, data_dir, bfloat16, model=model)
    if run.trained_file.stat().st_mtime_ns != written:
        raise UserError(
            f"{run.folder} was given another network while this one was measured: a training or a calibration is at "
            "work there. Evaluate it again after its end."
        )
    builder = pipeline.open_dataset(data or recipe.data, data_dir)
    name = f"{data.replace('/', '-')}-{split}" if data else split
    if not near_copies:
        from tfface.data.near_copies import near_others, split_hashes

        others = [name for name in builder.info.splits if name not in pipeline.split_names(split)]
        if not others:
            raise UserError(f"{builder.info.full_name} has no other split that could hold near copies of {split}.")
        others = np.concatenate([split_hashes(builder, name) for name in others])
        near = near_others(split_hashes(builder, split), others)
        say(f"{near.sum()} of {len(near)} images of {split} have a near copy in another split and are left out.")
        predictions, name = predictions.chosen(~near), f"{name}-without-near-copies"
    figures = {**figures_of(predictions), "groups": by_group(predictions)}
    figures["labels"] = pipeline.label_digest(builder, split)
    predictions.save(run.folder / f"predictions-{name}.npz")
    path = run.figures_file
    known = files.read_json(path, "The run's figures") if path.exists() else {}
    files.write_json(path, {**known, name: figures})
    if learnt_from(run, builder, split):
        say(LEARNT_FROM.format(split=split))
    say(f"{run.folder}, {name}, n = {figures['n']}: {', '.join(main_figures(figures))}")
    return figures


def main_figures(figures: dict) -> list[str]:
    """The accuracy of each task and the error of the age, as short texts."""
    texts = [f"{task} {values['accuracy']['value']:.4f}" for task, values in figures["tasks"].items()]
    if "age" in figures:
        texts.append(f"age MAE {figures['age']['mae']['value']:.3f} years")
    return texts


def report(folder: str | Path, data_dir: str | Path | None = None, command: str = "") -> dict[str, Path]:
    """Write report.html, report.md and report.json for a run, or for a folder of runs with several seeds.

    Args:
        folder: of a run, or of runs named seed-N.
        data_dir: where data sets are prepared.
        command: what was typed, to stand in the report.

    Returns:
        The files by kind.

    Raises:
        UserError: no run is there, or it was not evaluated on its own data.
    """
    from tfface.evaluation import run_report

    return run_report.report(folder, data_dir, command)


def compare(
    folders: Iterable[str | Path],
    split: str = "test",
    common: bool = False,
    out: str | Path = "runs/compare",
    command: str = "",
) -> dict[str, Path]:
    """Set runs beside the first of them, on the same images: print a table and write a page.

    Args:
        folders: of runs, or of several seeds each; RUN:SPLIT for one that was evaluated under another name.
        split: what they were evaluated on.
        common: compare on the images that all of them have.
        out: folder of the page.
        command: what was typed, to stand on the page.

    Returns:
        The page's files by kind.

    Raises:
        UserError: see `evaluation.compare.compare`.
    """
    from tfface.evaluation import compare as comparing

    compared = comparing.compare(list(folders), split, common)
    for figure, about in compared["figures"].items():
        rows = [(figure, *comparing.HEAD[1:]), *(comparing.cells(row, about["better"]) for row in about["rows"])]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
        say()
    for figure, why in compared["not_compared"].items():
        say(f"{figure} is not compared: {why}")
    if any(compared["left_out"]):
        left_out = ", ".join(map(str, compared["left_out"]))
        say(f"on {compared['n']:,} images that all have; left out, run by run: {left_out}")
    return comparing.write_comparison(compared, out, command)


def robustness(
    model: str | Path,
    split: str = "test",
    data: str = "",
    data_dir: str | Path | None = None,
    bfloat16: bool = False,
    out: str | Path | None = None,
    command: str = "",
) -> dict[str, Path]:
    """Measure a model on pictures that get worse step by step, print each measurement and write a page of curves.

    Args:
        model: a run's folder, or the name of a shipped model.
        split: name of the split, or a part of it.
        data: another prepared data set with the same labels; the run's own if empty.
        data_dir: where data sets are prepared.
        bfloat16: compute convolutions in bfloat16.
        out: folder of the page; runs/robustness-MODEL unless given.
        command: what was typed, to stand on the page.

    Returns:
        The page's files by kind.

    Raises:
        UserError: see `evaluation.robustness.robustness`.
    """
    from tfface.data import pipeline
    from tfface.evaluation import robustness as measuring
    from tfface.serving.predictor import find_model

    run = find_model(model)
    name = run.name
    folder = Path(out) if out else Path("runs") / f"robustness-{name}"
    files.check_writable(folder)
    result = measuring.robustness(run, split, data, data_dir, bfloat16, progress=say)
    examples = measuring.example_faces(pipeline.open_dataset(result["data"], data_dir), split)
    return measuring.write_robustness(result, folder, f"Robustness of {name}", examples, command)


REPORTED = ("validation", "test")
"""Splits that `reproduce` measures, where the data set has them."""


def reproduce(
    recipe: Recipe,
    seeds: Iterable[int],
    out: str | Path | None = None,
    variant: str = "",
    data_dir: str | Path | None = None,
    device: str = "auto",
    bfloat16: bool = False,
    devices: int = 1,
    command: str = "",
) -> dict:
    """Train, evaluate, report and export one recipe over several seeds; what is done already is not done again.

    Figures are measured again where labels of their split were corrected since.

    Args:
        recipe: what is reproduced; its seed is replaced.
        seeds: a run for each, in the folder `seed-N`.
        out: folder of the runs; `run_folder` unless given.
        variant: the recipe's variant, for the folder's name.
        data_dir: where data sets are prepared.
        device, bfloat16, devices: as in `tfface.training.fit.fit`.
        command: what was typed, to stand in the report.

    Returns:
        The report's files by kind, and the SavedModel under "saved_model". That is left out where Keras' backend is
        not TensorFlow, which alone writes it: `export` does later.

    Raises:
        UserError: the folder holds seeds of other choices or other data, and what the steps raise.
    """
    import keras

    from tfface.data import pipeline
    from tfface.evaluation.predictions import measured_parts
    from tfface.evaluation.run_report import figures_names
    from tfface.training.fit import fit
    from tfface.training.run import Run, runs_in

    folder = Path(out) if out else run_folder(recipe, variant)
    builder = pipeline.open_dataset(recipe.data, data_dir)
    adapted = recipe.adapted(pipeline.class_names(builder))
    fingerprints = {split: pipeline.fingerprint(builder, split) for split in builder.info.splits}
    for path in sorted(folder.glob("seed-*")):  # before hours of training: a report takes all of them together
        if Run(path).config_file.exists():
            Run(path).check_seed(adapted, {"name": builder.info.full_name, "fingerprints": fingerprints})
    splits = [split for split in builder.info.splits if split in REPORTED]
    parts = measured_parts(recipe, data_dir)
    opened = [pipeline.open_dataset(part, data_dir) for part in parts]
    labels = {
        split: {
            name: pipeline.label_digest(part, split)
            for name, part in zip(figures_names(parts, recipe, split), opened, strict=True)
        }
        for split in splits
    }
    for seed in seeds:
        run = fit(recipe.changed(seed=seed), folder / f"seed-{seed}", data_dir, device, bfloat16, devices=devices)
        known = run.figures_file
        done = files.read_json(known, "The run's figures") if known.exists() else {}
        missing = [
            split
            for split in splits
            # A version before did not note the labels.
            if any(name not in done or done[name].get("labels", now) != now for name, now in labels[split].items())
        ]
        if missing and any(task.is_attribute for task in recipe.tasks()):
            model = run.model()
            for split in missing:
                evaluate(run.folder, split, data_dir=data_dir, bfloat16=bfloat16, model=model)
        for pairs in recipe.pairs:
            if pairs not in done.get("verification", {}):
                folder_of_pairs = run.folder / "verification" / pairs.replace("/", "-")
                verified = verify(str(run.folder), pairs, data_dir, bfloat16=bfloat16, out=folder_of_pairs)
                figures = files.read_json(known, "The run's figures") if known.exists() else {}
                everything = {**figures.get("verification", {}), pairs: verified}
                files.write_json(known, {**figures, "verification": everything})
    with files.held(folder):  # another process may have come to the end of other seeds
        made = report(folder, data_dir, command)
        first = runs_in(folder)[0]  # which the report shows, too
        saved = folder / "saved_model"
        card = saved / "assets.extra" / "tfface.json"
        exported = files.read_json(card, "What is exported") if card.exists() else {}
        # By its bytes, not its time: of another seed, or of a run that went on or was calibrated, it is another one.
        if exported.get("trained") != files.sha256(first.trained_file):
            if keras.backend.backend() != "tensorflow":
                return made
            export(first.folder, saved)
    return {**made, "saved_model": saved}


EXPORTED = {"saved_model": "saved_model", "onnx": "model.onnx", "litert": "model.tflite"}
"""Format of an export -> its name in the run's folder."""


def export(
    folder: str | Path,
    out: str | Path | None = None,
    form: str = "saved_model",
    bfloat16: bool = False,
    int8: bool = False,
    data: str = "",
    data_dir: str | Path | None = None,
) -> Path:
    """Write a run as it is served; of an int8 file, print what it loses on labelled faces.

    Args:
        folder: a run's folder, or the name of a shipped model.
        out: where to; if None its name in `EXPORTED`, in the run's folder, of a shipped model in `runs/NAME`.
        form: "saved_model", "onnx" or "litert".
        bfloat16: of a SavedModel, compute in bfloat16.
        int8: of a LiteRT file, weights and feature maps in int8, their ranges from faces of the training split.
        data, data_dir: the data set for int8; the run's own if empty.

    Returns:
        What was written.

    Raises:
        UserError: an option that the format has not, no trained model, or an export that gives other outputs.
    """
    from tfface.serving.predictor import SHIPPED, find_model

    for chosen, option, needed in ((bfloat16, "--bfloat16", "saved_model"), (int8, "--int8", "litert")):
        if chosen and form != needed:
            raise UserError(f"{option} belongs to --format {needed}, received --format {form}")
    if data and not int8:
        raise UserError(f"--data names the faces for --int8, which was not asked for. Received: {data}.")
    run = find_model(folder)
    # The package itself may be read-only, and is no place to write to.
    home = Path("runs") / run.folder.name if run.folder.parent == SHIPPED else run.folder
    target = Path(out) if out else home / EXPORTED[form]
    if form == "saved_model":
        from tfface.serving.export import export_saved_model

        return export_saved_model(run, target, bfloat16)
    if form == "onnx":
        from tfface.serving.onnx import export_onnx

        return export_onnx(run, target)
    from tfface.serving import litert

    if not int8:
        return litert.export_litert(run, target)
    from tfface.data import pipeline
    from tfface.evaluation.predictions import check_outputs, truth_of

    builder = pipeline.open_dataset(data or run.recipe().data, data_dir)
    tasks, _, _ = truth_of(run.recipe(), builder, "test")
    check_outputs(tasks, run.model().output, builder)
    litert.export_litert(run, target, litert.faces_of(run, "train", litert.CALIBRATION, data, data_dir))
    for task, (whole, small) in litert.measure_int8(run, target, data, data_dir).items():
        say(f"{task}: float32 {whole:.3f}, int8 {small:.3f}{' years' if task == 'age' else ''}")
    return target


def verify(
    model: str = "facenet",
    data: str = "lfw",
    data_dir: str | Path | None = None,
    crop: str = "",
    mirror: bool = False,
    bfloat16: bool = False,
    threshold: float | None = None,
    out: str | Path | None = None,
    subtract_mean: bool = False,
    split: str = "",
) -> dict:
    """Measure an embedding model on pairs of faces, by LFW's protocol; print and write the figures and the ROC curve.

    Args:
        model: "facenet", "compact" (of the package), the folder of a run, or a `.keras` file; see
            `tfface.evaluation.embeddings.load_embedder`.
        data: "lfw", "occ_lfw", "mask_lfw", "lower_half", a prepared data set with the configs `pairs` and `images`, or
            `name/config` of one with identities, of which pairs are drawn.
        data_dir: where it is prepared.
        crop: how the network gets its crop, see `load_embedder`; its own way if empty.
        mirror: add the embedding of the mirror image.
        bfloat16: compute the network in bfloat16.
        threshold: give the accuracy at this cosine too, such as that of another set; of the embeddings as they are,
            also with `subtract_mean`.
        out: folder of verification.json and roc.png; runs/verify/MODEL-DATA-CROP if None.
        subtract_mean: take the mean embedding of the other folds from all, see `centred_similarity`.
        split: whose images pairs are drawn of; see `tfface.evaluation.embeddings.read_pairs`.

    Returns:
        What `verify_folds` gives, and what was measured.

    Raises:
        UserError: a threshold that is no cosine, no such network, crop or data set, or pairs that are not LFW's kind.
    """
    import numpy as np

    if threshold is not None and not -1 <= threshold <= 1:
        raise UserError(f"--threshold is a cosine, between -1 and 1. Received: {threshold}.")

    from tfface.evaluation import plots
    from tfface.evaluation.embeddings import embed_pairs, load_embedder
    from tfface.evaluation.verification import (
        centred_similarity,
        cosine_similarity,
        shortest_threshold,
        verify_folds,
    )
    from tfface.serving.predictor import SHIPPED, of_package

    embedder = load_embedder(
        str(SHIPPED / model) if of_package(model) else model, crop or ("whole" if "/" in data else "")
    )
    ways = {"mirror": mirror, "subtract_mean": subtract_mean, "bfloat16": bfloat16}
    further = [way.replace("_", "-") for way, taken in ways.items() if taken]
    place = Path(str(model).removesuffix(".keras"))
    parts = [part for part in place.parts if part not in ("/", "..")] or [place.resolve().name]
    name = "-".join([*parts, data.replace("/", "-"), *filter(None, [split]), embedder.crop, *further])
    folder = Path(out) if out else Path("runs") / "verify" / name
    files.check_writable(folder)
    pairs, first, second, notes = embed_pairs(embedder, data, data_dir, mirror, bfloat16, split)
    similarity, same = cosine_similarity(first, second), pairs["same"].astype(bool)
    judged = centred_similarity(first, second, pairs["fold"]) if subtract_mean else similarity
    result = verify_folds(judged, same, pairs["fold"])
    result |= {"model": model, "data": data, "split": split, "crop": embedder.crop, **ways, "notes": notes}
    result["threshold"] = shortest_threshold(np.mean([fold["threshold"] for fold in result["folds"]]), judged)
    if threshold is not None:
        result["at_threshold"] = {"threshold": threshold, "accuracy": float(np.mean((similarity >= threshold) == same))}
    files.write_json(folder / "verification.json", result)
    plots.save(plots.roc({f"{model}, {data}": result}), folder / "roc.png")
    for note in notes:
        say(note)
    added = f"{', mirror added' if mirror else ''}{', mean subtracted' if subtract_mean else ''}"
    say(
        f"{model} on {data}, {embedder.crop} crop{added}: accuracy "
        f"{result['accuracy']:.4f} ± {result['deviation']:.4f} over {len(result['folds'])} folds, {result['n']} pairs, "
        f"mean threshold {result['threshold']}, AUC {result['auc']:.4f}"
    )
    if threshold is not None:
        say(f"  accuracy at the threshold {threshold}: {result['at_threshold']['accuracy']:.4f}")
    for far, rate in result["tar"].items():
        low, high = rate["interval"]
        below, above = rate["far_interval"]
        say(
            f"  TAR at FAR {far}: {rate['value']:.4f}, 95 % interval {low:.4f} to {high:.4f}; threshold "
            f"{rate['threshold']}, at which the FAR is {below:.4f} to {above:.4f}"
        )
    say(f"{folder / 'verification.json'}")
    return result


# --- what is there


def list_weights(names: Iterable[str] = ()) -> None:
    """Print pretrained files, all unless some are named, with their state, licence and preprocessing.

    Raises:
        UserError: an unknown name.
    """
    from tfface import weights

    for name in names or weights.PRETRAINED:
        entry = weights.lookup(name)
        say(f"{name}: {weights.status(name)}, {weights.path(name)}")
        say(f"  {entry.about}\n  licence: {entry.licence}\n  input: {entry.preprocessing}\n  sha256: {entry.sha256}")


def doctor(data_dir: str | Path | None = None) -> int:
    """Print versions, devices, prepared data sets and weights with their checks.

    Returns:
        Exit code: 0 everything that is needed works, 2 something is missing; each miss names its mend.
    """
    import platform

    from tfface import weights
    from tfface.packages import installed_version

    wrong = 0
    say(f"python {platform.python_version()}, {platform.platform()}")
    for package in ("tfface", "tensorflow", "keras", "tensorflow-model-optimization", "tensorflow-datasets", "jax"):
        found = installed_version(package)
        wrong += not found
        say(f"{package} {found}" if found else f"{package} is missing: pip install -r requirements.txt")
    for module, mend in (
        ("cv2", "apt-get install libgl1 (opencv-python needs libGL.so.1), or keep only one wheel of cv2 installed"),
        ("dlib", "pip install dlib-bin"),
    ):
        try:
            say(f"{module} {importlib.import_module(module).__version__}")
        except ImportError as error:
            wrong += 1
            say(f"{module} cannot be imported ({error}). Mend: {mend}")
    try:
        import keras
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except (ImportError, ValueError) as error:  # Keras' own of a backend that it does not know
        backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
        known = backend in ("tensorflow", "jax")
        mend = "pip install -r requirements.txt" if known else f"unset KERAS_BACKEND, which is {backend}"
        say(f"{getattr(error, 'name', None) or 'keras'} cannot be imported ({error}). Mend: {mend}")
        return 2

    say(f"Keras backend: {keras.backend.backend()}")
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    say(f"GPU: {', '.join(details) or 'none that TensorFlow sees; training runs on the CPU'}")
    for name in weights.PRETRAINED:
        state = weights.status(name)
        wrong += state == "damaged"
        mend = "" if state == "ready" else f" (tfface weights fetch {name})"
        say(f"weights {name}: {state}{mend}")
    folder = Path(data_dir or tfds.core.constants.DATA_DIR)
    prepared = sorted(path.parent for path in folder.glob("*/**/dataset_info.json")) if folder.is_dir() else []
    say(f"prepared data sets in {folder}: {', '.join(str(p.relative_to(folder)) for p in prepared) or 'none'}")
    return 2 if wrong else 0

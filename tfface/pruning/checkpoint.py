"""Prune a file or a run and say what it gave: a smaller network, and base and pruned side by side."""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
from tqdm import tqdm

from tfface import files
from tfface.errors import UserError
from tfface.evaluation import plots
from tfface.models.recognition import load_backbone
from tfface.models.saved import load_saved
from tfface.packages import require_tensorflow
from tfface.pruning.graph import as_names, channel_groups, fixed_layers
from tfface.pruning.importance import choose, excluded, importance
from tfface.pruning.measure import latency, multiply_adds
from tfface.pruning.reconstruct import CHUNK
from tfface.pruning.reconstruct import reconstruct as fitted
from tfface.pruning.sensitivity import plot_sensitivity, ratios_from_sensitivity, sensitivity
from tfface.pruning.surgery import cut
from tfface.training.features import model_fingerprint
from tfface.training.run import Run

SCHEDULES = ("", "constant", "polynomial")
REPEATS = 10
"""Timed batches of each network, in turns."""

SENSITIVITY = "sensitivity"

MEASURED_RATIOS = (0.2, 0.4, 0.6, 0.8, 0.95)
"""At which each block's sensitivity is measured; between them it is taken to be linear."""

UPDATES = 20
"""So often a schedule chooses anew what is masked, over the first half of the steps; the second half is to recover."""


def prune_checkpoint(
    source: str | Path,
    ratio: float,
    method: str = "l1",
    scope: str = "layer",
    multiple_of: int = 8,
    exclude: Sequence[str] = (),
    untouched: Sequence[str] = (),
    schedule: str = "",
    finetune: int = 0,
    data: str = "",
    data_dir: str | Path | None = None,
    input_shape: Sequence[int] | None = None,
    out: str | Path | None = None,
    reconstruct: str = "",
    faces: int = 1024,
) -> dict:
    """Write `pruned.keras`, a plain Keras model, and `pruned.json`: what was cut, and what it gave.

    Without a schedule channels are cut first, and `finetune` trains what is left. With one they are masked little by
    little while the whole network trains, and cut at its end.

    Args:
        source: a `.keras` file of any functional model, the folder of a run, or "facenet".
        ratio: share of the channels that goes, in (0, 1).
        method: importance of a channel, as in `tfface.pruning.importance`; "taylor" for a run only.
        scope, multiple_of, exclude: how channels are chosen, as in `tfface.pruning.choose`. Another scope, of a run,
            is "sensitivity": each block has its own ratio, the larger the less its cut alone costs (paper 5, section
            1.2), and all blocks together lose `ratio` of their channels. The cost is the recipe's loss on training
            images; `sensitivity.json` and `sensitivity.png` show it.
        untouched: names or patterns of layers to leave as they are, as in `tfface.pruning.channel_groups`.
        schedule: "constant" or "polynomial" (TFMOT's), for a run that trains; "" cuts at once.
        finetune: epochs of training by the run's recipe. `pruned.keras` and its figures are of the last one; without a
            schedule the folder `training` is a run of the smaller network, which keeps the best one.
        data: prepared data set for accuracy (split `test`) and training; for a run only. If empty, accuracy is measured
            where the run trains, on its own data set.
        data_dir: where data sets are prepared.
        input_shape: shape of the input without the batch axis, where the model leaves it open.
        out: folder of the results; by default NAME-pruned beside a file, RUN/pruned in a run, runs/facenet-pruned.
        reconstruct: prepared data set on whose training images, without labels, the kernels of what is left are fitted
            to the outputs of the whole network (`tfface.pruning.reconstruct`), before any training; for a network
            that takes one image, RGB in [0, 255].
        faces: so many of those images, 1 or more.

    Returns:
        What stands in `pruned.json`: the choices, `groups` (name -> [channels before, after]), `rows` (name, base,
        pruned, speed_up) for `table`, and `run`, the folder of the run of the smaller network, "" if there is none.

    Raises:
        UserError: no such model, nothing in it can be cut, a folder that may not be written to, or a choice that is out
            of range or needs a run.
    """
    source, exclude, untouched = Path(source), as_names(exclude), as_names(untouched)
    _check_choices(ratio, scope, schedule, finetune, reconstruct, faces)
    learns = data or finetune or method == "taylor" or scope == SENSITIVITY
    run, base = _opened(source, learns)
    if str(source) == "facenet":
        source, input_shape = Path("runs") / source, input_shape or (160, 160, 3)
    out = Path(out) if out else source / "pruned" if run else source.with_name(f"{source.stem}-pruned")
    file, training = out / "pruned.keras", out / "training"
    if file.exists() and source.exists() and file.samefile(source):
        raise UserError(
            f"The pruned model would take the place of its source {source}: choose another folder by --out."
        )
    files.check_writable(out)
    groups = channel_groups(base, untouched=untouched)
    if not groups:
        held = [f"{name}: {reason}" for name, reason in fixed_layers(base, untouched=untouched).items()]
        raise UserError(f"{source} has no channels to cut. {'; '.join(held[:3]) or 'No layer makes any'}.")
    images = _images(reconstruct, data_dir, faces, input_shape or base.input_shape[1:]) if reconstruct else None
    multiply_adds(base, input_shape)  # a shape that does not fit is told before anything is trained or written
    retraining, taylor = None, {}
    if learns:
        from tfface.pruning.retrain import Retraining

        retraining = Retraining(run.recipe(), data, data_dir, finetune)
        taylor = retraining.taylor() if method == "taylor" else {}

    choice = {"scope": scope, "multiple_of": multiple_of, "exclude": exclude}
    choices = {"source": str(source), "method": method, "ratio": ratio, **choice, "untouched": untouched}
    keep = _kept(base, groups, importance(base, groups, method, **taylor), choices, retraining, out)
    # A training that was begun from other weights, as of a run that went on since, is another one.
    begun = {**choices, "network": model_fingerprint(base)} if finetune else {}
    measured = bool(data or finetune)
    # Training changes the base: what it costs does not change, but a network of its own is timed beside the pruned one.
    figures = [retraining.figures(base)] if measured else []
    if schedule:
        from tfface.pruning.schedule import FilterPruning, nonzero_channels

        pruned = cut(base, {}, groups)
        steps = _schedule(schedule, ratio, finetune * retraining.steps)
        pruning = FilterPruning(steps, method, **choice, **taylor, untouched=untouched)
        retraining.fit(pruned, training, {**begun, "schedule": schedule}, [pruning])
        # From the weights: a training that had come to its end before has no step in which to choose.
        keep = nonzero_channels(pruned, groups)
        pruned = cut(pruned, keep, groups)
    else:
        pruned = fitted(base, keep, images, groups, progress=True) if reconstruct else cut(base, keep, groups)
        if finetune:
            # A training of what was only cut is not that of what was fitted too, and the other way round.
            start = {"reconstruct": reconstruct, "faces": faces} if reconstruct else {}
            retraining.fit(pruned, training, {**begun, **start})
            # Around the same layers and not compiled: the optimizer's state stays out of the file.
            pruned = keras.Model(pruned.input, pruned.output, name=pruned.name)
    if measured:
        figures.append(retraining.figures(pruned))

    with tempfile.TemporaryDirectory() as folder:
        sizes = [_save(base, Path(folder) / "base.keras"), _save(pruned, file)]
    result = {
        "file": str(file),
        "run": str(training) if finetune and not schedule else "",  # on a schedule the whole network was trained
        **choices,
        "schedule": schedule,
        "finetune": finetune,
        "reconstruct": reconstruct,
        "data": retraining.builder.info.full_name if measured else "",
        "device": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {keras.backend.backend()}",
        "groups": {group.name: [group.width, len(keep[group.name])] for group in groups},
        "rows": _rows(base, pruned, sizes, input_shape, *figures),
    }
    files.write_json(out / "pruned.json", result)
    return result


def _opened(source, learns):
    """The run, if the source is one, and the network."""
    facenet = str(source) == "facenet"
    if not facenet and not source.exists():
        raise UserError(f"There is no model at {source}: expected a .keras file, the folder of a run, or facenet.")
    if not facenet and source.is_dir():
        run = Run(source)
        keras.utils.set_random_seed(run.recipe().seed)  # dropout draws its seed as it is read, and is trained on by it
        return run, run.model(float32=False)
    if learns:
        raise UserError(
            f"Accuracy, training, taylor and sensitivity need a recipe's tasks and data, which a run has and the file "
            f"{source} has not: prune it without --data, --finetune and these two, or in Python with your own data "
            "(docs/pruning.md)."
        )
    return None, load_backbone("facenet", (None, None, 3)) if facenet else load_saved(source)


def _kept(base, groups, scores, choices, retraining, out):
    """The channels of each group that stay, by name."""
    ratio, scope = choices["ratio"], choices["scope"]
    choice = {name: choices[name] for name in ("multiple_of", "exclude")}
    if scope == SENSITIVITY:
        members = [group for group in groups if not excluded(group, choices["exclude"])]
        measured = {**choices, "scope": "block", "ratio": MEASURED_RATIOS}
        rows = _sensitivity(base, members, scores, retraining, out, measured)
        keep = choose(groups, scores, ratios_from_sensitivity(rows, ratio=ratio), scope="block", **choice)
    else:
        keep = choose(groups, scores, ratio, scope=scope, **choice)
    if all(len(keep[group.name]) == group.width for group in groups):
        raise UserError(
            f"A share of {ratio} of the channels of {choices['source']} comes to none in multiples of "
            f"{choices['multiple_of']}: choose a larger --ratio or a smaller --multiple-of."
        )
    return keep


def _check_choices(ratio, scope, schedule, finetune, reconstruct, faces):
    if not 0 < ratio < 1:
        raise UserError(f"The share of channels to cut must lie between 0 and 1, both excluded. Received: {ratio}.")
    if finetune < 0:
        raise UserError(f"--finetune must be 0 epochs or more. Received: {finetune}.")
    if faces < 1:
        raise UserError(f"--faces must be 1 or more. Received: {faces}.")
    if schedule not in SCHEDULES:
        raise UserError(f"The schedule must be constant or polynomial. Received: {schedule}.")
    if schedule and not finetune:
        raise UserError(f"The schedule {schedule} prunes while the network trains: add --finetune EPOCHS.")
    if schedule:
        require_tensorflow("--schedule", ", or leave --schedule out")
    if schedule and reconstruct:
        raise UserError("A schedule trains what is left before it is cut: reconstruct without --schedule.")
    if schedule and scope == SENSITIVITY:
        raise UserError("A schedule moves one ratio for all blocks: choose --scope layer, block or global with it.")


def table(result: dict) -> str:
    """The result of `prune_checkpoint` as a Markdown table, with what its speed-up means below."""
    schedule = f", {result['schedule']}" if result["schedule"] else ""
    trained = f"{schedule}, epochs: {result['finetune']}" if result["finetune"] else ""
    trained = (", reconstructed" if result["reconstruct"] else "") + trained
    lines = [
        f"| {result['method']} {result['ratio']:g} by {result['scope']}{trained} | base | pruned | delta | speed-up |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        base, pruned = row["base"], row["pruned"]
        cost = row["speed_up"] is not None or row["name"] in ("parameters", "file, MB")
        delta = f"{pruned / base - 1:+.1%}" if cost else f"{pruned - base:+.4f}"
        speed_up = f"{row['speed_up']:.2f}" if row["speed_up"] is not None else ""
        lines.append(f"| {row['name']} | {_number(base)} | {_number(pruned)} | {delta} | {speed_up} |")
    lines += [
        "",
        f"speed-up: how many times as fast as the base. Of a batch it is wall time, the least of {REPEATS} that base "
        f"and pruned took in turns ({result['device']}); of the multiply-adds it is what arithmetic alone would give.",
    ]
    return "\n".join(lines)


def _number(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _rows(base, pruned, sizes, input_shape, before=None, after=None):
    rows = [{"name": "parameters", "base": base.count_params(), "pruned": pruned.count_params(), "speed_up": None}]
    counts = [multiply_adds(model, input_shape) for model in (base, pruned)]
    timed = [("multiply-adds", counts)]
    for batch_size in (1, 8):
        seconds = latency((base, pruned), batch_size, REPEATS, input_shape)
        timed.append((f"batch of {batch_size}, ms", [1000 * second for second in seconds]))
    rows += [{"name": name, "base": a, "pruned": b, "speed_up": a / b} for name, (a, b) in timed]
    rows.insert(2, {"name": "file, MB", "base": sizes[0] / 1e6, "pruned": sizes[1] / 1e6, "speed_up": None})
    return rows + [
        {"name": name, "base": before[name], "pruned": after[name], "speed_up": None} for name in before or ()
    ]


def _images(data, data_dir, count, shape):
    """Batches of the first `count` training images of a data set, at the height and width of an input's shape."""
    from tfface.data import pipeline

    if len(shape) != 3 or None in shape or shape[-1] != 3:
        raise UserError(
            "To reconstruct, the network must take one RGB image of a known size. Received: an input of shape "
            f"{tuple(shape)}; name an open one with --input-shape, such as 160x160x3."
        )
    builder = pipeline.open_dataset(data, data_dir)
    rows = pipeline.examples(builder, "train").take(count)
    return rows.map(lambda row: pipeline.decode(row["image"], shape[:2])).batch(CHUNK).as_numpy_iterator()


def _sensitivity(base, groups, scores, retraining, out, choices):
    """Rows of `sensitivity`, kept beside the results: another ratio, or a run that was broken off, finds them there."""
    file = out / "sensitivity.json"
    asked = json.loads(json.dumps({**choices, "network": model_fingerprint(base), "data": retraining.recipe.data}))
    if file.exists():
        known = files.read_json(file, "The sensitivity of the blocks")
        if known.get("asked") == asked:
            return known["rows"]
    loss = retraining.loss()
    blocks = len({group.block for group in groups})
    with tqdm(total=1 + blocks * len(MEASURED_RATIOS), unit="cut", desc="sensitivity of the blocks") as bar:

        def measured(model):
            bar.update()
            return loss(model)

        rows = sensitivity(base, groups, measured, MEASURED_RATIOS, scores, higher_is_better=False)
    plots.save(plot_sensitivity(rows, "loss"), out / "sensitivity.png")
    files.write_json(file, {"asked": asked, "rows": rows})
    return rows


def _schedule(name, ratio, steps):
    from tensorflow_model_optimization.sparsity import keras as sparsity

    frequency = math.ceil(steps / 2 / UPDATES)
    # The last update falls on the last step of the schedule, which is where a polynomial reaches the whole ratio.
    end = frequency * math.ceil(steps / 2 / frequency)
    if name == "constant":
        return sparsity.ConstantSparsity(ratio, begin_step=0, end_step=end, frequency=frequency)
    return sparsity.PolynomialDecay(0.0, ratio, begin_step=0, end_step=end, frequency=frequency)


def _save(model, path):
    with files.written_aside(path) as aside:
        model.save(aside)
    return path.stat().st_size

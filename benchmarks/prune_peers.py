"""Our pruner and those of PyTorch on one trained ResNet50: size, accuracy right after the cut, time, speed.

    tfface train gender --data utkface --set label=gender --set depth=50 --set "image_size=(64,64)" \\
        --set epochs=1 --set batch_size=32 --set random_crop=1.0 --set learning_rate=1e-3 --set lowest_rate=1e-3 \\
        --out runs/resnet50
    python3 -m venv tp && tp/bin/pip install torch==2.13.0 torch-pruning==1.6.1
    python3 -m venv mct && mct/bin/pip install torch==2.13.0 torchvision model-compression-toolkit==2.6.1
    python benchmarks/prune_peers.py runs/resnet50 --peers tp/bin/python mct/bin/python --csv benchmarks/prune_peers.csv

Any run of the recipe `gender` with depth 50 will do. Its weights move into the same ResNet50 in PyTorch, whose logits
on the test images must agree before anything is cut, so that all tools cut the same network. Nothing is trained after
the cut: `accuracy pruned` is what the choice of channels leaves, chance being the share of the commonest class (in the
first line). `recalibrated` is the accuracy once the statistics of the batch norms, which a cut leaves wrong, are
gathered anew, for every tool on the same images of the training split and without labels, for the base too. The row
`reconstructed` has its kernels fitted to the outputs of the whole network on those images, without labels either
(`tfface.pruning.reconstruct`): a step that the peers do not have.

Multiply-adds and wall time are those of an image of 224x224. Compare ratios (base to pruned, which take turns in one
run) and not milliseconds across frameworks. All cut the same share of every group, in multiples of 8, where
Torch-Pruning rounds down and we to the nearest; `global` ranks the channels of all layers together. Our ratings have
the names of `tfface prune --importance`; Torch-Pruning's is its GroupMagnitudeImportance, by the L1 norm and by L2, its
default. Sony's toolkit knows no ratio: its Hessian rates, and it keeps as many parameters as the ratio would leave,
inside the blocks only.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from tfface import pruning
from tfface.data import pipeline
from tfface.files import written_aside
from tfface.training import batches
from tfface.training.run import Run, read_trained

TOOLS = {
    "tfface l1": ("l1", "layer", False),
    "tfface group": ("group", "layer", False),
    "tfface l1, global": ("l1", "global", False),
    "tfface group, global": ("group", "global", False),
    "tfface group, reconstructed": ("group", "layer", True),
}
"""Name -> importance, scope, and whether what is left is fitted to the whole network."""

BATCHES = (1, 8)

SIDE = 224
"""Of the image that multiply-adds and wall time are those of, pixels."""

COMMAND = (
    "python benchmarks/prune_peers.py runs/resnet50 --peers tp/bin/python mct/bin/python "
    "--csv benchmarks/prune_peers.csv"
)
"""The rows' own options are added."""


def to_logits(run: Run) -> keras.Model:
    """The run's network for images of any size, without the softmax, which the peers' networks have not either."""
    recipe = run.recipe()
    model = recipe.changed(image_size=(None, None)).model()
    read_trained(model, run.trained_file)
    return keras.Model(model.inputs, model.get_layer(f"{recipe.label}_logits").output, name="resnet50")


def split_arrays(run: Run, split: str, data_dir, count: int):
    """The first `count` images `(n, height, width, 3)` in [0, 255], as the network sees them, and labels `(n,)`."""
    recipe = run.recipe()
    builder = pipeline.open_dataset(recipe.data, data_dir)
    images = batches.evaluation_images(builder, split, recipe, pipeline.View())
    images = next(images.unbatch().batch(count).as_numpy_iterator())
    return images, pipeline.label_arrays(builder, split)[recipe.label][:count]


def torchvision_weights(model: keras.Model) -> dict[str, np.ndarray]:
    """The weights of our ResNet50 by the names and in the layouts of torchvision's."""
    weights = {}
    for layer in model.layers:
        values = layer.get_weights()
        if isinstance(layer, keras.layers.BatchNormalization):
            values = dict(zip(("weight", "bias", "running_mean", "running_var"), values, strict=True))
        elif isinstance(layer, keras.layers.Conv2D):
            values = {"weight": values[0].transpose(3, 2, 0, 1)}
        elif isinstance(layer, keras.layers.Dense):
            values = {"weight": values[0].T, "bias": values[1]}
        else:
            continue
        weights |= {f"{torchvision_name(layer.name)}.{part}": value for part, value in values.items()}
    return weights


def torchvision_name(name: str) -> str:
    """Name of a layer in torchvision's ResNet50: conv3_block1_2_bn -> layer2.0.bn2."""
    found = re.fullmatch(r"conv(\d)_block(\d)_(\d)_(conv|bn)", name)
    if not found:
        return {"conv1_conv": "conv1", "conv1_bn": "bn1"}.get(name, "fc")
    stage, block, number, kind = found.groups()
    part = f"{kind}{number}" if number != "0" else f"downsample.{('conv', 'bn').index(kind)}"
    return f"layer{int(stage) - 1}.{int(block) - 1}.{part}"


def measure_ours(base, arrays, tools, ratios, repeats):
    """Yield what each of our ratings gives at each ratio, in the form in which `torch_pruners.py` prints it."""
    shape = (SIDE, SIDE, 3)
    images, labels, statistics = arrays["images"], arrays["labels"], arrays["statistics"]
    recalibrated = accuracy(predict(recalibrate(base, statistics), images), labels)
    for ratio in ratios:
        for tool in tools:
            method, scope, reconstructed = TOOLS[tool]
            start = time.perf_counter()
            groups = pruning.channel_groups(base)
            keep = pruning.choose(groups, pruning.importance(base, groups, method), ratio, scope)
            if reconstructed:
                pruned = pruning.reconstruct(base, keep, [statistics], groups)
            else:
                pruned = pruning.cut(base, keep, groups)
            seconds = time.perf_counter() - start
            models = (base, pruned)
            yield {
                "tool": tool,
                "ratio": ratio,
                # As PyTorch counts them: without the moving statistics.
                "parameters": [sum(math.prod(each.shape) for each in model.trainable_weights) for model in models],
                "multiply-adds": [pruning.multiply_adds(model, shape) for model in models],
                "accuracy": [accuracy(arrays["logits"], labels), accuracy(predict(pruned, images), labels)],
                "seconds": seconds,
                "latency": [pruning.latency(models, batch, repeats, shape) for batch in BATCHES if repeats],
                "recalibrated": [recalibrated, accuracy(predict(recalibrate(pruned, statistics), images), labels)],
            }


def recalibrate(model, images):
    """A copy of the model whose batch norms have gathered their statistics on the images."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    pruning.recalibrate(copy, np.split(images, range(64, len(images), 64)))
    return copy


def predict(model, images):
    """Logits `(n, classes)`."""
    return model.predict(images, batch_size=64, verbose=0)


def accuracy(logits, labels) -> float:
    """Share of the images that get their label."""
    return float(np.mean(logits.argmax(-1) == labels))


def measure_peers(python, base, arrays, ratios, repeats):
    """Yield what the tools of another interpreter give; one that does not run gives its reason as "error"."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.npz"
        weights = {f"weights/{name}": value for name, value in torchvision_weights(base).items()}
        np.savez(file, **arrays, **weights)
        options = ["--repeats", str(repeats), "--batches", *map(str, BATCHES), "--ratio", *map(str, ratios)]
        script = Path(__file__).with_name("torch_pruners.py")
        command = [str(python), str(script), str(file), "--side", str(SIDE), *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
                else:
                    print(line, end="", flush=True)
    if process.returncode:
        raise SystemExit(f"The peers ended with status {process.returncode}; what they said stands above.")


def row_of(measured: dict) -> dict:
    """One row of the table."""
    row = {"tool": measured["tool"], "ratio": measured["ratio"]}
    for name in ("parameters", "multiply-adds", "accuracy", "recalibrated"):
        row[name], row[f"{name} pruned"] = (round(value, 4) for value in measured[name])
    reduction = row["multiply-adds"] / row["multiply-adds pruned"]
    row |= {"reduction": round(reduction, 2), "seconds to prune": round(measured["seconds"], 1)}
    for batch, (slow, fast) in zip(BATCHES, measured["latency"], strict=False):
        row |= {
            f"ms at {batch}": round(slow * 1e3, 1),
            f"ms at {batch} pruned": round(fast * 1e3, 1),
            f"speed-up at {batch}": round(slow / fast, 2),
            f"efficiency at {batch}": round(slow / fast / reduction, 2),
        }
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of the recipe gender, depth 50")
    parser.add_argument("--peers", nargs="*", default=(), help="Pythons that have peers, each measured by itself")
    parser.add_argument("--tools", nargs="*", choices=TOOLS, default=list(TOOLS), help="of ours (default: all)")
    parser.add_argument("--data-dir", help="where data sets are prepared (default: TFDS's own)")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--examples", type=int, default=2000, help="images of the test split, the first ones")
    parser.add_argument(
        "--calibration",
        type=int,
        default=1,
        help="images of the validation split that Sony's toolkit takes its Hessian on (its default: 32, as many times "
        "as slow)",
    )
    parser.add_argument("--statistics", type=int, default=1024, help="images of the training split to recalibrate on")
    parser.add_argument("--repeats", type=int, default=5, help="of the wall time; 0 measures none")
    parser.add_argument("--csv", type=Path, help="write the rows to this file too, those of the same network kept")
    arguments = parser.parse_args()
    run = Run(arguments.run)
    base = to_logits(run)
    images, labels = split_arrays(run, "test", arguments.data_dir, arguments.examples)
    arrays = {"images": images, "labels": labels, "logits": predict(base, images)}
    arrays["calibration"] = split_arrays(run, "validation", arguments.data_dir, arguments.calibration)[0]
    arrays["statistics"] = split_arrays(run, "train", arguments.data_dir, arguments.statistics)[0]
    chance = np.bincount(labels).max() / len(labels)
    options = " ".join(
        f"--{name} {getattr(arguments, name)}" for name in ("examples", "calibration", "statistics", "repeats")
    )
    about = f"{run.recipe().data}, {len(labels)} test images, chance {chance:.4f}, {os.cpu_count()} CPU cores"
    header = f"# {COMMAND} {options} ({about}; see its docstring)"
    print(about)
    every = [measure_ours(base, arrays, arguments.tools, arguments.ratio, arguments.repeats)]
    every += [measure_peers(python, base, arrays, arguments.ratio, arguments.repeats) for python in arguments.peers]
    rows = {}
    if arguments.csv and arguments.csv.exists():
        first, *lines = arguments.csv.read_text().splitlines()
        whole = str(round(accuracy(arrays["logits"], labels), 4))
        rows = {
            (row["tool"], float(row["ratio"])): row
            for row in csv.DictReader(lines)
            if first == header and row["accuracy"] == whole
        }
    for measured in itertools.chain.from_iterable(every):
        if "error" in measured:
            print(f"{measured['tool']}  does not run: {measured['error']}")
            continue
        row = rows[measured["tool"], measured["ratio"]] = row_of(measured)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if arguments.csv:
            with written_aside(arguments.csv) as aside, aside.open("w", newline="") as stream:
                stream.write(f"{header}\n")
                writer = csv.DictWriter(stream, list(row), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows.values())


if __name__ == "__main__":
    main()

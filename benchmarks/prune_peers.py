"""Our pruner and those of PyTorch on one trained ResNet50: size, accuracy right after the cut, time, speed.

    tfface train gender --data utkface --set label=gender --set depth=50 --set "image_size=(64,64)" \\
        --set epochs=1 --set batch_size=32 --set random_crop=1.0 --set learning_rate=1e-3 --set lowest_rate=1e-3 \\
        --out runs/resnet50
    python3 -m venv peers && peers/bin/pip install torch torchvision torch-pruning model-compression-toolkit
    python benchmarks/prune_peers.py runs/resnet50 --peers peers/bin/python --csv benchmarks/prune_peers.csv

Any run of the recipe `gender` with depth 50 will do. Its weights move into torchvision's ResNet50, whose logits on the
test images must agree before anything is cut, so that all tools cut the same network. Nothing is trained after
the cut: `accuracy pruned` is what its choice of channels leaves, and at a ratio of 0.5 that is mostly chance, which is
the share of the commonest class (in the first line). Moving statistics of the batch norms stay as they are, too.

Multiply-adds and wall time are those of an image of 224x224. Compare ratios (base to pruned, which take turns in one
run) and not milliseconds across frameworks. All cut by the L1 norm, the same share of every layer, rounded to 8; but
`tfface global` ranks the channels of all layers together, and Sony's toolkit knows no L1 norm and no ratio: its Hessian
rates, and it keeps as many parameters as the ratio would leave, inside the blocks only.
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

SCOPES = {"tfface": "layer", "tfface global": "global"}

BATCHES = (1, 8)

SIDE = 224
"""Of the image that multiply-adds and wall time are those of, pixels."""

COMMAND = "python benchmarks/prune_peers.py runs/resnet50 --peers peers/bin/python --csv benchmarks/prune_peers.csv"
"""The rows' own options are added."""


def to_logits(run: Run) -> keras.Model:
    """The run's network for images of any size, without the softmax, which the peers' networks have not either."""
    recipe = run.recipe()
    model = recipe.changed(image_size=(None, None)).model()
    read_trained(model, run.trained_file)
    return keras.Model(model.inputs, model.get_layer(f"{recipe.label}_logits").output, name="resnet50")


def split_arrays(run: Run, split: str, data_dir):
    """Images `(n, height, width, 3)` in [0, 255], as the network sees them, and the integer labels `(n,)`."""
    recipe = run.recipe()
    builder = pipeline.open_dataset(recipe.data, data_dir)
    images = batches.evaluation_images(builder, split, recipe, pipeline.View())
    return np.concatenate(list(images.as_numpy_iterator())), pipeline.label_arrays(builder, split)[recipe.label]


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


def measure_ours(base, images, labels, logits, ratios, repeats):
    """Yield what each of our scopes gives at each ratio, in the form in which `torch_pruners.py` prints it."""
    shape = (SIDE, SIDE, 3)
    for ratio in ratios:
        for tool, scope in SCOPES.items():
            start = time.perf_counter()
            pruned = pruning.prune(base, ratio, scope=scope)
            seconds = time.perf_counter() - start
            models = (base, pruned)
            yield {
                "tool": tool,
                "ratio": ratio,
                # As PyTorch counts them: without the moving statistics.
                "parameters": [sum(math.prod(each.shape) for each in model.trainable_weights) for model in models],
                "multiply-adds": [pruning.multiply_adds(model, shape) for model in models],
                "accuracy": [accuracy(logits, labels), accuracy(predict(pruned, images), labels)],
                "seconds": seconds,
                "latency": [pruning.latency(models, batch, repeats, shape) for batch in BATCHES if repeats],
            }


def predict(model, images):
    """Logits `(n, classes)`."""
    return model.predict(images, batch_size=64, verbose=0)


def accuracy(logits, labels) -> float:
    """Share of the images that get their label."""
    return float(np.mean(logits.argmax(-1) == labels))


def measure_peers(python, base, images, labels, logits, calibration, ratios, repeats):
    """Yield what the tools of the other interpreter give; one that does not run gives its reason as "error"."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.npz"
        arrays = {"images": images, "labels": labels, "logits": logits, "calibration": calibration}
        weights = {f"weights/{name}": value for name, value in torchvision_weights(base).items()}
        np.savez(file, **arrays, **weights)
        options = ["--repeats", str(repeats), "--batches", *map(str, BATCHES), "--ratio", *map(str, ratios)]
        script = Path(__file__).with_name("torch_pruners.py")
        command = [python, str(script), str(file), "--side", str(SIDE), *options]
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
    for name in ("parameters", "multiply-adds", "accuracy"):
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
    parser.add_argument("--peers", help="Python that has the peers; without it only ours is measured")
    parser.add_argument("--data-dir", help="where data sets are prepared (default: TFDS's own)")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.1, 0.3, 0.5])
    parser.add_argument("--examples", type=int, default=2000, help="images of the test split, the first ones")
    parser.add_argument("--repeats", type=int, default=5, help="of the wall time; 0 measures none")
    parser.add_argument("--csv", type=Path, help="write the rows to this file too, as they come")
    arguments = parser.parse_args()
    run = Run(arguments.run)
    base = to_logits(run)
    images, labels = (each[: arguments.examples] for each in split_arrays(run, "test", arguments.data_dir))
    calibration = split_arrays(run, "validation", arguments.data_dir)[0][:16]
    chance = np.bincount(labels).max() / len(labels)
    about = f"{run.recipe().data}, {len(labels)} test images, chance {chance:.4f}, {os.cpu_count()} CPU cores"
    print(about)
    common = (images, labels, predict(base, images))
    every = measure_ours(base, *common, arguments.ratio, arguments.repeats)
    if arguments.peers:
        peers = measure_peers(arguments.peers, base, *common, calibration, arguments.ratio, arguments.repeats)
        every = itertools.chain(every, peers)
    rows = []
    for measured in every:
        if "error" in measured:
            print(f"{measured['tool']}  does not run: {measured['error']}")
            continue
        rows.append(row_of(measured))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        if arguments.csv:
            with written_aside(arguments.csv) as aside, aside.open("w", newline="") as stream:
                options = f"--ratio {' '.join(map(str, arguments.ratio))} --examples {len(labels)}"
                stream.write(f"# {COMMAND} {options} --repeats {arguments.repeats} ({about}; see its docstring)\n")
                writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()

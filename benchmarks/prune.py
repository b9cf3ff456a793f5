"""What a cut buys: parameters, multiply-adds and wall time of the families of keras.applications and of ours.

    python benchmarks/prune.py                       # all networks, about half an hour on two cores
    python benchmarks/prune.py ResNet50 arg          # some of them
    python benchmarks/prune.py --csv benchmarks/prune.csv
    python benchmarks/prune.py ResNet50 --folded --csv benchmarks/prune.csv

Each network has random weights, loses half of the channels of every group (by the L1 norm, rounded to multiples of 8)
and is compared with itself: the base and the cut one take turns in one run, so that whatever else the machine does
slows both; of the repeats the best counts. `error` is the exactness: the largest difference of an output, as a share
of the largest output, between the network whose channels were set to 0 and the one that they were cut out of.
`efficiency` is the wall-time speed-up as a share of the multiply-add reduction. Nothing is asserted.

Rows whose network is called folded time both networks with the batch norms folded into the convolutions, as `tfface
export` does: a norm of its own is a pass over memory, which a cut shortens less than the multiply-adds.
Networks named on the command line replace their rows of the CSV and leave the others.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from tfface import models, pruning
from tfface.files import written_aside
from tfface.serving import optimize

FAMILIES = {
    "VGG16": 224,
    "ResNet50": 224,
    "ResNet50V2": 224,
    "InceptionV3": 224,
    "InceptionResNetV2": 224,
    "Xception": 224,
    "MobileNet": 224,
    "MobileNetV2": 224,
    "MobileNetV3Large": 224,
    "DenseNet121": 224,
    "NASNetMobile": 224,
    "EfficientNetB0": 224,
    "EfficientNetV2B0": 224,
    "ConvNeXtTiny": 224,
}
"""One of each family of keras.applications -> side of its image."""

BATCHES = (1, 8)

COMMAND = "python benchmarks/prune.py --csv benchmarks/prune.csv"


def build(name: str):
    """A network by name, with values that hide no fault in those weights that start at 0 or 1."""
    keras.backend.clear_session()
    if name in FAMILIES:
        shape = (FAMILIES[name], FAMILIES[name], 3)
        family = getattr(keras.applications, name)
        model = family(weights=None, input_shape=shape, classifier_activation=None)
    else:
        model = models.MODELS[name]()
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if len(variable.shape) == 1:
            positive = any(part in variable.path for part in ("gamma", "variance", "scale"))
            low, high = (0.5, 1.5) if positive else (-0.5, 0.5)
            variable.assign(generator.uniform(low, high, variable.shape))
    return model


def distance(one, other) -> float:
    """Largest difference of two outputs as a share of the largest value; the worst of several outputs."""
    pairs = zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def measure(name: str, ratio: float, repeats: int, folded: bool) -> dict:
    """One row of the table."""
    model = build(name)
    start = time.perf_counter()
    groups = pruning.channel_groups(model)
    keep = pruning.choose(groups, pruning.importance(model, groups), ratio)
    smaller = pruning.cut(model, keep, groups)
    seconds = time.perf_counter() - start
    before, after = pruning.multiply_adds(model), pruning.multiply_adds(smaller)
    row = {
        "network": f"{name} folded" if folded else name,
        "input": "x".join(map(str, model.input_shape[1:])),
        "ratio": ratio,
        "parameters": model.count_params(),
        "parameters pruned": smaller.count_params(),
        "multiply-adds": before,
        "multiply-adds pruned": after,
        "reduction": round(before / after, 2),
    }
    timed = [optimize.fold(each) if folded else each for each in (model, smaller)]
    for batch in BATCHES:
        base, pruned = pruning.latency(timed, batch, repeats)
        row |= {
            f"ms at {batch}": round(base * 1e3, 1),
            f"ms at {batch} pruned": round(pruned * 1e3, 1),
            f"speed-up at {batch}": round(base / pruned, 2),
            f"efficiency at {batch}": round(base / pruned / (before / after), 2),
        }
    # Pixels as the network wants them: where it does not scale them itself, large ones would saturate it.
    scales = any(type(layer).__name__ in ("Rescaling", "StandardizeImage") for layer in model.layers[:3])
    images = np.random.default_rng(1).uniform(0, 255, (2, *model.input_shape[1:])).astype("float32")
    images = images if scales else images / 127.5 - 1
    whole = model.predict_on_batch(images)
    pruning.silence(model, keep, groups)
    silent = model.predict_on_batch(images)
    assert distance(whole, silent) > 1e-3, f"{name}: the silence of half its channels changes nothing"
    row |= {"error": f"{distance(silent, smaller.predict_on_batch(images)):.1e}", "seconds to prune": round(seconds, 1)}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[*FAMILIES, *models.MODELS], help="default: all")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--folded", action="store_true", help="time them with batch norms folded into convolutions")
    parser.add_argument("--csv", type=Path, help="write the rows to this file too, those of other networks kept")
    arguments = parser.parse_args()
    rows = {}
    if arguments.csv and arguments.csv.exists():
        lines = [line for line in arguments.csv.read_text().splitlines() if not line.startswith("#")]
        rows = {row["network"]: row for row in csv.DictReader(lines)}
    for name in arguments.networks:
        row = measure(name, arguments.ratio, arguments.repeats, arguments.folded)
        rows[row["network"]] = row
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if arguments.csv:
            with written_aside(arguments.csv) as aside, aside.open("w", newline="") as stream:
                stream.write(f"# {COMMAND} ({os.cpu_count()} CPU cores, Keras {keras.version()}; see its docstring)\n")
                writer = csv.DictWriter(stream, list(row), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows.values())


if __name__ == "__main__":
    main()

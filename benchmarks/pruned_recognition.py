"""Paper 5's table 2 from real weights: a network loses a share R of its channels, and is measured on pairs of faces.

    tfface build lfw_pairs/pairs --manual-dir FOLDER
    tfface build lfw_pairs/images --align five-point --no-face centre --manual-dir FOLDER  # and mask_lfw, occ_lfw
    tfface build fairface/padding025 --align five-point --manual-dir FOLDER  # for batch-norm statistics, without labels
    python benchmarks/pruned_recognition.py --csv benchmarks/pruned_recognition.csv
    python benchmarks/pruned_recognition.py --reconstruct --csv benchmarks/pruned_recognition_reconstructed.csv
    python benchmarks/pruned_recognition.py --network runs/table1/seed-0/trained.keras --reconstruct

The network is FaceNet, or paper 5's own (`tfface train occluded --variant distilled --out runs/table1/seed-0`).
Channels go by their L1 norm, the same share of every layer, rounded to 8. Nothing is trained: the statistics of the
batch norms are gathered anew on `--faces` faces (`tfface.pruning.recalibrate`), or the kernels that are left are fitted
to the outputs of the whole network on them (`tfface.pruning.reconstruct`). Wall time is that of the network alone,
all networks in turns in one run; the speed-up is against the whole network. Accuracy is LFW's protocol: ten folds, the
threshold of each chosen on the others. Of the covered sets the second image of a pair is covered. Paper 5 trains its
own network after each cut: its figures stand beside ours for the trend, not for the level.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from datetime import date
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tfface import pruning
from tfface.data import pipeline
from tfface.evaluation.embeddings import FACENETS_FIVE_POINT, Embedder, embed_pairs
from tfface.evaluation.verification import cosine_similarity, verify_folds
from tfface.files import written_aside
from tfface.models.recognition import load_backbone
from tfface.models.saved import load_saved
from tfface.recipes.occluded import RATIOS, TABLE2
from tfface.training.features import bfloat16_convolutions

BATCHES = (1, 32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="facenet", help="facenet or a .keras file with an embedding")
    parser.add_argument("--ratio", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--pairs", nargs="+", default=("lfw", "occ_lfw", "mask_lfw"))
    parser.add_argument("--faces", type=int, default=1024, help="to gather statistics on (default: 1024)")
    parser.add_argument("--repeats", type=int, default=5, help="timed batches of each network (default: 5)")
    parser.add_argument("--reconstruct", action="store_true", help="fit the kernels, in place of the statistics only")
    parser.add_argument("--data-dir")
    parser.add_argument("--bfloat16", action="store_true", help="embed in bfloat16 (timings stay float32)")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()

    # Of paper 5's crops: FaceNet's, or the network's own.
    size = FACENETS_FIVE_POINT if options.network == "facenet" else load_saved(options.network).input_shape[1:3]
    base = load_backbone(options.network, (*size, 3))
    builder = pipeline.open_dataset("fairface/padding025-five-point", options.data_dir)
    rows = pipeline.examples(builder, "train").take(options.faces)
    faces = rows.map(lambda row: pipeline.decode(row["image"], size)).batch(64)
    groups = pruning.channel_groups(base)
    importance = pruning.importance(base, groups)
    networks = {}
    for ratio in options.ratio:
        networks[ratio] = base
        keep = pruning.choose(groups, importance, ratio)
        if ratio and options.reconstruct:
            networks[ratio] = pruning.reconstruct(base, keep, faces.as_numpy_iterator(), groups, progress=True)
        elif ratio:
            networks[ratio] = pruning.cut(base, keep, groups)
            with bfloat16_convolutions(options.bfloat16):
                pruning.recalibrate(networks[ratio], faces)
    seconds = {batch: pruning.latency(tuple(networks.values()), batch, options.repeats) for batch in BATCHES}

    table = []
    for index, (ratio, network) in enumerate(networks.items()):
        row = {
            "R": ratio,
            "parameters": network.count_params(),
            "multiply-adds": pruning.multiply_adds(network),
        }
        for batch in BATCHES:
            row[f"ms at {batch}"] = round(1000 * seconds[batch][index], 1)
            row[f"speed-up at {batch}"] = round(seconds[batch][0] / seconds[batch][index], 2)
        for data in options.pairs:
            embedder = Embedder(f"{options.network}, R = {ratio}", network, size, "five-point")
            pairs, first, second, _ = embed_pairs(embedder, data, options.data_dir, bfloat16=options.bfloat16)
            result = verify_folds(cosine_similarity(first, second), pairs["same"], pairs["fold"])
            row[data], row[f"{data} deviation"] = round(result["accuracy"], 4), round(result["deviation"], 4)
            published = TABLE2.get(data)
            row[f"{data}, paper"] = published[RATIOS.index(ratio)] if published and ratio in RATIOS else ""
        table.append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if options.csv:
        with written_aside(options.csv) as aside, open(aside, "w", newline="") as stream:
            # of those, the ones that this process may use: taskset leaves fewer
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            about = f"{options.faces} faces, CPU cores: {cores}, {date.today()}; see its docstring"
            stream.write(f"# python {' '.join(sys.argv)} ({about})\n")
            writer = csv.DictWriter(stream, table[0])
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()

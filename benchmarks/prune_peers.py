"""The pruners of PyTorch on ResNet50 at the ratio of `prune.py`: parameters, multiply-adds, wall time, time to prune.

    python3 -m venv peers && peers/bin/pip install torch torchvision torch-pruning model-compression-toolkit
    peers/bin/python benchmarks/prune_peers.py [--ratio 0.5] [--repeats 10]

Each tool stands in the environment that it needs, so compare ratios (base to pruned, which take turns in one run) and
not milliseconds across the two scripts. torchvision's ResNet50 is version 1.5, whose stride lies on the 3x3
convolution: 4.1 instead of 3.9 billion multiply-adds. The weights are random: pretrained ones cannot be had
everywhere, and what a cut does to chance is no accuracy; there is no such column. A tool that does not run is named
with its reason.
"""

from __future__ import annotations

import argparse
import copy
import math
import time

import torch
import torchvision

BATCHES = (1, 8)


def torch_pruning(model, ratio):
    """Torch-Pruning: L1 norm, the same ratio for every group, rounded to 8, the classifier kept."""
    import torch_pruning as pruner

    pruner.pruner.MagnitudePruner(
        model,
        torch.zeros(1, 3, 224, 224),
        importance=pruner.importance.MagnitudeImportance(p=1),
        pruning_ratio=ratio,
        ignored_layers=[model.fc],
        round_to=8,
    ).step()
    return model


def model_compression_toolkit(model, ratio):
    """Sony's toolkit: its pruner takes a target of memory for the weights, here what `ratio` leaves, and data."""
    import model_compression_toolkit as toolkit

    parameters = sum(each.numel() for each in model.parameters())
    pruned, _ = toolkit.pruning.pytorch_pruning_experimental(
        model=model,
        target_resource_utilization=toolkit.core.ResourceUtilization(weights_memory=4 * parameters * (1 - ratio) ** 2),
        representative_data_gen=lambda: iter([[torch.randn(2, 3, 224, 224)]]),
        pruning_config=toolkit.pruning.PruningConfig(num_score_approximations=1),
    )
    return pruned.cpu().eval()


TOOLS = {"torch-pruning": torch_pruning, "model-compression-toolkit": model_compression_toolkit}


def costs(model):
    """Parameters, and multiply-adds of convolutions and dense layers for one image of 224x224."""
    total, hooks = 0, []

    def count(layer, inputs, output):
        nonlocal total
        total += layer.weight.numel() * math.prod(output.shape[2:])

    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            hooks.append(layer.register_forward_hook(count))
    with torch.inference_mode():
        model(torch.zeros(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    return sum(each.numel() for each in model.parameters()), total


def latency(models, batch, repeats):
    """Least wall time of a batch for each model, in seconds; the models take turns."""
    images, best = torch.rand(batch, 3, 224, 224), [math.inf] * len(models)
    with torch.inference_mode():
        for turn in range(repeats + 2):
            for index, model in enumerate(models):
                start = time.perf_counter()
                model(images)
                if turn > 1:
                    best[index] = min(best[index], time.perf_counter() - start)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", nargs="*", default=list(TOOLS), help="default: both; the toolkit takes minutes")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    base = torchvision.models.resnet50(weights=None).eval()
    before, work = costs(base)
    for tool in arguments.tools:
        try:
            start = time.perf_counter()
            pruned = TOOLS[tool](copy.deepcopy(base), arguments.ratio)
            seconds = time.perf_counter() - start
        except Exception as error:  # whatever a peer raises belongs in the table, by name
            print(f"{tool}  does not run: {type(error).__name__}: {error}")
            continue
        after, less = costs(pruned)
        row = {"parameters": before, "pruned": after, "multiply-adds": work, "less": less}
        row |= {"reduction": round(work / less, 2), "seconds to prune": round(seconds, 1)}
        for batch in BATCHES:
            slow, fast = latency([base, pruned], batch, arguments.repeats)
            row |= {
                f"ms at {batch}": round(slow * 1e3, 1),
                f"ms at {batch} pruned": round(fast * 1e3, 1),
                f"speed-up at {batch}": round(slow / fast, 2),
                f"efficiency at {batch}": round(slow / fast / (work / less), 2),
            }
        print(tool, "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()

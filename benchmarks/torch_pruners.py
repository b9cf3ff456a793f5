"""PyTorch's pruners in a process of their own: `benchmarks/prune_peers.py --peers PYTHON` starts this.

It reads the file of arrays that the other writes (weights by torchvision's names, images in [0, 255] of the test split
with labels and the logits that Keras gives, a few more images to calibrate on) and prints a line of JSON for each tool
and ratio: pairs (base, pruned) of parameters, multiply-adds, accuracy and seconds of a batch.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import time

import numpy as np
import torch
import torchvision

APPROXIMATIONS = 1
"""Images that the toolkit estimates its Hessian on; its own default, 32, takes 32 times as long."""


def torch_pruning(model, ratio, images):
    """Torch-Pruning: L1 norm, the same ratio for every group, rounded to 8, the classifier kept."""
    import torch_pruning as pruner

    pruner.pruner.MagnitudePruner(
        model,
        images[:1],
        importance=pruner.importance.MagnitudeImportance(p=1),
        pruning_ratio=ratio,
        ignored_layers=[model.fc],
        round_to=8,
    ).step()
    return model


def model_compression_toolkit(model, ratio, images):
    """Sony's toolkit: its pruner takes a target of memory for the weights, here what `ratio` leaves, and data."""
    import model_compression_toolkit as toolkit

    parameters = sum(each.numel() for each in model.parameters())
    pruned, _ = toolkit.pruning.pytorch_pruning_experimental(
        model=model,
        target_resource_utilization=toolkit.core.ResourceUtilization(weights_memory=4 * parameters * (1 - ratio) ** 2),
        representative_data_gen=lambda: iter([[images]]),
        pruning_config=toolkit.pruning.PruningConfig(num_score_approximations=APPROXIMATIONS),
    )
    return pruned.cpu().eval()


TOOLS = {"torch-pruning": torch_pruning, "model-compression-toolkit": model_compression_toolkit}


def resnet50(arrays):
    """torchvision's ResNet50 as published at first, with the stride on a block's first convolution, and the weights."""
    norm = functools.partial(torch.nn.BatchNorm2d, eps=1.001e-5)
    model = torchvision.models.resnet50(num_classes=arrays["logits"].shape[1], norm_layer=norm)
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    parts = {name: torch.from_numpy(arrays[f"weights/{name}"]) for name in model.state_dict() if "num_b" not in name}
    model.load_state_dict(parts, strict=False)
    return model.eval()


def predict(model, images):
    """Logits, `(n, classes)`."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in images.split(64)]).numpy()


def costs(model, side):
    """Parameters, and multiply-adds of convolutions and dense layers for one image."""
    total, hooks = 0, []

    def count(layer, inputs, output):
        nonlocal total
        total += layer.weight.numel() * math.prod(output.shape[2:])

    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            hooks.append(layer.register_forward_hook(count))
    with torch.inference_mode():
        model(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return sum(each.numel() for each in model.parameters()), total


def latency(models, batch, side, repeats):
    """Least wall time of a batch for each model, in seconds; the models take turns."""
    images, best = torch.rand(batch, 3, side, side), [math.inf] * len(models)
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
    parser.add_argument("network", help="the file of arrays")
    parser.add_argument("--ratio", type=float, nargs="+", required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--side", type=int, required=True, help="of the image of multiply-adds and wall time, pixels")
    parser.add_argument("--repeats", type=int, required=True)
    arguments = parser.parse_args()
    arrays = np.load(arguments.network)
    images, calibration = (
        torch.from_numpy(arrays[name].transpose(0, 3, 1, 2) / np.float32(127.5) - 1).contiguous()
        for name in ("images", "calibration")
    )
    labels, expected = arrays["labels"], arrays["logits"]
    base = resnet50(arrays)
    logits = predict(base, images)
    apart = np.abs(logits - expected).max() / np.abs(expected).max()
    if not apart < 1e-3:
        raise SystemExit(f"Not the same network: logits of torchvision's and Keras' ResNet50 are {apart:.1e} apart.")
    print(
        f"largest difference of the logits of torchvision's and Keras' ResNet50: {apart:.1e} of the largest", flush=True
    )
    for tool in TOOLS:
        for ratio in arguments.ratio:
            start = time.perf_counter()
            try:
                pruned = TOOLS[tool](copy.deepcopy(base), ratio, calibration)
            except Exception as error:  # whatever a peer raises belongs in the table, by name
                print(json.dumps({"tool": tool, "error": f"{type(error).__name__}: {error}"}), flush=True)
                continue
            seconds = time.perf_counter() - start
            models = base, pruned
            sizes, work = zip(*(costs(model, arguments.side) for model in models), strict=True)
            row = {"tool": tool, "ratio": ratio, "parameters": sizes, "multiply-adds": work, "seconds": seconds}
            row["accuracy"] = [float(np.mean(out.argmax(-1) == labels)) for out in (logits, predict(pruned, images))]
            batches = arguments.batches if arguments.repeats else ()
            row["latency"] = [latency(models, batch, arguments.side, arguments.repeats) for batch in batches]
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

"""PyTorch's pruners in a process of their own: `benchmarks/prune_peers.py --peers PYTHON` starts this.

It reads the file of arrays that the other writes (weights by the names of torchvision's ResNet50, images in [0, 255] of
the test split with labels and the logits that Keras gives, a few more images to rate channels on, and more for the
statistics of batch norms) and prints a line of JSON for each tool that its interpreter has and each ratio: pairs (base,
pruned) of parameters, multiply-adds, accuracy, accuracy with statistics gathered anew and seconds of a batch.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.metadata
import importlib.util
import json
import math
import time

import numpy as np
import torch


def torch_pruning(model, ratio, images, power):
    """Torch-Pruning: norms of all members of a group, the same ratio for every group, rounded to 8, the head kept."""
    import torch_pruning as pruner

    pruner.pruner.MagnitudePruner(
        model,
        images[:1],
        importance=pruner.importance.GroupMagnitudeImportance(p=power),
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
        pruning_config=toolkit.pruning.PruningConfig(num_score_approximations=len(images)),
    )
    return pruned.cpu().eval()


TOOLS = {
    f"{name} {importlib.metadata.version(name)}{suffix}": tool
    for name, suffix, tool in (
        ("torch-pruning", " L1", functools.partial(torch_pruning, power=1)),
        ("torch-pruning", " L2", functools.partial(torch_pruning, power=2)),
        ("model-compression-toolkit", "", model_compression_toolkit),
    )
    if importlib.util.find_spec(name.replace("-", "_"))
}
"""Those that this interpreter has, by name, version and norm (Torch-Pruning's default is L2)."""


class Bottleneck(torch.nn.Module):
    """A block of ResNet50 as published at first, with the stride on its first convolution."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, width, 1, stride), norm(width)
        self.conv2, self.bn2 = convolution(width, width, 3), norm(width)
        self.conv3, self.bn3 = convolution(width, 4 * width, 1), norm(4 * width)
        self.downsample = None
        if inputs != 4 * width:
            self.downsample = torch.nn.Sequential(convolution(inputs, 4 * width, 1, stride), norm(4 * width))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet50(torch.nn.Module):
    """ResNet50 with the names of torchvision's, which itself has no build beside torch's for processors only."""

    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 64, 7, 2), norm(64)
        self.maxpool = torch.nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(inputs, width, 2 if stage > 1 and block == 0 else 1))
                inputs = 4 * width
            setattr(self, f"layer{stage}", torch.nn.Sequential(*layers))
        self.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        self.fc = torch.nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def convolution(inputs, outputs, size, stride=1):
    """A convolution without a bias, padded so that only the stride shrinks."""
    return torch.nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def norm(channels):
    """A batch norm with the epsilon of Keras' ResNet."""
    return torch.nn.BatchNorm2d(channels, eps=1.001e-5)


def resnet50(arrays):
    """The network with the weights of the file."""
    model = ResNet50(arrays["logits"].shape[1])
    parts = {name: torch.from_numpy(arrays[f"weights/{name}"]) for name in model.state_dict() if "num_b" not in name}
    model.load_state_dict(parts, strict=False)
    return model.eval()


def predict(model, images):
    """Logits, `(n, classes)`."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in images.split(64)]).numpy()


def accuracy(logits, labels):
    """Share of the images that get their label."""
    return float(np.mean(logits.argmax(-1) == labels))


def recalibrated(model, images):
    """A copy of the model whose batch norms have gathered their statistics on the images."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the average of all batches
            layer.train()
    predict(model, images)
    return model.eval()


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
    images, calibration, statistics = (
        torch.from_numpy(arrays[name].transpose(0, 3, 1, 2) / np.float32(127.5) - 1).contiguous()
        for name in ("images", "calibration", "statistics")
    )
    labels, expected = arrays["labels"], arrays["logits"]
    base = resnet50(arrays)
    logits = predict(base, images)
    apart = np.abs(logits - expected).max() / np.abs(expected).max()
    if not apart < 1e-3:
        raise SystemExit(f"Not the same network: logits of PyTorch's and Keras' ResNet50 are {apart:.1e} apart.")
    print(f"largest difference of the logits of PyTorch's and Keras' ResNet50: {apart:.1e} of the largest", flush=True)
    whole = {
        "accuracy": accuracy(logits, labels),
        "recalibrated": accuracy(predict(recalibrated(base, statistics), images), labels),
    }
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
            for name, network in (("accuracy", pruned), ("recalibrated", recalibrated(pruned, statistics))):
                row[name] = [whole[name], accuracy(predict(network, images), labels)]
            batches = arguments.batches if arguments.repeats else ()
            row["latency"] = [latency(models, batch, arguments.side, arguments.repeats) for batch in batches]
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

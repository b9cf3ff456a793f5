"""Weights fitted anew behind a cut: each layer gives again what it gave before, from the channels that are left.

A cut takes inputs away from every layer behind it. What a lost channel told is in part told by those beside it, and
least squares find that part: from a few hundred examples, without labels, gradients or a rate to choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np
from keras import ops
from tqdm import tqdm

from tfface.pruning.channels import PRODUCER
from tfface.pruning.graph import ChannelGroup, calls, channel_groups, find_layers, given, graph_of, is_model
from tfface.pruning.surgery import chosen, cut

CHUNK = 64
"""Examples that go through a layer at once."""

SCALES = (keras.layers.BatchNormalization, keras.layers.Dropout, keras.layers.Identity, keras.layers.Rescaling)
"""Layers that scale and move each channel by itself: through them a sum can be followed back."""


def reconstruct(
    model: keras.Model,
    keep: Mapping[str, Sequence[int]],
    batches: Iterable,
    groups: list[ChannelGroup] | None = None,
    samples: int = 20_000,
    ridge: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> keras.Model:
    """Cut a model as `cut` does, then fit the kernels of what is left to the outputs of the whole model.

    Layer by layer in the order of the graph, each convolution and dense layer of the smaller model gets the kernel
    (and bias) that bring its outputs, on the inputs that the smaller model has for it, nearest to those of the same
    layer in the whole model, least squares over examples and places:

        min |X W + b - Y|^2 + ridge * mean(diag(X'X)) * |W - W_cut|^2

    A layer whose output is added to a shortcut of fewer layers also makes up for what the shortcut has lost. Layers
    that are called more than once, grouped, depthwise or transposed ones keep the weights that the cut left them.

    Reference: He et al., Channel Pruning for Accelerating Very Deep Neural Networks (ICCV 2017), section 3.1, equation
    5, and section 3.2 for shortcuts. There the same data also choose the channels; here that is the choice of `keep`.

    Args:
        model: a functional or sequential model. It is left as it is.
        keep: what stays, as in `cut`.
        batches: inputs of the model, each with its batch axis; a model of one input. A few hundred examples, the more
            alike to what it will see the better: all are held with what they become in the widest layers.
        groups: as in `cut`.
        samples: places (examples x positions of the map) that each layer is fitted on, at most.
        ridge: weight of staying near the weights that the cut left, > 0, against fitting noise.
        seed: of the places.
        progress: draw a progress bar.

    Returns:
        The smaller model. Batch norms keep the statistics of the whole model, which fit again; see `recalibrate`.

    Raises:
        UserError: as in `cut`.
        ValueError: no batches, others than inputs of the model, or a model of several inputs.
    """
    if len(model.inputs) != 1:
        raise ValueError(f"`model` must have one input. Received: {model.name}, which has {len(model.inputs)}")
    groups = channel_groups(model) if groups is None else groups
    smaller = cut(model, keep, groups)
    stays = {}
    for group, kept in chosen(model, keep, groups):
        for member in group.members:
            if member.role == PRODUCER:
                mask = stays.setdefault(member.layer, np.ones(len(member.units), bool))
                mask &= (member.units < 0) | kept[member.units]
    shape, inputs = model.inputs[0].shape, []
    for batch in batches:
        received = getattr(batch, "shape", ())
        if len(received) != len(shape) or any(
            own not in (None, size) for own, size in zip(shape[1:], received[1:], strict=True)
        ):
            raise ValueError(
                f"`batches` must hold inputs alone, arrays of shape {(None, *shape[1:])}. "
                f"Received: {type(batch).__name__} {tuple(received)}"
            )
        inputs.append(ops.convert_to_numpy(batch))
    if not inputs:
        raise ValueError("`batches` must hold at least one. Received none")
    count = sum(map(_can_be_fitted, find_layers(model).values()))
    with tqdm(total=count, unit="layer", desc="fitting what is left", disable=not progress) as bar:
        fit = _Fit(stays, samples, ridge, np.random.default_rng(seed), bar)
        fit.run(model, smaller, [[np.concatenate(inputs)]] * 2)
    return smaller


class _Fit:
    """Walks through both models at once, and fits each layer of the smaller before it is called."""

    def __init__(self, stays, samples, ridge, random, bar):
        self.stays, self.samples, self.ridge, self.random, self.bar = stays, samples, ridge, random, bar

    def run(self, model, smaller, inputs, prefix=""):
        """Outputs of both models for their inputs, `[whole, smaller]`; each layer of the smaller one is fitted."""
        graphs = graph_of(model), graph_of(smaller)
        pairs = _early(list(zip(*map(calls, graphs), strict=True)))
        readers, times = {}, {}
        for nodes in pairs:
            times[id(nodes[0].operation)] = times.get(id(nodes[0].operation), 0) + 1
            for tensor in nodes[0].input_tensors:
                readers.setdefault(id(tensor), []).append(nodes)
        known = [
            dict(zip(map(id, graph.inputs), values, strict=True)) for graph, values in zip(graphs, inputs, strict=True)
        ]
        unread = {tensor: len(nodes) for tensor, nodes in readers.items()}
        for tensor in graphs[0].outputs:
            unread[id(tensor)] = unread.get(id(tensor), 0) + 1
            readers.pop(id(tensor), None)  # what the model gives out is fitted as it is, whoever reads it too
        for nodes in pairs:
            layer, copy = (node.operation for node in nodes)
            path = prefix + layer.name
            if is_model(layer) and times[id(layer)] == 1:
                own = [[values[id(each)] for each in given(node)] for node, values in zip(nodes, known, strict=True)]
                results = self.run(layer, copy, own, f"{path}/")
            else:
                if _can_be_fitted(layer) and times[id(layer)] == 1:
                    self.fit(self.stays.get(path), nodes, known, readers)
                    self.bar.update()
                results = [_called(node, values) for node, values in zip(nodes, known, strict=True)]
            for node, values, outputs in zip(nodes, known, results, strict=True):
                values.update(zip(map(id, node.output_tensors), outputs, strict=True))
            for tensors in zip(*(node.input_tensors for node in nodes), strict=True):
                unread[id(tensors[0])] -= 1
                if not unread[id(tensors[0])]:
                    for values, tensor in zip(known, tensors, strict=True):
                        values.pop(id(tensor), None)
        return [[values[id(each)] for each in graph.outputs] for graph, values in zip(graphs, known, strict=True)]

    def fit(self, stays, nodes, known, readers):
        """Give the layer of the smaller model the kernel and the offset that least squares find."""
        layer, copy = (node.operation for node in nodes)
        inputs = [values[id(node.input_tensors[0])] for node, values in zip(nodes, known, strict=True)]
        shape = layer.compute_output_shape(inputs[0].shape)[:-1]  # the graph may leave height and width open
        count = int(np.prod(shape))
        chosen_places = np.arange(count) if count <= self.samples else self.random.integers(count, size=self.samples)
        places = np.unravel_index(chosen_places, shape)
        kernel = ops.convert_to_numpy(layer.kernel).astype("float64")
        stays = np.ones(kernel.shape[-1], bool) if stays is None else stays
        wanted = _read(layer, inputs[0], places) @ kernel.reshape(-1, kernel.shape[-1])[:, stays]
        if layer.use_bias:
            wanted += ops.convert_to_numpy(layer.bias)[stays]
        wanted += _lost(nodes, known, readers, places, stays)

        read = _read(copy, inputs[1], places)
        before = ops.convert_to_numpy(copy.kernel).astype("float64")
        weights = before.reshape(-1, before.shape[-1])
        norm = _norm_behind(nodes[0], readers)
        free = copy.use_bias or norm is not None  # whether an offset of each channel has a place to go
        middle = read.mean(axis=0) if free else np.zeros(read.shape[1])
        centre = wanted.mean(axis=0) if free else np.zeros(wanted.shape[1])
        weights = weights + _ridge(read - middle, (wanted - centre) - (read - middle) @ weights, self.ridge)
        copy.kernel.assign(weights.reshape(before.shape))
        offset = centre - middle @ weights
        if copy.use_bias:
            copy.bias.assign(offset)
        elif norm is not None:
            norm.moving_mean.assign(ops.convert_to_numpy(norm.moving_mean) - offset)


def _early(pairs) -> list[tuple]:
    """The calls of both models, each as early as may be, so that a shortcut is known before what is added to it."""
    level, levels = {}, []
    for nodes in pairs:
        own = 1 + max((level.get(id(tensor), 0) for tensor in nodes[0].input_tensors), default=0)
        level.update((id(tensor), own) for tensor in nodes[0].output_tensors)
        levels.append(own)
    return [pairs[place] for place in np.argsort(levels, kind="stable")]


def _can_be_fitted(layer) -> bool:
    if type(layer) is keras.layers.Conv2D:
        return layer.groups == 1 and layer.data_format == "channels_last"
    return type(layer) is keras.layers.Dense


def _called(node, values) -> list[np.ndarray]:
    """Outputs of a call, on all examples, a part of them at a time."""
    tensors = node.input_tensors
    count = max(len(values[id(tensor)]) for tensor in tensors)
    parts = []
    for start in range(0, count, CHUNK):
        few = {id(tensor): values[id(tensor)][start : start + CHUNK] for tensor in tensors}
        arguments, keywords = node.arguments.fill_in({key: ops.convert_to_tensor(part) for key, part in few.items()})
        parts.append(
            [ops.convert_to_numpy(each) for each in keras.tree.flatten(node.operation(*arguments, **keywords))]
        )
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def _read(layer, inputs: np.ndarray, places) -> np.ndarray:
    """What a layer reads at some places of its output, `(places, values that it reads)` float64."""
    if isinstance(layer, keras.layers.Dense):
        return inputs[places].astype("float64")
    example, *position = places
    kept, indices = [], []
    for axis, (size, step, rate) in enumerate(zip(layer.kernel_size, layer.strides, layer.dilation_rate, strict=True)):
        length = inputs.shape[axis + 1]
        span = (size - 1) * rate + 1
        before = max((-(-length // step) - 1) * step + span - length, 0) // 2 if layer.padding == "same" else 0
        index = position[axis][:, None] * step - before + np.arange(size) * rate
        kept.append((index >= 0) & (index < length))
        indices.append(index.clip(0, length - 1))
    rows, columns = indices[0][:, :, None], indices[1][:, None, :]
    values = inputs[example[:, None, None], rows, columns].astype("float64")
    values *= (kept[0][:, :, None] & kept[1][:, None, :])[..., None]
    return values.reshape(len(example), -1)


def _norm_behind(node, readers):
    """The batch norm of the smaller model that alone reads the outputs of a layer of the whole, and nothing else."""
    following = readers.get(id(node.output_tensors[0]), ())
    linear = node.operation.activation is keras.activations.linear
    if len(following) == 1 and linear and isinstance(following[0][0].operation, keras.layers.BatchNormalization):
        norm = following[0][0].operation
        alone = sum(nodes[0].operation is norm for each in readers.values() for nodes in each) == 1
        return following[0][1].operation if alone and _along_last(following[0][0]) else None
    return None


def _along_last(node) -> bool:
    """Whether the values of a call that scales, where it is that of a batch norm, belong to the last axis."""
    return getattr(node.operation, "axis", -1) in (-1, len(node.input_tensors[0].shape) - 1)


def _lost(nodes, known, readers, places, stays):
    """What a shortcut that the outputs are added to lacks in the smaller model, in units of the outputs.

    Zero where there is no such shortcut, or none that is known yet.
    """
    if nodes[0].operation.activation is not keras.activations.linear:
        return 0.0
    whole, small = nodes
    gain = np.ones(int(stays.sum()))
    while True:
        following = readers.get(id(whole.output_tensors[0]), ())
        if len(following) != 1:
            return 0.0
        came, (whole, small) = whole.output_tensors[0], following[0]
        if type(whole.operation).__name__ == "Add":
            break
        if not isinstance(small.operation, SCALES) or not _along_last(whole):
            return 0.0
        probe = np.zeros((1,) * (len(came.shape) - 1) + gain.shape, "float32")
        at = [np.ravel(ops.convert_to_numpy(small.operation(ops.convert_to_tensor(probe + one)))) for one in (0, 1)]
        gain = gain * (at[1] - at[0])
    lost = 0.0
    for tensors in zip(whole.input_tensors, small.input_tensors, strict=True):
        if tensors[0] is came:
            continue
        if any(id(tensor) not in values for tensor, values in zip(tensors, known, strict=True)):
            return 0.0
        if tensors[0].shape != came.shape:
            return 0.0
        values = [each[id(tensor)][places] for tensor, each in zip(tensors, known, strict=True)]
        lost = lost + values[0][:, stays].astype("float64") - values[1]
    small_gain = np.abs(gain) < 1e-6
    return np.where(small_gain, 0.0, lost / np.where(small_gain, 1.0, gain))


def _ridge(read, missing, ridge):
    """The change of the weights that brings `read @ change` nearest to what is missing, and stays small."""
    count, width = read.shape
    strength = ridge * float(np.einsum("ij,ij->", read, read)) / width + 1e-12
    if width <= count:
        return np.linalg.solve(read.T @ read + strength * np.eye(width), read.T @ missing)
    return read.T @ np.linalg.solve(read @ read.T + strength * np.eye(count), missing)

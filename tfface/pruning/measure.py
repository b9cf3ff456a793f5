"""What a network costs: multiply-adds, parameters, and the time that it takes in fact."""

import math
import time
import warnings
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from tfface.errors import UserError
from tfface.layers.margin import CosineSimilarity
from tfface.pruning.graph import calls, graph_of, is_model

KERNELS = {
    (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense): ("kernel",),
    (layers.DepthwiseConv1D, layers.DepthwiseConv2D): ("kernel",),
    (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose): ("kernel",),
    (layers.SeparableConv1D, layers.SeparableConv2D): ("depthwise_kernel", "pointwise_kernel"),
    (CosineSimilarity,): ("centres",),
}
"""Layers -> their variables each of whose values is used once at each position of the map."""

TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)

FREE = (layers.Embedding, layers.PReLU)
"""Layers with matrices that are looked up or multiplied value by value: less than a thousandth of the rest."""


def multiply_adds(model: keras.Model, input_shape: Sequence | None = None) -> int:
    """Count the multiplications, each with its addition, of one input's way through a network.

    Convolutions and dense layers are counted, biases, norms, activations and poolings are not, as is the custom.
    "FLOPs" of other tools are this number or twice it.

    Args:
        model: a built functional or sequential `keras.Model`.
        input_shape: shape of its input without the batch axis, or a list of them, where the model leaves it open.

    Raises:
        UserError: the shape is open and not given.
    """
    graph = graph_of(model)
    shapes = [tensor.shape[1:] for tensor in graph.inputs]
    if input_shape is not None:
        shapes = [input_shape] if len(shapes) == 1 and not isinstance(input_shape[0], Sequence) else input_shape
    if any(length is None for shape in shapes for length in shape):
        raise UserError(
            f"The multiply-adds of {model.name!r} depend on the size of its input, which it leaves open: give "
            f"input_shape. Received: {shapes}."
        )
    inputs = [
        keras.KerasTensor((None, *shape), tensor.dtype) for shape, tensor in zip(shapes, graph.inputs, strict=True)
    ]
    left_out = set()
    total, _ = _count(graph, inputs, left_out)
    if left_out:
        warnings.warn(
            f"Multiply-adds of {len(left_out)} layers are not counted: {', '.join(sorted(left_out)[:5])}", stacklevel=2
        )
    return total


def _count(graph, inputs, left_out):
    known = dict(zip(map(id, graph.inputs), inputs, strict=True))
    total = 0
    for node in calls(graph):
        layer = node.operation
        arguments, keywords = node.arguments.fill_in(known)
        if is_model(layer):
            count, outputs = _count(graph_of(layer), [known[id(tensor)] for tensor in node.input_tensors], left_out)
            total += count
        else:
            outputs = keras.tree.flatten(layer.compute_output_spec(*arguments, **keywords))
            total += _own(layer, known[id(node.input_tensors[0])].shape, outputs[0].shape, left_out)
        known.update(zip(map(id, node.output_tensors), outputs, strict=True))
    return total, [known[id(tensor)] for tensor in graph.outputs]


def _own(layer, before, after, left_out):
    names = next((names for kinds, names in KERNELS.items() if isinstance(layer, kinds)), None)
    if names is None:
        weights = layer.weights if isinstance(layer, layers.Layer) and not isinstance(layer, FREE) else ()
        if any(len(variable.shape) > 1 for variable in weights):
            left_out.add(f"{layer.name} ({type(layer).__name__})")
        return 0
    shape = before if isinstance(layer, TRANSPOSED) else after
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    positions = math.prod(shape[2:] if first else shape[1:-1])
    return positions * sum(math.prod(getattr(layer, name).shape) for name in names)


def latency(models: Sequence, batch_size: int = 1, repeats: int = 10, input_shape: Sequence | None = None):
    """Time networks side by side: the least wall time of one batch for each, in seconds.

    The networks take turns, so that what else the machine does falls on all alike, and the least of the repeats is
    what the network itself takes. Two rounds before are not counted.

    Args:
        models: models of one input of the same shape; one of integers gets zeros, which every vocabulary has.
        batch_size: inputs in a batch, >= 1.
        repeats: rounds, >= 1.
        input_shape: shape of the input without the batch axis, where the models leave it open.

    Returns:
        A list of seconds, one a model.
    """
    shape = models[0].inputs[0].shape[1:] if input_shape is None else input_shape
    dtype = models[0].inputs[0].dtype
    most = 255 if keras.backend.is_float_dtype(dtype) else 0
    batch = np.random.default_rng(0).uniform(0, most, size=(batch_size, *shape)).astype("float32" if most else dtype)
    best = [math.inf] * len(models)
    for round_ in range(repeats + 2):
        for index, model in enumerate(models):
            start = time.perf_counter()
            model.predict_on_batch(batch)
            if round_ > 1:
                best[index] = min(best[index], time.perf_counter() - start)
    return best

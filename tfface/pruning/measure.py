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
from tfface.pruning.graph import calls, given, graph_of, is_model

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
        UserError: the shape is open and not given, or does not fit.
    """
    graph = graph_of(model)
    shapes = _input_shapes(graph, input_shape)
    if any(length is None for shape in shapes for length in shape):
        raise UserError(
            f"The multiply-adds of {model.name!r} depend on the size of its input, which it leaves open: give "
            f"input_shape. Received: {shapes}."
        )
    inputs = [
        keras.KerasTensor((None, *shape), tensor.dtype) for shape, tensor in zip(shapes, graph.inputs, strict=True)
    ]
    left_out = set()
    try:
        total, _ = _count(graph, inputs, left_out)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{model.name!r} cannot take an input of shape {shapes}: {reason} Give another.") from error
    if left_out:
        warnings.warn(
            f"Multiply-adds of {len(left_out)} layers are not counted: {', '.join(sorted(left_out)[:5])}", stacklevel=2
        )
    return total


def _input_shapes(graph, input_shape) -> list[tuple]:
    """Shapes of the inputs of a graph without the batch axis, those that it leaves open from `input_shape`."""
    own = [tuple(tensor.shape[1:]) for tensor in graph.inputs]
    if input_shape is None:
        return own
    single = len(own) == 1 and not (input_shape and isinstance(input_shape[0], Sequence))
    given = [
        tuple(shape) if isinstance(shape, Sequence) else (shape,)
        for shape in ([input_shape] if single else input_shape)
    ]
    if list(map(len, given)) != list(map(len, own)) or any(
        (1 if length is None else length) < 1 or known not in (None, length)
        for shape, known_shape in zip(given, own, strict=True)
        for length, known in zip(shape, known_shape, strict=True)
    ):
        raise UserError(f"The shape of the input does not fit: expected {own}, each > 0. Received: {given}.")
    return given


def _count(graph, inputs, left_out):
    known = dict(zip(map(id, graph.inputs), inputs, strict=True))
    total = 0
    for node in calls(graph):
        layer = node.operation
        arguments, keywords = node.arguments.fill_in(known)
        if is_model(layer):
            count, outputs = _count(graph_of(layer), [known[id(tensor)] for tensor in given(node)], left_out)
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
        models: models of the same inputs; one of integers gets zeros, which every vocabulary has.
        batch_size: inputs in a batch, >= 1.
        repeats: rounds, >= 1.
        input_shape: shape of the input without the batch axis, or a list of them, where the models leave it open.

    Returns:
        A list of seconds, one a model.
    """
    graph, random = graph_of(models[0]), np.random.default_rng(0)
    batch = []
    for tensor, shape in zip(graph.inputs, _input_shapes(graph, input_shape), strict=True):
        most = 255 if keras.backend.is_float_dtype(tensor.dtype) else 0
        values = random.uniform(0, most, size=(batch_size, *shape))
        batch.append(values.astype("float32" if most else tensor.dtype))
    batch = keras.tree.pack_sequence_as(graph._inputs_struct, batch)
    best = [math.inf] * len(models)
    for round_ in range(repeats + 2):
        for index, model in enumerate(models):
            start = time.perf_counter()
            model.predict_on_batch(batch)
            if round_ > 1:
                best[index] = min(best[index], time.perf_counter() - start)
    return best

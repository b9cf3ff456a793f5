"""A trained network becomes one that computes the same in fewer and faster steps, before it is exported.

What each step brings is measured in `docs/speed.md`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfface.models.saved import finalize
from tfface.pruning.graph import calls, graph_of, is_model

KERNELS = {
    layers.Dense: ("kernel", -1),
    layers.Conv1D: ("kernel", -1),
    layers.Conv2D: ("kernel", -1),
    layers.Conv3D: ("kernel", -1),
    layers.Conv2DTranspose: ("kernel", -2),
    layers.SeparableConv1D: ("pointwise_kernel", -1),
    layers.SeparableConv2D: ("pointwise_kernel", -1),
    layers.DepthwiseConv1D: ("kernel", (-2, -1)),
    layers.DepthwiseConv2D: ("kernel", (-2, -1)),
}
"""Layers that take in what scales and shifts their channels -> the kernel to scale, and the axes that its output
channels lie along. Subclasses may compute otherwise and are left alone."""

ALIKE = ("kernel_size", "strides", "padding", "dilation_rate", "activation", "use_bias", "dtype")
"""What convolutions that are joined have in common."""


POINTWISE = (
    *(keras.activations.linear, keras.activations.relu, keras.activations.relu6, keras.activations.leaky_relu),
    *(keras.activations.elu, keras.activations.selu, keras.activations.gelu, keras.activations.silu),
    *(keras.activations.sigmoid, keras.activations.hard_sigmoid, keras.activations.hard_silu, keras.activations.tanh),
    *(keras.activations.softplus, keras.activations.softsign, keras.activations.exponential),
)
"""Activations that look at one number at a time, which joined channels may share; softmax looks at all of them."""


def fold(model: keras.Model, bfloat16: bool = False) -> keras.Model:
    """Build the network without its batch norms: each goes into the weights of the layer before it.

    `BatchNormalization` and `Rescaling` behind a convolution or a dense layer without activation scale and shift its
    channels, so scaling its kernel and moving its bias does the same (Jacob et al., Quantization and Training of Neural
    Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018, section 3.2). Where the layer's output is used
    elsewhere too, or the layer is called twice, nothing is folded. Weights are computed in float64: outputs differ
    from the model's by float32 rounding.

    Args:
        model: a built functional or sequential `keras.Model`, models inside it included. It is left as it is.
        bfloat16: compute feature maps, from the first convolution on, in bfloat16 (weights, vectors and outputs stay
            float32): faster on processors with AMX or AVX512-BF16, probabilities within about 0.03.

    Returns:
        A new functional model for inference with the same inputs, outputs and names of the layers that are left.

    Raises:
        UserError: the model has no functional graph.
    """
    graph = graph_of(model)
    folded, gone = _foldable(graph)
    maps = _maps(graph) if bfloat16 else set()
    copies = {}

    def copy(layer):
        if is_model(layer):
            return fold(layer, bfloat16)
        if not isinstance(layer, layers.Layer) or id(layer) in gone:
            return layer
        config = layer.get_config()
        if id(layer) in folded:
            config["use_bias"] = True
        if id(layer) in maps:
            config["dtype"] = "mixed_bfloat16"
        copies[id(layer)] = layer, type(layer).from_config(config)
        return copies[id(layer)][1]

    def call(layer, *arguments, **keywords):
        return arguments[0] if id(layer) in gone else layer(*arguments, **keywords)

    result = keras.models.clone_model(graph, clone_function=copy, call_function=call)
    for layer, new in copies.values():
        weights = layer.get_weights()
        if id(layer) in folded:
            weights = _folded_weights(layer, folded[id(layer)])
        new.set_weights(weights)
        finalize(new)
    return result


def join(model: keras.Model) -> keras.Model:
    """Build the network with convolutions that look alike and read the same tensor computed as one.

    The branches of an Inception block begin so. One wide convolution reads its input once and is one step instead of
    two or three; its channels are then split. Only convolutions that the same activation follows, or none, are joined:
    TensorFlow computes it in the same step.

    Args:
        model: a built functional or sequential `keras.Model`, models inside it included. It is left as it is.

    Returns:
        A functional model that gives the same; of joined layers it holds one, by the name of one. Layers that
        are not joined are the model's own.

    Raises:
        UserError: the model has no functional graph.
    """
    graph = graph_of(model)
    places, gone, wide, parts = {}, set(), {}, {}
    for number, members in enumerate(_alike(graph)):
        convolutions, activations = zip(*members, strict=True)
        config = convolutions[0].get_config() | {"filters": sum(each.filters for each in convolutions)}
        wide[number] = layers.Conv2D.from_config(config), activations[0], convolutions
        places.update({id(each): (number, place) for place, each in enumerate(convolutions)})
        gone.update(id(each) for each in activations if each)

    def call(layer, *arguments, **keywords):
        if id(layer) in gone:
            return arguments[0]
        if id(layer) not in places:
            return layer(*arguments, **keywords)
        number, place = places[id(layer)]
        if number not in parts:
            convolution, activation, convolutions = wide[number]
            x = convolution(arguments[0])
            x = type(activation).from_config(activation.get_config())(x) if activation else x
            borders = np.cumsum([each.filters for each in convolutions])[:-1].tolist()
            parts[number] = keras.ops.split(x, borders, axis=-1)
        return parts[number][place]

    result = keras.models.clone_model(
        graph, clone_function=lambda layer: join(layer) if is_model(layer) else layer, call_function=call
    )
    for convolution, _, convolutions in wide.values():
        weights = zip(*(each.get_weights() for each in convolutions), strict=True)
        convolution.set_weights([np.concatenate(each, axis=-1) for each in weights])
    return result


def freeze(function: Callable, signature: list[tf.TensorSpec]) -> tf.types.experimental.PolymorphicFunction:
    """Turn a function of a network into one whose weights are constants.

    Variables are read at every call, which one image feels most.

    Args:
        function: a function of tensors that gives a tensor or a structure of tensors.
        signature: what it takes.

    Returns:
        A `tf.function` of that signature that gives the same and holds no variables.
    """
    # No public function does this for TensorFlow 2; TensorFlow Lite's converter begins with this one.
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    traced = tf.function(function).get_concrete_function(*signature)
    frozen = convert_variables_to_constants_v2(traced)
    return tf.function(
        lambda *tensors: tf.nest.pack_sequence_as(traced.structured_outputs, tf.nest.flatten(frozen(*tensors))),
        input_signature=signature,
    )


def _foldable(graph) -> tuple[dict[int, list], set[int]]:
    """id of a layer -> the scales and shifts behind it that it takes in, in their order; and the ids of those."""
    nodes = list(calls(graph))
    called = Counter(id(node.operation) for node in nodes)
    used = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    used.update(id(tensor) for tensor in graph.outputs)
    maker = {id(tensor): node.operation for node in nodes for tensor in node.output_tensors}
    folded, gone = {}, set()
    for node in nodes:
        layer, tensor = node.operation, node.input_tensors[0]
        before = maker.get(id(tensor))
        alone = used[id(tensor)] == called[id(layer)] == called[id(before)] == 1
        if alone and _takes_in(before) and _scales_channels(node, _channel_axis(before, tensor)):
            folded.setdefault(id(before), []).append(layer)
            gone.add(id(layer))
            # What follows may go into the same kernel.
            maker[id(node.output_tensors[0])] = before
    return folded, gone


def _takes_in(layer) -> bool:
    linear = type(layer) in KERNELS and layer.activation is keras.activations.linear
    return linear and not layer.quantization_mode


def _channel_axis(layer, tensor) -> int:
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return 1 if first else len(tensor.shape) - 1


def _scales_channels(node, axis: int) -> bool:
    layer, rank = node.operation, len(node.input_tensors[0].shape)
    if not node.arguments.args:  # called by keywords only
        return False
    if type(layer) is layers.BatchNormalization:
        # Called with training=True, it takes the batch's own statistics.
        return layer.axis % rank == axis and not node.arguments.kwargs.get("training")
    # A list of scales lies along the last axis.
    if type(layer) is not layers.Rescaling:
        return False
    ranks = {np.ndim(layer.scale), np.ndim(layer.offset)}
    return ranks == {0} or (ranks <= {0, 1} and axis == rank - 1)


def _alike(graph) -> list[list[tuple[layers.Conv2D, layers.Layer | None]]]:
    """Groups of two convolutions or more that `join` makes one; with each the activation behind it, or None."""
    nodes = list(calls(graph))
    called = Counter(id(node.operation) for node in nodes)
    used = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    used.update(id(tensor) for tensor in graph.outputs)
    reader = {id(tensor): node.operation for node in nodes for tensor in node.input_tensors}
    groups = defaultdict(list)
    for node in nodes:
        layer, made = node.operation, id(node.output_tensors[0])
        if type(layer) is not layers.Conv2D or called[id(layer)] > 1 or layer.quantization_mode:
            continue
        if layer.activation not in POINTWISE:
            continue
        if layer.groups > 1 or layer.data_format != "channels_last":
            continue
        behind = reader.get(made) if used[made] == 1 else None
        if type(behind) not in (layers.Activation, layers.ReLU) or called[id(behind)] > 1:
            behind = None
        if type(behind) is layers.Activation and behind.activation not in POINTWISE:
            behind = None
        config = layer.get_config()
        kind = [config[name] for name in ALIKE]
        after = {**behind.get_config(), "name": type(behind).__name__} if behind else None
        groups[id(node.input_tensors[0]), str(kind), str(after)].append((layer, behind))
    return [members for members in groups.values() if len(members) > 1]


def _scale_and_shift(layer) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(layer, layers.Rescaling):
        return np.asarray(layer.scale, "float64"), np.asarray(layer.offset, "float64")
    mean, variance = (np.asarray(each, "float64") for each in (layer.moving_mean, layer.moving_variance))
    scale = (np.asarray(layer.gamma, "float64") if layer.scale else 1.0) / np.sqrt(variance + layer.epsilon)
    shift = np.asarray(layer.beta, "float64") if layer.center else 0.0
    return scale, shift - mean * scale


def _folded_weights(layer, behind) -> list[np.ndarray]:
    """The weights of a layer, in the order of `get_weights`, with the bias that it may not have had."""
    name, axes = KERNELS[type(layer)]
    kernel = np.asarray(getattr(layer, name), "float64")
    axes = (axes,) if isinstance(axes, int) else axes
    shape = [length if axis - kernel.ndim in axes else 1 for axis, length in enumerate(kernel.shape)]
    bias = np.asarray(layer.bias, "float64") if layer.use_bias else np.zeros(int(np.prod(shape)))
    for scale, shift in map(_scale_and_shift, behind):
        kernel = kernel * np.broadcast_to(scale, bias.shape).reshape(shape)
        bias = bias * scale + shift
    before = [np.asarray(layer.depthwise_kernel)] if name == "pointwise_kernel" else []
    return [*before, kernel.astype("float32"), bias.astype("float32")]


def _maps(graph) -> set[int]:
    """Ids of the layers that make feature maps, from the first convolution on, the model's outputs left out."""
    outputs = {id(tensor) for tensor in graph.outputs}
    reached, maps = set(), set()
    for node in calls(graph):
        layer, made = node.operation, node.output_tensors
        begun = type(layer) in KERNELS or any(id(tensor) in reached for tensor in node.input_tensors)
        inner = all(len(tensor.shape) == 4 and id(tensor) not in outputs for tensor in made)
        if begun and inner and isinstance(layer, layers.Layer):
            reached.update(map(id, made))
            maps.add(id(layer))
    return maps

"""How the layers of Keras treat the channels of their tensors: one rule for each kind."""

from collections.abc import Sequence
from dataclasses import replace

import keras
import numpy as np
from keras import layers, ops

from tfface.pruning.channels import RULES, Call, Channels, register_rule

# Layers that make channels.


def _axis_of(layer, rank):
    return 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else rank - 1


def _activated(call, channels):
    """The channels after the activation that a layer holds itself."""
    return _through(call, getattr(call.layer, "activation", None), channels)


def _make(call, channels, attribute, axis, key):
    """The common end of layers with a kernel, a bias and an activation of their own."""
    call.make(attribute, axis, channels)
    if call.layer.use_bias:
        call.carry("bias", 0, channels)
    call.set(key, channels)
    return _activated(call, channels)


@register_rule(layers.Dense)
def _dense(call):
    call.read("kernel", 0, call.along(-1))
    return _make(call, call.new(call.layer.units), "kernel", 1, "units")


@register_rule(layers.Embedding)
def _embedding(call):
    outputs = call.new(call.layer.output_dim)
    call.make("embeddings", 1, outputs)
    call.set("output_dim", outputs)
    return outputs


@register_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def _convolution(call):
    layer = call.layer
    axis = _axis_of(layer, len(call.inputs[0].shape))
    inputs, outputs = call.along(axis), call.new(layer.filters, axis)
    groups = layer.groups
    if groups > len(inputs.numbers) // groups:
        # Many small groups (ResNeXt, or one a channel): a unit is a whole group, from its inputs to its outputs.
        per_group = layer.filters // groups
        _tie_blocks(call, inputs, groups)
        _tie_blocks(call, outputs, groups)
        call.trace.unite(inputs.numbers[:: len(inputs.numbers) // groups], outputs.numbers[::per_group])
        call.set("groups", outputs, lambda count: count // per_group)
    else:
        # Few large groups: a unit is the channel at one place in every group, so that the groups stay alike.
        _tie_places(call, inputs, groups)
        _tie_places(call, outputs, groups)
        first = slice(0, len(inputs.numbers) // groups)
        call.read("kernel", -2, replace(inputs, numbers=inputs.numbers[first], silent=inputs.silent[first]))
        if groups > 1:
            call.needs_silence(inputs)
    return _make(call, outputs, "kernel", -1, "filters")


@register_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def _transposed_convolution(call):
    axis = _axis_of(call.layer, len(call.inputs[0].shape))
    call.read("kernel", -1, call.along(axis))
    return _make(call, call.new(call.layer.filters, axis), "kernel", -2, "filters")


@register_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _depthwise_convolution(call):
    axis = _axis_of(call.layer, len(call.inputs[0].shape))
    inputs = call.along(axis)
    call.carry("kernel", -2, inputs)
    outputs = _repeated(inputs, call.layer.depth_multiplier, call.shapes[0])
    if call.layer.use_bias:
        call.carry("bias", 0, outputs)
    return _activated(call, outputs)


@register_rule(layers.SeparableConv1D, layers.SeparableConv2D)
def _separable_convolution(call):
    axis = _axis_of(call.layer, len(call.inputs[0].shape))
    inputs = call.along(axis)
    call.carry("depthwise_kernel", -2, inputs)
    call.read("pointwise_kernel", -2, _repeated(inputs, call.layer.depth_multiplier, inputs.shape))
    return _make(call, call.new(call.layer.filters, axis), "pointwise_kernel", -1, "filters")


def _repeated(channels, times, shape):
    # A depthwise filter of its own stands at every position, so what comes out is silent whatever came in.
    numbers = np.repeat(channels.numbers, times)
    return Channels(shape, channels.axis, numbers, np.ones(len(numbers), bool))


def _tie_blocks(call, channels, count):
    blocks = channels.numbers.reshape(count, -1)
    for place in blocks.T[1:]:
        call.trace.unite(blocks[:, 0], place)


def _tie_places(call, channels, count):
    blocks = channels.numbers.reshape(count, -1)
    for block in blocks[1:]:
        call.trace.unite(blocks[0], block)


# Layers with a value for each channel.


@register_rule(layers.BatchNormalization)
def _batch_normalization(call):
    channels = call.along(call.layer.axis)
    names = ["gamma"] * call.layer.scale + ["beta"] * call.layer.center + ["moving_mean", "moving_variance"]
    for name in names:
        call.carry(name, 0, channels)
    return channels if not call.layer.scale else replace(channels, silent=np.ones(len(channels.numbers), bool))


@register_rule(layers.LayerNormalization, layers.RMSNormalization)
def _layer_normalization(call):
    channels = call.inputs[0]
    axis = call.layer.axis
    axes = [each % len(channels.shape) for each in (axis if isinstance(axis, Sequence) else [axis])]
    values = [name for name in ("gamma", "beta", "scale") if hasattr(getattr(call.layer, name, None), "shape")]
    if channels.axis not in axes:
        # All channels share the offset, which a silent one gets too.
        return replace(channels, silent=channels.silent & ("beta" not in values))
    call.mixes(channels)
    for name in values:
        call.carry(name, axes.index(channels.axis), channels)
    return replace(channels, silent=channels.silent | (not {"gamma", "scale"}.isdisjoint(values)))


@register_rule(layers.GroupNormalization)
def _group_normalization(call):
    channels = call.along(call.layer.axis)
    groups = call.layer.groups
    size = len(channels.numbers) // groups
    if groups == 1:
        call.mixes(channels)
    else:
        # Only a whole group leaves the statistics of the others as they are.
        _tie_blocks(call, channels, groups)
        call.set("groups", channels, lambda count: count // size)
    for name in ["gamma"] * call.layer.scale + ["beta"] * call.layer.center:
        call.carry(name, 0, channels)
    return channels if not call.layer.scale else replace(channels, silent=np.ones(len(channels.numbers), bool))


@register_rule(layers.UnitNormalization)
def _unit_normalization(call):
    channels = call.inputs[0]
    if channels.axis in np.atleast_1d(call.layer.axis) % len(channels.shape):
        call.needs_silence(channels)  # what is not 0 is part of the length
    return channels


@register_rule(layers.PReLU)
def _prelu(call):
    channels = call.inputs[0]
    if call.layer.alpha.shape[channels.axis - 1] == len(channels.numbers):
        call.carry("alpha", channels.axis - 1, channels)
    return channels


def _layer_scale(call):
    channels = call.along(-1)
    call.carry("gamma", 0, channels)
    call.set("projection_dim", channels)
    return replace(channels, silent=np.ones(len(channels.numbers), bool))


RULES["keras.src.applications.convnext.LayerScale"] = _layer_scale


def _slopes(call):
    channels = call.along(-1)
    call.carry("slope", 0, channels)
    return channels


RULES["tfface.faces.mtcnn.PReLU"] = _slopes


def _channel_attention(call):
    channels = call.along(-1)
    hidden = call.layer.hidden_bias.shape[0]
    call.read("hidden_kernel", 0, channels)
    call.carry("output_kernel", 1, channels)
    call.carry("output_bias", 0, channels)

    call.set("hidden", channels, lambda _: hidden)
    return channels


def _spatial_attention(call):
    channels = call.along(-1)
    call.mixes(channels)
    return channels


def _cosines(call):
    channels = call.along(-1)
    # A silent channel adds nothing to the products, but its weights are part of the length of every centre.
    call.mixes(channels)
    call.read("centres", 0, channels)
    return call.leave("gives a cosine for each class")[0]


RULES["tfface.layers.margin.CosineSimilarity"] = _cosines
RULES["tfface.layers.attention.ChannelAttention"] = _channel_attention
RULES["tfface.layers.attention.SpatialAttention"] = _spatial_attention


# Layers that stay whole.


@register_rule(
    layers.MultiHeadAttention,
    layers.GroupQueryAttention,
    layers.Attention,
    layers.AdditiveAttention,
    layers.LSTM,
    layers.GRU,
    layers.SimpleRNN,
    layers.Bidirectional,
    layers.ConvLSTM1D,
    layers.ConvLSTM2D,
    layers.ConvLSTM3D,
)
def _whole(call):
    for channels in call.inputs:
        call.pin(channels, "is not narrowed")
    return call.leave("is not narrowed")


# Layers that take each channel by itself.


@register_rule(
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.AlphaDropout,
    layers.ActivityRegularization,
    layers.Identity,
)
def unchanged(call: Call) -> Channels:
    """Rule of a layer that, when the model predicts, passes its channels on as they are."""
    channels = call.inputs[0]
    noise = getattr(call.layer, "noise_shape", None)
    if noise and noise[channels.axis] not in (1, None):
        call.pin(channels, "counts its channels in noise_shape")
    return channels


RULES["keras.src.applications.convnext.StochasticDepth"] = unchanged


@register_rule(
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Activation,
    layers.Softmax,
)
def elementwise(call: Call) -> Channels:
    """Rule of a layer that works on each value by itself; tried out on a few values, so that it is known to."""
    if len(call.inputs) != 1:
        return _refuse(call)
    return _through(call, _function(call), call.inputs[0])


RULES["ops"] = elementwise


@register_rule(layers.Rescaling)
def _rescaling(call):
    if np.ndim(call.layer.scale) or np.ndim(call.layer.offset):
        call.pin(call.inputs[0], "has a scale or an offset for each channel in its settings")
        return call.inputs[0]
    return elementwise(call)


def _function(call):
    """What a call does to its one tensor, as a function of an array."""

    def apply(array):
        fill = lambda x: array if isinstance(x, keras.KerasTensor) else x  # noqa: E731
        return call.layer(*keras.tree.map_structure(fill, call.arguments), **call.keywords)

    return apply


def _through(call, function, channels):
    """Channels after a function of values: whether it keeps channels apart and what it makes of 0 is tried out."""
    if function in (None, keras.activations.linear) or channels.axis < 1:
        return channels
    shape = [2] * len(channels.shape)
    shape[channels.axis] = len(channels.numbers)
    # What holds a value for each channel, or counts them, fails on one more.
    wider = [*shape[: channels.axis], shape[channels.axis] + 1, *shape[channels.axis + 1 :]]
    generator = np.random.default_rng(0)
    before = generator.normal(scale=3, size=shape).astype("float32")
    after = before.copy()
    first = tuple(slice(None) if axis != channels.axis else slice(0, 1) for axis in range(len(shape)))
    others = tuple(slice(None) if axis != channels.axis else slice(1, None) for axis in range(len(shape)))
    after[first] += 2.0
    alike = np.broadcast_to(before[first], wider)
    try:
        *results, by_place = (
            ops.convert_to_numpy(function(ops.convert_to_tensor(each))) for each in (before, after, alike)
        )
        at_zero = ops.convert_to_numpy(function(ops.zeros(wider)))
    except Exception:  # whatever it is, it does not work on each value of any tensor
        return _refuse(call)
    if [each.shape for each in (*results, at_zero)] != [tuple(shape), tuple(shape), tuple(wider)]:
        return _refuse(call)
    if not np.allclose(by_place, by_place[first], equal_nan=True):
        call.pin(channels, "treats each of its channels otherwise")
    if not np.array_equal(results[0][others], results[1][others], equal_nan=True):
        call.pin(channels, "mixes its channels")
    return replace(channels, shape=call.shapes[0], silent=channels.silent & bool((at_zero == 0).all()))


def _refuse(call):
    call.trace.refuse(call)
    return call.leave("has no rule")


def _spatial(call: Call) -> Channels:
    """Rule of a layer that works over space, each channel by itself."""
    channels = call.along(_axis_of(call.layer, len(call.inputs[0].shape)))
    shape = call.shapes[0]
    if getattr(call.layer, "pad_to_aspect_ratio", False) and call.layer.fill_value:
        channels = replace(channels, silent=np.zeros(len(channels.numbers), bool))
    # A global pooling without its spatial axes leaves the channels as the last axis.
    return replace(channels, shape=shape, axis=channels.axis if len(shape) == len(channels.shape) else len(shape) - 1)


for _name in (
    *(f"{kind}Pooling{rank}D" for kind in ("Max", "Average", "GlobalMax", "GlobalAverage") for rank in (1, 2, 3)),
    *(f"{kind}{rank}D" for kind in ("ZeroPadding", "Cropping", "UpSampling") for rank in (1, 2, 3)),
    "Resizing",
    "CenterCrop",
):
    register_rule(getattr(layers, _name))(_spatial)


# Layers that bring tensors together.


@register_rule(layers.Add, layers.Subtract, layers.Average, layers.Maximum, layers.Minimum)
def added(call: Call) -> Channels:
    """Rule of a sum, a difference or an extreme of tensors: silent where all of them are."""
    return _together(call, np.logical_and)


@register_rule(layers.Multiply)
def multiplied(call: Call) -> Channels:
    """Rule of a product of tensors, such as a map and its gate: silent where one of them is."""
    return _together(call, np.logical_or)


RULES["keras.src.applications.inception_resnet_v2.CustomScaleLayer"] = added


def _together(call, silent):
    rank = len(call.shapes[0])
    width = max(len(channels.numbers) for channels in call.inputs)
    wide = [channels for channels in call.inputs if channels.axis > 0 and len(channels.numbers) == width]
    # Counted from the last axis, as shapes are matched.
    back = {len(channels.shape) - channels.axis for channels in wide}
    narrow = [channels for channels in call.inputs if len(channels.numbers) != width]
    if len(back) != 1:
        for channels in call.inputs:
            call.pin(channels, "brings together tensors whose channels lie along different axes")
        return call.leave("brings together tensors whose channels lie along different axes")[0]
    for channels in wide[1:]:
        call.unite(wide[0], channels)
    quiet = silent.reduce([channels.silent for channels in wide])
    axis = rank - back.pop()
    for channels in narrow:
        call.pin(channels, "spreads it over the channels of another tensor")
        quiet = silent(quiet, False)
        place = axis - rank + len(channels.shape)
        if place > 0 and channels.shape[place] != 1:
            call.pin(wide[0], "brings it together with a tensor whose channels lie along another axis")
    return Channels(call.shapes[0], axis, wide[0].numbers, quiet)


@register_rule(layers.Concatenate)
def _concatenate(call):
    return concatenated(call, call.layer.axis)


def concatenated(call: Call, axis: int) -> Channels:
    """Rule of tensors laid side by side along an axis, whether that of their channels or another."""
    axis %= len(call.shapes[0])
    own = call.inputs[0].axis if all(each.axis == call.inputs[0].axis for each in call.inputs) else axis
    inputs = [call.along(own, index) for index in range(len(call.inputs))]
    silent = [channels.silent for channels in inputs]
    if own == axis:
        numbers = np.concatenate([channels.numbers for channels in inputs])
        return Channels(call.shapes[0], axis, numbers, np.concatenate(silent))
    for channels in inputs[1:]:
        call.unite(inputs[0], channels)
    return Channels(call.shapes[0], own, inputs[0].numbers, np.logical_and.reduce(silent))

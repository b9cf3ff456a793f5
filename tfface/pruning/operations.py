"""Rules of what moves channels to another place or axis, and of the operations that a graph holds without a layer."""

from dataclasses import replace

import keras
import numpy as np
from keras import layers

from tfface.pruning.channels import RULES, Call, Channels, register_rule
from tfface.pruning.rules import added, concatenated, elementwise, multiplied

UNKNOWN = 4
"""Stands for a length that is not known while positions are moved."""


def moved(call: Call, channels: Channels, move) -> Channels:
    """Channels after their tensor was moved about: flattened, reshaped, transposed, indexed.

    Each position is given its place along the channel axis and moved; where the places lie afterwards shows the new
    axis. Where they vary along several axes (a vector reshaped to a map), the places along all axes but the last are
    tied together.

    Args:
        call: the call whose output is asked for.
        channels: the channels of its input.
        move: function of an array with a batch axis of length 1 that does what the call does to its tensor.
    """
    shape = call.shapes[0]
    if channels.axis < 1:
        return call.leave("has no channels")[0]
    lengths = [1, *(length or UNKNOWN for length in channels.shape[1:])]
    along = [-1 if axis == channels.axis else 1 for axis in range(len(lengths))]
    try:
        places = move(np.broadcast_to(np.arange(len(channels.numbers)).reshape(along), lengths))
    except (ValueError, IndexError):  # it takes a part of an open axis, or the batch, for something else
        call.trace.refuse(call)
        return call.leave("has no rule")[0]
    if len(shape) < 2 or places.shape[0] != 1 or not places.size:
        call.pin(channels, "moves its channels out of sight")
        return call.leave("moves its channels out of sight")[0]
    rows = [np.moveaxis(places, axis, 0).reshape(places.shape[axis], -1) for axis in range(1, len(shape))]
    axes = [axis for axis, row in enumerate(rows, 1) if (row == row[:, :1]).all()]
    axis = axes[-1] if axes else len(shape) - 1
    row = rows[axis - 1]
    if not axes:
        for column in row.T[1:]:
            call.trace.unite(channels.numbers[row[:, 0]], channels.numbers[column])
    return Channels(shape, axis, channels.numbers[row[:, 0]], channels.silent[row].all(axis=1))


@register_rule(layers.Flatten)
def _flatten(call):
    channels = call.inputs[0]
    first = call.layer.data_format == "channels_first" and len(channels.shape) > 2

    def flatten(places):
        return (np.moveaxis(places, 1, -1) if first else places).reshape(1, -1)

    return moved(call, channels, flatten)


@register_rule(layers.Reshape)
def _reshape(call):
    return _reshaped(call, "target_shape", call.layer.target_shape, 1)


@register_rule(layers.Permute)
def _permute(call):
    return moved(call, call.inputs[0], lambda places: places.transpose(0, *call.layer.dims))


@register_rule(layers.RepeatVector)
def _repeat_vector(call):
    return moved(call, call.inputs[0], lambda places: np.repeat(places[:, None], call.layer.n, axis=1))


def _reshaped(call, key, target, skipped):
    channels, shape = call.inputs[0], call.shapes[0]
    unknown = [axis for axis, length in enumerate(shape) if axis and length is None]
    if len(unknown) > 1 or shape[0] != channels.shape[0]:
        call.trace.refuse(call)
        return call.leave("has no rule")
    outputs = moved(call, channels, lambda places: places.reshape(1, *(length or -1 for length in shape[1:])))
    place = outputs.axis - skipped
    if outputs.axis > 0 and target[place] not in (-1, None):
        resized = tuple(target)
        call.set(key, outputs, lambda count: (*resized[:place], count, *resized[place + 1 :]))
    return outputs


# Operations without a layer: `keras.ops` called in a functional graph.


def operation(*names):
    """Decorate a function as the rule of operations of `keras.ops`, by the names of their classes."""

    def register(rule):
        RULES.update({f"ops.{name}": rule for name in names})
        return rule

    return register


@operation("Add", "Subtract", "Maximum", "Minimum")
def _add(call):
    return added(call) if len(call.inputs) > 1 else elementwise(call)


@operation("Multiply")
def _multiply(call):
    return multiplied(call) if len(call.inputs) > 1 else elementwise(call)


@operation("Divide", "TrueDivide")
def _divide(call):
    if len(call.inputs) == 1:
        return elementwise(call)
    # Only the numerator's silence stays: 0 divided by what is not 0.
    numerator, divisor = call.inputs
    quiet = divisor.silent & False
    return multiplied(replace(call, inputs=[numerator, replace(divisor, silent=quiet)]))


@operation("Concatenate")
def _concatenate(call):
    return concatenated(call, call.layer.axis)


@operation("Mean", "Sum", "Max", "Min")
def _reduction(call):
    channels = call.inputs[0]
    rank = len(channels.shape)
    axis = call.layer.axis
    axes = range(rank) if axis is None else np.atleast_1d(axis) % rank
    if channels.axis in axes:
        if type(call.layer).__name__ == "Sum":
            call.needs_silence(channels)
        else:
            call.mixes(channels)
        return call.leave("is taken over channels")[0]
    if 0 in axes:
        call.trace.refuse(call)
        return call.leave("has no rule")
    if getattr(call.layer, "initial", None) is not None:
        channels = replace(channels, silent=np.zeros(len(channels.numbers), bool))
    keepdims = call.layer.keepdims
    return moved(call, channels, lambda places: places.max(axis=tuple(axes), keepdims=keepdims))


@operation("Roll", "Tril", "Triu")
def _by_place(call):
    channels = call.inputs[0]
    if getattr(call.layer, "axis", None) is None and channels.axis > 0:
        call.pin(channels, "goes by the places of its channels")
        return channels
    return elementwise(call)


@operation("ExpandDims")
def _expand_dims(call):
    return moved(call, call.inputs[0], lambda places: np.expand_dims(places, call.layer.axis))


@operation("Squeeze")
def _squeeze(call):
    axis = call.layer.axis
    if axis is None:
        axis = tuple(each for each, length in enumerate(call.inputs[0].shape) if length == 1)
    return moved(call, call.inputs[0], lambda places: np.squeeze(places, axis))


@operation("Transpose")
def _transpose(call):
    return moved(call, call.inputs[0], lambda places: np.transpose(places, call.layer.axes))


@operation("Reshape")
def _reshape_operation(call):
    return _reshaped(call, "newshape", call.layer.newshape, 0)


@operation("GetItem")
def _get_item(call):
    key = call.arguments[1] if len(call.arguments) > 1 else call.keywords.get("key")
    channels = call.inputs[0]
    if any(isinstance(each, keras.KerasTensor) for each in keras.tree.flatten(key)):
        call.trace.refuse(call)
        return call.leave("has no rule")
    outputs = moved(call, channels, lambda places: places[key])
    if not np.array_equal(outputs.numbers, channels.numbers):
        call.pin(channels, "takes some of its channels by their places")
    return outputs

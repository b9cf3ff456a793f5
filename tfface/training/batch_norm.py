"""Batch norms of a training computed by TensorFlow's own operation for them, in a fraction of the time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import MethodType

import keras
import tensorflow as tf

KINDS = ("float32", "bfloat16", "float16")
"""What TensorFlow's operation takes."""


@contextlib.contextmanager
def fused_batch_norms(model: keras.Model) -> Iterator[None]:
    """Let the batch norms of a network train by TensorFlow's fused operation inside this context.

    Keras composes a batch norm (Ioffe and Szegedy, Batch Normalization, ICML 2015, algorithm 1) of some ten operations
    and their gradients, each a pass over the feature map in memory; TensorFlow has one operation for it and one for its
    gradient. Outputs, gradients and moving statistics are the same but for rounding. On two cores a training step of
    ResNet50 becomes 1.4 times as fast in float32 and 1.9 times in bfloat16 (`docs/speed.md`). Only plain
    `keras.layers.BatchNormalization` over the last axis of a batch of images, with statistics of each device's own
    batch, is touched, and only its training: whatever else is asked of it, Keras computes as ever. Nothing changes on
    other backends, which compile all operations together, nor in a model that XLA compiles.

    Args:
        model: a compiled `keras.Model`. `model.fit` inside the context traces its training step with the fused
            operation; when the context ends the layers are as they were.
    """
    layers = []
    if keras.backend.backend() == "tensorflow" and not getattr(model, "jit_compile", False):
        layers = [each for each in model._flatten_layers() if type(each) is keras.layers.BatchNormalization]
    for layer in layers:
        layer.call = MethodType(_call, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call


def _call(layer, inputs, training=None, mask=None):
    """`BatchNormalization.call`, by one operation where that computes the same."""
    last = len(inputs.shape) - 1
    plain = mask is None and not layer.renorm and not layer.synchronized
    images = last == 3 and layer.axis in (-1, last) and inputs.dtype.name in KINDS
    if not (training and layer.trainable and plain and images):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    channels = inputs.shape[last]
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=_float32(layer.gamma) if layer.scale else tf.ones([channels]),
        offset=_float32(layer.beta) if layer.center else tf.zeros([channels]),
        mean=[],
        variance=[],
        epsilon=layer.epsilon,
        is_training=True,
    )
    # TensorFlow's variance is of a sample, divided by one less than there are numbers; Keras keeps the batch's own.
    count = tf.cast(tf.size(inputs) // channels, tf.float32)
    variance *= (count - 1) / count
    for moving, batch in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(_float32(moving) * layer.momentum + batch * (1 - layer.momentum))
    return tf.cast(outputs, layer.compute_dtype)


def _float32(variable) -> tf.Tensor:
    return keras.ops.cast(variable, "float32")

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
    `keras.layers.BatchNormalization` over the last axis of a batch of images is touched, frozen or not; where it
    learns, with statistics of each device's own batch. Whatever else is asked of it, Keras computes as ever. Nothing
    changes on other backends, which compile all operations together, nor in a model that XLA compiles.

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
    images = last == 3 and layer.axis in (-1, last) and inputs.dtype.name in KINDS
    learns = training and layer.trainable
    if not images or (learns and (mask is not None or layer.renorm or layer.synchronized)):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    channels = inputs.shape[last]
    gamma = _float32(layer.gamma) if layer.scale else tf.ones([channels])
    beta = _float32(layer.beta) if layer.center else tf.zeros([channels])
    if not learns:
        scale = gamma * tf.math.rsqrt(_float32(layer.moving_variance) + layer.epsilon)
        outputs = _scaled(inputs, scale, beta - _float32(layer.moving_mean) * scale)
        return tf.cast(outputs, layer.compute_dtype)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=gamma, offset=beta, mean=[], variance=[], epsilon=layer.epsilon, is_training=True
    )
    # TensorFlow's variance is of a sample, divided by one less than there are numbers; Keras keeps the batch's own.
    count = tf.cast(tf.size(inputs) // channels, tf.float32)
    variance *= (count - 1) / count
    for moving, batch in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(_float32(moving) * layer.momentum + batch * (1 - layer.momentum))
    return tf.cast(outputs, layer.compute_dtype)


@tf.custom_gradient
def _scaled(inputs, scale, offset):
    """Scale and shift every channel: what a batch norm does whose statistics stand still.

    The operation's own gradient computes those of the scale and the offset whether they are wanted or not; here each is
    an operation by itself, which TensorFlow leaves out of the graph of a frozen layer.
    """

    def once(x, offset):
        # A variance of one, in two parts that add up to it: GPUs' kernels may raise an epsilon of zero.
        parts = {"variance": tf.ones_like(scale) - 2**-10, "epsilon": 2**-10}
        fixed = {"mean": tf.zeros_like(scale), **parts, "is_training": False}
        return tf.raw_ops.FusedBatchNormV3(x=x, scale=scale, offset=offset, **fixed).y

    def gradient(upstream):
        change = tf.cast(upstream, tf.float32)
        by_scale = tf.reduce_sum(change * tf.cast(inputs, tf.float32), [0, 1, 2])
        return once(upstream, tf.zeros_like(scale)), by_scale, tf.reduce_sum(change, [0, 1, 2])

    return once(inputs, offset), gradient


def _float32(variable) -> tf.Tensor:
    return keras.ops.cast(variable, "float32")

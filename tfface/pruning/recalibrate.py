"""Statistics of batch norms, gathered anew: what a cut leaves wrong and a few hundred examples mend, untrained."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import keras


def recalibrate(model: keras.Model, batches: Iterable) -> int:
    """Set the moving mean and variance of every batch norm to the average over batches, in place.

    Behind a cut the inputs of a norm are not those that its statistics were gathered on. They need no labels and no
    gradients to be gathered again. No other weight changes: only the norms run as in training, all other layers as
    the model predicts, so no dropout, noise or augmentation is in the statistics.

    Reference: Li et al., EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning (ECCV 2020), section
    3.3, where it is called adaptive batch normalization.

    Args:
        model: any Keras model with batch norms.
        batches: inputs of the model, each with its batch axis, the more alike to what it will see the better; a few
            batches of 32 or more do.

    Returns:
        How many batches there were.

    Raises:
        ValueError: no batches, or a model without batch norms.
    """
    layers = list(model._flatten_layers(include_self=False))
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    if not norms:
        raise ValueError(f"`model` must have batch norms. Received: {model.name}, which has none")
    before = [(layer, layer.momentum, layer.trainable) for layer in norms]
    count = 0
    try:
        for layer in norms:
            layer.trainable = True  # a frozen norm would keep its statistics
            layer.call = _in_training(layer)
        for batch in batches:
            model(batch, training=False)
            count += 1
    finally:
        for layer, momentum, trainable in before:
            layer.momentum, layer.trainable = momentum, trainable
            vars(layer).pop("call", None)
    if not count:
        raise ValueError("`batches` must hold at least one. Received none")
    return count


def _in_training(layer):
    call, calls = layer.call, itertools.count(1)

    def called(*arguments, **keywords):
        count = next(calls)
        layer.momentum = (count - 1) / count  # so the moving value is the mean of all so far
        return call(*arguments, **{**keywords, "training": True})

    return called

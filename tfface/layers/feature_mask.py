"""Feature masks: which elements of the last maps an occluder has spoilt, read from the maps themselves.

Reference: Qiu et al., End2End Occluded Face Recognition by Masking Corrupted Features (FROM, TPAMI 2021), sections 3.2
and 3.3, which paper 5 follows in its third stage.
"""

from collections.abc import Sequence
from itertools import pairwise

import keras
from keras import layers

PYRAMID_WIDTH = 256

OPEN = 3.0
"""Bias of the mask before its sigmoid: it begins at about 0.95, so that a trained backbone begins as it was."""


def feature_mask(maps: Sequence, name: str = "mask"):
    """Decode a mask for the last of a backbone's maps from a pyramid over its last three stages.

    Every level is brought to 256 channels and added to the next coarser one, enlarged; the finest goes through two
    strided convolutions down to the size of the last maps.

    Args:
        maps: outputs of three stages, fine to coarse, each of the size that a 3x3 convolution of stride 2 makes of the
            one before: half of it where the backbone pads, `(size - 1) // 2` where it does not.
        name: prefix of the layers' names; the last layer bears it alone.

    Returns:
        Tensor of the shape of the last maps, in (0, 1): 1 keeps an element, 0 blots it out.

    Raises:
        ValueError: not three maps, or sizes that do not halve.
    """
    sizes = [tuple(tensor.shape[1:3]) for tensor in maps]
    paddings = [_padding(finer, coarser) for finer, coarser in pairwise(sizes)]
    if len(sizes) != 3 or None in paddings:
        raise ValueError(f"`maps` must be three, each half the size of the one before. Received sizes: {sizes}")
    level = None
    for number, tensor in reversed(list(enumerate(maps, start=3))):
        lateral = layers.Conv2D(PYRAMID_WIDTH, 1, name=f"{name}_lateral{number}")(tensor)
        if level is not None:
            enlarged = _enlarged(level, tensor.shape[1:3], f"{name}_enlarge{number}")
            lateral = layers.Add(name=f"{name}_add{number}")([lateral, enlarged])
        level = lateral
    x = layers.Conv2D(PYRAMID_WIDTH, 3, strides=2, padding=paddings[0], use_bias=False, name=f"{name}_conv1")(level)
    x = layers.PReLU(shared_axes=(1, 2), name=f"{name}_prelu")(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    bias = keras.initializers.Constant(OPEN)
    x = layers.Conv2D(
        maps[-1].shape[-1], 3, strides=2, padding=paddings[1], bias_initializer=bias, name=f"{name}_conv2"
    )(x)
    return layers.Activation("sigmoid", name=name)(x)


def _enlarged(maps, size, name):
    """Twice the height and width, or one or two more, where a convolution without padding left them out."""
    (height, width), (short, narrow) = size, maps.shape[1:3]
    if (height, width) != (2 * short, 2 * narrow):
        # Padded before and not after: TensorFlow 2.21 dies in training a bias and the addition of something padded.
        # Not Resizing: inside a model that is called without `training` it sets batch norms behind it to training.
        rest = ((0, (height + 1) // 2 - short), (0, (width + 1) // 2 - narrow))
        maps = layers.ZeroPadding2D(rest, name=f"{name}_pad")(maps)
    maps = layers.UpSampling2D(2, name=name)(maps)
    if height % 2 or width % 2:
        maps = layers.Cropping2D(((0, height % 2), (0, width % 2)), name=f"{name}_crop")(maps)
    return maps


def _padding(finer, coarser):
    """Of the 3x3 convolution of stride 2 between two sizes: "same", "valid", or None where there is none."""
    if finer == tuple(2 * size for size in coarser):
        return "same"
    return "valid" if coarser == tuple((size - 1) // 2 for size in finer) else None


def pattern_logits(mask, patterns: int, dropout_rate: float = 0.5, name: str = "pattern"):
    """Say from the mask which part of the face is covered: the second head of FROM.

    Args:
        mask: what `feature_mask` returned.
        patterns: how many occlusion patterns there are (`tfface.faces.occlude.pattern_boxes`), >= 2.
        dropout_rate: dropout before the last layer, in [0, 1).
        name: prefix of the layers' names.

    Returns:
        `(batch, patterns)` logits.
    """
    x = layers.Flatten(name=f"{name}_flatten")(mask)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    x = layers.Dropout(dropout_rate, name=f"{name}_dropout")(x)
    return layers.Dense(patterns, use_bias=False, name=f"{name}_logits")(x)

"""DenseNet-161 (Huang et al., Densely Connected Convolutional Networks, CVPR 2017), which keras.applications lacks."""

from collections.abc import Sequence

from keras import Model, layers

from tfface.layers import task_heads
from tfface.tasks import Task


def densenet(
    tasks: Sequence[Task],
    input_shape: tuple[int, int, int] = (224, 224, 3),
    blocks: tuple[int, ...] = (6, 12, 36, 24),
    growth: int = 48,
    name: str = "densenet161",
) -> Model:
    """Build a densely connected network with a head for each task; the defaults are DenseNet-161.

    Args:
        tasks: what the heads learn.
        input_shape: `(height, width, 3)`, sides of at least 32 pixels.
        blocks: layers in each dense block (table 1 of the paper).
        growth: channels that a layer adds; the stem has twice as many.
        name: name of the model.

    Returns:
        A functional `keras.Model`, `(batch, height, width, 3)` RGB in [0, 255] -> a dict: task -> `(batch, width)`
        float32.
    """
    inputs = layers.Input(input_shape)
    x = layers.Rescaling(1 / 127.5, -1.0, name="rescale")(inputs)
    x = _convolution(x, 2 * growth, 7, "stem_conv", stride=2)
    x = _activated(x, "stem")
    x = layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    for number, count in enumerate(blocks, start=1):
        for layer in range(1, count + 1):
            name_of = f"block{number}_layer{layer}"
            y = _convolution(_activated(x, f"{name_of}_1"), 4 * growth, 1, f"{name_of}_1_conv")
            y = _convolution(_activated(y, f"{name_of}_2"), growth, 3, f"{name_of}_2_conv")
            x = layers.Concatenate(name=f"{name_of}_join")([x, y])
        if number < len(blocks):
            x = _activated(x, f"transition{number}")
            x = _convolution(x, x.shape[-1] // 2, 1, f"transition{number}_conv")
            x = layers.AveragePooling2D(2, name=f"transition{number}_pool")(x)
    x = layers.GlobalAveragePooling2D(name="features")(_activated(x, "last"))
    return Model(inputs, task_heads(x, tasks), name=name)


def _convolution(x, filters, size, name, stride=1):
    return layers.Conv2D(
        filters, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )(x)


def _activated(x, name):
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)

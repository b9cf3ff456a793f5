"""AlexNet in the single-column form of Krizhevsky, One weird trick for parallelizing convolutional neural networks
(2014), the one that has 61.1 million parameters with 1,000 classes."""

from collections.abc import Sequence

from keras import Model, layers

from tfface.layers import task_heads
from tfface.tasks import Task

CONVOLUTIONS = ((64, 11, 4, True), (192, 5, 1, True), (384, 3, 1, False), (256, 3, 1, False), (256, 3, 1, True))
"""Filters, kernel side, stride, and whether a 3x3 max pool of stride 2 follows."""


def alexnet(
    tasks: Sequence[Task],
    input_shape: tuple[int, int, int] = (224, 224, 3),
    dense_width: int = 4096,
    name: str = "alexnet",
) -> Model:
    """Build AlexNet with a head for each task.

    Args:
        tasks: what the heads learn.
        input_shape: `(height, width, 3)`, sides of at least 64 pixels; maps above 6x6 are averaged to
            6x6, the size that 224 pixels give.
        dense_width: units of the two dense layers, 4096 in the original.
        name: name of the model.

    Returns:
        A functional `keras.Model`, `(batch, height, width, 3)` RGB in [0, 255] -> a dict: task -> `(batch, width)`
        float32.

    Raises:
        ValueError: an input too small.
    """
    if min(input_shape[:2]) < 64:
        raise ValueError(f"`input_shape` must have sides of at least 64 pixels. Received: {input_shape}")
    inputs = layers.Input(input_shape)
    x = layers.Rescaling(1 / 127.5, -1.0, name="rescale")(inputs)
    for number, (filters, size, stride, pooled) in enumerate(CONVOLUTIONS, start=1):
        if number == 1:
            x = layers.ZeroPadding2D(2, name="conv1_pad")(x)
        x = layers.Conv2D(
            filters,
            size,
            stride,
            padding="same" if number > 1 else "valid",
            activation="relu",
            kernel_initializer="he_normal",
            name=f"conv{number}",
        )(x)
        if pooled:
            x = layers.MaxPooling2D(3, 2, name=f"pool{number}")(x)
    if max(x.shape[1:3]) > 6:
        x = layers.AdaptiveAveragePooling2D([min(6, side) for side in x.shape[1:3]], name="average")(x)
    x = layers.Flatten(name="flatten")(x)
    for number in (1, 2):
        x = layers.Dropout(0.5, name=f"dropout{number}")(x)
        x = layers.Dense(dense_width, activation="relu", kernel_initializer="he_normal", name=f"dense{number}")(x)
    return Model(inputs, task_heads(x, tasks), name=name)

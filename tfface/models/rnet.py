"""RNet (Ahmed, Choudhury and Kashyap, Race estimation with deep networks, 2020), a small network for grey faces."""

from collections.abc import Sequence

from keras import Model, layers

from tfface.layers import GreyImage, task_heads
from tfface.tasks import Task


def rnet(
    tasks: Sequence[Task],
    input_shape: tuple[int, int, int] = (40, 40, 3),
    filters: tuple[int, ...] = (32, 64, 128),
    dense_width: int = 256,
    dropout_rate: float = 0.5,
    name: str = "rnet",
) -> Model:
    """Build the network that paper 1 compares itself with in table 3.

    Paper 1 gives its input, 40x40x1, and its training (Adam, 40 epochs), not its layers. Those here are a plain reading
    of a network for so small an image: for each of `filters` two 3x3 convolutions with batch norm and ReLU, then a
    maximum over 2x2; one dense layer with dropout.

    Args:
        tasks: what the heads learn.
        input_shape: `(height, width, 3)`, sides of at least 2 pixels for each of `filters`, doubled each time.
        filters: of the convolutions of each block.
        dense_width: units of the dense layer.
        dropout_rate: dropout behind it, in [0, 1).
        name: name of the model.

    Returns:
        A functional `keras.Model`, `(batch, height, width, 3)` RGB in [0, 255], made grey inside -> a dict: task ->
        `(batch, width)` float32.

    Raises:
        ValueError: an image too small for its blocks.
    """
    least = 2 ** len(filters)
    if min(input_shape[:2]) < least:
        raise ValueError(f"`input_shape` must have sides of at least {least} pixels. Received: {input_shape}")
    inputs = layers.Input(input_shape)
    x = GreyImage(channels=1, name="grey")(inputs)
    for block, width in enumerate(filters, start=1):
        for number in (1, 2):
            x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"block{block}_conv{number}")(x)
            x = layers.BatchNormalization(momentum=0.9, name=f"block{block}_bn{number}")(x)
            x = layers.Activation("relu", name=f"block{block}_relu{number}")(x)
        x = layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(dense_width, activation="relu", name="features")(x)
    x = layers.Dropout(dropout_rate, name="features_dropout")(x)
    return Model(inputs, task_heads(x, tasks), name=name)

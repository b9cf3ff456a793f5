"""The network of "Residual Blocks-Based Convolutional Neural Network for Age, Gender, and Race Classification" (paper
2)."""

from collections.abc import Sequence

from keras import Model, layers

from tfface.layers import task_head
from tfface.tasks import Task

FILTERS = (64, 128, 512)
"""Of the three convolution blocks. The paper gives no widths; these, with two residual blocks at 512 and 256 units a
branch, are a plain reading that comes to its 35.3 million parameters at 64x64 (35.29)."""


def multitask_cnn(
    tasks: Sequence[Task],
    input_shape: tuple[int, int, int] = (64, 64, 3),
    residual_blocks: int = 2,
    branch_width: int = 256,
    dropout_rate: float = 0.5,
    alpha_dropout: tuple[str, ...] = ("race",),
    name: str = "multitask_cnn",
) -> Model:
    """Build the network: three convolution blocks with pooling, residual blocks, a branch for each task.

    A branch is Dense, ReLU, Dropout, Dense; that of race has AlphaDropout (paper 2, section 3).

    Args:
        tasks: what the branches learn.
        input_shape: `(height, width, 3)`, any sides of at least 8 pixels; the branches' first layers grow with them.
        residual_blocks: blocks of two 3x3 convolutions and a shortcut, at the last block's width.
        branch_width: units of a branch's first layer.
        dropout_rate: of the branches, in [0, 1). The paper gives none.
        alpha_dropout: tasks whose branch drops by AlphaDropout (Klambauer et al. 2017).
        name: name of the model.

    Returns:
        A functional `keras.Model`, `(batch, height, width, 3)` RGB in [0, 255] -> a dict: task -> `(batch, width)`
        float32.

    Raises:
        ValueError: no tasks, or an input too small.
    """
    if not tasks:
        raise ValueError("`tasks` must name at least one task. Received an empty sequence.")
    if min(input_shape[:2]) < 8:
        raise ValueError(f"`input_shape` must have sides of at least 8 pixels. Received: {input_shape}")
    inputs = layers.Input(input_shape)
    x = layers.Rescaling(1 / 127.5, -1.0, name="rescale")(inputs)
    for number, filters in enumerate(FILTERS, start=1):
        x = _convolution(x, filters, f"conv{number}")
        x = layers.ReLU(name=f"conv{number}_relu")(x)
        x = layers.MaxPooling2D(2, name=f"conv{number}_pool")(x)
    for number in range(1, residual_blocks + 1):
        y = _convolution(x, FILTERS[-1], f"residual{number}_1")
        y = layers.ReLU(name=f"residual{number}_1_relu")(y)
        y = _convolution(y, FILTERS[-1], f"residual{number}_2")
        x = layers.Add(name=f"residual{number}_add")([x, y])
        x = layers.ReLU(name=f"residual{number}_relu")(x)
    x = layers.Flatten(name="features")(x)
    outputs = {}
    for task in tasks:
        y = layers.Dense(branch_width, activation="relu", kernel_initializer="he_normal", name=f"{task.name}_dense")(x)
        dropout = layers.AlphaDropout if task.name in alpha_dropout else layers.Dropout
        y = dropout(dropout_rate, name=f"{task.name}_dropout")(y)
        outputs[task.name] = task_head(y, task)
    return Model(inputs, outputs, name=name)


def _convolution(x, filters, name):
    x = layers.Conv2D(filters, 3, padding="same", kernel_initializer="he_normal", name=f"{name}_conv")(x)
    return layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)

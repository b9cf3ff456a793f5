"""ARG: one backbone, heads for age, race and gender (poster "Age Race Gender", Simon Fraser University)."""

from collections.abc import Sequence

import keras
from keras import layers

from tfface.layers import task_heads
from tfface.models.inception_resnet_v1 import inception_resnet_v1
from tfface.tasks import Task

FEATURES = "features"
"""Name of the layer whose output the heads stand on."""


def arg(
    tasks: Sequence[Task],
    input_shape: tuple[int, int, int] = (160, 160, 3),
    bottleneck_width: int = 128,
    dropout_rate: float = 0.5,
    depths: Sequence[str] = ("Block8_6_ScaleSum",),
    weights: str | None = "facenet",
    name: str = "arg",
) -> keras.Model:
    """Build the ARG network: Inception-ResNet-v1 up to its pooled features, a fresh bottleneck, a head for each task.

    The bottleneck of the pretrained network is left out; the new one is learnt with the heads, as the poster transfers
    everything "excluding the output nodes".

    Args:
        tasks: what the heads learn; each gives an output of its name.
        input_shape: `(height, width, 3)`, sides of at least 75 pixels.
        bottleneck_width: units of the layer that the heads share, >= 1. 128 in the paper.
        dropout_rate: dropout after the pooled features and after the bottleneck, in [0, 1).
        depths: names of the backbone's layers whose outputs are pooled over space and put side by side as the
            features. The last one alone in the paper (1792 features); the deeper a layer of a network for identities,
            the more it has dropped of what changes in one person, age first.
        weights: "facenet" for the pretrained backbone, None for random initial values.
        name: name of the model.

    Returns:
        A functional `keras.Model`, `(batch, height, width, 3)` RGB in [0, 255] -> a dict: for each task with classes
        `(batch, width)` float32 probabilities, for a number `(batch, 1)` float32.

    Raises:
        ValueError: no tasks, or an argument out of range.
    """
    if bottleneck_width < 1:
        raise ValueError(f"`bottleneck_width` must be at least 1. Received: {bottleneck_width}")
    backbone = inception_resnet_v1(input_shape, weights=weights)
    known = {layer.name for layer in backbone.layers}
    if not depths or set(depths) - known:
        raise ValueError(f"`depths` must name layers of inception_resnet_v1. Received: {depths}")
    pooled = [layers.GlobalAveragePooling2D(name=f"{depth}_pool")(backbone.get_layer(depth).output) for depth in depths]
    features = (
        layers.Concatenate(name=FEATURES)(pooled) if len(pooled) > 1 else layers.Identity(name=FEATURES)(pooled[0])
    )
    return keras.Model(backbone.input, heads(features, tasks, bottleneck_width, dropout_rate), name=name)


def heads(
    features: keras.KerasTensor, tasks: Sequence[Task], bottleneck_width: int, dropout_rate: float
) -> dict[str, keras.KerasTensor]:
    """Put the bottleneck and the heads on pooled features; a dict of outputs by the tasks' names."""
    x = layers.BatchNormalization(name="features_norm")(features)
    x = layers.Dropout(dropout_rate, name="features_dropout")(x)
    x = layers.Dense(bottleneck_width, use_bias=False, name="bottleneck")(x)
    x = layers.BatchNormalization(name="bottleneck_norm")(x)
    x = layers.Activation("relu", name="bottleneck_activation")(x)
    x = layers.Dropout(dropout_rate, name="bottleneck_dropout")(x)
    return task_heads(x, tasks)

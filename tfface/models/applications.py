"""Networks of keras.applications with a head for each task: the baselines MobileNet, MobileNetV2, VGG16 and others."""

from collections.abc import Callable, Sequence

import keras
from keras import Model, layers

from tfface.layers import task_heads
from tfface.tasks import Task

NETWORKS = ("MobileNet", "MobileNetV2", "VGG16", "ResNet50")
"""Those whose convolutions take pixels in [-1, 1] or any scale (no preprocessing of their own inside)."""


def applications(
    network: str,
    tasks: Sequence[Task],
    input_shape: tuple[int, int, int] = (224, 224, 3),
    preprocessing: Callable | None = None,
    name: str = "",
) -> Model:
    """Build a network of keras.applications with fresh weights, averaged over space, and the tasks' heads on it.

    Its batch norms move by a tenth a step, as those of the package's other networks. By the hundredth of
    keras.applications they still hold a tenth of their first values after 230 steps, and a network that has learnt
    says one class of everything.

    Args:
        network: one of `NETWORKS`.
        tasks: what the heads learn.
        input_shape: `(height, width, 3)`, sides of at least 32 pixels.
        preprocessing: what is done to the pixels first; None scales them to [-1, 1].
        name: name of the model; that of the network in small letters unless given.

    Returns:
        A functional `keras.Model`, `(batch, height, width, 3)` RGB in [0, 255] -> a dict: task -> `(batch, width)`
        float32.

    Raises:
        ValueError: another network.
    """
    if network not in NETWORKS:
        raise ValueError(f"`network` must be one of {', '.join(NETWORKS)}. Received: {network}")
    inputs = layers.Input(input_shape)
    x = (preprocessing or layers.Rescaling(1 / 127.5, -1.0, name="rescale"))(inputs)
    backbone = getattr(keras.applications, network)(
        include_top=False, weights=None, input_tensor=x, input_shape=input_shape
    )
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9
    features = layers.GlobalAveragePooling2D(name="features")(backbone.output)
    return Model(inputs, task_heads(features, tasks), name=name or network.lower())

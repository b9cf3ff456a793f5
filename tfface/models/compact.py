"""One network, one pass: an aligned face's embedding, age, gender and race."""

from collections.abc import Sequence

import keras
from keras import layers

from tfface.layers import Regroup
from tfface.models.arg import heads
from tfface.tasks import Task


def compact(
    backbone: keras.Model,
    tasks: Sequence[Task],
    depths: Sequence[str],
    regrouped: dict[str, tuple[Task, Sequence[int]]],
    bottleneck_width: int = 256,
    dropout_rate: float = 0.2,
    embedding: bool = True,
    name: str = "compact",
):
    """Put attribute heads beside the embedding of a backbone.

    Args:
        backbone: a network with an embedding (`tfface.models.recognition.load_backbone`).
        tasks: what the heads learn.
        depths: names of the backbone's layers whose maps are pooled, side by side, as the heads' features.
        regrouped: name of a further output -> the task whose probabilities it sums, and the group of each class.
        bottleneck_width: units of the layer that the heads share.
        dropout_rate: dropout before and after it, in [0, 1).
        embedding: whether the embedding is an output; without it what lies behind the last depth is left out.
        name: name of the model.

    Returns:
        A functional `keras.Model`, `(batch, height, width, 3)` RGB in [0, 255] -> a dict: `embedding` of length 1 (if
        it is one), an output for each task, and the regrouped ones; float32.

    Raises:
        ValueError: a depth that the backbone has not.
    """
    known = {layer.name for layer in backbone.layers}
    if not depths or set(depths) - known:
        raise ValueError(f"`depths` must name layers of {backbone.name}. Received: {depths}")
    pooled = [layers.GlobalAveragePooling2D(name=f"{depth}_pool")(backbone.get_layer(depth).output) for depth in depths]
    features = layers.Concatenate(name="features")(pooled) if len(pooled) > 1 else pooled[0]
    outputs = {"embedding": backbone.output} if embedding else {}
    outputs |= heads(features, tasks, bottleneck_width, dropout_rate)
    for output, (task, groups) in regrouped.items():
        outputs[output] = Regroup(groups, name=output)(outputs[task.name])
    return keras.Model(backbone.input, outputs, name=name)

"""TCGF-ResNet (paper 1): ResNet50 with CBAM in its identity blocks and GELU, for grey faces."""

from collections.abc import Collection, Sequence

from keras import Model, initializers, ops

from tfface.layers import ChannelAttention, GreyImage, SpatialAttention, cbam
from tfface.models.resnet import resnet
from tfface.tasks import Task


def tcgf_resnet(
    tasks: Sequence[Task],
    input_shape: tuple[int, int, int] = (224, 224, 3),
    activation: str = "gelu",
    attention: bool = True,
    depth: int = 50,
    name: str = "tcgf_resnet",
) -> Model:
    """Build paper 1's network.

    Figure 1 and section 3.1: CBAM in each of the 12 identity blocks, GELU wherever ResNet50 has ReLU, batch norm before
    the activation, global maximum and global average pooling before the classifier. The paper does not say how the
    two pooled vectors meet; here they stand side by side. Convolutions have biases, as in keras.applications: 23.6
    million parameters of ResNet50 with four classes, 1.8 million of the attention, 8,192 of the second pooled vector.

    The classifier starts near zero (a standard deviation of 0.001), with all classes alike: maxima are several times as
    large as averages, and from Keras' own start some faces are told with certainty, and wrongly, before anything is
    learnt, from which the network was not seen to come back in three epochs.

    Args:
        tasks: what the heads learn.
        input_shape: `(height, width, 3)`, sides of at least 32 pixels.
        activation: name of a Keras activation; "relu" for table 1.
        attention: False leaves CBAM out, for figure 7.
        depth: 10, 18, 34, 50, 101 or 152; 50 in the paper.
        name: name of the model.

    Returns:
        A functional `keras.Model`, `(batch, height, width, 3)` RGB in [0, 255] -> a dict: task -> `(batch, width)`
        float32.

    Raises:
        ValueError: an argument out of range.
    """
    return resnet(
        tasks,
        depth,
        input_shape,
        activation=activation,
        attention=cbam if attention else None,
        use_bias=True,
        pooling=("avg", "max"),
        preprocessing=GreyImage(name="grey"),
        head_initializer=initializers.RandomNormal(stddev=0.001),
        name=name,
    )


def open_attention(model: Model, names: Collection[str]) -> None:
    """Let fresh attention, put into a network that was trained without it, begin as if it were not there.

    Fresh gates are about one half, over channels and again over places, so what a carried block adds shrinks to a
    quarter, unevenly, and the network forgets what it knew. Here each gate is exactly one half at the start, and the
    batch norm before both gives four times as much.

    Args:
        model: a `tcgf_resnet` whose convolutions and batch norms hold a trained network's weights.
        names: the attention layers that are fresh.

    Raises:
        ValueError: only one half of a block's attention is fresh.
    """
    for layer in model.layers:
        if not isinstance(layer, ChannelAttention) or layer.name not in names:
            continue
        block = layer.name.removesuffix("_attention_channel")
        spatial = model.get_layer(f"{block}_attention_spatial")
        if spatial.name not in names or not isinstance(spatial, SpatialAttention):
            raise ValueError(f"`names` must hold both attention layers of {block}. Received: {layer.name} alone")
        for weight in (layer.output_kernel, layer.output_bias, spatial.kernel):
            weight.assign(ops.zeros_like(weight))
        norm = model.get_layer(f"{block}_3_bn")
        for weight in (norm.gamma, norm.beta):
            weight.assign(4 * weight)

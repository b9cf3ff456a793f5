"""ResNet-10 to -152 (He et al., Deep Residual Learning for Image Recognition, CVPR 2016), and the plain networks of the
same depth that its section 4.1 compares them with."""

from collections.abc import Callable, Sequence

from keras import Model, layers

from tfface.layers import task_heads
from tfface.tasks import Task

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Depth -> blocks in each of the four stages: basic blocks up to 34, bottlenecks from 50 on (table 1, but for 10)."""

MOMENTUM = 0.9
"""Of the moving statistics, as in most code for this network: Keras' 0.99 lags behind a training of few steps."""


def resnet(
    tasks: Sequence[Task],
    depth: int = 50,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    activation: str = "relu",
    attention: Callable | None = None,
    shortcuts: bool = True,
    use_bias: bool = False,
    pooling: tuple[str, ...] = ("avg",),
    preprocessing: Callable | None = None,
    head_initializer="glorot_uniform",
    name: str = "",
) -> Model:
    """Build a residual network with a head for each task.

    Layers bear the names that they have in `keras.applications.ResNet50`, whose weights (with `use_bias`) fit in
    order: stride in a bottleneck's first convolution, batch norm before the activation.

    Args:
        tasks: what the heads learn.
        depth: 10, 18, 34, 50, 101 or 152.
        input_shape: `(height, width, 3)`, sides of at least 32 pixels.
        activation: name of a Keras activation.
        attention: `(tensor, name) -> tensor` of the same shape, put behind the last batch norm of each identity block,
            before the addition; the blocks that change the shape have none (paper 1, section 3.1).
        shortcuts: False leaves out every shortcut: the plain network of the same depth.
        use_bias: whether convolutions have a bias; before a batch norm it does nothing, but published counts hold it.
        pooling: "avg", "max" or both: how the last maps become features, side by side.
        preprocessing: what is done to the pixels first; None scales them to [-1, 1].
        head_initializer: of the heads' kernels, a Keras initializer.
        name: name of the model; "resnet34", "plain34" unless given.

    Returns:
        A functional `keras.Model`, `(batch, height, width, 3)` RGB in [0, 255] -> a dict: task -> `(batch, width)`
        float32.

    Raises:
        ValueError: an argument out of range.
    """
    if depth not in BLOCKS:
        raise ValueError(f"`depth` must be one of {', '.join(map(str, BLOCKS))}. Received: {depth}")
    if attention is not None and not shortcuts:
        raise ValueError("`attention` stands before the addition: it needs `shortcuts`. Received: shortcuts=False")
    if not pooling or set(pooling) - {"avg", "max"}:
        raise ValueError(f"`pooling` must hold 'avg', 'max' or both. Received: {pooling}")
    block = _basic_block if depth < 50 else _bottleneck
    options = {"activation": activation, "attention": attention, "shortcuts": shortcuts, "use_bias": use_bias}
    inputs = layers.Input(input_shape)
    x = (preprocessing or layers.Rescaling(1 / 127.5, -1.0, name="rescale"))(inputs)
    x = layers.ZeroPadding2D(3, name="conv1_pad")(x)
    x = layers.Conv2D(64, 7, 2, use_bias=use_bias, kernel_initializer="he_normal", name="conv1_conv")(x)
    x = layers.BatchNormalization(momentum=MOMENTUM, epsilon=1.001e-5, name="conv1_bn")(x)
    x = layers.Activation(activation, name="conv1_relu")(x)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1_pool")(x)
    for stage, count in enumerate(BLOCKS[depth], start=2):
        for number in range(1, count + 1):
            stride = 2 if number == 1 and stage > 2 else 1
            x = block(x, 64 << (stage - 2), stride, f"conv{stage}_block{number}", **options)
    pools = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
    pooled = [pools[kind](name=f"{kind}_pool")(x) for kind in pooling]
    features = layers.Concatenate(name="features")(pooled) if len(pooled) > 1 else pooled[0]
    name = name or f"{'resnet' if shortcuts else 'plain'}{depth}"
    return Model(inputs, task_heads(features, tasks, head_initializer), name=name)


def _convolution(x, filters, size, stride, use_bias, name):
    x = layers.Conv2D(
        filters,
        size,
        stride,
        padding="same",
        use_bias=use_bias,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return layers.BatchNormalization(momentum=MOMENTUM, epsilon=1.001e-5, name=f"{name}_bn")(x)


def _basic_block(x, filters, stride, name, activation, use_bias, **options):
    y = _convolution(x, filters, 3, stride, use_bias, f"{name}_1")
    y = layers.Activation(activation, name=f"{name}_1_relu")(y)
    y = _convolution(y, filters, 3, 1, use_bias, f"{name}_2")
    return _joined(x, y, stride, name, activation, use_bias, **options)


def _bottleneck(x, filters, stride, name, activation, use_bias, **options):
    y = _convolution(x, filters, 1, stride, use_bias, f"{name}_1")
    y = layers.Activation(activation, name=f"{name}_1_relu")(y)
    y = _convolution(y, filters, 3, 1, use_bias, f"{name}_2")
    y = layers.Activation(activation, name=f"{name}_2_relu")(y)
    y = _convolution(y, 4 * filters, 1, 1, use_bias, f"{name}_3")
    return _joined(x, y, stride, name, activation, use_bias, **options)


def _joined(x, y, stride, name, activation, use_bias, attention, shortcuts):
    if shortcuts:
        if x.shape[-1] != y.shape[-1] or stride != 1:
            x = _convolution(x, y.shape[-1], 1, stride, use_bias, f"{name}_0")
        elif attention is not None:
            y = attention(y, f"{name}_attention")
        y = layers.Add(name=f"{name}_add")([x, y])
    return layers.Activation(activation, name=f"{name}_out")(y)

"""The residual network of paper 5, from an aligned face to its embedding, and the network it was cut down from."""

from keras import Model, initializers, layers

STAGES = ((3, 64), (4, 128), (14, 256), (3, 512))
"""Blocks and channels of the four stages (paper 5, table 1, which has LResNet50E's counts)."""

MOMENTUM = 0.9


def recognition_resnet(
    block: str = "table1",
    input_shape=(112, 96, 3),
    embedding_width: int = 512,
    stages=STAGES,
    name: str = "",
):
    """Build the network.

    - `"table1"`, the paper's: a first convolution 3x3, 64 with stride 2, then blocks of 1x1, C/2 and 3x3, C (the first
      stage 1x1, 64 and 3x3, 64), batch norm and ReLU after each, average pooling, a dense layer: 9.4 million
      parameters at 512. The table gives no strides but the first; the later stages halve the maps, as in ResNet-50. The
      batch norm behind the dense layer is the ancestor's, not the table's.
    - `"ir"`, LResNet50E-IR of the ArcFace and FROM codes: a first convolution of stride 1, blocks of batch norm, 3x3,
      C, batch norm, PReLU, 3x3, C, batch norm, every stage halves; flattened, batch norm, dropout 0.4, dense, batch
      norm: 41.8 million.

    References: paper 5, table 1; Deng et al., ArcFace (CVPR 2019), section 3.1.

    Args:
        block: "table1" or "ir".
        input_shape: `(height, width, 3)`, pixels, multiples of 16.
        embedding_width: length of the embedding.
        stages: blocks and channels of each stage, at least three.
        name: name of the model; "recognition_table1" unless given.

    Returns:
        A functional `keras.Model`, `(batch, height, width, 3)` RGB in [0, 255] -> `(batch, embedding_width)` float32 of
        length 1, the layer `embedding`. The layers `stage1` ... hold the maps of each stage.

    Raises:
        ValueError: an argument out of range.
    """
    if block not in ("table1", "ir"):
        raise ValueError(f"`block` must be 'table1' or 'ir'. Received: {block}")
    if len(stages) < 3 or len(input_shape) != 3 or any(side is None or side % 16 for side in input_shape[:2]):
        raise ValueError(
            "Expected three stages or more and an input of (height, width, 3) with sides that are multiples of 16. "
            f"Received: {len(stages)} stages, input_shape={input_shape}"
        )
    image = layers.Input(input_shape, name="image")
    x = layers.Rescaling(1 / 127.5, -1.0, name="rescale")(image)
    x = _convolution(x, stages[0][1], 3, 2 if block == "table1" else 1, "conv1")
    x = layers.Activation("relu", name="conv1_relu")(x) if block == "table1" else _prelu(x, "conv1_prelu")
    for stage, (count, filters) in enumerate(stages, start=1):
        for number in range(1, count + 1):
            name_of_block = f"stage{stage}_block{number}"
            if block == "table1":
                stride = 2 if number == 1 and stage > 1 else 1
                x = _table1_block(x, max(filters // 2, stages[0][1]), filters, stride, name_of_block)
            else:
                x = _ir_block(x, filters, 2 if number == 1 else 1, name_of_block)
        x = layers.Identity(name=f"stage{stage}")(x)
    if block == "table1":
        x = layers.GlobalAveragePooling2D(name="pool")(x)
    else:
        x = layers.BatchNormalization(momentum=MOMENTUM, epsilon=2e-5, name="flatten_norm")(x)
        x = layers.Dropout(0.4, name="flatten_dropout")(x)
        x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(embedding_width, use_bias=False, name="fc")(x)
    x = layers.BatchNormalization(momentum=MOMENTUM, epsilon=2e-5, name="fc_norm")(x)
    x = layers.UnitNormalization(dtype="float32", name="embedding")(x)
    return Model(image, x, name=name or f"recognition_{block}")


def _convolution(x, filters, size, stride, name):
    x = layers.Conv2D(
        filters, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    return layers.BatchNormalization(momentum=MOMENTUM, epsilon=2e-5, name=f"{name}_norm")(x)


def _prelu(x, name):
    return layers.PReLU(alpha_initializer=initializers.Constant(0.25), shared_axes=(1, 2), name=name)(x)


def _shortcut(x, filters, stride, name):
    if stride == 1 and x.shape[-1] == filters:
        return x
    return _convolution(x, filters, 1, stride, f"{name}_0")


def _table1_block(x, narrow, filters, stride, name):
    y = _convolution(x, narrow, 1, 1, f"{name}_1")
    y = layers.Activation("relu", name=f"{name}_1_relu")(y)
    y = _convolution(y, filters, 3, stride, f"{name}_2")
    y = layers.Add(name=f"{name}_add")([_shortcut(x, filters, stride, name), y])
    return layers.Activation("relu", name=f"{name}_out")(y)


def _ir_block(x, filters, stride, name):
    y = layers.BatchNormalization(momentum=MOMENTUM, epsilon=2e-5, name=f"{name}_norm")(x)
    y = _convolution(y, filters, 3, 1, f"{name}_1")
    y = _prelu(y, f"{name}_1_prelu")
    y = _convolution(y, filters, 3, stride, f"{name}_2")
    return layers.Add(name=f"{name}_add")([_shortcut(x, filters, stride, name), y])

"""Inception-ResNet-v1, the network of FaceNet, and the reading of its pretrained weights."""

import keras
import numpy as np
from keras import layers

from tfface import weights as pretrained
from tfface.errors import UserError
from tfface.layers import StandardizeImage


def inception_resnet_v1(
    input_shape: tuple[int, int, int] = (160, 160, 3),
    embedding_width: int | None = 128,
    weights: str | None = None,
    standardize: bool = True,
    normalize: bool = False,
    dropout_rate: float = 0.2,
    name: str = "inception_resnet_v1",
) -> keras.Model:
    """Build Inception-ResNet-v1 from a face crop to its embedding.

    The layers carry the names of the original network (`Conv2d_1a_3x3` ... `Block8_6_ScaleSum`, `AvgPool`,
    `Bottleneck`), by which weights are read and by which a recipe names the layer from which it trains.

    References: Szegedy et al., Inception-v4, Inception-ResNet and the Impact of Residual Connections (AAAI 2017),
    figure 15; Schroff et al., FaceNet (CVPR 2015); batch normalisation without a scale, as in Sandberg's `facenet`.

    Args:
        input_shape: `(height, width, 3)`, each side at least 75 pixels.
        embedding_width: length of the embedding, 128 or 512 in published weights. The network has 22,808,144
            parameters at 128.
        weights: None for random initial values, or "facenet" for the pinned pretrained file (embedding_width 128).
        standardize: standardise each image inside the model, so that it takes pixels in [0, 255].
        normalize: L2-normalise the embedding.
        dropout_rate: dropout before the bottleneck, in [0, 1).
        name: name of the model.

    Returns:
        A functional `keras.Model`, `(batch, height, width, 3)` RGB in [0, 255] -> `(batch, embedding_width)`.

    Raises:
        ValueError: `weights` or `input_shape` is not one of the above.
        UserError: the pretrained file cannot be had, or holds other tensors than this network.
    """
    if weights not in (None, "facenet"):
        raise ValueError(f"`weights` must be None or 'facenet'. Received: weights={weights!r}")
    if len(input_shape) != 3 or input_shape[2] != 3 or min(side or 75 for side in input_shape[:2]) < 75:
        raise ValueError(
            f"`input_shape` must be (height, width, 3) with sides of at least 75 pixels. Received: {input_shape}"
        )
    if weights == "facenet" and embedding_width != 128:
        raise ValueError(f"The facenet weights have 128-d embeddings. Received: embedding_width={embedding_width}")

    image = keras.Input(input_shape, name="image")
    x = StandardizeImage(name="standardize")(image) if standardize else image

    x = _conv(x, 32, 3, "Conv2d_1a_3x3", strides=2, padding="valid")
    x = _conv(x, 32, 3, "Conv2d_2a_3x3", padding="valid")
    x = _conv(x, 64, 3, "Conv2d_2b_3x3")
    x = layers.MaxPooling2D(3, 2, name="MaxPool_3a_3x3")(x)
    x = _conv(x, 80, 1, "Conv2d_3b_1x1", padding="valid")
    x = _conv(x, 192, 3, "Conv2d_4a_3x3", padding="valid")
    x = _conv(x, 256, 3, "Conv2d_4b_3x3", strides=2, padding="valid")

    for index in range(1, 6):
        x = _block35(x, f"Block35_{index}")
    x = _reduction_a(x, "Mixed_6a")
    for index in range(1, 11):
        x = _block17(x, f"Block17_{index}")
    x = _reduction_b(x, "Mixed_7a")
    for index in range(1, 6):
        x = _block8(x, f"Block8_{index}")
    x = _block8(x, "Block8_6", scale=1.0, activation=False)

    x = layers.GlobalAveragePooling2D(name="AvgPool")(x)
    x = layers.Dropout(dropout_rate, name="Dropout")(x)
    x = layers.Dense(embedding_width, use_bias=False, name="Bottleneck")(x)
    x = _norm(x, "Bottleneck_BatchNorm")
    if normalize:
        x = layers.UnitNormalization(dtype="float32", name="embedding")(x)
    model = keras.Model(image, x, name=name)
    if weights:
        load_facenet_weights(model)
    return model


def load_facenet_weights(model: keras.Model) -> None:
    """Read the pinned FaceNet file into the layers of `model` that have its names, tensor by tensor.

    The file is opened as plain HDF5: no model is loaded from it and none of its code (marshalled lambdas) is run.

    Args:
        model: a model that holds the layers of `inception_resnet_v1`; its other layers are left alone.

    Raises:
        UserError: the file cannot be had, or a tensor is missing, is left over or has another shape.
    """
    import h5py

    path = pretrained.fetch("facenet")
    own = {layer.name: layer for layer in model.layers if layer.weights}
    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        stored = {name: group for name, group in root.items() if len(group)}
        missing = [name for name in stored if name not in own]
        if missing:
            raise UserError(
                f"The facenet weights hold {len(missing)} layers that this model has not, first {missing[0]}: "
                "expected the layers of inception_resnet_v1 with a 128-d bottleneck."
            )
        for name, group in stored.items():
            for variable in own[name].weights:
                tensor = group[name].get(f"{variable.name}:0")
                if tensor is None or tuple(tensor.shape) != tuple(variable.shape):
                    found = "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"
                    raise UserError(
                        f"The facenet weights do not fit layer {name}: expected {variable.name} of shape "
                        f"{tuple(variable.shape)}, received {found}."
                    )
                variable.assign(np.asarray(tensor))


def _norm(x, name):
    return layers.BatchNormalization(momentum=0.995, epsilon=1e-3, scale=False, name=name)(x)


def _conv(x, filters, kernel, name, strides=1, padding="same"):
    x = layers.Conv2D(filters, kernel, strides=strides, padding=padding, use_bias=False, name=name)(x)
    x = _norm(x, f"{name}_BatchNorm")
    return layers.Activation("relu", name=f"{name}_Activation")(x)


def _residual(x, branches, scale, name, activation=True):
    mixed = layers.Concatenate(name=f"{name}_Concatenate")(branches)
    up = layers.Conv2D(x.shape[-1], 1, padding="same", name=f"{name}_Conv2d_1x1")(mixed)
    if scale != 1.0:
        up = layers.Rescaling(scale, name=f"{name}_Scale")(up)
    x = layers.Add(name=f"{name}_ScaleSum")([x, up])
    return layers.Activation("relu", name=f"{name}_Activation")(x) if activation else x


def _block35(x, name):
    branch0 = _conv(x, 32, 1, f"{name}_Branch_0_Conv2d_1x1")
    branch1 = _conv(x, 32, 1, f"{name}_Branch_1_Conv2d_0a_1x1")
    branch1 = _conv(branch1, 32, 3, f"{name}_Branch_1_Conv2d_0b_3x3")
    branch2 = _conv(x, 32, 1, f"{name}_Branch_2_Conv2d_0a_1x1")
    branch2 = _conv(branch2, 32, 3, f"{name}_Branch_2_Conv2d_0b_3x3")
    branch2 = _conv(branch2, 32, 3, f"{name}_Branch_2_Conv2d_0c_3x3")
    return _residual(x, [branch0, branch1, branch2], 0.17, name)


def _block17(x, name):
    branch0 = _conv(x, 128, 1, f"{name}_Branch_0_Conv2d_1x1")
    branch1 = _conv(x, 128, 1, f"{name}_Branch_1_Conv2d_0a_1x1")
    branch1 = _conv(branch1, 128, (1, 7), f"{name}_Branch_1_Conv2d_0b_1x7")
    branch1 = _conv(branch1, 128, (7, 1), f"{name}_Branch_1_Conv2d_0c_7x1")
    return _residual(x, [branch0, branch1], 0.10, name)


def _block8(x, name, scale=0.20, activation=True):
    branch0 = _conv(x, 192, 1, f"{name}_Branch_0_Conv2d_1x1")
    branch1 = _conv(x, 192, 1, f"{name}_Branch_1_Conv2d_0a_1x1")
    branch1 = _conv(branch1, 192, (1, 3), f"{name}_Branch_1_Conv2d_0b_1x3")
    branch1 = _conv(branch1, 192, (3, 1), f"{name}_Branch_1_Conv2d_0c_3x1")
    return _residual(x, [branch0, branch1], scale, name, activation)


def _reduction_a(x, name):
    branch0 = _conv(x, 384, 3, f"{name}_Branch_0_Conv2d_1a_3x3", strides=2, padding="valid")
    branch1 = _conv(x, 192, 1, f"{name}_Branch_1_Conv2d_0a_1x1")
    branch1 = _conv(branch1, 192, 3, f"{name}_Branch_1_Conv2d_0b_3x3")
    branch1 = _conv(branch1, 256, 3, f"{name}_Branch_1_Conv2d_1a_3x3", strides=2, padding="valid")
    branch2 = layers.MaxPooling2D(3, 2, name=f"{name}_Branch_2_MaxPool_1a_3x3")(x)
    return layers.Concatenate(name=name)([branch0, branch1, branch2])


def _reduction_b(x, name):
    branch0 = _conv(x, 256, 1, f"{name}_Branch_0_Conv2d_0a_1x1")
    branch0 = _conv(branch0, 384, 3, f"{name}_Branch_0_Conv2d_1a_3x3", strides=2, padding="valid")
    branch1 = _conv(x, 256, 1, f"{name}_Branch_1_Conv2d_0a_1x1")
    branch1 = _conv(branch1, 256, 3, f"{name}_Branch_1_Conv2d_1a_3x3", strides=2, padding="valid")
    branch2 = _conv(x, 256, 1, f"{name}_Branch_2_Conv2d_0a_1x1")
    branch2 = _conv(branch2, 256, 3, f"{name}_Branch_2_Conv2d_0b_3x3")
    branch2 = _conv(branch2, 256, 3, f"{name}_Branch_2_Conv2d_1a_3x3", strides=2, padding="valid")
    branch3 = layers.MaxPooling2D(3, 2, name=f"{name}_Branch_3_MaxPool_1a_3x3")(x)
    return layers.Concatenate(name=name)([branch0, branch1, branch2, branch3])

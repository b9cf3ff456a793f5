"""Attention over channels and places (Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018)."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="tfface")
class ChannelAttention(layers.Layer):
    """Weigh the channels: `x * sigmoid(MLP(mean of x) + MLP(maximum of x))`, one MLP for both (equation 2).

    Args:
        reduction: how many times narrower the MLP's hidden layer is than the channels.
        hidden: width of the hidden layer, in place of `reduction`; a pruned network needs it.

    Input and output: `(batch, height, width, channels)`.

    Raises:
        ValueError: fewer channels than `reduction`.
    """

    def __init__(self, reduction: int = 16, hidden: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.reduction, self.hidden = reduction, hidden

    def build(self, shape):
        channels = shape[-1]
        hidden = self.hidden or channels // self.reduction
        if not hidden:
            raise ValueError(f"`reduction` must be at most the channels, {channels}. Received: {self.reduction}")
        self.hidden_kernel = self.add_weight((channels, hidden), initializer="he_normal", name="hidden_kernel")
        self.hidden_bias = self.add_weight((hidden,), initializer="zeros", name="hidden_bias")
        self.output_kernel = self.add_weight((hidden, channels), name="output_kernel")
        self.output_bias = self.add_weight((channels,), initializer="zeros", name="output_bias")

    def call(self, x):
        # Mean and maximum as two rows of one batch: one product instead of two.
        pooled = ops.stack([ops.mean(x, axis=(1, 2)), ops.max(x, axis=(1, 2))], axis=1)
        hidden = ops.relu(ops.matmul(pooled, self.hidden_kernel) + self.hidden_bias)
        weights = ops.sigmoid(ops.sum(ops.matmul(hidden, self.output_kernel) + self.output_bias, axis=1))
        return x * weights[:, None, None]

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "reduction": self.reduction, "hidden": self.hidden}


@keras.saving.register_keras_serializable(package="tfface")
class SpatialAttention(layers.Layer):
    """Weigh the places: `x * sigmoid(convolution of [maximum, mean over the channels])` (equation 3).

    Args:
        kernel_size: side of the convolution, odd; 7 in the paper.

    Input and output: `(batch, height, width, channels)`.
    """

    def __init__(self, kernel_size: int = 7, **kwargs):
        super().__init__(**kwargs)
        self.kernel_size = kernel_size

    def build(self, shape):
        self.kernel = self.add_weight((self.kernel_size, self.kernel_size, 2, 1), name="kernel")

    def call(self, x):
        maps = ops.concatenate([ops.max(x, axis=-1, keepdims=True), ops.mean(x, axis=-1, keepdims=True)], axis=-1)
        return x * ops.sigmoid(ops.conv(maps, self.kernel, padding="same", data_format="channels_last"))

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "kernel_size": self.kernel_size}


def cbam(x, name: str, reduction: int = 16, kernel_size: int = 7):
    """Attend to channels, then to places.

    Adds 2 * channels**2 / reduction + channels / reduction + channels weights for the channels (the MLP has biases, as
    in the authors' code) and 2 * kernel_size**2 for the places.

    Args:
        x: `(batch, height, width, channels)`.
        name: the two layers are `<name>_channel` and `<name>_spatial`.
        reduction: see `ChannelAttention`.
        kernel_size: see `SpatialAttention`.

    Returns:
        A tensor of the same shape.
    """
    x = ChannelAttention(reduction, name=f"{name}_channel")(x)
    return SpatialAttention(kernel_size, name=f"{name}_spatial")(x)

"""Grey images for networks that were made for coloured ones."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfface")
class GreyImage(keras.layers.Layer):
    """Make an image grey, take its own mean off and bring it to [0, 1]: `((grey - mean) / 255 + 1) / 2`.

    Grey is `0.299 R + 0.587 G + 0.114 B`. Reference: paper 1, section 4.1, whose networks take the grey image on three
    channels; the reading of its three steps is that of `tfface.faces.align.mean_centred_grey`.

    Args:
        channels: how often the grey image is repeated.

    Input: `(batch, height, width, 3)`, RGB in [0, 255].
    Output: `(batch, height, width, channels)` in the layer's compute dtype, each image with the mean 0.5.
    """

    def __init__(self, channels: int = 3, **kwargs):
        super().__init__(autocast=False, **kwargs)  # half precision is too coarse for pixels of 0 to 255
        self.channels = channels

    def call(self, images):
        red, green, blue = ops.split(ops.cast(images, "float32"), 3, axis=-1)
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        grey = ((grey - ops.mean(grey, axis=(1, 2), keepdims=True)) / 255 + 1) / 2
        return ops.cast(ops.repeat(grey, self.channels, axis=-1), self.compute_dtype)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.channels)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}

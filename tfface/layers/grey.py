"""Grey images for networks that were made for coloured ones."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfface")
class GreyImage(keras.layers.Layer):
    """Make an image grey, centre it, and scale it to a range of one: `(0.299 R + 0.587 G + 0.114 B) / 255 - mean`.

    Reference: paper 1, section 4.1, whose networks take the grey image on three channels. It centres "on the average"
    and scales "to [0, 1]", which no image can have at once: here the range is one, about the mean.

    Args:
        mean: mean of the grey values, in [0, 1]. The paper does not give it; a face cut by the eyes has about 0.45.
        channels: how often the grey image is repeated.

    Input: `(batch, height, width, 3)`, RGB in [0, 255].
    Output: `(batch, height, width, channels)` in the layer's compute dtype.
    """

    def __init__(self, mean: float = 0.45, channels: int = 3, **kwargs):
        super().__init__(autocast=False, **kwargs)  # half precision is too coarse for pixels of 0 to 255
        self.mean, self.channels = float(mean), channels

    def call(self, images):
        red, green, blue = ops.split(ops.cast(images, "float32"), 3, axis=-1)
        grey = (0.299 * red + 0.587 * green + 0.114 * blue) / 255 - self.mean
        return ops.cast(ops.repeat(grey, self.channels, axis=-1), self.compute_dtype)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.channels)

    def get_config(self):
        return {**super().get_config(), "mean": self.mean, "channels": self.channels}

"""Per-image standardisation, FaceNet's "prewhitening"."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfface")
class StandardizeImage(keras.layers.Layer):
    """Shift and scale each image to mean 0 and standard deviation 1 over all of its pixels and channels.

    A flat image is divided by 1 / sqrt(number of values) instead of its standard deviation, so nothing is divided
    by zero.

    Reference: Schroff et al., FaceNet (CVPR 2015), as preprocessed by Sandberg's `facenet` (`prewhiten`).

    Input: `(batch, height, width, channels)`, any float range.
    Output: the same shape, in the layer's compute dtype.
    """

    def __init__(self, **kwargs):
        # Half precision would lose the small differences of a dark image before the division restores them.
        super().__init__(autocast=False, **kwargs)

    def call(self, images):
        images = ops.cast(images, "float32")
        mean, variance = ops.moments(images, axes=(1, 2, 3), keepdims=True)
        count = ops.cast(ops.prod(ops.shape(images)[1:]), "float32")
        deviation = ops.maximum(ops.sqrt(variance), ops.rsqrt(count))
        return ops.cast((images - mean) / deviation, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

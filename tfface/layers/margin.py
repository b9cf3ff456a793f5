"""Class centres on the unit sphere: what softmax losses with an angular margin are computed from."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfface")
class CosineSimilarity(keras.layers.Layer):
    """Cosine of the angle between features and a learnt centre for each class.

    The margins of SphereFace, ArcFace and CosFace need the true class, so they stand in the loss
    (`tfface.losses.AngularMarginLoss`): this layer has no labels as an input, and serves as it trains. It computes in
    float32 under every policy: near 1, where trained features lie, half precision knows no difference of angles.

    Reference: paper 5, equation 1; Wang et al., CosFace (CVPR 2018), equation 4.

    Args:
        classes: how many centres, >= 2.

    Call arguments: `features`, `(batch, width)`; need not be of length 1.

    Returns:
        `(batch, classes)` float32 in [-1, 1].

    Raises:
        ValueError: fewer than two classes.
    """

    def __init__(self, classes: int, name=None, **kwargs):
        kwargs.setdefault("dtype", "float32")
        super().__init__(name=name, **kwargs)
        if classes < 2:
            raise ValueError(f"`classes` must be at least 2. Received: {classes}")
        self.classes = int(classes)

    def build(self, input_shape):
        self.centres = self.add_weight(
            shape=(input_shape[-1], self.classes), initializer="glorot_uniform", name="centres"
        )

    def call(self, features):
        directions = ops.normalize(ops.cast(features, "float32"), axis=-1)
        return ops.matmul(directions, ops.normalize(ops.cast(self.centres, "float32"), axis=0))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.classes)

    def get_config(self):
        return {**super().get_config(), "classes": self.classes}

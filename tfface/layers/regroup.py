"""Probabilities of few classes as sums of those of many."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="tfface")
class Regroup(keras.layers.Layer):
    """Sum the probabilities of classes that count as one: FairFace's seven races as UTKFace's five, years as groups.

    So one head learns from data sets that divide people differently, and never contradicts itself. No weights.

    Args:
        groups: for each class of the input the index of the group that it falls in.

    Call arguments: `probabilities`, `(batch, len(groups))`.

    Returns:
        `(batch, max(groups) + 1)` float32.

    Raises:
        ValueError: negative indices, or an input of another width.
    """

    def __init__(self, groups, name=None, **kwargs):
        kwargs.setdefault("dtype", "float32")
        super().__init__(name=name, trainable=False, **kwargs)
        self.groups = [int(group) for group in groups]
        if not self.groups or min(self.groups) < 0:
            raise ValueError(f"`groups` must hold indices from 0 on. Received: {groups}")

    def build(self, input_shape):
        if input_shape[-1] != len(self.groups):
            raise ValueError(f"`groups` divides {len(self.groups)} classes. Received an input of {input_shape[-1]}")

    def call(self, probabilities):
        member = np.eye(max(self.groups) + 1, dtype="float32")[self.groups]
        return ops.matmul(ops.cast(probabilities, "float32"), member)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], max(self.groups) + 1)

    def get_config(self):
        config = super().get_config()
        del config["trainable"]
        return {**config, "groups": self.groups}

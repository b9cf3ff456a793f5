"""Losses, each with the equation that it comes from; `keras.ops` only."""

import math

import keras
from keras import ops

LEAST = 1e-36
"""The least probability that is told from 0: float32 knows it, and its inverse."""


def _alike(y_true, y_pred):
    """Both in float32. Class indices are refused: they would be spread over the classes in silence."""
    shapes = tuple(y_true.shape), tuple(y_pred.shape)
    known = zip(*shapes, strict=False)
    if len(shapes[0]) != len(shapes[1]) or any(None not in pair and pair[0] != pair[1] for pair in known):
        raise ValueError(
            "Targets must have the shape of the predictions, (batch, classes); indices of classes become so by "
            f"keras.utils.to_categorical. Received: targets {shapes[0]}, predictions {shapes[1]}."
        )
    return ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")


def age_difference(y_true, y_pred, years):
    """Mean age of the target less that of the prediction, years, `(batch,)` float32.

    Args:
        y_true, y_pred: distributions of shape `(batch, k)`, rows that sum to 1.
        years: age of each class, length k.

    Raises:
        ValueError: targets of another shape than the predictions, or another number of years than of classes.
    """
    y_true, y_pred = _alike(y_true, y_pred)
    if y_pred.shape[-1] != len(years):
        raise ValueError(f"Expected a year for each class. Received: {len(years)} years, {y_pred.shape[-1]} classes.")
    return ops.sum((y_true - y_pred) * ops.convert_to_tensor(years, dtype="float32"), axis=-1)


def _log(probabilities):
    """Logarithm that stays finite, and whose slope vanishes below `LEAST` only."""
    return ops.log(ops.maximum(probabilities, LEAST))


@keras.saving.register_keras_serializable(package="tfface")
class CrossentropyLoss(keras.losses.Loss):
    """Cross-entropy of classes that goes on teaching where a softmax is sure and wrong.

    `loss = -sum_c t_c log p_c`, with `t = (1 - label_smoothing) * y + label_smoothing / classes`.

    Keras' own cuts probabilities off at 1e-7, where its gradient vanishes: on JAX a head that begins beyond it never
    learns (on TensorFlow Keras finds the logits behind a softmax). Here the cut is at 1e-36, on every backend.

    Reference, for `label_smoothing`: Szegedy et al., Rethinking the Inception Architecture for Computer Vision (CVPR
    2016), section 7.

    Args:
        label_smoothing: share of each target that is spread evenly over all classes, in [0, 1).

    Inputs: `y_true` (one-hot, or a blend) and `y_pred` (probabilities) of shape `(batch, classes)`. All is computed in
    float32, here and in the losses below.

    Raises:
        ValueError: a smoothing out of range, or targets of another shape than the predictions.
    """

    def __init__(self, label_smoothing=0.0, reduction="sum_over_batch_size", name="crossentropy", dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype or "float32")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"Expected a label_smoothing in [0, 1). Received: {label_smoothing}")
        self.label_smoothing = float(label_smoothing)

    def call(self, y_true, y_pred):
        y_true, y_pred = _alike(y_true, y_pred)
        spread = self.label_smoothing / y_pred.shape[-1]
        target = (1 - self.label_smoothing) * y_true + spread
        return -ops.sum(target * _log(y_pred), axis=-1)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable(package="tfface")
class AgeDistributionLoss(keras.losses.Loss):
    """Cross-entropy to a distribution over years, plus the absolute error of its mean.

    `loss = -sum_k p_k log q_k + expectation_weight * |sum_k (p_k - q_k) y_k|`, with `p` the target, `q` the
    prediction and `y` the years. The first term shapes the distribution, the second is the error that is reported.

    Reference: Gao et al., Age Estimation Using Expectation of Label Distribution Learning (IJCAI 2018), equations 5
    to 7 (there with Kullback-Leibler divergence, which differs by a constant).

    Args:
        years: age of each class, years, length k.
        expectation_weight: weight of the second term, per year, >= 0.

    Inputs: `y_true` and `y_pred` of shape `(batch, k)`, rows that sum to 1.

    Raises:
        ValueError: a negative weight, targets of another shape than the predictions, or another number of years than of
            classes.
    """

    def __init__(
        self,
        years,
        expectation_weight=0.1,
        reduction="sum_over_batch_size",
        name="age_distribution",
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype or "float32")
        if not expectation_weight >= 0:
            raise ValueError(f"Expected an expectation_weight >= 0. Received: {expectation_weight}")
        self.years = [float(year) for year in years]
        self.expectation_weight = float(expectation_weight)

    def call(self, y_true, y_pred):
        y_true, y_pred = _alike(y_true, y_pred)
        crossentropy = -ops.sum(y_true * _log(y_pred), axis=-1)
        return crossentropy + self.expectation_weight * ops.abs(age_difference(y_true, y_pred, self.years))

    def get_config(self):
        return {
            **super().get_config(),
            "years": self.years,
            "expectation_weight": self.expectation_weight,
        }


@keras.saving.register_keras_serializable(package="tfface")
class FocalLoss(keras.losses.Loss):
    """Focal loss over classes, each of them taken as a yes-or-no question.

    `loss = -sum_c alpha * y_c * (1 - p_c)**gamma * log p_c + (1 - alpha) * (1 - y_c) * p_c**gamma * log(1 - p_c)`

    References: paper 1 (TCGF-ResNet), equation 4, which sums both terms over the classes; Lin et al., Focal Loss for
    Dense Object Detection (ICCV 2017), equation 5.

    Args:
        alpha: weight of the class that is right, in (0, 1); the others have 1 - alpha.
        gamma: how much what is sure already counts less, >= 0.

    Inputs: `y_true` (one-hot) and `y_pred` (a softmax's: rows sum to 1) of shape `(batch, classes)`, two classes or
    more.

    Raises:
        ValueError: alpha or gamma out of range, one class, or targets of another shape than the predictions.
    """

    def __init__(self, alpha=0.25, gamma=2.0, reduction="sum_over_batch_size", name="focal", dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype or "float32")
        if not 0 < alpha < 1 or gamma < 0:
            raise ValueError(f"Expected alpha in (0, 1) and gamma >= 0. Received: alpha={alpha}, gamma={gamma}")
        self.alpha, self.gamma = float(alpha), float(gamma)

    def call(self, y_true, y_pred):
        y_true, y_pred = _alike(y_true, y_pred)
        if y_pred.shape[-1] == 1:
            raise ValueError("Predictions must be of two classes or more, one-hot. Received: one column.")
        p = ops.maximum(y_pred, LEAST)  # of 0, powers below 1 have no slope
        # 1 - p as the sum of the others: float32 knows no number between 1 - 6e-8 and 1, but many near 0.
        rest = ops.maximum(ops.matmul(y_pred, 1 - ops.eye(y_pred.shape[-1])), LEAST)
        right = self.alpha * y_true * rest**self.gamma * ops.log(p)
        others = (1 - self.alpha) * (1 - y_true) * p**self.gamma * ops.log(rest)
        return -ops.sum(right + others, axis=-1)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="tfface")
class AngularMarginLoss(keras.losses.Loss):
    """Softmax over scaled cosines, in which the true class must win by a margin.

    `loss = -log softmax(scale * c)` at the true class `y`, with `c_j = cos(theta_j)` but
    `c_y = psi(m1 * theta_y + m2) - m3`; SphereFace is (m1, 0, 0), ArcFace (1, m2, 0), CosFace (1, 0, m3).
    `psi(a) = (-1)**k * cos(a) - 2 * k` on `[k * pi, (k + 1) * pi]` is the cosine, carried on so that it falls all the
    way: beyond pi the plain cosine would rise again and pull a face away from its class.

    References: paper 5, equation 1; Liu et al., SphereFace (CVPR 2017), equation 6 (psi); Deng et al., ArcFace (CVPR
    2019), equation 4 (the unified form); Wang et al., CosFace (CVPR 2018), equation 4.

    Args:
        m1: factor of the angle, >= 1.
        m2: added to the angle, radians, >= 0.
        m3: taken from the cosine, >= 0. 0.35 in CosFace.
        scale: length to which features are brought, > 0. Paper 5 gives none; 30 in its ancestor.

    Inputs: `y_true` `(batch, 1)` or `(batch,)`, the true class's index (one out of range is of no class: give it the
    weight 0); `y_pred` `(batch, classes)`, cosines, as `tfface.layers.CosineSimilarity` gives them.

    Raises:
        ValueError: a margin or scale out of range, or one-hot targets.
    """

    def __init__(
        self, m1=1.0, m2=0.0, m3=0.35, scale=30.0, reduction="sum_over_batch_size", name="angular_margin", dtype=None
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype or "float32")
        if m1 < 1 or m2 < 0 or m3 < 0 or scale <= 0:
            raise ValueError(
                f"Expected m1 >= 1, m2 >= 0, m3 >= 0 and scale > 0. Received: m1={m1}, m2={m2}, m3={m3}, scale={scale}"
            )
        self.m1, self.m2, self.m3, self.scale = float(m1), float(m2), float(m3), float(scale)

    def call(self, y_true, y_pred):
        if len(y_true.shape) > 1 and y_true.shape[-1] != 1:
            raise ValueError(f"Targets must be indices of classes, (batch, 1). Received: shape {tuple(y_true.shape)}.")
        cosines = ops.cast(y_pred, "float32")
        true = ops.one_hot(ops.cast(ops.reshape(y_true, (-1,)), "int32"), cosines.shape[-1], dtype="float32")
        cosine = ops.sum(true * cosines, axis=-1, keepdims=True)
        logits = self.scale * ops.where(true > 0, self._margin(cosine), cosines)
        return ops.logsumexp(logits, axis=-1) - ops.sum(true * logits, axis=-1)

    def _margin(self, cosine):
        if self.m1 == 1 and self.m2 == 0:  # no way through the angle, whose slope has no bound at 0 and pi
            return cosine - self.m3
        angle = self.m1 * ops.arccos(ops.clip(cosine, -1 + 1e-6, 1 - 1e-6)) + self.m2
        turns = ops.floor(angle / math.pi)
        sign = 1 - 2 * (turns % 2)
        return sign * ops.cos(angle) - 2 * turns - self.m3

    def get_config(self):
        return {**super().get_config(), "m1": self.m1, "m2": self.m2, "m3": self.m3, "scale": self.scale}

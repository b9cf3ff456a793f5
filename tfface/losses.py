"""Losses, each with the equation that it comes from; `keras.ops` only."""

import keras
from keras import ops


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
    """

    def __init__(
        self,
        years,
        expectation_weight=0.1,
        reduction="sum_over_batch_size",
        name="age_distribution",
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.years = [float(year) for year in years]
        self.expectation_weight = float(expectation_weight)

    def call(self, y_true, y_pred):
        crossentropy = -ops.sum(y_true * ops.log(ops.clip(y_pred, 1e-7, 1.0)), axis=-1)
        years = ops.convert_to_tensor(self.years, dtype=y_pred.dtype)
        difference = ops.sum((y_true - y_pred) * years, axis=-1)
        return crossentropy + self.expectation_weight * ops.abs(difference)

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

    Inputs: `y_true` (one-hot) and `y_pred` (probabilities) of shape `(batch, classes)`.
    """

    def __init__(self, alpha=0.25, gamma=2.0, reduction="sum_over_batch_size", name="focal", dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.alpha, self.gamma = float(alpha), float(gamma)

    def call(self, y_true, y_pred):
        p = ops.clip(y_pred, 1e-7, 1 - 1e-7)
        right = self.alpha * y_true * (1 - p) ** self.gamma * ops.log(p)
        others = (1 - self.alpha) * (1 - y_true) * p**self.gamma * ops.log(1 - p)
        return -ops.sum(right + others, axis=-1)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "gamma": self.gamma}

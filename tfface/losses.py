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

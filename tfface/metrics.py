"""Metrics shown during `fit`; `keras.ops` only. What is reported afterwards is computed in `tfface.evaluation`."""

import keras
from keras import ops

from tfface.losses import age_difference


@keras.saving.register_keras_serializable(package="tfface")
class MeanAgeError(keras.metrics.MeanMetricWrapper):
    """Mean absolute error in years of an age said as a distribution: |mean of the target - mean of the prediction|.

    Args:
        years: age of each class, years, length k.

    Inputs: `y_true` and `y_pred` of shape `(batch, k)`, rows that sum to 1.

    Raises:
        ValueError: targets of another shape than the predictions (an age instead of a distribution, say), or another
            number of years than of classes.
    """

    def __init__(self, years, name="mae", dtype=None):
        self.years = [float(year) for year in years]
        super().__init__(self._error, name=name, dtype=dtype)

    def _error(self, y_true, y_pred):
        return ops.abs(age_difference(y_true, y_pred, self.years))

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype, "years": self.years}

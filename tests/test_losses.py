import keras
import numpy as np
import pytest

from tfface.losses import AgeDistributionLoss, FocalLoss
from tfface.metrics import MeanAgeError

TRUTH = np.array([[0.0, 1.0, 0.0]], "float32")
SAID = np.array([[0.2, 0.5, 0.3]], "float32")


def test_age_distribution_loss_by_hand():
    # cross-entropy -log 0.5 = 0.693147; means 20 and 0.2 * 10 + 0.5 * 20 + 0.3 * 30 = 21: one year off
    loss = AgeDistributionLoss([10, 20, 30], expectation_weight=0.1)(TRUTH, SAID)
    assert float(loss) == pytest.approx(0.693147 + 0.1, abs=1e-5)


def test_age_distribution_loss_without_the_expectation_is_crossentropy():
    loss = AgeDistributionLoss([10, 20, 30], expectation_weight=0.0)(TRUTH, SAID)
    assert float(loss) == pytest.approx(float(keras.losses.CategoricalCrossentropy()(TRUTH, SAID)), abs=1e-6)


def test_age_distribution_loss_survives_a_probability_of_zero():
    loss = AgeDistributionLoss([10, 20, 30])(TRUTH, np.array([[1.0, 0.0, 0.0]], "float32"))
    assert np.isfinite(float(loss))


def test_focal_loss_by_hand():
    # right: 0.25 * 0.5**2 * log 0.5 = -0.043322; others: 0.75 * (0.04 * log 0.8 + 0.09 * log 0.7) = -0.030770
    assert float(FocalLoss()(TRUTH, SAID)) == pytest.approx(0.043322 + 0.030770, abs=1e-6)


def test_focal_loss_without_focus_is_binary_crossentropy():
    loss = FocalLoss(alpha=0.5, gamma=0.0)(TRUTH, SAID)
    assert float(loss) == pytest.approx(0.5 * 3 * float(keras.losses.BinaryCrossentropy()(TRUTH, SAID)), abs=1e-6)


def test_focal_loss_survives_certainty():
    for said in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]):
        assert np.isfinite(float(FocalLoss()(TRUTH, np.array([said], "float32"))))


@pytest.mark.parametrize("loss", [AgeDistributionLoss([10, 20, 30], expectation_weight=0.1), FocalLoss()])
def test_gradient_by_finite_differences(loss):
    import tensorflow as tf

    said = tf.Variable(SAID)
    with tf.GradientTape() as tape:
        value = loss(TRUTH, said)
    gradient = tape.gradient(value, said).numpy()[0]
    for column in range(3):
        step = np.zeros((1, 3), "float32")
        step[0, column] = 1e-3
        numeric = (float(loss(TRUTH, SAID + step)) - float(loss(TRUTH, SAID - step))) / 2e-3
        assert gradient[column] == pytest.approx(numeric, rel=2e-2, abs=2e-3)


def test_loss_config_round_trip():
    loss = AgeDistributionLoss([1, 2], expectation_weight=0.3)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.get_config() == loss.get_config()


def test_mean_age_error_by_hand():
    metric = MeanAgeError([10, 20, 30])
    metric.update_state(TRUTH, SAID)  # 1 year
    metric.update_state(TRUTH, np.array([[1.0, 0.0, 0.0]], "float32"))  # 10 years
    assert float(metric.result()) == pytest.approx(5.5, abs=1e-5)
    assert MeanAgeError.from_config(metric.get_config()).years == [10, 20, 30]

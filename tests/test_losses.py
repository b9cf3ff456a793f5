import keras
import numpy as np
import pytest

from tfface.losses import AgeDistributionLoss, AngularMarginLoss, CrossentropyLoss, FocalLoss
from tfface.metrics import MeanAgeError

TRUTH = np.array([[0.0, 1.0, 0.0]], "float32")
SAID = np.array([[0.2, 0.5, 0.3]], "float32")


def test_crossentropy_by_hand():
    # -log 0.5 = 0.693147; smoothed by 0.3: targets 0.1, 0.8, 0.1: 0.1 * 1.609438 + 0.8 * 0.693147 + 0.1 * 1.203973
    assert float(CrossentropyLoss()(TRUTH, SAID)) == pytest.approx(0.693147, abs=1e-5)
    assert float(CrossentropyLoss(0.3)(TRUTH, SAID)) == pytest.approx(0.835859, abs=1e-5)
    theirs = keras.losses.CategoricalCrossentropy(label_smoothing=0.3)(TRUTH, SAID)
    assert float(CrossentropyLoss(0.3)(TRUTH, SAID)) == pytest.approx(float(theirs), abs=1e-6)


def test_crossentropy_teaches_what_is_sure_and_wrong():
    import tensorflow as tf

    logits = tf.Variable([[60.0, 0.0, 0.0]])  # a probability of exp(-60), far below the 1e-7 at which Keras cuts off
    with tf.GradientTape() as tape:
        loss = CrossentropyLoss()(TRUTH, tf.nn.softmax(logits))
    np.testing.assert_allclose(tape.gradient(loss, logits), [[1.0, -1.0, 0.0]], atol=1e-5)
    assert np.isfinite(float(CrossentropyLoss()(TRUTH, np.array([[1.0, 0.0, 0.0]], "float32"))))


def test_age_distribution_loss_by_hand():
    # cross-entropy -log 0.5 = 0.693147; means 20 and 0.2 * 10 + 0.5 * 20 + 0.3 * 30 = 21: one year off
    loss = AgeDistributionLoss([10, 20, 30], expectation_weight=0.1)(TRUTH, SAID)
    assert float(loss) == pytest.approx(0.693147 + 0.1, abs=1e-5)
    # too young costs as too old does: -log 0.2 = 1.609438; the mean 0.7 * 10 + 0.2 * 20 + 0.1 * 30 = 14 is 6 years off
    loss = AgeDistributionLoss([10, 20, 30])(TRUTH, np.array([[0.7, 0.2, 0.1]], "float32"))
    assert float(loss) == pytest.approx(1.609438 + 0.1 * 6, abs=1e-5)


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


@pytest.mark.parametrize(
    "loss", [AgeDistributionLoss([10, 20, 30], expectation_weight=0.1), FocalLoss(), CrossentropyLoss(0.1)]
)
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


COSINES = np.array([[0.1, 0.8, -0.2], [0.2, 0.5, 0.4], [0.3, -0.5, 0.6]], "float32")
WHO = np.array([[1.0], [0.0], [1.0]], "float32")


@pytest.mark.parametrize(
    ("margins", "with_margin"),
    [
        # CosFace: 0.8 - 0.35, 0.2 - 0.35 and -0.5 - 0.35
        ((1.0, 0.0, 0.35), (0.45, -0.15, -0.85)),
        # ArcFace: cos(acos 0.8 + 0.5) = 0.8 cos 0.5 - 0.6 sin 0.5; cos(acos 0.2 + 0.5); cos(2 pi / 3 + 0.5)
        ((1.0, 0.5, 0.0), (0.414411, -0.294217, -0.853987)),
        # SphereFace: cos(4 acos 0.8) = 8c^4 - 8c^2 + 1; 4 acos 0.2 lies beyond pi: -(8c^4 - 8c^2 + 1) - 2; 4 acos -0.5
        # is 8 pi / 3, beyond 2 pi: cos(2 pi / 3) - 4
        ((4.0, 0.0, 0.0), (-0.8432, -2.6928, -4.5)),
    ],
)
def test_angular_margin_by_hand(margins, with_margin):
    loss = AngularMarginLoss(*margins, scale=10.0, reduction=None)(WHO, COSINES)
    for row, (who, cosine) in enumerate(zip((1, 0, 1), with_margin, strict=True)):
        logits = 10 * COSINES[row].astype("float64")
        logits[who] = 10 * cosine
        expected = np.log(np.exp(logits).sum()) - logits[who]
        assert float(loss[row]) == pytest.approx(expected, abs=2e-3)


def test_the_default_margin_is_that_of_cosface():
    # logits 30 * (0.8 - 0.35) = 13.5 of the true class, 3 and -6: log(1 + exp(-10.5) + exp(-19.5)) = 2.75e-5
    assert float(AngularMarginLoss()(WHO[:1], COSINES[:1])) == pytest.approx(2.7539e-5, rel=2e-2)


@pytest.mark.parametrize("margins", [(1.0, 0.0, 0.35), (1.0, 0.5, 0.0), (4.0, 0.0, 0.0), (2.0, 0.3, 0.1)])
def test_a_greater_angle_never_costs_less(margins):
    cosines = np.cos(np.linspace(0, np.pi, 400))[:, None].astype("float32")
    both = np.concatenate([cosines, np.zeros_like(cosines)], axis=1)
    loss = AngularMarginLoss(*margins, reduction=None)(np.zeros((400, 1), "float32"), both)
    assert (np.diff(np.asarray(loss)) > -1e-3).all()


@pytest.mark.parametrize("margins", [(1.0, 0.0, 0.35), (1.0, 0.5, 0.0), (4.0, 0.0, 0.0)])
def test_angular_margin_is_stable_at_the_ends_and_in_half_precision(margins):
    import tensorflow as tf

    loss = AngularMarginLoss(*margins)
    ends = tf.Variable([[1.0, -1.0], [-1.0, 1.0]])
    with tf.GradientTape() as tape:
        value = loss(np.zeros((2, 1), "float32"), ends)
    assert np.isfinite(float(value))
    assert np.isfinite(tape.gradient(value, ends).numpy()).all()
    half = loss(WHO, COSINES.astype("float16"))
    assert half.dtype == "float32"
    assert float(half) == pytest.approx(float(loss(WHO, COSINES)), rel=2e-2)


def test_angular_margin_gradient_by_finite_differences():
    import tensorflow as tf

    loss, said = AngularMarginLoss(1.0, 0.5, 0.1, scale=5.0), tf.Variable(COSINES)
    with tf.GradientTape() as tape:
        value = loss(WHO, said)
    gradient = tape.gradient(value, said).numpy()
    for row, column in np.ndindex(*COSINES.shape):
        step = np.zeros_like(COSINES)
        step[row, column] = 1e-3
        numeric = (float(loss(WHO, COSINES + step)) - float(loss(WHO, COSINES - step))) / 2e-3
        assert gradient[row, column] == pytest.approx(numeric, rel=2e-2, abs=2e-3)


def test_impossible_margins_are_refused():
    with pytest.raises(ValueError, match=r"m1=0\.5"):
        AngularMarginLoss(m1=0.5)


@pytest.mark.parametrize("loss", [CrossentropyLoss(), FocalLoss(), AgeDistributionLoss([10, 20, 30])])
@pytest.mark.parametrize("indices", [np.array([1, 0, 2, 1]), np.array([[1], [0], [2], [1]])])
def test_indices_of_classes_are_refused_where_shares_are_wanted(loss, indices):
    with pytest.raises(ValueError, match="to_categorical"):
        loss(indices.astype("float32"), np.full((4, 3), 1 / 3, "float32"))


@pytest.mark.parametrize("make", [AgeDistributionLoss, MeanAgeError])
def test_ages_and_years_that_would_be_spread_over_the_classes_are_refused(make):
    said = np.full((4, 3), 1 / 3, "float32")
    with pytest.raises(ValueError, match="shape of the predictions"):
        make([10, 20, 30])(np.array([[10.0], [20.0], [30.0], [10.0]], "float32"), said)
    with pytest.raises(ValueError, match="1 years, 3 classes"):
        make([10])(said, said)


def test_margins_take_indices_with_and_without_an_axis():
    cosines = np.random.default_rng(0).uniform(-1, 1, (4, 3)).astype("float32")
    indices = np.array([1, 0, 2, 1])
    loss = AngularMarginLoss(reduction=None)
    np.testing.assert_array_equal(loss(indices, cosines), loss(indices[:, None], cosines))
    with pytest.raises(ValueError, match="indices of classes"):
        loss(np.eye(3)[indices], cosines)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CrossentropyLoss(1.0),
        lambda: FocalLoss(alpha=2),
        lambda: FocalLoss(gamma=-1),
        lambda: AgeDistributionLoss([1], -1),
    ],
)
def test_what_is_out_of_range_is_refused(make):
    with pytest.raises(ValueError, match="Expected"):
        make()


def test_focal_loss_teaches_what_is_sure_and_wrong():
    import tensorflow as tf

    logits = tf.Variable([[30.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        loss = FocalLoss()(TRUTH, tf.nn.softmax(logits))
    # The class that is right: 0.25 * 30; the first: 0.75 * -log of what the two others have, 2 * exp(-30).
    assert float(loss) == pytest.approx(7.5 + 0.75 * (30 - np.log(2)), abs=1e-4)
    np.testing.assert_allclose(tape.gradient(loss, logits), [[1.0, -0.625, -0.375]], atol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_has_a_slope_at_the_ends(gamma):
    import tensorflow as tf

    said = tf.Variable([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        loss = FocalLoss(gamma=gamma)(np.repeat(TRUTH, 2, axis=0), said)
    assert np.isfinite(tape.gradient(loss, said)).all()


@pytest.mark.parametrize("loss", [CrossentropyLoss, FocalLoss])
def test_half_precision_is_finite(loss):
    eye = np.eye(3, dtype="float16")
    assert float(loss(dtype="float16")(eye, eye)) == pytest.approx(0, abs=1e-5)

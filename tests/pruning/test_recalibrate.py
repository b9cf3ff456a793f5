import keras
import numpy as np
import pytest
from keras import layers

from tfface.pruning import recalibrate


def network():
    keras.utils.set_random_seed(0)
    inputs = layers.Input((3,))
    x = layers.BatchNormalization(name="first", epsilon=1e-6)(inputs)
    x = layers.Dropout(0.5)(x)
    x = layers.Dense(4, name="dense")(x)
    return keras.Model(inputs, layers.BatchNormalization(name="second", epsilon=1e-6)(x))


def test_statistics_are_those_of_the_data_and_nothing_else_changes():
    rng = np.random.default_rng(0)
    batches = [rng.normal(5, 2, (64, 3)).astype("float32") for _ in range(4)]
    model = network()
    model.get_layer("first").trainable = False
    kernel = model.get_layer("dense").kernel.numpy()
    assert recalibrate(model, batches) == 4
    np.testing.assert_allclose(
        model.get_layer("first").moving_mean, np.mean([b.mean(0) for b in batches], axis=0), rtol=1e-5
    )
    np.testing.assert_allclose(
        model.get_layer("first").moving_variance, np.mean([b.var(0) for b in batches], axis=0), rtol=1e-4
    )
    outputs = np.concatenate([model(batch) for batch in batches])
    np.testing.assert_allclose(outputs.mean(0), 0, atol=0.05)  # dropout would have doubled the variance
    np.testing.assert_allclose(outputs.std(0), 1, atol=0.05)
    np.testing.assert_array_equal(model.get_layer("dense").kernel, kernel)
    assert model.get_layer("first").momentum == 0.99
    assert not model.get_layer("first").trainable
    assert model.layers[2].rate == 0.5


def test_every_call_of_a_shared_norm_counts_alike():
    inputs = layers.Input((3,))
    norm = layers.BatchNormalization()
    model = keras.Model(inputs, [norm(inputs), norm(layers.Rescaling(1.0, 10.0)(inputs))])
    batches = [np.random.default_rng(seed).normal(size=(64, 3)).astype("float32") for seed in range(3)]
    assert recalibrate(model, batches) == 3
    np.testing.assert_allclose(norm.moving_mean, np.mean(batches, axis=(0, 1)) + 5, rtol=1e-4)


class Noise(layers.Layer):
    """A layer of one's own that is random in training, under no name that could be known."""

    def call(self, x, training=False):
        return x + 100 * keras.random.normal(keras.ops.shape(x)) if training else x


@pytest.mark.parametrize(
    "noise",
    [layers.AlphaDropout(0.5), layers.GaussianDropout(0.5), layers.GaussianNoise(1.0), layers.Dropout(0.5), Noise()],
    ids=lambda layer: type(layer).__name__,
)
def test_nothing_random_is_in_the_statistics(noise):
    inputs = layers.Input((3,))
    model = keras.Model(inputs, layers.BatchNormalization(name="norm")(noise(inputs)))
    batch = np.random.default_rng(0).normal(5, 2, (64, 3)).astype("float32")
    recalibrate(model, [batch])
    np.testing.assert_allclose(model.get_layer("norm").moving_variance, batch.var(0), rtol=1e-4)
    statistics = np.array(model.get_layer("norm").moving_mean)
    model(batch + 1, training=False)  # the norm predicts again
    np.testing.assert_array_equal(model.get_layer("norm").moving_mean, statistics)
    model(batch + 1, training=True)
    assert (np.array(model.get_layer("norm").moving_mean) != statistics).all()


def test_nothing_to_go_by_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        recalibrate(network(), [])
    plain = keras.Sequential([layers.Input((3,)), layers.Dense(1)])
    with pytest.raises(ValueError, match="must have batch norms"):
        recalibrate(plain, [np.zeros((2, 3))])

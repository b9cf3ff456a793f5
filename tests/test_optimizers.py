import keras
import numpy as np
import pytest

from tfface.optimizers import DiscriminativeAdam, DiscriminativeSGD, discriminative


def small_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="low"), keras.layers.Dense(1, name="high")])


def moved(optimizer):
    model = small_model()
    before = {layer.name: layer.get_weights()[0].copy() for layer in model.layers}
    model.compile(optimizer, "mse")
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(8, 3)), rng.normal(size=(8, 1)), batch_size=8, verbose=0)
    return {layer.name: layer.get_weights()[0] - before[layer.name] for layer in model.layers}


def test_sgd_moves_a_layer_by_its_factor():
    plain = moved(keras.optimizers.SGD(0.1))
    scaled = moved(DiscriminativeSGD(0.1, factors={"low": 0.25}))
    np.testing.assert_allclose(scaled["low"], 0.25 * plain["low"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(scaled["high"], plain["high"], rtol=1e-4, atol=1e-7)


def test_a_factor_of_zero_freezes():
    assert not moved(DiscriminativeAdam(0.1, factors={"low": 0.0}))["low"].any()


def test_without_factors_it_is_the_plain_optimizer():
    plain, scaled = moved(keras.optimizers.Adam(0.1)), moved(DiscriminativeAdam(0.1))
    np.testing.assert_array_equal(plain["low"], scaled["low"])


def test_config_round_trip():
    optimizer = DiscriminativeAdam(0.1, factors={"low": 0.5})
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is DiscriminativeAdam
    assert again.factors == {"low": 0.5}


@pytest.mark.parametrize("optimizer_class", [keras.optimizers.RMSprop, keras.optimizers.AdamW])
def test_any_optimizer_can_be_made_discriminative(optimizer_class):
    cls = discriminative(optimizer_class)
    assert cls is discriminative(optimizer_class)
    assert not moved(cls(0.1, factors={"low": 0.0}))["low"].any()


def test_names_of_nothing_that_is_trained_are_told():
    with pytest.warns(UserWarning, match="1 of 2 factors name nothing that is trained: lwo"):
        moved(DiscriminativeAdam(0.1, factors={"lwo": 0.0, "high": 0.5}))


def test_what_was_left_out_of_weight_decay_stays_out():
    model = small_model()
    optimizer = discriminative(keras.optimizers.AdamW)(0.01, weight_decay=10.0, factors={"low": 0.0})
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    bias = model.get_layer("high").bias
    bias.assign([1.0])
    model.compile(optimizer, lambda truth, said: 0.0 * said)
    model.fit(np.ones((8, 3)), np.ones((8, 1)), batch_size=8, verbose=0)
    np.testing.assert_array_equal(bias, [1.0])
    assert np.abs(model.get_layer("high").kernel - small_model().get_layer("high").kernel).max() > 0
    np.testing.assert_array_equal(model.get_layer("low").kernel, small_model().get_layer("low").kernel)


@pytest.mark.parametrize("optimizer_class", [keras.optimizers.SGD, keras.optimizers.AdamW])
def test_weight_decay_goes_with_the_rate(optimizer_class):
    model = small_model()
    before = model.get_weights()
    optimizer = discriminative(optimizer_class)(0.1, weight_decay=0.1, factors={"low": 0.01})
    model.compile(optimizer, lambda truth, said: 0.0 * said)
    model.fit(np.ones((8, 3)), np.ones((8, 1)), batch_size=8, epochs=2, verbose=0)
    for shrunk, (was, now) in zip(
        (0.9999, 0.9999, 0.99, 0.99), zip(before, model.get_weights(), strict=True), strict=True
    ):
        np.testing.assert_allclose(now, was * shrunk**2, rtol=1e-5)
    assert optimizer.weight_decay == 0.1


def test_its_variables_are_its_own():
    model = small_model()
    optimizer = DiscriminativeAdam(0.01, factors={"low": 0.0})
    optimizer.exclude_from_weight_decay([model.get_layer("high").bias])
    optimizer.build(model.trainable_variables)
    assert not {id(variable) for variable in optimizer.variables} & {id(variable) for variable in model.variables}
    plain = keras.optimizers.Adam(0.01)
    plain.build(model.trainable_variables)
    assert len(optimizer.variables) == len(plain.variables)

import keras
import numpy as np
import pytest

from tfface.errors import UserError
from tfface.optimizers import DiscriminativeAdam, DiscriminativeSGD, discriminative, discriminative_factors


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


def test_weight_decay_that_replicas_make_in_turns_goes_with_the_rate():
    waiting = []

    class Merged(keras.optimizers.SGD):  # as in merge_call: what all asked for, once the last replica has come
        def _apply_weight_decay(self, variables):
            waiting.append((self, variables))

    model = small_model()
    before = model.get_weights()
    optimizer = discriminative(Merged)(0.1, weight_decay=0.1, factors={"low": 0.01})
    optimizer.build(model.trainable_variables)
    for _replica in range(2):
        optimizer._apply_weight_decay(model.trainable_variables)
    for each, variables in waiting[: len(waiting) // 2]:
        keras.optimizers.SGD._apply_weight_decay(each, variables)
    shrunk = [now / was for was, now in zip(before[::2], model.get_weights()[::2], strict=True)]
    np.testing.assert_allclose(shrunk[0], 0.9999, rtol=1e-5)
    np.testing.assert_allclose(shrunk[1], 0.99, rtol=1e-5)


def test_the_decay_that_muon_has_of_its_own_goes_with_the_rate():
    model = small_model()
    model.get_layer("low").bias.assign(np.ones(4))  # Muon leaves biases to Adam, with another decay
    optimizer = discriminative(keras.optimizers.Muon)(0.1, adam_weight_decay=0.1, factors={"low": 0})
    model.compile(optimizer, "mse")
    model.fit(np.ones((8, 3)), np.ones((8, 1)), batch_size=8, verbose=0)
    np.testing.assert_array_equal(model.get_layer("low").bias, np.ones(4))


def test_a_decay_that_goes_on_to_that_of_the_base_class_goes_with_the_rate():
    class Twice(keras.optimizers.SGD):
        def _apply_weight_decay(self, variables):
            super()._apply_weight_decay(variables)
            super()._apply_weight_decay(variables)

    model = small_model()
    before = model.get_weights()
    optimizer = discriminative(Twice)(0.1, weight_decay=0.1, factors={"low": 0.01})
    optimizer.build(model.trainable_variables)
    optimizer._apply_weight_decay(model.trainable_variables)
    shrunk = [now / was for was, now in zip(before[::2], model.get_weights()[::2], strict=True)]
    np.testing.assert_allclose(shrunk[0], 0.9999**2, rtol=1e-5)
    np.testing.assert_allclose(shrunk[1], 0.99**2, rtol=1e-5)


def test_another_class_of_the_same_name_is_not_mistaken():
    first, second = (type("Mine", (base,), {}) for base in (keras.optimizers.SGD, keras.optimizers.Adam))
    assert issubclass(discriminative(first), keras.optimizers.SGD)
    assert issubclass(discriminative(second), keras.optimizers.Adam)


def test_names_in_place_of_groups_are_refused():
    with pytest.raises(UserError, match="lists of names"):
        discriminative_factors(["stem", "bulk"], 1e-5, 1e-4)


def test_its_variables_are_its_own():
    model = small_model()
    optimizer = DiscriminativeAdam(0.01, factors={"low": 0.0})
    optimizer.exclude_from_weight_decay([model.get_layer("high").bias])
    optimizer.build(model.trainable_variables)
    assert not {id(variable) for variable in optimizer.variables} & {id(variable) for variable in model.variables}
    plain = keras.optimizers.Adam(0.01)
    plain.build(model.trainable_variables)
    assert len(optimizer.variables) == len(plain.variables)

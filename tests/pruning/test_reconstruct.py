"""Kernels fitted anew behind a cut: exact where what is left holds all that was lost, near where it does not."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfface import pruning
from tfface.pruning.reconstruct import _read, reconstruct


def filled(model, seed=0):
    """The model with weights that a trained one might have."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        spread = random.uniform(0.5, 1.5, variable.shape)
        positive = any(word in variable.name for word in ("variance", "gamma"))
        variable.assign(spread if positive else random.normal(0, 0.4, variable.shape))
    return model


def residual():
    """Convolutions with norms, a shortcut with a convolution of its own, a dense head with a sigmoid."""
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(image)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="second")(x)
    x = layers.Add()([layers.Rescaling(0.5)(x), layers.Conv2D(8, 1, strides=2, name="shortcut")(image)])
    x = layers.GlobalAveragePooling2D()(layers.Activation("relu")(x))
    return filled(keras.Model(image, layers.Dense(4, activation="sigmoid", name="head")(x)))


def images(count=96, seed=1):
    return np.random.default_rng(seed).normal(0, 1, (count, 12, 10, 3)).astype("float32")


def predicted(model, inputs):
    return model.predict(inputs, verbose=0)


def test_without_a_cut_nothing_changes():
    model = residual()
    same = reconstruct(model, {}, [images()])
    np.testing.assert_allclose(predicted(same, images()), predicted(model, images()), atol=1e-6)


@pytest.mark.parametrize("norm", [True, False])
def test_what_is_told_twice_is_not_missed(norm):
    image = keras.Input((12, 10, 3))
    x = layers.Conv2D(8, 3, name="first")(image)
    x = layers.Conv2D(6, 3, use_bias=not norm, name="second")(layers.Activation("relu")(x))
    x = layers.BatchNormalization(name="norm")(x) if norm else x
    model = filled(keras.Model(image, layers.GlobalMaxPooling2D()(x)))
    kernel, bias = model.get_layer("first").get_weights()
    kernel[..., 4:], bias[4:] = kernel[..., :4], bias[:4]
    model.get_layer("first").set_weights([kernel, bias])
    keep = {"first": [0, 1, 2, 3]}
    whole, others = predicted(model, images()), predicted(model, images(seed=2))
    fitted = reconstruct(model, keep, [images()[:48], images()[48:]], ridge=1e-9)
    assert fitted.get_layer("first").filters == 4
    np.testing.assert_allclose(predicted(fitted, images()), whole, atol=1e-3)
    np.testing.assert_allclose(predicted(fitted, images(seed=2)), others, atol=1e-3)  # and on what it was not fitted on
    assert np.abs(predicted(pruning.cut(model, keep), images()) - whole).max() > 0.5


def test_a_cut_costs_less_on_other_images_too():
    model = residual()
    groups = pruning.channel_groups(model)
    keep = pruning.choose(groups, pruning.importance(model, groups), 0.25, multiple_of=1)
    whole, others = predicted(model, images()), images(seed=2)
    plain, fitted = pruning.cut(model, keep, groups), reconstruct(model, keep, [images()], groups)
    wrong = [np.abs(predicted(each, others) - predicted(model, others)).mean() for each in (plain, fitted)]
    assert wrong[1] < 0.3 * wrong[0]
    np.testing.assert_array_equal(predicted(model, images()), whole)  # the model itself is left as it was


def test_a_layer_makes_up_for_what_its_shortcut_lost():
    """The same network and cut, with and without a way back from the sum to the layer that is added."""
    wrong = []
    for behind in (layers.Rescaling(0.2), lambda values: 0.2 * values):
        image = keras.Input((12, 10, 3))
        trunk = layers.Activation("relu")(layers.Conv2D(8, 1, name="before")(image))
        trunk = layers.Conv2D(4, 1, name="shortcut")(trunk)
        branch = layers.Activation("relu")(layers.Conv2D(32, 1, name="branch")(image))
        branch = layers.Activation("relu")(branch)  # the shortcut is the shorter way, so that it is known before
        branch = behind(layers.Conv2D(4, 1, name="added")(branch))
        model = filled(keras.Model(image, layers.Add()([trunk, branch])))
        groups = pruning.channel_groups(model, untouched=("added",))
        fitted = reconstruct(model, {"before": [0, 1]}, [images()], groups)
        wrong.append(np.abs(predicted(fitted, images(seed=2)) - predicted(model, images(seed=2))).mean())
    assert wrong[0] < 0.5 * wrong[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": "same", "strides": 2},
        {"kernel_size": (1, 7), "padding": "same"},
        {"kernel_size": 3, "padding": "valid", "strides": (2, 1)},
        {"kernel_size": 3, "padding": "same", "dilation_rate": 2},
        {"kernel_size": 2, "padding": "same", "strides": 3},
    ],
)
def test_reads_what_the_layer_reads(settings):
    layer = layers.Conv2D(5, **settings)
    inputs = images(4)
    outputs = ops.convert_to_numpy(layer(inputs))
    places = np.unravel_index(np.arange(outputs[..., 0].size), outputs.shape[:-1])
    kernel = ops.convert_to_numpy(layer.kernel).reshape(-1, 5)
    np.testing.assert_allclose(_read(layer, inputs, places) @ kernel, outputs[places], atol=1e-5)


def test_models_inside_and_layers_called_twice():
    shared = layers.Conv2D(6, 1, name="shared")
    inner_image = keras.Input((12, 10, 6))
    inner = keras.Model(inner_image, layers.Conv2D(6, 3, name="within")(inner_image), name="inner")
    image = keras.Input((12, 10, 3))
    x = layers.Conv2D(12, 3, padding="same", name="first")(image)
    x = layers.Conv2D(6, 1, name="second")(layers.Activation("relu")(x))
    x = shared(shared(x))
    model = filled(keras.Model(image, layers.GlobalAveragePooling2D()(inner(x))))
    keep = {"first": np.arange(8)}
    fitted = reconstruct(model, keep, [images()])
    np.testing.assert_array_equal(fitted.get_layer("shared").kernel, model.get_layer("shared").kernel)
    plain = pruning.cut(model, keep)
    wrong = [np.abs(predicted(each, images()) - predicted(model, images())).mean() for each in (plain, fitted)]
    assert wrong[1] < 0.5 * wrong[0]


def test_an_output_gets_no_offset_that_only_a_norm_behind_it_takes_away():
    image = keras.Input((12, 10, 3))
    x = layers.Conv2D(12, 3, activation="relu", name="first")(image)
    seen = layers.Conv2D(5, 3, use_bias=False, name="seen")(x)
    alone = filled(keras.Model(image, seen))
    both = keras.Model(image, [seen, layers.BatchNormalization()(seen)])
    keep = {"first": np.arange(6)}
    fitted = [reconstruct(model, keep, [images()]) for model in (alone, both)]
    np.testing.assert_allclose(fitted[1].get_layer("seen").kernel, fitted[0].get_layer("seen").kernel, atol=1e-6)


def test_a_norm_along_another_axis_takes_no_offset():
    image = keras.Input((12, 10, 3))
    x = layers.Conv2D(12, 3, activation="relu", name="first")(image)
    x = layers.Conv2D(5, 3, use_bias=False, name="seen")(x)
    model = filled(keras.Model(image, layers.BatchNormalization(axis=1, name="norm")(x)))
    fitted = reconstruct(model, {"first": np.arange(6)}, [images()])
    np.testing.assert_array_equal(fitted.get_layer("norm").moving_mean, model.get_layer("norm").moving_mean)


def test_a_norm_that_reads_two_layers_takes_no_offset_of_either():
    image = keras.Input((12, 10, 3))
    x = layers.Conv2D(12, 3, activation="relu", name="first")(image)
    norm = layers.BatchNormalization(name="norm")
    outputs = [norm(layers.Conv2D(5, 3, use_bias=False, name=name)(x)) for name in ("one", "other")]
    model = filled(keras.Model(image, outputs))
    fitted = reconstruct(model, {"first": np.arange(6)}, [images()])
    np.testing.assert_array_equal(fitted.get_layer("norm").moving_mean, model.get_layer("norm").moving_mean)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="Received none"):
        reconstruct(residual(), {}, [])
    for batch in ((images(), np.zeros(96)), {"image": images()}, images()[0], images()[..., :2]):
        with pytest.raises(ValueError, match="must hold inputs alone, arrays of shape"):
            reconstruct(residual(), {}, [batch])
    inputs = [keras.Input((4,)), keras.Input((4,))]
    with pytest.raises(ValueError, match="one input"):
        reconstruct(keras.Model(inputs, layers.Add()(inputs)), {}, [np.zeros((2, 4))])

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tfface.models import MODELS
from tfface.serving import optimize


def unsettled(model, seed=0):
    """The model with statistics, scales and shifts that a training could have left."""
    draw = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            width = layer.moving_mean.shape
            layer.moving_mean.assign(draw.normal(0, 0.3, width))
            layer.moving_variance.assign(draw.uniform(0.3, 3, width))
            if layer.scale:
                layer.gamma.assign(draw.uniform(0.5, 1.5, width) * draw.choice((-1, 1), width))
            if layer.center:
                layer.beta.assign(draw.normal(0, 0.3, width))
    return model


def norms(model):
    return [layer.name for layer in model._flatten_layers() if isinstance(layer, layers.BatchNormalization)]


def outputs(model, seed=0):
    shapes = [(3, *tensor.shape[1:]) for tensor in model.inputs]
    inputs = [np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32") for shape in shapes]
    return [np.asarray(each) for each in keras.tree.flatten(model(inputs[0] if len(inputs) == 1 else inputs))]


def assert_same(model, other, tolerance=2e-6):
    for expected, received in zip(outputs(model), outputs(other), strict=True):
        assert received.dtype == expected.dtype
        assert np.abs(received - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((9, 9, 6), layers.Conv2D(8, 3, 2, use_bias=False)),
        ((9, 9, 6), layers.Conv2D(8, 3, padding="same", groups=2, bias_initializer="normal")),
        ((9, 6), layers.Conv1D(8, 3, bias_initializer="normal")),
        ((5, 5, 5, 2), layers.Conv3D(4, 3)),
        ((9, 9, 6), layers.Conv2DTranspose(8, 3, 2, bias_initializer="normal")),
        ((9, 9, 6), layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)),
        ((9, 6), layers.DepthwiseConv1D(3, depth_multiplier=2)),
        ((9, 9, 6), layers.SeparableConv2D(8, 3, use_bias=False)),
        ((9, 6), layers.SeparableConv1D(8, 3)),
        ((12,), layers.Dense(8, use_bias=False)),
        ((4, 12), layers.Dense(8, bias_initializer="normal")),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_scales_and_shifts_goes_into_the_kernel(shape, layer):
    inputs = keras.Input(shape)
    x = layers.BatchNormalization()(layer(inputs))
    x = layers.Rescaling(0.17, 0.5)(x)
    x = layers.BatchNormalization(scale=False)(x)
    model = unsettled(keras.Model(inputs, layers.ReLU()(x)))
    folded = optimize.fold(model)
    assert [type(each) for each in folded.layers] == [layers.InputLayer, type(layer), layers.ReLU]
    assert folded.layers[1].use_bias
    assert len(norms(model)) == 2
    assert_same(model, folded)


def test_where_it_would_be_wrong_nothing_is_folded():
    inputs = keras.Input((8, 8, 3))
    relu = layers.BatchNormalization(name="relu")(layers.Conv2D(4, 3, activation="relu")(inputs))
    used_twice = layers.Conv2D(4, 3)(inputs)
    branch = layers.BatchNormalization(name="used_twice")(used_twice)
    own_statistics = layers.BatchNormalization(name="own_statistics")(layers.Conv2D(4, 3)(inputs), training=True)
    rows = layers.BatchNormalization(axis=1, name="rows")(layers.Conv2D(4, 3)(inputs))
    convolution, norm = layers.Conv2D(4, 3), layers.BatchNormalization(name="shared")
    shared = [norm(convolution(x)) for x in (inputs, ops.flip(inputs, axis=1))]
    seen = layers.Conv2D(4, 3, name="seen")(inputs)
    outs = [relu, used_twice, branch, own_statistics, rows, *shared, seen, layers.BatchNormalization(name="out")(seen)]
    model = unsettled(keras.Model(inputs, outs))
    folded = optimize.fold(model)
    assert sorted(norms(folded)) == sorted(norms(model))
    assert_same(model, folded)


def test_a_normalization_keeps_what_it_was_adapted_to():
    inputs = keras.Input((8, 8, 3))
    scaled = layers.Normalization(name="scaled")
    scaled.adapt(np.random.default_rng(0).normal(0.5, 2.0, (16, 8, 8, 3)))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(scaled(inputs)))
    # Beside a batch norm that is called by keywords and a scale for each channel of its own rank: neither is folded.
    x = layers.BatchNormalization()(inputs=layers.Conv2D(4, 1)(x))
    x = layers.Rescaling(np.full((1, 1, 4), 2.0))(layers.Conv2D(4, 1)(x))
    model = keras.Model(inputs, x)
    assert_same(model, optimize.fold(model))


def test_models_in_models_are_folded_too():
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()])
    inputs = keras.Input((8, 8, 3))
    x = layers.Add()([inner(inputs), inner(1 - inputs)])
    x = layers.GlobalAveragePooling2D()(x)
    model = unsettled(keras.Model(inputs, {"b": layers.Dense(2, name="b")(x), "a": layers.Dense(3, name="a")(x)}))
    folded = optimize.fold(model)
    assert not norms(folded)
    assert folded.output.keys() == model.output.keys()
    assert_same(model, folded)
    sequential = optimize.fold(inner)
    assert not norms(sequential)
    assert_same(inner, sequential)


def convolutions(model):
    return sorted(layer.filters for layer in model._flatten_layers() if isinstance(layer, layers.Conv2D))


def test_branches_that_begin_alike_are_joined():
    inputs = keras.Input((8, 8, 3))
    one, two, three = (
        layers.ReLU()(layers.Conv2D(width, 1, bias_initializer="normal", name=f"branch{width}")(inputs))
        for width in (4, 5, 6)
    )
    x = layers.Concatenate()([one, layers.Conv2D(7, 3, padding="same")(two), three])
    inner = keras.Model(inputs, x, name="inner")
    model = keras.Sequential([keras.Input((8, 8, 3)), inner, layers.Conv2D(2, 1), layers.GlobalAveragePooling2D()])
    joined = optimize.join(model)
    assert convolutions(model) == [2, 4, 5, 6, 7]
    assert convolutions(joined) == [2, 7, 15]
    assert joined.get_layer("inner").get_layer("branch5").filters == 15
    assert_same(model, joined)


def test_what_is_not_alike_is_not_joined():
    inputs = keras.Input((8, 8, 4))
    relu = layers.ReLU()(layers.Conv2D(3, 1)(inputs))
    others = [
        layers.Activation("gelu")(layers.Conv2D(3, 1)(inputs)),
        layers.Conv2D(3, 1, activation="relu")(inputs),
        layers.Conv2D(3, 1)(inputs),
        layers.ReLU()(layers.Conv2D(3, 3, padding="same")(inputs)),
        layers.ReLU()(layers.Conv2D(3, 1)(relu)),
        layers.ReLU()(layers.Conv2D(4, 1, groups=2)(inputs)),
        layers.ReLU()(layers.Conv2D(3, 1, use_bias=False)(inputs)),
        # Alike, but a softmax looks at all channels of its own branch.
        *(layers.Conv2D(count, 1, activation="softmax")(inputs) for count in (2, 3)),
        *(layers.Softmax()(layers.Conv2D(count, 5, padding="same")(inputs)) for count in (2,)),
        *(layers.Activation("softmax")(layers.Conv2D(count, 2)(inputs)) for count in (2,)),
    ]
    shared = layers.Conv2D(4, 1)
    twice = layers.ReLU()(shared(layers.ReLU()(shared(inputs))))
    model = keras.Model(inputs, [relu, *others, twice])
    joined = optimize.join(model)
    assert convolutions(joined) == convolutions(model)
    assert_same(model, joined)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "inception_resnet_v1"])  # arg holds it
def test_every_network_stays_the_same(name):
    model = unsettled(MODELS[name]())
    assert_same(model, optimize.join(optimize.fold(model)), 2e-5)


def test_keras_applications():
    model = unsettled(keras.applications.MobileNetV3Small(weights=None, input_shape=(64, 64, 3), classes=5))
    folded = optimize.fold(model)
    assert not norms(folded)
    assert_same(model, folded, 1e-4)


def test_bfloat16_keeps_two_hundredths_and_gives_float32():
    model = unsettled(MODELS["resnet"]())
    folded = optimize.fold(model, bfloat16=True)
    assert folded.get_layer("conv2_block1_1_conv").compute_dtype == "bfloat16"
    assert folded.get_layer("conv2_block1_1_conv").variable_dtype == "float32"
    assert folded.get_layer("avg_pool").compute_dtype == "float32"
    # Of the features: the softmax of random heads blows up what is lost, or hides it. A trained FaceNet keeps 3e-3.
    parts = [keras.Model(each.input, each.get_layer("avg_pool").output) for each in (model, folded)]
    assert_same(*parts, 2e-2)
    assert all(tensor.dtype == "float32" for tensor in outputs(folded))


def test_frozen_functions_have_no_variables():
    model = unsettled(keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()]))
    frozen = optimize.freeze(lambda x: {"y": model(x), "x": [x]}, [tf.TensorSpec((None, 8, 8, 3))])
    assert not frozen.get_concrete_function().variables
    x = tf.random.stateless_uniform((2, 8, 8, 3), (1, 2))
    before = model(x)
    model.layers[0].kernel.assign(model.layers[0].kernel * 2)
    answer = frozen(x)
    np.testing.assert_allclose(answer["y"], before, atol=1e-6)
    np.testing.assert_array_equal(answer["x"][0], x)

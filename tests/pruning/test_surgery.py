"""A silent channel can be cut out of any graph without a change of what comes out."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfface import models, pruning
from tfface.errors import UserError
from tfface.faces import mtcnn, yolo

MAP = (8, 8, 3)


def _conv(x, filters=8, size=3, activation="relu", **options):
    return layers.Conv2D(filters, size, padding="same", activation=activation, **options)(x)


def _head(x):
    return layers.Dense(3)(layers.GlobalAveragePooling2D()(x))


def _on_map(body):
    """A model from a small map through a convolution, `body` and a dense head."""

    def build():
        image = keras.Input(MAP)
        return keras.Model(image, _head(body(_conv(image))))

    return build


def _batch_norms(x):
    x = layers.BatchNormalization(scale=False)(_conv(x, activation=None))
    x = layers.Activation("swish")(x)
    return layers.BatchNormalization(center=False)(_conv(x))


def _spatial_layers(x):
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Cropping2D(1)(layers.MaxPooling2D(2)(x))
    x = layers.Dropout(0.5)(layers.UpSampling2D(2)(x))
    return _conv(layers.AveragePooling2D(2)(x))


def _grouped_few(x):
    return _conv(_conv(_conv(x, 16), 12, groups=2))


def _grouped_many(x):
    return _conv(_conv(_conv(x, 16), 32, groups=8))


def _transposed(x):
    return layers.Conv2DTranspose(6, 3, strides=2, activation="elu")(layers.Conv2DTranspose(10, 2)(x))


def _prelus(x):
    x = layers.PReLU(shared_axes=[1, 2])(_conv(x, activation=None))
    x = layers.PReLU()(_conv(x, activation=None))
    return layers.LeakyReLU()(_conv(x, activation=None))


def _group_norms(x):
    x = layers.GroupNormalization(4)(_conv(x, 16, activation=None))
    return layers.GroupNormalization(-1)(_conv(layers.ReLU()(x), activation=None))


def _layer_norms(x):
    y = layers.LayerNormalization()(_conv(x))
    y = layers.RMSNormalization()(_conv(y))
    return layers.UnitNormalization()(_conv(_conv(y), activation=None))


def _additions(x):
    x = layers.Add()([x, _conv(x)])
    x = layers.Subtract()([x, _conv(x, activation=None)])
    x = layers.Maximum()([x, _conv(x)])
    x = layers.Minimum()([x, _conv(x)])
    return layers.Average()([x, _conv(x), layers.Rescaling(0.3)(x)])


def _squeeze_excite(x):
    gate = layers.Dense(4, activation="relu")(layers.GlobalAveragePooling2D()(x))
    gate = layers.Reshape((1, 1, 8))(layers.Dense(8, activation="sigmoid")(gate))
    return _conv(layers.Multiply()([x, gate]))


def _squeeze_excite_in_operations(x):
    gate = ops.mean(x, axis=(1, 2))
    gate = ops.relu(layers.Dense(6)(gate))
    gate = ops.clip(layers.Dense(8)(gate) / 6 + 0.5, 0.0, 1.0)
    x = x * gate[:, None, None, :] + ops.maximum(x, 0.0) * ops.expand_dims(ops.expand_dims(gate, 1), 1)
    return ops.concatenate([x, ops.sqrt(ops.abs(x)), -x], axis=-1)


def _moves_in_operations(x):
    y = ops.transpose(_conv(x, 6), (0, 3, 1, 2))
    y = ops.reshape(y, (-1, 6, 64))
    y = ops.max(y, axis=-1, keepdims=True)
    y = layers.Dense(5)(ops.squeeze(y, axis=-1))
    return ops.sum(x, axis=-1, keepdims=True) * ops.reshape(y, (-1, 1, 1, 5))


def _spatial_attention(x):
    x = _conv(_conv(x, 12))
    gate = ops.concatenate([ops.mean(x, axis=-1, keepdims=True), ops.max(x, axis=-1, keepdims=True)], axis=-1)
    return x * layers.Conv2D(1, 7, padding="same", activation="sigmoid")(gate)


def _concatenations(x):
    y = layers.Concatenate()([x, _conv(x, 6), _conv(x, 2)])
    y = layers.Add()([layers.BatchNormalization()(y), _conv(y, 16)])
    beside = layers.Concatenate(axis=1)([y, _conv(x, 16)])
    return layers.SeparableConv2D(8, 3, depth_multiplier=2, activation="relu")(beside)


def _sigmoids(x):
    return _conv(_conv(_conv(x), activation="sigmoid"))


def _sequences(x):
    x = layers.Reshape((-1, 8))(x)
    x = layers.Conv1D(10, 3, activation="relu")(x)
    x = layers.SeparableConv1D(8, 3)(layers.MaxPooling1D(2)(x))
    x = layers.Permute((2, 1))(layers.Permute((2, 1))(layers.Dense(6, activation="gelu")(x)))
    return layers.Reshape((1, 1, 6))(layers.GlobalMaxPooling1D()(x))


def _nested(x):
    inner = keras.Input((None, None, 8))
    block = keras.Model(inner, layers.Add()([inner, _conv(_conv(inner, 6))]), name="block")
    chain = keras.Sequential([layers.Conv2D(8, 1), layers.ReLU(), layers.Conv2D(8, 1)], name="chain")
    return chain(block(block(_conv(x))))


def _shared(x):
    twice = layers.Conv2D(8, 3, padding="same", activation="relu", name="twice")
    norm = layers.BatchNormalization()
    return norm(twice(norm(twice(_conv(x)))))


def _nested_by_names(x):
    second, first = keras.Input((8, 8, 8), name="z"), keras.Input((8, 8, 8), name="a")
    inner = keras.Model([second, first], layers.Concatenate()([_conv(second, 4), _conv(first, 6)]))
    return inner({"a": _conv(x), "more": x, "z": _conv(x)})


def _nested_on_two_layouts(x):
    cube = keras.Input((8, 8, 8))
    inner = keras.Model(cube, layers.ReLU()(cube))
    return _conv(layers.Concatenate()([inner(x), inner(layers.Permute((3, 1, 2))(x))]))


def _unit_lengths(x):
    x = layers.BatchNormalization()(layers.UnitNormalization()(_conv(x, activation="sigmoid")))
    return _conv(layers.BatchNormalization()(layers.UnitNormalization()(_conv(x))))


def _flattened():
    image = keras.Input(MAP)
    return keras.Model(image, layers.Dense(2)(layers.Dense(6, activation="tanh")(layers.Flatten()(_conv(image)))))


def _decoder():
    code = keras.Input((5,))
    x = layers.Reshape((4, 4, 6))(layers.Dense(96, activation="relu")(code))
    return keras.Model(code, layers.Conv2DTranspose(3, 3)(_conv(x)))


def _sequential():
    kinds = [layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(), layers.Dense(4)]
    return keras.Sequential([keras.Input(MAP), *kinds], name="chain")


def _several_inputs_and_outputs():
    image, number = keras.Input(MAP, name="image"), keras.Input((4,), name="number")
    trunk = layers.Dense(8, activation="relu")(layers.Concatenate()([_head(_conv(image)), number]))
    outputs = {"age": layers.Dense(1)(trunk), "race": layers.Dense(5, activation="softmax")(trunk)}
    return keras.Model({"image": image, "number": number}, outputs)


def _embedded():
    words = keras.Input((7,), dtype="int32")
    return keras.Model(words, layers.Dense(2)(layers.GlobalAveragePooling1D()(layers.Embedding(20, 6)(words))))


def _of_a_table():
    words = keras.Input((7,), dtype="int32")
    table = keras.initializers.Constant(np.random.default_rng(0).normal(size=(20, 6)))
    x = layers.Embedding(20, 6, embeddings_initializer=table, trainable=False)(words)
    return keras.Model(words, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def _attended_and_recurrent():
    words = keras.Input((7,), dtype="int32")
    x = layers.Dense(6, activation="relu")(layers.Embedding(20, 8, name="words")(words))
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True), name="both")(layers.Dense(6, name="read")(x))
    return keras.Model(words, layers.Dense(2)(layers.Dense(8, activation="relu")(layers.LSTM(4)(x))))


def _channels_first():
    # Without biases: TensorFlow 2.21 on a CPU adds those of a convolution in this format wrongly.
    first = {"data_format": "channels_first"}
    image = keras.Input((3, 8, 8))
    x = layers.BatchNormalization(axis=1)(_conv(image, use_bias=False, **first))
    x = layers.MaxPooling2D(2, **first)(layers.Add()([x, _conv(x, use_bias=False, **first)]))
    x = layers.Concatenate(axis=1)([x, _conv(x, 5, use_bias=False, **first)])
    pooled = layers.GlobalAveragePooling2D(**first)(x)
    return keras.Model(image, [layers.Dense(3)(pooled), layers.Dense(2)(layers.Flatten(**first)(x))])


def _as_depthwise(x):
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(x)
    return _conv(layers.Conv2D(16, 3, groups=16)(x))


GRAPHS = {
    body.__name__.strip("_"): _on_map(body)
    for body in (
        _batch_norms,
        _spatial_layers,
        _grouped_few,
        _grouped_many,
        _transposed,
        _as_depthwise,
        _prelus,
        _group_norms,
        _layer_norms,
        _unit_lengths,
        _additions,
        _squeeze_excite,
        _squeeze_excite_in_operations,
        _moves_in_operations,
        _spatial_attention,
        _concatenations,
        _sigmoids,
        _sequences,
        _nested,
        _nested_by_names,
        _nested_on_two_layouts,
        _shared,
    )
} | {
    "flattened": _flattened,
    "decoder": _decoder,
    "sequential": _sequential,
    "embedded": _embedded,
    "of_a_table": _of_a_table,
    "attended_and_recurrent": _attended_and_recurrent,
    "channels_first": _channels_first,
}


@pytest.mark.parametrize("name", GRAPHS)
def test_cut_is_exact(name, check_exact):
    model = GRAPHS[name]()
    inputs = np.arange(14).reshape(2, 7) if model.inputs[0].dtype == "int32" else None
    check_exact(model, inputs)


def test_what_attention_and_recurrent_layers_read_stays_whole():
    model = GRAPHS["attended_and_recurrent"]()
    assert [group.width for group in pruning.channel_groups(model)] == [
        8,
        8,
    ]  # the embedding and the last layer but one
    assert pruning.fixed_layers(model)["read"] == "both is not narrowed"


def test_cut_is_exact_with_named_inputs_and_outputs(check_exact):
    generator = np.random.default_rng(0)
    inputs = {
        "image": generator.normal(size=(2, *MAP)).astype("float32"),
        "number": generator.normal(size=(2, 4)).astype("float32"),
    }
    smaller, groups = check_exact(_several_inputs_and_outputs(), inputs)
    assert set(smaller(inputs)) == {"age", "race"}
    assert [group.width for group in groups] == [8, 3, 8]


# ARG stands on inception_resnet_v1, which would take as long again.
@pytest.mark.parametrize("name", [name for name in models.MODELS if name != "inception_resnet_v1"])
def test_cut_is_exact_on_our_networks(name, check_exact):
    check_exact(models.MODELS[name]())


@pytest.mark.parametrize("build", [mtcnn.proposal_network, mtcnn.refinement_network, yolo.tiny_yolo_network])
def test_cut_is_exact_on_our_detectors(build, check_exact):
    model = build()
    sides = [length or 32 for length in model.input_shape[1:3]]
    check_exact(model, np.random.default_rng(0).normal(size=(2, *sides, 3)).astype("float32"))


FAMILIES = {
    "VGG16": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "Xception": 71,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Large": 32,
    "DenseNet121": 32,
    "NASNetMobile": 224,  # it takes no other size
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ConvNeXtTiny": 32,
}
"""One of each family of keras.applications -> side of its smallest image."""


def _family(name, side):
    family = getattr(keras.applications, name)
    return family(weights=None, input_shape=(side, side, 3), classes=10, classifier_activation=None)


def test_cut_is_exact_on_a_light_family(check_exact):
    check_exact(_family("MobileNetV3Small", 32))


@pytest.mark.families
@pytest.mark.parametrize("name", FAMILIES)
def test_cut_is_exact_on_every_family(name, check_exact):
    """Every family of keras.applications, about three minutes: `pytest tests/pruning -m families`."""
    check_exact(_family(name, FAMILIES[name]))


def test_smaller_model_is_plain_saves_and_trains(tmp_path, fill):
    model = fill(GRAPHS["nested"]())
    model.compile("adam", "mse")
    images = np.random.default_rng(0).normal(size=(4, *MAP)).astype("float32")
    smaller = pruning.prune(model, 0.5, multiple_of=2)
    assert type(smaller) is type(model)
    assert not smaller.compiled
    path = tmp_path / "smaller.keras"
    smaller.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_allclose(loaded(images), smaller(images), rtol=1e-6)
    loaded.compile("sgd", "mse")
    loaded.train_on_batch(images, np.zeros((4, 3)))


def test_keeps_what_is_frozen_and_its_precision():
    image = keras.Input(MAP)
    frozen = layers.Conv2D(8, 3, trainable=False, name="frozen", dtype="mixed_bfloat16")
    model = keras.Model(image, _head(layers.BatchNormalization(name="norm")(frozen(image))))
    model.trainable = False
    model.get_layer("norm").trainable = True
    smaller = pruning.prune(model, 0.5, multiple_of=1)
    assert smaller.trainable is False
    assert [layer.trainable for layer in smaller.layers] == [layer.trainable for layer in model.layers]
    assert smaller.get_layer("frozen").dtype_policy.name == "mixed_bfloat16"


NUMBERS = np.random.default_rng(0).normal(5, 3, (6, 4)).astype("float32")

STATES = {
    "numbers": (layers.Normalization, {}, NUMBERS),
    "bins": (layers.Discretization, {"num_bins": 4}, NUMBERS),
    "strings": (layers.StringLookup, {}, np.array([["a", "b", "c"], ["b", "d", "e"]])),
    "one hot": (layers.StringLookup, {"output_mode": "multi_hot"}, np.array([["a", "b", "c"], ["b", "d", "e"]])),
    "integers": (layers.IntegerLookup, {}, np.array([[10, 20, 30], [20, 40, 50]])),
    "texts": (layers.TextVectorization, {"output_sequence_length": 3}, np.array(["one two", "three one four"])),
}


@pytest.mark.parametrize("name", STATES)
def test_what_a_layer_has_learned_of_the_data_stays(name, tmp_path):
    kind, settings, data = STATES[name]
    layer = kind(**settings)
    layer.adapt(data)
    dtype = "string" if data.dtype.kind == "U" else data.dtype.name
    inputs = keras.Input(data.shape[1:], dtype=dtype)
    x = layer(inputs)
    x = x if x.dtype == "float32" else layers.Flatten()(layers.Embedding(12, 8)(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(8)(x)))
    data = keras.ops.convert_to_tensor(data, dtype)
    copy = pruning.cut(model, {})
    np.testing.assert_array_equal(copy(data), model(data))
    copy.save(tmp_path / "copy.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "copy.keras")(data), model(data))


def _doubled(x):
    return 2 * ops.relu(x)


def test_what_keras_cannot_make_anew_is_told_by_name():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation=_doubled, name="own"), layers.Dense(2)])
    with pytest.raises(UserError, match=r"layer 'own' \(Dense\).*custom_object_scope") as error:
        pruning.prune(model, 0.5, multiple_of=1)
    assert "\n" not in str(error.value)
    with keras.saving.custom_object_scope({"_doubled": _doubled}):
        assert pruning.prune(model, 0.5, multiple_of=1).get_layer("own").units == 4
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x / 2), layers.Dense(8), layers.Dense(2)])
    with pytest.raises(UserError, match="in the place of a Lambda"):
        pruning.prune(model, 0.5, multiple_of=1)


def test_keep_of_everything_is_a_copy(fill):
    model = fill(GRAPHS["nested"]())
    copy = pruning.cut(model, {})
    assert [variable.path for variable in copy.weights] == [variable.path for variable in model.weights]
    for one, other in zip(copy.weights, model.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_mask_names_the_units_that_stay():
    model = _sequential()
    name = pruning.channel_groups(model)[0].name
    mask = np.arange(8) % 2 == 0
    cuts = [pruning.cut(model, {name: kept}).get_weights() for kept in (mask, mask.tolist(), [0, 2, 4, 6])]
    for one, other, expected in zip(*cuts, strict=True):
        np.testing.assert_array_equal(one, expected)
        np.testing.assert_array_equal(other, expected)


def test_wrong_units_are_refused():
    model = _sequential()
    name = pruning.channel_groups(model)[0].name
    with pytest.raises(UserError, match="no group of channels 'elsewhere'"):
        pruning.cut(model, {"elsewhere": [0]})
    with pytest.raises(UserError, match=r"at least one index in \[0, 8\)"):
        pruning.cut(model, {name: []})
    with pytest.raises(UserError, match=r"at least one index in \[0, 8\)"):
        pruning.cut(model, {name: [8]})
    for wrong in ([0.9, 1.9], [[0, 1]], np.ones(7, bool), np.zeros(8, bool)):
        with pytest.raises(UserError, match="a mask of 8 booleans"):
            pruning.cut(model, {name: wrong})
    model = GRAPHS["concatenations"]()
    group = pruning.channel_groups(model)[0]
    with pytest.raises(UserError, match="Nothing is left of layer"):
        pruning.cut(model, {group.name: np.arange(8)})

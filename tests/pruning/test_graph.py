"""Which channels hang together, which cannot be cut and why, and what is not understood."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfface import pruning
from tfface.errors import UserError
from tfface.layers.attention import ChannelAttention, SpatialAttention
from tfface.layers.margin import CosineSimilarity

MAP = (8, 8, 3)


def _conv(x, filters, name, **options):
    return layers.Conv2D(filters, 3, padding="same", name=name, **options)(x)


def _model(body, shape=MAP, **options):
    image = keras.Input(shape, **options)
    return keras.Model(image, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(body(image))))


def _widths(model, **options):
    return {group.name: group.width for group in pruning.channel_groups(model, **options)}


def _members(group):
    return {(each.layer, each.variable, each.axis, each.role): each.units.tolist() for each in group.members}


@pytest.fixture(autouse=True)
def names_begin_anew():
    """Keras numbers layers and operations without a name through the whole process."""
    keras.utils.clear_session()


def test_members_of_a_chain():
    model = _model(lambda x: layers.BatchNormalization(name="norm")(_conv(x, 4, "conv")))
    (group,) = pruning.channel_groups(model)
    own = [0, 1, 2, 3]
    assert _members(group) == {
        ("conv", "kernel", 3, "producer"): own,
        ("conv", "bias", 0, "parameter"): own,
        ("norm", "gamma", 0, "parameter"): own,
        ("norm", "beta", 0, "parameter"): own,
        ("norm", "moving_mean", 0, "parameter"): own,
        ("norm", "moving_variance", 0, "parameter"): own,
        ("head", "kernel", 0, "consumer"): own,
    }
    assert pruning.fixed_layers(model) == {"head": "a channel of the model's output"}


def test_concatenation_lays_groups_side_by_side():
    def body(x):
        both = layers.Concatenate(name="both")([_conv(x, 2, "first"), x, _conv(x, 3, "second")])
        return _conv(both, 4, "reader")

    first, second, reader = pruning.channel_groups(_model(body))
    assert _members(first)["reader", "kernel", 2, "consumer"] == [0, 1, -1, -1, -1, -1, -1, -1]
    assert _members(second)["reader", "kernel", 2, "consumer"] == [-1, -1, -1, -1, -1, 0, 1, 2]
    assert first.block == second.block == "both"
    assert reader.block == reader.name == "reader"


def test_flatten_repeats_channels():
    image = keras.Input((2, 2, 3))
    model = keras.Model(image, layers.Dense(1, name="head")(layers.Flatten()(layers.Conv2D(3, 1)(image))))
    (group,) = pruning.channel_groups(model)
    assert _members(group)["head", "kernel", 0, "consumer"] == [0, 1, 2] * 4


def test_shortcuts_join_layers_and_blocks_have_names():
    def body(x):
        x = _conv(x, 4, "stem")
        for index in range(2):
            y = _conv(_conv(x, 6, f"inner{index}"), 4, f"outer{index}")
            x = layers.Add(name=f"sum{index}")([x, y])
        return x

    stream, *inner = pruning.channel_groups(_model(body))
    assert stream.layers == ("stem", "outer0", "outer1")
    assert [(group.name, group.width, group.block) for group in (stream, *inner)] == [
        ("stem", 4, "stem"),
        ("inner0", 6, "sum0"),
        ("inner1", 6, "sum1"),
    ]


def test_grouped_convolutions_keep_their_groups_alike():
    few = _model(lambda x: _conv(_conv(x, 8, "before"), 6, "grouped", groups=2))
    before, grouped = pruning.channel_groups(few)
    assert _members(before)["before", "kernel", 3, "producer"] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert _members(grouped)["grouped", "kernel", 3, "producer"] == [0, 1, 2, 0, 1, 2]
    many = _model(lambda x: _conv(_conv(x, 8, "before"), 12, "grouped", groups=4))
    (units,) = pruning.channel_groups(many)
    assert _members(units)["grouped", "kernel", 3, "producer"] == np.repeat(range(4), 3).tolist()
    smaller = pruning.cut(many, {"before": [0, 3]})
    assert smaller.get_layer("grouped").groups == 2
    assert smaller.get_layer("grouped").kernel.shape == (3, 3, 2, 6)


def test_a_vector_reshaped_to_a_map_is_cut_by_channels():
    code = keras.Input((3,))
    x = layers.Reshape((2, 2, 4), name="map")(layers.Dense(16, name="dense")(code))
    model = keras.Model(code, layers.Conv2D(1, 1)(x))
    assert _widths(model) == {"dense": 4}
    smaller = pruning.cut(model, {"dense": [1, 2, 3]})
    assert smaller.get_layer("map").target_shape == (2, 2, 3)
    assert smaller.get_layer("dense").units == 12


def _spatial_attention(x):
    x = _conv(x, 6, "seen")
    return x * layers.Conv2D(1, 3, padding="same", name="gate")(ops.mean(x, axis=-1, keepdims=True))


FIXED = {
    "spatial attention": (_spatial_attention, "seen", "takes a statistic over its channels"),
    "layer norm": (lambda x: layers.LayerNormalization()(_conv(x, 6, "seen")), "seen", "takes a statistic"),
    "sigmoid": (lambda x: _conv(_conv(x, 6, "seen", activation="sigmoid"), 4, "next"), "seen", "not 0 at 0"),
}


@pytest.mark.parametrize("name", FIXED)
def test_what_a_cut_would_change_is_fixed_unless_allowed(name):
    body, layer, reason = FIXED[name]
    model = _model(body)
    assert layer not in _widths(model)
    assert reason in pruning.fixed_layers(model)[layer]
    assert _widths(model, exact=False)[layer] == 6
    smaller = pruning.prune(model, 0.5, exact=False, multiple_of=1)
    assert smaller.get_layer("seen").filters == 3


def test_fixed_by_what_cannot_follow():
    def softmax(x):
        return _conv(layers.Softmax()(_conv(x, 6, "seen")), 4, "next")

    assert pruning.fixed_layers(_model(softmax))["seen"] == "softmax mixes its channels"
    shortcut = _model(lambda x: layers.Add(name="sum")([x, _conv(x, 3, "seen")]))
    assert pruning.fixed_layers(shortcut)["seen"] == "a channel of the model's input"
    picked = _model(lambda x: _conv(x, 6, "seen")[..., 2:])
    assert "takes some of its channels" in pruning.fixed_layers(picked)["seen"]


def _rolled(x):
    return _conv(ops.roll(_conv(x, 12, "seen"), 6, axis=-1), 4, "next")


def _padded(x):
    resized = layers.Resizing(20, 16, pad_to_aspect_ratio=True, fill_value=3.0)(_conv(x, 6, "seen"))
    return _conv(resized, 4, "next")


def test_what_moves_channels_by_their_number_or_fills_in_is_seen():
    assert pruning.fixed_layers(_model(_rolled))["seen"] == "roll mixes its channels"
    assert "not 0 at 0" in pruning.fixed_layers(_model(_padded))["seen"]


def _largest(x):
    return layers.Dense(4)(ops.max(_conv(x, 6, "seen"), axis=(1, 2), initial=2.5))[:, None, None]


def _ranked(x):
    ranked = layers.Activation(lambda values: values * ops.arange(values.shape[-1], dtype=values.dtype))
    return _conv(ranked(_conv(x, 6, "seen")), 4, "next")


BY_PLACE = {
    "tril": (lambda x: _conv(ops.tril(_conv(x, 6, "seen"), -5), 4, "next"), "goes by the places"),
    "triu": (lambda x: _conv(ops.triu(_conv(x, 6, "seen")), 4, "next"), "goes by the places"),
    "roll of all": (lambda x: _conv(ops.roll(_conv(x, 6, "seen"), 6), 4, "next"), "goes by the places"),
    "ranks": (_ranked, "each of its channels otherwise"),
    "noise": (
        lambda x: _conv(layers.Dropout(0.5, (None, 1, 1, 6))(_conv(x, 6, "seen")), 4, "next"),
        "counts its channels in noise_shape",
    ),
    "an initial value": (_largest, "not 0 at 0"),
}


@pytest.mark.parametrize("name", BY_PLACE)
def test_what_goes_by_places_or_starts_elsewhere_is_seen(name):
    body, reason = BY_PLACE[name]
    assert reason in pruning.fixed_layers(_model(body))["seen"]


def test_channels_moved_out_of_what_is_known_are_refused_or_fixed():
    def sequence(body):
        steps = keras.Input((None, 3))
        return keras.Model(steps, layers.Dense(2)(body(layers.Dense(8, name="seen")(steps))))

    with pytest.raises(UserError, match="layer Reshape"):
        pruning.channel_groups(sequence(layers.Reshape((-1, 24))))
    with pytest.raises(UserError, match="operation Reshape"):
        pruning.channel_groups(sequence(lambda x: ops.reshape(x, (-1, 8))))
    assert _widths(sequence(lambda x: x[:, 5])) == {}


def test_a_swap_of_axes_is_followed():
    image = keras.Input((6, 8, 3))
    swapped = ops.swapaxes(layers.Conv2D(4, 3, padding="same", name="seen")(image), 1, 2)
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(swapped[:, 7:])))
    assert _widths(model) == {"seen": 4}


def test_a_tensor_whose_channels_lie_elsewhere_is_not_joined():
    image = keras.Input((16, 8, 8))
    options = {"data_format": "channels_first", "use_bias": False}
    gated = layers.Multiply()([image, _conv(image, 16, "seen", **options)])
    pooled = layers.GlobalAveragePooling2D(data_format="channels_first")(gated)
    model = keras.Model(image, layers.Dense(2)(pooled))
    assert _widths(model) == {}
    assert "whose channels lie along another axis" in pruning.fixed_layers(model)["seen"]


@pytest.mark.parametrize("filters", [6, 16])
def test_a_constant_of_each_channel_is_refused(filters):
    gains = np.arange(filters, dtype="float32")
    model = _model(lambda x: _conv(_conv(x, filters, "seen") * gains, 4, "next"))
    with pytest.raises(UserError, match="operation Multiply"):
        pruning.prune(model, 0.5, multiple_of=1)


def test_cosines_to_centres_stay_whole_unless_allowed():
    code = keras.Input((5,))
    x = layers.Dense(8, name="seen")(layers.Dense(6, activation="relu", name="before")(code))
    model = keras.Model(code, CosineSimilarity(3, name="cosines")(x))
    assert _widths(model) == {"before": 6}
    assert "cosines takes a statistic over its channels" in pruning.fixed_layers(model)["seen"]
    smaller = pruning.prune(model, 0.5, exact=False, multiple_of=1)
    assert smaller.get_layer("cosines").centres.shape == (4, 3)


class Scale(layers.Layer):
    """A value for each channel, no more."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale", initializer="ones")

    def call(self, x):
        return x * self.scale


class Doubled(layers.Conv2D):
    """A convolution that does something else too."""

    def call(self, x):
        return 2 * super().call(x)


class Standardised(layers.Conv2D):
    """A convolution that does something else in a part of `call`."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel - ops.mean(kernel, axis=(0, 1, 2)))


class Shifted(layers.Conv2D):
    """A convolution that does something else around `call`."""

    def __call__(self, x, *arguments, **keywords):
        return super().__call__(x + 1.0, *arguments, **keywords)


def _scaled(x):
    return _conv(Scale(name="mystery")(_conv(x, 6, "seen")), 4, "next")


def test_a_layer_that_is_not_understood_is_refused_by_name():
    model = _model(_scaled)
    with pytest.raises(UserError, match=r"layer Scale 'mystery'.*register_rule\(Scale\).*untouched=\('mystery',\)"):
        pruning.prune(model, 0.5)
    assert _widths(model, untouched=["myst*"]) == {"next": 4}
    assert "kept as it is" in pruning.fixed_layers(model, untouched=["mystery"])["seen"]
    smaller = pruning.prune(model, 0.5, untouched=["mystery"], multiple_of=1)
    assert (smaller.get_layer("seen").filters, smaller.get_layer("next").filters) == (6, 2)
    for kind in (Doubled, Standardised, Shifted):
        with pytest.raises(UserError, match=kind.__name__):
            pruning.channel_groups(_model(lambda x, kind=kind: kind(4, 3)(_conv(x, 6, "seen"))))
    with pytest.raises(UserError, match="operation Einsum"):
        pruning.channel_groups(_model(lambda x: ops.einsum("bhwc,bhwd->bhwc", *[_conv(x, 4, n) for n in "ab"])))


def test_a_layer_that_is_not_understood_may_stand_where_nothing_is_cut():
    image = keras.Input(MAP)
    x = layers.GlobalAveragePooling2D()(_conv(Scale()(image), 6, "seen"))
    model = keras.Model(image, Scale()(layers.Dense(3)(x)))
    with pytest.raises(UserError, match="layer Scale"):
        pruning.channel_groups(model)  # the dense layer before it could be cut
    model = keras.Model(image, layers.Dense(3)(x))
    assert _widths(model) == {"seen": 6}


def test_a_rule_of_ones_own(check_exact):
    class Mine(Scale):
        pass

    class Softened(layers.Layer):
        def call(self, x):
            return x * ops.sigmoid(x)

    @pruning.register_rule(Mine)
    def mine(call):
        channels = call.along(-1)
        call.carry("scale", 0, channels)
        return channels

    pruning.register_rule(Softened)(pruning.elementwise)
    model = _model(lambda x: _conv(Softened()(Mine(name="mine")(_conv(x, 6, "seen"))), 4, "next"))
    smaller, _ = check_exact(model)
    assert smaller.get_layer("mine").scale.shape == (3,)


def test_a_wrong_rule_is_told():
    class Forgotten(Scale):
        pass

    pruning.register_rule(Forgotten)(lambda call: call.inputs[0])
    with pytest.raises(UserError, match=r"rule of layer 'mine' \(Forgotten\)"):
        pruning.prune(
            _model(lambda x: _conv(Forgotten(name="mine")(_conv(x, 6, "seen")), 4, "next")), 0.5, multiple_of=1
        )


def test_a_subclass_that_changes_nothing_has_the_rule_of_its_class():
    class Named(layers.Conv2D):
        """A name, an argument and a setting more."""

        def __init__(self, *arguments, colour="red", **keywords):
            super().__init__(*arguments, **keywords)
            self.colour = colour

        def get_config(self):
            return super().get_config() | {"colour": self.colour}

        def compute_output_shape(self, shape):
            return super().compute_output_shape(shape)

    assert _widths(_model(lambda x: Named(5, 3, name="seen")(x))) == {"seen": 5}


def test_names_to_leave_untouched_must_be_those_of_layers():
    model = _model(lambda x: _conv(_conv(x, 6, "seen"), 4, "next"))
    assert _widths(model, untouched="seen") == {"next": 4}  # a plain string is one name
    assert pruning.prune(model, 0.5, multiple_of=1, exclude="seen").get_layer("seen").filters == 6
    for untouched in (["sene"], "sene", ["seen", "ne?"]):
        with pytest.raises(UserError, match="Nothing to leave untouched by"):
            pruning.prune(model, 0.5, untouched=untouched)


def test_lora_and_quantised_layers_are_refused_unless_untouched():
    def chain():
        kinds = [layers.Dense(6, name="first"), layers.Dense(4, name="second"), layers.Dense(2, name="head")]
        return keras.Sequential([keras.Input((3,)), *kinds])

    for place in range(3):
        model = chain()
        model.layers[place].enable_lora(1)
        with pytest.raises(UserError, match=f"the layer Dense '{model.layers[place].name}': .*LoRA. Merge it"):
            pruning.prune(model, 0.5)
    smaller = pruning.prune(model, 0.5, untouched="head", multiple_of=1)
    assert [layer.units for layer in smaller.layers] == [3, 4, 2]
    model = chain()
    model.layers[1].quantize("int8")
    with pytest.raises(UserError, match=r"Dense 'second'.*quantised weights \(int8\). Prune before `quantize`"):
        pruning.prune(model, 0.5)


def test_only_graphs_are_pruned():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(UserError, match=r"no graph to prune.*Received: Own"):
        pruning.channel_groups(Own(name="own"))


@pytest.mark.parametrize("kind", [keras.Model, keras.Sequential])
def test_a_model_that_does_more_than_its_graph_is_refused(kind):
    class Stepping(kind):
        """A model that trains in its own way."""

        def train_step(self, data):
            return {}

    class Halved(kind):
        """A model that does something before its graph."""

        def call(self, x, training=None, mask=None):
            return super().call(x / 2, training=training, mask=mask)

    def built(kind):
        if issubclass(kind, keras.Sequential):
            return kind([keras.Input((4,)), layers.Dense(6, name="seen"), layers.Dense(2)])
        inputs = keras.Input((4,))
        return kind(inputs, layers.Dense(2)(layers.Dense(6, name="seen")(inputs)))

    assert _widths(built(Stepping)) == {"seen": 6}
    outer = keras.Input((4,))
    for model in (built(Halved), keras.Model(outer, layers.Dense(3)(built(Halved)(outer)))):
        with pytest.raises(UserError, match=r"does more than its graph.*Received: Halved"):
            pruning.channel_groups(model)


def test_open_sizes_and_nested_paths():
    inner = keras.Input((None, None, 4))
    block = keras.Model(inner, _conv(_conv(inner, 6, "a"), 4, "b"), name="block")
    model = _model(lambda x: block(_conv(x, 4, "stem")), shape=(None, None, 3))
    assert _widths(model) == {"stem": 4, "block/a": 6, "block/b": 4}
    smaller = pruning.cut(model, {"stem": [0], "block/a": [1, 2], "block/b": [3]})
    assert smaller.get_layer("block").input_shape == (None, None, None, 1)
    assert set(pruning.find_layers(smaller)) == set(pruning.find_layers(model))
    assert _widths(model, untouched=["block"]) == {}


def test_attention_over_channels_and_places():
    def body(x):
        return SpatialAttention(name="places")(ChannelAttention(4, name="channels")(_conv(x, 16, "seen")))

    model = _model(body)
    assert "statistic over its channels" in pruning.fixed_layers(model)["seen"]
    smaller = pruning.prune(model, 0.5, exact=False)
    assert smaller.get_layer("channels").hidden_kernel.shape == (8, 4)
    odd = pruning.cut(model, {"seen": range(7)}, pruning.channel_groups(model, exact=False))
    assert odd.get_layer("channels").hidden_kernel.shape == (7, 4)  # which no whole reduction gives


def test_a_cut_through_attention_over_channels_is_exact(check_exact):
    check_exact(_model(lambda x: _conv(ChannelAttention(4)(_conv(x, 16, "seen")), 4, "next")))

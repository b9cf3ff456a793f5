"""Scores are the numbers that their papers define; what is chosen keeps to ratio, multiples and minima."""

import keras
import numpy as np
import pytest
from keras import layers

from tfface import pruning
from tfface.errors import UserError

DATA = np.random.default_rng(0).normal(size=(16, 5)).astype("float32")
TARGETS = np.random.default_rng(1).normal(size=(16, 2)).astype("float32")


@pytest.fixture(scope="module")
def network(fill):
    """A dense network with a shortcut: two layers make the channels of the stream, one those inside."""
    inputs = keras.Input((5,))
    stem = layers.BatchNormalization(name="norm")(layers.Dense(8, name="stem")(inputs))
    inner = layers.Dense(16, activation="relu", name="inner")(stem)
    stream = layers.Add(name="sum")([stem, layers.Dense(8, name="outer")(inner)])
    return fill(keras.Model(inputs, layers.Dense(2, name="head")(stream)))


@pytest.fixture(scope="module")
def groups(network):
    return pruning.channel_groups(network)


@pytest.fixture
def part_and_whole():
    """A network whose eight channels are made by one layer, and half by half by two others; their group."""
    inputs = keras.Input((2,))
    left, right, whole = (layers.Dense(n, name=name)(inputs) for n, name in ((4, "left"), (4, "right"), (8, "whole")))
    stream = layers.Add()([layers.Concatenate()([left, right]), whole])
    model = keras.Model(inputs, layers.Dense(1)(stream))
    return model, *pruning.channel_groups(model)


def _kernel(network, name):
    return keras.ops.convert_to_numpy(network.get_layer(name).kernel)


def test_norms_are_those_of_all_filters_of_a_unit(network, groups):
    stem, inner, outer = (_kernel(network, name) for name in ("stem", "inner", "outer"))
    l1 = pruning.importance(network, groups, "l1")
    np.testing.assert_allclose(l1["inner"], np.abs(inner).sum(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(pruning.importance(network, groups)["stem"], l1["stem"])
    np.testing.assert_allclose(l1["stem"], np.abs(stem).sum(axis=0) + np.abs(outer).sum(axis=0), rtol=1e-6)
    l2 = pruning.importance(network, groups, "l2")
    np.testing.assert_allclose(l2["stem"], np.sqrt((stem**2).sum(axis=0) + (outer**2).sum(axis=0)), rtol=1e-6)


def test_group_is_the_mean_of_all_members_each_by_its_own_mean():
    inputs = keras.Input((1,))
    x = layers.BatchNormalization(name="norm")(layers.Dense(2, use_bias=False, name="filters")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="reader")(x))
    model.get_layer("filters").kernel.assign([[1.0, -3.0]])  # 1/2, 3/2 of their mean
    model.get_layer("norm").gamma.assign([-6.0, 2.0])  # 3/2, 1/2
    model.get_layer("norm").beta.assign([100.0, 0.0])  # offsets do not count
    model.get_layer("reader").kernel.assign([[0.6, -0.8], [-1.8, 2.4]])  # L2 norms 1 and 3: 1/2, 3/2
    groups = pruning.channel_groups(model)
    scores = pruning.importance(model, groups, "group")["filters"]
    np.testing.assert_allclose(scores, [2.5 / 3, 3.5 / 3], rtol=1e-6)
    model.get_layer("reader").kernel.assign([[60.0, -80.0], [-180.0, 240.0]])  # no layer counts more by its size
    np.testing.assert_allclose(pruning.importance(model, groups, "group")["filters"], scores, rtol=1e-6)


def test_group_takes_of_a_shared_reader_what_reads_it():
    inputs = keras.Input((1,))
    parts = [layers.Dense(2, use_bias=False, name=name)(inputs) for name in ("left", "right")]
    model = keras.Model(inputs, layers.Dense(1, name="reader")(layers.Concatenate()(parts)))
    model.get_layer("left").kernel.assign([[2.0, 2.0]])
    model.get_layer("right").kernel.assign([[1.0, 3.0]])
    model.get_layer("reader").kernel.assign([[1.0], [3.0], [20.0], [20.0]])
    scores = pruning.importance(model, pruning.channel_groups(model), "group")
    np.testing.assert_allclose(scores["left"], [0.75, 1.25], rtol=1e-6)  # 1, 1 and 1/2, 3/2
    np.testing.assert_allclose(scores["right"], [0.75, 1.25], rtol=1e-6)  # 1/2, 3/2 and 1, 1


def test_group_counts_both_ends_of_a_shortcut_and_depthwise_filters():
    inputs = keras.Input((3, 3, 1))
    stem = layers.Conv2D(2, 1, use_bias=False, name="stem")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(stem)
    x = layers.Add()([stem, layers.Conv2D(2, 1, use_bias=False, name="mix")(x)])
    model = keras.Model(inputs, layers.Dense(1, name="head")(layers.GlobalAveragePooling2D()(x)))
    model.get_layer("stem").kernel.assign([[[[1.0, 3.0]]]])  # 1/2, 3/2
    model.get_layer("depthwise").kernel.assign(np.ones((3, 3, 2, 1)) * np.array([[3.0], [1.0]]))  # 3/2, 1/2
    model.get_layer("mix").kernel.assign([[[[0.0, 8.0], [0.0, 0.0]]]])  # as filters 0, 2; as reader 2, 0
    model.get_layer("head").kernel.assign([[1.0], [1.0]])  # 1, 1
    scores = pruning.importance(model, pruning.channel_groups(model), "group")
    np.testing.assert_allclose(scores["stem"], [5 / 5, 5 / 5], rtol=1e-6)
    model.get_layer("mix").kernel.assign([[[[0.0, 8.0], [0.0, 8.0]]]])  # as reader 1, 1
    scores = pruning.importance(model, pruning.channel_groups(model), "group")
    np.testing.assert_allclose(scores["stem"], [4 / 5, 6 / 5], rtol=1e-6)


def test_group_rates_what_is_average_1_in_layers_of_part_of_the_units_too(part_and_whole):
    model, group = part_and_whole
    for weight in model.weights:
        weight.assign(np.ones(weight.shape))
    np.testing.assert_allclose(pruning.importance(model, [group], "group")[group.name], 1, rtol=1e-6)


def test_batch_norm_scales_are_taken_without_their_sign():
    inputs = keras.Input((1,))
    stem = layers.BatchNormalization(name="norm1")(layers.Dense(2, name="stem")(inputs))
    other = layers.BatchNormalization(name="norm2")(layers.Dense(2, name="other")(inputs))
    model = keras.Model(inputs, layers.Dense(1)(layers.Add()([stem, other])))
    model.get_layer("norm1").gamma.assign([-6.0, 2.0])
    model.get_layer("norm2").gamma.assign([1.0, 3.0])
    scores = pruning.importance(model, pruning.channel_groups(model), "batchnorm")
    np.testing.assert_allclose(*scores.values(), [3.5, 2.5])


def test_batch_norm_scales_and_what_has_none(network, groups):
    with pytest.warns(UserWarning, match="1 of 2 groups.*inner"):
        scores = pruning.importance(network, groups, "batchnorm")
    np.testing.assert_allclose(scores["stem"], np.abs(network.get_layer("norm").gamma), rtol=1e-6)
    assert np.isinf(scores["inner"]).all()
    keep = pruning.choose(groups, scores, 0.5, multiple_of=1)
    assert {name: len(kept) for name, kept in keep.items()} == {"stem": 4, "inner": 16}


def test_taylor_foretells_the_loss_of_a_silent_channel(network, groups):
    batches = [(DATA[:8], TARGETS[:8]), (DATA[8:], TARGETS[8:])]
    scores = pruning.importance(network, groups, "taylor", data=batches, loss="mse")["inner"]
    assert scores.shape == (16,)
    assert (scores >= 0).all()
    # Its definition, by finite differences: everything that makes the unit is scaled by 1 - step.
    weights = network.get_weights()
    step, expected = 1e-2, np.zeros(16)
    for unit in range(16):
        for x, y in batches:
            losses = []
            for sign in (-1, 1):
                layer = network.get_layer("inner")
                kernel, bias = (keras.ops.convert_to_numpy(value).copy() for value in (layer.kernel, layer.bias))
                kernel[:, unit] *= 1 + sign * step
                bias[unit] *= 1 + sign * step
                layer.set_weights([kernel, bias])
                outputs = keras.ops.convert_to_numpy(network(x)).astype("float64")
                losses.append(np.square(outputs - y).mean())
                network.set_weights(weights)
            expected[unit] += abs(losses[1] - losses[0]) / (2 * step) / len(batches)
    np.testing.assert_allclose(scores, expected, rtol=2e-2, atol=1e-3)


def test_taylor_rates_frozen_layers_as_the_others(network, groups):
    def rated():
        return pruning.importance(network, groups, "taylor", data=[(DATA, TARGETS)], loss="mse")

    expected = rated()
    network.get_layer("inner").trainable = network.get_layer("norm").trainable = False
    scores = rated()
    flags = [layer.trainable for layer in network.layers]
    trained = len(network.trainable_variables)
    network.trainable = True
    assert expected["inner"].any()
    for name in expected:
        np.testing.assert_allclose(scores[name], expected[name], rtol=1e-5)
    assert flags == [layer.name not in ("inner", "norm") for layer in network.layers]
    assert trained == 6  # kernels and biases of the other three


@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError()])
def test_taylor_counts_examples_as_fit_does(network, groups, loss):
    def rated(weights):
        return pruning.importance(network, groups, "taylor", data=[(DATA, TARGETS, weights)], loss=loss)["inner"]

    few = np.arange(len(DATA)) < 8
    half = pruning.importance(network, groups, "taylor", data=[(DATA[few], TARGETS[few])], loss=loss)["inner"]
    np.testing.assert_allclose(rated(few.astype("float32")), half * few.mean(), rtol=1e-4)
    assert np.abs(rated(np.ones(len(DATA), "float32")) - half).max() > 1e-3


def test_taylor_weighs_the_examples_of_each_output_by_its_own():
    inputs = keras.Input((5,))
    x = layers.Dense(8, name="stem")(inputs)
    model = keras.Model(inputs, {name: layers.Dense(2, name=name)(x) for name in ("a", "b")})
    groups, targets = pruning.channel_groups(model), {"a": TARGETS, "b": TARGETS[::-1]}
    weights = {"a": np.zeros(16, "float32"), "b": np.ones(16, "float32")}
    both = {"a": "mse", "b": "mse"}
    scores = pruning.importance(model, groups, "taylor", data=[(DATA, targets, weights)], loss=both)
    alone = pruning.importance(model, groups, "taylor", data=[(DATA, targets)], loss={"b": "mse"})
    assert alone["stem"].min() > 0
    np.testing.assert_allclose(scores["stem"], alone["stem"], rtol=1e-5)


def test_taylor_wants_data(network, groups):
    with pytest.raises(UserError, match="needs data and a loss"):
        pruning.importance(network, groups, "taylor")
    with pytest.raises(UserError, match="got no data"):
        pruning.importance(network, groups, "taylor", data=[], loss="mse")
    with pytest.raises(UserError, match="Received: ndarray"):
        pruning.importance(network, groups, "taylor", data=(DATA, TARGETS), loss="mse")


def test_random_follows_its_seed(network, groups):
    one, same, other = (pruning.importance(network, groups, "random", seed=seed)["inner"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).all()


SCORES = {"stem": np.arange(8.0), "inner": np.arange(16.0)[::-1] * 100}


def _chosen(groups, *arguments, **settings):
    return {name: kept.tolist() for name, kept in pruning.choose(groups, SCORES, *arguments, **settings).items()}


def test_each_group_loses_its_lowest(groups):
    assert _chosen(groups, 0.5) == {"stem": list(range(8)), "inner": list(range(8))}
    assert _chosen(groups, 0.5, multiple_of=4) == {"stem": [4, 5, 6, 7], "inner": list(range(8))}
    assert _chosen(groups, 0.3, multiple_of=1) == {"stem": list(range(2, 8)), "inner": list(range(11))}  # 2.4, 4.8 go
    assert _chosen(groups, 0.25)["inner"] == list(range(16))  # 12 lie half way: up
    assert _chosen(groups, 0.4)["inner"] == list(range(8))  # 10 are nearer to 8 than to 16
    assert _chosen(groups, 0.9)["inner"] == list(range(8))  # one multiple at least
    assert _chosen(groups, 0.9, multiple_of=1, minimum=3) == {"stem": [5, 6, 7], "inner": [0, 1, 2]}
    assert _chosen(groups, 0.5, multiple_of=1, exclude=["inn*"])["inner"] == list(range(16))
    assert _chosen(groups, 0.5, multiple_of=1, exclude=["outer"])["stem"] == list(range(8))


def test_global_ranking_compares_groups_by_their_means(groups):
    kept = _chosen(groups, 0.5, "global", multiple_of=1)
    relative = {name: scores / scores.mean() for name, scores in SCORES.items()}
    assert sum(map(len, kept.values())) == 12
    lowest_kept = min(relative[name][kept[name]].min() for name in kept)
    for name, scores in relative.items():
        assert (np.delete(scores, kept[name]) <= lowest_kept).all()
    kept = _chosen(groups, 0.25, "global", multiple_of=1)
    assert {name: len(units) for name, units in kept.items()} == {"stem": 6, "inner": 12}  # both rise evenly from 0


def test_no_layer_loses_all_that_it_makes(part_and_whole):
    group = part_and_whole[1]
    scores = np.array([1, 3, 2, 0, 15, 19, 16, 17.0])
    kept = pruning.choose([group], {group.name: scores}, 0.5, multiple_of=1)[group.name]
    assert kept.tolist() == [1, 5, 6, 7]
    kept = pruning.choose([group], {group.name: scores[::-1]}, 0.75, multiple_of=1)[group.name]
    assert kept.tolist() == [2, 6]


def test_multiples_and_minima_count_channels_and_not_units():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(32, 3, groups=4, name="grouped")(layers.Conv2D(16, 1, name="stem")(inputs))
    groups = pruning.channel_groups(keras.Model(inputs, layers.Conv2D(2, 1)(x)))
    group = next(group for group in groups if "stem" in group.layers)
    assert group.width == 4  # units of one channel in each of the four groups
    scores = {each.name: np.arange(each.width, dtype=float) for each in groups}
    for settings, count in (({}, 2), ({"multiple_of": 4}, 1), ({"multiple_of": 1, "minimum": 10}, 3)):
        assert len(pruning.choose(groups, scores, 0.9, **settings)[group.name]) == count


def test_ratios_by_name(groups):
    assert [group.block for group in groups] == ["stem", "sum"]
    kept = _chosen(groups, {"sum": 0.75}, "block", multiple_of=1)
    assert (len(kept["stem"]), len(kept["inner"])) == (8, 4)
    kept = _chosen(groups, {"stem": 0.25}, "layer", multiple_of=1)
    assert (len(kept["stem"]), len(kept["inner"])) == (6, 16)
    kept = _chosen(groups, {"stem": 0.25}, "layer", multiple_of=5)
    assert (len(kept["stem"]), len(kept["inner"])) == (5, 16)  # 16 is no multiple, and is not made one


def test_equal_scores_are_cut_to_the_ratio_too(groups):
    even = {name: np.ones(len(scores)) for name, scores in SCORES.items()}
    for scope in ("global", "layer"):
        kept = pruning.choose(groups, even, 0.5, scope, multiple_of=1)
        assert {name: len(units) for name, units in kept.items()} == {"stem": 4, "inner": 8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 1.0}, r"\[0, 1\).*Received: 1.0"),
        ({"ratio": "0.5"}, r"\[0, 1\).*Received: '0.5'"),
        ({"ratio": [0.5]}, r"\[0, 1\).*Received: \[0.5\]"),
        ({"ratio": 0.5, "multiple_of": "8"}, "integers. Received: multiple_of='8'"),
        ({"ratio": 0.5, "minimum": 2.5}, "integers. Received: multiple_of=8, minimum=2.5"),
        ({"ratio": 0.5, "scope": "everything"}, "global, block, layer"),
        ({"ratio": {"nowhere": 0.5}}, "nowhere"),
        ({"ratio": {"stem": 0.5}, "scope": "global"}, "scope 'block' or 'layer'"),
        ({"ratio": 0.5, "exclude": ["nothing_*"]}, "Nothing to exclude by 'nothing_"),
        ({"ratio": 0.5, "exclude": "nothing"}, "Nothing to exclude by 'nothing'"),
        ({"ratio": 0.5, "multiple_of": 0}, r"multiple_of >= 1.*Received: multiple_of=0"),
        ({"ratio": 0.5, "multiple_of": -8}, r"multiple_of >= 1.*Received: multiple_of=-8"),
        ({"ratio": 0.5, "minimum": -1}, r"minimum >= 1.*minimum=-1"),
    ],
)
def test_wrong_choices_are_refused(groups, settings, message):
    with pytest.raises(UserError, match=message):
        pruning.choose(groups, SCORES, **settings)


def test_unknown_method(network, groups):
    with pytest.raises(UserError, match=r"l1, l2, group, batchnorm, taylor, random.*'l3'"):
        pruning.importance(network, groups, "l3")

"""Sensitivity is measured on a copy, and ratios follow from it; costs are counted and timed."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers

from tfface import pruning
from tfface.errors import UserError
from tfface.evaluation import plots
from tfface.layers import CosineSimilarity
from tfface.pruning import measure


def _table(**drops):
    return [
        {"block": block, "units": units, "ratio": ratio, "value": 1 - drop, "drop": drop}
        for block, (units, points) in drops.items()
        for ratio, drop in [(0.0, 0.0), *points]
    ]


TABLE = _table(tough=(30, [(0.5, 0.0), (0.9, 0.1)]), tender=(10, [(0.5, 0.2), (0.9, 0.6)]))


def test_sensitivity_is_what_the_cut_network_gives(fill):
    inputs = keras.Input((5,))
    x = layers.Dense(8, activation="relu", name="first")(inputs)
    model = fill(keras.Model(inputs, layers.Dense(1)(layers.Dense(4, activation="relu", name="second")(x))))
    data = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
    target = keras.ops.convert_to_numpy(model(data))
    weights = model.get_weights()
    groups = pruning.channel_groups(model)

    def loss(network):
        return float(np.square(keras.ops.convert_to_numpy(network(data)) - target).mean())

    table = pruning.sensitivity(model, groups, loss, ratios=(0.75, 0.25), higher_is_better=False)
    assert [(row["block"], row["units"], row["ratio"]) for row in table] == [
        (name, width, ratio) for name, width in (("first", 8), ("second", 4)) for ratio in (0.0, 0.25, 0.75)
    ]
    scores = pruning.importance(model, groups)
    for row in table:
        keep = pruning.choose(groups, scores, {row["block"]: row["ratio"]}, "block", multiple_of=1)
        assert row["value"] == pytest.approx(loss(pruning.cut(model, keep)), rel=1e-4, abs=1e-6)
        assert row["drop"] == row["value"] - table[0]["value"]
    assert table[2]["drop"] > 0
    quality = pruning.sensitivity(model, groups, lambda network: -loss(network), ratios=(0.75,))
    assert [row["drop"] for row in quality] == pytest.approx([table[place]["drop"] for place in (0, 2, 3, 5)])
    for one, other in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_groups_of_a_block_are_measured_as_the_scope_block_cuts_them(fill):
    inputs = keras.Input((5,))
    x = layers.Dense(6, name="stem")(inputs)
    y = layers.Dense(4, activation="relu", name="even")(layers.Dense(8, activation="relu", name="uneven")(x))
    x = layers.Add(name="sum")([x, layers.Dense(6, name="last")(y)])
    model = fill(keras.Model(inputs, layers.Dense(1)(x)))
    groups = [group for group in pruning.channel_groups(model) if group.block == "sum"]
    scores = {"uneven": np.arange(8.0), "even": np.ones(4)}
    keep = pruning.choose(groups, scores, {"sum": 0.25}, "block", multiple_of=1)
    assert {name: len(kept) for name, kept in keep.items()} == {"uneven": 5, "even": 4}
    data = np.random.default_rng(0).normal(size=(16, 5)).astype("float32")

    def output(network):
        return float(keras.ops.convert_to_numpy(network(data)).sum())

    row = pruning.sensitivity(model, groups, output, (0.25,), scores)[1]
    assert row["value"] == pytest.approx(output(pruning.cut(model, keep, groups)), rel=1e-4)


def test_ratios_within_a_tolerated_drop():
    assert pruning.ratios_from_sensitivity(TABLE, drop=0.0) == {"tough": 0.5, "tender": 0.0}
    assert pruning.ratios_from_sensitivity(TABLE, drop=0.1) == pytest.approx({"tough": 0.9, "tender": 0.25})
    assert pruning.ratios_from_sensitivity(TABLE, drop=0.4) == pytest.approx({"tough": 0.9, "tender": 0.7})


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.5, 0.6, 0.8])
def test_ratios_meet_the_overall_ratio(ratio):
    found = pruning.ratios_from_sensitivity(TABLE, ratio=ratio)
    assert (30 * found["tough"] + 10 * found["tender"]) / 40 == pytest.approx(ratio, abs=1e-6)
    assert found["tough"] >= found["tender"]


def test_a_drop_that_falls_again_is_not_trusted():
    table = _table(odd=(8, [(0.3, 0.2), (0.6, 0.0), (0.9, 0.5)]))
    assert pruning.ratios_from_sensitivity(table, drop=0.1)["odd"] == pytest.approx(0.15)
    table = _table(better=(8, [(0.3, -0.1), (0.6, 0.1)]))  # nor is a gain made up for by a loss
    assert pruning.ratios_from_sensitivity(table, drop=0.0)["better"] == pytest.approx(0.3)


def test_wrong_requests_are_refused():
    with pytest.raises(UserError, match="exactly one"):
        pruning.ratios_from_sensitivity(TABLE)
    with pytest.raises(UserError, match=r"cut 0\.900 of all units"):
        pruning.ratios_from_sensitivity(TABLE, ratio=0.95)


def test_plot_draws_every_block_and_names_the_worst(tmp_path):
    figure = pruning.plot_sensitivity(TABLE, "accuracy", most=1)
    (axes,) = figure.axes
    assert len(axes.lines) == 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["tender"]
    assert plots.save(figure, tmp_path / "sensitivity.png").stat().st_size > 1000


def _costly():
    image = keras.Input((9, 8, 3))
    x = layers.Conv2D(6, 3, strides=2, groups=3, padding="same")(image)  # 5x4 positions, 3*3*1*6 weights
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)  # 3x2, 3*3*6*2
    x = layers.SeparableConv2D(5, 1)(x)  # 3x2, 12 + 12*5
    x = layers.Conv2DTranspose(4, 2, strides=2)(x)  # from 3x2, 2*2*5*4
    return keras.Model(image, layers.Dense(7)(layers.PReLU()(x)))  # 6x4, 4*7


COST = 20 * 54 + 6 * 108 + 6 * 72 + 6 * 80 + 24 * 28


def test_multiply_adds():
    model = _costly()
    assert pruning.multiply_adds(model) == COST
    outer = keras.Input((9, 8, 3))
    assert pruning.multiply_adds(keras.Model(outer, [model(outer), model(outer)])) == 2 * COST
    first = keras.Input((3, 9, 8))
    turned = layers.Conv2D(6, 3, strides=2, padding="same", data_format="channels_first")(first)
    assert pruning.multiply_adds(keras.Model(first, turned)) == 5 * 4 * 9 * 3 * 6
    inner = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 1)])
    assert pruning.multiply_adds(inner, (4, 5, 3)) == 4 * 5 * 6
    with pytest.raises(UserError, match="give input_shape"):
        pruning.multiply_adds(inner)


def test_known_multiply_adds():
    model = keras.applications.MobileNet(weights=None)
    assert pruning.multiply_adds(model) == 568_740_352  # Howard et al., MobileNets (2017), table 4: 569 million


def test_multiply_adds_of_cosines_are_those_of_a_dense_layer(recwarn):
    inputs = keras.Input((5,))
    assert pruning.multiply_adds(keras.Model(inputs, CosineSimilarity(7)(inputs))) == 5 * 7
    assert not recwarn


def test_multiply_adds_name_what_they_leave_out():
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs))
    with pytest.warns(UserWarning, match="attention"):
        assert pruning.multiply_adds(model) == 0


def test_latency_of_words():
    words = keras.Sequential([layers.Input((4,), dtype="int32"), layers.Embedding(2, 3)])
    assert pruning.latency([words], repeats=1)[0] > 0


def test_latency_is_the_least_of_the_rounds_after_two(monkeypatch):
    inputs = keras.Input((1,))
    model, taken, clock = keras.Model(inputs, layers.ReLU()(inputs)), iter([1, 2, 5, 3, 4]), [0]
    monkeypatch.setattr(model, "predict_on_batch", lambda batch: clock.append(clock[-1] + next(taken)))
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock[-1]))
    assert pruning.latency([model], repeats=3) == [3]


def test_latency_gives_a_time_for_each():
    times = pruning.latency([_costly(), _costly()], batch_size=2, repeats=2)
    assert len(times) == 2
    assert all(0 < seconds < 60 for seconds in times)

"""The attention layers against the paper's formulas in plain NumPy."""

import keras
import numpy as np
import pytest

from tfface.layers import ChannelAttention, SpatialAttention, cbam


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def maps():
    return np.random.default_rng(0).normal(size=(2, 5, 6, 32)).astype("float32")


def test_channel_attention_is_equation_2(maps):
    layer = ChannelAttention(reduction=8)
    layer.build(maps.shape)
    layer.hidden_bias.assign(np.linspace(-1, 1, 4))
    layer.output_bias.assign(np.linspace(1, -1, 32))
    hidden, hidden_bias, output, output_bias = (np.asarray(weight) for weight in layer.weights)

    def mlp(vector):
        return np.maximum(vector @ hidden + hidden_bias, 0) @ output + output_bias

    weights = sigmoid(mlp(maps.mean(axis=(1, 2))) + mlp(maps.max(axis=(1, 2))))
    np.testing.assert_allclose(layer(maps), maps * weights[:, None, None], rtol=1e-5, atol=1e-6)


def test_spatial_attention_is_equation_3(maps):
    layer = SpatialAttention(kernel_size=3)
    layer.build(maps.shape)
    pooled = np.stack([maps.max(axis=-1), maps.mean(axis=-1)], axis=-1)
    padded = np.pad(pooled, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = np.asarray(layer.kernel)[..., 0]
    logits = sum(padded[:, i : i + 5, j : j + 6] @ kernel[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(layer(maps), maps * sigmoid(logits)[..., None], rtol=1e-5, atol=1e-6)


def test_cbam_adds_what_the_formula_gives(maps):
    inputs = keras.Input(maps.shape[1:])
    model = keras.Model(inputs, cbam(inputs, "attention"))
    assert model.count_params() == 2 * 32 * 32 // 16 + 32 // 16 + 32 + 2 * 49
    assert [layer.name for layer in model.layers[1:]] == ["attention_channel", "attention_spatial"]
    again = keras.Model.from_config(model.get_config())
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again(maps), model(maps))


def test_fewer_channels_than_the_reduction_are_refused():
    with pytest.raises(ValueError, match="at most the channels, 8"):
        ChannelAttention(16)(np.zeros((1, 2, 2, 8)))


def test_attention_is_over_the_last_axis_whatever_keras_default_is():
    layer, maps = SpatialAttention(3), np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype("float32")
    expected = layer(maps)
    keras.config.set_image_data_format("channels_first")
    try:
        found = layer(maps)
    finally:
        keras.config.set_image_data_format("channels_last")
    np.testing.assert_array_equal(found, expected)

import keras
import numpy as np
import pytest

from tfface.layers import CosineSimilarity, Regroup, feature_mask, pattern_logits


def test_cosines_by_hand():
    layer = CosineSimilarity(2)
    layer.build((None, 2))
    layer.centres.assign([[6.0, 0.0], [8.0, 5.0]])  # columns: along (3, 4), along y, of any length
    np.testing.assert_allclose(layer(np.array([[3.0, 4.0], [-1.0, 0.0]])), [[1.0, 0.8], [-0.6, 0.0]], atol=1e-6)


def test_cosines_are_float32_under_half_precision():
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        assert CosineSimilarity(3)(np.ones((1, 4), "float16")).dtype == "float32"
        layer = CosineSimilarity(2)
        layer.build((None, 2))
        layer.centres.assign([[1.0, 0.0], [0.0003, 1.0]])  # 1 to half precision is 0.9990 to 1.0005
        cosines = layer(np.array([[1.0003, 0.1]], "float32"))
        length = np.hypot(1.0003, 0.1)
        np.testing.assert_allclose(cosines, [[1.00033 / length / np.hypot(1, 0.0003), 0.1 / length]], rtol=1e-6)
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        CosineSimilarity(1)


@pytest.mark.parametrize("sizes", [((28, 24), (14, 12), (7, 6)), ((17, 14), (8, 6), (3, 2)), ((12, 8), (6, 4), (2, 1))])
def test_mask_has_the_shape_of_the_last_maps_and_pattern_reads_it(sizes):
    maps = [keras.Input((*size, width)) for size, width in zip(sizes, (8, 12, 20), strict=True)]
    mask = feature_mask(maps)
    model = keras.Model(maps, [mask, pattern_logits(mask, 101)])
    assert [output.shape for output in model.output] == [(None, *sizes[-1], 20), (None, 101)]
    values = model([np.random.default_rng(0).normal(size=(2, *m.shape[1:])).astype("float32") for m in maps])[0]
    assert 0 < float(keras.ops.min(values)) < float(keras.ops.max(values)) < 1


@pytest.mark.parametrize("fine", [1.0, -9.0])
def test_mask_by_hand(fine):
    """Of each convolution one number counts: the three levels are added, and what is negative shrinks by a PReLU."""
    maps = [keras.Input((*size, 1)) for size in ((28, 24), (14, 12), (7, 6))]
    model = keras.Model(maps, feature_mask(maps))
    for number, weight in ((3, 1.0), (4, 2.0), (5, 3.0)):
        lateral = model.get_layer(f"mask_lateral{number}")
        lateral.kernel.assign(np.zeros(lateral.kernel.shape) + weight)
    for name in ("mask_conv1", "mask_conv2"):
        kernel = np.zeros(model.get_layer(name).kernel.shape)
        kernel[1, 1, 0, 0] = 1
        model.get_layer(name).kernel.assign(kernel)
    model.get_layer("mask_prelu").alpha.assign(np.full(model.get_layer("mask_prelu").alpha.shape, 0.25))
    middle, coarse = np.full((1, 14, 12, 1), 0.5), np.zeros((1, 7, 6, 1))
    coarse[0, 3, 2] = 0.4
    mask = np.asarray(model([np.full((1, 28, 24, 1), fine), middle, coarse]))[0, :, :, 0]
    added = np.full((7, 6), fine + 2 * 0.5)
    added[3, 2] += 3 * 0.4
    logits = np.where(added < 0, 0.25, 1) * added / np.sqrt(1 + 1e-3) + model.get_layer("mask_conv2").bias.numpy()[0]
    np.testing.assert_allclose(mask, 1 / (1 + np.exp(-logits)), rtol=1e-4)


def test_maps_that_do_not_halve_are_refused():
    with pytest.raises(ValueError, match="half the size"):
        feature_mask([keras.Input((12, 8, 8)), keras.Input((4, 3, 8)), keras.Input((2, 1, 8))])


def test_regroup_sums():
    said = np.array([[0.1, 0.2, 0.3, 0.4]], "float32")
    np.testing.assert_allclose(Regroup([0, 1, 1, 0])(said), [[0.5, 0.5]], atol=1e-6)
    with pytest.raises(ValueError, match="divides 4 classes"):
        Regroup([0, 1, 1, 0])(np.ones((1, 3), "float32"))


@pytest.mark.parametrize("layer", [CosineSimilarity(3), Regroup([0, 1, 1, 0])])
def test_config_round_trip(layer):
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()

import keras
import numpy as np
import pytest

from tfface.layers import GreyImage


def test_grey_by_hand():
    pixels = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]]], "float32")
    grey = np.asarray(GreyImage(mean=0.25)(pixels))
    np.testing.assert_allclose(grey[0, 0], np.array([[0.049, 0.337, -0.136, 0.75]]).T.repeat(3, 1), atol=1e-6)
    assert GreyImage(channels=1)(pixels).shape == (1, 1, 4, 1)


def test_half_precision_keeps_neighbouring_greys_apart():
    pixels = np.full((1, 1, 2, 3), 131, "float32") + np.array([0, 1])[None, None, :, None]
    grey = np.asarray(GreyImage(dtype="mixed_float16")(pixels), "float32")
    assert grey[0, 0, 1, 0] - grey[0, 0, 0, 0] == pytest.approx(1 / 255, rel=0.1)


def test_config_round_trip():
    layer = GreyImage(mean=0.4, channels=1)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()

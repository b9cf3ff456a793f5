import keras
import numpy as np
import pytest

from tfface.faces.align import mean_centred_grey
from tfface.layers import GreyImage


def test_grey_by_hand():
    pixels = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]]], "float32")
    grey = np.asarray(GreyImage()(pixels))
    # The mean of 0.299, 0.587, 0.114 and 1 is 0.5.
    np.testing.assert_allclose(grey[0, 0], np.array([[0.3995, 0.5435, 0.307, 0.75]]).T.repeat(3, 1), atol=1e-6)
    assert GreyImage(channels=1)(pixels).shape == (1, 1, 4, 1)


def test_it_is_the_preprocessing_of_single_photos():
    photos = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3)).astype("uint8")
    photos[1] //= 3  # a dark one
    expected = np.stack([mean_centred_grey(photo) for photo in photos])
    np.testing.assert_allclose(GreyImage(channels=1)(photos), expected, atol=1 / 255)  # which rounds to whole greys


def test_half_precision_keeps_neighbouring_greys_apart():
    pixels = np.full((1, 1, 2, 3), 131, "float32") + np.array([0, 1])[None, None, :, None]
    grey = np.asarray(GreyImage(dtype="mixed_float16")(pixels), "float32")
    assert grey[0, 0, 1, 0] - grey[0, 0, 0, 0] == pytest.approx(0.5 / 255, rel=0.3)


def test_config_round_trip():
    layer = GreyImage(channels=1)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()

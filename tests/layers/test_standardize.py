import numpy as np
import pytest

from tfface.layers import StandardizeImage


def test_each_image_by_hand():
    first = np.array([[[10, 30, 10], [30, 10, 30]]], "float32")  # mean 20, deviation 10
    second = np.array([[[0, 0, 0], [0, 0, 60]]], "float32")  # mean 10, deviation sqrt((5 * 100 + 2500) / 6)
    deviation = 500**0.5
    expected = [[[[-1, 1, -1], [1, -1, 1]]], [[[-10 / deviation] * 3, [-10 / deviation] * 2 + [50 / deviation]]]]
    np.testing.assert_allclose(StandardizeImage()(np.stack([first, second])), expected, rtol=1e-5)


def test_a_flat_image_is_divided_by_one_over_the_root_of_its_values():
    flat = np.full((1, 2, 2, 4), 7, "float32")
    np.testing.assert_array_equal(StandardizeImage()(flat), np.zeros_like(flat))
    flat[0, 0, 0, 0] += 0.016  # mean 7.001, deviation 0.0039, less than 1 / sqrt(16)
    assert float(StandardizeImage()(flat)[0, 0, 0, 0]) == pytest.approx(0.015 * 4, rel=1e-3)


def test_half_precision_keeps_the_small_differences_of_an_image():
    image = np.array([[[[200.0], [200.05]]]], "float32").repeat(200, 1)  # 1 / sqrt(400): divided by 0.05
    said = np.asarray(StandardizeImage(dtype="mixed_float16")(image), "float32")
    np.testing.assert_allclose(said[0, 0, :, 0], [-0.5, 0.5], rtol=1e-2)

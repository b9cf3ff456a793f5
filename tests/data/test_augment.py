import numpy as np
import tensorflow as tf

from tfface.data import augment


def test_a_random_crop_keeps_its_share_at_any_place():
    rows, columns = np.mgrid[0:40, 0:60]
    image = tf.constant(np.stack([rows, columns, rows * 0], axis=2), tf.float32)
    seen = []
    for seed in range(40):
        crop = augment.crop_at_random(image, 0.5, tf.constant([seed, 7])).numpy()
        height, width = crop.shape[:2]
        assert 20 <= height <= 40
        assert 30 <= width <= 60
        assert width / height == np.clip(width / height, 1.4, 1.6)
        top, left = crop[0, 0, :2]
        np.testing.assert_array_equal(crop[..., 0], rows[:height, :width] + top)
        np.testing.assert_array_equal(crop[..., 1], columns[:height, :width] + left)
        seen.append((height, top, left))
    assert len(set(seen)) > 30
    again = augment.crop_at_random(image, 0.5, tf.constant([39, 7])).numpy()
    np.testing.assert_array_equal(again, crop)


def test_a_crop_of_everything_changes_nothing():
    image = tf.random.stateless_uniform((8, 9, 3), (0, 0))
    np.testing.assert_array_equal(augment.crop_at_random(image, 1.0, tf.constant([0, 0])), image)

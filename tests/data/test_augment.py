import numpy as np
import tensorflow as tf

from tfface.data import augment
from tfface.data.pipeline import View
from tfface.faces.occlude import occlude_training, pattern
from tfface.faces.occluders import load_occluders

LANDMARKS = tf.constant([[0.3, 0.4], [0.7, 0.35], [0.5, 0.55], [0.4, 0.7], [0.65, 0.75]])


def test_a_random_crop_keeps_its_share_at_any_place():
    rows, columns = np.mgrid[0:40, 0:60]
    image = tf.constant(np.stack([rows, columns, rows * 0], axis=2), tf.float32)
    seen = []
    for seed in range(40):
        crop = augment.crop_at_random(image, LANDMARKS, 0.5, tf.constant([seed, 7]))[0].numpy()
        height, width = crop.shape[:2]
        assert 20 <= height <= 40
        assert 30 <= width <= 60
        assert width / height == np.clip(width / height, 1.4, 1.6)
        top, left = crop[0, 0, :2]
        np.testing.assert_array_equal(crop[..., 0], rows[:height, :width] + top)
        np.testing.assert_array_equal(crop[..., 1], columns[:height, :width] + left)
        seen.append((height, top, left))
    assert len(set(seen)) > 30
    shares = (np.array(seen) / (20, 20, 30))[:, 0] - 1
    assert 0.4 < shares.mean() < 0.6  # drawn evenly
    again = augment.crop_at_random(image, LANDMARKS, 0.5, tf.constant([39, 7]))[0].numpy()
    np.testing.assert_array_equal(again, crop)


def test_a_crop_of_everything_changes_nothing():
    image = tf.random.stateless_uniform((8, 9, 3), (0, 0))
    crop, landmarks = augment.crop_at_random(image, LANDMARKS, 1.0, tf.constant([0, 0]))
    np.testing.assert_array_equal(crop, image)
    np.testing.assert_allclose(landmarks, LANDMARKS, atol=1e-6)


def test_landmarks_stay_on_the_face_whatever_is_cut_out_or_mirrored():
    width, height = 300, 200
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    image = tf.constant(np.stack([x, y, x * 0], axis=2), tf.float32)  # what each pixel was, as shares
    views, mirrored = (View(), View(0.8), View(0.9, mirror=True), View(mirror=True)), set()
    for seed in range(40):
        picture, landmarks = augment.draw_view(image, LANDMARKS, views, tf.constant([seed, 3]))
        picture, landmarks = augment.crop_at_random(picture, landmarks, 0.6, tf.constant([seed, 4]))
        turned = bool(picture[0, 0, 0] > picture[0, -1, 0])
        mirrored.add(turned)
        for (x, y), (was_x, was_y) in zip(
            landmarks.numpy(), LANDMARKS.numpy()[[1, 0, 2, 4, 3] if turned else slice(None)], strict=True
        ):
            row, column = int(y * picture.shape[0]), int(x * picture.shape[1])
            if 0 <= row < picture.shape[0] and 0 <= column < picture.shape[1]:
                np.testing.assert_allclose(picture[row, column, :2], (was_x, was_y), atol=0.5 / height + 1e-4)
    assert mirrored == {True, False}


def test_faces_are_covered_as_their_key_the_epoch_and_the_seed_say():
    """To the bit what the function of NumPy does, with the landmarks in pixels and the pattern of what is hidden."""
    image = tf.round(tf.random.stateless_uniform((112, 96, 3), (1, 2), 0, 255))
    options = {"worn_masks": 0.5, "landmarks": LANDMARKS.numpy() * (96, 112)}
    parts = set()
    for key, epoch, seed in (("a", 0, 0), ("b", 0, 0), ("a", 5, 0), ("a", 0, 7), ("c", 1, 1), ("d", 1, 1)):
        rows = tf.data.Dataset.from_tensors((image, key, epoch))
        rows = rows.map(lambda *row, seed=seed: augment.occlude(row[0], LANDMARKS, *row[1:], seed, 0.8, 0.5))
        [(covered, part)] = rows
        pixels = image.numpy().astype("uint8")
        expected = occlude_training(pixels, key, epoch, seed, load_occluders(), 0.2, **options)
        np.testing.assert_array_equal(covered, expected.image)
        assert part == pattern(expected.box, (112, 96))
        parts.add(int(part))
    assert len(parts) > 2


def test_mixup_blends_images_and_targets_by_the_same_share():
    images = tf.reshape(tf.range(5, dtype=tf.float32), (5, 1, 1, 1)) * tf.ones((5, 2, 3, 3)) * 10
    targets = {"gender": tf.one_hot([0, 1, 0, 1, 1], 2), "age": tf.one_hot(range(5), 5)}
    mixed, blended = augment.mixup(images, targets, 0.4, tf.constant([3, 1]))
    age = blended["age"].numpy()
    np.testing.assert_allclose(age.sum(axis=1), 1, atol=1e-6)
    shares = age[np.arange(5), np.arange(5)]
    assert len(set(shares[[0, 1, 3, 4]].tolist())) == 4  # one for each image
    assert shares[2] == 1  # the middle one stands opposite itself
    for place, share in enumerate(shares):
        other = 4 - place
        np.testing.assert_allclose(
            mixed[place], np.full((2, 3, 3), 10 * (share * place + (1 - share) * other)), rtol=1e-5
        )
        expected = share * targets["gender"][place] + (1 - share) * targets["gender"][other]
        np.testing.assert_allclose(blended["gender"][place], expected, atol=1e-6)
    again, _ = augment.mixup(images, targets, 0.4, tf.constant([3, 1]))
    np.testing.assert_array_equal(mixed, again)
    other, _ = augment.mixup(images, targets, 0.4, tf.constant([4, 1]))
    assert not np.array_equal(mixed, other)


def test_mixup_draws_its_shares_from_beta():
    count, alpha = 20_001, 0.3
    _, blended = augment.mixup(
        tf.zeros((count, 1, 1, 1)), {"which": tf.one_hot([0] * 10_000 + [1] * 10_001, 2)}, alpha, [5, 6]
    )
    shares = blended["which"][:10_000, 1].numpy()
    assert abs(shares.mean() - 0.5) < 0.02
    assert abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.005  # variance of Beta(alpha, alpha)


def test_mixup_of_hardly_any_alpha_leaves_images_alone():
    count = 20_001
    _, blended = augment.mixup(
        tf.zeros((count, 1, 1, 1)), {"which": tf.one_hot([0] * 10_000 + [1] * 10_001, 2)}, 0.01, [5, 6]
    )
    shares = blended["which"][:10_000, 1].numpy()
    assert ((shares > 0.25) & (shares < 0.75)).mean() < 0.02  # 0.011 of Beta(0.01, 0.01)


def test_noise_is_normal_and_another_for_each_seed():
    grey = tf.fill((64, 64, 3), 128.0)
    first, again, other = (augment.add_noise(grey, 4.0, seed).numpy() - 128 for seed in ([1, 2], [1, 2], [2, 2]))
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.05
    assert abs(first.mean()) < 0.15  # of 12,288 values with a deviation of 4: four standard errors
    assert abs(first.std() - 4) < 0.15
    assert abs((np.abs(first) < 4).mean() - 0.683) < 0.02
    black = augment.add_noise(tf.zeros((8, 8, 3)), 4.0, [1, 2]).numpy()
    assert black.min() == 0
    assert black.max() > 0

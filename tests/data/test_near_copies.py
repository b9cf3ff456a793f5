"""Near copies of real faces are found, other people are not."""

import cv2
import numpy as np
import pytest

from tfface.data.near_copies import NEAR, near_groups, near_others, perceptual_hash


@pytest.fixture(scope="module")
def faces(samples):
    return [cv2.imread(str(path))[:, :, ::-1] for path in sorted((samples / "men_women").glob("*/*.jpg"))]


def both(image):
    return perceptual_hash(image), perceptual_hash(np.ascontiguousarray(image[:, ::-1]))


def bits(first, second):
    return int((perceptual_hash(first) != perceptual_hash(second)).sum())


def test_hash_is_the_signs_of_low_frequencies():
    rng = np.random.default_rng(0)
    signs = rng.permutation(np.repeat([True, False], 128)).reshape(16, 16)
    signs[0, 0], signs[np.unravel_index(np.argmax(signs), signs.shape)] = True, signs[0, 0]  # light has no minus
    waves = np.cos(np.pi * np.arange(16)[:, None] * (np.arange(64) + 0.5) / 64)  # (frequency, pixel)
    grey = 128 + 3 * waves.T @ np.where(signs, 1.0, -1.0) @ waves
    image = np.repeat(np.clip(np.round(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(perceptual_hash(image), signs.ravel())


def test_changed_copies_are_near_and_other_people_are_not(faces):
    rng = np.random.default_rng(0)
    for image in faces[::20]:
        height, width = image.shape[:2]
        small = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        jpeg = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)
        dark = (image * 0.6).astype(np.uint8)
        noisy = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
        for changed in (small, jpeg, dark, noisy):
            assert bits(image, np.ascontiguousarray(changed)) <= NEAR
        assert bits(image, np.ascontiguousarray(image[:, ::-1])) > NEAR
    hashes = np.array([perceptual_hash(image) for image in faces])
    distances = (hashes[:, None] != hashes[None]).sum(axis=2)[np.triu_indices(len(faces), 1)]
    assert (distances <= NEAR).mean() < 1e-4  # of 79,800 pairs


def test_groups_join_chains_and_mirror_images(capsys):
    rng = np.random.default_rng(0)
    first = rng.random((2, 256)) < 0.5
    second, third = first.copy(), first.copy()
    second[:, :NEAR] ^= True
    third[:, : 2 * NEAR] ^= True  # far from the first, near the second
    mirrored = first[::-1].copy()
    far = first.copy()
    far[:, NEAR : 2 * NEAR + 1] ^= True
    others = rng.random((1500, 2, 256)) < 0.5  # more than one block
    groups = near_groups(np.stack([first, second, *others, third, mirrored]))
    assert "Comparing all with all" in capsys.readouterr().err
    assert groups[0] == groups[1] == groups[-2] == groups[-1]
    assert len(set(groups)) == 1501
    assert len(set(near_groups(np.stack([first, far])))) == 2
    assert near_groups(np.stack([first, far]), distance=NEAR + 1).tolist() == [0, 0]
    assert near_groups(np.zeros((0, 2, 256), bool)).tolist() == []


def test_groups_of_real_faces(faces):
    crops = [*faces[:100], faces[3][:, ::-1], (faces[7] * 0.5).astype(np.uint8)]
    groups = near_groups(np.array([both(np.ascontiguousarray(crop)) for crop in crops]))
    assert groups[100] == groups[3]
    assert groups[101] == groups[7]
    assert len(set(groups)) >= 98


def test_near_copies_among_others_are_found():
    random = np.random.default_rng(0)
    photos = random.random((5, 2, 256)) < 0.5
    others = random.random((4, 2, 256)) < 0.5
    others[1, 0] = photos[3, 0]
    others[1, 0, :40] ^= True  # 40 bits off
    others[2, 0] = photos[0, 1]  # the mirror image
    assert near_others(photos, others).tolist() == [True, False, False, True, False]
    assert near_others(photos, others, distance=39).tolist() == [True, False, False, False, False]

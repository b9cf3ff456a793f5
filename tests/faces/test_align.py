"""Alignment: where points and pixels of a photo come to lie in the crop."""

import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest

from tfface.errors import UserError
from tfface.faces import align
from tfface.faces.photos import read_photo

UPRIGHT = np.array([[110, 120], [170, 118], [142, 155], [118, 185], [166, 184]], float)


def turned(points, degrees, scale, shift):
    angle = np.deg2rad(degrees)
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ rotation.T + shift


def centroid(grey):
    rows, columns = np.indices(grey.shape)
    return np.array([(columns * grey).sum(), (rows * grey).sum()]) / grey.sum()


def test_similarity_is_recovered():
    random = np.random.default_rng(1)
    for _ in range(20):
        degrees, scale, shift = random.uniform(-180, 180), random.uniform(0.1, 5), random.uniform(-200, 200, 2)
        matrix = align.similarity(UPRIGHT, turned(UPRIGHT, degrees, scale, shift))
        np.testing.assert_allclose(
            align.transform(UPRIGHT, matrix), turned(UPRIGHT, degrees, scale, shift), rtol=0, atol=1e-9
        )


def test_similarity_is_the_least_squares_one():
    random = np.random.default_rng(2)
    source, target = random.normal(size=(5, 2)), random.normal(size=(5, 2))

    # The linear least-squares solution of x' = a x - b y + c, y' = b x + a y + d, found another way.
    x, y = source.T
    one, zero = np.ones(5), np.zeros(5)
    system = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, c, d = np.linalg.lstsq(system, target.T.reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(align.similarity(source, target), [[a, -b, c], [b, a, d]], atol=1e-12)


@pytest.mark.parametrize("size", [(112, 96), (112, 112), (224, 192)])
@pytest.mark.parametrize("degrees", [-35, 0, 20])
def test_five_points_land_on_the_reference(size, degrees):
    reference = align.FIVE_POINTS_112x96 * size[0] / 112 + (0 if size[0] != size[1] else (8, 0))
    landmarks = turned(reference, degrees, 2.3, (60, 90))
    matrix = align.five_point_matrix(landmarks, size)
    assert np.abs(align.transform(landmarks, matrix) - reference).max() < 1e-3
    assert np.abs(align.transform(reference, align.invert(matrix)) - landmarks).max() < 1e-2


def test_pixels_follow_the_points():
    """A dot drawn on each landmark of a photo is found within a pixel of its reference place."""
    landmarks = turned(align.FIVE_POINTS_112x96, 17, 2.5, (120, 80))
    for point, reference in zip(landmarks, align.FIVE_POINTS_112x96, strict=True):
        photo = np.zeros((500, 500, 3), np.uint8)
        cv2.circle(
            photo, tuple(np.rint(point * 256).astype(int).tolist()), 6 * 256, (255, 255, 255), -1, cv2.LINE_AA, 8
        )
        crop = align.align_five_point(photo, landmarks)
        assert crop.shape == (112, 96, 3)
        assert np.abs(centroid(crop[..., 0].astype(float)) - reference).max() < 0.5


def test_eyes_lie_at_32_and_38_percent():
    matrix = align.eye_matrix((300, 210), (380, 250))
    left, right = align.transform([(300, 210), (380, 250)], matrix)
    np.testing.assert_allclose(left + 0.5, (0.32 * 224, 0.38 * 224))
    np.testing.assert_allclose(right + 0.5, (0.68 * 224, 0.38 * 224))


def test_eyes_of_real_faces_after_alignment(samples):
    """Paper 1's alignment on dlib's 68 landmarks: dots on the eyes come out within 1.5 pixels of their places."""
    folder = samples / "photos" / "dlib_faces"
    expected = np.array([(0.32, 0.38), (0.68, 0.38)]) * 224 - 0.5
    faces = 0
    for image in ElementTree.parse(folder / "testing_with_face_landmarks.xml").getroot().iter("image"):
        photo = read_photo(folder / image.get("file"))
        for box in image.iter("box"):
            points = np.array([(float(part.get("x")), float(part.get("y"))) for part in box.iter("part")])
            eyes = np.stack([points[36:42].mean(axis=0), points[42:48].mean(axis=0)])
            for eye, place in zip(eyes, expected, strict=True):
                dots = np.zeros_like(photo)
                cv2.circle(
                    dots, tuple(np.rint(eye * 256).astype(int).tolist()), 512, (255, 255, 255), -1, cv2.LINE_AA, 8
                )
                crop = align.align_eyes(dots, *eyes)
                assert np.hypot(*(centroid(crop[..., 0].astype(float)) - place)) < 1.5
            faces += 1
    assert faces >= 20


def test_margin_crop_is_the_box_between_margins():
    photo = np.zeros((200, 300, 3), np.uint8)
    photo[50:114, 100:228] = 255  # a box of 128 x 64 pixels becomes the middle 128 x 128 of 160
    crop = align.crop_with_margin(photo, (100, 50, 228, 114), size=160, margin=32)
    assert crop.shape == (160, 160, 3)
    assert (crop[18:142, 18:142] == 255).all()
    assert (crop[:14] == 0).all()
    assert (crop[:, :14] == 0).all()


def test_identity_and_edges():
    photo = np.random.default_rng(0).integers(0, 255, (160, 160, 3), np.uint8)
    assert (align.crop_with_margin(photo, (0, 0, 160, 160), 160, 0) == photo).all()
    outside = align.crop_with_margin(photo, (-40, -40, 120, 120), 160, 0)
    assert (outside[40:, 40:] == photo[:120, :120]).all()
    assert (outside[:40, :40] == photo[0, 0]).all()


def test_shrinking_averages_instead_of_skipping():
    """A checkerboard of single pixels is grey from afar; bilinear sampling alone would make it black or white."""
    rows, columns = np.indices((1600, 1600))
    photo = np.repeat(((rows + columns) % 2 * 255).astype(np.uint8)[..., None], 3, axis=-1)
    crop = align.crop_with_margin(photo, (0, 0, 1600, 1600), 160, 0)
    assert np.abs(crop.astype(int) - 127).max() <= 8
    photo = np.zeros((1600, 1600, 3), np.uint8)
    photo[800:, 400:] = 255
    crop = align.crop_with_margin(photo, (0, 0, 1600, 1600), 160, 0)[..., 0].astype(int)
    assert (crop[82:, 42:] == 255).all()
    assert (crop[:78] == 0).all()
    assert (crop[:, :38] == 0).all()


def test_grey_mean_centred_in_the_unit_interval():
    photo = np.random.default_rng(3).integers(0, 100, (224, 224, 3), np.uint8)
    grey = align.mean_centred_grey(photo)
    assert grey.shape == (224, 224, 1)
    assert grey.dtype == np.float32
    assert grey.min() >= 0
    assert grey.max() <= 1
    assert abs(grey.mean() - 0.5) < 1e-4


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: align.eye_matrix((5, 5), (5, 5)), "differ"),
        (lambda: align.five_point_matrix(np.full((5, 2), np.nan)), "finite"),
        (lambda: align.five_point_matrix(UPRIGHT, (100, 50)), "112x96"),
        (lambda: align.similarity([(0, 1), (0, -1), (1, 0), (-1, 0)], [(0, 1), (0, -1), (-1, 0), (1, 0)]), "near"),
        (lambda: align.five_point_matrix(np.zeros((68, 2))), r"\(68, 2\)"),
        (lambda: align.margin_matrix((10, 10, 10, 20)), "x0 < x1"),
        (lambda: align.margin_matrix((0, np.nan, 10, 20)), "finite"),
        (lambda: align.margin_matrix((0, 0, 10, 20), 160, 160), "margin"),
    ],
)
def test_bad_points_are_refused(call, word):
    with pytest.raises(UserError, match=word):
        call()

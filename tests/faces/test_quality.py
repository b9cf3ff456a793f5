import cv2
import numpy as np
import pytest

from tfface.errors import UserError
from tfface.faces import quality, synthesize
from tfface.faces.detect import load_detector
from tfface.faces.head import FACE_POINTS
from tfface.faces.photos import read_photo


@pytest.fixture(scope="module")
def frontal():
    face = synthesize.face(5, yaw=0, size=320)
    return face.image, np.asarray(face.landmarks, float)


@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (20, 0), (-35, 0), (0, 20), (0, -15), (25, -15)])
def test_frontality_is_the_squared_cosine_of_the_angle(yaw, pitch):
    """The five points of a head in space, turned by known angles and seen from afar."""
    yaw, pitch = np.radians([yaw, pitch])
    across = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    along = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    turned = FACE_POINTS @ (along @ across).T
    expected = (np.cos(yaw) * np.cos(pitch)) ** 2
    assert quality.frontality(60 * turned[:, :2] + 100) == pytest.approx(expected, abs=0.02)


def test_frontality_falls_as_the_head_turns_and_not_as_it_leans(frontal):
    _, points = frontal
    turned = [
        np.mean([quality.frontality(synthesize.face(seed, yaw=yaw).landmarks) for seed in range(4)])
        for yaw in (0, 12, 25)
    ]
    assert turned[0] > turned[1] > turned[2]
    angle = np.radians(30)
    lean = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert quality.frontality(points @ lean.T) == pytest.approx(quality.frontality(points), abs=1e-9)


def test_sharpness_falls_with_blur(frontal):
    image, points = frontal
    eyes = np.linalg.norm(points[1] - points[0])
    blurred = [
        quality.sharpness(cv2.GaussianBlur(image, (0, 0), share * eyes) if share else image, points)
        for share in (0, 0.03, 0.06, 0.12)
    ]
    assert blurred == sorted(blurred, reverse=True)
    assert blurred[-1] < 0.5 * blurred[0]


def test_sharpness_minds_neither_light_nor_contrast_nor_size(frontal):
    image, points = frontal
    sharp = quality.sharpness(image, points)
    dim = (image * 0.4 + 20).astype(np.uint8)
    assert quality.sharpness(dim, points) == pytest.approx(sharp, abs=0.03)
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    assert quality.sharpness(half, (points + 0.5) / 2 - 0.5) == pytest.approx(sharp, abs=0.05)
    assert quality.sharpness(np.full_like(image, 90), points) == 0


def test_size_is_the_distance_of_the_eyes(frontal):
    _, points = frontal
    unit = points / np.linalg.norm(points[1] - points[0])
    assert quality.size(unit * 31) == pytest.approx(0.5, abs=0.03)
    assert quality.size(unit * 200) == 1


def test_the_score_is_the_product(frontal):
    image, points = frontal
    parts = quality.quality(image, points)
    assert parts.score == parts.sharpness * parts.frontality * parts.size
    assert 0 < parts.score <= 1


def test_landmarks_that_are_no_face_are_an_error(frontal):
    image, points = frontal
    for wrong in (np.zeros((5, 2)), np.full((5, 2), np.nan), points[[1, 0, 2, 3, 4]]):
        with pytest.raises(UserError, match="landmarks"):
            quality.quality(image, wrong)
    with pytest.raises(UserError, match="five landmarks"):
        quality.sharpness(image, points[:3])


def test_real_faces_blurred_are_worse(samples):
    """Of the same photos, blurred ones score less, every single one."""
    detector = load_detector("mtcnn", min_face_size=40, score_threshold=0.9)
    photos = [read_photo(path) for path in sorted((samples / "lfw" / "lfw-deepfunneled").rglob("*.jpg"))[:300:20]]
    for photo, faces in zip(photos, detector(photos), strict=True):
        points = faces.landmarks[int(np.argmin(np.abs(faces.boxes[:, :2] + faces.boxes[:, 2:] - 250).sum(axis=1)))]
        blurred = cv2.GaussianBlur(photo, (0, 0), 4)
        assert quality.quality(blurred, points).score < 0.6 * quality.quality(photo, points).score

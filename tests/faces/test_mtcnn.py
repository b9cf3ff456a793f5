"""MTCNN against the package whose weights it runs on: the same faces, whatever the batch."""

import threading

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfface.faces import mtcnn, pyramid
from tfface.faces.photos import find_photos, read_photo


@pytest.fixture(scope="module")
def detector():
    return mtcnn.MTCNN()


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("mtcnn").MTCNN()


def overlaps(a, b):
    """Intersection over union of boxes (n, 4) and (m, 4): (n, m)."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b))
    return shared / (area_a[:, None] + area_b - shared)


def test_the_same_faces_as_the_package(samples, detector, package):
    """Of its faces of score 0.9 and more 99 % are matched at IoU 0.9, landmarks within 2 pixels, none invented."""
    groups = [photo for photo in find_photos([samples / "photos"]) if photo.stem != "bald_guys"]
    people = list(find_photos([samples / "lfw" / "lfw-deepfunneled"]))[::100]
    faces = matched = 0
    for path in (*groups, *people):
        photo = read_photo(path)
        theirs = np.reshape(package.detect_faces(photo, output_type="numpy", box_format="xyxy"), (-1, 16))
        ours = detector([photo])[0]
        sure = theirs[theirs[:, 5] >= 0.9]
        if len(sure) and len(ours):
            found = overlaps(sure[:, 1:5], ours.boxes)
            same = found.max(axis=1) >= 0.9
            points = sure[:, 6:].reshape(-1, 2, 5).transpose(0, 2, 1)
            distance = np.abs(ours.landmarks[found.argmax(axis=1)] - points).max(axis=(1, 2))
            assert (distance[same] < 2).all(), path
            matched += same.sum()
        faces += len(sure)
        invented = ours.select(ours.scores >= 0.9)
        assert not len(invented) or (len(theirs) and (overlaps(invented.boxes, theirs[:, 1:5]).max(axis=1) > 0.5).all())
    assert faces >= 80
    assert matched >= 0.99 * faces


@pytest.mark.parametrize(("stage", "size"), [(0, 61), (1, 24), (2, 48)])
def test_networks_compute_what_the_package_computes(package, stage, size):
    pixels = np.random.default_rng(stage).integers(0, 256, (7, size, size, 3)).astype(np.float32)
    theirs = [np.asarray(part) for part in package.stages[stage].model((pixels - 127.5) / 128)]
    builder = (mtcnn.proposal_network, mtcnn.refinement_network, mtcnn.output_network)[stage]
    ours = np.asarray(mtcnn._pretrained(builder())(pixels))
    np.testing.assert_allclose(1 / (1 + np.exp(-ours[..., 0])), theirs[-1][..., 1], atol=1e-5)
    np.testing.assert_allclose(ours[..., 1:], np.concatenate(theirs[:-1], axis=-1), atol=1e-4)


@pytest.mark.parametrize("of_smaller", [False, True])
def test_suppression_is_that_of_all_pairs(of_smaller):
    random = np.random.default_rng(5)
    corner = random.uniform(0, 400, (700, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 40, (700, 2))], axis=1).astype(np.float32)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    union = overlaps(boxes, boxes)
    shared = union / (1 + union) * (area[:, None] + area)
    overlap = shared / np.minimum(area[:, None], area) if of_smaller else union
    expected = ~(np.triu(overlap, 1) > 0.5).any(axis=0)
    assert 100 < expected.sum() < 690
    assert (mtcnn.suppress(boxes, 0.5, of_smaller) == expected).all()


def test_pyramid_scales_are_the_package_s():
    from mtcnn.utils.images import build_scale_pyramid

    for height, width in ((480, 640), (250, 250), (100, 4000), (33, 40)):
        expected = build_scale_pyramid(width, height, min_face_size=20, scale_factor=0.709)
        np.testing.assert_allclose(pyramid.pyramid_scales(height, width, 20), expected)
    assert pyramid.pyramid_scales(19, 500, 20) == []


@pytest.mark.parametrize(("height", "width"), [(480, 640), (333, 250), (250, 250), (41, 700)])
def test_levels_lie_apart_and_hold_the_averages_of_areas(height, width):
    photo = np.random.default_rng(height).integers(0, 256, (1, height, width, 3), np.uint8)
    canvases = pyramid.pyramid(height, width, 20.0, 1 << 14)
    assert sum(np.prod(canvas.shape) for canvas in canvases) < 2.6 * height * width * 0.6**2
    scales = np.concatenate([canvas.scales for canvas in canvases])
    np.testing.assert_allclose(scales, pyramid.pyramid_scales(height, width, 20), rtol=1e-6)
    for canvas in canvases:
        drawn = canvas.draw(photo)[0]
        assert drawn.shape == (*canvas.shape, 3)
        taken = np.zeros(canvas.shape, int)
        for scale, (x0, y0, x1, y1) in zip(canvas.scales, canvas.boxes, strict=True):
            assert (x1 - x0, y1 - y0) == (int(width * scale), int(height * scale))
            expected = tf.image.resize(photo[0], (y1 - y0, x1 - x0), tf.image.ResizeMethod.AREA)
            np.testing.assert_allclose(drawn[y0:y1, x0:x1], expected, atol=0.01)
            taken[y0:y1, x0:x1] += 1
        assert taken.max() == 1
        assert not drawn[taken == 0].any()


def test_canvases_give_what_levels_alone_give():
    """To the border, where the pooling of a level of odd size takes in less than elsewhere."""
    network = mtcnn._pretrained(mtcnn.proposal_network())
    features = keras.Model(network.input, network.layers[-2].output)
    photos = np.random.default_rng(0).integers(0, 256, (2, 203, 251, 3), np.uint8)
    canvases = pyramid.pyramid(203, 251, 20.0, 1 << 20)
    sizes = np.concatenate([canvas.boxes[:, 2:] - canvas.boxes[:, :2] for canvas in canvases])
    assert (sizes % 2).any(axis=0).all()
    for canvas in canvases:
        drawn = canvas.draw(photos)
        found = np.asarray(mtcnn._canvas_features(network, drawn, canvas.strip_edges(0, 2)))
        for number, (x0, y0, x1, y1) in enumerate(canvas.boxes):
            alone = np.asarray(features(drawn[:, y0:y1, x0:x1]))
            own = canvas.level == number
            assert own.sum() == alone.shape[1] * alone.shape[2]
            np.testing.assert_allclose(found[:, own], alone.reshape(2, -1, 32), atol=1e-4)


@pytest.fixture(scope="module")
def photos(samples):
    groups = [read_photo(samples / "photos" / "groups" / f"bbt{number}.jpg") for number in (2, 3, 4)]
    people = [read_photo(path) for path in list(find_photos([samples / "lfw" / "lfw-deepfunneled"]))[:3]]
    return [groups[0], people[0], groups[1], np.zeros((40, 300, 3), np.uint8), people[1], groups[2], people[2]]


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a.boxes, b.boxes, atol=0.01)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
        np.testing.assert_allclose(a.landmarks, b.landmarks, atol=0.01)


def test_a_batch_of_mixed_sizes_gives_what_single_photos_give(detector, photos):
    batch = detector(photos)
    same(batch, [detector([photo])[0] for photo in photos])
    assert [len(faces) for faces in batch][3] == 0
    assert sum(map(len, batch)) >= 14
    for faces in batch:
        assert (np.diff(faces.scores) <= 0).all()


def test_small_pieces_change_nothing(detector, photos, monkeypatch):
    """A photo in strips, candidates in small lots, blocks of one photo: what bounds memory is exact."""
    whole = detector(photos)
    monkeypatch.setattr(mtcnn, "PIECE_PIXELS", 5000)
    monkeypatch.setattr(mtcnn, "LOT_PIXELS", 7 * 24 * 24)
    monkeypatch.setattr(mtcnn, "BLOCK_PIXELS", 1)
    same(detector(photos), whole)


def test_threads_share_a_detector(detector, photos):
    expected, results = detector(photos), {}

    def work(number):
        results[number] = detector(photos)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        same(results[number], expected)


def test_two_hundred_faces(samples, detector):
    face = cv2.resize(read_photo(samples / "photos" / "groups" / "bbt4.jpg")[150:330, 430:560], (60, 80))
    assert len(detector([np.tile(face, (2, 2, 1))])[0]) == 4
    found = detector([np.tile(face, (10, 20, 1))])[0]
    assert len(found) >= 198


def test_a_face_at_the_border(samples, detector):
    photo = read_photo(samples / "photos" / "groups" / "bbt4.jpg")
    whole = detector([photo])[0]
    x0, _, x1, _ = whole.boxes[0]
    cut = photo[:, int(x0 + 0.25 * (x1 - x0)) :]
    faces = detector([cut])[0]
    at_border = faces.boxes[:, 0] == 0
    assert at_border.any()
    assert (faces.boxes >= 0).all()
    assert (faces.boxes[:, 2] <= cut.shape[1]).all()

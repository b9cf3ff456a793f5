"""Synthetic faces: the same bytes for the same seed, true truths, faces to a detector."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from tfface.errors import UserError
from tfface.faces import synthesize
from tfface.labels import FAIRFACE_RACES, GENDERS, UTKFACE_RACES

DIGEST = """
import hashlib
from tfface.faces import synthesize
digest = hashlib.sha256()
for face in synthesize.faces(0, 5):
    digest.update(face.image.tobytes() + face.landmarks.tobytes())
digest.update(synthesize.photo(3)[0].tobytes())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def faces():
    return list(synthesize.faces(0, 40))


def test_same_seed_same_bytes_in_other_processes():
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(digests) == 1


def test_import_brings_no_tensorflow():
    code = "import sys, tfface.faces.synthesize; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_types_and_ranges(faces):
    for seed, face in enumerate(faces):
        assert face.image.dtype == np.uint8
        assert face.image.shape == (160, 160, 3)
        assert face.image.std() > 15
        assert face.identity == seed
        assert 0 <= face.age <= 90
        assert face.gender in GENDERS
        assert face.group in FAIRFACE_RACES
        assert face.race in UTKFACE_RACES
        assert face.landmarks.dtype == np.float32
        x0, y0, x1, y1 = face.box
        assert 0 <= x0 < x1 <= 160
        assert 0 <= y0 < y1 <= 160


def test_landmarks_lie_in_the_box_and_in_order(faces):
    for face in faces:
        x0, y0, x1, y1 = face.box
        assert ((face.landmarks > (x0, y0)) & (face.landmarks < (x1, y1))).all()
        left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
        assert left_eye[0] < right_eye[0]
        assert left_mouth[0] < right_mouth[0]
        assert (left_eye + right_eye)[1] / 2 < nose[1] < (left_mouth + right_mouth)[1] / 2


def test_seeds_differ(faces):
    assert len({hashlib.sha256(face.image.tobytes()).digest() for face in faces}) == len(faces)
    assert len({(face.age, face.gender, face.group) for face in faces}) > 30


def test_every_class_occurs():
    people = [synthesize.face(seed, size=32) for seed in range(200)]
    assert {person.gender for person in people} == set(GENDERS)
    assert {person.race for person in people} == set(UTKFACE_RACES)
    assert min(person.age for person in people) < 6
    assert max(person.age for person in people) > 70


def test_shots_of_one_identity_share_who_but_not_how():
    shots = list(synthesize.shots(7, 4))
    assert len({(shot.identity, shot.age, shot.gender, shot.race, shot.group) for shot in shots}) == 1
    assert len({shot.yaw for shot in shots}) == len({shot.image.tobytes() for shot in shots}) == 4


def test_fixed_attributes_are_kept_and_show():
    young, old = (synthesize.face(5, age=age, gender="Male", group="White", yaw=0) for age in (20, 80))
    assert (young.age, old.age, young.gender, young.race, young.yaw) == (20, 80, "Male", "White", 0)
    assert np.abs(young.image.astype(int) - old.image).mean() > 3


def test_yaw_turns_the_nose():
    def offset(yaw):
        left_eye, right_eye, nose = synthesize.face(5, yaw=yaw).landmarks[:3]
        return (nose[0] - (left_eye[0] + right_eye[0]) / 2) / (right_eye[0] - left_eye[0])

    assert offset(20) < offset(0) - 0.1 < offset(-20) - 0.2  # positive: to the left of the picture


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"age": 91}, "age"),
        ({"gender": "female"}, "gender"),
        ({"group": "Asian"}, "group"),
        ({"yaw": 40}, "yaw"),
        ({"size": 8}, "size"),
        ({"identity": -1}, "identity"),
    ],
)
def test_values_out_of_range_are_named(arguments, named):
    with pytest.raises(UserError, match=f"^{named} must"):
        synthesize.face(0, **arguments)


@pytest.mark.parametrize("count", [1, 5, 12])
def test_photo_holds_its_people(count):
    image, people = synthesize.photo(2, count, size=(640, 360))
    assert image.shape == (360, 640, 3)
    assert len({person.identity for person in people}) == count
    assert [person.box[0] for person in people] == sorted(person.box[0] for person in people)
    for person in people:
        assert person.image.size
        assert ((person.landmarks > 0) & (person.landmarks < (640, 360))).all()


def test_mtcnn_finds_the_faces_where_they_are(faces):
    from mtcnn import MTCNN

    detector = MTCNN()
    errors = []
    for face in faces:
        found = [each for each in detector.detect_faces(face.image) if each["confidence"] >= 0.9]
        if found:
            points = max(found, key=lambda each: each["box"][2] * each["box"][3])["keypoints"]
            names = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
            distance = np.linalg.norm([points[name] for name in names] - face.landmarks, axis=1).mean()
            errors.append(distance / np.linalg.norm(face.landmarks[1] - face.landmarks[0]))
    assert len(errors) >= 0.95 * len(faces)
    assert np.mean(errors) < 0.06

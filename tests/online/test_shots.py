import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tfface.errors import UserError
from tfface.faces import synthesize
from tfface.faces.detect import Faces, load_detector
from tfface.faces.quality import Quality
from tfface.online import shots as module
from tfface.online.shots import Shot, ShotPredictor, TrackShots, average
from tfface.serving.predictor import Predictor


def shot(quality, female, time=0.0):
    return Shot({"gender": np.array([1 - female, female], "float32")}, Quality(quality, 1, 1), time)


def test_what_a_server_says_in_words_is_the_best_shots():
    shots = [shot(0.6, 1.0), shot(0.2, 0.0)]
    for one, name in zip(shots, ("Male", "Female"), strict=True):
        one.outputs["gender_classes"] = np.array(["Male", "Female"])
        one.outputs["gender_word"] = np.array(name)
    mean = average(shots)
    assert mean["gender_word"] == "Male"
    assert mean["gender_classes"].tolist() == ["Male", "Female"]


def test_the_average_is_weighted_by_quality():
    mean = average([shot(0.6, 1.0), shot(0.2, 0.0)])["gender"]
    np.testing.assert_allclose(mean, [0.25, 0.75], atol=1e-6)
    assert mean.sum() == pytest.approx(1)


def test_a_track_keeps_its_best_shots():
    track = TrackShots(most=3)
    assert track.outputs is None
    for now, quality in enumerate((0.2, 0.5, 0.3, 0.4)):
        assert track.wants(now)
        track.asked()
        assert not track.wants(now)  # one at a time
        track.done(now, shot(quality, quality))
    assert [shot.quality.score for shot in track.shots] == [0.5, 0.4, 0.3]
    assert track.accepts(0.34)
    assert not track.accepts(0.32)  # hardly better than the worst that it has
    assert not TrackShots().accepts(0.01)  # too poor even for an empty track


def test_shots_keep_their_distance():
    track = TrackShots(most=2)
    track.done(1.0, shot(0.5, 1))
    assert not track.wants(1.0 + module.BETWEEN_SHOTS - 0.01)
    assert track.wants(1.0 + module.BETWEEN_SHOTS + 0.01)
    track.done(2.0, shot(0.5, 1))  # full
    assert not track.wants(2.0 + module.BETWEEN_SHOTS + 0.01)
    assert track.wants(2.0 + module.BETWEEN_BETTER + 0.01)
    track.done(4.0, None)  # it was no good
    assert track.wants(4.0 + module.BETWEEN_BETTER + 0.01)


@pytest.mark.parametrize("landmarks", [True, False])
def test_a_face_becomes_a_shot_equal_to_its_direct_prediction(shots, people, landmarks):
    faces = load_detector("mtcnn", score_threshold=0.9, min_face_size=40)([people[0]])[0]
    assert len(faces) == 2
    for box, points in zip(faces.boxes, faces.landmarks, strict=True):
        track = TrackShots()
        assert shots.offer(track, people[0], box, points if landmarks else None, 0.0)
        shots.flush()
        assert len(track) == 1
        direct = shots.predictor.predict_crops(shots.predictor.align(people[0], box, points)[None])
        for task, expected in direct.items():
            # With landmarks only the patch's copy differs; without, they are found anew in it.
            np.testing.assert_allclose(track.outputs[task], expected[0], atol=1e-4 if landmarks else 0.1)
        attributes = shots.attributes(track, box, 0.9)
        assert attributes.label("gender") in ("Male", "Female")


def test_a_large_face_waits_in_a_small_patch(people):
    large = np.repeat(np.repeat(people[0], 4, axis=0), 4, axis=1)
    box = np.array([240.0, 320, 1040, 1120])
    points = np.array([[400.0, 500], [800, 500], [600, 700], [450, 900], [750, 900]])
    patch, inner, moved = module._patch(large, box, points)
    assert patch.shape == (640, 640, 3)
    np.testing.assert_allclose(inner, [160, 160, 480, 480], atol=1)
    # Edges map onto edges: the centre of the first pixel lies half a pixel inside, there and here.
    np.testing.assert_allclose(moved, (points - [-160, -80] + 0.5) * 0.4 - 0.5)


def test_a_patch_is_square_about_the_face_where_the_frame_ends_too():
    y, x = np.mgrid[0:90, 0:160]
    frame = np.dstack([x, y, x]).astype(np.uint8)
    points = np.array([[140.0, 20], [150, 20], [145, 26], [141, 32], [149, 32]])
    patch, inner, moved = module._patch(frame, np.array([130.0, 8, 160, 44]), points)
    assert patch.shape == (72, 72, 3)
    start = points[0] - moved[0]
    np.testing.assert_array_equal(inner, np.array([130, 8, 160, 44]) - np.tile(start, 2))
    np.testing.assert_array_equal(moved, points - start)
    for column, row in moved.astype(int):
        assert patch[row, column, :2].tolist() == [start[0] + column, start[1] + row]
    assert (patch[:, -1, 0] == 159).all()  # over the frame its edge is repeated
    assert (patch[0, :, 1] == 0).all()
    points[3:] = np.nan  # as dlib's five points say of the mouth: they are looked for anew
    assert module._patch(frame, np.array([130.0, 8, 160, 44]), points)[2] is None


def test_landmarks_found_in_a_shrunk_patch_are_brought_back_with_their_half_pixel():
    middle = Faces(np.array([[40.0, 40, 120, 120]]), np.ones(1), np.full((1, 5, 2), 79.5))
    finder = SimpleNamespace(detector=lambda images: [middle])
    box = np.array([160.0, 160, 480, 480])
    request = module._Request(np.zeros((640, 640, 3), np.uint8), box, None, TrackShots(), 0.0, 0.0)
    module.ShotPredictor._find_landmarks(finder, [request])
    np.testing.assert_allclose(request.landmarks, np.full((5, 2), 319.5))  # the middle, there as here


def test_what_is_no_face_is_not_predicted(shots, people):
    before = shots.counts.copy()
    track = TrackShots()
    shots.offer(track, people[0], np.array([270.0, 290, 350, 350]), None, 0.0)
    shots.flush()
    assert len(track) == 0
    assert (shots.counts - before) == {"no landmarks": 1}
    assert track.wants(1.0)


class Slow:
    """A predictor that takes its time, to fill the queue."""

    class recipe:
        image_size = (32, 32)

    def __init__(self):
        self.sizes, self.go = [], threading.Event()

    def align(self, patch, box, landmarks):
        return np.zeros((32, 32, 3), np.uint8)

    def predict_crops(self, crops):
        self.sizes.append(len(crops))
        if len(self.sizes) > 3:  # after warming up
            self.go.wait(10)
        return {"gender": np.full((len(crops), 2), 0.5, "float32")}


def test_a_full_queue_turns_shots_away_and_what_waits_goes_in_one_batch(people):
    predictor = Slow()
    faces = load_detector("mtcnn", score_threshold=0.9)([people[0]])[0]
    with ShotPredictor(predictor, waiting=4) as shots:
        tracks = [TrackShots() for _ in range(8)]
        taken = []
        for track in tracks:
            taken.append(shots.offer(track, people[0], faces.boxes[0], faces.landmarks[0], 0.0))
            time.sleep(0.1 if len(taken) == 1 else 0)  # the first is under way, the rest wait
        assert taken == [True] * 5 + [False] * 3
        assert shots.counts["turned away"] == 3
        predictor.go.set()
        shots.flush()
        assert predictor.sizes[3:] == [1, 4]
        assert [len(track) for track in tracks] == [1] * 5 + [0] * 3
        assert tracks[-1].wants(1.0)


def test_a_shot_that_was_turned_down_early_leaves_the_next_one_under_way(monkeypatch):
    """A track whose shot shows no face asks again while the others of its batch are still predicted."""
    nothing = Faces(np.zeros((0, 4), "float32"), np.zeros(0, "float32"), np.zeros((0, 5, 2), "float32"))
    monkeypatch.setattr(module, "load_detector", lambda *_, **__: lambda images: [nothing] * len(images))
    person, box = synthesize.face(11, yaw=0, size=200), np.array([30.0, 30, 170, 170])
    track, asked, wanted = TrackShots(), [], []

    class Meanwhile(Slow):
        def predict_crops(self, crops):
            outputs = super().predict_crops(crops)
            if len(self.sizes) == 5:
                asked.append(shots.offer(track, person.image, box, person.landmarks, 1.0))
            elif asked:
                wanted.append(track.wants(9.0))
            return outputs

    predictor = Meanwhile()
    with ShotPredictor(predictor) as shots:
        shots.offer(TrackShots(), person.image, box, person.landmarks, 0.0)
        while len(predictor.sizes) < 4:  # it is under way, the next two are one batch
            time.sleep(0.01)
        shots.offer(TrackShots(), person.image, box, person.landmarks, 0.0)
        shots.offer(track, person.image, box, None, 0.0)
        predictor.go.set()
        shots.flush()
    assert asked == [True]
    assert wanted == [False]
    assert len(track) == 1


def test_a_model_that_fails_is_not_silent(people):
    class Broken(Slow):
        def align(self, patch, box, landmarks):
            raise RuntimeError("out of order")

    faces = load_detector("mtcnn", score_threshold=0.9)([people[0]])[0]
    with ShotPredictor(Broken()) as shots:
        shots.offer(TrackShots(), people[0], faces.boxes[0], faces.landmarks[0], 0.0)
        shots.flush()
        assert "out of order" in str(shots.failure)


def test_wrong_numbers():
    with pytest.raises(UserError, match="at least 1"):
        ShotPredictor("arg", workers=0)


@pytest.mark.parametrize("model", ["light", "compact"])
def test_eight_threads_give_bitwise_what_one_gives(model, people, light_run):
    """Model, MTCNN and YOLO are shared by all threads of a stream and all webcams of the page."""
    predictor = Predictor(light_run.folder if model == "light" else model)
    detectors = [load_detector("mtcnn", min_face_size=40), load_detector("yolo")]
    height, width = predictor.recipe.image_size
    crops = np.stack([people[number][100 : 100 + height, 80 : 80 + width] for number in range(0, 16, 4)])

    def work():
        outputs = predictor.predict_crops(crops)
        found = [detector(people[:2]) for detector in detectors]
        arrays = [outputs[task] for task in sorted(outputs)]
        return arrays + [array for faces in found for one in faces for array in (one.boxes, one.scores)]

    alone, together = work(), [None] * 8
    barrier = threading.Barrier(8)

    def at_once(place):
        barrier.wait()
        together[place] = work()

    threads = [threading.Thread(target=at_once, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in together:
        for expected, received in zip(alone, result, strict=True):
            assert expected.tobytes() == received.tobytes()

"""Tracks on scenes whose identities are known, measured by IDF1 (Ristani et al. 2016, by TrackEval's method)."""

import numpy as np
import pytest
from trackers.eval.identity import compute_identity_metrics
from trackers.utils.iou import IoU

from tfface.errors import UserError
from tfface.faces import synthesize
from tfface.faces.detect import Faces
from tfface.faces.track import UNSURE, CutDetector, Tracker

SIDE = 70
"""Width of a face, pixels; the picture is 640x360."""

PATHS = {
    1: lambda t: (60 + 45 * t, 150 + 10 * np.sin(t)),  # crosses 2, before her
    2: lambda t: (580 - 45 * t, 160 + 8 * np.sin(1.3 * t + 1)),
    3: lambda t: (120 + 30 * np.sin(0.8 * t), 60 + 5 * np.sin(2 * t)),
    4: lambda t: (420 + 20 * np.sin(0.5 * t), 70),
    5: lambda t: (300 + 40 * np.sin(1.5 * t), 290 + 10 * np.cos(t)),
}

ABSENT = {3: [(4, 5)], 4: [(3, 3.9), (7, 8)], 5: [(2, 2.5), (6, 6.7)]}
"""Seconds in which somebody is hidden, has left the picture, or has turned away."""


def scene(seed: int, rate: float, dropped: float = 0.0, seconds: float = 12.0):
    """Frames (time, true identities, true boxes, found boxes, scores): boxes jitter by 4 %, 5 % are missed, 2 % of the
    frames hold a box that is no face, scores waver about the threshold."""
    rng = np.random.default_rng(seed)
    for number in range(int(seconds * rate)):
        t = number / rate
        if rng.random() < dropped:
            continue
        true, boxes, found, scores = [], [], [], []
        for identity, path in PATHS.items():
            x, y = path(t)
            behind = identity == 2 and abs(x - PATHS[1](t)[0]) <= 0.6 * SIDE
            if behind or any(start <= t < stop for start, stop in ABSENT.get(identity, [])):
                continue
            side = SIDE * (1 + 0.1 * np.sin(t + identity))
            true.append(identity)
            boxes.append([x - side / 2, y - 0.6 * side, x + side / 2, y + 0.6 * side])
            if rng.random() >= 0.05:
                found.append(boxes[-1] + rng.normal(0, 0.04 * side, 4))
                scores.append(np.clip(rng.normal(0.8, 0.12), 0.3, 1))
        if rng.random() < 0.02:
            x, y = rng.uniform(0, 600), rng.uniform(0, 320)
            found.append(np.array([x, y, x + 40, y + 40]))
            scores.append(rng.uniform(0.3, 0.6))
        yield t, np.array(true), np.array(boxes), np.reshape(found, (-1, 4)), np.array(scores)


def follow(tracker: Tracker, frames):
    true, given, overlaps = [], [], []
    for t, identities, boxes, found, scores in frames:
        numbers = tracker.update(Faces(found.astype("float32"), scores.astype("float32")), t)
        known = numbers != UNSURE
        true.append(identities)
        given.append(numbers[known])
        empty = np.zeros((len(boxes), known.sum()))
        overlaps.append(IoU().compute(boxes, found[known]) if empty.size else empty)
    return compute_identity_metrics(true, given, overlaps, 0.3)["IDF1"], set(np.concatenate(given))


@pytest.mark.parametrize(("rate", "dropped"), [(30, 0), (15, 0), (30, 0.3)])
def test_identities_are_kept(rate, dropped):
    """Crossing, hidden for a second, leaving for 0.9 s and coming back."""
    results = [follow(Tracker(rate=rate), scene(seed, rate, dropped)) for seed in range(6)]
    assert np.mean([idf1 for idf1, _ in results]) >= 0.95
    assert min(idf1 for idf1, _ in results) >= 0.9
    assert np.mean([len(numbers) for _, numbers in results]) <= 5.5


def test_the_measure_itself_on_a_case_counted_by_hand():
    """One person, ten frames, the number changes after six: 6 of 10 are identified, so IDF1 is 0.6."""
    true = [np.array([1])] * 10
    given = [np.array([1])] * 6 + [np.array([2])] * 4
    assert compute_identity_metrics(true, given, [np.ones((1, 1))] * 10, 0.5)["IDF1"] == pytest.approx(0.6)


def face(*boxes, scores=None):
    boxes = np.array(boxes, "float32").reshape(-1, 4)
    return Faces(boxes, np.full(len(boxes), 0.9, "float32") if scores is None else np.array(scores, "float32"))


def steps(tracker, faces, times):
    return [tracker.update(faces, t).tolist() for t in times]


def test_a_number_comes_at_the_third_frame_and_stays():
    tracker = Tracker()
    numbers = steps(tracker, face((10, 10, 60, 70), (200, 50, 260, 120)), np.arange(5) / 30)
    assert numbers == [[0, 0], [0, 0], [1, 2], [1, 2], [1, 2]]
    assert tracker.update(face((201, 50, 261, 120), (11, 10, 61, 70)), 1 / 5).tolist() == [2, 1]


def test_who_comes_back_in_time_keeps_the_number_and_later_gets_a_new_one():
    here, gone = face((10, 10, 60, 70)), face()
    for away, number in ((1.0, 1), (3.0, 2)):
        tracker = Tracker(remember=1.5)
        steps(tracker, here, np.arange(10) / 30)
        steps(tracker, gone, np.arange(10, 10 + 30 * away) / 30)
        assert steps(tracker, here, np.arange(5) / 30 + 0.4 + away)[-1] == [number]


def test_frames_that_come_slowly_have_tracks_too():
    """Of a webcam over a slow line, or a film in time lapse; a single long gap ends tracks all the same."""
    assert steps(Tracker(remember=1.5), face((10, 10, 60, 70)), 2.0 * np.arange(4)) == [[0], [0], [1], [1]]
    times = [0, 0.1, 0.2, 0.3, 3.3, 3.4, 3.5]
    assert steps(Tracker(remember=1.5), face((10, 10, 60, 70)), times)[3:] == [[1], [0], [0], [2]]


def test_uncertain_boxes_begin_no_track_but_carry_one_on():
    tracker = Tracker()
    weak = face((10, 10, 60, 70), scores=[0.35])
    assert steps(tracker, weak, np.arange(6) / 30)[-1] == [UNSURE]
    tracker = Tracker()
    steps(tracker, face((10, 10, 60, 70)), np.arange(6) / 30)
    assert steps(tracker, weak, np.arange(6, 60) / 30)[-1] == [1]


def test_reset_gives_new_numbers():
    tracker = Tracker()
    assert steps(tracker, face((10, 10, 60, 70)), np.arange(4) / 30)[-1] == [1]
    tracker.reset()
    assert steps(tracker, face((10, 10, 60, 70)), 1 + np.arange(4) / 30)[-1] == [2]


def test_wrong_arguments():
    with pytest.raises(UserError, match="remember"):
        Tracker(remember=0)
    tracker = Tracker()
    tracker.update(face(), 1.0)
    with pytest.raises(UserError, match="order of their times"):
        tracker.update(face(), 1.0)


def test_a_cut_is_noticed_and_a_change_of_light_is_not():
    rng = np.random.default_rng(0)
    one, other = (np.repeat(np.repeat(rng.integers(0, 256, (9, 16, 3), np.uint8), 20, 0), 20, 1) for _ in range(2))
    cut = CutDetector()
    dim = (one * 0.5).astype(np.uint8)
    moved = np.roll(one, 4, axis=1)
    assert [cut(image) for image in (one, one, dim, one, moved, other, other)] == [False] * 5 + [True, False]
    blank = np.zeros_like(one)
    assert [CutDetector()(blank), cut(blank), cut(blank)] == [False, False, False]


def test_who_moves_close_to_the_camera_before_a_plain_wall_makes_no_cut():
    """A face that is 50 pixels further in each frame: a walk, at the few frames a second that a slow line gives."""
    person = synthesize.face(3, yaw=0, size=200).image
    cut = CutDetector()
    for x in (80, 130, 180, 230):
        frame = np.full((360, 640, 3), 128, np.uint8)
        frame[60:260, x : x + 200] = person
        assert not cut(frame)


def test_black_between_two_scenes_hides_no_cut_and_within_one_makes_none():
    rng = np.random.default_rng(0)
    one, other = (np.repeat(np.repeat(rng.integers(0, 256, (9, 16, 3), np.uint8), 20, 0), 20, 1) for _ in range(2))
    noise = rng.integers(0, 12, one.shape).astype(np.uint8)  # a camera's black
    fade = [(one * share).astype(np.uint8) for share in (1, 0.6, 0.3, 0.1)]
    rise = [(other * share).astype(np.uint8) for share in (0.1, 0.4, 1)]
    for black in (np.zeros_like(one), np.full_like(one, 255), noise):
        cut = CutDetector()
        assert [cut(image) for image in (one, black, other, other)] == [False, False, True, False]
        cut = CutDetector()
        assert [cut(image) for image in (*fade, black, black, *rise)] == [False] * 6 + [True, False, False]
        cut = CutDetector()
        assert [cut(image) for image in (black, one, black, black, one)] == [False] * 5


def test_the_cuts_of_a_real_clip_are_found(samples):
    import cv2

    capture, cut, found, number = (
        cv2.VideoCapture(str(samples / "videos" / "short_hamilton_clip.mp4")),
        CutDetector(),
        [],
        0,
    )
    while True:
        read, image = capture.read()
        if not read:
            break
        if cut(image):
            found.append(number)
        number += 1
    assert number == 275
    assert len(found) == 3  # stage, pianist, singer, audience

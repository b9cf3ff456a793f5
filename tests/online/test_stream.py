import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from tfface import cli
from tfface.errors import UserError
from tfface.faces.detect import Faces
from tfface.online import live as live_module
from tfface.online import stream as module
from tfface.online.capture import Source
from tfface.online.live import LiveFaces, SecondLook, distinct, load_live_detector
from tfface.online.record import recorder
from tfface.online.stream import Stream, draw
from tfface.online.timing import Timing


def frames_of(path):
    capture, frames, times = cv2.VideoCapture(str(path)), [], []
    while True:
        read, image = capture.read()
        if not read:
            return frames, times
        frames.append(image)
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)


def test_every_frame_of_a_file_is_drawn_and_written(light_run, clip, people, tmp_path, capsys):
    words = ["stream", "--source", str(clip), "--every-frame", "--detector", "mtcnn", "--model", str(light_run.folder)]
    assert cli.main([*words, "--save", str(tmp_path / "out.mp4"), "--jsonl", str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == list(range(len(people)))
    # After the third frame both faces are there, under one number each, to the end.
    assert {tuple(face["number"] for face in row["faces"]) for row in rows[3:]} == {(1, 2)}
    last = rows[-1]["faces"]
    assert last[0]["box"][0] < last[1]["box"][0]
    for face in last:
        assert face["shots"] >= 2
        assert sum(face["probabilities"]["gender"].values()) == pytest.approx(1, abs=1e-3)
        assert 0 <= face["age"] <= 116
    frames, times = frames_of(tmp_path / "out.mp4")
    assert len(frames) == len(people)
    np.testing.assert_allclose(times, [row["time"] for row in rows], atol=0.002)
    assert np.abs(frames[-1].astype(int)[:, :, ::-1] - people[-1])[60:300].mean() > 1  # something is drawn
    said = capsys.readouterr().err
    assert f"{len(people)} frames in" in said
    assert "0 dropped, 2 tracks" in said


def test_late_frames_are_dropped_counted_and_never_shown(shots, clip, people):
    """A slow output sees the newest frames; nothing piles up."""
    stream = Stream(Source(clip), LiveFaces(shots, *load_live_detector("mtcnn")))
    ages, numbers, times = [], [], [time.monotonic()]
    for frame, _ in stream.run():
        times.append(time.monotonic())
        ages.append(times[-1] - frame.captured)
        numbers.append(frame.number)
        time.sleep(0.4)
    assert numbers == sorted(set(numbers))
    assert len(numbers) + stream.dropped == len(people)
    assert stream.dropped > 10
    # Three frames at most wait, one in each queue's place; on a busy machine a turn takes longer than it should.
    assert max(ages) < 3 * max(0.5, np.diff(times).max())
    status = stream.status()
    for stage in ("wait", "detect", "track", "total"):
        assert f"{stage} " in status
    assert "dropped" in status
    assert "shots 0/16" in stream.queues()


def test_a_stage_that_fails_is_raised_and_ends_the_stream(shots, clip):
    def broken(_):
        raise RuntimeError("no detector today")

    stream = Stream(Source(clip), LiveFaces(shots, broken))
    with pytest.raises(RuntimeError, match="no detector today"):
        list(stream.run())


def test_a_prediction_that_fails_as_the_last_frame_is_shown_is_raised(shots, clip, people, monkeypatch):
    live = LiveFaces(shots, Given(faces_at()), look_again=False)
    stream = Stream(Source(clip, every_frame=True), live, drop=False)
    frames = stream.run()
    for _ in people:
        next(frames)
    stream._thread.join()
    monkeypatch.setattr(shots, "failure", RuntimeError("no memory"))
    with pytest.raises(RuntimeError, match="no memory"):
        next(frames)


SCRIPT = "import sys\nfrom tfface import cli\nsys.exit(cli.main(sys.argv[1:]))"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_end_stops_and_a_second_one_is_as_usual(number):
    stopped = []
    interrupt = signal.getsignal(signal.SIGINT)
    ours = signal.signal(number, signal.SIG_DFL)  # nohup ignores the end of the terminal, and so does what it started
    try:
        with module._stopped_by_signals(lambda: stopped.append(True)):
            os.kill(os.getpid(), number)
            assert stopped == [True]
            assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, ours)
    assert signal.getsignal(signal.SIGINT) == interrupt  # a job in the background begins with it ignored


def test_ctrl_c_ends_cleanly_with_whole_files(light_run, clip, tmp_path):
    words = ["stream", "--source", str(clip), "--loop", "--model", str(light_run.folder)]
    words += ["--save", str(tmp_path / "out.mp4"), "--jsonl", str(tmp_path / "out.jsonl")]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *words], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    aside = []
    while time.monotonic() < until and process.poll() is None:
        aside = [path for path in tmp_path.glob(".out.jsonl.*") if path.stat().st_size > 3000]
        if aside:
            break
        time.sleep(0.1)
    assert aside, "nothing was written aside"
    assert not (tmp_path / "out.jsonl").exists()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "written:" in said
    assert "Traceback" not in said
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "out.mp4"]
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    frames, _ = frames_of(tmp_path / "out.mp4")
    assert len(frames) == len(rows) > 5


def test_a_recording_keeps_its_times_and_its_size(tmp_path):
    times = [0.0, 0.1, 0.5, 0.52, 1.5]
    colour = np.array([200, 80, 30], np.uint8)
    with recorder(tmp_path / "x.mp4", 30) as video:
        for time_ in times:
            video.write(np.full((91, 121, 3), colour), time_)  # odd sides: H.264 wants even ones
        video.write(np.full((300, 300, 3), 90, np.uint8), 2.0)  # a camera that comes back with another size
    frames, read = frames_of(tmp_path / "x.mp4")
    np.testing.assert_allclose(read, [*times, 2.0], atol=0.002)
    assert {frame.shape for frame in frames} == {(90, 120, 3)}
    np.testing.assert_allclose(frames[0][45, 60, ::-1], colour, atol=8)  # OpenCV gives blue first


KILLED = """
import os, sys
import numpy as np
from tfface.online.record import VideoRecorder
video = VideoRecorder(sys.argv[1], 15)
for number in range(100):
    video.write(np.full((90, 120, 3), number, np.uint8), number / 15)
os._exit(9)
"""


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_killed_process_leaves_a_video_but_for_its_last_seconds(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (9, "")
    assert len(frames_of(path)[0]) >= 60


def test_what_was_recorded_is_kept_when_a_stage_fails(shots, clip, tmp_path, monkeypatch):
    calls = []

    def fails_later(self, image, time):
        calls.append(time)
        if len(calls) > 5:
            raise RuntimeError("broken")
        return []

    monkeypatch.setattr(LiveFaces, "__call__", fails_later)
    monkeypatch.setattr(module, "ShotPredictor", lambda *_, **__: contextlib.nullcontext(shots))
    with pytest.raises(RuntimeError, match="broken"):
        cli.main(["stream", "--source", str(clip), "--every-frame", "--jsonl", str(tmp_path / "out.jsonl")])
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5


@pytest.fixture
def full_disk():
    """No file may grow beyond 40 kB: as on a full disk, writing fails in its middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_disk_that_is_full_leaves_the_video_that_was_there(suffix, tmp_path, full_disk):
    (tmp_path / f"x{suffix}").write_text("an earlier one")
    rng, numbers = np.random.default_rng(0), []

    def record():
        with recorder(tmp_path / f"x{suffix}", 15) as video, contextlib.suppress(OSError):  # files are finished first
            for number in range(60):
                numbers.append(number)
                video.write(rng.integers(0, 256, (90, 120, 3), np.uint8), number / 15)

    with pytest.raises(OSError, match="too large"):
        record()
    assert 0 < len(numbers) < 60
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an earlier one"]


def test_a_line_that_is_not_written_leaves_the_file_that_was_there(shots, clip, tmp_path, monkeypatch, capsys):
    (tmp_path / "out.jsonl").write_text("an earlier one")
    rows = []

    def fails_later(*_):
        rows.append(None)
        if len(rows) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return "{}"

    monkeypatch.setattr("tfface.online.record.json.dumps", fails_later)
    monkeypatch.setattr(LiveFaces, "__call__", lambda *_: [])
    monkeypatch.setattr(module, "ShotPredictor", lambda *_, **__: contextlib.nullcontext(shots))
    words = ["stream", "--source", str(clip), "--every-frame", "--jsonl", str(tmp_path / "out.jsonl")]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "The disk is full" in said
    assert "written:" not in said
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an earlier one"]


def test_a_video_without_a_frame_is_said_to_be_damaged(shots, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cv2.VideoCapture, "read", lambda _: (False, None), raising=True)
    monkeypatch.setattr(module, "ShotPredictor", lambda *_, **__: contextlib.nullcontext(shots))
    for words in (["--save", str(tmp_path / "out.mp4")], ["--jsonl", str(tmp_path / "out.jsonl"), "--loop"]):
        assert cli.main(["stream", "--source", str(clip), *words]) == 2
        assert f"No frame of {clip} could be read; it is damaged" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_stream_ends_in_time_though_no_frame_comes(shots, clip, tmp_path, monkeypatch, capsys):
    def nothing(self):
        while not self.frames.closed:
            time.sleep(0.05)
        return iter(())

    monkeypatch.setattr(Source, "__iter__", nothing)
    monkeypatch.setattr(module, "ShotPredictor", lambda *_, **__: contextlib.nullcontext(shots))
    begun = time.monotonic()
    words = ["--save", str(tmp_path / "out.mp4"), "--seconds", "0.5", "--loop"]
    assert cli.main(["stream", "--source", str(clip), *words]) == 2
    assert time.monotonic() - begun < 60
    assert f"No frame came: {tmp_path / 'out.mp4'} was not written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bad_words_are_one_line(clip, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    for words, said in (
        (["--source", str(tmp_path / "no.mp4"), "--jsonl", "x.jsonl"], "No such source"),
        (["--source", str(clip), "--save", str(tmp_path / "x.gif")], "saved as .mp4 or .mkv"),
        (["--source", str(clip), "--jsonl", str(tmp_path / "x.jsonl"), "--model", "none"], "No model none"),
        (["--source", str(clip), "--jsonl", str(tmp_path / "x.jsonl"), "--detector", "none"], "unknown detector"),
        (["--source", str(clip), "--jsonl", str(clip)], "different files"),
        (["--source", str(clip), "--save", "x.mp4", "--jsonl", "./x.mp4"], "different files"),
        (["--source", str(clip), "--jsonl", "x.jsonl", "--seconds", "nan"], "above 0"),
        (["--source", "rtsp://me:se/cret@x", "--save", "x.mp4", "--jsonl", "x.mp4"], "Received: rtsp://x, x.mp4"),
        (["--source", "9" * 20, "--jsonl", "x.jsonl"], "No such source"),
        (["--source", "²", "--jsonl", "x.jsonl"], "No such source"),
        *([(["--source", str(clip), "--show"], "no screen")] if sys.platform.startswith("linux") else []),
    ):
        assert cli.main(["stream", *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_the_frame_alone_and_shows_the_status(people):
    before = people[0].copy()
    plain, with_status = draw(people[0], []), draw(people[0], [], "29.9 frames/s  0 dropped")
    np.testing.assert_array_equal(people[0], before)
    np.testing.assert_array_equal(plain, before)
    changed = (with_status != before).any(axis=2)
    assert changed[:16].mean() > 0.9
    assert not changed[17:].any()
    long = draw(people[0], [], "a long status " * 12)  # it is made to fit
    assert (long[:12, 560:630] > 120).any()


def test_live_faces_want_time_to_go_on(shots, people):
    live = LiveFaces(shots, *load_live_detector("mtcnn"))
    live(people[0], 1.0)
    with pytest.raises(UserError, match="order of their times"):
        live(people[0], 0.5)


def test_who_calls_live_faces_is_told_once_of_a_prediction_that_failed(shots, people, monkeypatch):
    live = LiveFaces(shots, Given(faces_at()), look_again=False)
    monkeypatch.setattr(shots, "failure", RuntimeError("no memory"))
    with pytest.raises(RuntimeError, match="no memory"):
        live(people[0], 0.0)
    assert live(people[1], 0.1) == []


class Given:
    """A detector that finds what it is told to, and counts how often it was asked."""

    def __init__(self, faces):
        self.faces, self.calls = faces, 0

    def __call__(self, images):
        self.calls += 1
        return [self.faces]


def faces_at(*boxes, landmarks=False, score=0.4):
    boxes = np.array(boxes, "float32").reshape(-1, 4)
    points = np.ones((len(boxes), 5, 2), "float32") if landmarks else None
    return Faces(boxes, np.full(len(boxes), score, "float32"), points)


def test_mtcnn_looks_where_a_face_is_missed_and_once_a_second():
    here, there, frame = (10, 10, 60, 70), (200, 50, 260, 120), np.zeros((360, 640, 3), np.uint8)
    better = Given(faces_at(here, there, landmarks=True, score=0.95))
    look = SecondLook(better)
    first = look(frame, 0.0, faces_at((12, 8, 58, 72)), 0.5)
    np.testing.assert_array_equal(first.boxes, np.array([(12, 8, 58, 72), there], "float32"))
    np.testing.assert_allclose(first.scores, [0.5, 0.95])  # what the fast one doubts is certain where both find it
    assert np.isnan(first.landmarks[0]).all()
    assert (first.landmarks[1] == 1).all()
    look.expect(first.boxes)
    look(frame, 0.1, faces_at(here, there, score=0.6), 0.5)  # both are found: no need
    assert better.calls == 1
    look(frame, 0.1, faces_at(here, there), 0.5)  # found, but not surely
    assert better.calls == 2
    assert len(look(frame, 0.2, faces_at(there, score=0.6), 0.5)) == 2  # one is missed
    look.expect(np.zeros((0, 4)))  # it has gone
    look(frame, 0.3, faces_at(there), 0.5)
    assert better.calls == 3
    look(frame, 1.3, faces_at(there), 0.5)  # nothing is missed, but a second is over
    assert better.calls == 4


def test_a_large_frame_is_shrunk_for_the_second_look():
    better = Given(faces_at((10, 10, 60, 70), landmarks=True))
    found = SecondLook(better)(np.zeros((720, 1280, 3), np.uint8), 0.0, faces_at(), 0.5)
    np.testing.assert_array_equal(found.boxes, [[20, 20, 120, 140]])
    assert (found.landmarks == 2.5).all()  # the centre of a pixel lies half a pixel inside it
    assert found.scores[0] == 0.5  # it counts as certain


def test_faces_that_the_fast_detector_never_finds_are_tracked(shots, people):
    blind = Given(faces_at())
    live = LiveFaces(shots, blind)
    for number in range(4):
        faces = live(people[number], number / 15)
    assert [face.number for face in faces] == [1, 2]
    assert LiveFaces(shots, blind, look_again=False)(people[0], 0.0) == []
    shots.flush()


def test_a_face_that_the_fast_detector_always_doubts_is_tracked(shots, people):
    """A score between the two thresholds begins no track: MTCNN's word does."""
    faces = shots.detector([people[0]])[0]
    live = LiveFaces(shots, Given(Faces(faces.boxes, np.full(2, 0.45, "float32"), None)))
    numbers = [[face.number for face in live(people[0], number / 30)] for number in range(3)]
    assert numbers == [[], [], [1, 2]]


def test_who_waits_has_each_shot_at_once(shots, people):
    """So that the answers of a file do not depend on how fast the machine is."""
    live = LiveFaces(shots, load_live_detector("mtcnn")[0], wait=True)
    counts = [[face.shots for face in live(people[0], number / 30)] for number in range(13)]
    assert counts[2:11] == [[1, 1]] * 9
    assert counts[12] == [2, 2]


def test_a_face_that_is_found_twice_counts_once():
    boxes = np.array([[10, 10, 60, 70], [20, 0, 66, 60], [50, 10, 100, 70], [300, 10, 340, 60]], "float32")
    faces = Faces(boxes, np.array([0.9, 0.8, 0.7, 0.6], "float32"), np.zeros((4, 5, 2), "float32"))
    np.testing.assert_array_equal(distinct(faces).boxes, boxes[[0, 2, 3]])
    assert len(distinct(faces.select([]))) == 0


class Offered:
    """In place of a `ShotPredictor`: notes what it is offered."""

    failure = None

    def __init__(self):
        self.timing, self.offers = Timing(), []

    def offer(self, track, image, box, landmarks, time, wait):
        self.offers.append((track, time))

    def attributes(self, track, box, score):
        return None


def test_a_face_that_stays_keeps_its_shots_and_uncertain_boxes_give_none():
    shots, given = Offered(), Given(faces_at((10, 10, 60, 70), score=0.9))
    live = LiveFaces(shots, given, most_shots=3, look_again=False)
    for number in range(100):
        if number == 60:
            given.faces = faces_at((10, 10, 60, 70), score=0.3)
        faces = live(np.zeros((360, 640, 3), np.uint8), number / 10)
        assert [face.number for face in faces] == [1] * (number > 1)
    assert {id(track) for track, _ in shots.offers} == {id(live._tracks[1])}
    assert live._tracks[1].most == 3
    assert max(time for _, time in shots.offers) == 5.9


def test_after_a_cut_faces_have_new_numbers_and_come_in_their_order():
    rng = np.random.default_rng(0)
    one, other = (np.repeat(np.repeat(rng.integers(0, 256, (9, 16, 3), np.uint8), 20, 0), 20, 1) for _ in range(2))
    boxes = [(10, 10, 60, 70), (200, 50, 260, 120)]
    given = Given(faces_at(*boxes, score=0.9))
    live = LiveFaces(Offered(), given, look_again=False)
    numbers = []
    for number, image in enumerate([one] * 4 + [other] * 4):
        given.faces = faces_at(*(boxes[::-1] if number % 2 else boxes), score=0.9)
        faces = live(image, number / 10)
        numbers.append([face.number for face in faces])
        assert not faces or faces[0].box[0] < faces[1].box[0]  # the same one first, whichever was found first
    assert numbers == [[], [], [1, 2], [1, 2], [], [], [3, 4], [3, 4]]


@pytest.mark.parametrize("name", ["yolo", "mtcnn"])
def test_boxes_that_are_too_uncertain_to_begin_a_track_are_still_found(name, monkeypatch):
    monkeypatch.setattr(live_module, "load_detector", lambda name, **options: options)
    options, tracker = load_live_detector(name)
    assert 0 < options["score_threshold"] < tracker.sure == live_module.THRESHOLDS[name][1]


def test_tracks_that_are_gone_are_forgotten(shots, people):
    live = LiveFaces(shots, *load_live_detector("mtcnn"))
    blank = np.full_like(people[0], 128)
    for number in range(6):
        live(people[number], number / 15)
    assert len(live._tracks) == 2
    for number in range(8):
        live(blank, 1 + number / 2)
    shots.flush()
    assert live._tracks == {}

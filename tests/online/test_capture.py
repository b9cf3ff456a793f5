import contextlib
import http.server
import threading
import time

import cv2
import numpy as np
import pytest

from tfface.errors import UserError
from tfface.online import capture
from tfface.online.capture import Channel, Source
from tfface.online.record import VideoRecorder


def test_a_full_channel_drops_the_oldest_and_counts():
    channel = Channel(2)
    assert all(channel.put(item) for item in range(5))
    assert channel.dropped == 3
    assert len(channel) == 2
    assert [channel.get(), channel.get(), channel.get(timeout=0.01)] == [3, 4, None]


def test_a_full_channel_that_may_not_drop_makes_the_giver_wait():
    channel, given = Channel(1, drop=False), []

    def give():
        for item in range(3):
            channel.put(item)
            given.append(item)
        channel.close()

    thread = threading.Thread(target=give)
    thread.start()
    time.sleep(0.1)
    assert len(given) == 1
    assert [channel.get(), channel.get(), channel.get(), channel.get()] == [0, 1, 2, None]
    thread.join(5)
    assert channel.closed
    assert channel.dropped == 0


def test_a_closed_channel_takes_nothing_and_lets_a_waiting_reader_go():
    channel = Channel(1)
    thread = threading.Timer(0.05, channel.close)
    thread.start()
    assert channel.get() is None
    assert not channel.put(1)


def test_every_frame_of_a_file_comes_in_order(clip, people):
    with Source(clip, every_frame=True) as source:
        frames = list(source)
    assert [frame.number for frame in frames] == list(range(len(people)))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(len(people)) / 15, atol=0.002)
    assert frames[0].image.shape == (360, 640, 3)
    assert np.abs(frames[7].image.astype(int) - people[7]).mean() < 4  # red is red: nothing swaps the channels


def test_a_slow_reader_gets_the_newest_frames(clip):
    """A file is played at its pace, and what a busy reader misses is dropped and counted."""
    with Source(clip) as source:
        numbers = []
        for frame in source:
            numbers.append(frame.number)
            assert time.monotonic() - frame.captured < 0.5  # never an old frame, however slow the reader
            time.sleep(0.3)
    assert len(numbers) < 20
    assert source.frames.dropped == numbers[-1] + 1 - len(numbers)
    assert numbers == sorted(set(numbers))


def test_a_loop_goes_on_in_time(clip, people):
    with Source(clip, every_frame=True, loop=True) as source:
        frames = [frame for frame, _ in zip(source, range(2 * len(people) + 5), strict=False)]
    steps = np.diff([frame.time for frame in frames])
    np.testing.assert_allclose(steps, 1 / 15, atol=0.01)


def test_a_video_behind_a_url_is_played_at_its_own_pace_and_starts_over(people, tmp_path, monkeypatch):
    monkeypatch.setattr(capture, "FIRST_WAIT", 0.1)
    with contextlib.closing(VideoRecorder(tmp_path / "short.mp4", 15)) as video:
        for number, frame in enumerate(people[:12]):
            video.write(frame, number / 15)
    said = []
    with Source((tmp_path / "short.mp4").as_uri(), say=said.append) as source:
        first, *rest = (frame for frame, _ in zip(source, range(16), strict=False))
    assert first.time == 0
    assert any(line.endswith("is back") for line in said)
    early = [frame.time - (frame.captured - first.captured) for frame in rest]
    assert max(early) < 0.05  # seconds before its time; on a busy machine it may be late
    assert min(np.diff([frame.time for frame in rest])) > 0.06


def test_a_file_that_has_gone_ends_the_loop_in_words(clip, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip.read_bytes())
    with Source(path, every_frame=True, loop=True) as source:
        frames = iter(source)
        next(frames)
        path.unlink()
        with pytest.raises(UserError, match="cannot be opened again"):
            list(frames)


def test_a_file_whose_frames_are_damaged_is_said(clip, tmp_path):
    data = clip.read_bytes()
    start = data.index(b"mdat") + 4
    (tmp_path / "clip.mp4").write_bytes(data[:start] + data[start:].translate(bytes([0] * 256), b""))
    with pytest.raises(UserError, match=r"cannot be opened|No frame of .* it is damaged"):
        list(Source(tmp_path / "clip.mp4", every_frame=True).__enter__())


def test_what_cannot_be_opened_is_said_without_its_password(tmp_path):
    with pytest.raises(UserError, match="No such source"):
        Source(str(tmp_path / "no.mp4"))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match="cannot be opened"):
        Source(str(tmp_path / "text.mp4"))
    with pytest.raises(UserError, match="cannot be opened") as error:
        Source("http://me:secret@127.0.0.1:9/stream")
    assert "secret" not in str(error.value)
    assert capture.without_password("rtsp://me:se/c@ret@host:554/a") == "rtsp://host:554/a"
    assert capture.without_password("me@home.mp4") == "me@home.mp4"
    with pytest.raises(UserError, match="video file only"):
        Source("http://127.0.0.1:9/stream", every_frame=True)


class Camera:
    """A network camera that sends JPEGs (multipart over HTTP) and can be unplugged."""

    def __init__(self, frames):
        self.frames, self.server, self.port = frames, None, 0

    def plug(self):
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
                self.end_headers()
                on = camera.on
                try:
                    for number in range(10_000):
                        if not on.is_set():
                            break
                        jpeg = cv2.imencode(".jpg", camera.frames[number % len(camera.frames)])[1].tobytes()
                        head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                        self.wfile.write(head.encode() + jpeg + b"\r\n")
                        time.sleep(0.03)
                except OSError:
                    pass  # the reader has gone

            def log_message(self, *_):
                pass

        self.on = threading.Event()
        self.on.set()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def unplug(self):
        self.on.clear()
        self.server.shutdown()
        self.server.server_close()


def test_a_lost_stream_is_tried_again_with_back_off_and_said(people, monkeypatch):
    monkeypatch.setattr(capture, "FIRST_WAIT", 0.2)
    camera, said = Camera(people), []
    camera.plug()
    with Source(f"http://me:secret@127.0.0.1:{camera.port}/camera.mjpg", say=said.append) as source:
        assert source.frames.get(20) is not None
        camera.unplug()
        until = time.monotonic() + 30
        while len(said) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        while source.frames.get(0.1):
            pass
        camera.plug()
        assert source.frames.get(20) is not None
    camera.unplug()
    waits = [line.split("again in ")[1] for line in said[:3]]
    assert waits == ["0.2 s", "0.4 s", "0.8 s"]
    assert said[-1].endswith("is back")
    assert not any("secret" in line for line in said)


def test_a_stream_that_opens_and_gives_no_frame_is_tried_less_and_less_often(monkeypatch):
    class Empty:
        def get(self, _):
            return 0.0

        def read(self):
            return False, None

        def release(self):
            pass

    monkeypatch.setattr(capture, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(Source, "_open", lambda _: Empty())
    said = []
    with Source("http://camera/", say=said.append):
        until = time.monotonic() + 10
        while len(said) < 6 and time.monotonic() < until:
            time.sleep(0.01)
    assert [line.split("again in ")[1] for line in said[:6:2]] == ["0.02 s", "0.04 s", "0.08 s"]


def test_a_camera_is_known_by_its_device(tmp_path):
    (tmp_path / "usb-front").symlink_to("/dev/video4321")
    for name in ("4321", "/dev/video4321", str(tmp_path / "usb-front")):
        with pytest.raises(UserError, match="cannot be opened: expected a camera that is free"):
            Source(name)

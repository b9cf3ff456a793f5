"""The verb `stream`: a camera, file or network stream in, faces with numbers and attributes out, never late.

    capture --1 frame--> detect, track --2 frames--> draw, write, show
                              |                           ^
                              +--16 patches--> landmarks, quality, predict, average

Each arrow is a bounded queue and each stage a thread. The newest frame is what is worked on; those that came while a
stage was busy are dropped and counted. Nothing waits for the model: a face is drawn with what its shots say so far.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from tfface.errors import UserError
from tfface.faces.draw import annotate
from tfface.online.capture import Channel, Frame, Source, without_password
from tfface.online.live import LiveFaces, TrackedFace, load_live_detector
from tfface.online.record import json_lines, recorder
from tfface.online.shots import ShotPredictor

BETWEEN_LOGS = 5.0
"""Seconds between two lines of the log."""

WINDOW_TITLE = "tfface stream - q to quit"


class Stream:
    """Runs a source through the stages. `run` gives frame after frame, with faces, as they come out.

    Args:
        source: an opened source; the stream starts and closes it.
        live: finds and tracks the faces.
        drop: drop late frames between analysis and output too; False for a file of which every frame is wanted.
    """

    def __init__(self, source: Source, live: LiveFaces, drop: bool = True):
        self.source = source
        self.live = live
        self.timing = live.shots.timing
        self.tracks: set[int] = set()
        self.frames = 0
        self._analysed = Channel(2, drop=drop)
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._analyse, name="analysis", daemon=True)

    @property
    def dropped(self) -> int:
        """Frames that came in and did not come out, because a newer one was there."""
        return self.source.frames.dropped + self._analysed.dropped

    def stop(self) -> None:
        """Ends the stream soon; safe to call from a signal handler."""
        self._stop.set()

    def run(self) -> Iterator[tuple[Frame, list[TrackedFace]]]:
        """The frames that come out, each with its faces, until the source ends or `stop` is called.

        Raises:
            BaseException: whatever ended one of the stages.
        """
        with self.source:
            self._thread.start()
            try:
                while not self._stop.is_set() and not self._analysed.closed:
                    if failure := self.live.shots.failure:  # read once: the analysis takes it away to raise it
                        raise failure
                    item = self._analysed.get(timeout=0.1)
                    if item is None:
                        continue
                    frame, faces = item
                    yield frame, faces
                    self.frames += 1
                    self.tracks.update(face.number for face in faces)
                    self.timing.note("total", time.monotonic() - frame.captured)
                    self.timing.tick()
            finally:
                self._analysed.close(discard=True)
                self.source.frames.close(discard=True)
                self._thread.join()
        failure = self._failure or self.source.failure or self.live.shots.failure
        if failure:
            raise failure

    def _analyse(self) -> None:
        try:
            for frame in self.source:
                self.timing.note("wait", time.monotonic() - frame.captured)
                if not self._analysed.put((frame, self.live(frame.image, frame.time))):
                    break
        except BaseException as error:  # raised by `run`, whose reader is waiting
            self._failure = error
        finally:
            self._analysed.close()

    def status(self) -> str:
        """Rate, dropped frames and the median latency of each stage, in a line."""
        stages = "  ".join(f"{stage} {value:.0f}" for stage, value in self.timing.latencies().items())
        return f"{self.timing.rate:.1f} frames/s  {self.dropped} dropped  ms: {stages}"

    def queues(self) -> str:
        """How full each queue is."""
        shots = self.live.shots
        return (
            f"queues: capture {len(self.source.frames)}/{self.source.frames.size}, "
            f"output {len(self._analysed)}/{self._analysed.size}, shots {shots.waiting}/{shots.capacity}"
        )


def draw(image: np.ndarray, faces: list[TrackedFace], status: str = "") -> np.ndarray:
    """Draws faces and, along the top, a line of status.

    Args:
        image: (height, width, 3), uint8, RGB; it is not changed.
        faces: what is to be drawn.
        status: ASCII text; none if empty.

    Returns:
        A new picture.
    """
    boxes = np.array([face.box for face in faces]).reshape(-1, 4)
    captions, numbers = [face.caption() for face in faces], [face.number for face in faces]
    picture = np.array(annotate(image, boxes, captions, numbers) if faces else image)
    if status:
        width = image.shape[1]
        (length, _), _ = cv2.getTextSize(status, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
        scale = min(0.4 * max(1.0, width / 640), 0.97 * width / max(length, 1))
        height = max(12, round(40 * scale))
        picture[:height] //= 3
        where = (round(0.01 * width), round(0.7 * height))
        cv2.putText(picture, status, where, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return picture


def stream(
    source: str,
    model: str = "compact",
    detector: str = "yolo",
    show: bool = False,
    save: str | Path | None = None,
    jsonl: str | Path | None = None,
    every_frame: bool = False,
    loop: bool = False,
    seconds: float | None = None,
    workers: int = 1,
    bfloat16: bool = False,
) -> int:
    """Runs the stream until its source ends, Ctrl-C or `seconds` are over; then the files are finished.

    Args:
        source: a camera's number, a video file or a URL.
        model: a run's folder or a shipped model.
        detector: name of a detector.
        show: show the picture in a window.
        save: video file (.mp4, .mkv) with the faces drawn in.
        jsonl: file of JSON lines, one a frame; "-" for standard output.
        every_frame: of a file, drop no frame, however long it takes.
        loop: begin a file again at its end.
        seconds: end after so long.
        workers: threads that predict.
        bfloat16: compute the model in bfloat16 where the processor can.

    Returns:
        Exit code 0.

    Raises:
        UserError: a source, model, detector or output that is not to be had.
    """
    if seconds is not None and not 0 < seconds < math.inf:
        raise UserError(f"--seconds must be a number above 0. Received: {seconds}.")
    places = [Path(place).resolve() for place in (source, save, jsonl) if place and str(place) != "-"]
    if len(places) > len(set(places)):
        shown = without_password(source)
        raise UserError(f"The video, --save and --jsonl must be different files. Received: {shown}, {save}, {jsonl}.")
    if not (show or save or jsonl):
        show = True
    if show:
        _check_screen()
    opened = Source(source, every_frame, loop, say)
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(recorder(save, opened.rate)) if save else None
        write_row = stack.enter_context(json_lines(jsonl)) if jsonl else None
        finder, tracker = load_live_detector(detector)
        shots = stack.enter_context(ShotPredictor(model, workers, bfloat16=bfloat16))
        live = LiveFaces(shots, finder, tracker, wait=every_frame)
        running = Stream(opened, live, drop=not every_frame)
        stack.enter_context(_stopped_by_signals(running.stop))
        begun = logged = time.monotonic()
        if seconds:  # also where no frame comes
            timer = threading.Timer(seconds, running.stop)
            timer.daemon = True
            timer.start()
            stack.callback(timer.cancel)
        failure = None
        try:
            for frame, faces in running.run():
                _put_out(running, frame, faces, show, video, write_row)
                now = time.monotonic()
                if now - logged > BETWEEN_LOGS:
                    say(f"{running.status()}  {running.queues()}")
                    logged = now
        except Exception as error:
            if not running.frames:
                raise
            failure = error  # the files are finished first: what was recorded is not lost
        finally:
            if show:
                cv2.destroyAllWindows()
        taken = time.monotonic() - begun
    written = ", ".join(str(path) for path in (save, jsonl) if path and str(path) != "-")
    say(
        f"{running.frames} frames in {taken:.1f} s, {running.dropped} dropped, {len(running.tracks)} tracks, "
        f"shots: {', '.join(f'{count} {what}' for what, count in sorted(shots.counts.items())) or 'none'}"
        + (f"; written: {written}" if written else "")
    )
    if failure:
        raise failure
    return 0


def _put_out(running: Stream, frame: Frame, faces: list[TrackedFace], show: bool, video, write_row) -> None:
    """Draws, shows and writes one frame."""
    timing = running.timing
    if show or video:
        with timing.measure("draw"):
            picture = draw(frame.image, faces, running.status())
    if video or write_row:
        with timing.measure("write"):
            if video:
                video.write(picture, frame.time)
            if write_row:
                write_row(row_of(frame, faces, running))
    if show:
        with timing.measure("show"):
            cv2.imshow(WINDOW_TITLE, picture[:, :, ::-1])
            key = cv2.waitKey(1) & 0xFF
        if key in (ord("q"), 27) or cv2.getWindowProperty(WINDOW_TITLE, cv2.WND_PROP_VISIBLE) < 1:
            running.stop()


def row_of(frame: Frame, faces: list[TrackedFace], running: Stream) -> dict:
    """What is known of a frame, as plain values for JSON."""
    age = time.monotonic() - frame.captured
    taken = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
    return {
        "frame": frame.number,
        "time": round(frame.time, 3),
        "captured": taken.isoformat(timespec="milliseconds"),
        "latency_ms": round(1e3 * age, 1),
        "dropped": running.dropped,
        "faces": [face.to_json() for face in faces],
    }


def say(text: str) -> None:
    """Prints a line to standard error, at once."""
    print(f"tfface: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, a service's polite end (SIGTERM) and the terminal's end stop the stream; a second one is as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number, _):
        stop()
        for name, handler in before.items():
            signal.signal(name, handler)

    names = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup's
        names.append(signal.SIGHUP)
    before = {name: signal.signal(name, handle) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _check_screen() -> None:
    """OpenCV ends the whole process where it finds no screen, so it is asked for beforehand."""
    os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")  # it misses fonts that the window does not use
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        raise UserError(
            "There is no screen to show the stream on (DISPLAY is not set). Write it with --save FILE or --jsonl FILE, "
            "or use `tfface app` and a browser."
        )

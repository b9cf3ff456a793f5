"""Frames from a camera, a file or a network stream, on a thread of their own: the newest one, late ones dropped."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tfface.errors import UserError

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when the first file is opened; -8: quiet

CAMERA = re.compile("(?:/dev/video)?([0-9]{1,4})")
"""A camera's number, or its device as Linux names it."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds until a lost source is tried again: the first, doubled each time up to the longest."""

NO_ANSWER = 10_000
"""Milliseconds after which a network stream that sends nothing counts as lost."""

ASSUMED_RATE = 30.0
"""Frames a second of a source that does not say it (many cameras do not)."""


class Channel:
    """A bounded queue between two stages, which either drops what is old or makes the giver wait.

    Args:
        size: items that wait in it at most, at least 1.
        drop: True: an item put into a full channel pushes the oldest out, which is counted in `dropped`. False: the
            giver waits until there is room.
    """

    def __init__(self, size: int, drop: bool = True):
        self.size = size
        self.drop = drop
        self.dropped = 0
        self._items: deque = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed(self) -> bool:
        """Whether it was closed and everything that was in it has been taken."""
        with self._changed:
            return self._closed and not self._items

    def put(self, item) -> bool:
        """Puts an item in; False if the channel is closed and the item was not taken."""
        with self._changed:
            while not self.drop and len(self._items) >= self.size and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            if len(self._items) >= self.size:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self, timeout: float | None = None):
        """Takes the oldest item; None after `timeout` seconds without one, or once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, timeout)
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self, discard: bool = False) -> None:
        """Lets nothing more in; with `discard` what waits in it is thrown away."""
        with self._changed:
            self._closed = True
            if discard:
                self._items.clear()
            self._changed.notify_all()


def without_password(name: str) -> str:
    """A name to be shown: of a URL, without the user and the password that it may hold."""
    return re.sub(r"//.*@", "//", name)  # to the last @: a password may hold "/" and "@"


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a source.

    Attributes:
        image: (height, width, 3), uint8, RGB.
        number: position in the source, from 0; numbers that are missing were dropped.
        time: seconds since the first frame: of a video its own time, of a live source the clock's.
        captured: when it was taken from the source, `time.monotonic()` seconds.
    """

    image: np.ndarray
    number: int
    time: float
    captured: float


class Source:
    """A camera, a video file or a network stream, read on its own thread into a channel.

    A file, or a video behind a URL, is played at its own pace, as a camera would give it, unless every frame is asked
    for. Whatever is no file and stops giving frames is opened anew, after 0.5 seconds, 1, 2, ... up to 30, and each
    attempt is said.

    Args:
        name: a camera's number ("0") or device ("/dev/video0", or a link to it as in /dev/v4l/by-id), a file's path, or
            a URL such as "rtsp://...".
        every_frame: hand on every frame of a file, waiting for the reader, instead of the newest.
        loop: begin a file again at its end. Times and numbers go on.
        say: what is told about lost sources goes here, a line at a time; to standard error if None.

    Raises:
        UserError: the source cannot be opened, or `every_frame` or `loop` is asked of one that is no file.
    """

    def __init__(
        self, name: str, every_frame: bool = False, loop: bool = False, say: Callable[[str], None] | None = None
    ):
        self.name = str(name)
        self.label = without_password(self.name)
        """The name without the password that a URL may hold."""
        number = CAMERA.fullmatch(self.name) or CAMERA.fullmatch(os.path.realpath(self.name))
        self.camera = int(number[1]) if number else None
        self.is_file = not (self.camera is not None or "://" in self.name)
        if self.is_file and not Path(self.name).is_file():
            raise UserError(
                f"No such source: {self.label}. Expected a camera's number, a video file or a URL (rtsp://..., http://...)."
            )
        if (every_frame or loop) and not self.is_file:
            raise UserError(f"Every frame, or a loop, can be had of a video file only. Received: {self.label}.")
        self.loop = loop
        self.frames = Channel(1 if not every_frame else 4, drop=not every_frame)
        self.failure: BaseException | None = None
        self._say = say or (lambda text: print(f"tfface: {text}", file=sys.stderr, flush=True))
        self._stop = threading.Event()
        self._wait = FIRST_WAIT
        self._capture = self._open()
        if self._capture is None:
            raise UserError(
                f"{self.label} cannot be opened: expected a camera that is free, a video file that OpenCV can read, or "
                "a stream that answers. Check the cable, the address and who else uses it."
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = float(rate) if 1 <= rate <= 1000 else ASSUMED_RATE
        # A video behind a URL says how long it is; what is live does not. It comes as fast as the network is.
        self.recorded = self.is_file or self._capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
        self.paced = self.recorded and not every_frame
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)

    def __enter__(self) -> Source:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        """The frames, until the source ends or is closed.

        Raises:
            UserError: a file holds no frame that can be read, or has gone at the end of a loop.
        """
        while (frame := self.frames.get()) is not None:
            yield frame
        if self.failure:
            raise self.failure

    def close(self) -> None:
        """Stops reading; frames that nobody took are thrown away."""
        self._stop.set()
        self.frames.close(discard=True)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(2)  # one that waits for a silent network is left to find out by itself

    def _open(self) -> cv2.VideoCapture | None:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what cannot be opened is said once, by us
        if self.camera is not None:
            capture = cv2.VideoCapture(self.camera)
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        else:
            # None (0) for a file: a process that is suspended in the middle of a read would take it for the end.
            most = 0 if self.is_file else NO_ANSWER
            waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, most, cv2.CAP_PROP_READ_TIMEOUT_MSEC, most]
            capture = cv2.VideoCapture(self.name, cv2.CAP_FFMPEG, waits)
        if capture.isOpened():
            return capture
        capture.release()
        return None

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as error:  # handed to whoever waits for frames; a thread's traceback helps nobody
            self.failure = error
        finally:
            if self._capture is not None:
                self._capture.release()
            self.frames.close()

    def _read(self) -> None:
        number, start = 0, time.monotonic()
        offset, last = 0.0, -1 / self.rate  # of this playing of a video; of the frame before
        position = 0
        while not self._stop.is_set():
            read, image = self._capture.read()
            if not read:
                if self.is_file and not number:
                    raise UserError(f"No frame of {self.label} could be read; it is damaged. Copy or convert it again.")
                if self.is_file and not (self.loop and position):
                    return
                if self.is_file:
                    offset, position = last + 1 / self.rate, 0
                    self._capture.release()
                    self._capture = self._open()
                    if self._capture is None:
                        raise UserError(
                            f"{self.label} cannot be opened again: expected the file to stay while it is looped. "
                            "Put it back, then run again."
                        )
                elif self._reopen():
                    offset = time.monotonic() - start
                else:
                    return
                continue
            self._wait = FIRST_WAIT  # only now: one that can be opened need not give a frame
            now = time.monotonic()
            at = now - start
            if self.recorded:
                at = offset + self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                if at <= last:  # a video without times
                    at = last + 1 / self.rate
                last, position = at, position + 1
                if self.paced and self._stop.wait(max(0.0, start + at - now)):
                    return
            frame = Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), number, at, time.monotonic())
            number += 1
            if not self.frames.put(frame):
                return

    def _reopen(self) -> bool:
        """Tries until the source is there again; False if it was told to stop."""
        self._capture.release()
        self._capture = None
        while self._capture is None:
            self._say(f"{self.label} gives no more frames; trying again in {self._wait:g} s")
            if self._stop.wait(self._wait):
                return False
            self._capture = self._open()
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._say(f"{self.label} is back")
        return True

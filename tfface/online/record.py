"""What a stream leaves behind: a video with the faces drawn in, and a line of JSON a frame."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from tfface import files
from tfface.errors import UserError

CLOCK = 1000
"""Times in a video are counted in this part of a second."""

BETWEEN_KEYS = 2.0
"""Seconds between two key frames: with each of them what came before is written out."""


class VideoRecorder:
    """An H.264 video whose frames stand at their own times, so it plays at the pace of life though frames were dropped.

    It is written in fragments: what a killed process leaves behind can be played but for its last seconds. Where a
    frame could not be written, `close` raises that error again: the video is not whole.

    Args:
        path: where; ends in .mp4 or .mkv.
        rate: frames a second that are expected; the encoder's guess of how many bits a frame may take.
    """

    def __init__(self, path: str | Path, rate: float):
        import av

        self._av = av
        fragments = {"movflags": "frag_keyframe+empty_moov"} if Path(path).suffix.lower() == ".mp4" else {}
        self._container = av.open(str(path), "w", options={"flush_packets": "1", **fragments})
        self._rate = round(rate)
        self._stream = None
        self._last = -1
        self._failure: Exception | None = None

    def write(self, image: np.ndarray, time: float) -> None:
        """Adds a frame.

        Args:
            image: (height, width, 3), uint8, RGB. Its size is that of the first one, or is brought to it.
            time: seconds since the first frame.
        """
        try:
            self._write(image, time)
        except Exception as error:
            self._failure = error
            raise

    def _write(self, image: np.ndarray, time: float) -> None:
        if self._stream is None:
            self._begin(*image.shape[:2])
        width, height = self._stream.width, self._stream.height
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        self._last = max(self._last + 1, round(time * CLOCK))
        frame.pts, frame.time_base = self._last, Fraction(1, CLOCK)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Writes what the encoder still holds."""
        try:
            if self._stream is not None and not self._failure:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()
        if self._failure:
            raise self._failure

    def _begin(self, height: int, width: int) -> None:
        options = {"preset": "veryfast", "crf": "23", "tune": "zerolatency", "g": str(round(BETWEEN_KEYS * self._rate))}
        self._stream = self._container.add_stream("libx264", rate=self._rate, options=options)
        # H.264 halves the colours' resolution, so sides are even.
        self._stream.width, self._stream.height = max(2, width // 2 * 2), max(2, height // 2 * 2)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, CLOCK)


@contextlib.contextmanager
def recorder(path: str | Path, rate: float) -> Iterator[VideoRecorder]:
    """A `VideoRecorder` that writes aside and renames to `path` at the end.

    Raises:
        UserError: another kind of file than .mp4 or .mkv, or a place that cannot be written to.
    """
    if Path(path).suffix.lower() not in (".mp4", ".mkv"):
        raise UserError(f"A video is saved as .mp4 or .mkv. Received: {path}.")
    with files.written_aside(path) as aside:
        video = VideoRecorder(aside, rate)
        try:
            yield video
        finally:
            video.close()
        if video._stream is None:
            raise UserError(f"No frame came: {path} was not written.")


@contextlib.contextmanager
def json_lines(path: str | Path) -> Iterator[Callable[[dict], None]]:
    """Gives a function that writes an object as a line of JSON: to standard output if `path` is "-", else aside.

    An error of the function is raised again at the end, so that a file that lacks lines is not renamed to `path`.
    """
    if str(path) == "-":
        yield lambda row: print(json.dumps(row), file=sys.stdout, flush=True)
        return
    failures = []
    with files.written_aside(path) as aside, open(aside, "w", buffering=1) as stream:

        def write(row: dict) -> None:
            try:
                print(json.dumps(row), file=stream)
            except Exception as error:
                failures.append(error)
                raise

        yield write
        if failures:  # the file is not whole
            raise failures[0]

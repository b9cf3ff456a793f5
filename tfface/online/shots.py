"""Good shots of a tracked face, predicted on worker threads and averaged.

A face on video shows itself a thousand times, mostly badly. A track keeps its few best shots
(`tfface.faces.quality`), each predicted once, and says the mean of their probabilities, weighted by quality. Paper 4
(ARG) averages shots of a face in its online module and gives no formula: this is ours, measured in
`benchmarks/averaging.py`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tfface.errors import UserError
from tfface.faces.align import enlarged
from tfface.faces.detect import load_detector
from tfface.faces.quality import Quality, quality
from tfface.online.timing import Timing
from tfface.serving.predictor import FaceAttributes, Predictor
from tfface.training.features import bfloat16_convolutions

LEAST_QUALITY = 0.05
"""Worse shots are not predicted: blurred, turned away or tiny beyond use. A frontal, sharp face passes with its eyes 7
pixels apart."""

BETWEEN_SHOTS, BETWEEN_BETTER, AFTER_REJECTED = 0.3, 1.0, 0.15
"""Seconds from one shot of a track to the next: until it has enough, while it looks for better ones, and after one that
was no good. Neighbouring frames are nearly the same picture and would say nothing new."""

BETTER = 1.1
"""A shot replaces the worst one of a full track only if it is so many times as good."""

AT_ONCE = 4
"""Shots that are predicted in one batch at most. Each size of batch is compiled once, at the start."""

PATCH_FACE = 320
"""The longer side of a face in a waiting patch at most, pixels: twice the model's crop. Patches bound the memory of the
queue, where whole frames would not."""

LANDMARK_SIDE = 160
"""Patches are brought to this square, pixels, to find landmarks in: the face is half as wide."""


@dataclass(frozen=True, eq=False)
class Shot:
    """One predicted shot: the model's outputs, its quality and when it was taken (seconds)."""

    outputs: dict[str, np.ndarray]
    quality: Quality
    time: float


class TrackShots:
    """The best shots of one track and what they say together. Safe to use from several threads.

    Args:
        most: shots that are kept.
    """

    def __init__(self, most: int = 8):
        self.most = most
        self._shots: list[Shot] = []
        self._next = float("-inf")
        self._pending = False
        self._outputs: dict[str, np.ndarray] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._shots)

    @property
    def shots(self) -> tuple[Shot, ...]:
        """The shots that are kept, the best first."""
        return tuple(self._shots)

    @property
    def outputs(self) -> dict[str, np.ndarray] | None:
        """Task -> mean of the model's outputs over the shots, weighted by quality; None before the first shot."""
        return self._outputs

    def wants(self, now: float) -> bool:
        """Whether a new shot at this time (seconds) is welcome."""
        return not self._pending and now >= self._next

    def asked(self) -> None:
        """Notes that a shot is under way."""
        self._pending = True

    def accepts(self, score: float) -> bool:
        """Whether a shot of this quality would be kept."""
        full = len(self._shots) >= self.most
        return score >= LEAST_QUALITY and (not full or score > BETTER * self._shots[-1].quality.score)

    def done(self, now: float, shot: Shot | None) -> None:
        """Takes in what became of a shot that was asked for at time `now`; None if it was no good."""
        with self._lock:
            if shot is not None:
                shots = sorted([*self._shots, shot], key=lambda shot: -shot.quality.score)[: self.most]
                self._shots, self._outputs = shots, average(shots)
            full = len(self._shots) >= self.most
            self._next = now + (BETWEEN_BETTER if full else BETWEEN_SHOTS if shot else AFTER_REJECTED)
            self._pending = False


def average(shots: list[Shot]) -> dict[str, np.ndarray]:
    """Mean of the outputs of some shots, the best first, weighted by quality: output -> (width,) float32.

    What is no number, as the class names that a server sends, is the best shot's.
    """
    weights = np.array([shot.quality.score for shot in shots])
    return {
        name: np.average([shot.outputs[name] for shot in shots], axis=0, weights=weights).astype("float32")
        if np.asarray(best).dtype.kind in "fiu"
        else best
        for name, best in shots[0].outputs.items()
    }


@dataclass(eq=False)
class _Request:
    patch: np.ndarray
    box: np.ndarray
    landmarks: np.ndarray | None
    track: TrackShots
    time: float
    asked: float
    score: Quality | None = None
    settled: bool = False


class ShotPredictor:
    """Worker threads that turn patches of frames into shots: landmarks, quality, alignment, prediction in batches.

    Several streams may share one. What comes when `waiting` shots are waiting is turned away and counted; the track
    then asks again with a newer frame.

    Args:
        predictor: what predicts, or the model's folder or name (`tfface.serving.predictor.find_model`).
        workers: threads.
        waiting: shots that wait at most.
        bfloat16: compute the model in bfloat16 where the processor can.
        timing: where the latencies of the stages "shot" (asked to averaged) and "predict" (a batch) are noted.

    Raises:
        UserError: no such model, or a number below 1.
    """

    def __init__(
        self,
        predictor: Predictor | str | Path = "compact",
        workers: int = 1,
        waiting: int = 16,
        bfloat16: bool = False,
        timing: Timing | None = None,
    ):
        if min(workers, waiting) < 1:
            raise UserError(f"workers and waiting shots must be at least 1, received {workers} and {waiting}")
        # Landmarks decide alignment and quality; MTCNN also has a second opinion on whether it is a face at all.
        self.detector = load_detector("mtcnn", min_face_size=LANDMARK_SIDE // 4, score_threshold=0.9)
        self.predictor = Predictor(predictor, self.detector) if isinstance(predictor, str | Path) else predictor
        self.timing = timing or Timing()
        self.counts: Counter[str] = Counter()
        """Shots by what became of them: predicted, no landmarks, poor, not better, turned away (the queue was full)."""
        self.failure: BaseException | None = None
        self._queue: queue.Queue[_Request | None] = queue.Queue(waiting)
        self._counting = threading.Lock()
        self._bfloat16 = bfloat16
        ready = [threading.Event() for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._work, args=(event,), name="shots", daemon=True) for event in ready
        ]
        for thread, event in zip(self._threads, ready, strict=True):
            thread.start()
            event.wait()  # one after the other: the first compiles for all
        if self.failure:
            raise self.failure

    @property
    def waiting(self) -> int:
        """Shots that wait now."""
        return self._queue.qsize()

    @property
    def capacity(self) -> int:
        """Shots that wait at most."""
        return self._queue.maxsize

    def offer(
        self,
        track: TrackShots,
        frame: np.ndarray,
        box: np.ndarray,
        landmarks: np.ndarray | None,
        now: float,
        wait: bool = False,
    ) -> bool:
        """Hands a face of a frame to the workers, if its track wants a shot now.

        Args:
            track: where the shot goes.
            frame: (height, width, 3), uint8, RGB; the part about the face is copied.
            box: (4,), pixels.
            landmarks: (5, 2), pixels; None, or with unknown ones NaN, if the detector gives none.
            now: time of the frame, seconds.
            wait: wait for room in the queue instead of turning the shot away.

        Returns:
            Whether it was taken.
        """
        if not track.wants(now):
            return False
        track.asked()
        request = _Request(*_patch(frame, box, landmarks), track, now, time.monotonic())
        try:
            self._queue.put(request, block=wait)
        except queue.Full:
            track.done(now, None)
            self._count("turned away")
            return False
        return True

    def attributes(self, track: TrackShots, box: np.ndarray, score: float) -> FaceAttributes | None:
        """What the shots of a track say together; None before the first one."""
        outputs = track.outputs
        return None if outputs is None else self.predictor.attributes(box, score, outputs)

    def flush(self) -> None:
        """Waits until every shot that was taken is predicted."""
        self._queue.join()

    def close(self) -> None:
        """Ends the workers; shots that still wait are given up."""
        while True:
            try:
                self._queue.get_nowait()
                self._queue.task_done()
            except queue.Empty:
                break
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> ShotPredictor:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _warm_up(self) -> None:
        """Compiles the graph for every size of batch before the first face is waiting for it."""
        height, width = self.predictor.recipe.image_size
        count = 1
        while count <= AT_ONCE:
            self.predictor.predict_crops(np.zeros((count, height, width, 3), np.uint8))
            count *= 2
        self.detector([np.zeros((LANDMARK_SIDE, LANDMARK_SIDE, 3), np.uint8)])

    def _work(self, ready: threading.Event) -> None:
        # TensorFlow keeps this choice for each thread: made elsewhere, it would not hold here.
        with bfloat16_convolutions(self._bfloat16):
            try:
                self._warm_up()
            except BaseException as error:  # raised where the worker was started
                self.failure = error
                return
            finally:
                ready.set()
            self._serve()

    def _serve(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            with contextlib.suppress(queue.Empty):
                while len(batch) < AT_ONCE:
                    request = self._queue.get_nowait()
                    if request is None:  # the end: given back for after this batch, or for another worker
                        self._queue.put(None)
                        self._queue.task_done()
                        break
                    batch.append(request)
            try:
                self._predict(batch)
            except BaseException as error:  # said by the stream; a worker that dies in silence looks like a slow one
                self.failure = error
            finally:
                for request in batch:
                    if not request.settled:  # its track may have asked for the next one meanwhile
                        self._settle(request)
                    self._queue.task_done()
        self._queue.task_done()

    def _predict(self, batch: list[_Request]) -> None:
        begun = time.monotonic()
        self._find_landmarks([request for request in batch if request.landmarks is None])
        good = []
        for request in batch:
            reason = self._judge(request)
            if reason:
                self._count(reason)
                self._settle(request)
            else:
                good.append(request)
        if not good:
            return
        crops = [self.predictor.align(request.patch, request.box, request.landmarks) for request in good]
        outputs = self.predictor.predict_crops(np.stack(crops))
        for row, request in enumerate(good):
            shot = Shot({task: values[row] for task, values in outputs.items()}, request.score, request.time)
            self._settle(request, shot)
            self._count("predicted")
            self.timing.note("shot", time.monotonic() - request.asked)
        self.timing.note("predict", time.monotonic() - begun)

    @staticmethod
    def _settle(request: _Request, shot: Shot | None = None) -> None:
        request.track.done(request.time, shot)
        request.settled = True

    def _judge(self, request: _Request) -> str:
        """Why a shot is of no use, or nothing if it is."""
        if request.landmarks is None:
            return "no landmarks"
        try:
            request.score = quality(request.patch, request.landmarks)
        except UserError:  # landmarks that are no face's
            return "no landmarks"
        if request.score.score < LEAST_QUALITY:
            return "poor"
        return "" if request.track.accepts(request.score.score) else "not better"

    def _find_landmarks(self, requests: list[_Request]) -> None:
        """Five landmarks of the faces in the middle of patches, by MTCNN, for detectors that find none."""
        if not requests:
            return
        side = (LANDMARK_SIDE, LANDMARK_SIDE)
        squares = [cv2.resize(request.patch, side, interpolation=cv2.INTER_AREA) for request in requests]
        for request, faces in zip(requests, self.detector(squares), strict=True):
            scale = np.array(request.patch.shape[1::-1]) / LANDMARK_SIDE
            boxes = faces.boxes * np.tile(scale, 2)
            overlaps = [_overlap(box, request.box) for box in boxes]
            if overlaps and max(overlaps) >= 0.3:
                request.landmarks = enlarged(faces.landmarks[int(np.argmax(overlaps))], scale)

    def _count(self, what: str) -> None:
        with self._counting:
            self.counts[what] += 1


def _patch(frame, box, landmarks) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The square about a face, twice as wide, with box and landmarks in its pixels; a copy, shrunk if it is large.

    It is always square, so that landmarks may be looked for at one size; where it reaches over the frame it repeats the
    edge, as an aligned crop does.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    side = max(x1 - x0, y1 - y0, 1.0)
    scale = min(1.0, PATCH_FACE / side)
    count = round(2 * side * scale)
    corner = np.array([(x0 + x1) / 2 - side, (y0 + y1) / 2 - side])
    start = np.floor(corner).astype(int)
    stop = start + round(2 * side)
    height, width = frame.shape[:2]
    inside = frame[max(start[1], 0) : min(stop[1], height), max(start[0], 0) : min(stop[0], width)]
    left, top = np.maximum(-start, 0)
    right, bottom = np.maximum(stop - (width, height), 0)
    patch = cv2.copyMakeBorder(inside, int(top), int(bottom), int(left), int(right), cv2.BORDER_REPLICATE)
    if scale < 1:
        scale = count / patch.shape[0]
        patch = cv2.resize(patch, (count, count), interpolation=cv2.INTER_AREA)
    else:
        scale = 1.0
    points = None
    if landmarks is not None and np.isfinite(landmarks).all():
        points = enlarged(landmarks - start, scale)
    return patch, (np.asarray(box, np.float64) - np.tile(start, 2)) * scale, points


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared + 1e-9))

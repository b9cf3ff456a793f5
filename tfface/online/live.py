"""Detect, track, gather shots, average: one frame in, the faces that are tracked in it out, at once.

```python
with LiveFaces.load(detector="yolo") as live, Source("0") as source:
    for frame in source:
        for face in live(frame.image, frame.time):
            ...face.number, face.box, face.attributes
```
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tfface.faces.align import enlarged
from tfface.faces.detect import Detector, Faces, load_detector
from tfface.faces.mtcnn import MTCNN
from tfface.faces.track import UNSURE, CutDetector, Tracker
from tfface.online.shots import ShotPredictor, TrackShots
from tfface.serving.predictor import FaceAttributes

THRESHOLDS = {"yolo": (0.3, 0.5), "mtcnn": (0.7, 0.9)}
"""Detector -> least score of a face, and of one that begins a track: uncertain boxes begin none but carry one on."""

MIN_FACE_SIZE = 40
"""MTCNN's smallest face, pixels: smaller ones show the model nothing, and a quarter of the work is left."""

LOOK_AGAIN = 1.0
"""Seconds after which a frame is looked over by MTCNN too, though no face is missing: for those that the fast detector
never finds."""

LOOK_SIDE = 640
"""The longer side of the frame that MTCNN looks over, pixels: larger ones are shrunk, which bounds the time."""


@dataclass(frozen=True)
class TrackedFace:
    """A face in a frame.

    Attributes:
        number: of its track, from 1 on; the same from frame to frame.
        box: x0, y0, x1, y1, pixels.
        score: the detector's, in [0, 1].
        shots: how many shots the attributes are the mean of.
        attributes: what the model says of the shots together; None until the first one is predicted.
    """

    number: int
    box: tuple[float, float, float, float]
    score: float
    shots: int = 0
    attributes: FaceAttributes | None = None

    def caption(self) -> list[str]:
        """Short lines for a picture: the number, then what the attributes say."""
        said = self.attributes.caption() if self.attributes else ["..."]
        return [f"{self.number}: {said[0]}", *said[1:]] if said else [str(self.number)]

    def to_json(self) -> dict:
        """Plain values for JSON; what the model says is there once it has said something."""
        box = {"box": [round(value, 1) for value in self.box], "score": round(self.score, 4)}
        said = self.attributes.to_json() if self.attributes else {}
        return {"number": self.number, "shots": self.shots, **box, **said}


class LiveFaces:
    """The faces of one video, frame after frame. Not for several threads at once; several may share a `ShotPredictor`.

    A call does not wait for the model: it returns what the shots predicted so far say, unless `wait` is set.

    Args:
        shots: predicts shots; closed by whoever made it.
        detector: finds the faces of each frame.
        tracker: numbers them, its threshold fitting the detector's; one with defaults if None.
        most_shots: shots of a track that are averaged at most.
        wait: turn no shot away, and return only when all of this frame are predicted: for files, where no frame is
            late. What is returned then depends on the frames alone, not on how fast the machine is.
        look_again: have MTCNN look where a fast detector loses, or doubts, a face that was there in the frame before,
            and everywhere once a second. The fast one does most frames; MTCNN keeps faces that lean or turn away.
    """

    def __init__(
        self,
        shots: ShotPredictor,
        detector: Detector,
        tracker: Tracker | None = None,
        most_shots: int = 8,
        wait: bool = False,
        look_again: bool = True,
    ):
        self.shots = shots
        self.detector = detector
        self.tracker = tracker or Tracker()
        self.most_shots = most_shots
        self.wait = wait
        self._cut = CutDetector()
        self._tracks: dict[int, TrackShots] = {}
        self._seen: dict[int, float] = {}
        self._again = SecondLook(shots.detector) if look_again and not isinstance(detector, MTCNN) else None

    @classmethod
    def load(
        cls, model: str | Path = "compact", detector: str = "yolo", bfloat16: bool = False, **options
    ) -> LiveFaces:
        """Loads a model and a detector by their names.

        Args:
            model: a run's folder, or a shipped model.
            detector: a name that `tfface.faces.detect.load_detector` knows.
            bfloat16: compute the model in bfloat16 where the processor can.
            **options: `most_shots`, `wait` and `look_again`, as of the class.

        Raises:
            UserError: no such model or detector.
        """
        return cls(ShotPredictor(model, bfloat16=bfloat16), *load_live_detector(detector), **options)

    def __enter__(self) -> LiveFaces:
        return self

    def __exit__(self, *_) -> None:
        self.shots.close()

    def __call__(self, image: np.ndarray, time: float) -> list[TrackedFace]:
        """Takes in the next frame.

        Args:
            image: (height, width, 3), uint8, RGB.
            time: when, in seconds from any beginning; greater than that of the frame before.

        Returns:
            The tracked faces that are seen in this frame, by number.

        Raises:
            UserError: no picture of that kind, or a time that goes back.
            BaseException: whatever ended the prediction of a shot since the call before, once.
        """
        timing = self.shots.timing
        with timing.measure("detect"):
            found = distinct(self.detector([image])[0])
            if self._again:
                found = self._again(image, time, found, self.tracker.sure)
        if self._cut(image):
            self.tracker.reset()
        with timing.measure("track"):
            numbers = self.tracker.update(found, time)
        if self._again:
            self._again.expect(found.boxes[(numbers != UNSURE) | (found.scores >= self.tracker.sure)])
        tracked = []
        for index, number in enumerate(map(int, numbers)):
            if number == UNSURE:
                continue
            track = self._tracks.setdefault(number, TrackShots(self.most_shots))
            self._seen[number] = time
            box, score = found.boxes[index], float(found.scores[index])
            landmarks = None if found.landmarks is None else found.landmarks[index]
            if score >= self.tracker.sure:  # an uncertain box is no good shot
                self.shots.offer(track, image, box, landmarks, time, self.wait)
            tracked.append((number, track, box, score))
        self._forget(time)
        if self.wait:
            self.shots.flush()
        failure, self.shots.failure = self.shots.failure, None
        if failure:  # said once: a batch that found no memory, say, is no reason to refuse every frame from now on
            raise failure
        return [
            TrackedFace(number, tuple(map(float, box)), score, len(track), self.shots.attributes(track, box, score))
            for number, track, box, score in sorted(tracked, key=lambda one: one[0])
        ]

    def _forget(self, now: float) -> None:
        """Lets go of tracks that the tracker cannot bring back, so that memory does not grow with the people seen."""
        for number in [number for number, seen in self._seen.items() if now - seen > self.tracker.lasts + 1]:
            del self._seen[number], self._tracks[number]


class SecondLook:
    """A better, slower detector looks where the fast one loses or doubts a face, and at one frame a second anyway.

    Args:
        detector: the better one; what it finds counts as certain.
    """

    def __init__(self, detector: Detector):
        self.detector = detector
        self._expected = np.zeros((0, 4), np.float32)
        self._looked = float("-inf")

    def __call__(self, image: np.ndarray, time: float, found: Faces, sure: float) -> Faces:
        """The faces that were found, and those that only the second look finds; what it finds has at least `sure`."""
        certain = found.boxes[found.scores >= sure]
        missing = any(not _inside(box, certain) for box in self._expected)
        if not missing and time - self._looked < LOOK_AGAIN:
            return found
        self._looked = time
        scale = min(1.0, LOOK_SIDE / max(image.shape[:2]))
        if scale < 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        others = self.detector([image])[0]
        boxes, points = others.boxes / scale, enlarged(others.landmarks, 1 / scale)
        same = np.array([[_inside(a, b[None]) or _inside(b, a[None]) for b in boxes] for a in found.boxes], bool)
        same = same.reshape(len(found), len(boxes))
        new = ~same.any(axis=0)
        scores = np.where(same.any(axis=1), np.maximum(found.scores, sure), found.scores)
        known = np.full((len(found), 5, 2), np.nan, np.float32) if found.landmarks is None else found.landmarks
        return Faces(
            np.concatenate([found.boxes, boxes[new]]),
            np.concatenate([scores, np.maximum(others.scores[new], sure)]),
            np.concatenate([known, points[new]]),
        )

    def expect(self, boxes: np.ndarray) -> None:
        """Notes where faces are in this frame, (n, 4), pixels: in the next one they are missed, if not surely found."""
        self._expected = boxes


def distinct(faces: Faces) -> Faces:
    """Leaves out each face whose middle lies in the box of a surer one: the same face, seen twice, or one behind it."""
    kept: list[int] = []
    for index, box in enumerate(faces.boxes):
        if not _inside(box, faces.boxes[kept]):
            kept.append(index)
    return faces.select(kept)


def _inside(box: np.ndarray, boxes: np.ndarray) -> bool:
    """Whether the middle of a box lies in one of several."""
    middle = (box[:2] + box[2:]) / 2
    return bool(((boxes[:, :2] <= middle) & (middle <= boxes[:, 2:])).all(axis=1).any())


def load_live_detector(name: str) -> tuple[Detector, Tracker]:
    """A detector by its name (`tfface.faces.detect.load_detector`), and a tracker whose threshold suits it."""
    options = {"min_face_size": MIN_FACE_SIZE} if name == "mtcnn" else {}
    if name not in THRESHOLDS:
        return load_detector(name, **options), Tracker()
    least, sure = THRESHOLDS[name]
    return load_detector(name, score_threshold=least, **options), Tracker(sure=sure)

"""dlib: a HOG detector of frontal faces and a shape predictor, what paper 1 aligns with."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from tfface.errors import UserError
from tfface.faces.detect import Detector, Faces, check_min_face_size

PREDICTORS = {"five-point": "dlib_five_point", "68-point": "dlib_68_point"}
"""Predictors that `tfface.weights` fetches: dlib's five points (CC0), its 68 points (no commercial use)."""

NOSE_TIP = 0.75
"""Where the tip of the nose lies on the way from between the eyes to the nose's base: median over MTCNN's noses in 351
photos of LFW and FairFace. Crops are aligned to the tip: taken for it, the base would make faces a tenth too small."""

PREDICTOR_SIDE = 300
"""The predictor sees a face at least this wide, pixels: it answers in whole pixels, too coarse for a small face."""


class DlibHOG(Detector):
    """dlib's HOG detector (Dalal and Triggs 2005) and a shape predictor (Kazemi and Sullivan 2014).

    It finds upright frontal faces of 80 pixels and more, and half that with each upsampling. dlib's five
    points are the corners of both eyes and the base of the nose: in `Faces.landmarks` an eye is the middle of
    its corners, the tip of the nose is reckoned from its base (`NOSE_TIP`), and the mouth corners, which dlib
    does not find, are NaN. With 68 points (dlib's own exclude commercial use) all five are there: an eye is
    the middle of the six points around it.

    Args:
        predictor: "five-point" or "68-point" to fetch dlib's, the path of a file of so many points, or None for
            boxes alone.
        upsample: how often the photo is doubled first; each time smaller faces are found at four times the
            work.
        score_threshold: least score of a face; dlib's own decision is 0.5.
        min_face_size: faces whose longer side is smaller are left out, pixels.

    Raises:
        UserError: the predictor's file is missing or no shape predictor of 5 or 68 points.
    """

    def __init__(
        self,
        predictor: str | os.PathLike | None = "five-point",
        upsample: int = 0,
        score_threshold: float = 0.5,
        min_face_size: float = 0,
    ):
        if not 0 < score_threshold < 1:
            raise UserError(f"a score threshold lies between 0 and 1, received {score_threshold}")
        if upsample not in range(5):
            raise UserError(f"upsample must be 0 to 4 doublings, received {upsample}")
        check_min_face_size(min_face_size)
        self.upsample = upsample
        self.min_face_size = min_face_size
        # dlib decides at 0 on a scale without bounds; the logistic function brings it to [0, 1].
        self._threshold = float(np.log(score_threshold / (1 - score_threshold)))
        self._predictor = _load_predictor(predictor) if predictor else None
        self._detectors = threading.local()  # dlib's detector works inside itself: one a thread

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        return [self._detect_one(np.ascontiguousarray(image)) for image in images]

    def _detect_one(self, image: np.ndarray) -> Faces:
        if not hasattr(self._detectors, "hog"):
            import dlib

            self._detectors.hog = dlib.get_frontal_face_detector()
        height, width = image.shape[:2]
        rectangles, values, _ = self._detectors.hog.run(image, self.upsample, self._threshold)
        sides = [(r.left(), r.top(), r.right() + 1, r.bottom() + 1) for r in rectangles]
        boxes = np.array(sides, np.float32).reshape(-1, 4)
        scores = expit(np.array(values, np.float32))
        landmarks = None
        if self._predictor:
            points = [_five(_predicted(self._predictor, image, rectangle)) for rectangle in rectangles]
            landmarks = np.array(points, np.float32).reshape(-1, 5, 2)
        faces = Faces(np.clip(boxes, 0, (width, height, width, height)).astype(np.float32), scores, landmarks)
        large = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) >= self.min_face_size
        return faces.select(large)


def _load_predictor(source: str | os.PathLike):
    import dlib

    if source in PREDICTORS:
        from tfface import weights

        source = weights.fetch(PREDICTORS[source])
    if not os.path.isfile(source):
        names = ", ".join(PREDICTORS)
        raise UserError(f"no shape predictor at {source}; expected one of {names} or the path of a .dat file")
    try:
        predictor = dlib.shape_predictor(os.fspath(source))
    except RuntimeError as error:
        raise UserError(f"{source} is not a shape predictor of dlib: {error}") from error
    blank = np.zeros((64, 64, 3), np.uint8)
    points = predictor(blank, dlib.rectangle(0, 0, 63, 63)).num_parts
    if points not in (5, 68):
        raise UserError(f"{source} predicts {points} points; expected dlib's 5 or 68")
    return predictor


def _predicted(predictor, image: np.ndarray, rectangle) -> np.ndarray:
    """The predictor's points (n, 2), pixels of the photo, from an enlarged face with half its width around it."""
    import cv2
    import dlib

    factor = max(1, -(-PREDICTOR_SIDE // rectangle.width()))
    around = rectangle.width() // 2
    x0, y0 = max(rectangle.left() - around, 0), max(rectangle.top() - around, 0)
    part = image[y0 : rectangle.bottom() + around + 1, x0 : rectangle.right() + around + 1]
    part = cv2.resize(part, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    left, right = (rectangle.left() - x0) * factor, (rectangle.right() + 1 - x0) * factor - 1
    top, bottom = (rectangle.top() - y0) * factor, (rectangle.bottom() + 1 - y0) * factor - 1
    points = predictor(part, dlib.rectangle(left, top, right, bottom)).parts()
    # The centre of enlarged pixel k lies at (k + 1/2) / factor - 1/2.
    return (np.array([(point.x, point.y) for point in points], np.float32) + 0.5) / factor - 0.5 + np.float32((x0, y0))


def _five(points: np.ndarray) -> np.ndarray:
    """tfface's five landmarks of dlib's 5 (right of the photo first) or 68 (iBUG 300-W)."""
    if len(points) == 5:
        unknown = np.full((2, 2), np.nan, np.float32)
        left, right, base = points[2:4].mean(axis=0), points[0:2].mean(axis=0), points[4]
        between = (left + right) / 2
        return np.concatenate([[left, right, between + NOSE_TIP * (base - between)], unknown])
    return np.array([points[36:42].mean(axis=0), points[42:48].mean(axis=0), points[30], points[48], points[54]])

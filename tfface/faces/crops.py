"""Alignments by name: how a found face becomes a crop, the same for the verbs and for TFDS builders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from tfface.errors import UserError
from tfface.faces import align
from tfface.faces.detect import Faces

SIZES = {"eyes": (224, 224), "five-point": (112, 96), "margin": (160, 160)}
"""Alignment -> (height, width) of its crops in the paper it comes from: 1, 5 and 4."""

DETECTOR_OF = {"eyes": "dlib", "five-point": "mtcnn", "margin": "mtcnn"}
"""Alignment -> the detector that its paper used."""

NEEDED = {"eyes": 2, "five-point": 5, "margin": 0}
"""Alignment -> how many of the five landmarks, the first ones, it needs."""

FOUND = {"yolo": 0, "dlib": 3}
"""Detector that does not find all five landmarks -> how many, the first ones."""

MIN_FACE_SIZE = 40
"""Smaller faces are not cut out, pixels: blown up to a crop they show nothing. It also quarters MTCNN's work."""

MARGIN = 0.2
"""FaceNet's margin, a share of the crop: 32 of 160 pixels, both sides together."""

LANDMARKS = {
    "eyes": [[0.32, 0.38], [0.68, 0.38], [0.5012, 0.5942], [0.3367, 0.7632], [0.6576, 0.7638]],
    "margin": [[0.3239, 0.3593], [0.7007, 0.3586], [0.5128, 0.5452], [0.3439, 0.6937], [0.6845, 0.6904]],
}
"""Where left eye, right eye, nose and mouth corners lie in these crops, as shares of width and height: medians over
MTCNN's landmarks of 594 random photos of UTKFace, FairFace and LFW (the eyes of "eyes" are exact)."""

STRETCH = {"margin": 1.227}
"""How many times as wide, beside their height, faces are in these crops as in photos: a box that is not square is
squeezed to one. The inverse of the median width by height of MTCNN's boxes in 591 random photos of the same sets."""

MARGIN_OF_OTHERS = {
    "yolo": ([[0.3579, 0.2987], [0.6455, 0.2927], [0.502, 0.467], [0.3726, 0.6175], [0.6424, 0.6147]], 0.959),
    "dlib": ([[0.3306, 0.33], [0.6511, 0.332], [0.4974, 0.526], [0.347, 0.6954], [0.642, 0.693]], 1.0),
}
"""Detector whose boxes are not as MTCNN's -> landmarks and stretch of the crops "margin" that it gives: medians over
photos of LFW and FairFace, 161 and 317. The boxes of a YOLO of your own are taken to be as MTCNN's."""

JPEG_QUALITY = 95


@dataclass(frozen=True)
class Alignment:
    """One way to cut faces out of photos.

    Args:
        name: "eyes" (paper 1: eyes level, at fixed places), "five-point" (paper 5: nearest similarity of five
            landmarks) or "margin" (paper 4: the box with FaceNet's margin).
        size: (height, width) of the crops, pixels; the paper's own if None.

    Raises:
        UserError: an unknown name, or a size that the alignment does not have.
    """

    name: str
    size: tuple[int, int] | None = None

    def __post_init__(self):
        if self.name not in SIZES:
            raise UserError(f"unknown alignment {self.name!r}; expected one of {', '.join(SIZES)}")
        height, width = size = tuple(self.size or SIZES[self.name])
        object.__setattr__(self, "size", size)
        if not 16 <= min(size) <= max(size) <= 4096:
            raise UserError(f"a crop has 16 to 4096 pixels a side, received {height}x{width}")
        if self.name == "five-point":
            align.five_point_reference(size)  # refuses a shape without one
        elif height != width:
            raise UserError(f"{self.name} crops are square, received {height}x{width} (height x width)")

    def check_detector(self, detector: str) -> None:
        """Say before any work that a detector does not find the landmarks that are needed.

        Args:
            detector: its name, as in `tfface.faces.detect.load_detector`; empty for the alignment's own.

        Raises:
            UserError: it does not.
        """
        if FOUND.get(detector, 5) < NEEDED[self.name]:
            raise UserError(
                f"the alignment {self.name} needs landmarks that the detector {detector} does not find; choose mtcnn, "
                "or the alignment margin"
            )

    def crop(self, photo: np.ndarray, face: dict | None) -> np.ndarray:
        """Cuts a face out of a photo.

        Args:
            photo: (height, width, 3), uint8.
            face: what `describe` says of it; None for a photo without a face, of which the largest part in the middle
                is taken that has the crop's shape.

        Returns:
            Array (*size, 3), uint8.

        Raises:
            UserError: the detector found no landmarks, or not those that the alignment needs.
        """
        return align.warp(photo, self._centre(photo.shape) if face is None else self._matrix(face), self.size)

    def _matrix(self, face: dict) -> np.ndarray:
        if self.name == "margin":
            return align.margin_matrix(face["box"], self.size[0], round(MARGIN * self.size[0]))
        needed = NEEDED[self.name]
        points = (face["landmarks"] or [None])[:needed]
        if None in points:
            raise UserError(
                f"alignment {self.name!r} needs the first {needed} of five landmarks, which this detector does not "
                "find; choose the detector mtcnn, or the alignment margin"
            )
        if self.name == "eyes":
            return align.eye_matrix(*points, self.size[0])
        return align.five_point_matrix(points, self.size)

    def _centre(self, shape: Sequence[int]) -> np.ndarray:
        height, width = self.size
        scale = max(height / shape[0], width / shape[1])
        # Edges map onto edges: a pixel's centre is half a pixel inside on both sides.
        shift = (width - scale * (shape[1] - 1) - 1) / 2, (height - scale * (shape[0] - 1) - 1) / 2
        return np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])

    @property
    def landmarks(self) -> list[list[float]]:
        """Where left eye, right eye, nose and mouth corners lie in a crop, (5, 2), as shares of width and height."""
        if self.name != "five-point":
            return LANDMARKS[self.name]
        height, width = self.size
        scale = height / 112
        shares = (align.five_point_reference(self.size) / scale + 0.5) / (width / scale, 112)
        return [[round(float(value), 4) for value in point] for point in shares]

    @property
    def stretch(self) -> float:
        """How many times as wide, beside their height, faces are in these crops as in photos, on average."""
        return STRETCH.get(self.name, 1.0)

    def by_detector(self, detector: str) -> tuple[list[list[float]], float]:
        """`landmarks` and `stretch` of the crops that a detector gives: those of "margin" are as its boxes are.

        Args:
            detector: its name, as in `tfface.faces.detect.load_detector`.
        """
        boxes = "dlib" if detector.startswith("dlib:") else detector  # whatever predicts its landmarks
        own = self.landmarks, self.stretch
        return MARGIN_OF_OTHERS.get(boxes, own) if self.name == "margin" else own


def describe(faces: Faces, index: int) -> dict:
    """One face in plain values for JSON.

    Boxes and landmarks have two decimals. A crop is made from these, not from what the detector returned: so the JSON
    is all that is needed to make it again, and a crop does not depend on the photos that shared its batch, which
    move a landmark by up to a ten-thousandth of a pixel.

    Returns:
        "box": x0, y0, x1, y1, pixels; "score"; "landmarks": five (x, y), pixels, None for those that the detector does
        not find, or None for a detector that finds none.
    """
    landmarks = None
    if faces.landmarks is not None:
        landmarks = [
            [round(float(x), 2), round(float(y), 2)] if np.isfinite(x + y) else None for x, y in faces.landmarks[index]
        ]
    box = [round(float(value), 2) for value in faces.boxes[index]]
    return {"box": box, "score": round(float(faces.scores[index]), 4), "landmarks": landmarks}


def main_face(faces: Faces, shape: Sequence[int]) -> int:
    """The face that a photo is of: large and near the middle.

    Area minus twice the squared distance from the photo's middle, by which FaceNet's alignment chose.

    Args:
        faces: at least one.
        shape: of the photo, (height, width, ...).
    """
    sides = faces.boxes[:, 2:] - faces.boxes[:, :2]
    offsets = (faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2 - np.array([shape[1], shape[0]]) / 2
    return int(np.argmax(sides.prod(axis=1) - 2 * (offsets**2).sum(axis=1)))


def encode(image: np.ndarray, suffix: str = ".jpg", quality: int = JPEG_QUALITY) -> bytes:
    """A picture (height, width, 3), uint8, RGB, as the bytes of a file: ".png", or ".jpg" at `quality`, 1 to 100.

    Raises:
        UserError: the kind of file does not take its size, as JPEG above 65,500 pixels a side.
    """
    # OpenCV warns of an option that is not the format's, at every picture.
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []
    done, data = cv2.imencode(suffix, image[:, :, ::-1], options)
    if not done:
        height, width = image.shape[:2]
        raise UserError(f"a picture of {width} x {height} pixels cannot be written as {suffix}; shrink the photo first")
    return data.tobytes()

"""Detectors: photos in, boxes, scores and landmarks out, whichever network does the work.

```python
detector = load_detector("mtcnn", min_face_size=40)
for photo, faces in zip(photos, detector(photos)):
    ...faces.boxes, faces.scores, faces.landmarks
```
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tfface.errors import UserError
from tfface.packages import require_tensorflow


@dataclass(frozen=True)
class Faces:
    """The faces of one photo, the surest first.

    Attributes:
        boxes: (n, 4), float32: x0, y0, x1, y1 in pixels, inside the photo (0 <= x0 <= x1 <= width).
        scores: (n,), float32, in [0, 1]. Comparable between faces of one detector, not between detectors.
        landmarks: (n, 5, 2), float32, x and y in pixels (they may lie outside the photo), or None for a
            detector that finds none. Order: left eye, right eye, nose, left mouth corner, right mouth corner,
            where left is the photo's left: the smaller x in an upright face.
    """

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, index) -> Faces:
        """The faces that a NumPy index (a mask, a list of positions, a slice) picks, in its order."""
        landmarks = None if self.landmarks is None else self.landmarks[index]
        return Faces(self.boxes[index], self.scores[index], landmarks)


class Detector(abc.ABC):
    """Finds the faces in photos. Holds no state that a call changes, so threads may share one.

    A subclass implements `detect`; callers call the detector itself, which checks the photos first.
    """

    landmarks_in_box = ((0.27, 0.30), (0.73, 0.30), (0.50, 0.54), (0.29, 0.71), (0.71, 0.71))
    """Where the five landmarks lie in a box on average, as shares of its width and height: means over MTCNN's boxes. By
    these, faces of a detector that finds no landmarks are aligned; one whose boxes are others has its own."""

    @abc.abstractmethod
    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        """Finds faces in photos that are known to be (height, width, 3) uint8 with at least one pixel."""

    def __call__(self, images: Sequence[np.ndarray]) -> list[Faces]:
        """Finds the faces in a batch of photos.

        Args:
            images: photos of equal or different sizes, each (height, width, 3), uint8, RGB; or one array
                (n, height, width, 3).

        Returns:
            One `Faces` for each photo, in order; without a face it has length 0.

        Raises:
            UserError: a photo has another shape or another dtype, no pixels, or holds NaN.
        """
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise UserError(f"a detector takes a sequence of photos, received shape {images.shape}; pass [photo]")
        for position, image in enumerate(images):
            _check_photo(position, image)
        return self.detect(images) if len(images) else []


def _check_photo(position: int, image: np.ndarray) -> None:
    what = f"photo {position} of the batch"
    expected = "expected (height, width, 3), uint8, RGB"
    if not isinstance(image, np.ndarray):
        raise UserError(f"{what} is a {type(image).__name__}; {expected}: read it with read_photo")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise UserError(f"{what} holds NaN or infinity; {expected}: mend what computed it")
    if image.dtype != np.uint8:
        raise UserError(f"{what} has dtype {image.dtype}; {expected}: scale it to [0, 255] and round it")
    if image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"{what} has shape {image.shape}; {expected}: repeat grey, drop transparency")
    if image.size == 0:
        raise UserError(f"{what} has no pixels, its shape is {image.shape}; {expected}: leave it out")


def check_min_face_size(pixels: float) -> None:
    """As every detector checks its option.

    Raises:
        UserError: the least side of a face is no length.
    """
    if not 0 <= pixels < np.inf:
        raise UserError(f"min_face_size is a length in pixels, at least 0, received {pixels}")


def _mtcnn(file: str | None, **options) -> Detector:
    require_tensorflow("The detector mtcnn", ", or take dlib or yolo:FILE.onnx")
    from tfface.faces.mtcnn import MTCNN

    return MTCNN(**options)


def _yolo(file: str | None, **options) -> Detector:
    if not file:
        require_tensorflow("The detector yolo", ", or take dlib or yolo:FILE.onnx")
    from tfface.faces import yolo

    return yolo.OnnxYOLO(file, **options) if file else yolo.TinyYOLO(**options)


def _dlib(file: str | None, **options) -> Detector:
    from tfface.faces.dlib_detector import DlibHOG

    return DlibHOG(**({"predictor": file} if file else {}), **options)


DETECTORS: dict[str, Callable[..., Detector]] = {"mtcnn": _mtcnn, "yolo": _yolo, "dlib": _dlib}
"""Name -> loader. A loader gets the file named after a colon, or None, and the options."""


def load_detector(name: str, **options) -> Detector:
    """Makes a detector by its name.

    Args:
        name: "mtcnn" (five landmarks, the most faces), "yolo" (the fastest), "yolo:FILE.onnx" (a YOLO face
            model of your own, run by onnxruntime), "dlib" (frontal faces, the corners of their eyes),
            "dlib:68-point" (all five landmarks; no commercial use) or "dlib:FILE.dat" (a shape predictor of
            your own).
        **options: those of the class behind the name: `tfface.faces.mtcnn.MTCNN`, `tfface.faces.yolo.TinyYOLO`,
            `tfface.faces.yolo.OnnxYOLO`, `tfface.faces.dlib_detector.DlibHOG`. All know `min_face_size`, pixels.

    Returns:
        A detector, ready to be called.

    Raises:
        UserError: an unknown name, or an option that the detector does not have.
    """
    kind, _, file = name.partition(":")
    if kind not in DETECTORS or (file and kind == "mtcnn"):
        names = ", ".join(DETECTORS)
        raise UserError(f"unknown detector {name!r}; expected one of {names}, yolo:FILE.onnx or dlib:FILE.dat")
    try:
        return DETECTORS[kind](file or None, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UserError(f"detector {name!r} does not take that option: {error}") from error

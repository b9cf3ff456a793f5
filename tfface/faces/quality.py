"""How good a shot of a face is: sharp, frontal and large, each in [0, 1], and their product.

The parts are those that ISO/IEC 29794-5 (face image quality) names sharpness, head pose and inter-eye distance. Each
is a formula that fits in a line, and a shot is as good as its parts together: a face that fails in one of them makes
a poor shot however good the others are, so the score is the product.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from tfface.faces import align
from tfface.faces.head import FACE_POINTS, Head

FULL_SIZE = 62.0
"""Distance of the eyes in pixels from which a face is large enough: in the 160-pixel crops that the shipped model
`arg` takes the eyes are 62 pixels apart (42 in those of `compact`), so a larger face gives nothing more. It is
also about the 60 pixels that ISO/IEC 19794-5 (2005) counts as the least resolution of a face."""

DETAIL_SIDE = 64
"""Sharpness is judged in a 64x64 crop, in which the eyes are 20 pixels apart."""

DETAIL = 0.20
"""Relative energy of detail at which sharpness is 1/2. Over 300 random LFW photos the median is 0.21 as they are,
0.045 after a Gaussian blur by a twentieth of the eyes' distance, and 0.014 by a tenth."""


@dataclass(frozen=True)
class Quality:
    """What a shot of a face is worth.

    Attributes:
        sharpness: 0 all blurred, 1/2 as `DETAIL`, towards 1 sharp.
        frontality: squared cosine of the angle between the face and the camera: 1 frontal, 0.75 at 30 degrees.
        size: share of `FULL_SIZE` that the eyes are apart, at most 1.
    """

    sharpness: float
    frontality: float
    size: float

    @property
    def score(self) -> float:
        """The product of the three, in [0, 1]."""
        return self.sharpness * self.frontality * self.size


def quality(photo: np.ndarray, landmarks: np.ndarray) -> Quality:
    """Judges a face by its five landmarks.

    Args:
        photo: (height, width, 3), uint8, RGB.
        landmarks: (5, 2), pixels: left eye, right eye, nose, left mouth corner, right mouth corner.

    Returns:
        The three parts; `.score` is their product.

    Raises:
        UserError: the landmarks are not finite, coincide or are in another order.
    """
    return Quality(sharpness(photo, landmarks), frontality(landmarks), size(landmarks))


def frontality(landmarks: np.ndarray) -> float:
    """Squared cosine of the angle by which a face is turned away from the camera, left and right, up and down.

    How far the nose stands off its place between eyes and mouth gives the tangents of yaw and pitch
    (`tfface.faces.head.Head`); the square of the cosine of the angle that they make together is
    1 / (1 + tan^2 yaw + tan^2 pitch). OFIQ, the reference implementation of ISO/IEC 29794-5, takes the cosine of the
    head's angles too. A face that leans sideways loses nothing: the alignment brings it upright.

    Args:
        landmarks: (5, 2), pixels.

    Returns:
        In (0, 1].

    Raises:
        UserError: landmarks that no face in front of the camera has.
    """
    turn = Head.from_landmarks(landmarks).turn
    return float(1 / (1 + turn @ turn))


def size(landmarks: np.ndarray) -> float:
    """Distance of the eyes as a share of `FULL_SIZE`, at most 1.

    A turned head shows its eyes closer together than they are; so the distance from the eyes to the mouth, which is as
    long as 1.155 distances of the eyes (`tfface.faces.head.FACE_POINTS`), counts where it says more.

    Args:
        landmarks: (5, 2), pixels.

    Returns:
        In [0, 1].
    """
    points = np.asarray(landmarks, np.float64)
    eyes = np.linalg.norm(points[1] - points[0])
    length = np.linalg.norm(points[3:].mean(axis=0) - points[:2].mean(axis=0)) / FACE_POINTS[3, 1]
    return float(min(1.0, max(eyes, length) / FULL_SIZE))


def sharpness(photo: np.ndarray, landmarks: np.ndarray) -> float:
    """Energy of the finest detail in the face, relative to the energy of all that is seen there.

    The variance of the Laplacian, a measure of focus (Pech-Pacheco et al., "Diatom autofocusing in brightfield
    microscopy: a comparative study", ICPR 2000), over the variance of the grey levels, which takes out light and
    contrast; r / (r + `DETAIL`) brings the ratio r to [0, 1). It is judged in a crop of fixed size, so it does not fall
    because a face is large.

    Args:
        photo: (height, width, 3), uint8, RGB.
        landmarks: (5, 2), pixels.

    Returns:
        In [0, 1); 0 where the face has no contrast at all.
    """
    matrix = align.five_point_matrix(np.asarray(landmarks, np.float64), (112, 112))
    matrix = matrix * (DETAIL_SIDE / 112)
    crop = align.warp(photo, matrix, (DETAIL_SIDE, DETAIL_SIDE))
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    contrast = grey.var()
    if contrast < 1:  # not one grey level of contrast: what detail there is, is noise
        return 0.0
    ratio = cv2.Laplacian(grey, cv2.CV_32F).var() / contrast
    return float(ratio / (ratio + DETAIL))

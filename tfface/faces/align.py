"""Aligned crops: margin (paper 4), eyes (paper 1), five points (paper 5).

Each alignment is one 2x3 matrix from photo to crop. The `*_matrix` functions make it, `warp` applies it to
pixels, `transform` to points, `invert` gives the way back; `crop_with_margin`, `align_eyes` and
`align_five_point` do the first two at once. Points are (x, y) in pixels, a pixel's centre at whole numbers;
boxes are (x0, y0, x1, y1) between pixel edges, so a whole photo is the box (0, 0, width, height) and the
centre of its first pixel lies half a pixel inside.

Every pixel of a crop that falls outside the photo repeats the photo's nearest edge pixel.
"""

from __future__ import annotations

import cv2
import numpy as np

from tfface.errors import UserError

FIVE_POINTS_112x96 = np.array(
    [[30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366], [33.5493, 92.3655], [62.7299, 92.2041]],
    np.float32,
)
"""Where left eye, right eye, nose, left and right mouth corner lie in a crop of height 112 and width 96: the
reference of SphereFace (Liu et al. 2017) that paper 5's line of work uses. In a 112x112 crop x is greater by
8 (ArcFace)."""


def margin_matrix(box: np.ndarray, size: int = 160, margin: int = 32) -> np.ndarray:
    """Matrix of FaceNet's crop: the box fills the crop but for a margin, counted in pixels of the crop.

    The box's width and height are each stretched to `size - margin`, so `margin / 2` pixels surround it on
    every side; a box that is not square is squeezed to one, as FaceNet's training crops were. The margin is
    counted as in facenet-pytorch: davidsandberg/facenet, by which FaceNet was trained, adds it in pixels of the photo,
    where it depends on how large the photo is.

    Args:
        box: (x0, y0, x1, y1), pixels between edges.
        size: width and height of the crop, pixels.
        margin: pixels of the crop, both sides together, in [0, size); FaceNet uses 32 at 160 (44 at 182).

    Returns:
        Matrix (2, 3), float64, from photo to crop.

    Raises:
        UserError: the box has no area or is not finite, or the margin leaves no room.
    """
    x0, y0, x1, y1 = np.asarray(box, np.float64)
    if not (np.isfinite([x0, y0, x1, y1]).all() and x1 > x0 and y1 > y0):
        raise UserError(f"a box needs finite x0 < x1 and y0 < y1, received {(x0, y0, x1, y1)}; drop it")
    if not 0 <= margin < size:
        raise UserError(f"margin must lie in [0, size), received margin {margin} at size {size}; choose a smaller one")
    scale_x, scale_y = (size - margin) / (x1 - x0), (size - margin) / (y1 - y0)
    # Edges map onto edges; centres lie half a pixel inside on both sides.
    return np.array(
        [
            [scale_x, 0.0, (0.5 - x0) * scale_x + margin / 2 - 0.5],
            [0.0, scale_y, (0.5 - y0) * scale_y + margin / 2 - 0.5],
        ]
    )


def eye_matrix(
    left_eye: np.ndarray,
    right_eye: np.ndarray,
    size: int = 224,
    from_side: float = 0.32,
    from_top: float = 0.38,
) -> np.ndarray:
    """Matrix of paper 1's alignment: eyes level, at fixed places of a square crop.

    Section 4.1, steps 1 to 3: the photo is rotated about the middle of the eyes until the line through them
    is level, and scaled and cropped so that the eyes lie at 32 % of the width from the sides and 38 % of the
    height from the top. Step 4 ('clipping faces that yaw higher on the bottom area') is read as what this
    frame does: a turned face has its eyes closer together, is thereby enlarged, and what then reaches below
    the frame is clipped; no face is dropped.

    Args:
        left_eye: centre (x, y) of the eye at the photo's left, pixels.
        right_eye: centre (x, y) of the other eye, pixels.
        size: width and height of the crop, pixels.
        from_side: distance of each eye from its side of the crop, a share of the width in [0, 0.5).
        from_top: distance of both eyes from the top, a share of the height.

    Returns:
        Matrix (2, 3), float64, from photo to crop: a rotation, a scale and a shift.

    Raises:
        UserError: the eyes coincide or are not finite.
    """
    y = from_top * size - 0.5
    target = [(from_side * size - 0.5, y), ((1 - from_side) * size - 0.5, y)]
    return similarity(np.stack([left_eye, right_eye]), np.array(target))


def five_point_matrix(landmarks: np.ndarray, size: tuple[int, int] = (112, 96)) -> np.ndarray:
    """Matrix of paper 5's alignment: the similarity that brings five landmarks nearest to their reference
    places.

    Args:
        landmarks: (5, 2), pixels: left eye, right eye, nose, left mouth corner, right mouth corner.
        size: (height, width) of the crop, pixels: 112x96, 112x112, or a multiple of either shape.

    Returns:
        Matrix (2, 3), float64, from photo to crop.

    Raises:
        UserError: other landmarks than five, the shape of the crop has no reference, or the landmarks coincide or are
            not finite.
    """
    if np.shape(landmarks) != (5, 2):
        raise UserError(f"the five-point alignment needs five landmarks (5, 2), received {np.shape(landmarks)}")
    return similarity(landmarks, five_point_reference(size))


def five_point_reference(size: tuple[int, int]) -> np.ndarray:
    """Where the five landmarks lie in a crop.

    Args:
        size: (height, width) of the crop, pixels: 112x96, 112x112, or a multiple of either shape.

    Returns:
        (5, 2), pixels.

    Raises:
        UserError: a shape without a reference.
    """
    height, width = size
    if height * 96 == width * 112:
        reference = FIVE_POINTS_112x96
    elif height == width:
        reference = FIVE_POINTS_112x96 + np.float32((8, 0))
    else:
        raise UserError(f"five-point crops are 112x96 or 112x112 (height x width) or a multiple, received {size}")
    return reference * (height / 112)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares similarity transform between two sets of points (Umeyama 1991, without reflection).

    Points are taken as complex numbers, where rotation and scale are one factor: minimising sum |a z + b -
    w|^2 over complex a and b gives a = <z - mean z, w - mean w> / |z - mean z|^2 and b = mean w - a mean z.

    Args:
        source: points (n, 2), n >= 2, not all the same.
        target: points (n, 2) they should reach.

    Returns:
        Matrix (2, 3), float64, from source to target.

    Raises:
        UserError: the source points coincide, points are not finite, or the best fit is a single point.
    """
    z, w = (np.asarray(points, np.float64) @ (1, 1j) for points in (source, target))
    centred = z - z.mean()
    spread = np.vdot(centred, centred).real
    if not (np.isfinite(spread) and spread > 0 and np.isfinite(w).all()):
        raise UserError(f"landmarks must be finite and differ from one another, received {np.asarray(source).tolist()}")
    a = np.vdot(centred, w - w.mean()) / spread
    if abs(a) ** 2 * spread <= 1e-18 * np.vdot(w - w.mean(), w - w.mean()).real:
        raise UserError(f"no similarity brings these points near their targets, received {np.asarray(source).tolist()}")
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def invert(matrix: np.ndarray) -> np.ndarray:
    """Matrix (2, 3) of the way back: from crop to photo for any matrix of this module."""
    return cv2.invertAffineTransform(matrix)


def transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Moves points (..., 2), pixels, by a matrix (2, 3)."""
    return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def enlarged(points: np.ndarray, scale: float | np.ndarray) -> np.ndarray:
    """Where points (..., 2), pixels, lie once their picture is so many times as large, or as small: along x and y.

    Edges map onto edges, so that the centre of pixel k, which was k + 1/2 from the edge, is (k + 1/2) * scale from it.
    """
    return (np.asarray(points) + 0.5) * scale - 0.5


def warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Applies a matrix to pixels, without aliasing when it shrinks.

    Bilinear sampling reads four pixels whatever the scale, so a large face that shrinks to less than half would come
    out jagged: its part of the photo is first averaged down by a whole factor.

    Args:
        image: (height, width, channels), uint8; grey of one channel may lack the axis.
        matrix: (2, 3), from photo to crop.
        size: (height, width) of the crop, pixels.

    Returns:
        Array (*size, channels), uint8; (*size,) of grey.
    """
    height, width = size
    matrix = np.asarray(matrix, np.float64)
    factor = int(1 / np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if factor >= 2:
        image, matrix = _shrink(image, matrix, factor, size)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _shrink(image: np.ndarray, matrix: np.ndarray, factor: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The part of a photo that a crop shows, averaged over factor x factor blocks, and the matrix from
    there."""
    height, width = size
    corners = transform([(0, 0), (width, 0), (0, height), (width, height)], invert(matrix))
    limit = (image.shape[1], image.shape[0])
    start = np.clip(corners.min(axis=0) - 2 * factor, 0, np.subtract(limit, 1)).astype(int)
    stop = np.clip(corners.max(axis=0) + 2 * factor, start + 1, limit).astype(int)
    part = image[start[1] : stop[1], start[0] : stop[0]]
    blocks = np.maximum(-(-(stop - start) // factor), 1)
    missing = blocks * factor - (stop - start)
    part = cv2.copyMakeBorder(part, 0, int(missing[1]), 0, int(missing[0]), cv2.BORDER_REPLICATE)
    part = cv2.resize(part, tuple(int(count) for count in blocks), interpolation=cv2.INTER_AREA)
    # The centre of block k lies at start + factor * k + (factor - 1) / 2.
    linear = matrix[:, :2] * factor
    shift = transform(start + (factor - 1) / 2, matrix)
    return part, np.column_stack([linear, shift])


def crop_with_margin(image: np.ndarray, box: np.ndarray, size: int = 160, margin: int = 32) -> np.ndarray:
    """Crops a face with FaceNet's margin (paper 4): see `margin_matrix`.

    Args:
        image: (height, width, 3), uint8.
        box: (x0, y0, x1, y1), pixels; may reach over the edge.
        size: width and height of the crop, pixels.
        margin: pixels of the crop around the box, both sides together.

    Returns:
        Array (size, size, 3), uint8.
    """
    return warp(image, margin_matrix(box, size, margin), (size, size))


def align_eyes(image: np.ndarray, left_eye: np.ndarray, right_eye: np.ndarray, size: int = 224) -> np.ndarray:
    """Rotates, scales and crops a face by its eyes (paper 1): see `eye_matrix`.

    Args:
        image: (height, width, 3), uint8.
        left_eye: centre (x, y) of the eye at the photo's left, pixels.
        right_eye: centre (x, y) of the other eye, pixels.
        size: width and height of the crop, pixels.

    Returns:
        Array (size, size, 3), uint8, in colour; `mean_centred_grey` does the rest of the paper's
        preprocessing.
    """
    return warp(image, eye_matrix(left_eye, right_eye, size), (size, size))


def align_five_point(image: np.ndarray, landmarks: np.ndarray, size: tuple[int, int] = (112, 96)) -> np.ndarray:
    """Crops a face by the similarity of its five landmarks (paper 5): see `five_point_matrix`.

    Args:
        image: (height, width, 3), uint8.
        landmarks: (5, 2), pixels: left eye, right eye, nose, left mouth corner, right mouth corner.
        size: (height, width) of the crop, pixels.

    Returns:
        Array (*size, 3), uint8.
    """
    return warp(image, five_point_matrix(landmarks, size), size)


def mean_centred_grey(image: np.ndarray) -> np.ndarray:
    """Greyscale, mean-centred, in [0, 1]: the last three steps of paper 1's preprocessing, section 4.1.

    The paper gives no formula. Here grey (ITU-R BT.601 weights) has the photo's own mean subtracted and is
    divided by 255, which lies in [-1, 1] with mean 0; (value + 1) / 2 brings that to [0, 1] with mean 0.5. A
    stretch from minimum to maximum, the other reading, would undo the centring.

    Args:
        image: (height, width, 3), uint8, RGB.

    Returns:
        Array (height, width, 1), float32, in [0, 1], mean 0.5.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return ((grey - grey.mean()) / 255 + 1)[..., None] / 2

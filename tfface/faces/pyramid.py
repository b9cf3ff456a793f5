"""The pyramid of a photo on one canvas, so that a network sees all its levels at once.

A level for itself costs a fixed time whatever its size, and every new size costs the time to plan its
convolutions: ten levels pay both ten times. Side by side, level 1 right of level 0 and the small ones in what room is
left, they take about a tenth more pixels than they have.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import sparse

CELL, STRIDE = 12, 2
"""P-Net's window and its step, pixels of a pyramid level."""

SCALE_FACTOR = 0.709
"""From one pyramid level to the next: about half the area."""


def pyramid_scales(height: int, width: int, min_face_size: float) -> list[float]:
    """Scales of a photo's pyramid: the smallest face fills P-Net's window on the first level, the photo on
    the last.

    Args:
        height: of the photo, pixels.
        width: of the photo, pixels.
        min_face_size: the smallest face to be found, pixels.

    Returns:
        Scales, descending; none where the photo is smaller than the smallest face.
    """
    scales, scale = [], CELL / min_face_size
    while min(height, width) * scale >= CELL:
        scales.append(scale)
        scale *= SCALE_FACTOR
    return scales


@dataclass(frozen=True)
class Pyramid:
    """Where the levels of photos of one size lie on their canvas. Made by `pyramid`.

    Attributes:
        scales: (levels,), float32: from pixels of the photo to pixels of the level.
        boxes: (levels, 4), int: x0, y0, x1, y1 of each level, pixels of the canvas, x0 and y0 even.
        shape: height and width of the canvas, pixels.
        strip: cells that a strip of the canvas is high; strips are all alike.
        level: (rows, columns) of P-Net's cells on the canvas, int8: the level that holds the whole window of a cell,
            or -1.
    """

    scales: np.ndarray
    boxes: np.ndarray
    shape: tuple[int, int]
    strip: int
    level: np.ndarray

    def draw(self, images: np.ndarray, each: Callable = map) -> np.ndarray:
        """Draws photos' levels, by averaging areas.

        Rows are averaged first, whole rows at a time as sums of rows; OpenCV, which takes pixels one by one, is
        left with the columns of the few rows that remain.

        Args:
            images: (n, height, width, 3), uint8.
            each: applies a function to a sequence, as `map` does; an executor's does it in threads.

        Returns:
            Canvases (n, *shape, 4), float32: red, green, blue in [0, 255], and 1 outside the levels.
        """
        canvases = np.zeros((len(images), *self.shape, 4), np.float32)
        canvases[..., 3] = 1
        rows = images.reshape(*images.shape[:2], -1).astype(np.float32)

        def draw_level(task):
            photo, (x0, y0, x1, y1) = task
            averaged = _area_matrix(rows.shape[1], y1 - y0) @ rows[photo]
            level = cv2.resize(averaged.reshape(y1 - y0, -1, 3), (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
            canvases[photo, y0:y1, x0:x1, :3] = level
            canvases[photo, y0:y1, x0:x1, 3] = 0

        for _ in each(draw_level, itertools.product(range(len(images)), self.boxes.tolist())):
            pass
        return canvases

    def strips(self) -> list[int]:
        """First rows of the strips, pixels of the canvas."""
        return list(range(0, self.shape[0] - (CELL - STRIDE), self.strip * STRIDE))

    def strip_pixels(self) -> int:
        """Rows of a strip, pixels: its cells' and what the last of them sees beyond its step."""
        return self.strip * STRIDE + CELL - STRIDE


@functools.lru_cache(maxsize=16)
def pyramid(height: int, width: int, min_face_size: float, strip_area: int) -> Pyramid | None:
    """Lays the levels of a photo's pyramid out on a canvas.

    Args:
        height: of the photo, pixels.
        width: of the photo, pixels.
        min_face_size: the smallest face to be found, pixels.
        strip_area: pixels that a strip of the canvas may have, where it can.

    Returns:
        The pyramid, or None where the photo is smaller than the smallest face.
    """
    scales = pyramid_scales(height, width, min_face_size)
    if not scales:
        return None
    sizes = [(int(width * scale), int(height * scale)) for scale in scales]
    boxes, free = [], [(0, 0, np.inf, sizes[0][1] + 1)]
    for level_width, level_height in sizes:
        # The tightest free room that holds the level; what is right of it and what is below stay free.
        rooms = [room for room in free if room[2] - room[0] >= level_width and room[3] - room[1] >= level_height]
        x0, y0, x1, y1 = room = min(rooms, key=lambda room: (room[2] - room[0]) * (room[3] - room[1]))
        free.remove(room)
        boxes.append((x0, y0, x0 + level_width, y0 + level_height))
        right, below = (boxes[-1][2] + 1) // 2 * 2, (boxes[-1][3] + 1) // 2 * 2
        free += [(right, y0, x1, y1), (x0, below, right, y1)]
    boxes = np.array(boxes)
    canvas_width, canvas_height = (boxes[:, 2:].max(axis=0) + 1) // 2 * 2
    rows = canvas_height // STRIDE - (CELL - STRIDE) // 2
    strip = -(-rows // min(rows, shares(canvas_width * canvas_height, strip_area)))
    rows = -(-rows // strip) * strip
    level = np.full((rows, canvas_width // STRIDE - (CELL - STRIDE) // 2), -1, np.int8)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        level[y0 // 2 : (y1 + 1 - CELL) // 2 + 1, x0 // 2 : (x1 + 1 - CELL) // 2 + 1] = number
    shape = (int(rows * STRIDE + CELL - STRIDE), int(canvas_width))
    return Pyramid(np.array(scales, np.float32), boxes, shape, int(strip), level)


def shares(total: int, most: int) -> int:
    """Into how many shares of at most `most` work is divided: one, or an even number, since two threads take them."""
    return 1 if total <= most else 2 * -(-total // (2 * most))


@functools.lru_cache(maxsize=256)
def _area_matrix(source: int, target: int) -> sparse.csr_array:
    """(target, source), float32: each target cell averages the source cells that it covers, by how much it does."""
    edges = np.linspace(0, source, target + 1)
    start, stop = edges[:-1, None], edges[1:, None]
    cells = start.astype(int) + np.arange(source // target + 2)
    shares = (np.minimum(stop, cells + 1) - np.maximum(start, cells)).clip(0) * target / source
    indices = np.minimum(cells, source - 1).ravel()
    pointers = np.arange(0, cells.size + 1, cells.shape[1])
    return sparse.csr_array((shares.ravel().astype(np.float32), indices, pointers), (target, source))

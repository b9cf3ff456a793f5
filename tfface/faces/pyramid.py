"""The pyramid of a photo on two canvases, so that a network sees many levels at once.

A level for itself costs a fixed time whatever its size, and every new size costs the time to plan its
convolutions: ten levels pay both ten times. The greatest level, which has half of all pixels, is one canvas; the
others lie side by side on the second, the small ones in what room is left. So two threads have as much to do each.
"""

from __future__ import annotations

import functools
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
class Canvas:
    """Where some levels of the pyramid of photos of one size lie. Made by `pyramid`.

    Attributes:
        scales: (levels,), float32: from pixels of the photo to pixels of the level.
        boxes: (levels, 4), int: x0, y0, x1, y1 of each level, pixels of the canvas, x0 and y0 even.
        shape: height and width of the canvas, pixels.
        strip: cells that a strip of the canvas is high; strips are all alike.
        level: (rows, columns) of P-Net's cells on the canvas, int8: the level that holds the whole window of a cell,
            or -1.
        edges: (n, 3, 2), int32: the windows of P-Net's pooling that reach out of a level of odd height or width, as a
            level that stands alone would have them: row and column of the pooled value, and of two values before
            pooling, the greatest inside.
        averages: (rows of all levels, height of a photo), float32: the rows of the levels, one after the other, as
            sums of rows of the photo.
    """

    scales: np.ndarray
    boxes: np.ndarray
    shape: tuple[int, int]
    strip: int
    level: np.ndarray
    edges: np.ndarray
    averages: sparse.csr_array

    def draw(self, images: np.ndarray) -> np.ndarray:
        """Draws photos' levels, by averaging areas.

        Rows are averaged first, whole rows at a time as sums of rows; OpenCV, which takes pixels one by one, is
        left with the columns of the few rows that remain.

        Args:
            images: (n, height, width, 3), uint8.

        Returns:
            Canvases (n, *shape, 3), float32: red, green, blue in [0, 255], 0 outside the levels.
        """
        canvases = np.zeros((len(images), *self.shape, 3), np.float32)
        for canvas, image in zip(canvases, images, strict=True):
            rows = image.reshape(len(image), -1).astype(np.float32)
            averaged = (self.averages @ rows).reshape(-1, *image.shape[1:])
            for x0, y0, x1, y1 in self.boxes.tolist():
                own, averaged = np.split(averaged, [y1 - y0])
                cv2.resize(own, (x1 - x0, y1 - y0), canvas[y0:y1, x0:x1], interpolation=cv2.INTER_AREA)
        return canvases

    def strips(self) -> list[int]:
        """First rows of the strips, pixels of the canvas."""
        return list(range(0, self.shape[0] - (CELL - STRIDE), self.strip * STRIDE))

    def strip_pixels(self) -> int:
        """Rows of a strip, pixels: its cells' and what the last of them sees beyond its step."""
        return self.strip * STRIDE + CELL - STRIDE

    def strip_edges(self, top: int, photos: int) -> np.ndarray:
        """The edges of a strip of so many photos, (n, 3, 3), int32: photo, row and column, counted from the strip."""
        rows = self.edges[:, 0, 0] - top // STRIDE
        edges = self.edges[(rows >= 0) & (rows < self.strip + (CELL - STRIDE) // 2 - 1)]
        edges = edges - np.array([top // STRIDE, top, top])[:, None] * [1, 0]
        numbers = np.broadcast_to(np.arange(photos)[:, None, None, None], (photos, len(edges), 3, 1))
        edges = np.concatenate([numbers, np.broadcast_to(edges, (photos, *edges.shape))], axis=-1)
        return edges.reshape(-1, 3, 3).astype(np.int32)


@functools.lru_cache(maxsize=16)
def pyramid(height: int, width: int, min_face_size: float, strip_area: int) -> list[Canvas]:
    """Lays the levels of a photo's pyramid out on canvases.

    Args:
        height: of the photo, pixels.
        width: of the photo, pixels.
        min_face_size: the smallest face to be found, pixels.
        strip_area: pixels that a strip of a canvas may have, where it can.

    Returns:
        Two canvases with about half of the pixels each, one if the pyramid has one level, none if the photo is smaller
        than the smallest face.
    """
    scales = pyramid_scales(height, width, min_face_size)
    return [_laid_out(height, width, some, strip_area) for some in (scales[:1], scales[1:]) if some]


def _laid_out(height: int, width: int, scales: list[float], strip_area: int) -> Canvas:
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
    edges = np.concatenate([_edges(*box) for box in boxes.tolist()])
    averages = sparse.csr_array(sparse.vstack([_area_matrix(height, y1 - y0) for _, y0, _, y1 in boxes.tolist()]))
    return Canvas(np.array(scales, np.float32), boxes, shape, int(strip), level, edges, averages)


def _edges(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """`Canvas.edges` of one level."""
    last = np.array([y1 - y0, x1 - x0]) - 3  # the last place of the level before pooling, counted from its corner
    cells = np.stack(np.meshgrid(*(np.arange(n // 2 + 1) for n in last), indexing="ij"), axis=-1).reshape(-1, 2)
    cells = cells[(cells * STRIDE == last).any(axis=1)]
    places = [cells, cells * STRIDE, np.minimum(cells * STRIDE + 1, last)]
    origin = np.array([y0, x0])
    return np.stack([places[0] + origin // STRIDE, places[1] + origin, places[2] + origin], axis=1)


def shares(total: int, most: int) -> int:
    """Into how many shares of at most `most` work is divided: one, or an even number, since two threads take them."""
    return 1 if total <= most else 2 * -(-total // (2 * most))


def _area_matrix(source: int, target: int) -> sparse.csr_array:
    """(target, source), float32: each target cell averages the source cells that it covers, by how much it does."""
    edges = np.linspace(0, source, target + 1)
    start, stop = edges[:-1, None], edges[1:, None]
    cells = start.astype(int) + np.arange(source // target + 2)
    shares = (np.minimum(stop, cells + 1) - np.maximum(start, cells)).clip(0) * target / source
    indices = np.minimum(cells, source - 1).ravel()
    pointers = np.arange(0, cells.size + 1, cells.shape[1])
    return sparse.csr_array((shares.ravel().astype(np.float32), indices, pointers), (target, source))

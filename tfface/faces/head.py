"""A head in space from five landmarks: what lies where on a face that is turned, and what of it is seen.

Five landmarks show neither jaw nor ears. So every head has one average shape, a surface z(x, y), which the landmarks
scale, lean and turn. It is given in *face units*: the origin lies between the eyes, 1 is the distance of the eyes, x
points to the photo's right, y down, z towards the viewer.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from tfface.errors import UserError

FACE_POINTS = np.array(
    [[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.571, 0.42], [-0.414, 1.155, 0.0], [0.414, 1.155, 0.0]]
)
"""Eyes, nose, mouth corners (5, 3) in face units. x and y are those of the 112x96 reference; the tip of the nose lies
26 mm before the plane of eyes and mouth where the eyes are 63 mm apart."""

FRAME = (-1.35, -0.2, 1.35, 2.3)
"""Left, top, right, bottom, in face units, of the surface: from the forehead to below the chin."""

_SCALE = 50
"""Samples of the surface to a face unit."""

_NEAR, _FAR, _STEP = 0.65, -1.15, 0.06
"""z at which lines of sight start and end, and how far one step goes."""

_WIDEST_TURN = 1.7
"""Tangent of 60 degrees: further than that no landmark tells how far a head is turned."""


@dataclass(frozen=True, eq=False)
class Head:
    """How a head lies in a photo: the point (x, y, z) is seen at origin + axes @ ((x, y) + z * turn).

    This is a projection without perspective. Eyes and mouth span its plane z = 0, in which it may be stretched; how
    far the nose stands off that plane's own place for it is how far the head is turned.

    Attributes:
        origin: (2,), pixels: the middle between the eyes.
        axes: (2, 2), pixels: columns are where x and y of the plane point.
        turn: (2,): where z points within the plane, the tangents of yaw and pitch.
    """

    origin: np.ndarray
    axes: np.ndarray
    turn: np.ndarray

    @classmethod
    def from_landmarks(cls, landmarks: np.ndarray) -> Head:
        """Reads the head's place from a face's landmarks.

        Args:
            landmarks: (5, 2), pixels: left eye, right eye, nose, left mouth corner, right mouth corner.

        Raises:
            UserError: the landmarks are not finite, coincide or are in another order.
        """
        points = np.asarray(landmarks, np.float64)
        if points.shape != (5, 2) or not np.isfinite(points).all():
            raise UserError(
                f"a face has five finite landmarks (5, 2), received {np.asarray(landmarks).tolist()}; detect it anew"
            )
        origin = points[:2].mean(axis=0)
        right = points[1] - points[0]
        down = (points[3:].mean(axis=0) - origin) / FACE_POINTS[3, 1]
        along, length = np.linalg.norm(right), np.linalg.norm(down)
        if min(along, length) < 0.5 or right[0] * down[1] - right[1] * down[0] < 0.1 * along * length:
            raise UserError(
                "landmarks go left eye, right eye, nose, left and right mouth corner, left being the photo's left, "
                f"received {points.tolist()}; check their order"
            )
        # In profile the eyes fall together: no narrower than half of what a face from the front has.
        axes = np.column_stack([right * max(1.0, 0.5 * length / along), down])
        offset = np.linalg.solve(axes, points[2] - origin) - FACE_POINTS[2, :2]
        return cls(origin, axes, np.clip(offset / FACE_POINTS[2, 2], -_WIDEST_TURN, _WIDEST_TURN))

    def project(self, points: np.ndarray) -> np.ndarray:
        """Where points (..., 3), face units, are seen: (..., 2), pixels."""
        points = np.asarray(points)
        return (points[..., :2] + points[..., 2:] * self.turn) @ self.axes.T + self.origin

    def extent(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Part of a photo of some size (height, width) that the surface is seen in: from start (x, y) up to stop."""
        row, column = np.nonzero(_surface() > _FAR)
        x, y = FRAME[0] + (column + 0.5) / _SCALE, FRAME[1] + (row + 0.5) / _SCALE
        seen = self.project(np.column_stack([x, y, _surface()[row, column]]))
        start = np.clip(np.floor(seen.min(axis=0)), 0, size[::-1])
        stop = np.clip(np.ceil(seen.max(axis=0)) + 1, 0, size[::-1])
        return start.astype(int), stop.astype(int)

    def seen_at(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What of the surface is seen at some pixels: the first point that the line of sight meets there.

        The line that passes z = 0 at a point p of the plane passes every other z at p - z * turn. It is followed
        from front to back in steps, and the crossing is interpolated within its step.

        Args:
            pixels: (height, width, 2), x and y.

        Returns:
            x and y of the surface (height, width, 2), float32, face units; whether any is met, (height, width).
        """
        plane = ((pixels - self.origin) @ np.linalg.inv(self.axes).T).astype(np.float32)
        start = (plane - np.float32(FRAME[:2])) * _SCALE - 0.5
        turn = self.turn.astype(np.float32)
        depth = np.full(plane.shape[:2], np.nan, np.float32)
        before = np.full(plane.shape[:2], _STEP, np.float32)
        for z in np.arange(_NEAR, _FAR, -_STEP, np.float32):
            at = start - z * _SCALE * turn
            gap = z - cv2.remap(_surface(), at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            met = np.isnan(depth) & (gap <= 0)
            depth[met] = z + _STEP * gap[met] / (gap[met] - before[met])
            before = gap
        hit = ~np.isnan(depth)
        return plane - np.where(hit, depth, 0)[..., None] * turn, hit


def centres(low: float, count: int, per_unit: float) -> np.ndarray:
    """Centres of `count` cells from `low` on, `per_unit` of them to a unit."""
    return low + (np.arange(count) + 0.5) / per_unit


@functools.lru_cache
def _surface() -> np.ndarray:
    """Table of z over `FRAME`: an average face with a mask on, as an ellipse across plus the tent over the nose.

    The numbers are of our own choosing, from adult proportions (eyes 63 mm apart, face 145 mm wide, chin 120 mm below
    the eyes) and adjusted by eye on photos of turned faces.
    """
    left, top, right, bottom = FRAME
    x = centres(left, round((right - left) * _SCALE), _SCALE)
    y = centres(top, round((bottom - top) * _SCALE), _SCALE)[:, None]
    rows = [top, 0.2, 0.6, 1.15, 1.6, 1.95, bottom]
    half_width = np.interp(y, rows, [1.16, 1.16, 1.16, 1.12, 1.02, 0.92, 0.86])
    middle = np.interp(y, rows, [0.12, 0.1, 0.13, 0.17, 0.17, 0.0, -0.45])
    nose = np.interp(y, rows, [0.05, 0.18, 0.36, 0.26, 0.13, 0.08, 0.0])
    # Where the ellipse grows steep it goes on as its tangent, so that a line of sight cannot miss the edge.
    across = np.abs(x) / half_width
    round_part = np.minimum(across, 0.97)
    fall = 1 - np.sqrt(1 - round_part**2) + (across - round_part) * 0.97 / np.sqrt(1 - 0.97**2)
    z = middle + nose * np.exp(-((x / 0.36) ** 2)) - 1.35 * fall
    return cv2.GaussianBlur(z, (0, 0), 0.06 * _SCALE, borderType=cv2.BORDER_REPLICATE).astype(np.float32)

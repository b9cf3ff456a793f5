"""Draws the occluders that tfface ships, so that no photo and no licence but our own is behind them.

Run by whoever changes a drawing: `python scripts/draw_occluders.py`. It writes the PNGs and `anchors.json` into
`tfface/assets/occluders`, the same bytes each time. Every drawing is made at three times its size and averaged
down, which smooths its edges; solid things are shaded as if inflated and lit from the upper left.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tfface import files
from tfface.faces.head import FACE_POINTS
from tfface.faces.occluders import MASK_POINTS

FOLDER = Path(__file__).resolve().parent.parent / "tfface" / "assets" / "occluders"
SHARPNESS = 3
"""How many times larger a drawing is made than it is stored."""

LIGHT = np.array([-0.42, -0.55, 0.72])
"""Direction of the light, unit length: x to the right, y down, z towards the viewer."""


class Drawing:
    """A canvas with alpha. All coordinates and widths are pixels of the stored picture."""

    def __init__(self, width: int, height: int):
        self.shape = (height * SHARPNESS, width * SHARPNESS)
        self.colour = np.zeros((*self.shape, 3), np.float32)
        self.alpha = np.zeros(self.shape, np.float32)
        y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32)
        self.x, self.y = (x + 0.5) / SHARPNESS - 0.5, (y + 0.5) / SHARPNESS - 0.5

    def area(self, points) -> np.ndarray:
        """Coverage, 0 or 1, of the polygon through the points (n, 2)."""
        return self._drawn(lambda canvas, at: cv2.fillPoly(canvas, [at], 1), points)

    def stroke(self, points, width: float) -> np.ndarray:
        """Coverage, 0 or 1, of a line of some width through the points (n, 2)."""
        thickness = max(1, round(width * SHARPNESS))
        return self._drawn(lambda canvas, at: cv2.polylines(canvas, [at], False, 1, thickness), points)

    def _drawn(self, draw, points) -> np.ndarray:
        canvas = np.zeros(self.shape, np.uint8)
        draw(canvas, np.rint((np.asarray(points, np.float64) + 0.5) * SHARPNESS - 0.5).astype(np.int32))
        return canvas.astype(np.float32)

    def lay(self, coverage, colour, opacity: float = 1.0) -> None:
        """Paints a colour, (3,) or an array (..., 3), over what is there."""
        coverage = coverage * opacity
        self.colour += coverage[..., None] * (np.broadcast_to(np.float32(colour), self.colour.shape) - self.colour)
        self.alpha += coverage * (1 - self.alpha)

    def shade(self, coverage, factor) -> None:
        """Multiplies what is painted by a factor where the coverage is 1."""
        self.colour *= (1 + coverage * (factor - 1))[..., None]

    def stored(self) -> np.ndarray:
        """The picture (height, width, 4), uint8, straight alpha."""
        size = (self.shape[1] // SHARPNESS, self.shape[0] // SHARPNESS)
        premultiplied = cv2.resize(self.colour.clip(0, 255) * self.alpha[..., None], size, interpolation=cv2.INTER_AREA)
        alpha = cv2.resize(self.alpha, size, interpolation=cv2.INTER_AREA)
        colour = premultiplied / np.maximum(alpha, 1e-6)[..., None]
        # What cannot be seen is set to black: it costs bytes and says nothing.
        colour[alpha < 1 / 512] = 0
        return np.rint(np.dstack([colour, alpha * 255])).clip(0, 255).astype(np.uint8)


def smooth(points, closed: bool = True, steps: int = 24) -> np.ndarray:
    """Catmull-Rom curve through points (n, 2)."""
    points = np.asarray(points, np.float64)
    padded = np.vstack([points[-1:], points, points[:2]] if closed else [points[:1], points, points[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = []
    for before, start, end, after in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        bend = t * (t * (t * (3 * start - before - 3 * end + after) + 2 * before - 5 * start + 4 * end - after))
        pieces.append(start + 0.5 * (t * (end - before) + bend))
    return np.vstack([*pieces, points[-1:]] if not closed else pieces)


def rounded(left, top, right, bottom, radius) -> np.ndarray:
    """Outline of a rectangle with round corners."""
    quarter = np.linspace(0, np.pi / 2, 16)
    corners = [(right - radius, bottom - radius), (left + radius, bottom - radius)]
    corners += [(left + radius, top + radius), (right - radius, top + radius)]
    return np.vstack(
        [
            np.array(corner) + radius * np.column_stack([np.cos(quarter + turn), np.sin(quarter + turn)])
            for corner, turn in zip(corners, np.arange(4) * np.pi / 2, strict=True)
        ]
    )


def blurred(array, sigma: float) -> np.ndarray:
    """Gaussian blur; sigma in pixels of the stored picture."""
    return cv2.GaussianBlur(np.float32(array), (0, 0), sigma * SHARPNESS)


def relief(coverage, radius: float, ambient: float = 0.55) -> np.ndarray:
    """Brightness factor of a shape that swells from its outline like a cushion whose rim has some radius."""
    distance = cv2.distanceTransform(coverage.astype(np.uint8), cv2.DIST_L2, 5) / SHARPNESS
    inside = np.clip(1 - distance / radius, 0, 1)
    return lit(radius * np.sqrt(1 - inside**2), radius / 8, ambient)


def lit(height, softness: float, ambient: float = 0.55) -> np.ndarray:
    """Brightness factor of a surface of some height (pixels), 1 where it faces the viewer."""
    height = blurred(height, softness)
    dy, dx = np.gradient(height * SHARPNESS)
    normal = np.dstack([-dx, -dy, np.ones_like(dx)]) / np.sqrt(dx**2 + dy**2 + 1)[..., None]
    return ambient + (1 - ambient) * np.clip(normal @ LIGHT, 0, None) / LIGHT[2]


def weave(drawing: Drawing, seed: int, strength: float) -> np.ndarray:
    """Brightness factor of a fine, irregular texture."""
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(drawing.shape)
    noise = blurred(noise, 0.7)
    return (1 + strength * noise / noise.std()).astype(np.float32)


def surgical_mask():
    """A pleated surgical mask as it looks on a face from the front; drawn in face units, so it needs no turning."""
    unit, centre = 100.0, np.array([125.0, 2.0])
    drawing = Drawing(250, 204)
    x, y = (drawing.x - centre[0]) / unit, (drawing.y - centre[1]) / unit

    def place(points):
        return np.asarray(points) * unit + centre

    def mirrored(points):
        return place(np.vstack([points, np.array(points)[::-1] * (-1, 1)]))

    for bend in ([(0.93, 0.57), (1.02, 0.46), (1.12, 0.34)], [(0.84, 1.23), (1.0, 1.02), (1.12, 0.72)]):
        for side in (1, -1):
            string = drawing.stroke(place(smooth(np.array(bend) * (side, 1), closed=False)), 3.2)
            drawing.lay(string, (232, 234, 236))
            drawing.shade(string, relief(string, 1.7))
    top = [(-1.0, 0.56), (-0.72, 0.47), (-0.42, 0.36), (-0.2, 0.25), (0.0, 0.2)]
    side = [(-0.82, 1.68), (-0.9, 1.3), (-0.97, 0.85)]
    bottom = [(0.0, 1.96), (-0.3, 1.94), (-0.58, 1.84)]
    half = smooth([*bottom, *side, *top], closed=False)
    body = drawing.area(mirrored(half))
    drawing.lay(body, (142, 190, 222))

    # Across the face the cloth turns away at the sides; down it, it bulges over nose and chin.
    height = 62 * np.sqrt(np.clip(1.25 - x**2, 0, None)) + 26 * np.exp(-((x / 0.34) ** 2 + ((y - 0.62) / 0.6) ** 2))
    height -= 30 * np.clip(y - 1.45, 0, None) ** 2 / 0.3
    shade = lit(height, 3, 0.5)
    # Each pleat: light on its upper lip, a shadow in its fold.
    for middle, edge in ((0.78, 0.82), (1.1, 1.06), (1.42, 1.3)):
        below = y - (middle + (edge - middle) * np.clip(np.abs(x) / 0.95, 0, 1) ** 1.6)
        shade *= 1 - 0.2 * np.exp(-np.clip(below, 0, None) / 0.055) * (below >= 0)
        shade *= 1 + 0.1 * np.exp(np.clip(below, None, 0) / 0.09) * (below < 0)
    drawing.shade(body, shade * weave(drawing, 1, 0.012))

    rim = mirrored(half)
    inner = cv2.erode(body, np.ones((3, 3)), iterations=round(4.5 * SHARPNESS))
    drawing.lay(body * (1 - inner), (206, 224, 236), 0.55)
    drawing.lay(drawing.stroke(rim, 1.2), (112, 156, 190), 0.6)
    wire = place(smooth([(-0.4, 0.43), (-0.2, 0.34), (0, 0.3), (0.2, 0.34), (0.4, 0.43)], closed=False))
    drawing.lay(drawing.stroke(wire + np.array([0, 1.5]), 3), (106, 150, 184), 0.55)
    drawing.lay(drawing.stroke(wire, 2), (220, 236, 245), 0.5)
    return drawing, MASK_POINTS * unit + centre


def sunglasses():
    """Dark glasses with full rims."""
    unit, centre = 110.0, np.array([128.0, 36.0])
    drawing = Drawing(256, 92)
    frame = np.zeros(drawing.shape, np.float32)
    lenses = np.zeros(drawing.shape, np.float32)
    for side in (1, -1):
        rim = [(0.1, -0.14), (0.5, -0.22), (0.98, -0.23), (1.0, 0.02), (0.88, 0.32), (0.56, 0.42), (0.26, 0.34)]
        rim = smooth(np.array([*rim, (0.12, 0.1)]) * (side, 1)) * unit + centre
        middle = rim.mean(axis=0)
        frame = np.maximum(frame, drawing.area(rim))
        lenses = np.maximum(lenses, drawing.area(middle + (rim - middle) * (0.87, 0.82)))
        hinge = np.array([(0.92, -0.21), (1.12, -0.22), (1.13, -0.08), (0.95, -0.02)]) * (side, 1)
        frame = np.maximum(frame, drawing.area(hinge * unit + centre))
    bridge = smooth([(-0.2, -0.08), (-0.08, -0.13), (0.08, -0.13), (0.2, -0.08)], closed=False) * unit + centre
    frame = np.maximum(frame, drawing.stroke(bridge, 9))
    drawing.lay(frame, (34, 31, 32))
    drawing.shade(frame, 0.6 + 1.1 * relief(frame, 5, 0.1))
    gradient = np.clip((drawing.y - 10) / 75, 0, 1)[..., None]
    drawing.lay(lenses, np.array([26, 26, 30]) + gradient * np.array([44, 40, 36]))
    # Lenses let a little through: their alpha falls from 0.97 at the top to 0.86 at the bottom.
    drawing.alpha *= 1 - lenses * (0.03 + 0.11 * gradient[..., 0])
    slanted = drawing.x - 0.55 * drawing.y
    glare = sum(np.exp(-(((slanted - at) / width) ** 2)) for at, width in ((40, 9), (62, 3), (158, 9), (180, 3)))
    drawing.lay(lenses * glare * (1 - gradient[..., 0]), (196, 206, 220), 0.42)
    return drawing, FACE_POINTS[:, :2] * unit + centre


def scarf():
    """A wool scarf wound around the lower face and the neck."""
    unit, centre = 92.0, np.array([128.0, -48.0])
    drawing = Drawing(256, 200)
    x, y = (drawing.x - centre[0]) / unit, (drawing.y - centre[1]) / unit
    outline = [(-1.36, 0.86), (-1.02, 0.68), (-0.5, 0.62), (0, 0.6), (0.5, 0.64), (1.02, 0.7), (1.36, 0.92)]
    outline += [(1.38, 1.6), (1.3, 2.3), (0.9, 2.58), (0.2, 2.66), (-0.5, 2.62), (-1.1, 2.46), (-1.34, 2.1)]
    body = drawing.area(smooth([*outline, (-1.4, 1.4)]) * unit + centre)
    # Folds sag in the middle; the tartan follows them.
    sag = y - 0.22 * (1 - (x / 1.3) ** 2) + 0.05 * np.sin(2.1 * x + 0.6)
    fold = sum(
        depth * np.sin(rate * sag + tilt * x + phase)
        for rate, tilt, phase, depth in ((9, 0.5, 0, 4.5), (15, -0.9, 1, 2))
    )
    height = fold + 48 * np.sqrt(np.clip(2.3 - x**2, 0, None))
    colour = np.broadcast_to(np.float32((150, 38, 44)), (*drawing.shape, 3)).copy()
    along, across = (x + 0.08 * np.sin(3 * y)) * 3.1, (sag + 0.02 * fold) * 3.1
    for band, tone, share in ((0.24, (26, 40, 70), 0.62), (0.04, (226, 206, 150), 0.7)):
        for stripe in (along, across):
            offset = 0.5 if band < 0.1 else 0.0
            inside = np.abs((stripe + offset) % 1 - 0.5) < band / 2 + 0.02
            colour += share * inside[..., None] * (np.float32(tone) - colour)
    drawing.lay(body, colour)
    knit = 1 + 0.07 * np.sin(drawing.x * 2.2 + drawing.y * 1.1) * np.sin(drawing.y * 2.2)
    drawing.shade(body, lit(height, 1.5, 0.32) * relief(body, 12, 0.5) * knit * weave(drawing, 2, 0.012))
    return drawing, FACE_POINTS[:, :2] * unit + centre


def cup():
    """A glazed mug with a handle, seen a little from above."""
    unit, centre = 130.0, np.array([94.0, -112.0])
    drawing = Drawing(236, 212)
    left, right, rim, base = 10.0, 178.0, 26.0, 188.0
    middle, radius = (left + right) / 2, (right - left) / 2
    angle = np.linspace(0, 2 * np.pi, 120)

    def ellipse(y, scale=1.0, flat=0.24):
        return np.column_stack([middle + scale * radius * np.cos(angle), y + flat * scale * radius * np.sin(angle)])

    handle = smooth([(168, 62), (206, 58), (222, 92), (208, 134), (166, 144)], closed=False)
    handle = drawing.stroke(handle, 15)
    drawing.lay(handle, (196, 62, 48))
    drawing.shade(handle, relief(handle, 8, 0.4))
    lower = ellipse(base, 0.93)[:61]
    body = drawing.area(np.vstack([[(right, rim)], lower, [(left, rim)]]))
    drawing.lay(body, (206, 66, 50))
    across = np.clip((drawing.x - middle) / radius, -1, 1)
    drawing.shade(body, lit(radius * np.sqrt(1 - 0.98 * across**2), 2, 0.35))
    drawing.shade(body, 1 - 0.18 * np.clip((drawing.y - 150) / 60, 0, 1))
    band = body * (np.abs(drawing.y - 0.2 * radius * np.sqrt(1 - across**2) - 96) < 15)
    drawing.lay(band, (244, 236, 220), 0.85)
    drawing.shade(band, lit(radius * np.sqrt(1 - 0.98 * across**2), 2, 0.45))
    for at, width, strength in ((-0.52, 0.07, 0.55), (0.7, 0.04, 0.2)):
        drawing.lay(body * np.exp(-(((across - at) / width) ** 2)) * (drawing.y > rim + 14), (255, 246, 238), strength)
    lip = drawing.area(ellipse(rim))
    drawing.lay(lip, (226, 96, 78))
    opening = drawing.area(ellipse(rim + 1, 0.93))
    drawing.lay(opening, (150, 44, 36))
    drawing.shade(opening, 0.7 + 0.5 * np.clip((drawing.x - left) / (right - left), 0, 1))
    drawing.lay(opening * drawing.area(ellipse(rim + 10, 0.84)), (64, 38, 26))
    return drawing, FACE_POINTS[:, :2] * unit + centre


def book():
    """A hard-cover book held upright."""
    unit, centre = 84.0, np.array([98.0, -52.0])
    drawing = Drawing(196, 256)
    pages = drawing.area([(14, 6), (189, 10), (189, 247), (14, 252)])
    drawing.lay(pages, (232, 225, 206))
    drawing.shade(pages, 0.86 + 0.12 * np.sin(drawing.x * 3.1) * (drawing.x > 180))
    cover = drawing.area([(5, 4), (183, 4), (183, 252), (5, 252)])
    drawing.lay(cover, (28, 74, 82))
    spine = np.exp(-(((drawing.x - 22) / 3.2) ** 2))
    drawing.shade(cover, (1 - 0.35 * spine) * relief(cover, 3.5, 0.35) * weave(drawing, 3, 0.018))
    drawing.shade(cover, 1.12 - 0.3 * (drawing.x / 196 + drawing.y / 256) / 2)
    gold = (214, 180, 104)
    frame = rounded(36, 20, 170, 236, 5)
    drawing.lay(drawing.stroke(np.vstack([frame, frame[:1]]), 1.6), gold, 0.9)
    rows = ((50, 10, 78), (70, 10, 94), (90, 10, 58), (206, 5, 60))
    for row, thick, long in rows:
        drawing.lay(drawing.area(rounded(103 - long / 2, row, 103 + long / 2, row + thick, 2)), gold, 0.92)
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    drawing.lay(drawing.stroke(circle * 30 + (103, 152), 2.2), gold, 0.9)
    star = circle[:100:10][:, ::-1] * np.where(np.arange(10) % 2, 9, 23)[:, None] * (1, -1) + (103, 152)
    drawing.lay(drawing.area(star), gold, 0.9)
    return drawing, FACE_POINTS[:, :2] * unit + centre


def hand():
    """The back of a raised hand, fingers together, a sleeve at the wrist."""
    unit, centre = 78.0, np.array([112.0, 88.0])
    drawing = Drawing(180, 256)
    height = np.zeros(drawing.shape, np.float32)
    whole = np.zeros(drawing.shape, np.float32)
    palm = [
        (44, 128),
        (76, 116),
        (112, 116),
        (142, 132),
        (146, 168),
        (134, 204),
        (124, 236),
        (66, 236),
        (54, 206),
        (44, 168),
    ]
    # From little finger to index, then the thumb: joints and half widths.
    fingers = (
        ([(134, 150), (145, 104), (151, 68)], (13, 11.5, 9.5)),
        ([(114, 142), (120, 84), (123, 36)], (14.5, 12.5, 10)),
        ([(88, 142), (88, 76), (88, 20)], (15, 13, 10.5)),
        ([(62, 146), (56, 88), (50, 42)], (15, 12.5, 10)),
        ([(66, 192), (30, 160), (13, 128)], (14, 13, 10)),
    )
    parts = [drawing.area(smooth(palm))]
    for joints, widths in fingers:
        line = smooth(joints, closed=False)
        width = np.interp(np.linspace(0, 1, len(line)), [0, 0.5, 1], widths)
        part = np.zeros(drawing.shape, np.float32)
        for at, half in zip(line, width, strict=True):
            squared = (drawing.x - at[0]) ** 2 + (drawing.y - at[1]) ** 2
            part = np.maximum(part, np.clip(half**2 - squared, 0, None))
        parts.append((part > 0).astype(np.float32))
        height = np.maximum(height, np.sqrt(part))
        whole = np.maximum(whole, parts[-1])
    whole = np.maximum(whole, parts[0])
    inside = np.clip(1 - cv2.distanceTransform(parts[0].astype(np.uint8), cv2.DIST_L2, 5) / SHARPNESS / 26, 0, 1)
    height = np.maximum(height, 15 * np.sqrt(1 - inside**2))
    # Knuckles and the cords behind them.
    for x, y in ((62, 140), (88, 134), (114, 136), (134, 146)):
        height += 3.2 * np.exp(-(((drawing.x - x) / 9) ** 2 + ((drawing.y - y) / 9) ** 2))
        cord = np.clip((drawing.y - y) / 70, 0, 1)
        height += 1.4 * np.exp(-(((drawing.x - x - cord * (92 - x) * 0.7) / 4) ** 2)) * (drawing.y > y) * (1 - cord)
    drawing.lay(whole, (206, 158, 132))
    warm = sum(
        np.exp(-(((drawing.x - x) / 10) ** 2 + ((drawing.y - y) / 10) ** 2))
        for x, y in ((62, 142), (88, 136), (114, 138), (134, 148), (56, 88), (88, 76), (120, 84), (145, 104))
    )
    drawing.lay(whole * np.clip(warm, 0, 1), (196, 128, 108), 0.4)
    drawing.shade(whole, lit(height, 1.3, 0.42) * weave(drawing, 4, 0.012))
    for x, y, tilt in ((56, 88, -0.1), (88, 76, 0), (120, 84, 0.06), (145, 104, 0.14)):
        for step in (-3.5, 0, 3.5):
            crease = [(x - 6, y + step - 6 * tilt), (x, y + step - 1), (x + 6, y + step + 6 * tilt)]
            drawing.lay(drawing.stroke(smooth(crease, closed=False), 0.9), (150, 96, 78), 0.45)
    for x, y, lean, size in ((49.5, 41, -0.12, 6.6), (88, 19.5, 0, 7), (123.5, 35, 0.07, 6.6), (151.5, 67, 0.15, 5.8)):
        nail = rounded(-size * 0.8, -size * 1.0, size * 0.8, size * 1.3, size * 0.75)
        nail = nail @ np.array([[np.cos(lean), np.sin(lean)], [-np.sin(lean), np.cos(lean)]]) + (x, y)
        nail = drawing.area(nail)
        drawing.lay(nail, (232, 190, 176), 0.85)
        drawing.shade(nail, relief(nail, 4, 0.6))
    cuff = drawing.area(smooth([(52, 218), (94, 211), (136, 218), (142, 254), (94, 255), (46, 254)]))
    drawing.lay(cuff, (62, 74, 98))
    drawing.shade(cuff, relief(cuff, 12, 0.4) * weave(drawing, 5, 0.05))
    turn = np.deg2rad(28)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return drawing, FACE_POINTS[:, :2] @ rotation * unit + centre + (-16, -24)


def phone():
    """The back of a telephone."""
    unit, centre = 100.0, np.array([42.0, 46.0])
    drawing = Drawing(132, 256)
    body = drawing.area(rounded(4, 4, 127, 251, 20))
    drawing.lay(body, (142, 146, 152))
    drawing.shade(body, relief(body, 3, 0.3))
    back = drawing.area(rounded(6.5, 6.5, 124.5, 248.5, 17.5))
    drawing.lay(back, (44, 48, 58))
    slanted = (drawing.x + 0.6 * drawing.y) / 285
    drawing.lay(back * np.clip(1 - np.abs(slanted - 0.32) / 0.3, 0, 1), (124, 138, 164), 0.5)
    island = drawing.area(rounded(14, 14, 66, 70, 13))
    drawing.shade(np.clip(blurred(island, 3), 0, 1) * back, 0.75)
    drawing.lay(island, (58, 62, 74))
    drawing.shade(island, relief(island, 3, 0.45))
    angle = np.linspace(0, 2 * np.pi, 80)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    for x, y in ((30, 30), (30, 54), (51, 42)):
        drawing.lay(drawing.area(circle * 10 + (x, y)), (96, 100, 108))
        drawing.lay(drawing.area(circle * 8.4 + (x, y)), (14, 15, 20))
        drawing.lay(drawing.area(circle * 4.5 + (x, y)), (32, 40, 70))
        drawing.lay(drawing.area(circle * 1.6 + (x - 2.5, y - 2.5)), (220, 228, 245))
    drawing.lay(drawing.area(circle * 3 + (53, 24)), (246, 238, 208))
    return drawing, FACE_POINTS[:, :2] * unit + centre


def main() -> None:
    """Writes every picture and the anchors."""
    anchors = {}
    for draw in (surgical_mask, sunglasses, scarf, cup, book, hand, phone):
        drawing, points = draw()
        name = draw.__name__
        with files.written_aside(FOLDER / f"{name}.png") as aside:
            cv2.imwrite(
                str(aside), cv2.cvtColor(drawing.stored(), cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 9]
            )
        anchors[name] = [[round(float(value), 1) for value in point] for point in points]
    files.write_json(FOLDER / "anchors.json", anchors)


if __name__ == "__main__":
    main()

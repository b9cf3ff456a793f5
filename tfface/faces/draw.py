"""Draw boxes and captions on a photo, in sizes that suit the photo."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = ((0, 158, 115), (0, 114, 178), (213, 94, 0), (204, 121, 167), (230, 159, 0), (86, 180, 233))
"""Okabe and Ito's palette, which colour-blind people can tell apart; one colour a face, in turn."""


@cache
def _font(size: int):
    return ImageFont.load_default(size)


def annotate(
    image: np.ndarray, boxes: np.ndarray, captions: Sequence[Sequence[str]], numbers: Sequence[int] | None = None
) -> np.ndarray:
    """Draw each box with its caption under it; above or inside it, where it would leave the photo or hide another one.

    Args:
        image: `(height, width, 3)` uint8 RGB; it is not changed.
        boxes: `(n, 4)` x0, y0, x1, y1, pixels.
        captions: for each box its lines of text; the first is drawn larger.
        numbers: for each box what chooses its colour, such as the number of its track; its place in the order if None.

    Returns:
        A new `(height, width, 3)` uint8 picture.
    """
    height, width = image.shape[:2]
    picture = Image.fromarray(image).convert("RGBA")
    layer = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(layer)
    # Large faces last, whose boxes stay whole; but first where captions are given their places.
    order = np.argsort([(box[2] - box[0]) * (box[3] - box[1]) for box in boxes])
    lines = [max(2, round(_side(box) / 60)) for box in boxes]
    for index in order:
        colour = COLOURS[(index if numbers is None else numbers[index]) % len(COLOURS)]
        outline = {"outline": (*colour, 255), "width": lines[index]}
        pen.rounded_rectangle(tuple(map(float, boxes[index])), radius=_side(boxes[index]) / 14, **outline)
    placed = []
    for index in order[::-1]:
        x0, y0, x1, y1 = (float(value) for value in boxes[index])
        line, texts = lines[index], captions[index]
        fonts = [
            _font(int(np.clip(_side(boxes[index]) / (7 if row == 0 else 9), 11, max(16, height / 22))))
            for row in range(len(texts))
        ]
        sizes = [pen.textbbox((0, 0), text, font=font)[2:] for text, font in zip(texts, fonts, strict=True)]
        if not sizes:
            continue
        padding = max(3, line)
        box_width = max(w for w, _ in sizes) + 2 * padding
        box_height = sum(h for _, h in sizes) + padding * (len(sizes) + 1)
        left = float(np.clip((x0 + x1 - box_width) / 2, 0, max(0, width - box_width)))
        below, above = y1 + line, y0 - line - box_height
        tops = [top for top in (below, above, y1 - line - box_height, y0 + line) if 0 <= top <= height - box_height]
        places = [(left, top, left + box_width, top + box_height) for top in tops or (max(0.0, above),)]
        place = min(places, key=lambda place: sum(_shared(place, other) for other in placed))
        placed.append(place)
        pen.rounded_rectangle(place, radius=2 * padding, fill=(20, 22, 26, 205))
        row_top = place[1] + padding
        for text, font, (w, h) in zip(texts, fonts, sizes, strict=True):
            pen.text((left + (box_width - w) / 2, row_top), text, font=font, fill=(255, 255, 255, 255))
            row_top += h + padding
    return np.asarray(Image.alpha_composite(picture, layer).convert("RGB"))


def _side(box: np.ndarray) -> float:
    return float(max(box[2] - box[0], box[3] - box[1]))


def _shared(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Pixels of two rectangles that lie in both."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))

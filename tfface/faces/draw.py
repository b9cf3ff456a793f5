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
    """Draw each box with its caption under it (above it at the photo's lower border).

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
    # Small faces first, so that the caption of a large one is not hidden beneath a neighbour's box.
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in boxes]
    for index in np.argsort(areas):
        x0, y0, x1, y1 = (float(value) for value in boxes[index])
        colour = COLOURS[(index if numbers is None else numbers[index]) % len(COLOURS)]
        side = max(x1 - x0, y1 - y0)
        line = max(2, round(side / 60))
        pen.rounded_rectangle((x0, y0, x1, y1), radius=side / 14, outline=(*colour, 255), width=line)
        fonts = [
            _font(int(np.clip(side / (7 if row == 0 else 9), 11, max(16, height / 22))))
            for row in range(len(captions[index]))
        ]
        sizes = [pen.textbbox((0, 0), text, font=font)[2:] for text, font in zip(captions[index], fonts, strict=True)]
        if not sizes:
            continue
        padding = max(3, line)
        box_width = max(w for w, _ in sizes) + 2 * padding
        box_height = sum(h for _, h in sizes) + padding * (len(sizes) + 1)
        left = float(np.clip((x0 + x1 - box_width) / 2, 0, max(0, width - box_width)))
        top = y1 + line if y1 + line + box_height <= height else max(0.0, y0 - line - box_height)
        pen.rounded_rectangle(
            (left, top, left + box_width, top + box_height), radius=2 * padding, fill=(20, 22, 26, 205)
        )
        row_top = top + padding
        for (text, font), (w, h) in zip(zip(captions[index], fonts, strict=True), sizes, strict=True):
            pen.text((left + (box_width - w) / 2, row_top), text, font=font, fill=(255, 255, 255, 255))
            row_top += h + padding
    return np.asarray(Image.alpha_composite(picture, layer).convert("RGB"))

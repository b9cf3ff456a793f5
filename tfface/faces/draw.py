"""Draw boxes and captions on a photo, in sizes that suit the photo."""

from __future__ import annotations

import os
import string
import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = ((0, 158, 115), (0, 114, 178), (213, 94, 0), (204, 121, 167), (230, 159, 0), (86, 180, 233))
"""Okabe and Ito's palette, which colour-blind people can tell apart; one colour a face, in turn."""

PLAIN = frozenset(string.printable + "±")
"""What Pillow's own font has: no accent, no other script."""


@cache
def font_file(characters: frozenset[str]) -> str:
    """Path of an installed font with these characters: DejaVu Sans, which comes with Matplotlib, unless it lacks one.

    Where every font lacks one it is DejaVu Sans, and a line on standard error says so, once.
    """
    from matplotlib import font_manager  # a second, which few need
    from matplotlib.ft2font import FT2Font

    others = sorted(
        entry.fname
        for entry in font_manager.fontManager.ttflist
        if (entry.style, entry.weight) == ("normal", 400)
        and not entry.name.startswith("Last Resort")  # which has boxes for all
        and os.path.exists(entry.fname)  # Matplotlib keeps the list from before
    )
    usual = font_manager.findfont("DejaVu Sans")
    for path in (usual, *others):
        known = FT2Font(path).get_charmap()
        if all(ord(character) in known for character in characters | PLAIN if character.isprintable()):
            return path
    _say_boxes()
    return usual


@cache
def _say_boxes() -> None:
    print(
        "tfface: no installed font has every letter of the captions: pictures show boxes in place of some. Install one "
        "that has them, such as Noto Sans.",
        file=sys.stderr,
        flush=True,
    )


@cache
def _font(size: int, other: frozenset[str]):
    """A font of this size, pixels, for text with these characters beside `PLAIN` ones."""
    return ImageFont.truetype(font_file(other), size) if other else ImageFont.load_default(size)


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
        heights = np.clip(_side(boxes[index]) / np.array([7] + [9] * len(texts)), 11, max(16, height / 22)).astype(int)
        fonts = [_font(int(size), frozenset(text) - PLAIN) for size, text in zip(heights, texts, strict=False)]
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

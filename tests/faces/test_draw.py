"""Captions of faces that stand close to each other."""

import numpy as np
import pytest
from matplotlib import font_manager

from tfface.faces import draw
from tfface.faces.draw import annotate


def dark(boxes, captions):
    """Pixels of the captions' ground on a white photo."""
    drawn = annotate(np.full((300, 300, 3), 255, np.uint8), np.array(boxes, float), captions)
    return int((drawn.max(axis=2) < 100).sum())


@pytest.mark.parametrize(
    "boxes", [[(60, 60, 160, 180), (110, 70, 200, 185)], [(60, 200, 150, 295), (120, 205, 200, 299)]]
)
def test_captions_do_not_hide_each_other(boxes):
    captions = [["Female 24 ± 5", "East Asian 66%"], ["Male 30 ± 5", "White 56%"]]
    alone = sum(dark([box], [caption]) for box, caption in zip(boxes, captions, strict=True))
    assert dark(boxes, captions) == pytest.approx(alone, rel=0.05)


def test_a_face_as_large_as_its_photo_has_its_caption():
    assert dark([(0, 0, 300, 300)], [["Male 30 ± 5"]]) > 1000
    assert dark([(0, 0, 300, 300)], [[]]) == 0


def test_letters_with_accents_and_of_other_scripts_are_drawn():
    photo, box = np.full((300, 300, 3), 255, np.uint8), np.array([(60, 60, 160, 180)])
    drawn = [annotate(photo, box, [[text]]) for text in ("é", "ü", "ж", "ع")]
    assert len({picture.tobytes() for picture in drawn}) == 4


def test_letters_that_no_font_has_are_said_once(monkeypatch, capsys):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    draw._say_boxes.cache_clear()
    for letter in "男女":
        assert draw.font_file.__wrapped__(frozenset(letter)).endswith("DejaVuSans.ttf")
    assert capsys.readouterr().err.count("no installed font has every letter") == 1


def test_each_box_has_its_own_caption_and_the_colour_of_its_number():
    photo, boxes = np.full((300, 300, 3), 255, np.uint8), np.array([(20, 30, 80, 90), (180, 160, 260, 240)])
    drawn = annotate(photo, boxes, [[], ["Male 30 ± 5"]], numbers=[8, 3])
    for (x0, y0, _, y1), number in zip(boxes, (8, 3), strict=True):
        assert tuple(drawn[(y0 + y1) // 2, x0]) == draw.COLOURS[number % len(draw.COLOURS)]
    ground = np.argwhere(drawn.max(axis=2) < 100)
    assert len(ground) > 300
    assert ground.min(axis=0).tolist() > [240, 150]  # under the second box alone
    plain = annotate(photo, boxes, [[], []])
    assert [tuple(plain[y0 + 30, x0]) for x0, y0, *_ in boxes] == list(draw.COLOURS[:2])

"""Figures: they draw what they were given, at the edges too, and turn dark."""

import re

import numpy as np
import pytest

from tfface.evaluation import plots
from tfface.evaluation.evaluate import age_errors, classification, evaluate
from tfface.evaluation.fairness import by_group
from tfface.evaluation.verification import verify_folds


def texts(figure) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


@pytest.mark.parametrize("draw", ["reliability", "within_years", "age_decades", "spread_coverage", "age_density"])
def test_figures_are_the_same_bytes_each_time_and_turn_dark(draw, predictions):
    metrics = evaluate(predictions)
    arguments = {
        "reliability": (metrics["tasks"]["race"],),
        "age_density": (predictions.truth["age"], predictions.age_years),
    }.get(draw, (metrics["age"],))
    light, again = (plots.svg(getattr(plots, draw)(*arguments)) for _ in range(2))
    assert light == again
    dark = plots.for_dark_pages(light)
    assert plots.LIGHT[0].encode() in light
    assert not any(colour.encode() in dark for colour in plots.LIGHT)
    assert dark.count(b"<path") == light.count(b"<path")


def test_confusion_writes_shares_and_counts():
    task = classification([0, 0, 0, 0, 1], np.eye(2)[[0, 0, 0, 1, 1]], ("Male", "Female"))
    written = texts(plots.confusion(task))
    assert {"0.75", "3", "0.25", "1", "1.00", "0", "Male", "Female"} <= set(written)


def test_names_that_no_font_here_has_stay_text(recwarn):
    drawing = plots.svg(plots.confusion(classification([0, 1], np.eye(2), ("男", "女"))))
    assert {">男<", ">女<"} <= set(re.findall(">.<", drawing.decode()))
    assert not recwarn.list


def test_confusion_of_many_classes_names_only_some():
    names = tuple(map(str, range(63)))
    figure = plots.confusion(classification(np.arange(63), np.eye(63), names))
    assert 8 < len(figure.axes[0].get_xticklabels()) < 16


def test_groups_shows_each_group_with_its_number(predictions):
    written = texts(plots.groups(by_group(predictions)))
    race = predictions.truth["race"]
    assert f"White  ({(race == 0).sum()})" in written
    assert {"gender", "race", "age group", "gender x race"} <= set(written)


def test_cells_shows_every_number(predictions):
    written = texts(plots.cells(by_group(predictions), "gender x race x age group", "age_mae"))
    cell = (predictions.truth["gender"] == 0) & (predictions.truth["race"] == 0) & (predictions.truth["age_bins"] == 4)
    assert str(cell.sum()) in written


def test_a_single_face_can_be_drawn():
    task = classification([0], [[1.0, 0.0]], ("Male", "Female"))
    age = age_errors([30], [30], spread=[1])
    drawn = [plots.confusion(task), plots.reliability(task), plots.within_years(age), plots.age_decades(age)]
    drawn += [plots.spread_coverage(age), plots.age_density([30], [30])]
    assert all(plots.svg(figure).endswith(b"</svg>\n") for figure in drawn)


def test_training_curves_pair_training_with_validation():
    history = [
        {"epoch": e, "loss": 1 / e, "val_loss": 2 / e, "learning_rate": 0.1**e, "seconds": 9.0, "note": "x"}
        for e in (1, 2, 3)
    ]
    history[1].pop("val_loss")
    loss, rate = plots.training_curves(history).axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[1, 1 / 2, 1 / 3], [2, 2 / 3]]
    assert rate.get_yscale() == "log"


def test_epochs_of_training_curves_count_from_one_and_are_whole():
    (loss,) = plots.training_curves([{"epoch": 0, "loss": 0.7}]).axes  # as a run keeps it
    assert list(loss.lines[0].get_xdata()) == [1]
    assert all(tick == round(tick) for tick in loss.get_xticks())


def test_sheet_of_pictures(tmp_path):
    images = [np.full((20, 20 + i, 3), 20 * i, dtype=np.uint8) for i in range(7)]
    path = plots.save(plots.sheet(images, [f"true {i}, said {i + 1}" for i in range(7)]), tmp_path / "sheet.jpg")
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.jpg"]
    assert path.read_bytes()[:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize("pairs", [12, 6000])
def test_roc_of_a_network_that_is_never_wrong_is_drawn_to_its_end(pairs):
    same = np.arange(pairs) % 2 == 0
    axes = plots.roc({"faultless": verify_folds(same.astype(float), same, np.arange(pairs) // 2 % 3)}).axes[0]
    (line,) = axes.lines
    assert axes.get_xlim() == (line.get_xdata().min(), 1.0)
    assert set(line.get_ydata()) == {1.0}


def test_coverage_that_is_far_too_small_is_in_the_picture():
    age = age_errors(np.full(100, 30), np.full(100, 40), spread=np.ones(100))
    assert plots.spread_coverage(age).axes[0].get_ylim()[0] <= 0


def test_the_legend_hides_no_decade(predictions):
    figure = plots.age_decades(evaluate(predictions)["age"])
    figure.canvas.draw()
    (axes,), (legend,) = figure.axes, figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())

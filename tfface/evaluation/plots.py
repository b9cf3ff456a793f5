"""Figures of an evaluation, in one style, for light and for dark pages.

Each function takes numbers as `evaluate`, `fairness.by_group` or a run's history give them and returns a matplotlib
figure for a light page; `svg` writes it and `for_dark_pages` turns the result dark. Colours are those of Okabe and Ito,
which people with any colour vision can tell apart; heat maps differ in lightness only. Nothing here touches pyplot's
global state.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.collections import PolyCollection
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tfface.faces.draw import font_file
from tfface.files import written_aside

LIGHT = ("#24292f", "#d5d9de", "#ffffff", "#0072b2", "#d55e00", "#009e73", "#cc79a7")
DARK = ("#d9dde2", "#3a4048", "#15181c", "#56b4e9", "#e69f00", "#2fc79a", "#e29bc4")
"""Colours of light and of dark pages: ink, lines of the grid, paper, then blue, orange, green and pink."""

INK, FAINT, PAPER, BLUE, ORANGE, *_ = LIGHT


def _shades(paper: str, colour: str) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list("shades", [paper, colour])


BLUES, ORANGES = _shades(PAPER, BLUE), _shades(PAPER, ORANGE)


def _counterparts() -> dict[bytes, bytes]:
    """Each colour that a figure may hold -> the colour in its place on a dark page."""
    pairs = [("#000000", DARK[0]), *zip(LIGHT, DARK, strict=True)]
    for i in (3, 4):
        light, dark = _shades(LIGHT[2], LIGHT[i]), _shades(DARK[2], DARK[i])
        pairs += [(to_hex(light(shade)), to_hex(dark(shade))) for shade in range(light.N)]
    return {light.encode(): dark.encode() for light, dark in pairs}


_COUNTERPARTS = _counterparts()

_STYLE = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica", "sans-serif"],
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.prop_cycle": cycler(color=LIGHT[3:]),
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "tfface",
}


def styled(draw):
    """Let a function that makes a figure draw in the package's style."""

    @functools.wraps(draw)
    def drawn(*args, **settings) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **settings)

    return drawn


def svg(figure: Figure) -> bytes:
    """The figure as SVG without a background; the same figure gives the same bytes."""
    stream = io.BytesIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The text stays text: who shows it has fonts of other scripts, whatever is installed here.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    return stream.getvalue()


def for_dark_pages(drawing: bytes) -> bytes:
    """An SVG of `svg` with each colour of the style replaced by its counterpart on dark pages."""
    return re.sub(rb"#[0-9a-f]{6}\b", lambda colour: _COUNTERPARTS.get(colour[0], colour[0]), drawing)


def save(figure: Figure, path: str | Path, dpi: int = 160) -> Path:
    """Write a figure to a file whose ending matplotlib knows, aside first and then renamed."""
    with written_aside(path) as aside, matplotlib.rc_context(_STYLE):
        figure.savefig(aside, dpi=dpi, facecolor=PAPER)
    return Path(path)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _bars(values: Sequence[Mapping]) -> np.ndarray:
    """Lengths (2, n) of error bars below and above values that carry an interval."""
    return np.array(
        [
            [value["value"] - low, high - value["value"]]
            for value in values
            for low, high in [value["interval"] or [value["value"]] * 2]
        ]
    ).T.clip(min=0)


def _write(axes, x, y, text, ink, size, **settings) -> None:
    """Write into a cell; hundreds of such texts would slow the layout down, which they cannot change."""
    axes.text(x, y, text, ha="center", va="center", color=ink, size=size, in_layout=False, **settings)


@styled
def confusion(task: Mapping) -> Figure:
    """Confusion matrix: rows are the truth, each shaded and written as a share of its row, with counts.

    Args:
        task: figures of one task, as `evaluate.classification` gives them.
    """
    counts, names = np.asarray(task["confusion"]), task["classes"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few, written = len(names) <= 5, len(names) <= 12
    side = min(max(3.4, 0.72 * len(names) + 1.2), 5.2)
    figure = _figure(side + 0.4, side)
    axes = figure.add_subplot()
    axes.pcolormesh(shares, cmap=BLUES, vmin=0, vmax=1, edgecolors=PAPER, linewidth=1.2 if written else 0)
    for (i, j), share in np.ndenumerate(shares) if written else ():
        ink = PAPER if share > 0.62 else INK
        if counts[i, j]:
            text = f"{share:.2f}" if few else f"{share:.2f}".removeprefix("0")
            _write(axes, j + 0.5, i + 0.43, text, ink, 10.5 if few else 8, weight="bold" if i == j else "normal")
            _write(axes, j + 0.5, i + 0.75, f"{counts[i, j]:,}", ink, 7.5 if few else 6)
        else:
            _write(axes, j + 0.5, i + 0.5, "0", ink, 7, alpha=0.5)
    step = max(1, len(names) // 12)
    ticks = np.arange(0, len(names), step)
    axes.set_xticks(ticks + 0.5, [names[i] for i in ticks], rotation=40 if max(map(len, names)) > 6 else 0)
    if max(map(len, names)) > 6:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks + 0.5, [names[i] for i in ticks])
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="truth", aspect="equal", xlim=(0, len(names)), ylim=(len(names), 0))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


@styled
def reliability(task: Mapping) -> Figure:
    """Reliability diagram: accuracy against confidence with intervals, and how often each confidence was
    said.

    Args:
        task: figures of one task, as `evaluate.classification` gives them.
    """
    result = task["calibration"]
    rows = result["reliability"]
    figure = _figure(4.6, 4.8)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=[3.4, 1])
    lowest = rows[0]["low"]
    top.plot([lowest, 1], [lowest, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    accuracies = [row["accuracy"] for row in rows]
    top.errorbar(
        [row["confidence"] for row in rows],
        [accuracy["value"] for accuracy in accuracies],
        yerr=_bars(accuracies),
        fmt="o-",
        markersize=5,
        elinewidth=1.2,
        label="model",
    )
    top.set(ylabel="accuracy", ylim=(0, 1.02))
    top.legend()
    width = 1 / result["bins"]
    bottom.bar([row["low"] + width / 2 for row in rows], [row["n"] for row in rows], width, color=BLUE)
    bottom.set(xlabel="confidence of the named class", ylabel="n", xlim=(lowest, 1))
    bottom.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    return figure


@styled
def within_years(age: Mapping) -> Figure:
    """Share of faces whose predicted age is at most k years off, for k from 0 to 20.

    Args:
        age: figures of ages, as `evaluate.age_errors` gives them.
    """
    figure = _figure(4.6, 3.8)
    axes = figure.add_subplot()
    years = [row["years"] for row in age["within"]]
    axes.plot(years, [row["value"] for row in age["within"]])
    low, high = zip(*(row["interval"] for row in age["within"]), strict=True)
    axes.fill_between(years, low, high, color=BLUE, alpha=0.25, linewidth=0)
    for k in (5, 10):
        share = age["within"][k]["value"]
        axes.plot(k, share, "o", color=BLUE, markersize=5)
        axes.annotate(f"{share:.3f} within {k} years", (k, share), (7, -12), textcoords="offset points")
    axes.set(xlabel="years off, at most", ylabel="share of faces", xlim=(0, years[-1]), ylim=(0, 1.02))
    axes.set_xticks(range(0, years[-1] + 1, 5))
    return figure


@styled
def age_density(truth, predicted) -> Figure:
    """Predicted against true age, as a density, with the median and the 10th to 90th percentile.

    Args:
        truth: (n,) true age in years.
        predicted: (n,) predicted age in years.
    """
    truth, predicted = np.asarray(truth, dtype=float), np.asarray(predicted, dtype=float)
    top = 10 * np.ceil((max(truth.max(), predicted.max()) + 1) / 10)
    edges = np.arange(0, top + 1, 2)
    figure = _figure(4.6, 4.4)
    axes = figure.add_subplot()
    density, _, _ = np.histogram2d(truth, predicted.clip(0, top), [edges, edges])
    steps = [step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if step <= density.max()]
    norm = BoundaryNorm([*steps, density.max() + 1], len(steps))
    shades = ListedColormap(BLUES(np.linspace(70, 255, len(steps)).astype(int)))
    filled = np.argwhere(density > 0)  # thousands of empty cells would only make the file large
    corners = 2 * (filled[:, None] + np.array([[0, 0], [1, 0], [1, 1], [0, 1]]))
    cells = PolyCollection(corners, array=density[tuple(filled.T)], cmap=shades, norm=norm, linewidth=0)
    bar = figure.colorbar(axes.add_collection(cells), ax=axes, shrink=0.7, aspect=30, pad=0.02, ticks=steps)
    bar.set_label("faces in a cell of 2 x 2 years")
    bar.ax.grid(False)
    bar.outline.set_visible(False)
    axes.plot([0, top], [0, top], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    place = (truth // 5).astype(int)
    places = [i for i in np.unique(place) if (place == i).sum() >= 10]
    if places:
        quantiles = np.array([np.quantile(predicted[place == i], [0.1, 0.5, 0.9]) for i in places])
        centres = [truth[place == i].mean() for i in places]
        axes.plot(centres, quantiles[:, 1], color=ORANGE, label="median")
        axes.fill_between(
            centres,
            quantiles[:, 0],
            quantiles[:, 2],
            color=ORANGE,
            alpha=0.22,
            linewidth=0,
            label="10th to 90th percentile",
        )
    axes.set(xlabel="true age, years", ylabel="predicted age, years", xlim=(0, top), ylim=(0, top), aspect="equal")
    axes.legend(loc="upper left")
    return figure


@styled
def age_decades(age: Mapping) -> Figure:
    """Mean absolute error and mean signed error of each decade of true age, with intervals from ten faces on.

    Args:
        age: figures of ages, as `evaluate.age_errors` gives them.
    """
    rows = age["decades"]
    figure = _figure(4.6, 3.8)
    axes = figure.add_subplot()
    for i, (name, label) in enumerate([("mae", "mean absolute error"), ("bias", "bias, predicted minus true")]):
        values = [row[name] if row["n"] >= 10 else {**row[name], "interval": None} for row in rows]
        axes.errorbar(
            np.arange(len(rows)) + 0.2 * (i - 0.5),
            [value["value"] for value in values],
            yerr=_bars(values),
            fmt="os"[i],
            markersize=5,
            elinewidth=1.3,
            label=label,
        )
    axes.axhline(0, color=INK, linewidth=1)
    axes.set_xticks(range(len(rows)), [f"{row['decade'].split('-')[0]}s\n{row['n']:,}" for row in rows], size=8)
    axes.set(xlabel="decade of true age, faces in it", ylabel="years")
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=2)  # inside it would cover the errors
    return figure


@styled
def spread_coverage(age: Mapping) -> Figure:
    """How often the interval that a model claims around its age holds the truth.

    Args:
        age: figures of ages with `spread`, as `evaluate.age_errors` gives them.
    """
    rows = age["spread"]["coverage"]
    figure = _figure(4.6, 3.8)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    axes.errorbar(
        [row["nominal"] for row in rows],
        [row["value"] for row in rows],
        yerr=_bars(rows),
        fmt="o-",
        label="model",
    )
    least = min(0.4, *(row["interval"][0] for row in rows))
    axes.set(xlabel="claimed share", ylabel="share that holds the true age", xlim=(0.4, 1), ylim=(least, 1.02))
    axes.legend(loc="upper left")
    return figure


@styled
def groups(fairness: Mapping, names: Sequence[str] | None = None) -> Figure:
    """Every figure of every group as a dot with its interval; hollow where the group is too small to judge.

    Args:
        fairness: what `fairness.by_group` gives.
        names: which entries of its `by` to draw, one band each; default: each attribute alone, then gender x
            race.
    """
    names = [name for name in names or fairness["by"] if names or name.count(" x ") < 2]
    labels, rows, heights, y = [], [], [], 0.0
    for name in names:
        heights.append((y, name))
        y += 1
        for group in fairness["by"][name]["groups"]:
            if group["n"]:
                labels.append((y, f"{', '.join(group['group'])}  ({group['n']:,})"))
                rows.append((y, group))
                y += 1
        y += 0.4
    figures = {key: figure for key, figure in fairness["figures"].items() if rows}
    panel = max(1.55, 7.4 / max(1, len(figures)))
    figure = _figure(2.3 + panel * len(figures), 0.9 + 0.21 * y)
    panels = figure.subplots(1, len(figures), sharey=True, squeeze=False)[0]
    for axes, (key, about) in zip(panels, figures.items(), strict=True):
        axes.axvline(fairness["overall"][key]["value"], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        for small in (False, True):
            drawn = [(y, group["figures"][key]) for y, group in rows if group["too_small"] == small]
            if drawn:
                axes.errorbar(
                    [value["value"] for _, value in drawn],
                    [y for y, _ in drawn],
                    xerr=_bars([value for _, value in drawn]),
                    fmt="o",
                    color=BLUE,
                    markersize=4.5,
                    elinewidth=1.3,
                    markerfacecolor=PAPER if small else None,
                    alpha=0.55 if small else 1,
                )
        ends = [group["figures"][key]["value"] for _, group in rows]
        ends += [end for _, group in rows if not group["too_small"] for end in group["figures"][key]["interval"]]
        margin = 0.05 * (max(ends) - min(ends)) or 0.01
        axes.set_xlim(min(ends) - margin, max(ends) + margin)
        axes.set_title(about["title"].replace(", ", ",\n"), size=9.5)
        axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
        axes.tick_params(axis="x", labelsize=8)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
    panels[0].set_yticks([y for y, _ in labels], [label for _, label in labels], size=8.5)
    panels[0].set_ylim(y, -0.6)
    for y, name in heights:
        panels[0].text(
            -0.03,
            y,
            name,
            weight="bold",
            size=9,
            ha="right",
            va="center",
            transform=panels[0].get_yaxis_transform(),
        )
    return figure


@styled
def cells(fairness: Mapping, name: str, figure_name: str) -> Figure:
    """One figure over all cells of two or three attributes; the last runs across, grey cells are too small.

    Args:
        fairness: what `fairness.by_group` gives.
        name: entry of its `by`, e.g. "gender x race x age group".
        figure_name: which figure, e.g. "gender_accuracy".
    """
    groups = fairness["by"][name]["groups"]
    down = list(dict.fromkeys(", ".join(group["group"][:-1]) for group in groups))
    across = list(dict.fromkeys(group["group"][-1] for group in groups))
    shape = (len(down), len(across))
    values = np.array([group["figures"][figure_name]["value"] for group in groups], dtype=float).reshape(shape)
    n = np.array([group["n"] for group in groups]).reshape(shape)
    small = np.array([group["too_small"] for group in groups]).reshape(shape)
    about = fairness["figures"][figure_name]
    badness = {"high": -values, "low": values, "zero": np.abs(values)}[about["better"]]
    judged = badness[~small]
    figure = _figure(1.25 + 0.46 * shape[1], 0.75 + 0.32 * shape[0])
    axes = figure.add_subplot()
    low, high = (judged.min(), judged.max()) if judged.size else (0, 1)
    high = max(high, low + 1e-9)
    shown = np.ma.masked_array(badness, small)
    axes.pcolormesh(shown, cmap=ORANGES, vmin=low, vmax=high, edgecolors=PAPER, linewidth=1.2)
    for (i, j), value in np.ndenumerate(values):
        if n[i, j]:
            ink = PAPER if not small[i, j] and badness[i, j] > low + 0.75 * (high - low) else INK
            text = f"{value:.2f}".removeprefix("0") if about["better"] == "high" else f"{value:.1f}"
            alpha = 0.45 if small[i, j] else 1
            _write(axes, j + 0.5, i + 0.4, text, ink, 8, alpha=alpha)
            _write(axes, j + 0.5, i + 0.77, f"{n[i, j]:,}", ink, 6, alpha=alpha)
    axes.set_xticks(np.arange(shape[1]) + 0.5, across, size=8)
    axes.set_yticks(np.arange(shape[0]) + 0.5, down, size=8)
    axes.tick_params(length=0)
    axes.set(xlim=(0, shape[1]), ylim=(shape[0], 0), title=about["title"])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


@styled
def training_curves(history: Sequence[Mapping]) -> Figure:
    """Every figure of a training history against the epoch, but its time: training and validation in one panel.

    Args:
        history: one mapping for each epoch, in their order, of numbers such as "loss" and "val_loss"; a number may be
            absent in some. Epochs are counted from 1 here, as Keras prints them.
    """
    keys = [key for key in dict.fromkeys(key for row in history for key in row) if key not in ("epoch", "seconds")]
    keys = [key for key in keys if any(isinstance(row.get(key), int | float) for row in history)]
    names = list(dict.fromkeys(key.removeprefix("val_") for key in keys))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = _figure(9.6 if columns > 1 else 4.6, 2.35 * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        for i, (key, label) in enumerate([(name, "training"), (f"val_{name}", "validation")]):
            points = [(at, row[key]) for at, row in enumerate(history, 1) if isinstance(row.get(key), int | float)]
            if points:
                axes.plot(*zip(*points, strict=True), color=LIGHT[3 + i], label=label, marker="o" * (len(points) < 3))
        axes.set_title(name.replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        if name in ("learning_rate", "lr"):
            axes.set_yscale("log")
        elif f"val_{name}" in keys:
            axes.legend(fontsize=8)
    for axes in panels[(rows - 1) * columns : len(names)]:
        axes.set_xlabel("epoch")
    for axes in panels[len(names) :]:
        axes.remove()
    return figure


@styled
def comparison(rows: Sequence[Mapping]) -> Figure:
    """Runs beside each other: left every seed and the mean, right the difference from the first with its interval.

    Args:
        rows: those of one figure, as `compare.compare` gives them.
    """
    figure = _figure(9.6, 0.95 + 0.34 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    for y, row in enumerate(rows):
        left.plot(row["seeds"], [y] * len(row["seeds"]), "o", color=BLUE, markersize=4, alpha=0.45)
    left.plot([row["value"] for row in rows], range(len(rows)), "|", color=INK, markersize=13, markeredgewidth=2)
    differences = [(y, row["difference"]) for y, row in enumerate(rows) if "difference" in row]
    right.axvline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    for single in (False, True):  # hollow, where one seed cannot show the luck of training
        drawn = [(y, one) for y, one in differences if (min(len(rows[i]["seeds"]) for i in (0, y)) == 1) == single]
        if drawn:
            right.errorbar(
                [one["value"] for _, one in drawn],
                [y for y, _ in drawn],
                xerr=_bars([one for _, one in drawn]),
                fmt="o",
                color=BLUE,
                markersize=5,
                elinewidth=1.5,
                markerfacecolor=PAPER if single else None,
            )
    left.set_yticks(range(len(rows)), [row["name"] for row in rows])
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_title("every seed, and the mean")
    right.set_title("difference from the first, 95 % interval")  # whose name may be a long path
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure


@styled
def harm(harm: Mapping) -> Figure:
    """Every figure against the strength of a harm, from undamaged (left) to severe; accuracies beside the age's error.

    Args:
        harm: one of those that `robustness.robustness` gives.
    """
    names = ["none" if strength is None else f"{strength:g}" for strength in harm["strengths"]]
    figures = harm["figures"]
    panels = [[name for name in figures if name != "age error"], [name for name in figures if name == "age error"]]
    panels = [panel for panel in panels if panel]
    figure = _figure(9.6 if len(panels) > 1 else 5.4, 3.3)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for colour, name in zip(LIGHT[3:] * 2, panel, strict=False):
            values, label = figures[name], name.removesuffix(" accuracy").replace("_", " ")
            low, high = zip(*(value["interval"] or [value["value"]] * 2 for value in values), strict=True)
            axes.plot(names, [value["value"] for value in values], "o-", color=colour, markersize=4, label=label)
            axes.fill_between(names, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel(harm["unit"], size=8.5)
        if panel == ["age error"]:
            axes.set_title("age error, years")
            axes.set_ylim(0)
        else:
            axes.set_title("accuracy")
            axes.set_ylim(0, 1.02)
            axes.legend(loc="lower left", fontsize=8)
    return figure


@styled
def roc(results: Mapping[str, Mapping]) -> Figure:
    """True accepts against false accepts on a logarithmic axis, which ends where fewer than ten negatives stand.

    Args:
        results: name of a curve -> what `tfface.evaluation.verification.verify_folds` gave.
    """
    figure = _figure(5.2, 3.8)
    axes = figure.subplots()
    least = min(0.1, *(20 / result["n"] for result in results.values()))  # half of the pairs are of two people
    for index, (name, result) in enumerate(results.items()):
        false, true = np.array(result["roc"]).T
        first = np.searchsorted(false, least, side="right") - 1  # what is accepted at `least` itself
        label = f"{name}: {result['accuracy']:.2%}"
        axes.plot(
            false[first:].clip(least), true[first:], color=LIGHT[3 + index % 4], label=label, drawstyle="steps-post"
        )
    axes.set_xscale("log")
    axes.set_xlim(least, 1)
    axes.set_xlabel("false accept rate")
    axes.set_ylabel("true accept rate")
    axes.legend(fontsize=8, loc="lower right")
    return figure


@styled
def sheet(images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 6) -> Figure:
    """Pictures with a caption under each, such as the worst mistakes.

    Args:
        images: (height, width, 3) uint8 RGB each; sizes may differ.
        captions: one for each; a comma ends a line.
        columns: pictures in a row.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.62 * columns, 2.15 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(0.01, 0.2 / rows, 0.99, 0.99, wspace=0.06, hspace=0.3)  # room for three lines
    for axes, image, caption in zip(panels, images, captions, strict=False):
        axes.imshow(image)
        font = Path(font_file(frozenset(caption)))  # the rest of a figure is text, which who shows it has fonts for
        axes.set_title("\n".join(caption.split(", ")[:3]), font=font, size=7, loc="center", y=0, va="top", pad=-4)
    for axes in panels:
        axes.axis("off")
    return figure

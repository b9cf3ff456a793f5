"""How much each block of a network suffers from a cut, and the ratios for the blocks that follow from it."""

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from tfface.errors import UserError
from tfface.pruning.graph import ChannelGroup
from tfface.pruning.importance import choose, importance
from tfface.pruning.surgery import cut, silence


def sensitivity(
    model: keras.Model,
    groups: Sequence[ChannelGroup],
    evaluate: Callable[[object], float],
    ratios: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    scores: Mapping[str, np.ndarray] | None = None,
    higher_is_better: bool = True,
) -> list[dict]:
    """Measure a network again and again with one block cut by one ratio, without retraining.

    The channels are silenced and not cut out, which gives the same outputs (`silence`) and spares the building and
    compiling of a network for each cell of the table. One evaluation for each block and ratio, and one of the whole.

    Reference: Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017), figure 2b: layers differ in how much a
    cut costs.

    Args:
        model: a functional or sequential model; it is left as it is, the measurements are made on a copy.
        groups: what `channel_groups` found; groups of one `block` are cut together, their units ranked together as by
            the scope "block", for which the ratios are.
        evaluate: function of a model that gives its accuracy or its loss on held-out data.
        ratios: shares of each block's units to cut, in (0, 1).
        scores: what `importance` gave; the L1 norm by default.
        higher_is_better: False where `evaluate` gives a loss.

    Returns:
        Rows `{"block", "units", "ratio", "value", "drop"}`: `drop` is how much worse than the whole network it is;
        `ratio` is 0 in the first row of each block.
    """
    copy = cut(model, {}, groups)
    weights = copy.get_weights()
    scores = importance(model, groups, "l1") if scores is None else scores
    base = float(evaluate(copy))
    blocks = {}
    for group in groups:
        blocks.setdefault(group.block, []).append(group)
    rows = []
    for block, members in blocks.items():
        units = sum(group.width for group in members)
        rows.append({"block": block, "units": units, "ratio": 0.0, "value": base, "drop": 0.0})
        for ratio in sorted(ratios):
            silence(copy, choose(members, scores, ratio, "block", multiple_of=1), groups)
            value = float(evaluate(copy))
            copy.set_weights(weights)
            drop = base - value if higher_is_better else value - base
            rows.append({"block": block, "units": units, "ratio": float(ratio), "value": value, "drop": drop})
    return rows


def ratios_from_sensitivity(
    table: Sequence[Mapping], drop: float | None = None, ratio: float | None = None
) -> dict[str, float]:
    """Choose a ratio for each block so that none costs more than another: the tougher a block, the more is cut.

    Each block gets the largest ratio at which its `drop` is still within one tolerance for all. Between measured
    ratios the drop is taken to be linear, and never to fall again. Give the tolerance itself, or the overall share R
    of units to cut, for which the tolerance is then sought: as in the pruning of the occluded-face network ("the
    ratio of each block by its sensitivity", R = 0.1 ... 0.5).

    Args:
        table: rows of `sensitivity`.
        drop: tolerated drop, in the unit of the table, >= 0.
        ratio: overall share of units to cut, in [0, 1).

    Returns:
        Block -> ratio, for `choose(..., scope="block")`.

    Raises:
        UserError: not exactly one of `drop` and `ratio`, or the measured ratios do not reach R.
    """
    if (drop is None) == (ratio is None):
        raise UserError(
            f"Ratios follow from a tolerated drop or from an overall ratio: expected exactly one of them. "
            f"Received: drop={drop}, ratio={ratio}."
        )
    curves = {}
    for row in sorted(table, key=lambda row: row["ratio"]):
        curves.setdefault(row["block"], []).append((row["ratio"], row["drop"], row["units"]))
    blocks = {block: np.array(points, float).T for block, points in curves.items()}
    units = np.array([points[2, 0] for points in blocks.values()])

    def at(tolerance):
        return np.array([_largest(points[0], points[1], tolerance) for points in blocks.values()])

    if drop is not None:
        return dict(zip(blocks, at(drop).tolist(), strict=True))
    share = lambda ratios: float(ratios @ units / units.sum())  # noqa: E731
    low, high = -1.0, max(points[1].max() for points in blocks.values())
    most = share(at(high))
    if ratio > most:
        raise UserError(
            f"An overall ratio of {ratio} is out of the table's reach: its largest ratios cut {most:.3f} of all units. "
            "Measure larger ratios."
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(at(middle)) < ratio else (low, middle)
    # Where a drop is flat, the share jumps at one tolerance: between both sides of the jump lies the wanted share.
    under, over = at(low), at(high)
    gap = share(over) - share(under)
    mixed = under + (over - under) * ((ratio - share(under)) / gap if gap else 0.0)
    return dict(zip(blocks, mixed.tolist(), strict=True))


def _largest(ratios, drops, tolerance):
    """The largest ratio whose drop is within the tolerance, on the line through the measured points."""
    drops = np.maximum.accumulate(np.maximum(drops, 0.0))
    within = np.flatnonzero(drops <= tolerance)
    if not within.size:
        return 0.0
    last = within[-1]
    if last == len(ratios) - 1:
        return ratios[-1]
    rise = (tolerance - drops[last]) / (drops[last + 1] - drops[last])
    return ratios[last] + rise * (ratios[last + 1] - ratios[last])


def plot_sensitivity(table: Sequence[Mapping], what: str = "accuracy", most: int = 8):
    """Draw a table of `sensitivity`: what is left against the ratio, one line a block.

    Args:
        table: rows of `sensitivity`.
        what: name of the measured number, for the axis.
        most: so many blocks are named, those that suffer most first; the others are drawn faintly.

    Returns:
        A matplotlib figure, for `tfface.evaluation.plots.save` or `svg`.
    """
    from tfface.evaluation import plots

    return plots.styled(_draw)(table, what, most)


def _draw(table, what, most):
    from matplotlib.figure import Figure

    from tfface.evaluation.plots import FAINT, LIGHT

    curves = {}
    for row in table:
        curves.setdefault(row["block"], []).append((row["ratio"], row["value"], row["drop"]))
    worst = sorted(curves, key=lambda block: -sum(drop for *_, drop in curves[block]))
    colours = LIGHT[3:]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for rank, block in reversed(list(enumerate(worst))):
        ratios, values, _ = zip(*sorted(curves[block]), strict=True)
        if rank < most:
            dashes = ("-", "--", ":", "-.")[rank // len(colours) % 4]
            axes.plot(ratios, values, dashes, marker=".", color=colours[rank % len(colours)], label=block)
        else:
            axes.plot(ratios, values, color=FAINT, linewidth=1.2, zorder=1)
    axes.set_xlabel("share of the block's channels that is cut")
    axes.set_ylabel(what)
    handles, labels = axes.get_legend_handles_labels()
    title = "most sensitive first" if len(curves) > 1 else None
    if len(curves) > most:
        title = f"the {most} most sensitive of {len(curves)}"
    axes.legend(handles[::-1], labels[::-1], title=title, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure

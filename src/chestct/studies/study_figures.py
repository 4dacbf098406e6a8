"""The ablation as plots: accuracy over t, and each class's sensitivity row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from chestct.evaluation.figures import COLORS, DASHES
from chestct.evaluation.intervals import Estimate
from chestct.studies.roi_ablation import Row
from chestct.studies.row_figures import TableRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
"""One per colour, for print without colour."""
_SPREAD = 0.006


def draw_accuracies(rows: Sequence[TableRow[Row]]) -> Figure:
    """Accuracy over t with Wilson's intervals: a panel per network, a curve per gating."""
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(each.row.network for each in rows))
    gatings = list(dict.fromkeys(each.row.gating for each in rows))
    size = (1.2 + 2.6 * len(networks), 3.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for axes, network in zip(panels, networks, strict=True):
        for number, gating in enumerate(gatings):
            curve = [e for e in rows if e.row.network == network and e.row.gating == gating]
            # A little aside, so that bars of equal height do not hide each other.
            aside = _SPREAD * (number - (len(gatings) - 1) / 2)
            across = [each.row.threshold + aside for each in curve]
            _draw_curve(axes, across, [e.figures.overall["accuracy"] for e in curve], number)
        axes.set_title(network, fontsize=10)
        axes.set_xlabel("t")
        axes.set_xticks(sorted({each.row.threshold for each in rows}))
        axes.margins(x=0.1)
    panels[0].set_ylabel("accuracy, 95 % interval")
    panels[0].set_ylim(-0.02, 1.02)
    _legend(figure, gatings, "gating")
    return figure


def draw_sensitivities(rows: Sequence[TableRow[Row]]) -> Figure:
    """Sensitivity of each class in every row of the table, with Wilson's intervals."""
    from matplotlib.figure import Figure

    labels = list(rows[0].predictions.labels)
    figure = Figure(figsize=(2.0 + 0.42 * len(rows), 4.6), layout="constrained")
    axes = figure.add_subplot()
    for number, label in enumerate(labels):
        across = [place + 0.22 * (number - (len(labels) - 1) / 2) for place in range(len(rows))]
        estimates = [each.figures.per_class[label]["sensitivity"] for each in rows]
        _draw_curve(axes, across, estimates, number, is_joined=False)
    names = [f"{e.row.network} {e.row.gating} t={e.row.threshold:g}" for e in rows]
    axes.set_xticks(range(len(rows)), names, rotation=60, ha="right", fontsize=8)
    axes.set_ylabel("sensitivity, 95 % interval")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    _legend(figure, labels, "class")
    return figure


def _draw_curve(
    axes: Axes,
    across: Sequence[float],
    estimates: Sequence[Estimate],
    number: int,
    *,
    is_joined: bool = True,
) -> None:
    """Points with bars for the estimates that have an interval, joined where that has a meaning."""
    known = [
        (x, e.value, e.value - e.low, e.high - e.value)
        for x, e in zip(across, estimates, strict=True)
        if e.value is not None and e.low is not None and e.high is not None
    ]
    if not known:
        return
    x, value, below, above = zip(*known, strict=True)
    axes.errorbar(
        x,
        value,
        [list(below), list(above)],
        color=COLORS[number % len(COLORS)],
        marker=MARKERS[number % len(MARKERS)],
        linestyle=DASHES[number % len(DASHES)] if is_joined else "none",
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=2,
    )


def _legend(figure: Figure, names: Sequence[str], title: str) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=COLORS[number % len(COLORS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle="none",
            label=name,
        )
        for number, name in enumerate(names)
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(names), title=title, fontsize=8
    )

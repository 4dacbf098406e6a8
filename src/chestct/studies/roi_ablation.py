"""Tables 6 and 7 of the RoI-aware 3D ResNet paper: networks by gating by t, each row a training.

Rows share the cache: gating changes nothing about the inputs, t does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chestct.errors import ChestCTError
from chestct.evaluation.figures import COLORS, DASHES, save_figure
from chestct.evaluation.intervals import Bootstrap
from chestct.evaluation.metrics import Estimate
from chestct.evaluation.report import ESTIMATE_FIELDS, FILTERS, estimate_lines, format_estimate
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.lookup import look_up
from chestct.networks.roi import PLACEMENTS
from chestct.report import as_csv, fill_markdown
from chestct.storage import write_text
from chestct.studies.study_rows import (
    Progress,
    Row,
    RowTest,
    TableRow,
    compare_rows,
    guessing,
    make_rows,
    run_study,
)
from chestct.training.plan import Plan
from chestct.training.session import TrainAll, train_all
from chestct.training.settings import RunSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


NETWORKS: Final = ("roi_resnet18", "roi_resnet50", "roi_resnet101")
GATINGS: Final = ("none", "figure")
"""Plain and RoI-aware, as in both tables; the repository's figure places the gates."""
THRESHOLDS: Final = (0.6, 0.7, 0.8)
ROI_LAYERS: Final = ("none", "text", "figure", "all", "every")
"""The plain network and the gates in four placements: two readings of the paper's four layers,
every stage, and every activation, for which the authors' memory did not suffice."""


def _row_settings(base: RunSettings, row: Row) -> RunSettings:
    """A study's settings with a row's network, gating and t."""
    settings = {**base.network.settings, "gating": row.gating}
    network = base.network.model_copy(update={"name": row.network, "settings": settings})
    overrides = {**base.recipe.overrides, "salient_threshold": row.threshold}
    recipe = base.recipe.model_copy(update={"overrides": overrides})
    return base.model_copy(update={"network": network, "recipe": recipe})


def table_rows(
    networks: tuple[str, ...] = NETWORKS,
    gatings: tuple[str, ...] = GATINGS,
    thresholds: tuple[float, ...] = THRESHOLDS,
) -> tuple[Row, ...]:
    """The rows in the papers' order: t changes fastest, the network slowest.

    Raises:
        UnknownNameError: There is no such network or gating.
        ChestCTError: A threshold is impossible, something is named twice, or nothing is.
    """
    for name in networks:
        look_up(dict.fromkeys(NETWORKS), name, kind="network of this study")
    for name in gatings:
        look_up(PLACEMENTS, name, kind="gating")
    for threshold in thresholds:
        if not 0 < threshold <= 1:
            msg = f"t = {threshold:g} is impossible. Give shares of the largest area, such as 0.8."
            raise ChestCTError(msg)
    rows = tuple(Row(*each) for each in product(networks, gatings, thresholds))
    if not rows or len(set(rows)) < len(rows):
        raise ChestCTError(
            "Name at least one network, one gating and one t, and none of them twice."
        )
    return rows


def run_ablation(plan: Plan, rows: tuple[Row, ...], *, train: TrainAll = train_all) -> Progress:
    """Train every row; see `run_study`.

    Args:
        plan: Of the whole study: settings that hold for all rows, the scans, the study's folder.
        rows: Of the table.
        train: Has the rows trained.
    """
    settings = {row: _row_settings(plan.settings, row) for row in rows}
    return run_study(plan, settings, train=train)


_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
"""One per colour, for print without colour."""
_SPREAD = 0.006


def _draw_accuracies(rows: Sequence[TableRow]) -> Figure:
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
        axes.set(xlabel="t", xticks=sorted({each.row.threshold for each in rows}))
        axes.margins(x=0.1)
    panels[0].set_ylabel("accuracy, 95 % interval")
    panels[0].set_ylim(-0.02, 1.02)
    _legend(figure, gatings, "gating")
    return figure


def _draw_sensitivities(rows: Sequence[TableRow]) -> Figure:
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
    axes.set(ylabel="sensitivity, 95 % interval", ylim=(-0.02, 1.02))
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
        marker=_MARKERS[number % len(_MARKERS)],
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
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle="none",
            label=name,
        )
        for number, name in enumerate(names)
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(names), title=title, fontsize=8
    )


_COLUMNS: Final = ("network", "gating", "threshold")
"""What rows may differ in."""
_OVERALL: Final = ("accuracy", "balanced_accuracy", "macro_auc")
_PER_CLASS: Final = ("sensitivity", "ppv", "specificity")


def _compare_pairs(rows: Sequence[TableRow]) -> tuple[RowTest, ...]:
    """Compare every two rows that differ in one column only."""
    return compare_rows(
        [
            (first, second, columns[0])
            for first, second in combinations(rows, 2)
            if len(columns := _differing_columns(first.row, second.row)) == 1
        ]
    )


def _differing_columns(first: Row, second: Row) -> list[str]:
    """The columns in which two rows differ."""
    return [name for name in _COLUMNS if getattr(first, name) != getattr(second, name)]


def _rows_csv(rows: Sequence[TableRow]) -> str:
    """One line per row and figure, with interval and counts."""
    lines = [
        [each.row.network, each.row.gating, f"{each.row.threshold:g}", *line]
        for each in rows
        for line in estimate_lines(each.figures)
    ]
    return as_csv(["network", "gating", "t", "label", "figure", *ESTIMATE_FIELDS], lines)


def _pairs_csv(tests: Sequence[RowTest]) -> str:
    """One line per test."""
    header = ["first", "second", "differ_in", "scans", "only_first_right", "only_second_right"]
    lines: list[list[object]] = [
        [t.first.name, t.second.name, t.column, t.num_scans, t.only_first, t.only_second,
         t.p_value, t.holm]
        for t in tests
    ]  # fmt: skip
    return as_csv([*header, "p_value", "p_holm"], lines)


def _as_markdown(rows: Sequence[TableRow], tests: Sequence[RowTest], remarks: Sequence[str]) -> str:
    """The whole table for people."""
    return fill_markdown(
        "chestct.studies/roi_ablation.md.j2",
        {**FILTERS, "short": _percent, "guessing": guessing},
        notice=NOT_FOR_CLINICAL_USE,
        remarks=remarks,
        rows=rows,
        tests=sorted(tests, key=lambda test: _COLUMNS.index(test.column)),
        overall=_OVERALL,
        per_class=_PER_CLASS,
    )


def _percent(estimate: Estimate) -> str:
    """As `format_estimate`, without its note, which would fill the table."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return format_estimate(estimate)
    return estimate.words


_FIGURES: Final = {"accuracy": _draw_accuracies, "sensitivity": _draw_sensitivities}
_ENDINGS: Final = (".png", ".svg")


def write_ablation(
    progress: Progress,
    folder: Path,
    *,
    remarks: Sequence[str] = (),
    bootstrap: Bootstrap | None = None,
) -> tuple[TableRow, ...]:
    """Write `table.md`, `table.csv`, `tests.csv` and the figures of the rows that are finished.

    Args:
        progress: As `run_ablation` gives it.
        folder: The study's folder.
        remarks: What a reader has to know, such as that the disease is simulated.
        bootstrap: How patients are drawn; None takes the default.

    Returns:
        The rows with their figures; none, and nothing written, when no row is finished.

    Raises:
        WriteError: The folder cannot be written.
    """
    rows = make_rows(progress.results, bootstrap)
    if not rows:
        return rows
    tests = _compare_pairs(rows)
    write_text(folder / "table.md", _as_markdown(rows, tests, [*remarks, *progress.gaps]))
    write_text(folder / "table.csv", _rows_csv(rows))
    write_text(folder / "tests.csv", _pairs_csv(tests))
    for name, draw in _FIGURES.items():
        figure = draw(rows)
        for ending in _ENDINGS:
            save_figure(figure, folder / f"{name}{ending}")
    return rows

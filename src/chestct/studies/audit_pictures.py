"""The figures of the audit report.

Only the colours below are drawn, so that a page can put its own, for light and dark, in their
place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from chestct.labels import THREE_CLASSES
from chestct.studies.audit_maseres import MaseresAudit
from chestct.studies.audit_roi import RoiAudit
from chestct.studies.published.facts import roi_facts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from chestct.evaluation.intervals import Estimate

INK: Final = "#15191e"
MUTED: Final = "#7c8690"
BLUE: Final = "#0072b2"
ORANGE: Final = "#d55e00"
GREEN: Final = "#009e73"
SOFT: Final = "#e2e6ea"

_MARKERS = ("o", "s", "^")


def draw_accuracies(audit: RoiAudit) -> Figure:
    """Accuracy of the 18 rows: printed, recomputed, Wilson's interval."""
    figure, axes = _new_axes((8.0, 4.0))
    places = [row.published.row for row in audit.rows]
    _draw_intervals(axes, places, [row.official.accuracy for row in audit.rows], "label files")
    printed = [row.published.accuracy for row in audit.rows]
    axes.plot(places, printed, "D", color=ORANGE, markersize=5, label="printed", fillstyle="none")
    axes.set_xticks(places)
    axes.set_xlabel("row of Table 7")
    axes.set_ylabel("accuracy, %")
    _legend(axes, 2)
    return figure


def draw_spe(audit: RoiAudit) -> Figure:
    """Printed SPE against recomputed PPV and specificity, one marker per class."""
    figure, axes = _new_axes((6.0, 5.0))
    axes.plot([50, 100], [50, 100], color=MUTED, linewidth=0.8)
    for kind, color in (("specificity", ORANGE), ("ppv", BLUE)):
        for index, label in enumerate(THREE_CLASSES):
            across = [row.published.spe[index] for row in audit.rows]
            up = [
                100 * (getattr(row.official.classes[label], kind).value or 0) for row in audit.rows
            ]
            name = f"{'PPV' if kind == 'ppv' else kind}, {label}"
            axes.plot(
                across, up, _MARKERS[index], color=color, markersize=5, fillstyle="none", label=name
            )
    axes.set_xlabel("SPE as printed, %")
    axes.set_ylabel("recomputed, %")
    _legend(axes, 2)
    return figure


def draw_vectors(audit: RoiAudit) -> Figure:
    """Number of studies on which two rows differ, lower triangle."""
    predicted = roi_facts().predicted
    rows = [row.published.row for row in audit.rows]
    figure, axes = _new_axes((8.0, 6.0))
    for low in rows:
        for high in rows[low:]:
            num = sum(a != b for a, b in zip(predicted[low], predicted[high], strict=True))
            weight = "bold" if num == 0 else "normal"
            color = ORANGE if num == 0 else INK
            axes.text(
                low, high, str(num), ha="center", va="center", color=color, weight=weight, size=8
            )
    axes.set_xlim(0.5, 17.5)
    axes.set_ylim(18.6, 1.4)
    axes.set_xticks(rows[:-1])
    axes.set_yticks(rows[1:])
    axes.set_xlabel("row of Table 7")
    axes.set_ylabel("row of Table 7")
    axes.grid(visible=False)
    return figure


def draw_cross_validation(audit: RoiAudit) -> Figure:
    """Errors of each row of Table 6 beside the false positives its SPE would imply."""
    figure, axes = _new_axes((8.0, 3.6))
    checks = audit.cross_validation
    places = [each.row for each in checks]
    left, right = ([place + shift for place in places] for shift in (-0.2, 0.2))
    axes.bar(left, [each.errors for each in checks], 0.36, color=BLUE, label="errors")
    implied = [each.false_positives for each in checks]
    axes.bar(right, implied, 0.36, color=ORANGE, label="false positives if SPE were specificity")
    axes.set_xticks(places)
    axes.set_xlabel("row of Table 6")
    axes.set_ylabel("cases of 307")
    _legend(axes, 2)
    return figure


def draw_patient_models(audit: MaseresAudit) -> Figure:
    """Accuracy of the three 3D networks with Wilson's interval."""
    figure, axes = _new_axes((6.0, 3.0))
    places = range(len(audit.patients))
    _draw_intervals(axes, list(places), [each.accuracy for each in audit.patients], "")
    axes.set_xticks(places, [each.name for each in audit.patients])
    axes.set_xlim(-0.5, len(audit.patients) - 0.5)
    axes.set_ylim(50, 101)
    axes.set_ylabel("accuracy, %")
    return figure


def draw_p_values(audit: MaseresAudit) -> Figure:
    """Printed p-values, those with own denominators, and McNemar's, on a logarithmic axis."""
    figure, axes = _new_axes((8.0, 4.4))
    rows = audit.p_values
    places = list(range(len(rows)))
    axes.plot(
        [row.published for row in rows], places, "D", color=ORANGE, fillstyle="none",
        label="printed",
    )  # fmt: skip
    own = [(row.own_total, place) for place, row in enumerate(rows) if row.own_total is not None]
    axes.plot(
        [value for value, _ in own], [place for _, place in own], "o", color=BLUE, markersize=4,
        label="own number of cases",
    )  # fmt: skip
    exact = {each.other: each.mcnemar.p_value for each in audit.tests}
    accuracy = [
        (exact[row.other] or 0.0, i) for i, row in enumerate(rows) if row.figure == "accuracy"
    ]
    axes.plot(
        [value for value, _ in accuracy], [place for _, place in accuracy], "s", color=GREEN,
        label="McNemar, exact",
    )  # fmt: skip
    axes.axvline(0.05, color=MUTED, linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_xticks([0.005, 0.01, 0.05, 0.1, 0.5, 1], ["0.005", "0.01", "0.05", "0.1", "0.5", "1"])
    axes.minorticks_off()
    axes.set_yticks(places, [f"{row.figure}, {row.other}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("p")
    _legend(axes, 3)
    return figure


def _draw_intervals(
    axes: Axes, places: Sequence[float], estimates: Sequence[Estimate], label: str
) -> None:
    values = [100 * (each.value or 0) for each in estimates]
    low = [v - 100 * (each.low or 0) for v, each in zip(values, estimates, strict=True)]
    high = [100 * (each.high or 0) - v for v, each in zip(values, estimates, strict=True)]
    name = label or None
    axes.errorbar(
        places, values, [low, high], fmt="o", color=BLUE, capsize=3, markersize=4, label=name
    )


def _new_axes(inches: tuple[float, float]) -> tuple[Figure, Axes]:
    """One panel in the report's colours, on no background."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    axes.grid(color=SOFT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3, color=MUTED)
    for side, spine in axes.spines.items():
        spine.set_color(MUTED)
        spine.set_visible(side in ("left", "bottom"))
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def _legend(axes: Axes, num_columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=num_columns, frameon=False, fontsize=9,
        labelcolor=INK,
    )  # fmt: skip

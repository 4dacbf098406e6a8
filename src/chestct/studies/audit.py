"""The audit of both papers' figures: recomputed, put in words, written as page, text and JSON.

The words stand in `audit.md.j2`; here is what makes their numbers.

Of colours only those below are drawn, so that a page can put its own, for light and dark, in their
place.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chestct import __version__
from chestct.evaluation.comparisons import MASERES_Z_DEFECTS
from chestct.evaluation.metrics import Estimate
from chestct.labels import THREE_CLASSES
from chestct.report.document import Report, as_markdown, as_page, fill_report
from chestct.studies.audit_maseres import MaseresAudit, ModelAudit, audit_maseres_paper
from chestct.studies.audit_roi import AGREES, HEADLINE_ROW, RoiAudit, RowAudit, audit_roi_paper
from chestct.studies.published import TableRow, percent_of, roi_facts, rounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_INK: Final = "#15191e"
_MUTED: Final = "#7c8690"
_BLUE: Final = "#0072b2"
_ORANGE: Final = "#d55e00"
_GREEN: Final = "#009e73"
_SOFT: Final = "#e2e6ea"

_MARKERS = ("o", "s", "^")


def _draw_accuracies(audit: RoiAudit) -> Figure:
    """Accuracy of the 18 rows: printed, recomputed, Wilson's interval."""
    figure, axes = _new_axes((8.0, 4.0))
    places = [row.published.row for row in audit.rows]
    _draw_intervals(axes, places, [row.official.accuracy for row in audit.rows], "label files")
    printed = [row.published.accuracy for row in audit.rows]
    axes.plot(places, printed, "D", color=_ORANGE, markersize=5, label="printed", fillstyle="none")
    axes.set(xticks=places, xlabel="row of Table 7", ylabel="accuracy, %")
    _legend(axes, 2)
    return figure


def _draw_spe(audit: RoiAudit) -> Figure:
    """Printed SPE against recomputed PPV and specificity, one marker per class."""
    figure, axes = _new_axes((6.0, 5.0))
    axes.plot([50, 100], [50, 100], color=_MUTED, linewidth=0.8)
    for kind, color in (("specificity", _ORANGE), ("ppv", _BLUE)):
        for index, label in enumerate(THREE_CLASSES):
            across = [row.published.spe[index] for row in audit.rows]
            up = [
                100 * (getattr(row.official.classes[label], kind).value or 0) for row in audit.rows
            ]
            name = f"{'PPV' if kind == 'ppv' else kind}, {label}"
            axes.plot(
                across, up, _MARKERS[index], color=color, markersize=5, fillstyle="none", label=name
            )
    axes.set(xlabel="SPE as printed, %", ylabel="recomputed, %")
    _legend(axes, 2)
    return figure


def _draw_vectors(audit: RoiAudit) -> Figure:
    """Number of studies on which two rows differ, lower triangle."""
    predicted = roi_facts().predicted
    rows = [row.published.row for row in audit.rows]
    figure, axes = _new_axes((8.0, 6.0))
    for low in rows:
        for high in rows[low:]:
            num = sum(a != b for a, b in zip(predicted[low], predicted[high], strict=True))
            weight = "bold" if num == 0 else "normal"
            color = _ORANGE if num == 0 else _INK
            axes.text(
                low, high, str(num), ha="center", va="center", color=color, weight=weight, size=8
            )
    axes.set(
        xlim=(0.5, 17.5),
        ylim=(18.6, 1.4),
        xticks=rows[:-1],
        yticks=rows[1:],
        xlabel="row of Table 7",
        ylabel="row of Table 7",
    )
    axes.grid(visible=False)
    return figure


def _draw_cross_validation(audit: RoiAudit) -> Figure:
    """Errors of each row of Table 6 beside the false positives its SPE would imply."""
    figure, axes = _new_axes((8.0, 3.6))
    checks = audit.cross_validation
    places = [each.row for each in checks]
    left, right = ([place + shift for place in places] for shift in (-0.2, 0.2))
    axes.bar(left, [each.errors for each in checks], 0.36, color=_BLUE, label="errors")
    implied = [each.false_positives for each in checks]
    axes.bar(right, implied, 0.36, color=_ORANGE, label="false positives if SPE were specificity")
    axes.set(xticks=places, xlabel="row of Table 6", ylabel="cases of 307")
    _legend(axes, 2)
    return figure


def _draw_patient_models(audit: MaseresAudit) -> Figure:
    """Accuracy of the three 3D networks with Wilson's interval."""
    figure, axes = _new_axes((6.0, 3.0))
    places = range(len(audit.patients))
    _draw_intervals(axes, list(places), [each.accuracy for each in audit.patients], "")
    axes.set_xticks(places, [each.name for each in audit.patients])
    axes.set(xlim=(-0.5, len(audit.patients) - 0.5), ylim=(50, 101), ylabel="accuracy, %")
    return figure


def _draw_p_values(audit: MaseresAudit) -> Figure:
    """Printed p-values, those with own denominators, and McNemar's, on a logarithmic axis."""
    figure, axes = _new_axes((8.0, 4.4))
    rows = audit.p_values
    places = list(range(len(rows)))
    axes.plot(
        [row.published for row in rows], places, "D", color=_ORANGE, fillstyle="none",
        label="printed",
    )  # fmt: skip
    own = [(row.own_total, place) for place, row in enumerate(rows) if row.own_total is not None]
    axes.plot(
        [value for value, _ in own], [place for _, place in own], "o", color=_BLUE, markersize=4,
        label="own number of cases",
    )  # fmt: skip
    exact = {each["other"]: each["mcnemar"].p_value for each in audit.tests}
    accuracy = [
        (exact[row.other] or 0.0, i) for i, row in enumerate(rows) if row.figure == "accuracy"
    ]
    axes.plot(
        [value for value, _ in accuracy], [place for _, place in accuracy], "s", color=_GREEN,
        label="McNemar, exact",
    )  # fmt: skip
    axes.axvline(0.05, color=_MUTED, linewidth=0.8, linestyle="--")
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
        places, values, [low, high], fmt="o", color=_BLUE, capsize=3, markersize=4, label=name
    )


def _new_axes(inches: tuple[float, float]) -> tuple[Figure, Axes]:
    """One panel in the report's colours, on no background."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    axes.grid(color=_SOFT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=3, color=_MUTED)
    for side, spine in axes.spines.items():
        spine.set_color(_MUTED)
        spine.set_visible(side in ("left", "bottom"))
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _legend(axes: Axes, num_columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=num_columns, frameon=False, fontsize=9,
        labelcolor=_INK,
    )  # fmt: skip


_COLORS: Final = {
    _INK: "currentColor",
    _MUTED: "var(--muted)",
    _BLUE: "var(--blue)",
    _ORANGE: "var(--orange)",
    _GREEN: "var(--green)",
    _SOFT: "var(--line)",
}
"""Drawn colour to the page's."""
_SCHEMA_VERSION: Final = 1
_COMMAND: Final = "chestct study audit-papers"


@dataclass(frozen=True)
class Audit:
    """Both papers recomputed."""

    roi_aware: RoiAudit
    maseres: MaseresAudit


def audit_papers() -> Audit:
    """Recompute everything from the packaged facts; needs neither network nor data."""
    return Audit(roi_aware=audit_roi_paper(), maseres=audit_maseres_paper())


def report_of(audit: Audit, *, is_whole: bool = True) -> Report:
    """The audit in words, tables and figures.

    `is_whole` has pictures and the widest tables, which a page that retells it does without.
    """
    roi, maseres = audit.roi_aware, audit.maseres
    return fill_report(
        "chestct.studies/audit.md.j2",
        _FILTERS,
        {
            "roi_accuracy": partial(_draw_accuracies, roi),
            "roi_spe": partial(_draw_spe, roi),
            "roi_vectors": partial(_draw_vectors, roi),
            "roi_table_6": partial(_draw_cross_validation, roi),
            "maseres_patients": partial(_draw_patient_models, maseres),
            "maseres_p_values": partial(_draw_p_values, maseres),
        },
        roi=roi,
        maseres=maseres,
        is_whole=is_whole,
        headline_row=HEADLINE_ROW,
        agrees=AGREES,
        labels=THREE_CLASSES,
        defects=MASERES_Z_DEFECTS,
        named=_named,
        sensitivities=_sensitivities,
        specificities=_specificities,
        pairs_in_order=_pairs_in_order,
    )


def _as_json(audit: Audit) -> str:
    """Every figure, as numbers; fractions are fractions, not per cent."""
    document = {
        "schema": "chestct.audit",
        "schema_version": _SCHEMA_VERSION,
        "chestct_version": __version__,
        **dataclasses.asdict(audit),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def table_7_lines(audit: Audit) -> list[tuple[str, ...]]:
    """The rows of Table 7, as a terminal shows them: as printed, recomputed, and what is equal."""
    return [
        (
            str(row.published.row),
            row.published.network,
            "yes" if row.published.roi else "no",
            str(row.published.t),
            f"{row.published.accuracy:.1f}",
            _with_interval(row.official.accuracy),
            _counted(row.official.accuracy),
            f"{len(row.equal_official)} of 7",
            f"{len(row.equal_workbook)} of 7",
        )
        for row in audit.roi_aware.rows
    ]


def write_audit(audit: Audit, folder: Path) -> list[Path]:
    """Write page, Markdown with its figures, and JSON.

    Raises:
        WriteError: A file cannot be written.
    """
    from chestct.storage import make_folder, write_text, write_whole

    make_folder(folder)
    report = report_of(audit)
    for picture in report.pictures:
        write_whole(folder / "figures" / f"{picture.name}.png", picture.as_png())
    return [
        write_text(folder / "audit.html", as_page(report, _COLORS, _COMMAND)),
        write_text(folder / "audit.md", as_markdown(*report.sections)),
        write_text(folder / "audit.json", _as_json(audit)),
    ]


def _counted(estimate: Estimate) -> str:
    """Hits of total, such as 115/130."""
    return f"{estimate.hits}/{estimate.total}"


def _with_interval(estimate: Estimate, digits: int = 1) -> str:
    """Per cent and interval, such as 88.5 (81.8–92.9)."""
    if estimate.low is None:
        return _percent(estimate, digits)
    return f"{_percent(estimate, digits)} ({_interval(estimate, digits)})"


def _percent(estimate: Estimate, digits: int = 1) -> str:
    """A proportion in per cent, without the sign; a dash where it has no cases."""
    return _fixed(percent_of(estimate, digits), digits)


def _interval(estimate: Estimate, digits: int = 1) -> str:
    """Its 95 % interval in per cent, without the sign."""
    if estimate.low is None or estimate.high is None:
        return "–"
    return "–".join(_fixed(100 * end, digits) for end in (estimate.low, estimate.high))


def _fixed(value: float | None, digits: int) -> str:
    """A number rounded half up, as it is printed; a dash where there is none."""
    return "–" if value is None else f"{rounded(value, digits):.{digits}f}"


def _listed(numbers: Sequence[int]) -> str:
    """Numbers in words, such as 1, 2 and 3."""
    words = [str(number) for number in numbers]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


_FILTERS: Final[dict[str, Callable[..., object]]] = {
    "counted": _counted,
    "with_interval": _with_interval,
    "percent": _percent,
    "interval": _interval,
    "fixed": _fixed,
    "listed": _listed,
    "in_full": lambda estimate: f"{_counted(estimate)}: {_with_interval(estimate)}",
    "of": lambda hits, total: ", ".join(f"{each}/{total}" for each in hits),
    "summed": lambda numbers: f"{' + '.join(map(str, numbers))} = {sum(numbers)}",
    "signed": lambda value: f"{rounded(value) + 0.0:+.1f}",
    "yes_or_no": lambda is_so: "yes" if is_so else "no",
}
"""How the template writes numbers."""


def _named(row: TableRow) -> tuple[str, ...]:
    """What a row of Table 6 or 7 is called: number, network, gating, t."""
    network = row.network.replace("ResNet-", "R")
    return str(row.row), network, "yes" if row.roi else "no", str(row.t)


def _sensitivities(row: RowAudit) -> tuple[str, ...]:
    """Of each class, as printed and as recomputed."""
    pairs = zip(row.published.sensitivity, row.official.classes.values(), strict=True)
    return tuple(
        cell
        for printed, scores in pairs
        for cell in (f"{printed:.1f}", _with_interval(scores.sensitivity))
    )


def _specificities(row: RowAudit) -> tuple[str, ...]:
    """Of each class SPE as printed, and both figures that it may be."""
    pairs = zip(row.published.spe, row.official.classes.values(), strict=True)
    return tuple(
        cell
        for printed, scores in pairs
        for cell in (f"{printed:.1f}", _percent(scores.ppv), _with_interval(scores.specificity))
    )


def _pairs_in_order(model: ModelAudit) -> str:
    """How many pairs of patients an AUC counts as in order; a dash where it leaves it open."""
    if model.pairs_in_order is None:
        return "–"
    return f"{model.pairs_in_order:g} of {model.num_pairs}"

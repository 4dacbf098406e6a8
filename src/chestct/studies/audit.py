"""The audit of both papers' figures: recomputed, put in words, written as page, text and JSON.

The words stand in `audit.md.j2`; here is what makes their numbers.

Of colours only those below are drawn, so that a page can put its own, for light and dark, in their
place.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Final

from chestct import __version__
from chestct.evaluation.comparisons import MASERES_Z_DEFECTS, compare
from chestct.evaluation.metrics import Estimate
from chestct.labels import THREE_CLASSES
from chestct.report import Report, as_markdown, as_page, fill_report
from chestct.studies.audit_maseres import MaseresAudit, ModelAudit, audit_maseres_paper
from chestct.studies.published import (
    Method,
    Record,
    RoiFacts,
    Scores,
    TableRow,
    as_predictions,
    counts_behind,
    nearest_count,
    percent_of,
    roi_facts,
    rounded,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _CrossValidationAudit:
    """A row of Table 6, for which there are no prediction files: what its figures imply.

    Attributes:
        row: Its number.
        accuracy: Column AC, per cent.
        errors: Wrong cases of all, from the accuracy.
        false_positives: What the three SPE figures imply if they are specificities (Eq. 14);
            every wrong case is one false positive, so this should equal `errors`.
        class_hits: Hits of each class, from the sensitivities.
        hits: Hits of all, from the accuracy.
        predicted: Cases decided on if SPE is the positive predictive value: should be all.
    """

    row: int
    accuracy: float
    errors: int
    false_positives: int
    class_hits: tuple[int, ...]
    hits: int
    predicted: int

    @property
    def is_impossible(self) -> bool:
        """Whether the SPE figures, as specificities, imply more false positives than errors."""
        return self.false_positives > self.errors

    @property
    def ratio(self) -> float:
        """The implied false positives for every error."""
        return self.false_positives / self.errors

    @property
    def is_consistent(self) -> bool:
        """Whether sensitivities and accuracy give the same hits."""
        return sum(self.class_hits) == self.hits


def _audit_cross_validation(row: TableRow, cases: Sequence[int]) -> _CrossValidationAudit:
    """What the printed figures of a row of Table 6 imply in cases."""
    total = sum(cases)
    hits = nearest_count(row.accuracy, total)
    class_hits = [nearest_count(p, n) for p, n in zip(row.sensitivity, cases, strict=True)]
    false_positives = [
        nearest_count(100 - p, total - n) for p, n in zip(row.spe, cases, strict=True)
    ]
    predicted = [int(rounded(100 * h / p, 0)) for h, p in zip(class_hits, row.spe, strict=True)]
    return _CrossValidationAudit(
        row=row.row,
        accuracy=row.accuracy,
        errors=total - hits,
        false_positives=sum(false_positives),
        class_hits=tuple(class_hits),
        hits=hits,
        predicted=sum(predicted),
    )


_FIGURES = (
    "AC",
    *(f"{label} SEN" for label in THREE_CLASSES),
    *(f"{label} SPE" for label in THREE_CLASSES),
)
"""Names of the seven figures of a row."""
_AGREES = "agrees"
_LAST_PART = "T4"


@dataclass(frozen=True)
class _RowAudit:
    """A row of Table 7 as printed and as recomputed.

    Attributes:
        published: What the paper prints.
        official: Recomputed with the labels of the label files.
        workbook: Recomputed with the labels inside the row's workbook.
        first_three: Test parts 1 to 3 alone, official labels: the 90 cases of Table 8.
        num_changed: Labels in which workbook and label files differ.
        equal_official: Printed figures that equal the recomputed ones, SPE taken as PPV.
        equal_workbook: The same with the workbook's labels.
        implied: By class, hits and decisions that are printed as this SEN and SPE; None where no
            numbers of cases are.
        verdict: Equality in words.
    """

    published: TableRow
    official: Scores
    workbook: Scores
    first_three: Scores
    num_changed: int
    equal_official: tuple[str, ...]
    equal_workbook: tuple[str, ...]
    implied: tuple[tuple[int, int] | None, ...]
    verdict: str


def _audit_row(facts: RoiFacts, published: TableRow) -> _RowAudit:
    """Recompute one row."""
    decided = facts.predicted[published.row]
    changed = facts.workbook_labels.get(published.row, {})
    labelled = zip(facts.studies, facts.official, strict=True)
    sheet = [changed[s][1] if s in changed else label for s, label in labelled]
    kept = [i for i, study in enumerate(facts.studies) if not study.startswith(_LAST_PART)]
    official, workbook = Scores.of(facts.official, decided), Scores.of(sheet, decided)
    audit = _RowAudit(
        published=published,
        official=official,
        workbook=workbook,
        first_three=Scores.of([facts.official[i] for i in kept], [decided[i] for i in kept]),
        num_changed=len(changed),
        equal_official=_equal_figures(published, official),
        equal_workbook=_equal_figures(published, workbook),
        implied=tuple(
            _counts_of_cell(sensitivity, spe, facts.official.count(label), len(facts.studies))
            for label, sensitivity, spe in zip(
                THREE_CLASSES, published.sensitivity, published.spe, strict=True
            )
        ),
        verdict="",
    )
    return replace(audit, verdict=_verdict(audit, facts))


def _counts_of_cell(
    sensitivity: float, ppv: float, cases: int, num_scans: int
) -> tuple[int, int] | None:
    """The smallest hits and decisions for a class that are printed as these two percentages."""
    for hits in counts_behind(sensitivity, cases):
        for decisions in range(max(1, hits), num_scans + 1):
            if rounded(Fraction(100 * hits, decisions)) == ppv:
                return hits, decisions
    return None


def _find_deviations(facts: RoiFacts) -> tuple[Record, ...]:
    """Every label that differs between a row's workbook and the label files.

    `workbook_row` is the line of the workbook, `effect` what the difference does to the score.
    """
    found = []
    for row, labels in facts.workbook_labels.items():
        for study, (line, label) in labels.items():
            place = facts.studies.index(study)
            official, predicted = facts.official[place], facts.predicted[row][place]
            found.append(
                {
                    "row": row,
                    "study": study,
                    "workbook_row": line,
                    "official": official,
                    "workbook": label,
                    "predicted": predicted,
                    "effect": _effect(official, label, predicted),
                }
            )
    return tuple(found)


def _recomputed_figures(scores: Scores) -> tuple[Estimate, ...]:
    """The seven figures as Table 7 has them: accuracy, sensitivities, PPV."""
    classes = scores.classes.values()
    return (
        scores.accuracy,
        *(each.sensitivity for each in classes),
        *(each.ppv for each in classes),
    )


def _equal_figures(published: TableRow, scores: Scores) -> tuple[str, ...]:
    pairs = zip(_FIGURES, published.figures, _recomputed_figures(scores), strict=True)
    return tuple(name for name, printed, found in pairs if percent_of(found) == printed)


def _effect(official: str, workbook: str, decided: str) -> str:
    if (decided == official) == (decided == workbook):
        return "none on accuracy"
    return "error counted as hit" if decided == workbook else "hit counted as error"


def _verdict(audit: _RowAudit, facts: RoiFacts) -> str:
    twin = facts.table_6[audit.published.row - 1]
    if audit.published.figures == twin.figures:
        return f"all seven figures are those of Table 6, row {twin.row}"
    if len(audit.equal_official) == len(_FIGURES):
        return _AGREES
    if len(audit.equal_workbook) == len(_FIGURES):
        return "agrees with the workbook's labels only"
    if not audit.num_changed:
        return f"agrees but for {_differing(audit)}"
    return (
        f"{_accuracy_words(audit)}; of the six class figures "
        f"{_num_class_figures(audit.equal_official)} fit the official labels and "
        f"{_num_class_figures(audit.equal_workbook)} the workbook's"
    )


def _differing(audit: _RowAudit) -> str:
    figures = zip(
        _FIGURES, audit.published.figures, _recomputed_figures(audit.official), strict=True
    )
    return ", ".join(
        f"{name} (printed {printed:.1f}, {found.hits}/{found.total} = {percent_of(found):.1f})"
        for name, printed, found in figures
        if name not in audit.equal_official
    )


def _accuracy_words(audit: _RowAudit) -> str:
    if _FIGURES[0] in audit.equal_official:
        return "AC fits the official labels"
    fits_workbook = _FIGURES[0] in audit.equal_workbook
    return "AC fits the workbook's labels" if fits_workbook else "AC fits neither labels"


def _num_class_figures(names: tuple[str, ...]) -> int:
    return len(names) - (_FIGURES[0] in names)


_HEADLINE_ROW = 18


@dataclass(frozen=True)
class _RoiAudit:
    """Everything recomputed about the RoI-aware 3D ResNet paper.

    Attributes:
        citation: The paper.
        rows: Table 7.
        deviations: Labels that differ between workbooks and label files.
        groups: Rows of Table 7 with the same predictions, in all 130 studies.
        pairs: Plain against RoI-aware.
        spe: What the SPE columns are: how many of their figures equal what, to the printed digit.
        headline: Figures of the abstract and of Table 8.
        hits_if_one_model: Hits a single model with the abstract's three sensitivities would have.
        methods: Table 8.
        mean_accuracy: Mean accuracy by t over the six networks: Table 6, Table 7, recomputed.
        cross_validation: Table 6.
    """

    citation: str
    rows: tuple[_RowAudit, ...]
    deviations: tuple[Record, ...]
    groups: tuple[tuple[int, ...], ...]
    pairs: tuple[Record, ...]
    spe: dict[str, int]
    headline: tuple[Record, ...]
    hits_if_one_model: int
    methods: tuple[Record, ...]
    mean_accuracy: dict[int, tuple[float, float, float]]
    cross_validation: tuple[_CrossValidationAudit, ...]

    def row(self, number: int) -> _RowAudit:
        """A row of Table 7 by its number."""
        return self.rows[number - 1]

    @property
    def best_rows(self) -> tuple[int, ...]:
        """Rows with the most hits by the label files."""
        hits = {row.published.row: row.official.accuracy.hits or 0 for row in self.rows}
        return tuple(number for number, found in hits.items() if found == max(hits.values()))

    @property
    def rows_of_another_accuracy(self) -> tuple[int, ...]:
        """Rows whose printed accuracy is not that of the label files."""
        return tuple(r.published.row for r in self.rows if _FIGURES[0] not in r.equal_official)

    @property
    def rows_without_fit(self) -> tuple[int, ...]:
        """Rows with an SPE figure that no label set gives as positive predictive value."""
        spe = {name for name in _FIGURES if name.endswith("SPE")}
        return tuple(
            row.published.row
            for row in self.rows
            if not spe <= {*row.equal_official, *row.equal_workbook}
        )

    @property
    def num_abstract_rows(self) -> int:
        """Cells of Table 7 that the sensitivities of the abstract stand in."""
        figures = [e for e in self.headline if e["place"] == "abstract" and "SEN" in e["figure"]]
        return len({cell for each in figures for cell in each["cells"]})

    @property
    def shared(self) -> tuple[tuple[int, ...], ...]:
        """The groups of several rows."""
        return tuple(group for group in self.groups if len(group) > 1)


def _audit_roi_paper() -> _RoiAudit:
    """Recompute all that the packaged facts allow."""
    facts = roi_facts()
    rows = tuple(_audit_row(facts, published) for published in facts.table_7)
    totals = tuple(facts.official.count(label) for label in THREE_CLASSES)
    return _RoiAudit(
        citation=facts.citation,
        rows=rows,
        deviations=_find_deviations(facts),
        groups=_same_predictions(facts),
        pairs=_pairs(facts),
        spe=_spe_fits(rows),
        headline=_headline(facts, totals),
        hits_if_one_model=sum(
            nearest_count(percent, total)
            for percent, total in zip(facts.abstract.sensitivity, totals, strict=True)
        ),
        methods=tuple(_audit_method(method, facts) for method in facts.table_8),
        mean_accuracy={t: _means(facts, rows, t) for t in (60, 70, 80)},
        cross_validation=tuple(
            _audit_cross_validation(row, facts.cross_validation_cases) for row in facts.table_6
        ),
    )


def _same_predictions(facts: RoiFacts) -> tuple[tuple[int, ...], ...]:
    """Rows of Table 7 grouped by their vector of predictions."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, predicted in facts.predicted.items():
        groups.setdefault(predicted, []).append(row)
    return tuple(tuple(rows) for rows in groups.values())


def _pairs(facts: RoiFacts) -> tuple[Record, ...]:
    aware = {(row.network, row.t): row.row for row in facts.table_7 if row.roi}
    plain = {(row.network, row.t): row.row for row in facts.table_7 if not row.roi}
    return tuple(_audit_pair(facts, key, (plain[key], row)) for key, row in aware.items())


def _audit_pair(facts: RoiFacts, key: tuple[str, int], rows: tuple[int, int]) -> Record:
    """The plain and the RoI-aware network of one depth and one t, by their rows of Table 7.

    `points` is the accuracy of the RoI-aware network minus the plain one's; `p_value` that of
    McNemar's exact test with the official labels, None where both files are the same.
    """
    plain, aware = (facts.predicted[row] for row in rows)
    num_different = sum(a != b for a, b in zip(plain, aware, strict=True))
    judged = [as_predictions(facts.official, each, THREE_CLASSES) for each in (aware, plain)]
    (test,) = compare(judged[0], judged[1], "mcnemar")
    return {
        "network": key[0],
        "t": key[1],
        "rows": rows,
        "num_different": num_different,
        "points": 100 * (test.estimate or 0.0),
        "p_value": test.p_value if num_different else None,
    }


def _spe_fits(rows: tuple[_RowAudit, ...]) -> dict[str, int]:
    """How many of the SPE figures of Table 7 equal PPV or specificity under each set of labels."""
    found = {"num_figures": 0, "ppv_official": 0, "ppv_workbook": 0, "ppv_either": 0}
    found |= {"specificity_official": 0, "specificity_workbook": 0}
    for row in rows:
        for label, printed in zip(THREE_CLASSES, row.published.spe, strict=True):
            official, workbook = row.official.classes[label], row.workbook.classes[label]
            ppv = [percent_of(each.ppv) == printed for each in (official, workbook)]
            found["num_figures"] += 1
            found["ppv_official"] += ppv[0]
            found["ppv_workbook"] += ppv[1]
            found["ppv_either"] += any(ppv)
            found["specificity_official"] += percent_of(official.specificity) == printed
            found["specificity_workbook"] += percent_of(workbook.specificity) == printed
    return found


def _headline(facts: RoiFacts, totals: tuple[int, ...]) -> tuple[Record, ...]:
    """Figures of the abstract and of Table 8, and the cells of Table 7 that print the same.

    `possible_hits` among the class's test cases, or all, are printed like this.
    """
    found = []
    for place, method in (("abstract", facts.abstract), ("Table 8", facts.table_8[0])):
        figures = [("AC", method.accuracy, sum(totals))]
        of_classes = zip(THREE_CLASSES, method.sensitivity, totals, strict=True)
        figures += [(f"{label} SEN", percent, total) for label, percent, total in of_classes]
        found += [
            {
                "place": place,
                "figure": name,
                "percent": percent,
                "cells": _cells(facts, name, percent),
                "possible_hits": counts_behind(percent, total),
                "total": total,
            }
            for name, percent, total in figures
        ]
    return tuple(found)


def _cells(facts: RoiFacts, figure: str, percent: float) -> tuple[str, ...]:
    """Where Table 7 prints a figure of this class, whatever the column is called."""
    if figure == "AC":
        return tuple(f"row {row.row} AC" for row in facts.table_7 if row.accuracy == percent)
    index = THREE_CLASSES.index(figure.removesuffix(" SEN"))
    columns = [
        (f"row {row.row} {name}", values[index])
        for row in facts.table_7
        for name, values in (("SEN", row.sensitivity), ("SPE", row.spe))
    ]
    return tuple(cell for cell, value in columns if value == percent)


def _audit_method(method: Method, facts: RoiFacts) -> Record:
    """A method of Table 8: hits that are printed like its accuracy, of 90 and of 130 cases.

    `class_hits` are hits of each class among 20, 35 and 35, nearest to its sensitivities.
    """
    parts = [cases for name, cases in facts.tests.items() if name != "T4"]
    totals = [sum(column) for column in zip(*parts, strict=True)]
    pairs = zip(method.sensitivity, totals, strict=True)
    return {
        "name": method.name,
        "accuracy": method.accuracy,
        "hits_of_90": counts_behind(method.accuracy, sum(totals)),
        "hits_of_130": counts_behind(method.accuracy, len(facts.studies)),
        "class_hits": tuple(nearest_count(percent, total) for percent, total in pairs),
    }


def _means(facts: RoiFacts, rows: tuple[_RowAudit, ...], t: int) -> tuple[float, float, float]:
    return (
        mean(row.accuracy for row in facts.table_6 if row.t == t),
        mean(row.accuracy for row in facts.table_7 if row.t == t),
        mean(100 * (row.official.accuracy.value or 0.0) for row in rows if row.published.t == t),
    )


_INK: Final = "#15191e"
_MUTED: Final = "#7c8690"
_BLUE: Final = "#0072b2"
_ORANGE: Final = "#d55e00"
_GREEN: Final = "#009e73"
_SOFT: Final = "#e2e6ea"

_MARKERS = ("o", "s", "^")


def _draw_accuracies(audit: _RoiAudit) -> Figure:
    """Accuracy of the 18 rows: printed, recomputed, Wilson's interval."""
    figure, axes = _new_axes((8.0, 4.0))
    places = [row.published.row for row in audit.rows]
    _draw_intervals(axes, places, [row.official.accuracy for row in audit.rows], "label files")
    printed = [row.published.accuracy for row in audit.rows]
    axes.plot(places, printed, "D", color=_ORANGE, markersize=5, label="printed", fillstyle="none")
    axes.set(xticks=places, xlabel="row of Table 7", ylabel="accuracy, %")
    _legend(axes, 2)
    return figure


def _draw_spe(audit: _RoiAudit) -> Figure:
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


def _draw_vectors(audit: _RoiAudit) -> Figure:
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


def _draw_cross_validation(audit: _RoiAudit) -> Figure:
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

    roi_aware: _RoiAudit
    maseres: MaseresAudit


def audit_papers() -> Audit:
    """Recompute everything from the packaged facts; needs neither network nor data."""
    return Audit(roi_aware=_audit_roi_paper(), maseres=audit_maseres_paper())


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
        headline_row=_HEADLINE_ROW,
        agrees=_AGREES,
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


def _sensitivities(row: _RowAudit) -> tuple[str, ...]:
    """Of each class, as printed and as recomputed."""
    pairs = zip(row.published.sensitivity, row.official.classes.values(), strict=True)
    return tuple(
        cell
        for printed, scores in pairs
        for cell in (f"{printed:.1f}", _with_interval(scores.sensitivity))
    )


def _specificities(row: _RowAudit) -> tuple[str, ...]:
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

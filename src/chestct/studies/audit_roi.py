"""The RoI-aware 3D ResNet paper's results, recomputed from what its repository publishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

from chestct.evaluation.comparisons import compare
from chestct.evaluation.intervals import Estimate
from chestct.labels import THREE_CLASSES
from chestct.studies.audit_cross_validation import CrossValidationAudit, audit_cross_validation
from chestct.studies.audit_roi_rows import Deviation, RowAudit, audit_row, find_deviations
from chestct.studies.audit_scores import (
    ClassScores,
    as_predictions,
    counts_behind,
    nearest_count,
    percent_of,
)
from chestct.studies.published.facts import Method, RoiFacts, roi_facts

HEADLINE_ROW = 18


@dataclass(frozen=True)
class PairAudit:
    """The plain and the RoI-aware network of one depth and one t.

    Attributes:
        network: "ResNet-18", "ResNet-50" or "ResNet-101".
        t: Threshold of the salient slices in per cent.
        rows: Rows of Table 7: plain, RoI-aware.
        num_different: Studies on which the two prediction files differ.
        points: Accuracy of the RoI-aware network minus the plain one's, in points.
        p_value: McNemar's exact test, official labels; None where the files are the same.
    """

    network: str
    t: int
    rows: tuple[int, int]
    num_different: int
    points: float
    p_value: float | None


@dataclass(frozen=True)
class HeadlineFigure:
    """A figure of the abstract or of Table 8, and the cells of Table 7 that print the same.

    Attributes:
        place: "abstract" or "Table 8".
        figure: Such as "CAP SEN".
        percent: As printed.
        cells: Where Table 7 has it, such as "row 6 SEN".
        possible_hits: Hits among the class's test cases that are printed like this.
        total: The class's test cases, or all.
    """

    place: str
    figure: str
    percent: float
    cells: tuple[str, ...]
    possible_hits: tuple[int, ...]
    total: int


@dataclass(frozen=True)
class MethodAudit:
    """A method of Table 8, on how many of 90 cases its figures fit.

    Attributes:
        name: As in the paper.
        accuracy: As printed, per cent.
        hits_of_90: Hits in 90 that are printed like the accuracy; empty when none.
        hits_of_130: The same for 130 cases.
        class_hits: Hits of each class among 20, 35 and 35, nearest to its sensitivities.
    """

    name: str
    accuracy: float
    hits_of_90: tuple[int, ...]
    hits_of_130: tuple[int, ...]
    class_hits: tuple[int, ...]


@dataclass(frozen=True)
class SpeFits:
    """How many of the 54 SPE figures of Table 7 equal what, to the printed digit.

    Attributes:
        num_figures: All of them.
        ppv_official: Equal to the PPV with the official labels.
        ppv_workbook: Equal to the PPV with the workbook's labels.
        ppv_either: Equal to one of these two.
        specificity_official: Equal to the specificity with the official labels.
        specificity_workbook: Equal to the specificity with the workbook's labels.
    """

    num_figures: int
    ppv_official: int
    ppv_workbook: int
    ppv_either: int
    specificity_official: int
    specificity_workbook: int


@dataclass(frozen=True)
class RoiAudit:
    """Everything recomputed about the RoI-aware 3D ResNet paper.

    Attributes:
        citation: The paper.
        rows: Table 7.
        deviations: Labels that differ between workbooks and label files.
        groups: Rows of Table 7 with the same predictions, in all 130 studies.
        pairs: Plain against RoI-aware.
        spe: What the SPE columns are.
        headline: Figures of the abstract and of Table 8.
        hits_if_one_model: Hits a single model with the abstract's three sensitivities would have.
        methods: Table 8.
        mean_accuracy: Mean accuracy by t over the six networks: Table 6, Table 7, recomputed.
        cross_validation: Table 6.
    """

    citation: str
    rows: tuple[RowAudit, ...]
    deviations: tuple[Deviation, ...]
    groups: tuple[tuple[int, ...], ...]
    pairs: tuple[PairAudit, ...]
    spe: SpeFits
    headline: tuple[HeadlineFigure, ...]
    hits_if_one_model: int
    methods: tuple[MethodAudit, ...]
    mean_accuracy: dict[int, tuple[float, float, float]]
    cross_validation: tuple[CrossValidationAudit, ...]

    def row(self, number: int) -> RowAudit:
        """A row of Table 7 by its number."""
        return self.rows[number - 1]


def audit_roi_paper() -> RoiAudit:
    """Recompute all that the packaged facts allow."""
    facts = roi_facts()
    rows = tuple(audit_row(facts, published) for published in facts.table_7)
    totals = _cases(facts)
    return RoiAudit(
        citation=facts.citation,
        rows=rows,
        deviations=find_deviations(facts),
        groups=same_predictions(facts),
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
            audit_cross_validation(row, facts.cross_validation_cases) for row in facts.table_6
        ),
    )


def same_predictions(facts: RoiFacts) -> tuple[tuple[int, ...], ...]:
    """Rows of Table 7 grouped by their vector of predictions."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, predicted in facts.predicted.items():
        groups.setdefault(predicted, []).append(row)
    return tuple(tuple(rows) for rows in groups.values())


def _cases(facts: RoiFacts) -> tuple[int, ...]:
    return tuple(facts.official.count(label) for label in THREE_CLASSES)


def _pairs(facts: RoiFacts) -> tuple[PairAudit, ...]:
    aware = {(row.network, row.t): row.row for row in facts.table_7 if row.roi}
    plain = {(row.network, row.t): row.row for row in facts.table_7 if not row.roi}
    return tuple(_audit_pair(facts, key, (plain[key], row)) for key, row in aware.items())


def _audit_pair(facts: RoiFacts, key: tuple[str, int], rows: tuple[int, int]) -> PairAudit:
    plain, aware = (facts.predicted[row] for row in rows)
    num_different = sum(a != b for a, b in zip(plain, aware, strict=True))
    judged = [as_predictions(facts.official, each, THREE_CLASSES) for each in (aware, plain)]
    (test,) = compare(judged[0], judged[1], "mcnemar")
    return PairAudit(
        network=key[0],
        t=key[1],
        rows=rows,
        num_different=num_different,
        points=100 * (test.estimate or 0.0),
        p_value=test.p_value if num_different else None,
    )


def _spe_fits(rows: tuple[RowAudit, ...]) -> SpeFits:
    cells = [
        (printed, row.official.classes[label], row.workbook.classes[label])
        for row in rows
        for label, printed in zip(THREE_CLASSES, row.published.spe, strict=True)
    ]

    def num_equal(found: Callable[[ClassScores], Estimate], *places: int) -> int:
        """Cells whose printed figure equals what is found in one of these places."""
        return sum(
            cell[0] in [percent_of(found((cell[1], cell[2])[place])) for place in places]
            for cell in cells
        )

    return SpeFits(
        num_figures=len(cells),
        ppv_official=num_equal(lambda each: each.ppv, 0),
        ppv_workbook=num_equal(lambda each: each.ppv, 1),
        ppv_either=num_equal(lambda each: each.ppv, 0, 1),
        specificity_official=num_equal(lambda each: each.specificity, 0),
        specificity_workbook=num_equal(lambda each: each.specificity, 1),
    )


def _headline(facts: RoiFacts, totals: tuple[int, ...]) -> tuple[HeadlineFigure, ...]:
    found = []
    for place, method in (("abstract", facts.abstract), ("Table 8", facts.table_8[0])):
        everyone = sum(totals)
        figures = [("AC", method.accuracy, everyone)]
        figures += [
            (f"{label} SEN", percent, total)
            for label, percent, total in zip(THREE_CLASSES, method.sensitivity, totals, strict=True)
        ]
        for name, percent, total in figures:
            cells = _cells(facts, name, percent)
            possible = counts_behind(percent, total)
            found.append(HeadlineFigure(place, name, percent, cells, possible, total))
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


def _audit_method(method: Method, facts: RoiFacts) -> MethodAudit:
    parts = [cases for name, cases in facts.tests.items() if name != "T4"]
    totals = [sum(column) for column in zip(*parts, strict=True)]
    return MethodAudit(
        name=method.name,
        accuracy=method.accuracy,
        hits_of_90=counts_behind(method.accuracy, sum(totals)),
        hits_of_130=counts_behind(method.accuracy, len(facts.studies)),
        class_hits=tuple(
            nearest_count(p, n) for p, n in zip(method.sensitivity, totals, strict=True)
        ),
    )


def _means(facts: RoiFacts, rows: tuple[RowAudit, ...], t: int) -> tuple[float, float, float]:
    return (
        mean(row.accuracy for row in facts.table_6 if row.t == t),
        mean(row.accuracy for row in facts.table_7 if row.t == t),
        mean(100 * (row.official.accuracy.value or 0.0) for row in rows if row.published.t == t),
    )

"""Every row of Table 7 of the RoI-aware 3D ResNet paper, recomputed from its prediction file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from chestct.evaluation.intervals import Estimate
from chestct.labels import THREE_CLASSES
from chestct.studies.audit_scores import Scores, counts_behind, percent_of, rounded, score
from chestct.studies.published.facts import RoiFacts, TableRow

FIGURES = (
    "AC",
    *(f"{label} SEN" for label in THREE_CLASSES),
    *(f"{label} SPE" for label in THREE_CLASSES),
)
"""Names of the seven figures of a row."""
AGREES = "agrees"
_LAST_PART = "T4"


@dataclass(frozen=True)
class RowAudit:
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


@dataclass(frozen=True)
class Deviation:
    """A label that a workbook gives differently from the label files.

    Attributes:
        row: Row of Table 7.
        study: Such as "T4-013".
        workbook_row: Line of the workbook.
        official: Label in the label files.
        workbook: Label in the workbook.
        predicted: What the row predicted.
        effect: What the difference does to the score.
    """

    row: int
    study: str
    workbook_row: int
    official: str
    workbook: str
    predicted: str
    effect: str


def audit_row(facts: RoiFacts, published: TableRow) -> RowAudit:
    """Recompute one row."""
    decided = facts.predicted[published.row]
    changed = facts.workbook_labels.get(published.row, {})
    sheet = [changed[s][1] if s in changed else label for s, label in _labelled(facts)]
    kept = [i for i, study in enumerate(facts.studies) if not study.startswith(_LAST_PART)]
    official, workbook = score(facts.official, decided), score(sheet, decided)
    audit = RowAudit(
        published=published,
        official=official,
        workbook=workbook,
        first_three=score([facts.official[i] for i in kept], [decided[i] for i in kept]),
        num_changed=len(changed),
        equal_official=_equal_figures(published, official),
        equal_workbook=_equal_figures(published, workbook),
        implied=tuple(
            counts_of_cell(sensitivity, spe, facts.official.count(label), len(facts.studies))
            for label, sensitivity, spe in zip(
                THREE_CLASSES, published.sensitivity, published.spe, strict=True
            )
        ),
        verdict="",
    )
    return replace(audit, verdict=_verdict(audit, facts))


def counts_of_cell(
    sensitivity: float, ppv: float, cases: int, num_scans: int
) -> tuple[int, int] | None:
    """The smallest hits and decisions for a class that are printed as these two percentages.

    Args:
        sensitivity: In per cent with one digit.
        ppv: The same.
        cases: Scans of the class.
        num_scans: All scans.
    """
    for hits in counts_behind(sensitivity, cases):
        for decisions in range(max(1, hits), num_scans + 1):
            if rounded(Fraction(100 * hits, decisions)) == ppv:
                return hits, decisions
    return None


def find_deviations(facts: RoiFacts) -> tuple[Deviation, ...]:
    """Every label that differs between a workbook and the label files."""
    places = {study: index for index, study in enumerate(facts.studies)}
    found = []
    for row, labels in facts.workbook_labels.items():
        for study, (line, label) in labels.items():
            official, decided = facts.official[places[study]], facts.predicted[row][places[study]]
            effect = _effect(decided == official, decided == label)
            found.append(Deviation(row, study, line, official, label, decided, effect))
    return tuple(found)


def recomputed_figures(scores: Scores) -> tuple[Estimate, ...]:
    """The seven figures as Table 7 has them: accuracy, sensitivities, PPV."""
    classes = scores.classes.values()
    return (
        scores.accuracy,
        *(each.sensitivity for each in classes),
        *(each.ppv for each in classes),
    )


def _labelled(facts: RoiFacts) -> zip[tuple[str, str]]:
    return zip(facts.studies, facts.official, strict=True)


def _equal_figures(published: TableRow, scores: Scores) -> tuple[str, ...]:
    pairs = zip(FIGURES, published.figures, recomputed_figures(scores), strict=True)
    return tuple(name for name, printed, found in pairs if percent_of(found) == printed)


def _effect(was_right: bool, counts_as_right: bool) -> str:
    if was_right == counts_as_right:
        return "none on accuracy"
    return "error counted as hit" if counts_as_right else "hit counted as error"


def _verdict(audit: RowAudit, facts: RoiFacts) -> str:
    twin = facts.table_6[audit.published.row - 1]
    if audit.published.figures == twin.figures:
        return f"all seven figures are those of Table 6, row {twin.row}"
    if len(audit.equal_official) == len(FIGURES):
        return AGREES
    if len(audit.equal_workbook) == len(FIGURES):
        return "agrees with the workbook's labels only"
    if not audit.num_changed:
        return f"agrees but for {_differing(audit)}"
    return (
        f"{_accuracy_words(audit)}; of the six class figures "
        f"{_num_class_figures(audit.equal_official)} fit the official labels and "
        f"{_num_class_figures(audit.equal_workbook)} the workbook's"
    )


def _differing(audit: RowAudit) -> str:
    figures = zip(FIGURES, audit.published.figures, recomputed_figures(audit.official), strict=True)
    return ", ".join(
        f"{name} (printed {printed:.1f}, {found.hits}/{found.total} = {percent_of(found):.1f})"
        for name, printed, found in figures
        if name not in audit.equal_official
    )


def _accuracy_words(audit: RowAudit) -> str:
    for labels, equal in (
        ("official", audit.equal_official),
        ("workbook's", audit.equal_workbook),
    ):
        if FIGURES[0] in equal:
            return f"AC fits the {labels} labels"
    return "AC fits neither labels"


def _num_class_figures(names: tuple[str, ...]) -> int:
    return len(names) - (FIGURES[0] in names)

"""Table 6 of the RoI-aware 3D ResNet paper: there are no files, so its figures are held together.

A wrong case of three classes is a false positive of exactly one class. If SPE were specificity, the
false positives it implies would add up to the number of errors; if it is the positive predictive
value, the decisions it implies add up to the number of cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chestct.studies.audit_scores import nearest_count, rounded
from chestct.studies.published.facts import TableRow


@dataclass(frozen=True)
class CrossValidationAudit:
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


def audit_cross_validation(row: TableRow, cases: Sequence[int]) -> CrossValidationAudit:
    """What the printed figures of a row of Table 6 imply in cases."""
    total = sum(cases)
    hits = nearest_count(row.accuracy, total)
    class_hits = [nearest_count(p, n) for p, n in zip(row.sensitivity, cases, strict=True)]
    false_positives = [
        nearest_count(100 - p, total - n) for p, n in zip(row.spe, cases, strict=True)
    ]
    predicted = [int(rounded(100 * h / p, 0)) for h, p in zip(class_hits, row.spe, strict=True)]
    return CrossValidationAudit(
        row=row.row,
        accuracy=row.accuracy,
        errors=total - hits,
        false_positives=sum(false_positives),
        class_hits=tuple(class_hits),
        hits=hits,
        predicted=sum(predicted),
    )

"""Rows of a study with their figures, and the paired test between two of them.

Rows are compared by the exact McNemar test on the scans that both judged. All tests of a table
together are one family, and Holm's correction is made over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic

from chestct.evaluation.comparisons import compare
from chestct.evaluation.intervals import Bootstrap, Figures, estimate_figures
from chestct.evaluation.predictions import Predictions
from chestct.studies.study_rows import RowResult, RowT


@dataclass(frozen=True)
class TableRow(Generic[RowT]):
    """One row with its figures."""

    row: RowT
    predictions: Predictions
    figures: Figures


@dataclass(frozen=True)
class RowTest(Generic[RowT]):
    """Two rows that differ in one thing.

    Attributes:
        first: One row.
        second: The other, further down the table.
        column: What they differ in.
        num_scans: Scans that both judged.
        only_first: Scans that only the first got right.
        only_second: Scans that only the second got right.
        p_value: Of the exact McNemar test, two-sided.
        holm: The same after Holm's correction over all tests of the table.
    """

    first: RowT
    second: RowT
    column: str
    num_scans: int
    only_first: int
    only_second: int
    p_value: float
    holm: float


def make_rows(
    results: Sequence[RowResult[RowT]], bootstrap: Bootstrap | None = None
) -> tuple[TableRow[RowT], ...]:
    """Figures of every row, with Wilson's intervals or a bootstrap over patients."""
    return tuple(
        TableRow(each.row, each.predictions, estimate_figures(each.predictions, bootstrap))
        for each in results
    )


def compare_rows(
    pairs: Sequence[tuple[TableRow[RowT], TableRow[RowT], str]],
) -> tuple[RowTest[RowT], ...]:
    """Test pairs of rows, each with the column they differ in, as one family."""
    tested = [_test(*pair) for pair in pairs]
    corrected = holm([each.p_value for each in tested])
    return tuple(
        replace(each, holm=p_value) for each, p_value in zip(tested, corrected, strict=True)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def on_common_scans(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """The rows of both about the scans that both judged, in each one's own order."""
    common = set(first.scans) & set(second.scans)
    one, other = (
        each.choose([i for i, scan in enumerate(each.scans) if scan in common])
        for each in (first, second)
    )
    return one, other


def scans_line(rows: Sequence[TableRow[RowT]], what: str = "scans") -> str:
    """How many inputs of whom the rows judged, in a sentence."""
    sizes = {(len(each.predictions), each.predictions.num_patients) for each in rows}
    if len(sizes) != 1:
        return f"The rows judged different numbers of {what}: some got no decision in a row."
    ((scans, patients),) = sizes
    labels = rows[0].predictions.labels
    cases = rows[0].predictions.cases.tolist()
    counted = ", ".join(f"{num} {label}" for num, label in zip(cases, labels, strict=True))
    return f"Every row judged {scans} {what} of {patients} patients: {counted}."


def guesses_line(rows: Sequence[TableRow[RowT]]) -> str:
    """Name the rows that may have learned nothing: what differs between them says little."""
    names = [each.row.name for each in rows if _is_no_better_than_a_guess(each)]
    if not names:
        return ""
    return (
        f"{len(names)} of {len(rows)} rows are not surely better than naming the most frequent "
        f"class every time, whose share is within their interval or above: {', '.join(names)}."
    )


def _is_no_better_than_a_guess(each: TableRow[RowT]) -> bool:
    low = each.figures.overall["accuracy"].low
    share = float(each.predictions.cases.max()) / max(1, len(each.predictions))
    return low is None or low <= share


def _test(first: TableRow[RowT], second: TableRow[RowT], column: str) -> RowTest[RowT]:
    one, other = on_common_scans(first.predictions, second.predictions)
    (found,) = compare(one, other, "mcnemar")
    aligned = {scan: bool(right) for scan, right in zip(other.scans, other.is_right, strict=True)}
    pairs = [
        (bool(right), aligned[scan]) for scan, right in zip(one.scans, one.is_right, strict=True)
    ]
    p_value = 1.0 if found.p_value is None else found.p_value
    return RowTest(
        first.row,
        second.row,
        column,
        num_scans=len(one),
        only_first=pairs.count((True, False)),
        only_second=pairs.count((False, True)),
        p_value=p_value,
        holm=p_value,
    )

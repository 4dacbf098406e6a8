"""The table of an ablation: every row's figures with intervals, and tests between its rows.

Rows that differ in one column only are compared by the exact McNemar test on the scans that both
judged. All these tests together are one family, and Holm's correction is made over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

from chestct.evaluation.comparisons import compare
from chestct.evaluation.intervals import Estimate, Figures, estimate_figures
from chestct.evaluation.predictions import Predictions
from chestct.evaluation.resampling import Bootstrap
from chestct.evaluation.tables import FIGURE_NAMES, format_estimate
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.studies.roi_ablation import Row, RowResult
from chestct.studies.text_tables import as_csv, as_markdown_table, p_value_text

COLUMNS: Final = ("network", "gating", "threshold")
"""What rows may differ in."""
OVERALL: Final = ("accuracy", "balanced_accuracy", "macro_auc")
PER_CLASS: Final = ("sensitivity", "ppv", "specificity")


@dataclass(frozen=True)
class TableRow:
    """One row with its figures."""

    row: Row
    predictions: Predictions
    figures: Figures


@dataclass(frozen=True)
class RowTest:
    """Two rows that differ in one thing.

    Attributes:
        first: One row.
        second: The other, further down the table.
        column: What they differ in, one of `COLUMNS`.
        num_scans: Scans that both judged.
        only_first: Scans that only the first got right.
        only_second: Scans that only the second got right.
        p_value: Of the exact McNemar test, two-sided.
        holm: The same after Holm's correction over all tests of the table.
    """

    first: Row
    second: Row
    column: str
    num_scans: int
    only_first: int
    only_second: int
    p_value: float
    holm: float


def make_rows(
    results: Sequence[RowResult], bootstrap: Bootstrap | None = None
) -> tuple[TableRow, ...]:
    """Figures of every row, with Wilson's intervals or a bootstrap over patients."""
    return tuple(
        TableRow(each.row, each.predictions, estimate_figures(each.predictions, bootstrap))
        for each in results
    )


def compare_pairs(rows: Sequence[TableRow]) -> tuple[RowTest, ...]:
    """Compare every two rows that differ in one column only."""
    pairs = [
        (first, second, columns[0])
        for first, second in combinations(rows, 2)
        if len(columns := differing_columns(first.row, second.row)) == 1
    ]
    tested = [_test(*pair) for pair in pairs]
    corrected = holm([each.p_value for each in tested])
    return tuple(
        replace(each, holm=p_value) for each, p_value in zip(tested, corrected, strict=True)
    )


def differing_columns(first: Row, second: Row) -> list[str]:
    """The columns in which two rows differ."""
    return [name for name in COLUMNS if getattr(first, name) != getattr(second, name)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def rows_csv(rows: Sequence[TableRow]) -> str:
    """One line per row and figure, with interval and counts."""
    fields = ("value", "low", "high", "method", "hits", "total", "note")
    header = ["network", "gating", "t", "label", "figure", *fields]
    lines: list[list[object]] = []
    for each in rows:
        key = [each.row.network, each.row.gating, f"{each.row.threshold:g}"]
        for label, figures in {"": each.figures.overall, **each.figures.per_class}.items():
            for name, estimate in figures.items():
                lines.append([*key, label, name, *(getattr(estimate, f) for f in fields)])
    return as_csv(header, lines)


def pairs_csv(tests: Sequence[RowTest]) -> str:
    """One line per test."""
    header = ["first", "second", "differ_in", "scans", "only_first_right", "only_second_right"]
    lines: list[list[object]] = [
        [t.first.name, t.second.name, t.column, t.num_scans, t.only_first, t.only_second,
         t.p_value, t.holm]
        for t in tests
    ]  # fmt: skip
    return as_csv([*header, "p_value", "p_holm"], lines)


def as_markdown(rows: Sequence[TableRow], tests: Sequence[RowTest], remarks: Sequence[str]) -> str:
    """The whole table for people."""
    parts = [
        "# RoI ablation: networks by gating by t",
        NOT_FOR_CLINICAL_USE,
        "\n".join(f"- {remark}" for remark in remarks),
        _scans_line(rows),
        _guesses_line(rows),
        "## All classes\n\n" + _overall(rows),
        *(f"## {FIGURE_NAMES[name]} per class\n\n" + _per_class(rows, name) for name in PER_CLASS),
        "The column that Tables 6 and 7 of the paper head SPE holds PPV.",
        "## Rows that differ in one thing\n\n" + _tests(tests),
        "p: McNemar's exact test, two-sided, on the scans that both rows judged. p (Holm): the "
        f"same after Holm's correction over all {len(tests)} tests of this table.",
        "Intervals: 95 %; Wilson for accuracy, sensitivity, specificity and PPV, a bootstrap over "
        "patients for the rest. They tell of other scans, not of other trainings: each row is one "
        "training with one seed.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scans_line(rows: Sequence[TableRow]) -> str:
    sizes = {(len(each.predictions), each.predictions.num_patients) for each in rows}
    if len(sizes) != 1:
        return "The rows judged different numbers of scans: some scans got no decision in a row."
    ((scans, patients),) = sizes
    labels = rows[0].predictions.labels
    cases = rows[0].predictions.cases.tolist()
    counted = ", ".join(f"{num} {label}" for num, label in zip(cases, labels, strict=True))
    return f"Every row judged {scans} scans of {patients} patients: {counted}."


def _guesses_line(rows: Sequence[TableRow]) -> str:
    """Name the rows that may have learned nothing: what differs between them says little."""
    names = [each.row.name for each in rows if _is_no_better_than_a_guess(each)]
    if not names:
        return ""
    return (
        f"{len(names)} of {len(rows)} rows are not surely better than naming the most frequent "
        f"class every time, whose share is within their interval or above: {', '.join(names)}."
    )


def _is_no_better_than_a_guess(each: TableRow) -> bool:
    low = each.figures.overall["accuracy"].low
    share = float(each.predictions.cases.max()) / max(1, len(each.predictions))
    return low is None or low <= share


def _test(first: TableRow, second: TableRow, column: str) -> RowTest:
    common = set(first.predictions.scans) & set(second.predictions.scans)
    one, other = (
        each.predictions.choose(
            [i for i, scan in enumerate(each.predictions.scans) if scan in common]
        )
        for each in (first, second)
    )
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


def _overall(rows: Sequence[TableRow]) -> str:
    columns = ["no", "network", "gating", "t", *(FIGURE_NAMES[name] for name in OVERALL)]
    lines = [[*_key(number, each), *_cells(each, OVERALL)] for number, each in _numbered(rows)]
    return as_markdown_table(columns, lines)


def _per_class(rows: Sequence[TableRow], name: str) -> str:
    labels = rows[0].predictions.labels if rows else ()
    lines = []
    for number, each in _numbered(rows):
        estimates = [each.figures.per_class[label][name] for label in labels]
        lines.append([*_key(number, each), *(_percent(estimate) for estimate in estimates)])
    return as_markdown_table(["no", "network", "gating", "t", *labels], lines)


def _tests(tests: Sequence[RowTest]) -> str:
    columns = ["differ in", "first", "second", "scans", "only first right", "only second right"]
    lines = [
        [t.column.replace("threshold", "t"), t.first.name, t.second.name, str(t.num_scans),
         str(t.only_first), str(t.only_second), p_value_text(t.p_value), p_value_text(t.holm)]
        for t in sorted(tests, key=lambda t: COLUMNS.index(t.column))
    ]  # fmt: skip
    return as_markdown_table([*columns, "p", "p (Holm)"], lines)


def _numbered(rows: Sequence[TableRow]) -> list[tuple[int, TableRow]]:
    return list(enumerate(rows, start=1))


def _key(number: int, each: TableRow) -> list[str]:
    return [str(number), each.row.network, each.row.gating, f"{each.row.threshold:g}"]


def _cells(each: TableRow, names: Sequence[str]) -> list[str]:
    return [_percent(each.figures.overall[name]) for name in names]


def _percent(estimate: Estimate) -> str:
    """As `format_estimate`, without its note, which would fill the table."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return format_estimate(estimate)
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"

"""The table of an ablation: every row's figures with intervals, and tests between its rows.

Rows that differ in one column only are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final

from chestct.evaluation.intervals import Estimate
from chestct.evaluation.tables import FIGURE_NAMES, format_estimate
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.studies.roi_ablation import Row
from chestct.studies.row_figures import (
    RowTest,
    TableRow,
    compare_rows,
    guesses_line,
    scans_line,
)
from chestct.text_tables import as_csv, as_markdown_table, p_value_text

COLUMNS: Final = ("network", "gating", "threshold")
"""What rows may differ in."""
OVERALL: Final = ("accuracy", "balanced_accuracy", "macro_auc")
PER_CLASS: Final = ("sensitivity", "ppv", "specificity")


def compare_pairs(rows: Sequence[TableRow[Row]]) -> tuple[RowTest[Row], ...]:
    """Compare every two rows that differ in one column only."""
    return compare_rows(
        [
            (first, second, columns[0])
            for first, second in combinations(rows, 2)
            if len(columns := differing_columns(first.row, second.row)) == 1
        ]
    )


def differing_columns(first: Row, second: Row) -> list[str]:
    """The columns in which two rows differ."""
    return [name for name in COLUMNS if getattr(first, name) != getattr(second, name)]


def rows_csv(rows: Sequence[TableRow[Row]]) -> str:
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


def pairs_csv(tests: Sequence[RowTest[Row]]) -> str:
    """One line per test."""
    header = ["first", "second", "differ_in", "scans", "only_first_right", "only_second_right"]
    lines: list[list[object]] = [
        [t.first.name, t.second.name, t.column, t.num_scans, t.only_first, t.only_second,
         t.p_value, t.holm]
        for t in tests
    ]  # fmt: skip
    return as_csv([*header, "p_value", "p_holm"], lines)


def as_markdown(
    rows: Sequence[TableRow[Row]], tests: Sequence[RowTest[Row]], remarks: Sequence[str]
) -> str:
    """The whole table for people."""
    parts = [
        "# RoI ablation: networks by gating by t",
        NOT_FOR_CLINICAL_USE,
        "\n".join(f"- {remark}" for remark in remarks),
        scans_line(rows),
        guesses_line(rows),
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


def _overall(rows: Sequence[TableRow[Row]]) -> str:
    columns = ["no", "network", "gating", "t", *(FIGURE_NAMES[name] for name in OVERALL)]
    lines = [[*_key(number, each), *_cells(each, OVERALL)] for number, each in _numbered(rows)]
    return as_markdown_table(columns, lines)


def _per_class(rows: Sequence[TableRow[Row]], name: str) -> str:
    labels = rows[0].predictions.labels if rows else ()
    lines = []
    for number, each in _numbered(rows):
        estimates = [each.figures.per_class[label][name] for label in labels]
        lines.append([*_key(number, each), *(_percent(estimate) for estimate in estimates)])
    return as_markdown_table(["no", "network", "gating", "t", *labels], lines)


def _tests(tests: Sequence[RowTest[Row]]) -> str:
    columns = ["differ in", "first", "second", "scans", "only first right", "only second right"]
    lines = [
        [t.column.replace("threshold", "t"), t.first.name, t.second.name, str(t.num_scans),
         str(t.only_first), str(t.only_second), p_value_text(t.p_value), p_value_text(t.holm)]
        for t in sorted(tests, key=lambda t: COLUMNS.index(t.column))
    ]  # fmt: skip
    return as_markdown_table([*columns, "p", "p (Holm)"], lines)


def _numbered(rows: Sequence[TableRow[Row]]) -> list[tuple[int, TableRow[Row]]]:
    return list(enumerate(rows, start=1))


def _key(number: int, each: TableRow[Row]) -> list[str]:
    return [str(number), each.row.network, each.row.gating, f"{each.row.threshold:g}"]


def _cells(each: TableRow[Row], names: Sequence[str]) -> list[str]:
    return [_percent(each.figures.overall[name]) for name in names]


def _percent(estimate: Estimate) -> str:
    """As `format_estimate`, without its note, which would fill the table."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return format_estimate(estimate)
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"

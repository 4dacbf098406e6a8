"""A table of the MASERes paper for people, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from chestct.evaluation.comparisons import MASERES_Z_DEFECTS, Comparison
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.studies.compare_with_paper import (
    POSITIVE_CLASS,
    RECOMPUTED_FROM,
    Beside,
)
from chestct.studies.maseres_rows import NetworkRow
from chestct.studies.maseres_table import Pair, PaperTable
from chestct.studies.paper_tables import percent
from chestct.studies.published.facts import maseres_facts
from chestct.studies.row_figures import TableRow, guesses_line, scans_line
from chestct.text_tables import as_markdown_table, p_value_text


@dataclass(frozen=True)
class Level:
    """One of the paper's two halves.

    Attributes:
        title: Of the table.
        inputs: What is judged, in the plural.
    """

    title: str
    inputs: str


PATIENT_LEVEL: Final = Level("MASERes paper, patient level: three networks on volumes", "scans")
SLICE_LEVEL: Final = Level("MASERes paper, slice level: six transfer networks", "slices")


def as_markdown(
    level: Level, table: PaperTable, remarks: Sequence[str], patients: PaperTable | None = None
) -> str:
    """The whole table for people."""
    notes = [*remarks, POSITIVE_CLASS, RECOMPUTED_FROM]
    notes.append(
        "Unless the inputs are the paper's own, this run's figures differ from the printed ones "
        "by the inputs too, and the two are not tested against each other."
    )
    parts = [
        f"# {level.title}",
        NOT_FOR_CLINICAL_USE,
        maseres_facts().citation,
        "\n".join(f"- {each}" for each in notes),
        scans_line(table.rows, level.inputs),
        guesses_line(table.rows),
        "## Figures\n\nIn per cent, with 95 % intervals and counts.\n\n" + _figures(table),
        *_comparisons(table),
        *_of_patients(patients),
        "Intervals: Wilson for proportions, widened to a bootstrap over patients where a patient "
        "has several inputs; that bootstrap for F1 and AUC. They tell of other patients, not of "
        "other trainings: each row is one training with one seed.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _comparisons(table: PaperTable) -> list[str]:
    if not table.pairs:
        return []
    return [
        "## Is one network right more often? McNemar's exact test\n\n" + _mcnemar(table.pairs),
        "p: two-sided, on the inputs that both judged. p (Holm): after Holm's correction over all "
        f"{len(table.pairs)} tests of this table. {_dependence(table.rows)}".rstrip(),
        "## Do two networks agree? Cohen's kappa\n\n" + _kappas(table.pairs),
        "## The paper's own test, `maseres_z`\n\nOf each figure, as in the paper's Table 5. It is "
        "shown so that the table can be set beside the printed one, and not to be relied on:\n\n"
        + "\n".join(f"- {defect}" for defect in MASERES_Z_DEFECTS)
        + "\n\n"
        + _z_tests(table.pairs),
    ]


def _of_patients(patients: PaperTable | None) -> list[str]:
    """The votes on patients, which the paper does not have."""
    if patients is None:
        return []
    header = ["network", *_names(patients)]
    lines = [
        [each.row.network, *(percent(figure.ours) for figure in patients.beside(each))]
        for each in patients.rows
    ]
    found = [
        "## By patient: the mean of a patient's slices",
        "Not in the paper, and the level on which patients are independent.",
        scans_line(patients.rows, "votes"),
        as_markdown_table(header, lines),
    ]
    return [*found, _mcnemar(patients.pairs)] if patients.pairs else found


def _figures(table: PaperTable) -> str:
    """Three lines per network: as printed, recomputed, this run's."""
    lines = []
    for row in table.rows:
        figures = table.beside(row)
        sources = {
            f"{row.row.network}, printed": [_printed(each) for each in figures],
            f"{row.row.network}, recomputed": [_recomputed(each) for each in figures],
            f"**{row.row.network}, this run**": [percent(each.ours) for each in figures],
        }
        lines += [[name, *cells] for name, cells in sources.items()]
    return as_markdown_table(["network", *_names(table)], lines)


def _names(table: PaperTable) -> list[str]:
    return [each.figure for each in table.beside(table.rows[0])]


def _printed(each: Beside) -> str:
    return "" if each.published is None else f"{100 * each.published:.4g}"


def _recomputed(each: Beside) -> str:
    return "" if each.recomputed is None else percent(each.recomputed)


def _mcnemar(pairs: Sequence[Pair]) -> str:
    columns = ["first", "second", "judged by both", "only first right", "only second right"]
    lines = [
        [*each.names, str(each.test.num_scans), str(each.test.only_first),
         str(each.test.only_second), p_value_text(each.test.p_value), p_value_text(each.test.holm)]
        for each in pairs
    ]  # fmt: skip
    return as_markdown_table([*columns, "p", "p (Holm)"], lines)


def _dependence(rows: Sequence[TableRow[NetworkRow]]) -> str:
    """Said where the test takes slices of one patient as independent."""
    if all(each.predictions.num_patients == len(each.predictions) for each in rows):
        return ""
    return (
        "The test takes slices of one patient as independent, which they are not: these p are too "
        "small. The table by patient below has sound ones."
    )


def _kappas(pairs: Sequence[Pair]) -> str:
    lines = []
    for each in pairs:
        printed = each.printed.kappa if each.printed else None
        lines.append(
            [
                *each.names,
                _kappa(each.kappa),
                "" if printed is None else f"{printed.published:.4f}",
                "" if printed is None else _kappa(printed.recomputed),
            ]
        )
    return as_markdown_table(["first", "second", "this run", "printed", "recomputed"], lines)


def _kappa(found: Comparison) -> str:
    if found.estimate is None:
        return f"- ({found.note})"
    if found.low is None or found.high is None:
        return f"{found.estimate:.4f} ({found.note})"
    return f"{found.estimate:.4f} ({found.low:.2f} to {found.high:.2f})"


def _z_tests(pairs: Sequence[Pair]) -> str:
    lines = []
    for each in pairs:
        for row in each.z:
            printed = each.printed.p_values[row.figure] if each.printed else None
            lines.append(
                [
                    *each.names,
                    row.figure,
                    _share(row.first),
                    _share(row.second),
                    "" if row.statistic is None else f"{row.statistic:.3f}",
                    p_value_text(row.p_value),
                    "" if printed is None else f"{printed.published:g}",
                    "" if printed is None else p_value_text(printed.reproduced),
                ]
            )
    columns = ["first", "second", "figure", "first's", "second's", "z", "p, one-sided"]
    return as_markdown_table([*columns, "p printed", "p recomputed"], lines)


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f}"

"""A table of the MASERes paper written down: Markdown for people, CSV and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from chestct import __version__
from chestct.evaluation.comparisons import MASERES_Z_DEFECTS, Comparison
from chestct.evaluation.intervals import Estimate
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.report.tables import as_csv, as_markdown_table, p_value_text
from chestct.storage import write_text
from chestct.studies.compare_with_paper import (
    POSITIVE_CLASS,
    RECOMPUTED_FROM,
    Beside,
    maseres_model,
    percent,
)
from chestct.studies.maseres import NetworkRow, Pair, PaperTable
from chestct.studies.published.facts import maseres_facts
from chestct.studies.row_figures import TableRow, guesses_line, scans_line


@dataclass(frozen=True)
class _Level:
    """One of the paper's two halves.

    Attributes:
        title: Of the table.
        inputs: What is judged, in the plural.
    """

    title: str
    inputs: str


PATIENT_LEVEL: Final = _Level("MASERes paper, patient level: three networks on volumes", "scans")
SLICE_LEVEL: Final = _Level("MASERes paper, slice level: six transfer networks", "slices")


def as_markdown(
    level: _Level, table: PaperTable, remarks: Sequence[str], patients: PaperTable | None = None
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


SCHEMA: Final = "chestct.maseres-table"
SCHEMA_VERSION: Final = "1.0"


def write_table(
    folder: Path,
    level: _Level,
    table: PaperTable,
    *,
    remarks: Sequence[str],
    patients: PaperTable | None = None,
) -> tuple[Path, ...]:
    """Write `table.md`, `table.csv`, `tests.csv` and `table.json`.

    Args:
        folder: The study's.
        level: Which half of the paper.
        table: With one finished row at least.
        remarks: What a reader has to know of how the rows came about.
        patients: Of slices, the votes on their patients.

    Returns:
        The files.

    Raises:
        WriteError: The folder cannot be written.
    """
    tables = {"": table} if patients is None else {"": table, "patients": patients}
    texts = {
        "table.md": as_markdown(level, table, remarks, patients),
        "table.csv": _figures_csv(table),
        "tests.csv": _tests_csv(tables),
        "table.json": _as_json(level, tables, remarks),
    }
    return tuple(write_text(folder / name, text) for name, text in texts.items())


def _figures_csv(table: PaperTable) -> str:
    """One line per network, source and figure; shares, not per cent."""
    fields = ("value", "low", "high", "method", "hits", "total", "note")
    lines: list[list[object]] = []
    for row in table.rows:
        for each in table.beside(row):
            sources = {
                "printed": None if each.published is None else Estimate(each.published),
                "recomputed": each.recomputed,
                "this run": each.ours,
            }
            lines += [
                [row.row.network, source, each.figure, *(getattr(found, f) for f in fields)]
                for source, found in sources.items()
                if found is not None
            ]
    return as_csv(["network", "source", "figure", *fields], lines)


def _tests_csv(tables: dict[str, PaperTable]) -> str:
    """One line per pair, test and figure; `level` is empty for what the table itself judges."""
    header = ["level", "first", "second", "test", "figure", "estimate", "low", "high", "statistic"]
    lines: list[list[object]] = []
    for level, table in tables.items():
        for each in table.pairs:
            test = each.test
            key = [level, *each.names]
            lines.append(
                [*key, "mcnemar", "accuracy", None, None, None, test.only_first + test.only_second,
                 test.p_value, test.holm, None]
            )  # fmt: skip
            lines += [[*key, *_comparison_cells(each, row)] for row in (each.kappa, *each.z)]
    return as_csv([*header, "p_value", "p_holm", "printed"], lines)


def _comparison_cells(pair: Pair, row: Comparison) -> list[object]:
    printed: float | None = None
    if pair.printed is not None and row.test == "kappa":
        printed = pair.printed.kappa.published
    elif pair.printed is not None:
        printed = pair.printed.p_values[row.figure].published
    return [row.test, row.figure, row.estimate, row.low, row.high, row.statistic, row.p_value,
            None, printed]  # fmt: skip


def _as_json(level: _Level, tables: dict[str, PaperTable], remarks: Sequence[str]) -> str:
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "notice": NOT_FOR_CLINICAL_USE,
        "chestct_version": __version__,
        "title": level.title,
        "citation": maseres_facts().citation,
        "remarks": list(remarks),
        "maseres_z_defects": list(MASERES_Z_DEFECTS),
        level.inputs: _table_record(tables[""]),
    }
    if "patients" in tables:
        record["patients"] = _table_record(tables["patients"])
    return json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _table_record(table: PaperTable) -> dict[str, Any]:
    return {
        "rows": [
            {
                "network": row.row.network,
                "paper_name": maseres_model(row.row.network).name,
                "num_inputs": len(row.predictions),
                "num_patients": row.predictions.num_patients,
                "figures": [asdict(each) for each in table.beside(row)],
            }
            for row in table.rows
        ],
        "pairs": [asdict(each) for each in table.pairs],
    }

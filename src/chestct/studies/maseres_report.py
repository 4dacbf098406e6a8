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
from chestct.evaluation.report import ESTIMATE_FIELDS
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.report.pages import fill_markdown
from chestct.report.tables import as_csv
from chestct.storage import write_text
from chestct.studies.compare_with_paper import (
    POSITIVE_CLASS,
    RECOMPUTED_FROM,
    maseres_model,
    percent,
)
from chestct.studies.maseres import Pair, PaperTable
from chestct.studies.published.facts import maseres_facts
from chestct.studies.study_rows import guesses_line, scans_line


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
    """The whole table for people, with the votes on patients, which the paper does not have."""
    return fill_markdown(
        "chestct.studies/maseres.md.j2",
        {"printed": _printed, "percent": _percent, "kappa": _kappa, "share": _share},
        title=level.title,
        inputs=level.inputs,
        notice=NOT_FOR_CLINICAL_USE,
        citation=maseres_facts().citation,
        remarks=[*remarks, POSITIVE_CLASS, RECOMPUTED_FROM],
        table=table,
        patients=patients,
        # The test takes slices of one patient as independent.
        is_dependent=any(
            each.predictions.num_patients < len(each.predictions) for each in table.rows
        ),
        scans_line=scans_line,
        guesses_line=guesses_line,
        defects=MASERES_Z_DEFECTS,
    )


def _printed(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.4g}"


def _percent(estimate: Estimate | None) -> str:
    return "" if estimate is None else percent(estimate)


def _kappa(found: Comparison) -> str:
    if found.estimate is None:
        return f"- ({found.note})"
    if found.low is None or found.high is None:
        return f"{found.estimate:.4f} ({found.note})"
    return f"{found.estimate:.4f} ({found.low:.2f} to {found.high:.2f})"


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
    lines: list[list[object]] = []
    for row in table.rows:
        for each in table.beside(row):
            sources = {
                "printed": None if each.published is None else Estimate(each.published),
                "recomputed": each.recomputed,
                "this run": each.ours,
            }
            lines += [
                [
                    row.row.network,
                    source,
                    each.figure,
                    *(getattr(found, f) for f in ESTIMATE_FIELDS),
                ]
                for source, found in sources.items()
                if found is not None
            ]
    return as_csv(["network", "source", "figure", *ESTIMATE_FIELDS], lines)


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

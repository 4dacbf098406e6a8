"""A manifest as a CSV file, as spreadsheets write and read it.

Needed columns: `scan`, `patient`, `label`. Known ones: `site`, `age`, `sex`, `split`, `fold`,
`excluded` (why a scan is left out), and those of `READING` that say how a scan is to be read. All
others are kept as they are.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from chestct.datasets.manifest import (
    HEADER_ROWS,
    SPLITS,
    TEST,
    TRAINING,
    VALIDATION,
    Manifest,
    ManifestError,
    ManifestRow,
    require_files,
)
from chestct.files import write_text
from chestct.lookup import unknown_name_message

NEEDED: Final = ("scan", "patient", "label")
KNOWN: Final = (*NEEDED, "site", "age", "sex", "split", "fold", "excluded")
READING: Final = ("series", "allow", "spacing_mm", "order", "unit", "slope", "intercept")
"""Columns that say how to read a scan; see `chestct.datasets.scans.read_options`."""

_SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "train": TRAINING,
    "valid": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
    "testing": TEST,
}
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M", "o": "O", "other": "O"}
_AGE_UNITS = {"Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}
_OLDEST = 130


def read_manifest(
    path: str | Path, labels: Sequence[str] = (), *, needs_files: bool = True
) -> Manifest:
    """Read a manifest; scans are looked for relative to its folder.

    Args:
        path: A CSV file with comma or semicolon, in UTF-8.
        labels: The classes in the classifier's order; empty: those of `THREE_CLASSES` that occur.
        needs_files: Whether a scan that is not there is an error.

    Raises:
        ManifestError: The file or a row of it does not fit; the message names row and remedy.
    """
    file = Path(path)
    header, lines = read_lines(file)
    rows = tuple(
        read_row(file.name, number, header, cells)
        for number, cells in enumerate(lines, start=1 + HEADER_ROWS)
        if any(cell.strip() for cell in cells)
    )
    manifest = Manifest(rows, tuple(labels), file.parent, file.name)
    if needs_files:
        require_files(manifest)
    return manifest


def write_manifest(manifest: Manifest, path: str | Path) -> Path:
    """Write a manifest; `read_manifest` gives the same rows.

    Paths of scans under the file's folder are written relative to it, others in full.

    Raises:
        WriteError: It could not be written; an older file is then still there.
    """
    file = Path(path)
    rows = _in_file_order(manifest)
    others = list(dict.fromkeys(name for row in rows for name in row.others))
    optional = [c for c in KNOWN[3:] if any(_cell(getattr(row, c)) for row in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*NEEDED, *optional, *others])
    for row in rows:
        known = [_cell(getattr(row, column)) for column in ("patient", "label", *optional)]
        scan = _written_path(manifest.path(row), file.parent)
        writer.writerow([scan, *known, *(row.others.get(name, "") for name in others)])
    return write_text(file, text.getvalue())


def parse_age(text: str) -> float | None:
    """Age in years, of "63", "63.5" or DICOM's "063Y", "018M" (PS3.5 6.2, AS); None for "".

    Raises:
        ValueError: It is no age.
    """
    stripped = text.strip().upper()
    if not stripped:
        return None
    unit = _AGE_UNITS.get(stripped[-1])
    age = float(stripped) if unit is None else float(stripped[:-1]) / unit
    if not (math.isfinite(age) and 0 <= age <= _OLDEST):
        raise ValueError(f"an age from 0 to {_OLDEST} years was expected")
    return age


def parse_sex(text: str) -> str:
    """What a table says as "F", "M", "O" or "".

    Raises:
        ValueError: It is none of these.
    """
    if not text.strip():
        return ""
    return _SEXES[text.strip().lower()]


def read_lines(file: Path, needed: Sequence[str] = NEEDED) -> tuple[list[str], list[list[str]]]:
    """Column names and cells; the delimiter is the one the header holds.

    Columns without a name, as spreadsheets leave them behind, are dropped where they are empty;
    the first one, in which pandas numbers the rows, in any case.

    Args:
        file: A CSV file with comma or semicolon, in UTF-8.
        needed: Columns it must have.

    Raises:
        ManifestError: It is no such file, lacks a column, has one twice, or a cell stands in a
            column without a name.
    """
    header, *lines = _read_cells(file, needed) or [[]]
    header = [name.strip() for name in header]
    header = [name.lower() if name.lower() in (*KNOWN, *READING) else name for name in header]
    missing = [name for name in needed if name not in header]
    if missing:
        msg = (
            f"{file.name} has no column {' and no column '.join(missing)}. Its first row must name "
            f"the columns: {', '.join(needed)}, and any of {', '.join(KNOWN[3:])}."
        )
        raise ManifestError(msg)
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise ManifestError(f"{file.name} has the column '{twice[0]}' twice. Rename one of them.")
    return _without_unnamed(file.name, header, lines)


def _read_cells(file: Path, needed: Sequence[str]) -> list[list[str]]:
    """All cells of a CSV file, line by line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        msg = f"{file} cannot be read as a manifest: {reason}. Expected a CSV file with the "
        raise ManifestError(f"{msg}columns {', '.join(needed)}.") from error
    first = text.split("\n", 1)[0]
    delimiter = ";" if ";" in first and "," not in first else ","
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ManifestError(f"{file.name} is not a well-formed CSV file: {error}.") from error


def _without_unnamed(
    name: str, header: list[str], lines: list[list[str]]
) -> tuple[list[str], list[list[str]]]:
    """The columns that have a name, and cells beyond the header; all others must be empty.

    All but the first one, in which pandas numbers the rows.
    """
    unnamed = [index for index, column in enumerate(header) if not column and index]
    for number, cells in enumerate(lines, start=1 + HEADER_ROWS):
        for index in unnamed:
            if index < len(cells) and cells[index].strip():
                msg = (
                    f"{name}, row {number}: column {index + 1} has no name but a cell here. Name "
                    "the column in row 1, or empty the cell; put text that holds a comma in double "
                    "quotes."
                )
                raise ManifestError(msg)
    named = [column for column in header if column]
    if len(named) == len(header):
        return header, lines
    # What stands beyond the header stays, to be refused with its row.
    kept = [
        [cell for column, cell in zip(header, cells, strict=False) if column] + cells[len(header) :]
        for cells in lines
    ]
    return named, kept


def read_row(name: str, number: int, header: list[str], cells: list[str]) -> ManifestRow:
    """One line of a manifest; a column that is not there is empty.

    Raises:
        ManifestError: A cell holds something impossible; the message names row and column.
    """
    if len(cells) > len(header):
        msg = (
            f"{name}, row {number}: {len(cells)} cells under {len(header)} columns. Put text that "
            "holds a comma in double quotes."
        )
        raise ManifestError(msg)
    padded = [*cells, *[""] * (len(header) - len(cells))]
    row = {column: cell.strip() for column, cell in zip(header, padded, strict=True)}
    return ManifestRow(
        scan=row["scan"],
        patient=row["patient"],
        label=row.get("label", ""),
        site=row.get("site", ""),
        age=_age(name, number, row),
        sex=_sex(name, number, row),
        split=_split(name, number, row),
        fold=_fold(name, number, row),
        excluded=row.get("excluded", ""),
        others={column: cell for column, cell in row.items() if column not in KNOWN},
        number=number,
    )


def _age(name: str, number: int, row: Mapping[str, str]) -> float | None:
    try:
        return parse_age(row.get("age", ""))
    except ValueError:
        msg = f"{name}, row {number}: age must be years from 0 to {_OLDEST} or empty"
        raise ManifestError(f"{msg}, not '{row['age']}'.") from None


def _sex(name: str, number: int, row: Mapping[str, str]) -> str:
    try:
        return parse_sex(row.get("sex", ""))
    except KeyError:
        msg = f"{name}, row {number}: sex must be F, M, O or empty, not '{row['sex']}'."
        raise ManifestError(msg) from None


def _split(name: str, number: int, row: Mapping[str, str]) -> str:
    given = row.get("split", "")
    if given and given.lower() not in _SPLIT_NAMES:
        message = unknown_name_message(given, SPLITS, kind="split")
        raise ManifestError(f"{name}, row {number}: {message}")
    return _SPLIT_NAMES[given.lower()] if given else ""


def _fold(name: str, number: int, row: Mapping[str, str]) -> int | None:
    given = row.get("fold", "")
    if not given:
        return None
    if not given.isdecimal() or int(given) < 1:
        msg = f"{name}, row {number}: fold must be a whole number from 1 or empty, not '{given}'."
        raise ManifestError(msg)
    return int(given)


def _in_file_order(manifest: Manifest) -> list[ManifestRow]:
    """All rows; excluded ones stand where they stood."""
    if not manifest.excluded:
        return list(manifest.rows)
    return sorted((*manifest.rows, *manifest.excluded), key=lambda row: row.number)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _written_path(scan: Path, folder: Path) -> str:
    full, base = Path(os.path.abspath(scan)), Path(os.path.abspath(folder))
    return full.relative_to(base).as_posix() if full.is_relative_to(base) else str(full)

"""Labels from a spreadsheet as people have it, joined to the scans that lie in a folder.

A row names its scan by a path or name in the folder, or its patient by the name of a folder or
file; what a cell of the label column stands for, the classes say. Findings have a column each in
its place, whose cells say yes, no, or nothing. Everything that does not fit is
said before any scan is read: with what it is, where, and how it is mended.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from chestct.datasets.manifest import (
    KNOWN,
    NEEDED,
    Manifest,
    ManifestError,
    ManifestRow,
    read_finding,
    read_row,
)
from chestct.datasets.public import scans_below, stem
from chestct.extras import import_extra
from chestct.labels import FINDING_PREFIX, LabelSet, classes_among, yes_no
from chestct.lookup import first_of, unknown_name_message
from chestct.report import from_cell

_MOST_BYTES: Final = 2**26
_MOST_UNPACKED: Final = 2**29
_DELIMITERS: Final = ";\t,|"
_SAID_DELIMITER: Final = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_TRUTH_VALUES: Final = {"yes", "no", "y", "n", "true", "false", "1", "0"}


@dataclass(frozen=True)
class _Spreadsheet:
    """A table's cells as text, by row number as a spreadsheet counts; empty rows are left out."""

    name: str
    header: tuple[str, ...]
    rows: Mapping[int, Sequence[str]]


@dataclass(frozen=True)
class Columns:
    """Which columns hold the class, the scan's path or name in the folder, and the patient.

    Empty: those called so.
    """

    label: str = ""
    scan: str = ""
    patient: str = ""


def read_spreadsheet(file: Path, sheet: str = "") -> _Spreadsheet:
    """Read a CSV file of any usual separator and encoding, or a sheet of an Excel workbook.

    The first row names the columns. An empty `sheet` is the only one that is not empty.

    Raises:
        ManifestError: It cannot be read, has no rows, several sheets, or a column twice.
        MissingExtraError: It is a workbook, and openpyxl is not installed.
    """
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ManifestError(
                f"{file} is larger than {_MOST_BYTES} bytes: not a table of labels."
            )
        if file.suffix.lower() in (".xlsx", ".xlsm"):
            lines = _excel_lines(file, sheet)
        else:
            lines = _csv_lines(file, sheet)
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        msg = f"The labels {file} cannot be read: {reason}. Give a CSV file or an Excel workbook"
        raise ManifestError(f"{msg} (.xlsx).") from error
    filled = {number: cells for number, cells in lines.items() if any(cells)}
    if len(filled) < 2:
        raise ManifestError(
            f"{file.name} has no rows. Expected the names of the columns, and a row per scan or "
            "patient below."
        )
    first, *others = filled
    header = tuple(filled[first])
    twice = [name for name, times in Counter(filter(None, header)).items() if times > 1]
    if twice:
        raise ManifestError(f"{file.name} has the column '{twice[0]}' twice. Rename one of them.")
    rows = {number: _fitted(file.name, number, header, filled[number]) for number in others}
    return _Spreadsheet(file.name, header, rows)


def _fitted(name: str, number: int, header: Sequence[str], cells: Sequence[str]) -> list[str]:
    """A row as long as the header; what stands under no name is refused, but row numbers."""
    for index, cell in enumerate(cells):
        if cell and index and not (index < len(header) and header[index]):
            msg = f"{name}, row {number}: '{cell}' in column {index + 1} stands under no name. Name"
            raise ManifestError(f"{msg} the column in the first row, or empty the cell.")
    return [*cells, *[""] * len(header)][: len(header)]


def join_labels(
    folder: Path,
    table: _Spreadsheet,
    columns: Columns,
    labels: LabelSet | None = None,
    *,
    takes_matched_only: bool = False,
) -> tuple[Manifest, tuple[str, ...]]:
    """Give the scans in or anywhere below a folder the labels of a table; other columns are kept.

    `labels` are the classes and what stands for each, or findings, each with a column of its name;
    None: the classes that the column holds. `takes_matched_only` leaves out scans without a row and
    rows without a scan or label.

    Returns:
        The manifest, and what should be known about it.

    Raises:
        ManifestError: A column is missing, or a row or scan does not fit; the message names them.
    """
    place = folder.absolute()
    scans, masks = scans_below(place)
    if not scans:
        raise ManifestError(f"No scan lies in {folder} or below. Name the folder of the scans.")
    found = _class_columns(table, columns, labels)
    scan, patient = _scan_columns(table, columns)
    known = labels or _labels_of(table, found["label"])
    cells = {
        number: dict(zip(table.header, row, strict=True)) for number, row in table.rows.items()
    }
    matched = _matched(table, place, scans, cells, scan or patient, is_scan=bool(scan))
    said = {number: _said_of(table, number, row, found, known) for number, row in cells.items()}
    left = _left_out(folder, table, scans, matched, said, takes_matched_only)
    taken = {*found.values(), scan, patient}
    rows = [
        _row(
            table,
            number,
            cells[number],
            taken,
            {"scan": str(path), "patient": cells[number][patient or scan], **said[number]},
        )
        for number, paths in matched.items()
        for path in paths
        if any(said[number].values())
    ]
    if not rows:
        raise ManifestError(f"No row of {table.name} has both a label and a scan in {folder}.")
    manifest = Manifest(tuple(rows), _used_names(known, rows), place, place.name)
    of_masks = f"{len(masks)} NIfTI files of 8 bits were taken for masks and left out."
    notes = [*left, of_masks if masks else "", known.assumption, "" if patient else _NO_PATIENTS]
    return manifest, tuple(filter(None, notes))


_NO_PATIENTS: Final = (
    "Every scan is taken for another patient. Where a patient has several, name the column with "
    "the patients: --patient-column."
)


def _csv_lines(file: Path, sheet: str) -> dict[int, list[str]]:
    """Cells by row number."""
    if sheet:
        raise ManifestError(f"{file.name} has no sheets. Leave --sheet out.")
    text = _decoded(file)
    first = text.split("\n", 1)[0].strip()
    said = _SAID_DELIMITER.fullmatch(first)
    delimiter = said[1] if said else max(_DELIMITERS, key=lambda each: _num_cells(first, each))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    lines = {
        number: [from_cell(cell).strip() for cell in row] for number, row in enumerate(rows, 1)
    }
    return {number: row for number, row in lines.items() if not (said and number == 1)}


def _decoded(file: Path) -> str:
    """The text of a file in UTF-8 or UTF-16, or as Western Windows writes it."""
    content = file.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")
    if "\0" in text:
        raise OSError("it is no text")
    return text


def _num_cells(line: str, delimiter: str) -> int:
    return len(next(csv.reader([line], delimiter=delimiter), []))


def _excel_lines(file: Path, sheet: str) -> dict[int, list[str]]:
    """Cells by row number, of the wanted sheet."""
    openpyxl = import_extra("openpyxl", extra="excel")
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(each.file_size for each in archive.infolist()) > _MOST_UNPACKED:
                raise OSError("it is too large when unpacked")
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheets = {
            each.title: {
                number: [_as_text(cell) for cell in row]
                for number, row in enumerate(each.iter_rows(values_only=True), 1)
            }
            for each in book.worksheets
            if sheet in ("", each.title)
        }
        titles = [each.title for each in book.worksheets]
        book.close()
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, SyntaxError) as error:
        raise OSError(f"it is no Excel workbook ({error})") from error
    if sheet and sheet not in sheets:
        raise ManifestError(f"{file.name}: {unknown_name_message(sheet, titles, kind='sheet')}")
    filled = [title for title, lines in sheets.items() if any(any(row) for row in lines.values())]
    if len(filled) > 1:
        raise ManifestError(
            f"{file.name} has {len(filled)} sheets ({', '.join(filled)}) and one was expected. "
            f"Name it: --sheet '{filled[0]}'."
        )
    return sheets[filled[0]] if filled else {}


def _as_text(cell: object) -> str:
    """A cell as a spreadsheet shows it: whole numbers without a point, days without an hour."""
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, datetime):
        return cell.isoformat(sep=" ").removesuffix(" 00:00:00")
    return str(cell).strip()


def _class_columns(
    table: _Spreadsheet, columns: Columns, labels: LabelSet | None
) -> dict[str, str]:
    """The columns of the class or of the findings, by what the manifest calls them."""
    if labels is not None and labels.are_findings:
        return _finding_columns(table, columns, labels)
    label = _column(table, columns.label, "label")
    if not label:
        raise ManifestError(f"{table.name} has no column 'label'. {_has(table)} --label-column.")
    return {"label": label}


def _used_names(labels: LabelSet, rows: Sequence[ManifestRow]) -> tuple[str, ...]:
    """All findings, or the classes that a row has."""
    if labels.are_findings:
        return labels.names
    return tuple(name for name in labels.names if any(row.label == name for row in rows))


def _scan_columns(table: _Spreadsheet, columns: Columns) -> tuple[str, str]:
    """The names of the scan's and patient's columns, of which one may be empty."""
    scan, patient = (_column(table, getattr(columns, each), each) for each in ("scan", "patient"))
    if not (scan or patient):
        msg = f"{table.name} has neither a column 'scan' nor 'patient'. {_has(table)} --scan-column"
        raise ManifestError(f"{msg} (a path or name) or --patient-column.")
    return scan, patient


def _finding_columns(table: _Spreadsheet, columns: Columns, labels: LabelSet) -> dict[str, str]:
    """The columns of the findings, by what the manifest calls them."""
    if columns.label:
        msg = f"--label-column names the one column of classes, and {', '.join(labels.names)} are"
        raise ManifestError(f"{msg} findings, with a column each. Leave it out.")
    header = {name.casefold(): name for name in table.header if name}
    found = {}
    for each in labels.classes:
        names = [one.casefold() for one in (each.name, *each.values) if one.casefold() in header]
        if not names:
            message = unknown_name_message(each.name, [*header.values()], kind="column")
            raise ManifestError(
                f"{table.name} has no column for the finding '{each.name}'. {message} Where the "
                "column has another name, list it under 'values' of the finding."
            )
        found[FINDING_PREFIX + each.name] = header[names[0]]
    return found


def _said_of(
    table: _Spreadsheet,
    number: int,
    cells: Mapping[str, str],
    columns: Mapping[str, str],
    labels: LabelSet,
) -> dict[str, str]:
    """What a row says of the class or of each finding, by the manifest's columns; "": nothing."""
    if not labels.are_findings:
        return {"label": _class_of(table, number, cells[columns["label"]], labels)}
    return {
        name: yes_no(read_finding(table.name, number, column, cells[column]))
        for name, column in columns.items()
    }


def _has(table: _Spreadsheet) -> str:
    return f"It has {', '.join(filter(None, table.header))}: name one with"


def _column(table: _Spreadsheet, said: str, usual: str) -> str:
    """A column by the name that was said, or by its usual one, in any case of letters."""
    wanted = (said or usual).casefold()
    for name in table.header:
        if name.casefold() == wanted:
            return name
    if said:
        known = [name for name in table.header if name]
        raise ManifestError(f"{table.name}: {unknown_name_message(said, known, kind='column')}")
    return ""


def _labels_of(table: _Spreadsheet, column: str) -> LabelSet:
    """The classes of a column where nobody named them."""
    at = table.header.index(column)
    values = {row[at] for row in table.rows.values() if row[at]}
    if values and {value.casefold() for value in values} <= _TRUTH_VALUES:
        shown = ", ".join(sorted(values))
        raise ManifestError(
            f"The column '{column}' of {table.name} holds {shown}, which names no classes. Say "
            "what they stand for, in a file such as labels.yaml, and name it: --classes "
            "labels.yaml\n  labels:\n"
            f"    - {{name: no {column.lower()}, values: [no, 0], negative: true}}\n"
            f"    - {{name: {column.lower()}, values: [yes, 1]}}"
        )
    return LabelSet.of_names(classes_among(values))


def _class_of(table: _Spreadsheet, number: int, cell: str, labels: LabelSet) -> str:
    """The class that a cell stands for; empty for an empty one."""
    if not cell or cell in labels.names:
        return cell
    found = labels.spellings.get(cell.casefold())
    if found is None:
        known = ", ".join(
            "".join((f"'{one.name}'", *(f", '{value}'" for value in one.values)))
            for one in labels.classes
        )
        raise ManifestError(
            f"{table.name}, row {number}: '{cell}' stands for no class. Expected {known}, or an "
            "empty cell. Correct it, add it to the values of a class, or name all classes: "
            "--classes A,B or --classes labels.yaml."
        )
    return found


def _matched(
    table: _Spreadsheet,
    folder: Path,
    scans: Sequence[Path],
    cells: Mapping[int, Mapping[str, str]],
    column: str,
    *,
    is_scan: bool,
) -> dict[int, list[Path]]:
    """The scans of each row, by its number."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in scans:
        for name in set(_names_of(path, folder)):
            by_name[name].append(path)
    matched: dict[int, list[Path]] = {}
    taken: dict[Path, int] = {}
    for number, row in cells.items():
        found = by_name.get(_tidy(row.get(column, ""), folder), [])
        if is_scan and len(found) > 1:
            listed = first_of([path.relative_to(folder).as_posix() for path in found])
            raise ManifestError(
                f"{table.name}, row {number}: '{row[column]}' in the column '{column}' fits "
                f"{len(found)} scans: {listed}. Give the scan's path in {folder}."
            )
        for path in found:
            if path in taken:
                raise ManifestError(
                    f"{table.name}: rows {taken[path]} and {number} are the same "
                    f"{'scan' if is_scan else 'patient'} ('{row[column]}'). Keep one of them."
                )
            taken[path] = number
        matched[number] = found
    return matched


def _names_of(path: Path, folder: Path) -> Iterator[str]:
    """What a row may call a scan: its path, the folders it lies in, its own name and theirs."""
    inside = path.relative_to(folder)
    for each in (inside, *inside.parents):
        if each.name:
            yield from (each.as_posix(), each.name)
    own = stem(path)
    yield from (own, inside.with_name(own).as_posix())


def _tidy(name: str, folder: Path) -> str:
    """A path as `_names_of` writes it, from the folder on."""
    text = name.replace("\\", "/").strip().rstrip("/").removeprefix("./")
    path = Path(text)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else text


def _left_out(
    folder: Path,
    table: _Spreadsheet,
    scans: Sequence[Path],
    matched: Mapping[int, Sequence[Path]],
    said: Mapping[int, Mapping[str, str]],
    takes_matched_only: bool,
) -> list[str]:
    """What of scans and table has no counterpart, in sentences."""
    taken = {path for paths in matched.values() for path in paths}
    unlabelled = [
        path.relative_to(folder.absolute()).as_posix() for path in scans if path not in taken
    ]
    lost = [f"row {number}" for number, paths in matched.items() if not paths]
    empty = [f"row {number}" for number, labels in said.items() if not any(labels.values())]
    problems = [
        f"{len(unlabelled)} of {len(scans)} scans in {folder} have no row: {first_of(unlabelled)}.",
        f"{len(lost)} of {len(matched)} rows name no scan in {folder}: {first_of(lost)}.",
        f"{len(empty)} of {len(matched)} rows have no label: {first_of(empty)}.",
    ]
    there = [said for said, which in zip(problems, (unlabelled, lost, empty), strict=True) if which]
    if there and not takes_matched_only:
        raise ManifestError(
            f"{table.name} does not label every scan. {' '.join(there)} Complete the table, or "
            "leave all of these out: --matched-only."
        )
    return [f"Left out: {said}" for said in there]


def _row(
    table: _Spreadsheet,
    number: int,
    cells: Mapping[str, str],
    taken: Collection[str],
    said: Mapping[str, str],
) -> ManifestRow:
    """A row of the manifest: what is said of the scan, and the columns not taken for that."""
    named = dict(said)
    for name, cell in cells.items():
        if name and name not in taken:
            lowered = name.lower()
            known = lowered if lowered in KNOWN else name
            named[f"{name} of {table.name}" if lowered in NEEDED else known] = cell
    return read_row(table.name, number, [*named], [*named.values()])

"""Labels that several readers gave to the same scans, and one label per scan by a stated rule.

A scan on which the rule decides nothing keeps its row with a reason in the column `excluded`, so
that it is counted and never trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from chestct.datasets.manifest import (
    HEADER_ROWS,
    Manifest,
    ManifestError,
    ManifestRow,
    unknown_label_message,
)
from chestct.datasets.manifest_csv import read_lines, read_row
from chestct.labels import THREE_CLASSES
from chestct.lookup import look_up, unknown_name_message

READER_PREFIX: Final = "reader_"
"""Columns of a table with one row per scan: one per reader."""
UNDECIDED: Final = "readers disagree"
TOO_FEW: Final = "too few readers"
"""Reasons for leaving a scan out."""


@dataclass(frozen=True)
class ReadScan:
    """One scan and what its readers said.

    Attributes:
        row: All else that is known of it; its label is empty.
        given: Reader to label, of those who read it.
    """

    row: ManifestRow
    given: Mapping[str, str]

    @property
    def is_disputed(self) -> bool:
        """Whether two readers gave it different labels."""
        return len(set(self.given.values())) > 1


@dataclass(frozen=True)
class Readings:
    """Scans with the labels of several readers.

    Attributes:
        scans: One per scan.
        readers: Their names, in the order in which they first occur.
        labels: The classes that may be given, in order.
        folder: What relative paths of scans are relative to.
        name: What messages call the table.
    """

    scans: tuple[ReadScan, ...]
    readers: tuple[str, ...]
    labels: tuple[str, ...]
    folder: Path
    name: str


@dataclass(frozen=True)
class Rule:
    """How readers' labels become one.

    Attributes:
        name: A name in `RULES`.
        adjudicator: Reader who decides where the others differ; needed by "adjudicator", and
            decides ties under "majority" when named.
        least_readers: Readers a scan must have, the adjudicator not counted.
    """

    name: str = "majority"
    adjudicator: str = ""
    least_readers: int = 2


def read_readings(path: str | Path, labels: Sequence[str] = THREE_CLASSES) -> Readings:
    """Read a table of readers' labels.

    Either one line per scan and reader, with the columns `scan`, `patient`, `reader` and `label`,
    or one line per scan, with `scan`, `patient` and a column `reader_NAME` per reader; an empty
    cell means not read. All other columns are those of a manifest.

    Args:
        path: A CSV file.
        labels: The classes that may be given.

    Raises:
        ManifestError: The table does not fit; the message names row and remedy.
    """
    file = Path(path)
    header, lines = read_lines(file, ("scan", "patient"))
    numbered = [
        (number, dict(zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=False)))
        for number, cells in enumerate(lines, start=1 + HEADER_ROWS)
        if any(cell.strip() for cell in cells)
    ]
    columns = [name for name in header if name.startswith(READER_PREFIX)]
    if {"reader", "label"} <= set(header):
        found = _gather_lines(file.name, numbered)
    elif columns:
        found = [_split_line(file.name, number, cells, columns) for number, cells in numbered]
    else:
        msg = f"{file.name} names no readers. Give the columns 'reader' and 'label', or one column"
        raise ManifestError(f"{msg} such as '{READER_PREFIX}anna' per reader.")
    _check(file.name, found, labels)
    readers = tuple(dict.fromkeys(reader for scan in found for reader in scan.given))
    return Readings(tuple(found), readers, tuple(labels), file.parent, file.name)


def agree_on(readings: Readings, rule: Rule) -> Manifest:
    """One label per scan; scans without one are excluded, with the reason.

    Raises:
        UnknownNameError: There is no such rule.
        ManifestError: The adjudicator read nothing, or no scan is decided.
    """
    decide = look_up(RULES, rule.name, kind="rule")
    if rule.name == "adjudicator" and not rule.adjudicator:
        raise ManifestError("The rule 'adjudicator' needs the name of a reader: --adjudicator NAME")
    if rule.adjudicator and rule.adjudicator not in readings.readers:
        message = unknown_name_message(rule.adjudicator, readings.readers, kind="reader")
        raise ManifestError(f"{readings.name}: {message}")
    rows = []
    for scan in readings.scans:
        others = {r: label for r, label in scan.given.items() if r != rule.adjudicator}
        label = decide(others, scan.given.get(rule.adjudicator, ""))
        if scan.row.excluded:
            rows.append(replace(scan.row, label=label))
        elif len(others) < rule.least_readers:
            rows.append(replace(scan.row, excluded=TOO_FEW))
        else:
            rows.append(replace(scan.row, label=label, excluded="" if label else UNDECIDED))
    return Manifest(tuple(rows), folder=readings.folder, name=readings.name)


def majority(given: Mapping[str, str], adjudicated: str) -> str:
    """The label that most readers gave; of several with as many, the adjudicator's or none."""
    counts = Counter(given.values()).most_common()
    if not counts:
        return ""
    leading = [label for label, votes in counts if votes == counts[0][1]]
    return leading[0] if len(leading) == 1 else adjudicated


def unanimous(given: Mapping[str, str], adjudicated: str) -> str:
    """The label that all readers gave, else none."""
    del adjudicated
    labels = set(given.values())
    return labels.pop() if len(labels) == 1 else ""


def adjudicator(given: Mapping[str, str], adjudicated: str) -> str:
    """The label that all other readers gave; where they differ, the adjudicator's."""
    return unanimous(given, "") or adjudicated


RULES: Final[dict[str, Callable[[Mapping[str, str], str], str]]] = {
    "majority": majority,
    "unanimous": unanimous,
    "adjudicator": adjudicator,
}
"""Rule name to a function of the readers' labels and the adjudicator's; "" decides nothing."""


def _split_line(
    name: str, number: int, cells: Mapping[str, str], columns: Sequence[str]
) -> ReadScan:
    """A line with a column per reader."""
    rest = {column: cell for column, cell in cells.items() if column not in columns}
    given = {
        column.removeprefix(READER_PREFIX): cells[column].strip()
        for column in columns
        if cells[column].strip()
    }
    return ReadScan(_row_of(name, number, rest), given)


def _gather_lines(name: str, numbered: Sequence[tuple[int, Mapping[str, str]]]) -> list[ReadScan]:
    """Lines with one reader each, those of a scan put together."""
    rests: dict[str, tuple[int, dict[str, str]]] = {}
    given: dict[str, dict[str, str]] = {}
    for number, cells in numbered:
        scan, reader, label = (cells[column].strip() for column in ("scan", "reader", "label"))
        if not reader or not label:
            empty = "label" if reader else "reader"
            raise ManifestError(f"{name}, row {number}: the column '{empty}' is empty. Fill it in.")
        rest = {c: v.strip() for c, v in cells.items() if c not in ("reader", "label")}
        first, known = rests.setdefault(scan, (number, rest))
        if known != rest:
            differing = next(column for column in rest if rest[column] != known[column])
            msg = f"{name}: rows {first} and {number} are the same scan and differ in the column"
            raise ManifestError(f"{msg} '{differing}'. Make them alike.")
        if reader in given.setdefault(scan, {}):
            msg = f"{name}, row {number}: reader '{reader}' has read this scan before. Keep one"
            raise ManifestError(f"{msg} of the two lines.")
        given[scan][reader] = label
    return [ReadScan(_row_of(name, *rests[scan]), given[scan]) for scan in rests]


def _row_of(name: str, number: int, cells: Mapping[str, str]) -> ManifestRow:
    row = read_row(name, number, list(cells), list(cells.values()))
    for column in ("scan", "patient"):
        if not getattr(row, column):
            raise ManifestError(f"{name}, row {number}: the column '{column}' is empty.")
    return replace(row, label="")


def _check(name: str, scans: Sequence[ReadScan], labels: Sequence[str]) -> None:
    if not scans:
        raise ManifestError(f"{name} lists no scans. Add lines below the header.")
    for scan in scans:
        for label in scan.given.values():
            if label not in labels:
                message = unknown_label_message(label, labels)
                raise ManifestError(f"{name}, row {scan.row.number}: {message}")
    seen: dict[str, int] = {}
    for scan in scans:
        first = seen.setdefault(scan.row.scan, scan.row.number)
        if first != scan.row.number:
            msg = f"{name}: rows {first} and {scan.row.number} are the same scan. Keep one line"
            raise ManifestError(f"{msg} per scan.")

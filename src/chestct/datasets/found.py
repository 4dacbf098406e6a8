"""What is found when a folder of scans is looked through, and how folders are looked through."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from chestct.datasets.class_names import class_of
from chestct.datasets.manifest import ManifestError, ManifestRow
from chestct.errors import ReadError
from chestct.readers import format_of

SCAN_ENDINGS: Final = (".nii", ".nii.gz", ".zip", ".dcm")
"""Files that are a scan of their own; every other scan is a folder."""
MAX_FOLDERS: Final = 100_000
"""Most folders looked at."""

_MOST_CSV_BYTES = 2**24


@dataclass
class Found:
    """Labelled scans and what was noticed.

    Attributes:
        rows: One per scan, paths in full.
        notes: What the user should know, such as assumptions that were made.
    """

    rows: list[ManifestRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def with_reading(row: ManifestRow, reading: Mapping[str, str]) -> ManifestRow:
    """The row with what was said of slices, where its scan is a folder of them."""
    if not reading or format_of(row.scan) != "tiff":
        return row
    return replace(row, others={**row.others, **reading})


def folders_under(folder: Path, depth: int) -> Iterator[Path]:
    """Visible folders below a folder, nearest first, by name; linked ones too.

    Raises:
        ManifestError: There are too many.
    """
    level = [folder]
    seen = 0
    for _ in range(depth):
        level = [child for parent in level for child in subfolders(parent)]
        seen += len(level)
        if seen > MAX_FOLDERS:
            msg = f"{folder} holds more than {MAX_FOLDERS} folders. Name the folder of one data set"
            raise ManifestError(f"{msg}.")
        yield from level


def subfolders(folder: Path) -> list[Path]:
    """Visible folders in a folder, by name.

    Raises:
        ReadError: The folder cannot be read.
    """
    return sorted(Path(entry) for entry in _entries(folder) if entry.is_dir())


def scans_in(folder: Path) -> list[Path]:
    """Scans that lie in a folder: its sub-folders with a file in them, and files of one scan."""
    files = [Path(entry) for entry in _entries(folder) if entry.name.lower().endswith(SCAN_ENDINGS)]
    return sorted([*files, *(each for each in subfolders(folder) if holds_files(each))])


def holds_files(folder: Path) -> bool:
    """Whether any visible file lies in or below a folder."""
    with suppress(ReadError):
        for place in (folder, *folders_under(folder, 4)):
            if any(entry.is_file() for entry in _entries(place)):
                return True
    return False


def class_folders(folder: Path, depth: int = 3) -> list[tuple[Path, str]]:
    """Folders named after a class, the outermost of nested ones, with their class.

    Unpacking an archive often nests a folder in one of the same name; then the inner one is taken.
    """
    found: list[tuple[Path, str]] = []
    for each in folders_under(folder, depth):
        label = class_of(each.name)
        if label is None or any(outer in each.parents for outer, _ in found):
            continue
        found.append((each, label))
    return [(_innermost(each, label), label) for each, label in found]


def stem(path: Path) -> str:
    """Name of a scan without the ending of its file."""
    lowered = path.name.lower()
    for ending in sorted(SCAN_ENDINGS, key=len, reverse=True):
        if lowered.endswith(ending):
            return path.name[: -len(ending)]
    return path.name


def read_table(path: Path) -> list[list[str]]:
    """Cells of a CSV file; nothing where it is none."""
    try:
        if path.stat().st_size > _MOST_CSV_BYTES:
            return []
        text = path.read_text(encoding="utf-8-sig")
        delimiter = ";" if ";" in text.split("\n", 1)[0] else ","
        return [
            [cell.strip() for cell in row]
            for row in csv.reader(text.splitlines(), delimiter=delimiter)
        ]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def tables_under(folder: Path, depth: int = 1) -> list[Path]:
    """CSV files in a folder and so many levels below."""
    places = [folder, *folders_under(folder, depth)]
    return [path for place in places for path in sorted(place.glob("*.csv"))]


def with_distinct_patients(rows: Sequence[ManifestRow]) -> list[ManifestRow]:
    """Tell patients of two classes apart where a name stands for one of each.

    Folders are numbered anew in each class: "1" among the sick is not "1" among the healthy.
    """
    classes: dict[str, set[str]] = {}
    for row in rows:
        classes.setdefault(row.patient, set()).add(row.label)
    if all(len(labels) == 1 for labels in classes.values()):
        return list(rows)
    return [replace(row, patient=f"{row.label} {row.patient}") for row in rows]


def _innermost(folder: Path, label: str) -> Path:
    inside = subfolders(folder)
    if len(inside) == 1 and class_of(inside[0].name) == label and subfolders(inside[0]):
        return _innermost(inside[0], label)
    return folder


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise ReadError(f"The folder {folder} cannot be read: {error.strerror}.") from error

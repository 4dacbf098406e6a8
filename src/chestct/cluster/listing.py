"""The scans of a batch as plain values: what each is called, where it lies, how it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chestct.datasets.manifest import (
    HEADER_ROWS,
    READING,
    ManifestError,
    ManifestRow,
    read_lines,
    read_row,
)
from chestct.datasets.scans import read_options
from chestct.errors import ReadError
from chestct.pipeline import readable, scan_names
from chestct.readers import ReadOptions
from chestct.readers.pictures import geometry_from_dict
from chestct.remote import joined, refuse_secrets, shown, whole
from chestct.storage import is_address
from chestct.writers.folders import folder_names


def list_scans(
    paths: Sequence[Path], names: Sequence[str], reading: ReadOptions
) -> list[dict[str, Any]]:
    """Scans that are all read in the same way.

    Args:
        paths: Where they lie.
        names: What they are called.
        reading: How they are read.

    Raises:
        ReadError: An address has a password or a query, which would be kept.
    """
    for path in paths:
        refuse_secrets(path, "A batch")
    seen = [readable(shown(path)) for path in paths]
    return _listed(paths, names, seen, [reading] * len(paths), [""] * len(paths))


def list_manifest(file: Path, reading: ReadOptions) -> list[dict[str, Any]]:
    """The scans of a manifest: its column `scan` is enough, and those that say how to read it.

    A row that says something impossible stays: it fails with its reason, and the others are done.

    Args:
        file: A CSV file or its address; paths are relative to its folder.
        reading: What goes for all rows; a row's own columns come first.

    Raises:
        ManifestError: It is no such file, lists no scan, or not one of its scans is there.
    """
    header, lines = read_lines(file, ("scan",))
    rows, readings, problems = [], [], []
    for number, cells in enumerate(lines, start=1 + HEADER_ROWS):
        if not any(cell.strip() for cell in cells):
            continue
        row, own, problem = _read(file, number, header, cells)
        if not row.excluded:
            rows.append(row)
            readings.append(_both(own, reading))
            problems.append(problem)
    paths = [joined(file.parent, row.scan) for row in rows]
    problems = _with_repeated(rows, problems)
    if not any(is_address(path) or path.exists() for path in paths):
        msg = (
            f"{file.name} lists {len(rows)} scans and not one of them is there. Paths are relative "
            f"to {file.parent.resolve()}: correct its column 'scan'."
        )
        raise ManifestError(msg)
    seen = [readable(shown(row.scan)) for row in rows]
    return _listed(paths, scan_names(paths), seen, readings, problems)


def reading_of(task: Mapping[str, Any]) -> ReadOptions:
    """How a listed scan is read."""
    said = task["reading"]
    return ReadOptions(
        series=said["series"],
        allow=tuple(said["allow"]),
        tiff=None if said["tiff"] is None else geometry_from_dict(said["tiff"]),
        lungs=None if said["lungs"] is None else Path(said["lungs"]),
    )


def plain_reading(reading: ReadOptions) -> dict[str, Any]:
    """The options as plain values; a path is made whole, as workers are elsewhere."""
    return {
        "series": reading.series,
        "allow": list(reading.allow),
        "tiff": None if reading.tiff is None else asdict(reading.tiff),
        "lungs": None if reading.lungs is None else whole(reading.lungs),
    }


def _listed(
    paths: Sequence[Path],
    names: Sequence[str],
    seen: Sequence[str],
    readings: Sequence[ReadOptions],
    problems: Sequence[str],
) -> list[dict[str, Any]]:
    each = zip(names, folder_names(names), paths, seen, readings, problems, strict=True)
    return [
        {
            "name": name,
            "folder": folder,
            "path": whole(path),
            "shown": as_text,
            "reading": plain_reading(reading),
            "problem": problem,
        }
        for name, folder, path, as_text, reading, problem in each
    ]


def _read(
    file: Path, number: int, header: list[str], cells: list[str]
) -> tuple[ManifestRow, ReadOptions, str]:
    """A row, how its scan is read, and what is wrong with it; other columns are not looked at."""
    padded = [*cells, *[""] * (len(header) - len(cells))]
    chosen = {
        name: cell
        for name, cell in zip(header, padded, strict=False)
        if name in ("scan", "excluded", *READING)
    }
    # Cells beyond the header stay, to be refused.
    values = [*chosen.values(), *padded[len(header) :]]
    try:
        row = read_row(file.name, number, list(chosen), values)
        if not row.scan:
            raise ManifestError(f"row {number}: the column 'scan' is empty.")
        return row, read_options(row, file.parent), ""
    except (ManifestError, ReadError) as error:
        scan = chosen.get("scan", "").strip()
        row = ManifestRow(scan or f"row {number}", "", "", number=number)
        return (
            row,
            ReadOptions(),
            f"{file.name}: {error}".replace(f"{file.name}: {file.name}, ", ""),
        )


def _both(own: ReadOptions, common: ReadOptions) -> ReadOptions:
    return ReadOptions(
        own.series or common.series,
        tuple(dict.fromkeys((*common.allow, *own.allow))),
        own.tiff or common.tiff,
        own.lungs or common.lungs,
    )


def _with_repeated(rows: Sequence[ManifestRow], problems: Sequence[str]) -> list[str]:
    """The problems of the rows, and of those whose scan was listed before."""
    first: dict[tuple[str, str], int] = {}
    found = []
    for row, problem in zip(rows, problems, strict=True):
        number = first.setdefault((row.scan, row.others.get("series", "")), row.number)
        repeated = f"Row {row.number} is the same scan as row {number}. Take one of them out."
        found.append(problem or (repeated if number != row.number else ""))
    return found

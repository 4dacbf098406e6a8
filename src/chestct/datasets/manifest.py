"""Labelled scans as a table, one row per scan, checked when it is made.

A patient may have several scans, and these must never be on two sides of a split; that is why the
patient is no optional column. A scan has one class, in the column `label`, or in its place a column
`finding_NAME` per finding, which says yes, no, or nothing where it is not known. Messages name
rows, as a spreadsheet counts them, and no patients.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from jaxtyping import Float32

from chestct.errors import ChestCTError
from chestct.labels import FINDING_PREFIX, classes_among, parse_finding, yes_no
from chestct.lookup import first_lines_of, first_of, unknown_name_message
from chestct.remote import joined, local_copy, refuse_secrets, shown
from chestct.report import Table, as_csv, read_csv
from chestct.storage import is_address, write_text

TRAINING: Final = "training"
VALIDATION: Final = "validation"
TEST: Final = "test"
SPLITS: Final = (TRAINING, VALIDATION, TEST)
"""What the column `split` may hold."""

HEADER_ROWS: Final = 1
"""Rows are numbered as a spreadsheet does: the header is row 1, the first scan row 2."""

_MOST_NAMED = 5
_Value = TypeVar("_Value")


class ManifestError(ChestCTError):
    """A manifest is impossible or cannot be used so; the message names the row and the remedy."""


class UnknownLabelError(ManifestError):
    """A row's label is none of the classes that are asked for."""


@dataclass(frozen=True)
class ManifestRow:
    """One scan.

    Attributes:
        scan: Path or address of the scan, as `read_volume` takes it; relative to the manifest's
            folder.
        patient: Whose scan it is; scans of one patient carry the same text.
        label: The class of the scan; empty where it has findings instead.
        site: Where it was made, or empty.
        age: In years, or None.
        sex: "F", "M", "O", or empty.
        split: One of `SPLITS`, or empty.
        fold: Number of the fold in which the scan is held out, from 1, or None.
        others: All other columns, by name.
        number: Row in the file, the header being row 1; 0 where it is in no file yet.
        excluded: Why the scan is left out of everything, or empty.
        findings: Finding to whether the scan has it, None where that is not known; empty where it
            has a class instead.
    """

    scan: str
    patient: str
    label: str
    site: str = ""
    age: float | None = None
    sex: str = ""
    split: str = ""
    fold: int | None = None
    others: Mapping[str, str] = field(default_factory=dict)
    number: int = 0
    excluded: str = ""
    findings: Mapping[str, bool | None] = field(default_factory=dict)

    @property
    def present(self) -> tuple[str, ...]:
        """The scan's class, or the findings that it is known to have."""
        if self.findings:
            return tuple(name for name, is_there in self.findings.items() if is_there)
        return (self.label,)

    @property
    def side(self) -> str:
        """Where the row stands when the scans are divided: its split, its fold, or nowhere."""
        if self.split == TEST or (self.split and self.fold is None):
            return self.split
        return f"fold {self.fold}" if self.fold is not None else ""


@dataclass(frozen=True)
class Manifest:
    """Labelled scans, checked when made.

    Attributes:
        rows: One per scan.
        labels: The classes or findings, in the order of every probability vector. Empty: those
            that occur, classes as `classes_among` orders them.
        folder: What relative paths are relative to.
        name: What messages call it.
        excluded: Rows that give a reason for leaving them out; kept to be written and counted.

    Raises:
        ManifestError: No rows, all of them excluded, an empty scan or patient, a scan twice.
        UnknownLabelError: An unknown label or finding.
    """

    rows: tuple[ManifestRow, ...]
    labels: tuple[str, ...] = ()
    folder: Path = Path()
    name: str = "the manifest"
    excluded: tuple[ManifestRow, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            msg = f"{self.name} lists no scans. Add one row per scan below the header."
            raise ManifestError(msg)
        numbered = tuple(
            row if row.number else replace(row, number=position + 1 + HEADER_ROWS)
            for position, row in enumerate(self.rows)
        )
        left_out = tuple(row for row in numbered if row.excluded)
        object.__setattr__(self, "rows", tuple(row for row in numbered if not row.excluded))
        object.__setattr__(self, "excluded", (*self.excluded, *left_out))
        if not self.rows:
            msg = f"{self.name} excludes all its {len(self.excluded)} scans. Empty the column"
            raise ManifestError(f"{msg} 'excluded' in the rows that are to be used.")
        _check_filled(self)
        if self.are_findings:
            object.__setattr__(self, "labels", self.labels or tuple(self.rows[0].findings))
            _check_findings(self)
        else:
            _check_labels(self)
        if not self.labels:
            used = {row.label for row in self.rows}
            labels = tuple(label for label in classes_among(used) if label in used)
            object.__setattr__(self, "labels", labels)
        _check_scans_differ(self)

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, row: ManifestRow) -> Path:
        """Where a row's scan lies."""
        return joined(self.folder, row.scan)

    @property
    def are_findings(self) -> bool:
        """Whether a scan has any number of findings in the place of one class."""
        return any(row.findings for row in self.rows)

    def label_index(self, row: ManifestRow) -> int:
        """Index of a row's label into `labels`."""
        return self.labels.index(row.label)

    @property
    def label_indices(self) -> list[int]:
        """Index of every row's label into `labels`."""
        return [self.label_index(row) for row in self.rows]

    @property
    def truths(self) -> Float32[np.ndarray, "scan finding"]:
        """Of every row 1 for each finding that it has, 0 for the others, NaN where not known."""
        known = [[row.findings[name] for name in self.labels] for row in self.rows]
        return np.array(known, dtype=np.float32)

    def of_finding(self, name: str) -> Manifest:
        """The rows of which one finding is known, as scans of two classes: without and with it.

        Raises:
            ManifestError: It is known of none.
        """
        classes = (f"no {name}", name)
        rows = [
            replace(row, findings={}, label=classes[row.findings[name]])  # type: ignore[index]
            for row in self.rows
            if row.findings[name] is not None
        ]
        if not rows:
            msg = f"{self.name} knows of no scan whether it has '{name}'. Fill in the column"
            raise ManifestError(f"{msg} '{FINDING_PREFIX}{name}', or leave the finding out.")
        return replace(self, rows=tuple(rows), labels=classes, excluded=())

    @property
    def num_patients(self) -> int:
        """How many patients the scans belong to."""
        return len({row.patient for row in self.rows})

    @property
    def patients_on_two_sides(self) -> list[tuple[ManifestRow, ...]]:
        """The rows of each patient whose scans stand on different sides."""
        rows: dict[str, list[ManifestRow]] = defaultdict(list)
        for row in self.rows:
            rows[row.patient].append(row)
        return [tuple(each) for each in rows.values() if len({r.side for r in each} - {""}) > 1]

    @property
    def folds(self) -> tuple[int, ...]:
        """Numbers of the folds, ascending; empty where there are none."""
        return tuple(sorted({row.fold for row in self.rows if row.fold is not None}))

    @property
    def cases(self) -> dict[str, int]:
        """Number of scans per label, in the order of the labels; of findings, that have it."""
        counts = Counter(label for row in self.rows for label in row.present)
        return {label: counts[label] for label in self.labels}

    def choose(self, is_wanted: Callable[[ManifestRow], bool]) -> Manifest:
        """The rows that are wanted, with all the labels.

        Raises:
            ManifestError: There are none.
        """
        return replace(self, rows=tuple(row for row in self.rows if is_wanted(row)))

    def with_rows(self, rows: Iterable[ManifestRow]) -> Manifest:
        """The same manifest with changed rows."""
        return replace(self, rows=tuple(rows))

    @property
    def patients_by_label(self) -> dict[str, list[str]]:
        """Patients of each label, sorted as text; a patient's label is that of most scans."""
        votes: dict[str, Counter[str]] = defaultdict(Counter)
        for row in self.rows:
            votes[row.patient][row.label] += 1
        patients: dict[str, list[str]] = {label: [] for label in self.labels}
        for patient in sorted(votes):
            counts = votes[patient]
            patients[max(self.labels, key=lambda label: counts[label])].append(patient)
        return patients

    def flow(self) -> Table:
        """Scans and patients, in all and per label: those listed, excluded by reason, and used."""
        excluded = self.excluded
        reasons = Counter(row.excluded for row in excluded)
        other = () if self.are_findings else (row.label for row in excluded)
        labels = dict.fromkeys((*self.labels, *other))
        steps = {"listed": (*self.rows, *excluded)}
        for reason in sorted(reasons, key=lambda reason: (-reasons[reason], reason)):
            steps[f"excluded: {reason}"] = tuple(row for row in excluded if row.excluded == reason)
        steps["used"] = self.rows
        lines = []
        for step, rows in steps.items():
            counts = Counter(label for row in rows for label in row.present)
            num_patients = len({row.patient for row in rows})
            numbers = (len(rows), num_patients, *(counts[label] for label in labels))
            lines.append((step, *map(str, numbers)))
        columns = ("step", "scans", "patients", *(label or "no label" for label in labels))
        return Table(columns, tuple(lines))

    def require_classes(self, part: str = "") -> None:
        """Refuse scans among which a class has none, or of which there is one class only.

        Of findings each must be known to be there in some scan, and not to be in another.

        Raises:
            ManifestError: Such a class or finding; the message names it and the rows there are.
        """
        where = f"the part '{part}' of {self.name}" if part else self.name
        if self.are_findings:
            _require_findings(self, where)
            return
        counts = Counter(row.label for row in self.rows)
        if len(counts) == 1:
            (label,) = counts
            raise ManifestError(
                f"All {len(self)} scans of {where} ({describe_rows(self.rows)}) are {label}. "
                "A classifier needs at least two classes: add scans of another one."
            )
        empty = [label for label in self.labels if not counts[label]]
        if empty:
            raise ManifestError(
                f"No scan of {where} is {' or '.join(empty)}. Add some, divide the scans anew "
                "(chestct dataset split), or leave the class out of the labels."
            )


def describe_rows(rows: Sequence[ManifestRow]) -> str:
    """Name rows by number: row 3; rows 3 and 7; rows 3, 4, 5, 6, 7 and 14 more."""
    numbers = sorted(row.number for row in rows)
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    if len(numbers) > _MOST_NAMED:
        return f"rows {first_of(numbers, _MOST_NAMED)}"
    return f"rows {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _require_files(manifest: Manifest) -> None:
    """Refuse a manifest that names scans which are not there.

    Of an address that shows when the scan is read: to ask for thousands takes too long.
    """
    paths = ((row, manifest.path(row)) for row in manifest.rows)
    missing = [row for row, path in paths if not (is_address(path) or path.exists())]
    if not missing:
        return
    listed = first_lines_of(f"row {row.number}: {row.scan}" for row in missing)
    raise ManifestError(
        f"{manifest.name} names {len(missing)} of {len(manifest)} scans that are not there:"
        f"{listed}\n"
        f"  Paths are relative to {manifest.folder.resolve()}. Correct the column 'scan', or take "
        "the rows out."
    )


def _require_findings(manifest: Manifest, where: str) -> None:
    for name in manifest.labels:
        known = {row.findings[name] for row in manifest.rows} - {None}
        if known != {True, False}:
            has = "has" if True not in known else "is known not to have"
            msg = f"No scan of {where} {has} '{name}', which can then not be learned. Add some,"
            raise ManifestError(f"{msg} or leave the finding out of the labels.")


def _check_filled(manifest: Manifest) -> None:
    columns = ("scan", "patient") if manifest.are_findings else NEEDED
    for row in manifest.rows:
        for column in columns:
            if not str(getattr(row, column)).strip():
                remedy = {
                    "scan": "Give the path of its scan.",
                    "patient": "Give every scan its patient: scans of one patient must stay "
                    "together when the scans are divided.",
                    "label": "Give its class, or take the row out.",
                }[column]
                msg = f"{manifest.name}, row {row.number}: the column '{column}' is empty. {remedy}"
                raise ManifestError(msg)


def _check_labels(manifest: Manifest) -> None:
    known = manifest.labels or classes_among(row.label for row in manifest.rows)
    wrong = [row for row in manifest.rows if row.label not in known]
    if wrong:
        message = unknown_name_message(wrong[0].label, known, kind="label")
        more = f" {len(wrong)} rows in all have an unknown label." if len(wrong) > 1 else ""
        raise UnknownLabelError(
            f"{manifest.name}, row {wrong[0].number}: {message}{more} Correct the column 'label'."
        )


def _check_findings(manifest: Manifest) -> None:
    """Refuse findings without a column, and rows that say nothing of any."""
    for row in (*manifest.rows, *manifest.excluded):
        for name in manifest.labels:
            if name not in row.findings:
                message = unknown_name_message(name, row.findings, kind="finding")
                raise UnknownLabelError(
                    f"{manifest.name} has no column '{FINDING_PREFIX}{name}'. {message} Add the "
                    "column, or leave the finding out of the labels."
                )
    for row in manifest.rows:
        if all(row.findings[name] is None for name in manifest.labels):
            msg = f"{manifest.name}, row {row.number}: nothing is known of any finding"
            raise ManifestError(f"{msg} ({', '.join(manifest.labels)}). Take the row out.")


def _check_scans_differ(manifest: Manifest) -> None:
    by_path: dict[Path, list[ManifestRow]] = defaultdict(list)
    for row in manifest.rows:
        by_path[manifest.path(row).resolve()].append(row)
    for rows in by_path.values():
        # A folder may hold several series, each named by its UID.
        series = [row.others.get("series", "") for row in rows]
        if len(set(series)) < len(series):
            raise ManifestError(
                f"{manifest.name}: {describe_rows(rows)} are the same scan ({rows[0].scan}). "
                "Each scan counts once: keep one of the rows."
            )


NEEDED: Final = ("scan", "patient", "label")
KNOWN: Final = (*NEEDED, "site", "age", "sex", "split", "fold", "excluded")
READING: Final = ("series", "allow", "lungs", "spacing_mm", "order", "unit", "slope", "intercept")
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
    path: str | Path,
    labels: Sequence[str] = (),
    *,
    needs_files: bool = True,
    are_findings: bool | None = None,
) -> Manifest:
    """Read a manifest; scans are looked for relative to its folder.

    Args:
        path: A CSV file with comma or semicolon, in UTF-8, with a column `label`, or a column
            `finding_NAME` per finding and none `label`; or the address of one.
        labels: The classes or findings in the classifier's order; empty: those that occur.
        needs_files: Whether a scan that is not there is an error.
        are_findings: Whether the labels are findings, or classes; None: what the file has.

    Raises:
        ManifestError: The file or a row of it does not fit; the message names row and remedy.
        ReadError: It lies on other storage and cannot be had.
    """
    file = Path(path)
    header, lines = read_lines(file, ("scan", "patient") if are_findings else NEEDED)
    has_findings = "label" not in header
    if are_findings is not None and has_findings != are_findings:
        raise ManifestError(_of_other_kind(file.name, labels, are_findings=are_findings))
    rows = tuple(
        read_row(file.name, number, header, cells)
        for number, cells in enumerate(lines, start=1 + HEADER_ROWS)
        if any(cell.strip() for cell in cells)
    )
    manifest = Manifest(rows, tuple(labels), file.parent, file.name)
    if needs_files:
        _require_files(manifest)
    return manifest


def _of_other_kind(name: str, labels: Sequence[str], *, are_findings: bool) -> str:
    has = f"a column '{FINDING_PREFIX}NAME' per finding and none 'label'"
    if are_findings:
        return (
            f"{', '.join(labels)} are findings, of which a scan has any number, and {name} has a "
            f"column 'label'. Expected {has}, as 'chestct dataset scan' writes it with --classes "
            "FINDINGS.yaml."
        )
    return (
        f"{', '.join(labels) or 'The labels'} are classes, of which a scan has one, and {name} has "
        f"{has}. Say 'kind: findings' beside 'labels:', or give the scans a column 'label'."
    )


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
    findings = list(dict.fromkeys(name for row in rows for name in row.findings))
    needed = ("scan", "patient") if findings else NEEDED
    lines = []
    for row in rows:
        known = [_cell(getattr(row, column)) for column in (*needed[1:], *optional)]
        scan = _written_path(manifest.path(row), file.parent)
        said = [yes_no(row.findings.get(name)) for name in findings]
        lines.append([scan, *known, *said, *(row.others.get(name, "") for name in others)])
    columns = [FINDING_PREFIX + name for name in findings]
    return write_text(file, as_csv([*needed, *optional, *columns, *others], lines))


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
    """Column names and cells of a CSV file in UTF-8, its delimiter that of the header.

    Columns without a name, as spreadsheets leave them behind, are dropped where they are empty; the
    first one, in which pandas numbers the rows, in any case.

    Raises:
        ManifestError: It is no such file, lacks a column, has one twice, or a cell stands in a
            column without a name.
    """
    header, *lines = _read_cells(file, needed) or [[]]
    header = [name.strip() for name in header]
    header = [name.lower() if name.lower() in (*KNOWN, *READING) else name for name in header]
    has_findings = any(name.startswith(FINDING_PREFIX) for name in header)
    missing = [
        name for name in needed if name not in header and not (name == "label" and has_findings)
    ]
    if missing:
        raise ManifestError(
            f"{file.name} has no column {' and no column '.join(missing)}. Its first row must name "
            f"the columns: {', '.join(needed)}, and any of {', '.join(KNOWN[3:])}."
        )
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise ManifestError(f"{file.name} has the column '{twice[0]}' twice. Rename one of them.")
    return _without_unnamed(file.name, header, lines)


def _read_cells(file: Path, needed: Sequence[str]) -> list[list[str]]:
    """All cells of a CSV file, line by line."""
    try:
        refuse_secrets(file, "A table")
        with local_copy(file) as copy:
            return read_csv(copy)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        msg = f"{file} cannot be read as a manifest: {reason}. Expected a CSV file with the "
        raise ManifestError(f"{msg}columns {', '.join(needed)}.") from error
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
                raise ManifestError(
                    f"{name}, row {number}: column {index + 1} has no name but a cell here. Name "
                    "the column in row 1, or empty the cell; put text that holds a comma in double "
                    "quotes."
                )
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
        ReadError: An address has a password or a query, which would be kept.
    """
    if len(cells) > len(header):
        raise ManifestError(
            f"{name}, row {number}: {len(cells)} cells under {len(header)} columns. Put text that "
            "holds a comma in double quotes."
        )
    padded = [*cells, *[""] * (len(header) - len(cells))]
    row = {column: cell.strip() for column, cell in zip(header, padded, strict=True)}
    for column in ("scan", "lungs"):
        refuse_secrets(row.get(column, ""), f"{name}, row {number}")
    findings = [c for c in row if c.startswith(FINDING_PREFIX) and "label" not in row]
    where = f"{name}, row {number}"
    return ManifestRow(
        scan=row["scan"],
        patient=row.get("patient", ""),
        label=row.get("label", ""),
        site=row.get("site", ""),
        age=_parsed(where, row, "age", parse_age, f"years from 0 to {_OLDEST}"),
        sex=_parsed(where, row, "sex", parse_sex, "F, M, O"),
        split=_split(where, row.get("split", "")),
        fold=_parsed(where, row, "fold", _fold, "a whole number from 1"),
        excluded=row.get("excluded", ""),
        others={c: cell for c, cell in row.items() if c not in KNOWN and c not in findings},
        number=number,
        findings={
            column.removeprefix(FINDING_PREFIX): read_finding(name, number, column, row[column])
            for column in findings
        },
    )


def read_finding(name: str, number: int, column: str, cell: str) -> bool | None:
    """What a cell says of a finding; None where that is not known.

    Raises:
        ManifestError: It says nothing that is understood; the message names row and column.
    """
    try:
        return parse_finding(cell)
    except ValueError as error:
        raise ManifestError(f"{name}, row {number}, column '{column}': {error}") from None


def _parsed(
    where: str, row: Mapping[str, str], column: str, parse: Callable[[str], _Value], expected: str
) -> _Value:
    """What a cell says; a column that is not there is empty."""
    try:
        return parse(row.get(column, ""))
    except (ValueError, KeyError):
        msg = f"{where}: {column} must be {expected} or empty, not '{row[column]}'."
        raise ManifestError(msg) from None


def _split(where: str, given: str) -> str:
    if given and given.lower() not in _SPLIT_NAMES:
        message = unknown_name_message(given, SPLITS, kind="split")
        raise ManifestError(f"{where}: {message}")
    return _SPLIT_NAMES[given.lower()] if given else ""


def _fold(given: str) -> int | None:
    if given and not (given.isdecimal() and int(given) > 0):
        raise ValueError(given)
    return int(given) if given else None


def _in_file_order(manifest: Manifest) -> list[ManifestRow]:
    """All rows; excluded ones stand where they stood."""
    if not manifest.excluded:
        return list(manifest.rows)
    return sorted((*manifest.rows, *manifest.excluded), key=lambda row: row.number)


def _cell(value: object) -> str:
    """A value as it is written."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _written_path(scan: Path, folder: Path) -> str:
    if is_address(scan):
        return shown(scan)
    full, base = Path(os.path.abspath(scan)), Path(os.path.abspath(folder))
    return full.relative_to(base).as_posix() if full.is_relative_to(base) else str(full)

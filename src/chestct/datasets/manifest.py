"""Labelled scans as a table, one row per scan, checked when it is made.

A patient may have several scans, and these must never be on two sides of a split; that is why the
patient is no optional column. Messages name rows, as a spreadsheet counts them, and no patients.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from chestct.errors import ChestCTError
from chestct.labels import THREE_CLASSES
from chestct.lookup import unknown_name_message

TRAINING: Final = "training"
VALIDATION: Final = "validation"
TEST: Final = "test"
SPLITS: Final = (TRAINING, VALIDATION, TEST)
"""What the column `split` may hold."""

HEADER_ROWS: Final = 1
"""Rows are numbered as a spreadsheet does: the header is row 1, the first scan row 2."""

_MOST_NAMED = 5


class ManifestError(ChestCTError):
    """A manifest is impossible or cannot be used so; the message names the row and the remedy."""


class UnknownLabelError(ManifestError):
    """A row's label is none of the classes that are asked for."""


@dataclass(frozen=True)
class ManifestRow:
    """One scan.

    Attributes:
        scan: Path of the scan, as `read_volume` takes it; relative to the manifest's folder.
        patient: Whose scan it is; scans of one patient carry the same text.
        label: The class of the scan.
        site: Where it was made, or empty.
        age: In years, or None.
        sex: "F", "M", "O", or empty.
        split: One of `SPLITS`, or empty.
        fold: Number of the fold in which the scan is held out, from 1, or None.
        others: All other columns, by name.
        number: Row in the file, the header being row 1; 0 where it is in no file yet.
        excluded: Why the scan is left out of everything, or empty.
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
        labels: The classes, in the order of every probability vector. Empty: those of
            `THREE_CLASSES` that occur.
        folder: What relative paths are relative to.
        name: What messages call it.
        excluded: Rows that give a reason for leaving them out; kept to be written and counted.

    Raises:
        ManifestError: No rows, all of them excluded, an empty scan or patient, a scan twice.
        UnknownLabelError: An unknown label.
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
        _check_some_left(self)
        _check_filled(self)
        _check_labels(self)
        if not self.labels:
            used = {row.label for row in self.rows}
            labels = tuple(label for label in THREE_CLASSES if label in used)
            object.__setattr__(self, "labels", labels)
        _check_scans_differ(self)

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, row: ManifestRow) -> Path:
        """Where a row's scan lies."""
        return self.folder / row.scan

    def label_index(self, row: ManifestRow) -> int:
        """Index of a row's label into `labels`."""
        return self.labels.index(row.label)

    @property
    def label_indices(self) -> list[int]:
        """Index of every row's label into `labels`."""
        return [self.label_index(row) for row in self.rows]

    @property
    def num_patients(self) -> int:
        """How many patients the scans belong to."""
        return len({row.patient for row in self.rows})

    @property
    def folds(self) -> tuple[int, ...]:
        """Numbers of the folds, ascending; empty where there are none."""
        return tuple(sorted({row.fold for row in self.rows if row.fold is not None}))

    @property
    def cases(self) -> dict[str, int]:
        """Number of scans per label, in the order of the labels."""
        counts = Counter(row.label for row in self.rows)
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


def patients_by_label(manifest: Manifest) -> dict[str, list[str]]:
    """Patients of each label, sorted as text; a patient's label is that of most of their scans."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for row in manifest.rows:
        votes[row.patient][row.label] += 1
    patients: dict[str, list[str]] = {label: [] for label in manifest.labels}
    for patient in sorted(votes):
        counts = votes[patient]
        patients[max(manifest.labels, key=lambda label: counts[label])].append(patient)
    return patients


def describe_rows(rows: Sequence[ManifestRow]) -> str:
    """Name rows by number: row 3; rows 3 and 7; rows 3, 4, 5, 6, 7 and 14 more."""
    numbers = sorted(row.number for row in rows)
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    named = [str(number) for number in numbers[:_MOST_NAMED]]
    if len(numbers) > _MOST_NAMED:
        return f"rows {', '.join(named)} and {len(numbers) - _MOST_NAMED} more"
    return f"rows {', '.join(named[:-1])} and {named[-1]}"


def require_files(manifest: Manifest) -> None:
    """Refuse a manifest that names scans which are not there.

    Raises:
        ManifestError: Some are missing; the message names rows and paths.
    """
    missing = [row for row in manifest.rows if not manifest.path(row).exists()]
    if not missing:
        return
    listed = "".join(f"\n  row {row.number}: {row.scan}" for row in missing[:_MOST_NAMED])
    more = len(missing) - _MOST_NAMED
    msg = (
        f"{manifest.name} names {len(missing)} of {len(manifest)} scans that are not there:"
        f"{listed}{f'{chr(10)}  and {more} more' if more > 0 else ''}\n"
        f"  Paths are relative to {manifest.folder.resolve()}. Correct the column 'scan', or take "
        "the rows out."
    )
    raise ManifestError(msg)


def require_classes(manifest: Manifest, part: str = "") -> None:
    """Refuse scans among which a class has none, or of which there is one class only.

    Raises:
        ManifestError: Such a class; the message names it and the rows there are.
    """
    where = f"the part '{part}' of {manifest.name}" if part else manifest.name
    counts = Counter(row.label for row in manifest.rows)
    if len(counts) == 1:
        (label,) = counts
        msg = (
            f"All {len(manifest)} scans of {where} ({describe_rows(manifest.rows)}) are {label}. "
            "A classifier needs at least two classes: add scans of another one."
        )
        raise ManifestError(msg)
    empty = [label for label in manifest.labels if not counts[label]]
    if empty:
        msg = (
            f"No scan of {where} is {' or '.join(empty)}. Add some, divide the scans anew "
            "(chestct dataset split), or leave the class out of the labels."
        )
        raise ManifestError(msg)


def unknown_label_message(label: str, labels: Collection[str]) -> str:
    """Say that a label is unknown, what was probably meant, and what there is."""
    return unknown_name_message(label, labels, kind="label")


def _check_some_left(manifest: Manifest) -> None:
    if not manifest.rows:
        msg = f"{manifest.name} excludes all its {len(manifest.excluded)} scans. Empty the column"
        raise ManifestError(f"{msg} 'excluded' in the rows that are to be used.")


def _check_filled(manifest: Manifest) -> None:
    for row in manifest.rows:
        for column in ("scan", "patient", "label"):
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
    known = manifest.labels or THREE_CLASSES
    wrong = [row for row in manifest.rows if row.label not in known]
    if wrong:
        message = unknown_label_message(wrong[0].label, known)
        more = f" {len(wrong)} rows in all have an unknown label." if len(wrong) > 1 else ""
        raise UnknownLabelError(
            f"{manifest.name}, row {wrong[0].number}: {message}{more} Correct the column 'label'."
        )


def _check_scans_differ(manifest: Manifest) -> None:
    by_path: dict[Path, list[ManifestRow]] = defaultdict(list)
    for row in manifest.rows:
        by_path[manifest.path(row).resolve()].append(row)
    for rows in by_path.values():
        # A folder may hold several series, each named by its UID.
        series = [row.others.get("series", "") for row in rows]
        if len(set(series)) < len(series):
            msg = (
                f"{manifest.name}: {describe_rows(rows)} are the same scan ({rows[0].scan}). "
                "Each scan counts once: keep one of the rows."
            )
            raise ManifestError(msg)

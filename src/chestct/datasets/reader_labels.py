"""Labels that several readers gave to the same scans, and one label per scan by a stated rule.

A scan on which the rule decides nothing keeps its row with a reason in the column `excluded`, so
that it is counted and never trained on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64

from chestct.datasets.manifest import (
    HEADER_ROWS,
    Manifest,
    ManifestError,
    ManifestRow,
    read_lines,
    read_row,
)
from chestct.labels import FINDING_PREFIX, classes_among
from chestct.lookup import look_up, unknown_name_message
from chestct.report import as_csv, as_markdown_table

READER_PREFIX: Final = "reader_"
"""Columns of a table with one row per scan: one per reader."""
_UNDECIDED: Final = "readers disagree"
_TOO_FEW: Final = "too few readers"
"""Reasons for leaving a scan out."""


@dataclass(frozen=True)
class _ReadScan:
    """One scan, its label empty, and what each reader who read it said."""

    row: ManifestRow
    given: Mapping[str, str]

    @property
    def is_disputed(self) -> bool:
        """Whether two readers gave it different labels."""
        return len(set(self.given.values())) > 1


@dataclass(frozen=True)
class Readings:
    """Scans with the labels of several readers; both in the order in which they first occur."""

    scans: tuple[_ReadScan, ...]
    readers: tuple[str, ...]
    labels: tuple[str, ...]
    folder: Path
    name: str

    @classmethod
    def read(cls, path: str | Path, labels: Sequence[str] = ()) -> Readings:
        """Read a table of readers' labels.

        Either one line per scan and reader, with the columns `scan`, `patient`, `reader` and
        `label`, or one line per scan, with `scan`, `patient` and a column `reader_NAME` per reader;
        an empty cell means not read. All other columns are those of a manifest.

        `labels` are the classes that may be given; empty: those that occur.

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
        findings = [name for name in header if name.startswith(FINDING_PREFIX)]
        if findings:
            msg = (
                f"{file.name} has a column per finding ('{findings[0]}'), and readers are compared"
            )
            msg += " on one label at a time. Give each finding a table of its own."
            raise ManifestError(msg)
        columns = [name for name in header if name.startswith(READER_PREFIX)]
        if {"reader", "label"} <= set(header):
            found = _gather_lines(file.name, numbered)
        elif columns:
            found = [_split_line(file.name, number, cells, columns) for number, cells in numbered]
        else:
            msg = f"{file.name} names no readers. Give the columns 'reader' and 'label', or one"
            raise ManifestError(f"{msg} column such as '{READER_PREFIX}anna' per reader.")
        labels = labels or classes_among(label for scan in found for label in scan.given.values())
        _check(file.name, found, labels)
        readers = tuple(dict.fromkeys(reader for scan in found for reader in scan.given))
        return cls(tuple(found), readers, tuple(labels), file.parent, file.name)

    def agree_on(
        self, rule: str = "majority", *, adjudicator: str = "", least_readers: int = 2
    ) -> Manifest:
        """One label per scan by a rule; scans without one are excluded, with the reason.

        The adjudicator decides where the others differ under "adjudicator", and where named ties
        under "majority"; not counted among the readers that a scan must have.

        Raises:
            UnknownNameError: There is no such rule.
            ManifestError: The adjudicator read nothing, or no scan is decided.
        """
        decide = look_up(_RULES, rule, kind="rule")
        if rule == "adjudicator" and not adjudicator:
            raise ManifestError(
                "The rule 'adjudicator' needs the name of a reader: --adjudicator NAME"
            )
        if adjudicator and adjudicator not in self.readers:
            message = unknown_name_message(adjudicator, self.readers, kind="reader")
            raise ManifestError(f"{self.name}: {message}")
        rows = []
        for scan in self.scans:
            others = {r: label for r, label in scan.given.items() if r != adjudicator}
            label = decide(others, scan.given.get(adjudicator, ""))
            if scan.row.excluded:
                rows.append(replace(scan.row, label=label))
            elif len(others) < least_readers:
                rows.append(replace(scan.row, excluded=_TOO_FEW))
            else:
                rows.append(replace(scan.row, label=label, excluded="" if label else _UNDECIDED))
        used = {row.label for row in rows if not row.excluded}
        labels = tuple(label for label in self.labels if label in used)
        return Manifest(tuple(rows), labels, self.folder, self.name)

    def judge(self, rng: np.random.Generator, *, without: str = "") -> _AgreementReport:
        """Every kappa and its interval, `without` an adjudicator, who reads disputed scans only."""
        readers = tuple(reader for reader in self.readers if reader != without)
        pairs = tuple(_judge(self, pair, rng) for pair in combinations(readers, 2))
        everyone = _judge(self, readers, rng) if len(readers) > 2 else None
        disputed = sum(scan.is_disputed for scan in self.scans)
        return _AgreementReport(pairs, everyone, len(self.scans), disputed)

    def files(
        self, decided: Manifest, report: _AgreementReport, rule: Mapping[str, object]
    ) -> dict[str, str]:
        """How far readers agree, by name of file: for people, for programs, what is disputed."""
        document = {"schema": "chestct.readers", "schema_version": 1, "rule": dict(rule)}
        return {
            "disputed.csv": _disputes_csv(self, decided),
            "agreement.json": json.dumps(document | asdict(report), indent=1, allow_nan=False)
            + "\n",
            "agreement.md": _agreement_markdown(report),
        }


def _majority(given: Mapping[str, str], adjudicated: str) -> str:
    """The label that most readers gave; of several with as many, the adjudicator's or none."""
    counts = Counter(given.values()).most_common()
    if not counts:
        return ""
    leading = [label for label, votes in counts if votes == counts[0][1]]
    return leading[0] if len(leading) == 1 else adjudicated


def _unanimous(given: Mapping[str, str], adjudicated: str) -> str:
    """The label that all readers gave, else none."""
    del adjudicated
    labels = set(given.values())
    return labels.pop() if len(labels) == 1 else ""


def _adjudicator(given: Mapping[str, str], adjudicated: str) -> str:
    """The label that all other readers gave; where they differ, the adjudicator's."""
    return _unanimous(given, "") or adjudicated


_RULES: Final[dict[str, Callable[[Mapping[str, str], str], str]]] = {
    "majority": _majority,
    "unanimous": _unanimous,
    "adjudicator": _adjudicator,
}
"""Rule name to a function of the readers' labels and the adjudicator's; "" decides nothing."""


def _split_line(
    name: str, number: int, cells: Mapping[str, str], columns: Sequence[str]
) -> _ReadScan:
    """A line with a column per reader."""
    rest = {column: cell for column, cell in cells.items() if column not in columns}
    given = {
        column.removeprefix(READER_PREFIX): cells[column].strip()
        for column in columns
        if cells[column].strip()
    }
    return _ReadScan(_row_of(name, number, rest), given)


def _gather_lines(name: str, numbered: Sequence[tuple[int, Mapping[str, str]]]) -> list[_ReadScan]:
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
    return [_ReadScan(_row_of(name, *rests[scan]), given[scan]) for scan in rests]


def _row_of(name: str, number: int, cells: Mapping[str, str]) -> ManifestRow:
    row = read_row(name, number, list(cells), list(cells.values()))
    for column in ("scan", "patient"):
        if not getattr(row, column):
            raise ManifestError(f"{name}, row {number}: the column '{column}' is empty.")
    return replace(row, label="")


def _check(name: str, scans: Sequence[_ReadScan], labels: Sequence[str]) -> None:
    if not scans:
        raise ManifestError(f"{name} lists no scans. Add lines below the header.")
    for scan in scans:
        for label in scan.given.values():
            if label not in labels:
                message = unknown_name_message(label, labels, kind="label")
                raise ManifestError(f"{name}, row {scan.row.number}: {message}")
    seen: dict[str, int] = {}
    for scan in scans:
        first = seen.setdefault(scan.row.scan, scan.row.number)
        if first != scan.row.number:
            msg = f"{name}: rows {first} and {scan.row.number} are the same scan. Keep one line"
            raise ManifestError(f"{msg} per scan.")


_REPLICATES: Final = 2000
_LEVEL: Final = 0.95
_MAX_UNDEFINED_SHARE: Final = 0.05

_Weights = Int64[np.ndarray, "replicate scan"]
_Given = Int64[np.ndarray, "scan reader"]
_Kappas = tuple[float, Float64[np.ndarray, " replicate"]]


@dataclass(frozen=True)
class _Agreement:
    """Readers' agreement beyond chance on the scans that all of them read, with a 95 % interval.

    `same` is the share of these scans on which they all say the same, `note` why something lacks.
    """

    readers: tuple[str, ...]
    num_scans: int
    same: float | None
    kappa: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class _AgreementReport:
    """Cohen's kappa of every pair of readers, and Fleiss' of all where they are three or more."""

    pairs: tuple[_Agreement, ...]
    all_readers: _Agreement | None
    num_scans: int
    num_disputed: int


def _cohen_kappas(
    first: Int64[np.ndarray, " scan"],
    second: Int64[np.ndarray, " scan"],
    weights: _Weights,
    num_labels: int,
) -> Float64[np.ndarray, " replicate"]:
    """Cohen's kappa of every replicate; NaN where both name one label only."""
    cells = np.eye(num_labels**2)[first * num_labels + second]
    tables = (weights @ cells).reshape(-1, num_labels, num_labels)
    totals = tables.sum(axis=(1, 2))
    same = np.trace(tables, axis1=1, axis2=2) / totals
    chance = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1) / totals**2
    return _beyond_chance(same, chance)


def _fleiss_kappas(
    counts: Int64[np.ndarray, "scan label"], weights: _Weights
) -> Float64[np.ndarray, " replicate"]:
    """Fleiss' kappa of every replicate; NaN where all name one label only."""
    num_readers = int(counts[0].sum())
    totals = weights.sum(axis=1)
    same = ((counts**2).sum(axis=1) - num_readers) / (num_readers * (num_readers - 1))
    shares = weights @ counts / (totals * num_readers)[:, None]
    return _beyond_chance(weights @ same / totals, (shares**2).sum(axis=1))


def _draw_weights(
    patients: Sequence[str], rng: np.random.Generator, num: int = _REPLICATES
) -> _Weights:
    """How often each scan stands in each replicate; patients are drawn with all their scans."""
    names = {name: index for index, name in enumerate(dict.fromkeys(patients))}
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num)
    weights: _Weights = drawn[:, [names[patient] for patient in patients]].astype(np.int64)
    return weights


def _disputes_csv(readings: Readings, decided: Manifest) -> str:
    """The scans on which readers disagree: what each said, and what was decided."""
    rows = {row.scan: row for row in (*decided.rows, *decided.excluded)}
    lines: list[list[object]] = []
    for scan in readings.scans:
        if scan.is_disputed:
            row = rows[scan.row.scan]
            said = [scan.given.get(reader, "") for reader in readings.readers]
            lines.append([scan.row.number, scan.row.scan, *said, row.label, row.excluded])
    return as_csv(["row", "scan", *readings.readers, "decided", "excluded"], lines)


def _agreement_markdown(report: _AgreementReport) -> str:
    header = ["readers", "scans", "same", "kappa", "95 % interval", "note"]
    lines: list[list[str]] = []
    everyone = [report.all_readers] if report.all_readers else []
    for kind, found in (("Cohen", report.pairs), ("Fleiss", everyone)):
        lines += [_cells(kind, each) for each in found]
    disputed = f"{report.num_disputed} of {report.num_scans} scans are disputed."
    return f"{as_markdown_table(header, lines)}\n\n{disputed}\n"


def _judge(readings: Readings, readers: tuple[str, ...], rng: np.random.Generator) -> _Agreement:
    """Cohen's kappa of a pair of readers, Fleiss' of more."""
    is_pair = len(readers) == 2
    who = "both" if is_pair else "all"
    scans = [scan for scan in readings.scans if set(readers) <= set(scan.given)]
    if not scans:
        return _Agreement(readers, 0, None, None, note=f"no scan was read by {who}")
    given = np.array([[readings.labels.index(scan.given[r]) for r in readers] for scan in scans])
    same = float((given == given[:, :1]).all(axis=1).mean())
    if len(np.unique(given)) < 2:
        return _Agreement(readers, len(scans), same, None, note=f"{who} name one label throughout")
    weights = _draw_weights([scan.row.patient for scan in scans], rng)
    kappa, spread = (_cohen if is_pair else _fleiss)(given, weights, len(readings.labels))
    return _Agreement(readers, len(scans), same, float(kappa), *_interval(spread))


def _cohen(given: _Given, weights: _Weights, num_labels: int) -> _Kappas:
    """Cohen's kappa of two readers, and of every replicate."""
    from sklearn.metrics import cohen_kappa_score

    first, second = given.T
    kappa = cohen_kappa_score(first, second, labels=range(num_labels))
    return kappa, _cohen_kappas(first, second, weights, num_labels)


def _fleiss(given: _Given, weights: _Weights, num_labels: int) -> _Kappas:
    """Fleiss' kappa of any number of readers, and of every replicate."""
    from statsmodels.stats.inter_rater import fleiss_kappa

    counts = (given[:, :, None] == np.arange(num_labels)).sum(axis=1)
    return fleiss_kappa(counts, method="fleiss"), _fleiss_kappas(counts, weights)


def _beyond_chance(
    same: Float64[np.ndarray, " replicate"], chance: Float64[np.ndarray, " replicate"]
) -> Float64[np.ndarray, " replicate"]:
    room = 1 - chance
    is_defined = room > 1e-12
    kappas = np.full(same.shape, np.nan)
    kappas[is_defined] = (same - chance)[is_defined] / room[is_defined]
    return kappas


def _interval(
    spread: Float64[np.ndarray, " replicate"],
) -> tuple[float | None, float | None, str]:
    undefined = float(np.isnan(spread).mean())
    if undefined > _MAX_UNDEFINED_SHARE:
        return None, None, f"no interval: undefined in {undefined:.0%} of the replicates"
    low, high = np.nanquantile(spread, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    note = "all replicates are equal: the interval is too narrow" if low == high else ""
    return float(low), float(high), note


def _cells(kind: str, each: _Agreement) -> list[str]:
    same = "" if each.same is None else f"{each.same:.1%}"
    kappa = "" if each.kappa is None else f"{each.kappa:.3f}"
    ends = "" if each.low is None or each.high is None else f"{each.low:.3f} to {each.high:.3f}"
    who = f"{kind}: {', '.join(each.readers)}"
    return [who, str(each.num_scans), same, kappa, ends, each.note]

"""Folders of results as `chestct classify --out` writes them, and their words for the page.

A scan is asked for by a number that is made of its folder's name; no name that a request holds is
ever looked up on the disk.

What people say of answers is a table beside them that `chestct dataset readers` takes: one line per
scan with a column `reader_NAME` per reader, the label that this reader gives it. Who is unsure
gives none. What was said of the answer, and a note, stand in columns of their own.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from chestct.analysis import SCAN_FACTS
from chestct.datasets.reader_labels import READER_PREFIX
from chestct.errors import ChestCTError
from chestct.evaluation.predictions import Predictions, read_any_predictions
from chestct.labels import THREE_CLASSES, LabelSet
from chestct.pipeline import scan_name
from chestct.report import as_csv, from_cell, read_plain_text
from chestct.result import ScanResult
from chestct.storage import write_text
from chestct.writers import OUTPUTS, WRITERS
from chestct.writers.json_report import ResultDocument
from chestct.writers.wording import (
    bars_of,
    eyebrow_words,
    meaning_words,
    method_words,
    named,
    percent,
    provenance_words,
)

_RESULT_FILE: Final = "result.json"
_MOST_JSON_BYTES: Final = 2**24
_MOST_FOLDERS: Final = 20_000
Words = dict[str, object]


@dataclass(frozen=True)
class Entry:
    """A scan that was classified.

    Attributes:
        number: Its identifier.
        folder: Its folder of results.
        document: What `result.json` holds.
        written_at: When that was written, in seconds since 1970.
    """

    number: str
    folder: Path
    document: ResultDocument
    written_at: float

    @property
    def files(self) -> list[tuple[str, Path]]:
        """The outputs in its folder: writer and file, in the order of the table of writers."""
        return _files_of(self.folder)

    def row(self, other: ResultDocument | None = None) -> Words:
        """A line of the list; `other` is another classifier's answer on the same voxels."""
        result = self.document.as_result()
        return {
            "id": self.number,
            "scan": result.scan,
            "decision": result.decision,
            **_answer_words(result),
            "share": result.probabilities.get(result.decision),
            "lungs_l": round(result.lung_volume_l, 2),
            "num_warnings": len(result.warnings) + len(result.unsuitable_reasons),
            "seconds": result.timings_s.total,
            "written_at": datetime.fromtimestamp(self.written_at, UTC).isoformat(
                timespec="seconds"
            ),
            "classifier": f"{result.provenance.classifier} {result.provenance.classifier_version}",
            "other": None if other is None else _other_words(other.as_result(), result),
        }


class Results:
    """What lies in a folder of results; looked at anew each time, read only where it changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[tuple[float, int], Entry | None]] = {}

    def entries(self) -> list[Entry]:
        """All scans, the newest first."""
        found = [entry for entry in map(self._read, self._folders()) if entry is not None]
        return sorted(found, key=lambda entry: (-entry.written_at, entry.folder.name))

    def find(self, number: str) -> Entry | None:
        """The scan of this identifier, if it is there."""
        return next((entry for entry in self.entries() if entry.number == number), None)

    @property
    def num_unreadable(self) -> int:
        """Folders whose `result.json` is none of this version, as far as they were looked at."""
        return sum(entry is None for _, entry in self._known.values())

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        folders = [path for path in self.folder.iterdir() if is_plain(path, is_folder=True)]
        return [f for f in sorted(folders)[:_MOST_FOLDERS] if is_plain(f / _RESULT_FILE)]

    def _read(self, folder: Path) -> Entry | None:
        try:
            status = (folder / _RESULT_FILE).stat()
        except OSError:
            return None
        state = (status.st_mtime, status.st_size)
        known = self._known.get(folder.name)
        if known is None or known[0] != state:
            document = _document_in(folder)
            number = number_of(folder.name)
            entry = None
            if document is not None:
                entry = Entry(number, folder, document, status.st_mtime)
            self._known[folder.name] = (state, entry)
            return entry
        return known[1]


def number_of(folder_name: str) -> str:
    """The identifier of a folder of results: nothing of its name can be read off it."""
    return hashlib.sha256(folder_name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def is_plain(path: Path, *, is_folder: bool = False) -> bool:
    """Whether there is a file, or a folder, of this name, and no link to one."""
    try:
        return not path.is_symlink() and (path.is_dir() if is_folder else path.is_file())
    except OSError:
        return False


def hash_in(folder: Path) -> str:
    """Hash of the voxels that the results in a folder are of; empty where none can be told."""
    document = _document_in(folder)
    return "" if document is None else document.provenance.pixel_sha256


def _document_in(folder: Path) -> ResultDocument | None:
    path = folder / _RESULT_FILE
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            return None
        return ResultDocument.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def _files_of(folder: Path) -> list[tuple[str, Path]]:
    """The outputs in a folder of results: writer and file, in the order of the table of writers."""
    return [
        (writer, path)
        for writer in WRITERS
        for pattern in OUTPUTS[writer]
        for path in sorted(folder.glob(pattern))
        if is_plain(path)
    ]


def _answer_words(result: ScanResult) -> Words:
    share = result.probabilities.get(result.decision)
    return {
        "verdict": result.verdict,
        "percent": "" if share is None else percent(share),
        "doubt": result.doubt,
    }


def _other_words(other: ScanResult, result: ScanResult) -> Words:
    return {**_answer_words(other), "agrees": other.decision == result.decision}


_COLUMNS: Final[dict[str, Callable[[Words], object]]] = {
    "scan": lambda row: row["scan"],
    "decision": lambda row: row["decision"],
    "probability": lambda row: row["share"],
    "certainty": lambda row: row["doubt"] or "certain",
    "lungs_l": lambda row: row["lungs_l"],
    "warnings": lambda row: row["num_warnings"],
    "seconds": lambda row: row["seconds"],
    "classified_at": lambda row: row["written_at"],
    "classifier": lambda row: row["classifier"],
}


def rows_csv(rows: Iterable[Words]) -> str:
    """The list as CSV."""
    return as_csv(list(_COLUMNS), [[take(row) for take in _COLUMNS.values()] for row in rows])


def page_of(number: str, document: ResultDocument, folder: Path | None) -> Words:
    """All that the page says of a scan, in the words of the report."""
    files = [] if folder is None else _files_of(folder)
    result = document.as_result()
    return {
        "id": number,
        "scan": result.scan,
        "decision": result.decision,
        "verdict": result.verdict,
        "eyebrow": eyebrow_words(result),
        "is_suitable": result.is_suitable,
        "doubt": result.doubt,
        "bars": bars_of(result),
        "labels": {each.name: each.words for each in result.label_set.classes},
        "meaning": meaning_words(result),
        "reasons": document.unsuitable_reasons,
        "warnings": document.warnings,
        "notice": document.notice,
        "figures": _figures(document),
        "facts": named(document.scan_facts, SCAN_FACTS),
        "provenance": provenance_words(document.provenance.model_dump()),
        "slices": document.analysed_slices.model_dump(),
        "evidence": _evidence(document, result.label_set),
        "not_written": document.not_written,
        "files": [
            {
                "name": path.relative_to(folder).as_posix(),
                "bytes": path.stat().st_size,
                "words": WRITERS[writer].summary,
            }
            for writer, path in files
            if folder is not None
        ],
        "has_preview": any(path.name == "preview.png" for _, path in files),
        "is_saved": folder is not None,
    }


def _figures(document: ResultDocument) -> list[list[str]]:
    """The numbers under the answer: name, value, unit."""
    slices, explained = document.analysed_slices, document.explanation
    figures = [
        ["Lung volume", f"{document.lung_volume_l:.2f}", "litres"],
        ["Slices analysed", f"{slices.first}–{slices.last}", f"of {slices.total}"],
        ["Time", f"{document.timings_s.total:.1f}", "seconds"],
    ]
    if explained is not None and explained.shares:
        share = percent(explained.shares.get("lungs", 0.0))
        figures.append(["Highlighted", share, "of the lungs"])
    return figures


def _evidence(document: ResultDocument, classes: LabelSet) -> Words | None:
    explained = document.explanation
    if explained is None:
        return None
    return {
        "words": f"Evidence for “{classes.words(explained.label)}”",
        "method": method_words(explained.method, explained.layer),
        "threshold": explained.threshold,
        "is_disease": classes.is_finding(explained.label),
        "by_slice": explained.by_slice,
        "peaks": [[peak.slice, round(peak.evidence, 4)] for peak in explained.peaks],
        "hottest": None if explained.hottest is None else explained.hottest.model_dump(),
        "shares": {region: percent(share) for region, share in explained.shares.items()},
    }


def scans_below(folder: Path) -> dict[str, list[Path]]:
    """What may be scans in a folder, by the names that results of them have."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        found.setdefault(scan_name(path), []).append(path)
        if is_plain(path, is_folder=True):
            for below in sorted(path.iterdir()):
                found.setdefault(scan_name(below), []).append(below)
                found.setdefault(f"{scan_name(path)}-{scan_name(below)}", []).append(below)
    return found


@dataclass(frozen=True)
class Evaluation:
    """An evaluation in a folder with `metrics.json`, and `predictions.csv` in it or beside it."""

    folder: Path

    def words(self, entries: Sequence[Entry]) -> Words:
        """Its figures and the scans that were answered wrongly, linked to their results.

        Raises:
            ChestCTError: The predictions are damaged.
            OSError: A file cannot be read.
            ValueError: `metrics.json` is damaged.
        """
        record = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        pictures = [path.name for path in self.pictures]
        places = [self.folder / "predictions.csv", self.folder.parent / "predictions.csv"]
        found = next((path for path in places if is_plain(path)), None)
        said = None if found is None else read_any_predictions(found)
        predictions = said if isinstance(said, Predictions) else None
        return {
            "name": str(record.get("classifier", "")),
            "num_scans": record.get("num_scans"),
            "figures": _overall(record),
            "pictures": pictures,
            "wrong": [] if predictions is None else _wrong(predictions, entries),
            "has_predictions": predictions is not None,
        }

    @property
    def pictures(self) -> list[Path]:
        """Its pictures."""
        return [path for path in sorted(self.folder.glob("*.png")) if is_plain(path)]


def _overall(record: Mapping[str, object]) -> list[list[str]]:
    """Each figure over all classes: name, value, interval."""
    overall: object = record.get("overall", {})
    lines = []
    for name, estimate in overall.items() if isinstance(overall, dict) else []:
        value, low, high = (estimate.get(key) for key in ("value", "low", "high"))
        if value is not None:
            ends = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
            lines.append([name.replace("_", " "), f"{value:.3f}", ends])
    return lines


def _wrong(predictions: Predictions, entries: Sequence[Entry]) -> list[Words]:
    """The scans whose most probable class is not the true one, the surest first."""
    numbers = {entry.document.scan: entry.number for entry in entries}
    numbers |= {entry.folder.name: entry.number for entry in entries}
    decisions, shares = predictions.decisions, predictions.confidences
    classes = LabelSet.of_names(predictions.labels)
    return [
        {
            "scan": scan_name(predictions.scans[i]),
            "truth": classes.words(predictions.labels[int(predictions.truth[i])]),
            "answer": classes.words(predictions.labels[int(decisions[i])]),
            "percent": percent(float(shares[i])),
            "id": numbers.get(scan_name(predictions.scans[i])),
        }
        for i in predictions.wrong_rows
    ]


_VERDICTS: Final = ("right", "wrong", "unsure")
READINGS_FILE: Final = "readers.csv"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_MOST_NOTE: Final = 2000
_FIRST: Final = ("scan", "patient", "answer")


@dataclass(frozen=True)
class Reading:
    """What one reader said of one scan.

    Attributes:
        reader: Their name: letters, digits, "-" and "_".
        verdict: One of `_VERDICTS`, of the answer.
        label: The class they give the scan; empty where they are unsure.
        note: Anything more.
    """

    reader: str
    verdict: str
    label: str
    note: str = ""


class Readings:
    """The table, read anew each time: a spreadsheet may have it open."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def of(self, scan: str) -> list[Reading]:
        """What was said of a scan."""
        row = self._rows().get(scan, {})
        readers = [name.removeprefix("verdict_") for name in row if name.startswith("verdict_")]
        return [
            Reading(
                reader,
                row[f"verdict_{reader}"],
                row.get(f"{READER_PREFIX}{reader}", ""),
                row.get(f"note_{reader}", ""),
            )
            for reader in readers
            if row[f"verdict_{reader}"]
        ]

    def verdicts(self) -> dict[str, list[str]]:
        """Scan to what readers said of its answer."""
        return {scan: [each.verdict for each in self.of(scan)] for scan in self._rows()}

    def add(self, scan: str, answer: str, reading: Reading, labels: Sequence[str]) -> None:
        """Keep what somebody said of a decision; what they said before of this scan is replaced.

        A scan is named as its patient, until somebody corrects it. The labels may be given beside
        `THREE_CLASSES`.

        Raises:
            ChestCTError: A name, verdict or label is none.
            WriteError: The table cannot be written.
        """
        _check_reading(reading, labels)
        rows, reader = self._rows(), reading.reader
        row = rows.setdefault(scan, {"scan": scan, "patient": scan, "answer": answer})
        row["answer"] = answer
        row[f"{READER_PREFIX}{reader}"] = reading.label
        row[f"verdict_{reader}"] = reading.verdict
        row[f"note_{reader}"] = " ".join(reading.note.split())
        header = [*_FIRST, *dict.fromkeys(c for each in rows.values() for c in each)]
        columns = list(dict.fromkeys(header))
        lines = [[each.get(column, "") for column in columns] for each in rows.values()]
        write_text(self.file, as_csv(columns, lines))

    def _rows(self) -> dict[str, dict[str, str]]:
        """Scan to its line.

        Raises:
            ChestCTError: The table is damaged.
        """
        if not self.file.exists():
            return {}
        try:
            lines = list(csv.DictReader(io.StringIO(read_plain_text(self.file)), strict=True))
            rows = [{k: from_cell(v or "") for k, v in line.items() if k} for line in lines]
            return {row["scan"]: row for row in rows}
        except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
            msg = f"{self.file.name} is no table of readers' labels. Move it away, or mend it."
            raise ChestCTError(msg) from error


def _check_reading(reading: Reading, labels: Sequence[str]) -> None:
    if not _NAME.fullmatch(reading.reader):
        msg = "A reader's name has letters, digits, - and _, at most 40 of them. Type another one."
        raise ChestCTError(msg)
    if reading.verdict not in _VERDICTS:
        raise ChestCTError("An answer is right, wrong, or you are unsure. Choose one of them.")
    if len(reading.note) > _MOST_NOTE:
        raise ChestCTError(f"A note has at most {_MOST_NOTE} characters. Shorten it.")
    if reading.verdict == "unsure" and reading.label:
        raise ChestCTError("Who is unsure gives no label. Leave it out, or choose another answer.")
    if reading.verdict != "unsure" and reading.label not in (*THREE_CLASSES, *labels):
        known = ", ".join(dict.fromkeys((*THREE_CLASSES, *labels)))
        raise ChestCTError(f"What is it then? A label was expected: {known}.")

"""What people said of answers, as a table that `chestct dataset readers` takes.

One line per scan with a column `reader_NAME` per reader: the label that this reader gives it. Who
is unsure gives none. What was said of the answer, and a note, stand in columns of their own.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chestct.datasets.reader_labels import READER_PREFIX
from chestct.errors import ChestCTError
from chestct.labels import THREE_CLASSES
from chestct.report.tables import as_csv, from_cell, read_plain_text
from chestct.storage import write_text

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
    """The table, read anew each time: a spreadsheet may have it open.

    Args:
        file: Where it is, or will be.
    """

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
        """Keep what somebody said; what they said before of this scan is replaced.

        Args:
            scan: Name or path of the scan; its patient's name, until somebody corrects it.
            answer: The decision that was looked at.
            reading: What was said.
            labels: The classes that may be given, beside `THREE_CLASSES`.

        Raises:
            ChestCTError: A name, verdict or label is none.
            WriteError: The table cannot be written.
        """
        _check(reading, labels)
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


def _check(reading: Reading, labels: Sequence[str]) -> None:
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

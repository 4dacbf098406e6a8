"""Tables as text: Markdown for people, CSV for programs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

_RUNS: Final = re.compile(r"'*[=+\-@\t\r]")
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def as_csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """CSV with Unix line ends; None becomes an empty cell.

    A text that a spreadsheet would run as a formula gets an apostrophe before it; `from_cell` takes
    it away again.
    """
    return "".join(_as_row(line) for line in (header, *lines))


def read_plain_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is no such text, or holds a NUL: text in UTF-16 and damage do.
    """
    text = path.read_text(encoding="utf-8-sig")
    at = text.find("\0")
    if at >= 0:
        raise UnicodeDecodeError("utf-8", b"\0", 0, 1, f"a NUL at character {at}")
    return text


def from_cell(cell: str) -> str:
    """A text as it was before `as_csv` made a cell of it."""
    return cell[1:] if cell.startswith("'") and _RUNS.match(cell) else cell


def _as_row(line: Iterable[object]) -> str:
    text = io.StringIO()
    # Only characters of the line end are quoted, and a cell can hold either.
    csv.writer(text, lineterminator="\r\n").writerow(map(_as_cell, line))
    return text.getvalue()[:-2] + "\n"


def _as_cell(value: object) -> object:
    if isinstance(value, str) and _RUNS.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return "" if value is None else value


def as_markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table with a rule below its header; bars in cells are escaped."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
        for row in rows
    )


def p_value_text(p_value: float | None) -> str:
    """A p-value with four digits, or how small it is."""
    if p_value is None:
        return ""
    return "< 0.0001" if p_value < 0.0001 else f"{p_value:.4f}"

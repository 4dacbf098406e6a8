"""Tables as text: Markdown for people, CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def as_csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """CSV with Unix line ends; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in line] for line in lines)
    return text.getvalue()


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

"""Tables: Markdown and a terminal for people, CSV for programs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable
    from rich.text import Text

_RUNS: Final = re.compile(r"""['",;|\s]*[=+\-@＝＋－＠]|'*[\t\r\n]""")
"""How a cell begins that a spreadsheet could run: a sign, also full-width, or what it skips."""
_BAR: Final = re.compile(r"(?<!\\)\|")
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


@dataclass(frozen=True)
class Table:
    """A table of words under a caption; rows that are `marked`, from 0, are pointed out."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    marked: frozenset[int] = frozenset()

    @staticmethod
    def from_markdown(lines: str, caption: str = "") -> Table:
        """A table from its lines in Markdown, the headings first, without a rule under them."""
        columns, *rows = (
            tuple(cell.strip().replace("\\|", "|") for cell in _BAR.split(line.strip())[1:-1])
            for line in lines.splitlines()
        )
        marked = frozenset(
            i for i, row in enumerate(rows) if row == _marked_cells(map(_plain, row))
        )
        plain = (tuple(map(_plain, row)) if i in marked else row for i, row in enumerate(rows))
        return Table(columns, tuple(plain), caption, marked)

    def as_markdown(self) -> str:
        """The table under its caption."""
        rows = (_marked_cells(r) if i in self.marked else r for i, r in enumerate(self.rows))
        words = f"*{self.caption}*\n\n" if self.caption else ""
        return words + as_markdown_table(self.columns, rows)

    def as_latex(self, title: str) -> str:
        """The table in LaTeX, for the package booktabs, under a title and its caption."""
        cells = [[_latex(cell) for cell in row] for row in (self.columns, *self.rows)]
        for row in self.marked:
            cells[row + 1] = [rf"\textbf{{{cell}}}" for cell in cells[row + 1]]
        head, *body = (" & ".join(row) + r" \\" for row in cells)
        caption = _latex(". ".join(filter(None, (title, self.caption))))
        begin = [r"\begin{table}", rf"\caption{{{caption}}}"]
        begin += [rf"\begin{{tabular}}{{{'l' * len(self.columns)}}}", r"\toprule"]
        end = [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        return "\n".join((*begin, head, r"\midrule", *body, *end))


def _marked_cells(row: Iterable[str]) -> tuple[str, ...]:
    """The cells of a row in bold, as Markdown writes it."""
    return tuple(f"**{cell}**" if cell else "" for cell in row)


_LATEX: Final = str.maketrans(
    {mark: f"\\{mark}" for mark in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
)


def _latex(text: str) -> str:
    """A text as LaTeX prints it; a bracket at the start of a row would be taken for an option."""
    return ("{}" if text.startswith("[") else "") + text.translate(_LATEX)


def _plain(cell: str) -> str:
    return cell.removeprefix("**").removesuffix("**")


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


def read_csv(path: Path, *, strict: bool = True) -> list[list[str]]:
    """The cells of a CSV file in UTF-8, by comma or semicolon as its first line has them.

    `strict` refuses quotes that stand in no order.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is no such text.
        csv.Error: It is not well formed.
    """
    text = read_plain_text(path)
    delimiter = max(",;", key=text.split("\n", 1)[0].count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)
    return [[from_cell(cell) for cell in row] for row in rows]


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
    return "\n".join(map(_markdown_row, (header, ["---"] * len(header), *lines)))


def _markdown_row(cells: Iterable[str]) -> str:
    """One row of a table; bars in cells are escaped."""
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return "| " + " | ".join(escaped) + " |"


def markdown_line(*cells: object, is_marked: bool = False) -> str:
    """One row of a table, of cells and lists of cells; bold where it is to be pointed out."""
    flat = [str(c) for cell in cells for c in (cell if isinstance(cell, tuple | list) else (cell,))]
    return _markdown_row(_marked_cells(flat) if is_marked else flat)


def as_terminal_table(
    columns: Iterable[str], lines: Iterable[Iterable[str | Text]], *, right: Container[int] = ()
) -> TerminalTable:
    """A table without lines around it, for a console of rich.

    Words of others are shown as they are, whatever they hold. `right` are columns whose cells stand
    to the right.
    """
    from rich.table import Table as TerminalTable
    from rich.text import Text

    table = TerminalTable(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number in right else "left")
    for line in lines:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in line))
    return table


def p_value_text(p_value: float | None) -> str:
    """A p-value with four digits, or how small it is."""
    if p_value is None:
        return ""
    return "< 0.0001" if p_value < 0.0001 else f"{p_value:.4f}"

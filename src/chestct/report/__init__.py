"""A report as plain parts, so that the page and the Markdown file cannot say different things.

A report is written as a template in Markdown, prose with named fields, and read back into its
parts. Of Markdown it may use headings, paragraphs, lists, tables (without the rule under their
headings) and pictures; a line in asterisks before a table or after a picture is its caption. Its
page is one file that opens offline. Tables are also CSV for programs, and shown on a terminal.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from chestct import __version__

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.figure import Figure
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


def _markdown_line(*cells: object, is_marked: bool = False) -> str:
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


_CAPTION: Final = re.compile(r"\*([^*].*?)\*\n(?=\|)")
_PICTURE: Final = re.compile(r"!\[(.*)\]\(figures/(\w+)\.png\) \*(.*)\*")
_LINK: Final = re.compile(r"\[(.*)\]\(([\w./%~-]+)\)")
_MATPLOTLIB_ID: Final = re.compile(r' id="[A-Za-z0-9.]+_\d+"')
_DOTS_PER_INCH: Final = 110


@dataclass(frozen=True)
class Picture:
    """A figure, drawn when it is wanted, the words under it, and those instead of it."""

    name: str
    caption: str
    alt: str
    draw: Callable[[], Figure]

    def as_png(self) -> bytes:
        """The figure on white, for the Markdown file."""
        stream = io.BytesIO()
        self.draw().savefig(stream, format="png", dpi=_DOTS_PER_INCH, facecolor="white")
        return stream.getvalue()


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    items: tuple[str, ...]


Block: TypeAlias = str | Points | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in order.

    Its level is 1 for the report itself, 2 for a part of it, 3 for a section of a part.
    """

    title: str
    blocks: tuple[Block, ...]
    level: int

    @property
    def anchor(self) -> str:
        """Its name in the page's address."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Report:
    """A whole report; its first section is its title, and what stands above all parts."""

    sections: tuple[Section, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Every figure, in order."""
        blocks = (block for section in self.sections for block in section.blocks)
        return tuple(block for block in blocks if isinstance(block, Picture))

    def as_latex(self) -> str:
        """Its tables in LaTeX, each under the heading that it stands below."""
        tables = [
            block.as_latex(section.title)
            for section in self.sections
            for block in section.blocks
            if isinstance(block, Table)
        ]
        return "\n\n".join(("% Needs \\usepackage{booktabs}.", *tables)) + "\n"


@cache
def load_pages(package: str) -> Environment:
    """A package's page templates; everything put into them is escaped, nothing may be missing."""
    return _load_templates(package, is_html=True)


def fill_report(
    template: str,
    filters: Mapping[str, Callable[..., object]],
    draw: Mapping[str, Callable[[], Figure]] | None = None,
    **fields: object,
) -> Report:
    """A report from its template, "package/file", such as "chestct.studies/damage.md.j2".

    In a template `line(...)` writes a row of a table, of cells and lists of cells, in bold with
    `is_marked=True`; `{{ sentences | points }}` a list; `{{ p | p_value }}` a p-value; `{{ text |
    one_line }}` what others wrote. `filters` write other figures, `draw` makes pictures, both by
    name. A field that is named and not given is an error.
    """
    return _read_report(fill_template(template, filters, **fields), draw or {})


def fill_template(
    template: str, filters: Mapping[str, Callable[..., object]] | None = None, **fields: object
) -> str:
    """The text alone of a template, whatever it is; for the arguments see `fill_report`."""
    package, _, name = template.partition("/")
    templates = _load_templates(package, is_html=False)
    ours = {"points": _points, "p_value": p_value_text, "one_line": _one_line}
    templates.filters |= {**ours, **(filters or {})}
    text: str = templates.get_template(name).render(fields, line=_markdown_line)
    return text


def fill_blocks(template: str, **fields: object) -> dict[str, str]:
    """What each `{% block NAME %}` of a template says, by its name; see `fill_report`."""
    package, _, name = template.partition("/")
    found = _load_templates(package, is_html=False).get_template(name)
    return {
        block: "".join(write(found.new_context(fields))) for block, write in found.blocks.items()
    }


def fill_markdown(
    template: str, filters: Mapping[str, Callable[..., object]], **fields: object
) -> str:
    """A report without pictures as Markdown; for the arguments see `fill_report`."""
    return as_markdown(*fill_report(template, filters, None, **fields).sections)


def _points(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {each}" for each in sentences)


def _load_templates(package: str, *, is_html: bool) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package, "."),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def as_page(report: Report, colors: Mapping[str, str], made_with: str) -> str:
    """The whole report in one page: figures inline, light and dark, no scripts.

    The table of its first section are its key figures. `colors` maps every colour drawn in to the
    page's own.
    """
    drawn = {picture.name: _inline_svg(picture, colors) for picture in report.pictures}
    page = load_pages("chestct.report").get_template("page.html.j2")
    return page.render(
        report=report,
        drawn=drawn,
        version=__version__,
        kind_of=_kind_of,
        linked=_linked,
        made_with=made_with,
    )


def _kind_of(block: Block) -> str:
    return "paragraph" if isinstance(block, str) else type(block).__name__.lower()


def _linked(cell: str) -> str | Markup:
    """A cell that is one link, [words](place below the page), as such; any other as it is."""
    from markupsafe import Markup

    found = _LINK.fullmatch(cell)
    return Markup('<a href="{}">{}</a>').format(found[2], found[1]) if found else cell


def _inline_svg(picture: Picture, colors: Mapping[str, str]) -> Markup:
    """A figure as an element of the page, in the page's colours and letters."""
    from markupsafe import Markup, escape

    svg = _svg(picture)
    svg = svg[svg.index("<svg") :]
    for drawn, shown in colors.items():
        svg = svg.replace(drawn, shown)
    # Two figures of one page would carry the same names for their parts.
    svg = _MATPLOTLIB_ID.sub("", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="([^"]*)pt"', _sized, svg, count=1)
    alt = Markup('<svg role="img" aria-label="{}"').format(escape(picture.alt))
    return Markup(svg.replace("<svg", alt, 1))


def _sized(found: re.Match[str]) -> str:
    return f'{found[1]} style="max-width:{float(found[2]) * 4 / 3:.0f}px"'


def _svg(picture: Picture) -> str:
    """SVG text with real letters; the same figure gives the same text."""
    import matplotlib

    figure = picture.draw()
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": picture.name, "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


def _read_report(text: str, draw: Mapping[str, Callable[[], Figure]]) -> Report:
    """The parts of a report that is written in Markdown, as this module describes."""
    sections: list[tuple[str, int, list[Block]]] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        marks, _, title = block.partition(" ")
        if marks and not marks.strip("#"):
            sections.append((title, len(marks), []))
        else:
            sections[-1][2].append(_read_block(block, draw))
    return Report(tuple(Section(title, tuple(b), level) for title, level, b in sections))


def as_markdown(*sections: Section) -> str:
    """Sections as Markdown; figures are looked for in `figures/NAME.png`."""
    blocks: list[str] = []
    for section in sections:
        blocks.append("#" * section.level + f" {section.title}")
        blocks += [_markdown_block(block) for block in section.blocks]
    return "\n\n".join(blocks) + "\n"


def _read_block(block: str, draw: Mapping[str, Callable[[], Figure]]) -> Block:
    caption = _CAPTION.match(block)
    if block.startswith("|") or caption:
        rows = block[caption.end() :] if caption else block
        return Table.from_markdown(rows, caption[1] if caption else "")
    if block.startswith("- "):
        return Points(tuple(_one_line(item) for item in re.split(r"\n- ", block[2:])))
    picture = _PICTURE.fullmatch(_one_line(block))
    if picture and picture[2] in draw:
        return Picture(picture[2], picture[3], picture[1], draw[picture[2]])
    return _one_line(block)


def _one_line(text: str) -> str:
    """Text that others wrote, such as a card's, as part of one paragraph."""
    return " ".join(text.split())


def _markdown_block(block: Block) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, Points):
        return "\n".join(f"- {item}" for item in block.items)
    if isinstance(block, Table):
        return block.as_markdown()
    return f"![{block.alt}](figures/{block.name}.png)\n\n*{block.caption}*"

"""A report as plain parts, so that the page and the Markdown file cannot say different things.

A report is written as a template in Markdown, prose with named fields, and read back into its
parts. Of Markdown it may use headings, paragraphs, lists, tables (without the rule under their
headings) and pictures; a line in asterisks before a table or after a picture is its caption.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from chestct.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CAPTION: Final = re.compile(r"\*([^*].*?)\*\n(?=\|)")
_PICTURE: Final = re.compile(r"!\[(.*)\]\(figures/(\w+)\.png\) \*(.*)\*")


@dataclass(frozen=True)
class Picture:
    """A figure, drawn when it is wanted.

    Attributes:
        name: Of its file, without ending.
        caption: Words under it.
        alt: Words instead of it.
        draw: Makes it.
    """

    name: str
    caption: str
    alt: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    items: tuple[str, ...]


Block: TypeAlias = str | Points | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Attributes:
        title: The heading.
        blocks: Paragraphs, lists, tables and pictures, in order.
        level: 1 for the report itself, 2 for a part of it, 3 for a section of a part.
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


def read_report(text: str, draw: Mapping[str, Callable[[], Figure]]) -> Report:
    """The parts of a report that is written in Markdown, as this module describes.

    Args:
        text: The report.
        draw: What makes its pictures, by name.
    """
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


def as_latex(*sections: Section) -> str:
    """The tables of sections in LaTeX, each under the heading that it stands below."""
    tables = [
        block.as_latex(section.title)
        for section in sections
        for block in section.blocks
        if isinstance(block, Table)
    ]
    return "\n\n".join(("% Needs \\usepackage{booktabs}.", *tables)) + "\n"


def _read_block(block: str, draw: Mapping[str, Callable[[], Figure]]) -> Block:
    caption = _CAPTION.match(block)
    if block.startswith("|") or caption:
        rows = block[caption.end() :] if caption else block
        return Table.from_markdown(rows, caption[1] if caption else "")
    if block.startswith("- "):
        return Points(tuple(one_line(item) for item in re.split(r"\n- ", block[2:])))
    picture = _PICTURE.fullmatch(one_line(block))
    if picture and picture[2] in draw:
        return Picture(picture[2], picture[3], picture[1], draw[picture[2]])
    return one_line(block)


def one_line(text: str) -> str:
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

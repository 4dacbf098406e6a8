"""A report as plain parts, so that the page and the Markdown file cannot say different things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from chestct.evaluation.intervals import Estimate
from chestct.studies.audit_scores import percent_of, rounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table of words.

    Attributes:
        caption: What it shows.
        columns: Headings.
        rows: Cells, one tuple per row.
        marked: Rows to point out, counted from 0.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[int] = frozenset()


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
        level: 2 for a part of the report, 3 for a section of a part.
    """

    title: str
    blocks: tuple[Block, ...]
    level: int = 3


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        title: Its name.
        lead: What it is, in a sentence or two.
        key_figures: The few figures at the top: name, value, remark.
        sections: The rest.
    """

    title: str
    lead: str
    key_figures: tuple[tuple[str, str, str], ...]
    sections: tuple[Section, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Every figure, in order."""
        blocks = (block for section in self.sections for block in section.blocks)
        return tuple(block for block in blocks if isinstance(block, Picture))


def percent(estimate: Estimate, digits: int = 1) -> str:
    """A proportion in per cent, without the sign; a dash where it has no cases."""
    value = percent_of(estimate, digits)
    return "–" if value is None else f"{value:.{digits}f}"


def interval(estimate: Estimate, digits: int = 1) -> str:
    """Its 95 % interval in per cent, without the sign."""
    if estimate.low is None or estimate.high is None:
        return "–"
    ends = (rounded(100 * end, digits) for end in (estimate.low, estimate.high))
    return "–".join(f"{end:.{digits}f}" for end in ends)


def counted(estimate: Estimate) -> str:
    """Hits of total, such as 115/130."""
    return f"{estimate.hits}/{estimate.total}"


def with_interval(estimate: Estimate, digits: int = 1) -> str:
    """Per cent and interval, such as 88.5 (81.8–92.9)."""
    if estimate.low is None:
        return percent(estimate, digits)
    return f"{percent(estimate, digits)} ({interval(estimate, digits)})"


def p_words(p_value: float | None, digits: int = 3) -> str:
    """A p-value as it is printed; a dash where there is none."""
    return "–" if p_value is None else f"{rounded(p_value, digits):.{digits}f}"


def listed(numbers: tuple[int, ...]) -> str:
    """Numbers in words, such as 1, 2 and 3."""
    words = [str(number) for number in numbers]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)

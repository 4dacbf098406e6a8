"""The audit report as one HTML page that loads nothing, and as Markdown with its figures beside."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Final

from chestct import __version__
from chestct.studies import audit_pictures
from chestct.studies.audit_document import Block, Picture, Points, Report, Section, Table
from chestct.text_tables import as_markdown_table
from chestct.writers.page_templates import load_pages

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

_COLORS: Final = {
    audit_pictures.INK: "currentColor",
    audit_pictures.MUTED: "var(--muted)",
    audit_pictures.BLUE: "var(--blue)",
    audit_pictures.ORANGE: "var(--orange)",
    audit_pictures.GREEN: "var(--green)",
    audit_pictures.SOFT: "var(--line)",
}
"""Drawn colour to the page's."""
_MATPLOTLIB_ID: Final = re.compile(r' id="[A-Za-z0-9.]+_\d+"')
_DOTS_PER_INCH: Final = 110


def as_html(report: Report) -> str:
    """The whole report in one page: figures inline, light and dark, no scripts."""
    drawn = {picture.name: _inline_svg(picture) for picture in report.pictures}
    page = load_pages("chestct.studies").get_template("audit.html.j2")
    return page.render(
        report=report, drawn=drawn, version=__version__, kind_of=_kind_of, anchor=anchor
    )


def as_markdown(report: Report) -> str:
    """The same as Markdown; figures are looked for in `figures/NAME.png`."""
    lines = [f"# {report.title}", report.lead]
    lines.append(as_markdown_table(("", "", ""), report.key_figures))
    for section in report.sections:
        lines.append("#" * section.level + f" {section.title}")
        lines += [_markdown_block(block) for block in section.blocks]
    return "\n\n".join(lines) + "\n"


def as_png(picture: Picture) -> bytes:
    """A figure on white, for the Markdown file."""
    stream = io.BytesIO()
    picture.draw().savefig(stream, format="png", dpi=_DOTS_PER_INCH, facecolor="white")
    return stream.getvalue()


def _kind_of(block: Block) -> str:
    return "paragraph" if isinstance(block, str) else type(block).__name__.lower()


def _inline_svg(picture: Picture) -> Markup:
    """A figure as an element of the page, in the page's colours and letters."""
    from markupsafe import Markup, escape

    svg = _svg(picture.draw(), picture.name)
    svg = svg[svg.index("<svg") :]
    for drawn, shown in _COLORS.items():
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


def _svg(figure: Figure, name: str) -> str:
    """SVG text with real letters; the same figure gives the same text."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


def _markdown_block(block: Block) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, Points):
        return "\n".join(f"- {item}" for item in block.items)
    if isinstance(block, Table):
        rows = [
            tuple(f"**{cell}**" if cell and number in block.marked else cell for cell in row)
            for number, row in enumerate(block.rows)
        ]
        return f"*{block.caption}*\n\n" + as_markdown_table(block.columns, rows)
    return f"![{block.alt}](figures/{block.name}.png)\n\n*{block.caption}*"


def anchor(section: Section) -> str:
    """A section's name in the page's address."""
    return re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")

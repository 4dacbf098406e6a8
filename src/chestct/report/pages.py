"""Templates of a package filled in, and a report as one page that opens offline."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Final

from chestct import __version__
from chestct.report.document import Block, Picture, Report, as_markdown, one_line, read_report
from chestct.report.tables import markdown_row, marked_cells, p_value_text

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.figure import Figure

_MATPLOTLIB_ID: Final = re.compile(r' id="[A-Za-z0-9.]+_\d+"')
_LINK: Final = re.compile(r"\[(.*)\]\(([\w./%~-]+)\)")
_DOTS_PER_INCH: Final = 110


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
    """A report from its template, which `chestct.report.document` tells the form of.

    In a template `line(...)` writes a row of a table, of cells and lists of cells, in bold with
    `is_marked=True`; `{{ sentences | points }}` a list; `{{ p | p_value }}` a p-value;
    `{{ text | one_line }}` what others wrote.

    Args:
        template: Package and file, such as "chestct.studies/damage.md.j2".
        filters: How it writes other figures, by the names that it uses.
        draw: What makes its pictures, by name.
        **fields: What it names; what is not given is an error.
    """
    return read_report(fill_template(template, filters, **fields), draw or {})


def fill_template(
    template: str, filters: Mapping[str, Callable[..., object]] | None = None, **fields: object
) -> str:
    """The text alone of a template, whatever it is; for the arguments see `fill_report`."""
    package, _, name = template.partition("/")
    templates = _load_templates(package, is_html=False)
    ours = {"points": _points, "p_value": p_value_text, "one_line": one_line}
    templates.filters |= {**ours, **(filters or {})}
    text: str = templates.get_template(name).render(fields, line=_line)
    return text


def fill_markdown(
    template: str, filters: Mapping[str, Callable[..., object]], **fields: object
) -> str:
    """A report without pictures as Markdown; for the arguments see `fill_report`."""
    return as_markdown(*fill_report(template, filters, None, **fields).sections)


def _points(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {each}" for each in sentences)


def _line(*cells: object, is_marked: bool = False) -> str:
    flat = [str(c) for cell in cells for c in (cell if isinstance(cell, tuple | list) else (cell,))]
    return markdown_row(marked_cells(flat) if is_marked else flat)


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

    Args:
        report: What the page shows; the table of its first section are its key figures.
        colors: Every colour that its figures are drawn in to the page's own.
        made_with: The command that makes it.
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


def as_png(picture: Picture) -> bytes:
    """A figure on white, for the Markdown file."""
    stream = io.BytesIO()
    picture.draw().savefig(stream, format="png", dpi=_DOTS_PER_INCH, facecolor="white")
    return stream.getvalue()


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

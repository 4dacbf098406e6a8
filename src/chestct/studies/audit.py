"""The audit of both papers' figures: recomputed, put in words, written as page, text and JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chestct import __version__
from chestct.studies import audit_pictures
from chestct.studies.audit_document import (
    Block,
    Picture,
    Points,
    Report,
    Section,
    Table,
    counted,
    interval,
    percent,
)
from chestct.studies.audit_maseres import MaseresAudit, audit_maseres_paper
from chestct.studies.audit_roi import HEADLINE_ROW, RoiAudit, audit_roi_paper
from chestct.text_tables import as_markdown_table
from chestct.writers.pages import load_pages

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


def _as_png(picture: Picture) -> bytes:
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


SCHEMA_VERSION: Final = 1
HTML_NAME: Final = "audit.html"
MARKDOWN_NAME: Final = "audit.md"
JSON_NAME: Final = "audit.json"


@dataclass(frozen=True)
class Audit:
    """Both papers recomputed."""

    roi_aware: RoiAudit
    maseres: MaseresAudit


def audit_papers() -> Audit:
    """Recompute everything from the packaged facts; needs neither network nor data."""
    return Audit(roi_aware=audit_roi_paper(), maseres=audit_maseres_paper())


def report_of(audit: Audit) -> Report:
    """The audit in words, tables and figures."""
    from chestct.studies.audit_maseres_text import maseres_sections
    from chestct.studies.audit_roi_text import roi_sections

    return Report(
        title="What the published figures of two chest CT papers rest on",
        lead=(
            "Every figure here is recomputed from the predictions, counts and tables that the two "
            "papers and their public repositories publish. The report says what agrees and what "
            "differs; it does not say why, and nothing in it speaks of intent. Both papers made "
            "their predictions or outputs public, without which no such check would be possible."
        ),
        key_figures=key_figures(audit),
        sections=(*roi_sections(audit.roi_aware), *maseres_sections(audit.maseres), _method()),
    )


def key_figures(audit: Audit) -> tuple[tuple[str, str, str], ...]:
    """The few figures to remember: name, value, remark."""
    roi, row = audit.roi_aware, audit.roi_aware.row(HEADLINE_ROW)
    everyone = audit.maseres.no_errors[0]
    exact = [each.mcnemar.p_value or 1.0 for each in audit.maseres.tests]
    return (
        (
            "RoI-aware 3D ResNet, accuracy",
            f"{percent(row.official.accuracy)} %",
            f"{counted(row.official.accuracy)} with the label files "
            f"({interval(row.official.accuracy)}); printed {row.published.accuracy:.1f} %",
        ),
        (
            "Vectors of predictions",
            f"{len(roi.groups)} of {len(roi.rows)}",
            f"{len(roi.deviations)} workbook labels differ from the label files",
        ),
        (
            "MASERes, accuracy",
            counted(everyone.rate),
            f"{interval(everyone.rate)} % by Wilson's interval",
        ),
        (
            "McNemar's exact p",
            f"{min(exact):.2f}",
            "the smaller of the two; Table 5 prints 0.031 for the accuracy against 3D-AlexNet",
        ),
    )


def as_json(audit: Audit) -> str:
    """Every figure, as numbers; fractions are fractions, not per cent."""
    document = {
        "schema": "chestct.audit",
        "schema_version": SCHEMA_VERSION,
        "chestct_version": __version__,
        **_plain(audit),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def write_audit(audit: Audit, folder: Path) -> list[Path]:
    """Write page, Markdown with its figures, and JSON.

    Raises:
        WriteError: A file cannot be written.
    """
    from chestct.storage import make_folder, write_whole

    make_folder(folder)
    report = report_of(audit)
    for picture in report.pictures:
        write_whole(folder / "figures" / f"{picture.name}.png", _as_png(picture))
    return [
        write_whole(folder / HTML_NAME, as_html(report).encode()),
        write_whole(folder / MARKDOWN_NAME, as_markdown(report).encode()),
        write_whole(folder / JSON_NAME, as_json(audit).encode()),
    ]


def _plain(audit: Audit) -> dict[str, Any]:
    plain: dict[str, Any] = dataclasses.asdict(audit)
    return plain


def _method() -> Section:
    return Section(
        "How this was made",
        (
            "Intervals of proportions are Wilson's at 95 %, unless Clopper-Pearson is said. They "
            "take cases as independent. Percentages are rounded half up from the counts before "
            "they are compared with printed ones. No result is corrected for the number of "
            "comparisons.",
            "What cannot be recomputed from public files: the cross-validation of the RoI-aware "
            "paper case by case, any area under a ROC curve of that paper, DeLong's test for "
            "either paper, and the decisions of single patients in the MASERes paper.",
        ),
        level=2,
    )

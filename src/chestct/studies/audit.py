"""The audit of both papers' figures: recomputed, put in words, written as page, text and JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chestct import __version__
from chestct.studies.audit_document import Report, Section, counted, interval, percent
from chestct.studies.audit_maseres import MaseresAudit, audit_maseres_paper
from chestct.studies.audit_roi import HEADLINE_ROW, RoiAudit, audit_roi_paper

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
    from chestct.studies.audit_pages import as_html, as_markdown, as_png

    make_folder(folder)
    report = report_of(audit)
    for picture in report.pictures:
        write_whole(folder / "figures" / f"{picture.name}.png", as_png(picture))
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

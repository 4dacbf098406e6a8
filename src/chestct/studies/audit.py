"""The audit of both papers' figures: recomputed, put in words, written as page, text and JSON.

The words stand in `audit.md.j2`; here is what makes their numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from chestct import __version__
from chestct.evaluation.comparisons import MASERES_Z_DEFECTS
from chestct.evaluation.intervals import Estimate
from chestct.labels import THREE_CLASSES
from chestct.report.document import Report, as_markdown, read_report
from chestct.report.pages import as_page, as_png, fill_markdown
from chestct.report.tables import markdown_row, marked_cells
from chestct.studies import audit_pictures
from chestct.studies.audit_maseres import MaseresAudit, ModelAudit, audit_maseres_paper
from chestct.studies.audit_roi import AGREES, HEADLINE_ROW, RoiAudit, RowAudit, audit_roi_paper
from chestct.studies.audit_scores import percent_of, rounded
from chestct.studies.published.facts import TableRow

_COLORS: Final = {
    audit_pictures.INK: "currentColor",
    audit_pictures.MUTED: "var(--muted)",
    audit_pictures.BLUE: "var(--blue)",
    audit_pictures.ORANGE: "var(--orange)",
    audit_pictures.GREEN: "var(--green)",
    audit_pictures.SOFT: "var(--line)",
}
"""Drawn colour to the page's."""
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


def report_of(audit: Audit, *, is_whole: bool = True) -> Report:
    """The audit in words, tables and figures.

    Args:
        audit: Of both papers.
        is_whole: With pictures and the widest tables, which a page that retells it does without.
    """
    roi, maseres = audit.roi_aware, audit.maseres
    text = fill_markdown(
        "chestct.studies",
        "audit.md.j2",
        _FILTERS,
        roi=roi,
        maseres=maseres,
        is_whole=is_whole,
        headline_row=HEADLINE_ROW,
        agrees=AGREES,
        labels=THREE_CLASSES,
        defects=MASERES_Z_DEFECTS,
        line=_line,
        named=_named,
        sensitivities=_sensitivities,
        specificities=_specificities,
        pairs_in_order=_pairs_in_order,
    )
    return read_report(
        text,
        {
            "roi_accuracy": partial(audit_pictures.draw_accuracies, roi),
            "roi_spe": partial(audit_pictures.draw_spe, roi),
            "roi_vectors": partial(audit_pictures.draw_vectors, roi),
            "roi_table_6": partial(audit_pictures.draw_cross_validation, roi),
            "maseres_patients": partial(audit_pictures.draw_patient_models, maseres),
            "maseres_p_values": partial(audit_pictures.draw_p_values, maseres),
        },
    )


def as_html(report: Report) -> str:
    """The whole report in one page."""
    return as_page(report, _COLORS, "chestct study audit-papers")


def as_json(audit: Audit) -> str:
    """Every figure, as numbers; fractions are fractions, not per cent."""
    document = {
        "schema": "chestct.audit",
        "schema_version": SCHEMA_VERSION,
        "chestct_version": __version__,
        **dataclasses.asdict(audit),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def write_audit(audit: Audit, folder: Path) -> list[Path]:
    """Write page, Markdown with its figures, and JSON.

    Raises:
        WriteError: A file cannot be written.
    """
    from chestct.storage import make_folder, write_text, write_whole

    make_folder(folder)
    report = report_of(audit)
    for picture in report.pictures:
        write_whole(folder / "figures" / f"{picture.name}.png", as_png(picture))
    return [
        write_text(folder / HTML_NAME, as_html(report)),
        write_text(folder / MARKDOWN_NAME, as_markdown(*report.sections)),
        write_text(folder / JSON_NAME, as_json(audit)),
    ]


def counted(estimate: Estimate) -> str:
    """Hits of total, such as 115/130."""
    return f"{estimate.hits}/{estimate.total}"


def with_interval(estimate: Estimate, digits: int = 1) -> str:
    """Per cent and interval, such as 88.5 (81.8–92.9)."""
    if estimate.low is None:
        return _percent(estimate, digits)
    return f"{_percent(estimate, digits)} ({_interval(estimate, digits)})"


def _percent(estimate: Estimate, digits: int = 1) -> str:
    """A proportion in per cent, without the sign; a dash where it has no cases."""
    return _fixed(percent_of(estimate, digits), digits)


def _interval(estimate: Estimate, digits: int = 1) -> str:
    """Its 95 % interval in per cent, without the sign."""
    if estimate.low is None or estimate.high is None:
        return "–"
    return "–".join(_fixed(100 * end, digits) for end in (estimate.low, estimate.high))


def _fixed(value: float | None, digits: int) -> str:
    """A number rounded half up, as it is printed; a dash where there is none."""
    return "–" if value is None else f"{rounded(value, digits):.{digits}f}"


def _listed(numbers: Sequence[int]) -> str:
    """Numbers in words, such as 1, 2 and 3."""
    words = [str(number) for number in numbers]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


_FILTERS: Final[dict[str, Callable[..., str]]] = {
    "counted": counted,
    "with_interval": with_interval,
    "percent": _percent,
    "interval": _interval,
    "fixed": _fixed,
    "listed": _listed,
    "in_full": lambda estimate: f"{counted(estimate)}: {with_interval(estimate)}",
    "of": lambda hits, total: ", ".join(f"{each}/{total}" for each in hits),
    "summed": lambda numbers: f"{' + '.join(map(str, numbers))} = {sum(numbers)}",
    "signed": lambda value: f"{rounded(value) + 0.0:+.1f}",
    "yes_or_no": lambda is_so: "yes" if is_so else "no",
}
"""How the template writes numbers."""


def _line(*cells: object, is_marked: bool = False) -> str:
    """A row of a table; a tuple is several cells."""
    flat = [str(c) for cell in cells for c in (cell if isinstance(cell, tuple) else (cell,))]
    return markdown_row(marked_cells(flat) if is_marked else flat)


def _named(row: TableRow) -> tuple[str, ...]:
    """What a row of Table 6 or 7 is called: number, network, gating, t."""
    network = row.network.replace("ResNet-", "R")
    return str(row.row), network, "yes" if row.roi else "no", str(row.t)


def _sensitivities(row: RowAudit) -> tuple[str, ...]:
    """Of each class, as printed and as recomputed."""
    pairs = zip(row.published.sensitivity, row.official.classes.values(), strict=True)
    return tuple(
        cell
        for printed, scores in pairs
        for cell in (f"{printed:.1f}", with_interval(scores.sensitivity))
    )


def _specificities(row: RowAudit) -> tuple[str, ...]:
    """Of each class SPE as printed, and both figures that it may be."""
    pairs = zip(row.published.spe, row.official.classes.values(), strict=True)
    return tuple(
        cell
        for printed, scores in pairs
        for cell in (f"{printed:.1f}", _percent(scores.ppv), with_interval(scores.specificity))
    )


def _pairs_in_order(model: ModelAudit) -> str:
    """How many pairs of patients an AUC counts as in order; a dash where it leaves it open."""
    if model.pairs_in_order is None:
        return "–"
    return f"{model.pairs_in_order:g} of {model.num_pairs}"

"""`chestct study audit-papers`: the figures of both papers, recomputed from what they publish."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from chestct.cli.terminal import show_written, stdout_console

if TYPE_CHECKING:
    from chestct.studies.audit import Audit


def audit_papers(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write the report as HTML, Markdown and JSON here."
        ),
    ] = None,
) -> None:
    """Recompute the figures of both papers from what they publish; needs no data."""
    from chestct.studies.audit import audit_papers as recompute
    from chestct.studies.audit import write_audit

    audit = recompute()
    show_audit(audit)
    if out is not None:
        show_written(write_audit(audit, out), [])


def show_audit(audit: Audit) -> None:
    """The rows of Table 7, and the main points on both papers.

    "Equal" counts the printed figures that the label files give, "Workbook" those that the labels
    inside the workbook give.
    """
    from chestct.report.document import Points
    from chestct.studies.audit import counted, report_of, with_interval

    console = stdout_console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in (
        "Row",
        "Network",
        "RoI",
        "t",
        "Printed",
        "Recomputed, %",
        "Hits",
        "Equal",
        "Workbook",
    ):
        table.add_column(name)
    for row in audit.roi_aware.rows:
        published = row.published
        table.add_row(
            str(published.row),
            published.network,
            "yes" if published.roi else "no",
            str(published.t),
            f"{published.accuracy:.1f}",
            with_interval(row.official.accuracy),
            counted(row.official.accuracy),
            f"{len(row.equal_official)} of 7",
            f"{len(row.equal_workbook)} of 7",
        )
    console.print(table)
    for section in report_of(audit).sections:
        points = [block for block in section.blocks if isinstance(block, Points)]
        if points:
            console.print()
            console.print(Text(section.title, style="bold"))
        for item in (item for block in points for item in block.items):
            console.print(Text(f"· {item}"), soft_wrap=True)

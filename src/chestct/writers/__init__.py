"""What can be written about a classified scan: the table of writers.

Each takes the analysis and the folder of this scan, and returns the file it wrote. Files are
written aside and renamed, so a file that is there is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from chestct.analysis import ScanAnalysis

Writer: TypeAlias = "Callable[[ScanAnalysis, Path], Path]"


def _write_json(analysis: ScanAnalysis, folder: Path) -> Path:
    from chestct.writers.json_report import write_json

    return write_json(analysis, folder)


def _write_html(analysis: ScanAnalysis, folder: Path) -> Path:
    from chestct.writers.html_report import write_html

    return write_html(analysis, folder)


def _write_preview(analysis: ScanAnalysis, folder: Path) -> Path:
    from chestct.writers.preview import write_preview

    return write_preview(analysis, folder)


WRITERS: Final[dict[str, Writer]] = {
    "json": _write_json,
    "html": _write_html,
    "preview": _write_preview,
}
"""Writer name to writer."""

"""`index.html`: one page over many results of simulated patients, with what was simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chestct.result import ScanResult
from chestct.storage import write_whole
from chestct.writers.page_templates import load_pages
from chestct.writers.wording import percent, verdict_of

FILE_NAME: Final = "index.html"


@dataclass(frozen=True)
class IndexEntry:
    """One simulated patient on the page.

    Attributes:
        result: The answer.
        truth: The label that was simulated.
        folder: Folder of its report and preview, relative to the page.
    """

    result: ScanResult
    truth: str
    folder: str


def write_index(entries: Sequence[IndexEntry], folder: Path) -> Path:
    """Write `index.html`, which links every report and shows every preview.

    Raises:
        WriteError: It cannot be written.
        ValueError: There are no entries.
    """
    if not entries:
        raise ValueError("An index needs at least one result.")
    page = (
        load_pages()
        .get_template("index.html.j2")
        .render(
            rows=[
                {
                    "scan": entry.result.scan,
                    "folder": entry.folder,
                    "truth": verdict_of(entry.truth),
                    "answer": verdict_of(entry.result.decision),
                    "share": percent(entry.result.probabilities.get(entry.result.decision, 0.0)),
                    "is_suitable": entry.result.is_suitable,
                    "agrees": entry.truth == entry.result.decision,
                }
                for entry in entries
            ],
            notice=entries[0].result.notice,
            trained_on=entries[0].result.provenance.trained_on,
            version=entries[0].result.provenance.chestct_version,
        )
    )
    return write_whole(folder / FILE_NAME, page.encode())

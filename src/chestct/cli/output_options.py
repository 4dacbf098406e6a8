"""Options that say what is written about a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chestct.errors import WriteError

if TYPE_CHECKING:
    from chestct.writers import WriteOptions

_OUTPUT = "Outputs"

Write = Annotated[
    str | None,
    typer.Option(
        "--write",
        metavar="NAMES",
        help="What to write to --out: names that 'chestct info' lists, with commas between them, "
        "or all. All leaves out dicom_sc, whose pixels can hold names burned in by a scanner. "
        "json is always written. Default: json,html,preview.",
        rich_help_panel=_OUTPUT,
    ),
]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="Show where the evidence lies, as a heat-map on the scan.",
        rich_help_panel=_OUTPUT,
    ),
]
Explanation = Annotated[
    str | None,
    typer.Option(
        "--explanation",
        metavar="METHOD",
        help="How to explain, implies --explain: a method that 'chestct info' lists, with :LAYER "
        "after it for a layer of choice. Default: what the classifier's card names.",
        rich_help_panel=_OUTPUT,
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="Make DICOM objects the same bytes each time, with the series' dates.",
        rich_help_panel=_OUTPUT,
    ),
]
MakeUids = Annotated[
    bool,
    typer.Option(
        "--make-uids",
        help="Make the identifiers that a DICOM series lacks, the same each time.",
        rich_help_panel=_OUTPUT,
    ),
]


@dataclass(frozen=True)
class OutputOptions:
    """What was said on the command line about the outputs."""

    write: str | None
    explain: bool
    explanation: str | None
    is_deterministic: bool
    makes_uids: bool

    def require_use(self, out: Path | None, *, is_json: bool) -> None:
        """Refuse options about outputs where there are none.

        Raises:
            WriteError: Something was said about outputs and no folder was named.
        """
        said = {
            "--write": self.write is not None,
            "--explain": (self.explain or self.explanation is not None) and not is_json,
            "--deterministic": self.is_deterministic,
            "--make-uids": self.makes_uids,
        }
        for option, is_said in said.items():
            if is_said and out is None:
                raise WriteError(f"{option} is about what is written. Name a folder: --out DIR.")

    def write_options(self) -> WriteOptions:
        """Which outputs are written, and how.

        Raises:
            UnknownNameError: There is no such writer.
            WriteError: None was named.
        """
        from chestct.writers import ALL, DEFAULT, WriteOptions, choose_writers

        said = DEFAULT if self.write is None else tuple(_names_in(self.write))
        if not said:
            raise WriteError("--write needs a name, such as html, or all. See: chestct info")
        return WriteOptions(
            names=choose_writers(said),
            skips_impossible=ALL in said,
            is_deterministic=self.is_deterministic,
            makes_uids=self.makes_uids,
        )

    def explanation_for(self, names: Sequence[str]) -> str | None:
        """How to explain, if at all: a writer that needs a heat-map gets one unasked.

        Raises:
            UnknownNameError: There is no such explanation.
        """
        from chestct.explain import AUTO, split_choice
        from chestct.writers import NEEDS_HEAT_MAP

        if self.explanation is not None:
            split_choice(self.explanation)
            return self.explanation
        needs = self.write is not None and not set(NEEDS_HEAT_MAP).isdisjoint(names)
        return AUTO if self.explain or needs else None


def _names_in(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]

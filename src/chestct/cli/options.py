"""Options that several commands share, and how they become what the readers and writers take.

Options that belong together are the fields of a frozen dataclass, each declared once with its
help. A command takes the dataclass, and `grouped` shows its fields to Typer, which knows only
the parameters of a function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_type_hints

import typer

from chestct.errors import ReadError, WriteError
from chestct.storage import is_address

if TYPE_CHECKING:
    from chestct.readers import ReadOptions
    from chestct.readers.pictures import TiffGeometry
    from chestct.writers import WriteOptions

_TIFF = "Folders of TIFF slices"
_TROUBLE = "Irregular series"
_OUTPUT = "Outputs"


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command whose parameters may be dataclasses of options.

    Every field becomes a parameter of its own, and may be such a dataclass in turn; no two may have
    one name.
    """
    taken = inspect.signature(command, eval_str=True).parameters

    @wraps(command)
    def _run(**said: object) -> None:
        command(**_gathered(taken, said))

    # By keyword, so that one with a default may stand before one without.
    by_keyword = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in _each_alone(taken)]
    _run.__signature__ = inspect.Signature(by_keyword)  # type: ignore[attr-defined]
    return _run


def _is_group(each: inspect.Parameter) -> bool:
    return isinstance(each.annotation, type) and is_dataclass(each.annotation)


def _each_alone(taken: Mapping[str, inspect.Parameter]) -> Iterator[inspect.Parameter]:
    """Parameters, the fields of a dataclass in its place."""
    for each in taken.values():
        if _is_group(each):
            yield from _each_alone(_fields_of(each.annotation))
        else:
            yield each


def _gathered(
    taken: Mapping[str, inspect.Parameter], said: Mapping[str, object]
) -> dict[str, object]:
    """What a command or a dataclass takes, out of what was said of each parameter alone."""
    return {
        name: each.annotation(**_gathered(_fields_of(each.annotation), said))
        if _is_group(each)
        else said[name]
        for name, each in taken.items()
    }


def _fields_of(group: type) -> dict[str, inspect.Parameter]:
    """The fields of a dataclass as parameters; inherited ones are read where they were written."""
    types = get_type_hints(group, include_extras=True)
    taken = inspect.signature(group).parameters
    return {name: each.replace(annotation=types[name]) for name, each in taken.items()}


ClassifierFolder = Annotated[
    Path | None,
    typer.Option(
        "--classifier", metavar="DIR", help="Classifier folder. Default: the shipped one."
    ),
]
EngineName = Annotated[
    str,
    typer.Option("--engine", metavar="NAME", help="auto, or an engine that 'chestct info' lists."),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="The engine's own name of a device, such as cuda:1 or GPU.",
    ),
]
Series = Annotated[
    str | None,
    typer.Option(
        "--series", metavar="UID", help="Take this series of a folder that holds several."
    ),
]
Finding = Annotated[
    str | None,
    typer.Option(
        "--finding",
        metavar="NAME",
        help="Which finding is asked about, of a classifier of several.",
    ),
]


@dataclass(frozen=True)
class Running:
    """Where the network runs."""

    engine: EngineName = "auto"
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="NAME",
            help="float32 or bf16. Default: what the processor is fast in.",
        ),
    ] = None
    device: Device = None


@dataclass(frozen=True)
class Tiff:
    """What a folder of TIFF slices does not say of itself."""

    spacing_mm: Annotated[
        str | None,
        typer.Option(
            "--spacing-mm",
            metavar="D,H,W",
            help="Millimetres between slices, rows and columns.",
            rich_help_panel=_TIFF,
        ),
    ] = None
    order: Annotated[
        str | None,
        typer.Option(
            "--order",
            metavar="ascending|descending",
            help="Whether the first file is nearest the feet or the head.",
            rich_help_panel=_TIFF,
        ),
    ] = None
    slope: Annotated[
        float | None,
        typer.Option(
            "--slope", metavar="X", help="HU = slope × stored + intercept.", rich_help_panel=_TIFF
        ),
    ] = None
    intercept: Annotated[
        float | None,
        typer.Option("--intercept", metavar="X", help="See --slope.", rich_help_panel=_TIFF),
    ] = None
    is_windowed: Annotated[
        bool,
        typer.Option(
            "--windowed",
            help="The values have no absolute scale (8-bit exports).",
            rich_help_panel=_TIFF,
        ),
    ] = False

    def geometry(self) -> TiffGeometry | None:
        """The geometry, or None where nothing was said.

        Raises:
            ReadError: Something is missing or is not a number.
        """
        from chestct.readers.pictures import TiffGeometry

        if self == Tiff():
            return None
        if self.spacing_mm is None or self.order not in ("ascending", "descending"):
            msg = "TIFF slices need --spacing-mm D,H,W and --order ascending or descending."
            raise ReadError(msg)
        unit: Literal["windowed", "HU"] = "windowed" if self.is_windowed else "HU"
        return TiffGeometry(
            spacing_mm=_three_numbers(self.spacing_mm),
            order="ascending" if self.order == "ascending" else "descending",
            slope=self.slope,
            intercept=self.intercept,
            unit=unit,
        )


@dataclass(frozen=True)
class Reading:
    """How a scan is read, and which irregularities of a series are accepted."""

    lungs: Annotated[
        Path | None,
        typer.Option(
            "--lungs",
            metavar="MASK",
            help="The scan's lungs, as NIfTI or DICOM Segmentation, instead of finding them.",
        ),
    ] = None
    series: Series = None
    allow_gap: Annotated[
        bool,
        typer.Option(
            "--allow-gap",
            help="Interpolate where slices are missing in a row; read a scan that jumps.",
            rich_help_panel=_TROUBLE,
        ),
    ] = False
    allow_tilt: Annotated[
        bool,
        typer.Option(
            "--allow-tilt",
            help="Resample a stack that is tilted by more than 1 degree.",
            rich_help_panel=_TROUBLE,
        ),
    ] = False
    allow_mixed: Annotated[
        bool,
        typer.Option(
            "--allow-mixed-orientations",
            help="Read the largest group of a series that mixes sizes or orientations.",
            rich_help_panel=_TROUBLE,
        ),
    ] = False
    allow_bad_slices: Annotated[
        bool,
        typer.Option(
            "--allow-bad-slices",
            help="Interpolate slices that do not fit their neighbours.",
            rich_help_panel=_TROUBLE,
        ),
    ] = False
    allow_unplaced: Annotated[
        bool,
        typer.Option(
            "--allow-unplaced",
            help="Leave out slices that do not say where they lie.",
            rich_help_panel=_TROUBLE,
        ),
    ] = False
    tiff: Tiff = Tiff()

    def read_options(self) -> ReadOptions:
        """All that was said about how to read a scan, as the readers take it.

        Raises:
            ReadError: What was said about TIFF slices is incomplete or impossible.
        """
        from chestct.readers import ReadOptions

        accepted = {
            "gap": self.allow_gap,
            "tilt": self.allow_tilt,
            "mixed-orientations": self.allow_mixed,
            "bad-slices": self.allow_bad_slices,
            "unplaced": self.allow_unplaced,
        }
        allow = tuple(name for name, is_accepted in accepted.items() if is_accepted)
        return ReadOptions(self.series, allow, self.tiff.geometry(), self.lungs)


@dataclass(frozen=True)
class Outputs:
    """What is written about a scan, and where."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write results here, a folder per scan; see --write."
        ),
    ] = None
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Show where the evidence lies, as a heat-map on the scan.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False
    explanation: Annotated[
        str | None,
        typer.Option(
            "--explanation",
            metavar="METHOD",
            help="How to explain, implies --explain: a method that 'chestct info' lists, with "
            ":LAYER after it for a layer of choice. Default: what the classifier's card names.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None
    write: Annotated[
        str | None,
        typer.Option(
            "--write",
            metavar="NAMES",
            help="What to write to --out: names that 'chestct info' lists, with commas between "
            "them, or all. All leaves out dicom_sc, whose pixels can hold names burned in by a "
            "scanner. json is always written. Default: json,html,preview.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None
    is_deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Make DICOM objects the same bytes each time, with the series' dates.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False
    makes_uids: Annotated[
        bool,
        typer.Option(
            "--make-uids",
            help="Make the identifiers that a DICOM series lacks, the same each time.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False

    def require_use(self, *, is_json: bool) -> None:
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
            if is_said and self.out is None:
                raise WriteError(f"{option} is about what is written. Name a folder: --out DIR.")

    def write_options(self) -> WriteOptions:
        """Which outputs are written, and how.

        Raises:
            UnknownNameError: There is no such writer.
            WriteError: None was named.
        """
        from chestct.writers import ALL, DEFAULT, WriteOptions, choose_writers

        said = DEFAULT if self.write is None else names_in(self.write)
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


def require_scan(scan: Path) -> None:
    """As `require_exists`; of an address that shows when it is copied: to ask twice is slow."""
    if not is_address(scan):
        require_exists(scan)


def require_exists(scan: Path) -> None:
    """Refuse a path that is not there before anything heavy is loaded.

    Raises:
        ReadError: There is nothing of this name, or nobody can say whether there is.
    """
    try:
        is_there = scan.exists()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        msg = (
            f"{scan} cannot be looked for: {reason}. Check its name, and that the folders above it "
            "may be searched."
        )
        raise ReadError(msg) from error
    if not is_there:
        msg = f"{scan} does not exist. Give a folder, a DICOM or NIfTI file, or a zip of a scan."
        raise ReadError(msg)


def _three_numbers(text: str) -> tuple[float, float, float]:
    try:
        depth, height, width = (float(part) for part in text.split(","))
    except ValueError as error:
        msg = f"--spacing-mm must be three numbers, such as 1.0,0.7,0.7, not '{text}'."
        raise ReadError(msg) from error
    return depth, height, width


def names_in(text: str | None) -> tuple[str, ...]:
    """What stands between commas; nothing where nothing was said."""
    return tuple(name for part in (text or "").split(",") if (name := part.strip()))

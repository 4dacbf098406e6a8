"""Options that several commands share, and how they become what the readers take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from chestct.errors import ReadError

if TYPE_CHECKING:
    from chestct.readers import ReadOptions
    from chestct.readers.pictures import TiffGeometry

_TIFF = "Folders of TIFF slices"
_TROUBLE = "Irregular series"

ClassifierFolder = Annotated[
    Path | None,
    typer.Option(
        "--classifier", metavar="DIR", help="Classifier folder. Default: the shipped one."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Write results here, a folder per scan; see --write."
    ),
]
EngineName = Annotated[
    str,
    typer.Option("--engine", metavar="NAME", help="auto, or an engine that 'chestct info' lists."),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="float32 or bf16. Default: what the processor is fast in.",
    ),
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
AllowGap = Annotated[
    bool,
    typer.Option(
        "--allow-gap",
        help="Interpolate where slices are missing in a row; read a scan that jumps.",
        rich_help_panel=_TROUBLE,
    ),
]
AllowTilt = Annotated[
    bool,
    typer.Option(
        "--allow-tilt",
        help="Resample a stack that is tilted by more than 1 degree.",
        rich_help_panel=_TROUBLE,
    ),
]
AllowMixed = Annotated[
    bool,
    typer.Option(
        "--allow-mixed-orientations",
        help="Read the largest group of a series that mixes sizes or orientations.",
        rich_help_panel=_TROUBLE,
    ),
]
Lungs = Annotated[
    Path | None,
    typer.Option(
        "--lungs",
        metavar="MASK",
        help="The scan's lungs, as NIfTI or DICOM Segmentation, instead of finding them.",
    ),
]
AllowBadSlices = Annotated[
    bool,
    typer.Option(
        "--allow-bad-slices",
        help="Interpolate slices that do not fit their neighbours.",
        rich_help_panel=_TROUBLE,
    ),
]
AllowUnplaced = Annotated[
    bool,
    typer.Option(
        "--allow-unplaced",
        help="Leave out slices that do not say where they lie.",
        rich_help_panel=_TROUBLE,
    ),
]
SpacingMm = Annotated[
    str | None,
    typer.Option(
        "--spacing-mm",
        metavar="D,H,W",
        help="Millimetres between slices, rows and columns.",
        rich_help_panel=_TIFF,
    ),
]
Order = Annotated[
    str | None,
    typer.Option(
        "--order",
        metavar="ascending|descending",
        help="Whether the first file is nearest the feet or the head.",
        rich_help_panel=_TIFF,
    ),
]
Slope = Annotated[
    float | None,
    typer.Option(
        "--slope", metavar="X", help="HU = slope × stored + intercept.", rich_help_panel=_TIFF
    ),
]
Intercept = Annotated[
    float | None,
    typer.Option("--intercept", metavar="X", help="See --slope.", rich_help_panel=_TIFF),
]
Windowed = Annotated[
    bool,
    typer.Option(
        "--windowed",
        help="The values have no absolute scale (8-bit exports).",
        rich_help_panel=_TIFF,
    ),
]


@dataclass(frozen=True)
class TiffOptions:
    """What was said on the command line about a folder of TIFF slices."""

    spacing_mm: str | None
    order: str | None
    slope: float | None
    intercept: float | None
    is_windowed: bool

    def geometry(self) -> TiffGeometry | None:
        """The geometry, or None where nothing was said.

        Raises:
            ReadError: Something is missing or is not a number.
        """
        from chestct.readers.pictures import TiffGeometry

        said = (self.spacing_mm, self.order, self.slope, self.intercept)
        if all(value is None for value in said) and not self.is_windowed:
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
class Permissions:
    """Which irregularities of a series were accepted on the command line."""

    gap: bool
    tilt: bool
    mixed_orientations: bool
    bad_slices: bool = False
    unplaced: bool = False

    def names(self) -> tuple[str, ...]:
        """The names under which the readers know them."""
        said = {
            "gap": self.gap,
            "tilt": self.tilt,
            "mixed-orientations": self.mixed_orientations,
            "bad-slices": self.bad_slices,
            "unplaced": self.unplaced,
        }
        return tuple(name for name, is_allowed in said.items() if is_allowed)


def read_options(series: str | None, permissions: Permissions, tiff: TiffOptions) -> ReadOptions:
    """All that was said about how to read a scan, as the readers take it.

    Raises:
        ReadError: What was said about TIFF slices is incomplete or impossible.
    """
    from chestct.readers import ReadOptions

    return ReadOptions(series, permissions.names(), tiff.geometry())


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

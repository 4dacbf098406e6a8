"""Read a folder of image slices: 16-bit TIFF as in COVID-CTset and COVID-MAH-CT, or 8-bit exports.

Such a folder says nothing of voxel size, order or Hounsfield units: all of it has to come from a
`TiffGeometry` or from the sidecar described in `tiff_geometry`. Slices are taken as they are
displayed: supine, rows to the patient's back, columns to the patient's left.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from chestct.arrays import Shape
from chestct.errors import ReadError
from chestct.readers.hounsfield import (
    WINDOWED_HIGHEST,
    Gathered,
    Rescale,
    Slab,
    gather,
    padding_to_air,
    padding_warning,
    why_not_hounsfield,
)
from chestct.readers.slice_pixels import SUFFIXES, SliceKind, format_of, read_slice
from chestct.readers.tiff_geometry import EXAMPLE, SIDECAR, TiffGeometry, read_sidecar
from chestct.volume import MAX_VOXELS, SMALLER, Grid, ScanSource, Unit, Volume

__all__ = ["TiffGeometry", "is_slice_folder", "read_tiff_stack"]


def is_slice_folder(folder: Path) -> bool:
    """Whether a folder holds TIFF, PNG or JPEG files, by their names."""
    return any(format_of(path) for path in _visible_files(folder))


def read_tiff_stack(folder: Path, geometry: TiffGeometry | None) -> Volume:
    """Read a folder of single-page slices, in natural order of their names (2 before 10).

    16-bit slices become HU as the geometry says. 8-bit, RGB and RGBA slices have no absolute
    scale: they are read as unit "windowed" (0 to 255), whatever unit the geometry names, with a
    warning; colour must be grey (red, green and blue equal but for JPEG's rounding), alpha is
    ignored. Where a folder holds TIFF, PNG and JPEG files, the first of these is read and the
    rest left out.

    Args:
        folder: Folder with one file per slice. Sub-folders are not entered.
        geometry: Voxel size, order and scale; None to take them from the folder's sidecar.

    Returns:
        int16 voxels where slope and intercept keep whole numbers that fit, else float32.
        Depth runs as the files do.

    Raises:
        ReadError: No slices, no geometry, a damaged slice, several pages, differing sizes or
            depths, coloured or floating-point slices, HU that no chest CT has. The message
            names the file.
    """
    paths, left_out = _find_slices(folder)
    geometry = geometry or read_sidecar(folder)
    if geometry is None:
        msg = f"{folder.resolve().name} holds {len(paths)} image slices without voxel size and map"
        msg += " to HU. Give --spacing-mm, --order, --slope and --intercept (tiff= in Python), or"
        raise ReadError(f"{msg} put a file {SIDECAR} beside them, such as {EXAMPLE}.")
    kind = read_slice(paths[0])[1]
    shape = (len(paths), kind.rows, kind.columns)
    if math.prod(shape) > MAX_VOXELS:
        msg = f"{folder.resolve().name} has {shape} voxels, more than the {MAX_VOXELS}"
        raise ReadError(f"{msg} that are read. {SMALLER}")
    unit: Unit = geometry.unit if kind.bits == 16 else "windowed"
    rescale = Rescale(geometry.slope or 1.0, geometry.intercept or 0.0) if unit == "HU" else None
    gathered = gather(_slabs(paths, kind), shape, rescale=rescale)
    warnings = [*_number_warnings(paths), *_left_out_warnings(left_out)]
    if unit == "HU":
        warnings += _settle_hounsfield(gathered, geometry, folder)
    elif unit != geometry.unit:
        warnings.append(f"{kind.bits}-bit slices have no absolute scale: read as windowed.")
    elif gathered.highest > WINDOWED_HIGHEST:
        warnings.append(
            f"Windowed values reach {gathered.highest:g}; 0 to {WINDOWED_HIGHEST} was expected,"
            f" and recipes with a window cut off what is above."
        )
    return Volume(
        grid=_grid(geometry, shape),
        voxels=gathered.voxels,
        unit=unit,
        source=ScanSource(format="tiff", facts={"stored_bits": str(kind.bits)}, left_out=left_out),
        warnings=tuple(warnings),
    )


def _settle_hounsfield(gathered: Gathered, geometry: TiffGeometry, folder: Path) -> list[str]:
    """Refuse values that no chest CT has under the stated map; set padding to air, in place."""
    doubt = why_not_hounsfield(gathered.voxels, gathered.lowest)
    if doubt:
        msg = f"{folder.resolve().name} cannot be in HU with slope {geometry.slope:g} and intercept"
        raise ReadError(
            f'{msg} {geometry.intercept:g}: {doubt}. Correct them, or set the unit "windowed".'
        )
    num_padding = padding_to_air(gathered.voxels)
    return [padding_warning(num_padding, gathered.voxels.size)] if num_padding else []


def _visible_files(folder: Path) -> list[Path]:
    """Files of a folder without hidden ones (macOS puts a ._slice.tif beside slice.tif)."""
    if not folder.is_dir():
        raise ReadError(
            f"{folder.resolve().name} is not a folder; a folder of image slices was expected."
        )
    try:
        return [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    except OSError as error:
        raise ReadError(f"{folder.resolve().name} cannot be listed: {error.strerror}.") from error


def _find_slices(folder: Path) -> tuple[list[Path], dict[str, int]]:
    """The slices in order, and how many other files there are of which kind."""
    files = [path for path in _visible_files(folder) if path.name != SIDECAR]
    by_format = {name: [path for path in files if format_of(path) == name] for name in SUFFIXES}
    chosen = next((name for name, paths in by_format.items() if paths), None)
    if chosen is None:
        msg = f"{folder.resolve().name} holds no TIFF, PNG or JPEG slices among its"
        raise ReadError(f"{msg} {len(files)} files. Name the folder of the slices.")
    left_out = {name: len(paths) for name, paths in by_format.items() if paths and name != chosen}
    num_other = len(files) - sum(len(paths) for paths in by_format.values())
    if num_other:
        left_out["not an image"] = num_other
    return sorted(by_format[chosen], key=_natural_key), left_out


def _natural_key(path: Path) -> tuple[list[tuple[str, int]], str]:
    """Sorts slice2 before slice10; equal numbers (1, 01) by name, so that the order is fixed."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", path.stem.lower())
    return [(text, int(number or -1)) for text, number in parts], path.name


def _number_warnings(paths: list[Path]) -> list[str]:
    """Say that the last number in the names jumps, as it does when slices are missing."""
    endings = [re.search(r"([0-9]+)[^0-9]*$", path.stem) for path in paths]
    numbers = [int(ending.group(1)) for ending in endings if ending]
    steps = np.diff(numbers)
    if len(numbers) < len(paths) or len(steps) < 2 or min(steps) < 1:
        return []
    usual = Counter(steps.tolist()).most_common(1)[0][0]
    jumps = [index for index, step in enumerate(steps) if step != usual]
    if not jumps:
        return []
    first = f"from {numbers[jumps[0]]} to {numbers[jumps[0] + 1]}"
    return [
        f"The numbers in the file names jump {len(jumps)} times, first {first}: slices may be"
        f" missing. They were read as evenly spaced."
    ]


def _left_out_warnings(left_out: dict[str, int]) -> list[str]:
    pictures = {name: count for name, count in left_out.items() if name in SUFFIXES}
    listed = ", ".join(f"{count} {name}" for name, count in pictures.items())
    return [f"Pictures beside the slices were left out: {listed}."] if pictures else []


def _grid(geometry: TiffGeometry, shape: Shape) -> Grid:
    to_head = 1.0 if geometry.order == "ascending" else -1.0
    return Grid(
        shape=shape,
        spacing_mm=geometry.spacing_mm,
        direction=((0.0, 0.0, to_head), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    )


def _slabs(paths: list[Path], kind: SliceKind) -> Iterator[Slab]:
    for path in paths:
        pixels, found = read_slice(path)
        if found != kind:
            msg = f"{path.name} is {found}, while {paths[0].name} is {kind}; all slices must be"
            raise ReadError(f"{msg} alike. Put each series into a folder of its own.")
        yield pixels

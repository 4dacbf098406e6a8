"""Read a NIfTI file (.nii, .nii.gz): nibabel reads the header, the voxels are streamed.

nibabel hands a scaled volume over as float64, four times the size of the scan, and believes the
sizes that a header declares. Here the declared sizes are checked first, and the voxels go slab by
slab from the file into one int16 array.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Iterator
from dataclasses import replace
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from chestct.arrays import Voxels
from chestct.errors import ReadError
from chestct.readers.hounsfield import (
    Gathered,
    Slab,
    check_windowed,
    gather,
    padding_to_air,
    padding_warning,
    why_not_hounsfield,
)
from chestct.readers.nifti_header import Layout, read_grid, read_header, read_layout
from chestct.readers.slice_fit import (
    ALTERNATING_SCANS,
    find_misfits,
    in_words,
    interpolate,
    permission,
    small_picture,
)
from chestct.volume import AIR_HU, Grid, ScanSource, Unit, Volume, canonical_axes

MAX_GZIP_RATIO = 200
"""Compression no real scan reaches (they stay under 20): more is taken for a gzip bomb."""
UNDOUBTED_BYTES = 2**28
"""Scans up to this size in memory are read whatever their compression."""

_CAUSES = "Is it a mask, a normalised scan, or is its intercept (scl_inter) missing?"
_GZIP_MAGIC = b"\x1f\x8b"
_BROKEN_STREAM = (OSError, EOFError, zlib.error)


def read_nifti(path: Path, allow: Collection[str] = ()) -> Volume:
    """Read one chest CT from a NIfTI-1 or NIfTI-2 file, gzipped or not.

    The sform is taken where there is one, else the qform; positions become DICOM's (LPS, mm).
    Axes are only permuted: depth is the file's axis closest to the patient's z, height the one
    closest to front-back, width the remaining one; directions stay as in the file.

    Values are taken for Hounsfield units after scl_slope and scl_inter, unless they cannot be: no
    voxel below -200, or more than 5 % above 4000. Then values within 0 to 255 are read as
    "windowed", with a warning, and others are refused. NaN, infinities and padding below -1500
    become air (the lowest value in windowed scans), with a warning.

    Args:
        path: The file. Its content decides whether it is gzipped, not its name.
        allow: "bad-slices" interpolates slices that do not fit their neighbours.

    Returns:
        int16 voxels where all values are whole numbers that fit, else float32; C-contiguous.

    Raises:
        ReadError: Not a single-file NIfTI, cut short or damaged, more or fewer bytes than
            declared, several frames, colour or complex values, a sheared or impossible geometry,
            too many voxels, compressed beyond belief, neither HU nor an 8-bit export. The message
            says which.
    """
    try:
        with _open_stream(path) as stream:
            header = read_header(stream, path)
            layout = read_layout(header, path)
            stored_grid, warnings = read_grid(header, layout.shape, path)
            _check_length(layout, path, is_gzip=isinstance(stream, gzip.GzipFile))
            order, _ = canonical_axes(stored_grid)
            grid = permuted(stored_grid, order)
            axes = np.argsort(order)
            stored_axes = (int(axes[0]), int(axes[1]), int(axes[2]))
            gathered = gather(_slabs(stream, layout, path), grid.shape, stored_axes, layout.rescale)
    except _BROKEN_STREAM as error:
        msg = (
            f"{path.name} cannot be read to its end ({type(error).__name__}): cut short or damaged."
        )
        raise ReadError(f"{msg} Copy or download it again.") from error
    unit, found = settled(gathered, path)
    found += mend_misfits(gathered.voxels, unit, allow)
    return Volume(
        grid=grid,
        voxels=gathered.voxels,
        unit=unit,
        source=ScanSource(format="nifti", facts={"stored_type": layout.dtype.name}),
        warnings=(*warnings, *found),
    )


def _open_stream(path: Path) -> BufferedIOBase:
    if not path.is_file():
        raise ReadError(f"{path.name} is not a file; a .nii or .nii.gz file was expected.")
    file = path.open("rb")
    is_gzip = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    if not is_gzip:
        file.seek(0)
        return file
    file.close()
    return gzip.GzipFile(path, "rb")


def _check_length(layout: Layout, path: Path, *, is_gzip: bool) -> None:
    """Compare declared with possible lengths before anything is allocated."""
    file_bytes = path.stat().st_size
    if not is_gzip:
        _check_equal(file_bytes, layout.offset + layout.num_bytes, path)
        return
    memory_bytes = layout.num_bytes * max(2, layout.dtype.itemsize) // layout.dtype.itemsize
    if memory_bytes > UNDOUBTED_BYTES and layout.num_bytes > MAX_GZIP_RATIO * file_bytes:
        msg = f"{path.name} declares {layout.num_bytes} bytes of voxels in a file of {file_bytes}:"
        raise ReadError(f"{msg} compressed more than {MAX_GZIP_RATIO} times, which no scan is.")


def _check_equal(found_bytes: int, declared_bytes: int, path: Path) -> None:
    if found_bytes != declared_bytes:
        what = "is cut short" if found_bytes < declared_bytes else "is longer than it declares"
        msg = f"{path.name} {what}: {found_bytes} bytes, {declared_bytes} by its header."
        raise ReadError(f"{msg} Copy or convert it again.")


def _slabs(stream: BufferedIOBase, layout: Layout, path: Path) -> Iterator[Slab]:
    """Stored numbers, one index of the slowest axis at a time, all in one buffer."""
    stream.seek(layout.offset)
    _, rows, columns = layout.shape
    buffer = bytearray(rows * columns * layout.dtype.itemsize)
    for index in range(layout.shape[0]):
        num_read = stream.readinto(buffer)
        if num_read < len(buffer):
            found_bytes = layout.offset + index * len(buffer) + num_read
            _check_equal(found_bytes, layout.offset + layout.num_bytes, path)
        yield np.frombuffer(buffer, dtype=layout.dtype).reshape(rows, columns)
    # Reading on makes gzip compare its checksum, and shows voxels that the header hides.
    if stream.read(1):
        msg = f"{path.name} is longer than the {layout.num_bytes} bytes of voxels its header"
        raise ReadError(f"{msg} declares. Convert it again.")


def mend_misfits(voxels: Voxels, unit: Unit, allow: Collection[str]) -> list[str]:
    """Interpolate slices that do not fit their neighbours, in place; blank ends are padding.

    Raises:
        ReadError: There are such slices and that was not allowed, or two scans alternate.
    """
    found = find_misfits(np.stack([small_picture(plane) for plane in voxels]), unit)
    if found.alternates:
        raise ReadError(ALTERNATING_SCANS)
    if not found.inside:
        return []
    num = len(found.inside)
    told = in_words([f"slice {i + 1} of {len(voxels)} {what}" for i, what in found.inside.items()])
    if "bad-slices" not in allow:
        msg = f"{num} slice(s) do not belong to the scan: {told}. All were expected to. Convert it"
        raise ReadError(f"{msg} again; or they can be interpolated.{permission('bad-slices')}")
    interpolate(voxels, found.inside)
    return [f"{num} slice(s) were interpolated from their neighbours: {told}."]


def permuted(grid: Grid, order: tuple[int, int, int]) -> Grid:
    """A grid with its axes in another order."""
    depth, height, width = order
    return replace(
        grid,
        shape=(grid.shape[depth], grid.shape[height], grid.shape[width]),
        spacing_mm=(grid.spacing_mm[depth], grid.spacing_mm[height], grid.spacing_mm[width]),
        direction=(grid.direction[depth], grid.direction[height], grid.direction[width]),
    )


def settled(gathered: Gathered, path: Path) -> tuple[Unit, list[str]]:
    """Decide whether the values are HU, and mend them in place."""
    voxels, num_broken = gathered.voxels, gathered.num_not_finite
    warnings: list[str] = []
    doubt = why_not_hounsfield(voxels, gathered.lowest)
    filler = gathered.lowest if doubt else AIR_HU
    if num_broken:
        # They stand at air, below any windowed value.
        np.maximum(voxels, voxels.dtype.type(filler), out=voxels, where=voxels == AIR_HU)
        warnings.append(f"{num_broken} voxels were NaN or infinite; they were set to {filler:g}.")
    if doubt:
        check_windowed(gathered.lowest, gathered.highest, doubt, path.name, _CAUSES)
        return "windowed", [
            f"The values are not Hounsfield units: {doubt}. Read as windowed.",
            *warnings,
        ]
    num_padding = padding_to_air(voxels)
    if num_padding:
        warnings.append(padding_warning(num_padding, voxels.size))
    return "HU", warnings

"""Read MetaImage (.mha) and NRRD (.nrrd) through SimpleITK, an extra.

ITK follows a header to any other file that it names and takes a voxel of 1 mm where none is said.
So the text of the header is looked at first: what is read is one file that says how large a voxel
is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from chestct.errors import ReadError
from chestct.extras import import_extra
from chestct.readers.hounsfield import Slab, gather
from chestct.readers.nifti import mend_misfits, permuted, settled
from chestct.volume import MAX_VOXELS, SMALLER, Grid, ScanSource, Volume, canonical_axes

ENDINGS: Final = (".mha", ".nrrd")
HEADER_ENDINGS: Final = (".mhd", ".nhdr")
"""Headers whose voxels lie in another file."""

_HEADER_BYTES: Final = 2**16
_SPACING: Final = re.compile(rb"^(ElementSpacing|ElementSize|spacings|space directions)\b", re.M)
_ELSEWHERE: Final = re.compile(
    rb"^(ElementDataFile[ \t]*=[ \t]*(?![ \t]|LOCAL[ \t\r]*$)|data ?file[ \t]*:)", re.M | re.I
)


def read_itk(path: Path, allow: Collection[str] = ()) -> Volume:
    """Read one chest CT from a MetaImage or NRRD file.

    Positions are DICOM's (LPS, mm); axes are only permuted, as `read_nifti` does. Values are taken
    for Hounsfield units under the same conditions as those of NIfTI.

    Args:
        path: The file.
        allow: "bad-slices" interpolates slices that do not fit their neighbours.

    Returns:
        int16 voxels where all values are whole numbers that fit, else float32; C-contiguous.

    Raises:
        ReadError: Damaged, several values per voxel, voxels in another file or of no known size,
            or neither HU nor an 8-bit export.
        GridError: Too many voxels, or an impossible geometry.
        MissingExtraError: SimpleITK is not installed.
    """
    _check_header(path)
    sitk: Any = import_extra("SimpleITK", extra="itk")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() == ".nrrd" else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_layout(reader, path)
        image = reader.Execute()
    except RuntimeError as error:
        # Its text is of ITK's own source files.
        msg = f"{path.name} is cut short, damaged or not what its name says. Copy it again."
        raise ReadError(msg) from error
    stored = _stored_grid(image)
    order, _ = canonical_axes(stored)
    grid = permuted(stored, order)
    axes = np.argsort(order)
    stored_axes = (int(axes[0]), int(axes[1]), int(axes[2]))
    gathered = gather(_slabs(sitk.GetArrayViewFromImage(image)), grid.shape, stored_axes)
    unit, warnings = settled(gathered, path)
    warnings += mend_misfits(gathered.voxels, unit, allow)
    return Volume(
        grid=grid,
        voxels=gathered.voxels,
        unit=unit,
        source=ScanSource(format="itk", facts={"stored_type": image.GetPixelIDTypeAsString()}),
        warnings=tuple(warnings),
    )


def _check_header(path: Path) -> None:
    with path.open("rb") as stream:
        header = stream.read(_HEADER_BYTES)
    if path.name.lower().endswith(HEADER_ENDINGS) or _ELSEWHERE.search(header):
        msg = f"{path.name} keeps its voxels in another file; one file was expected. Convert it to"
        raise ReadError(f"{msg} .mha, .nrrd or .nii.gz.")
    if not _SPACING.search(header):
        msg = f"{path.name} does not say how large its voxels are, or is no MetaImage or NRRD file."
        raise ReadError(f"{msg} Convert the scan again from DICOM.")


def _check_layout(reader: Any, path: Path) -> None:
    size, num_values = reader.GetSize(), reader.GetNumberOfComponents()
    if len(size) != 3 or num_values != 1:
        msg = f"{path.name} holds an array of {size} with {num_values} values per voxel; one 3D"
        raise ReadError(f"{msg} scan was expected. Extract it.")
    if np.prod(size, dtype=np.float64) > MAX_VOXELS:
        msg = f"{path.name} declares {size} voxels; at most {MAX_VOXELS} are read."
        raise ReadError(f"{msg} {SMALLER}")


def _stored_grid(image: Any) -> Grid:
    """The grid of the voxels as stored, axes (k, j, i)."""
    columns = np.asarray(image.GetDirection(), dtype=np.float64).reshape(3, 3).T[::-1]
    x, y, z = image.GetOrigin()
    width, height, depth = image.GetSize()
    width_mm, height_mm, depth_mm = image.GetSpacing()
    return Grid(
        shape=(depth, height, width),
        spacing_mm=(depth_mm, height_mm, width_mm),
        origin_mm=(x, y, z),
        direction=tuple((float(a), float(b), float(c)) for a, b, c in columns),
    )


def _slabs(array: np.ndarray) -> Iterator[Slab]:
    if array.dtype.kind not in "iuf":
        raise ReadError("Complex values were found; one real number per voxel was expected.")
    yield from array

"""Masks of lesions: read from disk, and put on the grid of a network's input.

The readers of scans refuse masks, as they should: a mask given as a scan is a mistake.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final

import numpy as np

from chestct.arrays import Mask, Matrix4
from chestct.errors import ReadError
from chestct.preprocess.masks import bounding_box, mask_on_grid
from chestct.preprocess.prepared import PreparedScan
from chestct.volume import Grid, Volume, to_canonical

TRUTH_FOLDER: Final = "truth"
_SAME_PLACE_MM: Final = 0.01
_TO_PATIENT: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI's x grows to the right and y to the front, DICOM's to the left and to the back."""


def lesion_file(scan: Path) -> Path:
    """Where `benchmarks/simulated_cohort.py` put the true lesions of a simulated patient."""
    return scan.parent / TRUTH_FOLDER / f"{scan.name.partition('.')[0]}-lesions.nii.gz"


def read_mask(path: Path) -> Volume:
    """Read a mask from a NIfTI file: what is above 0 is inside.

    Raises:
        ReadError: It cannot be read, or does not have three axes.
        GridError: It has an impossible grid or too many voxels.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import SpatialImage

    try:
        found = nibabel.load(path)
        if not isinstance(found, SpatialImage):
            raise ImageFileError("no voxels")
        grid = _grid_of(found.shape, found.affine, path)
        values = np.asanyarray(found.dataobj)
    except (OSError, EOFError, zlib.error, ImageFileError) as error:
        msg = f"{path.name} cannot be read as NIfTI ({type(error).__name__}): give a mask as one."
        raise ReadError(msg) from error
    return Volume(grid, np.ascontiguousarray(values.transpose(2, 1, 0) > 0))


def _grid_of(shape: tuple[int, ...], affine: Matrix4, path: Path) -> Grid:
    """The grid of a NIfTI file whose last axis becomes depth and whose first becomes width."""
    if len(shape) != 3:
        raise ReadError(f"{path.name} has {len(shape)} axes and a mask has three: give one mask.")
    placed = _TO_PATIENT @ affine
    columns = placed[:3, 2::-1]
    depth, height, width = (float(each) for each in np.linalg.norm(columns, axis=0))
    directions = (columns / np.array([depth, height, width])).T
    x, y, z = (float(each) for each in placed[:3, 3])
    return Grid(
        shape=(shape[2], shape[1], shape[0]),
        spacing_mm=(depth, height, width),
        origin_mm=(x, y, z),
        direction=tuple((float(a), float(b), float(c)) for a, b, c in directions),
    )


def mask_at_input(mask: Volume, prepared: PreparedScan) -> Mask:
    """A mask of the scan at the size of the network's input: true where at least half is covered.

    Args:
        mask: Truth values on the scan's voxels, in any axis order.
        prepared: The scan.

    Raises:
        ReadError: The mask's grid is not the scan's.
    """
    canonical = to_canonical(mask)
    scan_lungs = to_canonical(prepared.scan_lungs)
    has_shape = canonical.grid.shape == scan_lungs.grid.shape
    place, wanted = canonical.grid.index_to_patient, scan_lungs.grid.index_to_patient
    if not (has_shape and np.allclose(place, wanted, atol=_SAME_PLACE_MM)):
        msg = (
            f"The lesions lie on {canonical.grid.shape} voxels and the scan on "
            f"{scan_lungs.grid.shape}, or at another place: draw them on this very scan."
        )
        raise ReadError(msg)
    grid = canonical.grid
    start = grid.to_index(np.asarray(prepared.grid.origin_mm, dtype=np.float64))
    depth, height, width = (
        new / old for new, old in zip(prepared.grid.spacing_mm, grid.spacing_mm, strict=True)
    )
    voxels = np.ascontiguousarray(canonical.voxels, dtype=np.bool_)
    where = (float(start[0]), float(start[1]), float(start[2]))
    return mask_on_grid(
        voxels, bounding_box(voxels), (where, (depth, height, width), prepared.grid.shape)
    )

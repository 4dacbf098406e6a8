"""Masks of lesions, put on the grid of a network's input."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from chestct.arrays import Mask
from chestct.errors import ReadError
from chestct.preprocess.masks import bounding_box, mask_on_grid
from chestct.preprocess.oblique import on_body
from chestct.preprocess.prepared import PreparedScan
from chestct.readers.masks import same_place
from chestct.volume import Volume

TRUTH_FOLDER: Final = "truth"


def lesion_file(scan: Path) -> Path:
    """Where `benchmarks/simulated_cohort.py` put the true lesions of a simulated patient."""
    return scan.parent / TRUTH_FOLDER / f"{scan.name.partition('.')[0]}-lesions.nii.gz"


def mask_at_input(mask: Volume, prepared: PreparedScan) -> Mask:
    """A mask of the scan at the size of the network's input: true where at least half is covered.

    Args:
        mask: Truth values on the scan's voxels, in any axis order.
        prepared: The scan.

    Raises:
        ReadError: The mask's grid is not the scan's.
    """
    if not same_place(mask.grid, prepared.scan_grid):
        msg = (
            f"The lesions lie on {mask.grid.shape} voxels and the scan on "
            f"{prepared.scan_grid.shape}, or at another place: draw them on this very scan."
        )
        raise ReadError(msg)
    canonical = on_body(mask)
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

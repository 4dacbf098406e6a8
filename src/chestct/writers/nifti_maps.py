"""`heat-map.nii.gz` and `lungs.nii.gz`: the maps on the scan's own grid, for viewers and programs.

The heat-map is -1 where the network saw nothing, which is not the same as zero. Not NaN: readers
built on ITK, which are most, turn NaN into zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int16

from chestct.analysis import ScanAnalysis
from chestct.arrays import Heat
from chestct.storage import remove_file
from chestct.writers.nifti_export import write_nifti

HEAT_FILE: Final = "heat-map.nii.gz"
LUNGS_FILE: Final = "lungs.nii.gz"

NOT_ANALYSED: Final = -1.0
"""Value where the network saw nothing."""
STEPS: Final = 4096
"""Steps that heat from 0 to 1 is stored in."""


def write_nifti_maps(analysis: ScanAnalysis, folder: Path) -> Path:
    """Write the lungs and, where there is one, the heat-map.

    Returns:
        The heat-map, or the lungs without one.

    Raises:
        WriteError: A file cannot be written.
    """
    lungs = write_nifti(
        folder / LUNGS_FILE, analysis.prepared.scan_lungs.voxels, analysis.volume.grid
    )
    heat_file = folder / HEAT_FILE
    if analysis.explanation is None:
        # One of an earlier run would be taken for this one's.
        remove_file(heat_file)
        return lungs
    steps = in_steps(analysis.explanation.heat.voxels)
    return write_nifti(heat_file, steps, analysis.volume.grid, step=1.0 / STEPS)


def in_steps(heat: Heat) -> Int16[np.ndarray, "depth height width"]:
    """Heat in whole steps of 1/4096, finer than can be seen, slice by slice to save memory."""
    steps = np.empty(heat.shape, dtype=np.int16)
    for out, values in zip(steps, heat, strict=True):
        scaled = np.rint(values * np.float32(STEPS))
        np.copyto(scaled, np.float32(NOT_ANALYSED * STEPS), where=np.isnan(scaled))
        out[...] = scaled
    return steps

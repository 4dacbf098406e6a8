"""How much of a map lies in the lungs, as far as its layer can tell.

A layer's cell is as large as a few centimetres, and a map is linear between cells: what was found
in the lungs is drawn up to one cell beyond them. So the lungs are first grown by one cell.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from chestct.arrays import Heat, Mask, Spacing


def grown_by_a_cell(lungs: Mask, cell: Spacing, *, cells: float = 1.0) -> Mask:
    """Every voxel with lung at most one cell, or so many, away along each axis.

    Behind a gate a map can reach a cell and a half beyond the lungs: a cell counts as lung when any
    of its voxels is, and its heat is drawn linearly to half of the next one.

    Args:
        lungs: Lung mask at the network input's size.
        cell: Size of a cell in input voxels, `Explanation.cell`.
        cells: How many of them.
    """
    size = [2 * round(cells * voxels) + 1 for voxels in cell]
    return np.asarray(ndimage.maximum_filter(lungs, size, mode="constant"))


def share_inside(heat: Heat, mask: Mask) -> float:
    """Share of a map's sum that lies in a mask, 0 to 1; 0 for a map of zeros."""
    total = float(heat.sum(dtype=np.float64))
    return float(heat[mask].sum(dtype=np.float64)) / total if total else 0.0

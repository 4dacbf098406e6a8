"""Cells laid over the input, and the input over the scan: linear interpolation, axis by axis."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64

from chestct.arrays import Shape
from chestct.explain.question import CellMap
from chestct.preprocess.resample import AxisMap, block_reader, resample


def linear_map(positions: Float64[np.ndarray, " new"], size: int) -> AxisMap:
    """Linear interpolation at positions in voxels; beyond the outermost centres the last value.

    Start and step of the map are not used and hold zeros.
    """
    inside = np.clip(positions, 0.0, size - 1.0)
    lower = np.minimum(inside.astype(np.int64), max(size - 2, 0))
    share = inside - lower
    weights = np.zeros((positions.size, size), dtype=np.float32)
    rows = np.arange(positions.size)
    weights[rows, lower] = 1.0 - share
    if size > 1:
        weights[rows, lower + 1] = share
    return AxisMap(weights, 0.0, 0.0)


def spread_over_input(
    cells: CellMap, shape: Shape
) -> Float32[np.ndarray, "input_depth input_height input_width"]:
    """The map at every voxel of an input of the given shape, linear between the cells' centres."""
    maps = []
    for axis, voxels in enumerate(shape):
        size = cells.values.shape[axis]
        centres = cell_centres(cells.start[axis], cells.step[axis], size, voxels)
        positions = np.interp(np.arange(voxels), centres, np.arange(size))
        maps.append(linear_map(positions, size))
    values = np.ascontiguousarray(cells.values)
    return resample(block_reader(values), (maps[0], maps[1], maps[2]))


def cell_centres(
    start: float, step: float, size: int, voxels: int
) -> Float64[np.ndarray, " cells"]:
    """Input index of each cell's centre along an axis, of the part of it that is in the input.

    A cell on the border looks half beyond it, where there is nothing; what it finds lies inside.
    """
    centres = start + step * np.arange(size)
    low, high = (np.clip(centres + side * step / 2, -0.5, voxels - 0.5) for side in (-1, 1))
    return np.asarray((low + high) / 2)

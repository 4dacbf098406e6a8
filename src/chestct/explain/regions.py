"""Regions of the lungs that a reader of chest CT thinks in: sides and thirds of the height."""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from chestct.arrays import Mask
from chestct.preprocess.lungs.sides import split_left_right
from chestct.volume import Grid

SIDES: Final = ("left", "right")
THIRDS: Final = ("upper third", "middle third", "lower third")

_SIDES_MM: Final = 2.0
"""Voxel size at which the lungs are taken apart: enough to tell their sides, and quick."""

LungVoxels: TypeAlias = Bool[np.ndarray, " lung_voxels"]
"""One value per voxel of a lung mask, in the order of `array[mask]`."""


def lung_regions(lungs: Mask, grid: Grid) -> dict[str, LungVoxels]:
    """Which lung voxels lie in which region.

    Thirds are of the height from the lowest to the highest lung voxel along the patient's own axis,
    both lungs together. Where the two lungs cannot be taken apart, the regions of a side are left
    out.

    Args:
        lungs: Lung mask, not empty, on canonical axes.
        grid: Its grid.
    """
    thirds = _thirds(lungs, grid)
    sides = _sides(lungs, grid)
    return {
        "lungs": np.ones(int(np.count_nonzero(lungs)), dtype=np.bool_),
        **{f"{side} lung": of_side for side, of_side in sides.items()},
        **thirds,
        **{
            f"{side} {third}": of_side & of_third
            for side, of_side in sides.items()
            for third, of_third in thirds.items()
        },
    }


def _thirds(lungs: Mask, grid: Grid) -> dict[str, LungVoxels]:
    rise = grid.index_to_patient[2, :3]
    height: Float[np.ndarray, "depth height width"] = np.zeros((1, 1, 1))
    for axis, size in enumerate(grid.shape):
        # An axis across the patient adds nothing: of most scans only one number a slice is left.
        if rise[axis]:
            height = height + _along(axis, np.arange(size) * rise[axis])
    of_voxels = np.broadcast_to(height.astype(np.float32), lungs.shape)[lungs]
    edges = np.linspace(float(of_voxels.max()), float(of_voxels.min()), len(THIRDS) + 1)
    low, high = edges[2], edges[1]
    upper, lower = of_voxels >= high, of_voxels < low
    return dict(zip(THIRDS, (upper, ~upper & ~lower, lower & ~upper), strict=True))


def _along(
    axis: int, values: Float[np.ndarray, " size"]
) -> Float[np.ndarray, "depth height width"]:
    """Values along one of three axes, ready to be added to others."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return values.reshape(shape)


def _sides(lungs: Mask, grid: Grid) -> dict[str, LungVoxels]:
    """Left and right lung, or nothing where they cannot be taken apart."""
    strides = [max(1, round(_SIDES_MM / spacing)) for spacing in grid.spacing_mm]
    every = tuple(slice(None, None, stride) for stride in strides)
    thinned = np.ascontiguousarray(lungs[every])
    depth, height, width = (n * s for n, s in zip(strides, grid.spacing_mm, strict=True))
    parts = split_left_right(thinned, (depth, height, width))
    if len(parts) != len(SIDES):
        return {}
    nearest = ndimage.distance_transform_edt(
        ~thinned, sampling=(depth, height, width), return_distances=False, return_indices=True
    )
    # The second part is the one further along width, which grows to the patient's left.
    is_left = parts[1][tuple(nearest)]
    for axis, stride in enumerate(strides):
        is_left = is_left.repeat(stride, axis=axis)
    whole = tuple(slice(0, size) for size in lungs.shape)
    of_voxels = is_left[whole][lungs]
    return dict(zip(SIDES, (of_voxels, ~of_voxels), strict=True))

"""Lung masks on the grids of the preparation: where they lie, on another grid, grown by a rim."""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from chestct.arrays import Mask, Shape, Spacing
from chestct.preprocess.resample import Block, grid_map, resample

Box: TypeAlias = tuple[slice, slice, slice]
"""Part of a grid along (depth, height, width)."""


def bounding_box(mask: Mask) -> Box | None:
    """The smallest box that holds every true voxel, or None when there is none."""
    seen_along_depth = np.asarray(mask.any(axis=0))
    profiles = (mask.any(axis=(1, 2)), seen_along_depth.any(axis=1), seen_along_depth.any(axis=0))
    if not profiles[0].any():
        return None
    ends = [np.flatnonzero(profile)[[0, -1]] for profile in profiles]
    depth, height, width = (slice(int(first), int(last) + 1) for first, last in ends)
    return depth, height, width


def mask_on_grid(
    mask: Mask, box: Box | None, grid: tuple[Spacing, Spacing, Shape]
) -> Bool[np.ndarray, "new_depth new_height new_width"]:
    """A mask on another grid along the same axes: true where at least half is covered.

    Args:
        mask: Mask on the old grid.
        box: Its bounding box, or None for an empty mask.
        grid: Old index of the new first voxel, old voxels between new ones, new shape.
    """
    start, step, shape = grid
    if box is None:
        return np.zeros(shape, dtype=np.bool_)

    def read_block(depth: slice, height: slice, width: slice) -> Block:
        """A block of the mask, 1 inside."""
        return mask[depth, height, width].astype(np.float32)

    depth, height, width = (
        grid_map(*axis, is_mask=True).only(part)
        for axis, part in zip(zip(mask.shape, start, step, shape, strict=True), box, strict=True)
    )
    return resample(read_block, (depth, height, width)) >= 0.5


def grown(mask: Mask, radius: Spacing) -> Mask:
    """A mask grown by an ellipsoid of the given radii in voxels, (depth, height, width)."""
    reach = int(radius[0])
    union = mask.astype(np.uint8)
    for away in range(-reach, reach + 1):
        disc = _disc(away / max(radius[0], 1e-6), radius)
        for i in range(max(0, -away), mask.shape[0] - max(0, away)):
            if mask[i].any():
                union[i + away] |= cv2.dilate(mask[i].view(np.uint8), disc)
    return union.view(np.bool_)


def _disc(height_share: float, radius: Spacing) -> UInt8[np.ndarray, "rows columns"]:
    """Cross-section of the ellipsoid at a share of its depth radius."""
    left = 1.0 - height_share**2
    rows, columns = (np.arange(-int(r), int(r) + 1) / max(r, 1e-6) for r in radius[1:])
    return (rows[:, None] ** 2 + columns**2 <= left + 1e-9).astype(np.uint8)

"""Put a map of the network's input back on the scan it was made from.

Every step of a preparation maps each axis on its own and linearly, and the input's grid holds the
sum of them. So the way back is one linear interpolation per axis, at the place where each of the
scan's voxels lies in the input; crop, salient range, resampling and axis changes need no code.
Only an oblique scan, put upright before, takes an interpolation in all axes at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Float64
from scipy import ndimage
from scipy.sparse import csr_array

from chestct.arrays import Heat
from chestct.explain.evidence import linear_map
from chestct.preprocess.oblique import MAX_DEGREES, degrees_off, index_map
from chestct.preprocess.prepared import PreparedScan
from chestct.preprocess.threads import on_threads
from chestct.volume import Volume, canonical_axes

Positions: TypeAlias = tuple[
    Float64[np.ndarray, " scan_depth"],
    Float64[np.ndarray, " scan_height"],
    Float64[np.ndarray, " scan_width"],
]
"""Input index of each of the scan's voxels along its own axes; NaN where not analysed."""

ScanHeat: TypeAlias = Float32[np.ndarray, "scan_depth scan_height scan_width"]
_REACH = 0.5
"""Voxels beyond the centre of the input's outermost voxel: up to its face."""
_ROUND_OFF = 1e-6


def back_to_scan(heat: Heat, prepared: PreparedScan) -> Volume:
    """Lay a map over the scan.

    Args:
        heat: Map at the size of the network's input, (depth, height, width).
        prepared: The scan it was made for.

    Returns:
        The map on the scan's own grid and axes, float32. NaN, "not analysed", where a voxel lies
        outside the input, or on a slice outside the salient range.

    Raises:
        ValueError: The map is not of the input's size.
    """
    if heat.shape != prepared.grid.shape:
        msg = f"A map of {heat.shape} does not fit an input of {prepared.grid.shape}."
        raise ValueError(msg)
    return replace(
        prepared.scan_lungs, voxels=_on_own_voxels(heat, prepared), unit="windowed", warnings=()
    )


def _on_own_voxels(heat: Heat, prepared: PreparedScan) -> ScanHeat:
    if degrees_off(prepared.scan_grid) > MAX_DEGREES:
        return _turned_back(heat, prepared)
    order, reverse = canonical_axes(prepared.scan_grid)
    own_order = [int(axis) for axis in np.argsort(order)]
    depth, height, width = (
        _positions(prepared, axis, own, is_reversed=reverse[axis])
        for own, axis in enumerate(own_order)
    )
    return _interpolated(heat.transpose(own_order), (depth, height, width))


def _turned_back(heat: Heat, prepared: PreparedScan) -> ScanHeat:
    """A map on the voxels of an oblique scan, slice by slice."""
    own, grid, body = prepared.scan_grid, prepared.grid, prepared.body_grid
    (matrix, offset), (up, from_feet) = index_map(own, grid), index_map(own, body)
    rows, columns = np.ogrid[: own.shape[1], : own.shape[2]]
    first, last = prepared.salient
    ends = [(-_REACH, size - 1 + _REACH) for size in grid.shape]
    lines = [*zip(matrix, offset, ends, strict=True)]
    lines.append((up[0], from_feet[0], (first - _REACH, last + _REACH)))
    voxels = np.empty(own.shape, dtype=np.float32)

    def fill(index: int) -> None:
        """One slice; slices do not overlap, so threads need no lock."""
        start = offset + index * matrix[:, 0]
        shape = (1, own.shape[1], own.shape[2])
        ndimage.affine_transform(
            heat,
            matrix,
            start,
            output=voxels[index : index + 1],
            output_shape=shape,
            order=1,
            mode="nearest",
        )
        for line, place, (low, high) in lines:
            where = line[0] * index + line[1] * rows + line[2] * columns + place
            inside = (where >= low - _ROUND_OFF) & (where <= high + _ROUND_OFF)
            voxels[index][~inside] = np.nan

    on_threads(fill, range(own.shape[0]))
    return voxels


def _positions(
    prepared: PreparedScan, axis: int, own: int, *, is_reversed: bool
) -> Float64[np.ndarray, " voxels"]:
    """Input index, along one axis, of each of the scan's voxels; NaN where not analysed.

    Args:
        prepared: The scan.
        axis: Axis of the canonical scan and of the input.
        own: The same axis of the scan's own grid.
        is_reversed: Whether the scan's own axis runs the other way.
    """
    scan_grid, grid = prepared.scan_grid, prepared.grid
    indices = np.arange(scan_grid.shape[own])
    corner = np.zeros((indices.size, 3))
    corner[:, own] = indices
    positions = grid.to_index(scan_grid.to_patient(corner))[:, axis]
    inside = (positions >= -_REACH - _ROUND_OFF) & (
        positions <= grid.shape[axis] - 1 + _REACH + _ROUND_OFF
    )
    if axis == 0:
        canonical = indices[::-1] if is_reversed else indices
        first, last = prepared.salient
        inside &= (canonical >= first) & (canonical <= last)
    return np.asarray(np.where(inside, positions, np.nan), dtype=np.float64)


def _interpolated(
    heat: Float[np.ndarray, "own_depth own_height own_width"], positions: Positions
) -> ScanHeat:
    """The map at a grid of positions, NaN where one of them is.

    Slice by slice, so that each is written once and while it is in the processor's cache.
    """
    analysed = [np.flatnonzero(np.isfinite(along)) for along in positions]
    shape = tuple(along.size for along in positions)
    if min(found.size for found in analysed) == 0:
        return np.full(shape, np.nan, dtype=np.float32)
    depth, height, width = (
        csr_array(linear_map(along[found], size).weights)
        for along, found, size in zip(positions, analysed, heat.shape, strict=True)
    )
    own_depth, own_height, _ = heat.shape
    rows = heat.reshape(own_depth * own_height, -1)
    widened = np.ascontiguousarray((width @ np.ascontiguousarray(rows.T)).T)
    planes = widened.reshape(own_depth, -1)
    first, last = int(analysed[0][0]), int(analysed[0][-1])
    window = tuple(slice(int(found[0]), int(found[-1]) + 1) for found in analysed[1:])
    voxels = np.empty(shape, dtype=np.float32)
    for index, plane in enumerate(voxels):
        plane.fill(np.nan)
        if first <= index <= last:
            between = depth[[index - first]] @ planes
            plane[window] = height @ between.reshape(own_height, -1)
    return voxels

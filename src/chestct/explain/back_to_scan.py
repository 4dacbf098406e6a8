"""Put a map of cells on the network's input, and one of the input back on the scan.

Every step of a preparation maps each axis on its own and linearly, and the input's grid holds the
sum of them. So the way back is one linear interpolation per axis, at the place where each of the
scan's voxels lies in the input; crop, salient range, resampling and axis changes need no code.
Only an oblique scan, put upright before, takes an interpolation in all axes at once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Float64
from scipy import ndimage
from scipy.sparse import csr_array

from chestct.arrays import Heat, Shape
from chestct.explain.explanation import HeatMap, HeatPlane
from chestct.explain.question import CellMap
from chestct.preprocess.oblique import MAX_DEGREES, body_grid, degrees_off, index_map, on_body
from chestct.preprocess.prepare import PreparedScan
from chestct.preprocess.resample import AxisMap, block_reader, resample
from chestct.preprocess.threads import on_threads
from chestct.volume import Grid, Volume, canonical_axes

Positions: TypeAlias = tuple[
    Float64[np.ndarray, " scan_depth"],
    Float64[np.ndarray, " scan_height"],
    Float64[np.ndarray, " scan_width"],
]
"""Input index of each of the scan's voxels along its own axes; NaN where not analysed."""

_ScanHeat: TypeAlias = Float32[np.ndarray, "scan_depth scan_height scan_width"]
_REACH = 0.5
"""Voxels beyond the centre of the input's outermost voxel: up to its face."""
_ROUND_OFF = 1e-6
_KEPT_SLICES: Final = 16
"""Slices of a map on the body that are not made again: more than a page or a preview shows."""


def back_to_scan(heat: Heat, prepared: PreparedScan) -> HeatMap:
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
        raise ValueError(f"A map of {heat.shape} does not fit an input of {prepared.grid.shape}.")
    grid = prepared.scan_grid
    if degrees_off(grid) > MAX_DEGREES:
        return HeatMap.of(grid, _turned_back(heat, prepared))
    order, reverse = canonical_axes(grid)
    own_order = [int(axis) for axis in np.argsort(order)]
    depth, height, width = (
        _positions(prepared, axis, own, is_reversed=reverse[axis])
        for own, axis in enumerate(own_order)
    )
    return _interpolated(heat.transpose(own_order), (depth, height, width), grid)


def map_on_body(heat: HeatMap) -> HeatMap:
    """A map on the axes of the body, as `chestct.preprocess.oblique.on_body` has them.

    It keeps the slices that were asked for last: pictures ask for each several times.
    """
    grid = heat.grid
    if degrees_off(grid) > MAX_DEGREES:
        whole = on_body(Volume(grid, heat.voxels, "windowed"), beyond=np.nan)
        return HeatMap.of(whole.grid, whole.voxels)
    order, reverse = canonical_axes(grid)

    @lru_cache(maxsize=_KEPT_SLICES)
    def cut(axis: int, index: int) -> HeatPlane:
        """A slice of the scan's own, its axes exchanged and reversed."""
        own = order[axis]
        plane = heat.cut(own, grid.shape[own] - 1 - index if reverse[axis] else index)
        rows, columns = (other for other in range(3) if other != axis)
        if order[rows] > order[columns]:
            plane = plane.T
        return plane[:: -1 if reverse[rows] else 1, :: -1 if reverse[columns] else 1]

    return HeatMap(body_grid(grid), cut)


def _turned_back(heat: Heat, prepared: PreparedScan) -> _ScanHeat:
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

    `axis` is that of the canonical scan and of the input, `own` the same of the scan's own grid.
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
    heat: Float[np.ndarray, "own_depth own_height own_width"], positions: Positions, grid: Grid
) -> HeatMap:
    """The map at a grid of positions, NaN where one of them is.

    A slice across rows or columns is made like those across depth, from the one position alone, so
    that a voxel has the same value in each of them.
    """
    analysed = [np.flatnonzero(np.isfinite(along)) for along in positions]
    shapes = [tuple(n for other, n in enumerate(grid.shape) if other != axis) for axis in range(3)]
    if min(found.size for found in analysed) == 0:
        return HeatMap(grid, lambda axis, _: np.full(shapes[axis], np.nan, dtype=np.float32))
    first = [int(found[0]) for found in analysed]
    window = tuple(slice(int(found[0]), int(found[-1]) + 1) for found in analysed)
    depth, height, width = (
        csr_array(_linear_map(along[found], size).weights)
        for along, found, size in zip(positions, analysed, heat.shape, strict=True)
    )
    own_depth, own_height, _ = heat.shape
    rows = heat.reshape(own_depth * own_height, -1)
    widened = np.ascontiguousarray((width @ np.ascontiguousarray(rows.T)).T)
    widened = widened.reshape(own_depth, own_height, -1)

    def cut(axis: int, index: int) -> HeatPlane:
        """One slice, interpolated along depth, then along height."""
        plane = np.full(shapes[axis], np.nan, dtype=np.float32)
        if not window[axis].start <= index < window[axis].stop:
            return plane
        at = index - first[axis]
        if axis == 0:
            between = depth[[at]] @ widened.reshape(own_depth, -1)
            plane[window[1:]] = height @ between.reshape(own_height, -1)
            return plane
        if axis == 1:
            # Of the map's rows only those that the slice lies between.
            rows = height[[at]].indices
            weights, part = height[[at]][:, rows], widened[:, rows]
        else:
            weights, part = height, widened[:, :, [at]]
        between = depth @ np.ascontiguousarray(part).reshape(own_depth, -1)
        between = between.reshape(depth.shape[0], weights.shape[1], -1)
        made = np.stack([weights @ one for one in between])
        plane[window[0], window[3 - axis]] = made[:, 0] if axis == 1 else made[:, :, 0]
        return plane

    return HeatMap(grid, cut)


def _linear_map(positions: Float64[np.ndarray, " new"], size: int) -> AxisMap:
    """Linear interpolation at positions in voxels; beyond the outermost centres the last value."""
    inside = np.clip(positions, 0.0, size - 1.0)
    lower = np.minimum(inside.astype(np.int64), max(size - 2, 0))
    share = inside - lower
    weights = np.zeros((positions.size, size), dtype=np.float32)
    rows = np.arange(positions.size)
    weights[rows, lower] = 1.0 - share
    if size > 1:
        weights[rows, lower + 1] = share
    # Start and step of the map are not used.
    return AxisMap(weights, 0.0, 0.0)


def spread_over_input(
    cells: CellMap, shape: Shape
) -> Float32[np.ndarray, "input_depth input_height input_width"]:
    """The map at every voxel of an input of the given shape, linear between the cells' centres."""
    maps = []
    for axis, voxels in enumerate(shape):
        size = cells.values.shape[axis]
        centres = _cell_centres(cells.start[axis], cells.step[axis], size, voxels)
        positions = np.interp(np.arange(voxels), centres, np.arange(size))
        maps.append(_linear_map(positions, size))
    values = np.ascontiguousarray(cells.values)
    return resample(block_reader(values), (maps[0], maps[1], maps[2]))


def _cell_centres(
    start: float, step: float, size: int, voxels: int
) -> Float64[np.ndarray, " cells"]:
    """Input index of each cell's centre along an axis, of the part of it that is in the input.

    A cell on the border looks half beyond it, where there is nothing; what it finds lies inside.
    """
    centres = start + step * np.arange(size)
    low, high = (np.clip(centres + side * step / 2, -0.5, voxels - 0.5) for side in (-1, 1))
    return np.asarray((low + high) / 2)

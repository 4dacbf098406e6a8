"""Resampling, one axis at a time, as matrix products.

Every grid a recipe makes is a regular grid along the scan's own axes, so interpolating is three
small matrices, one per axis, nearly all zero. Sparse products with them take a tenth of a second
for a scan and no memory to speak of; dense ones were as fast on an idle machine and
fifty times slower on a busy one, where the threads of a BLAS wait for each other.

Kernels: cubic convolution with a = -0.5 (Keys, IEEE Trans. ASSP 29, 1981), which is what MATLAB's
`interp3` and `imresize3` call cubic, and the interpolating cubic B-spline of
`scipy.ndimage.zoom`.

Lung masks are put on the grids of the preparation in the same way, and grown by a rim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy import ndimage
from scipy.sparse import csr_array

from chestct.arrays import Heat, Mask, Shape, Spacing
from chestct.preprocess.recipes import GridForm
from chestct.preprocess.threads import on_threads

_SLICES_AT_ONCE = 16
"""Slices turned to float together: enough to keep the cores busy, a few dozen megabytes."""

_ROUND_OFF = 1e-9
_NEGLIGIBLE = 1e-8


@dataclass(frozen=True, eq=False)
class AxisMap:
    """How one axis is resampled.

    Attributes:
        weights: Share of each old voxel in each new one. A row of zeros: nothing is there.
        start: Old index, fractional, at which new voxel 0 lies.
        step: Old voxels between new ones.
    """

    weights: Float32[np.ndarray, "new old"]
    start: float
    step: float

    @property
    def new_size(self) -> int:
        """Number of new voxels."""
        return int(self.weights.shape[0])

    @property
    def used(self) -> slice:
        """The old voxels that any new voxel needs."""
        columns = np.flatnonzero(self.weights.any(axis=0))
        return slice(int(columns[0]), int(columns[-1]) + 1) if columns.size else slice(0, 1)

    def within(self, part: slice, size: int) -> AxisMap:
        """This map, made for a part of an axis, as a map of the whole axis of `size` voxels."""
        weights = np.zeros((self.new_size, size), dtype=np.float32)
        weights[:, part] = self.weights
        return AxisMap(weights, self.start + part.start, self.step)

    def only(self, part: slice) -> AxisMap:
        """The same map for an axis known to hold zeros outside `part`."""
        weights = np.zeros_like(self.weights)
        weights[:, part] = self.weights[:, part]
        return AxisMap(weights, self.start, self.step)


AxisMaps: TypeAlias = tuple[AxisMap, AxisMap, AxisMap]
"""Maps of (depth, height, width)."""

Block: TypeAlias = Float32[np.ndarray, "slices rows columns"]
"""Values of a part of a volume; its axes are the volume's, its sizes are not."""

ReadBlock: TypeAlias = Callable[[slice, slice, slice], Block]
"""Gives the values of a block of the old volume, so that only what is needed becomes float."""


def resample(read_block: ReadBlock, maps: AxisMaps) -> Heat:
    """Resample a volume along its three axes; (depth, height, width), C-contiguous.

    `read_block` is asked for a few slices at a time and only for voxels with a weight.
    """
    depth, height, width = maps
    used_depth, used_height, used_width = depth.used, height.used, width.used
    along_height = csr_array(height.weights[:, used_height])
    along_width = csr_array(width.weights[:, used_width])
    num_slices = used_depth.stop - used_depth.start
    planes = np.empty((num_slices, height.new_size, width.new_size), dtype=np.float32)

    def resample_slices(first: int) -> None:
        """Write some slices of `planes`."""
        last = min(first + _SLICES_AT_ONCE, num_slices)
        start = used_depth.start
        block = read_block(slice(start + first, start + last), used_height, used_width)
        for plane, old in zip(planes[first:last], block, strict=True):
            # A sparse product runs along rows in memory, hence the two cheap transpositions.
            plane[...] = (along_width @ _transposed(along_height @ old)).T

    on_threads(resample_slices, range(0, num_slices, _SLICES_AT_ONCE))
    new = np.empty((depth.new_size, height.new_size * width.new_size), dtype=np.float32)

    def stack_slices(first: int) -> None:
        """Write some slices of `new`."""
        part = slice(first, first + _SLICES_AT_ONCE)
        new[part] = csr_array(depth.weights[part, used_depth]) @ planes.reshape(num_slices, -1)

    on_threads(stack_slices, range(0, depth.new_size, _SLICES_AT_ONCE))
    return new.reshape(depth.new_size, height.new_size, width.new_size)


def _transposed(plane: Float32[np.ndarray, "rows columns"]) -> Float32[np.ndarray, "columns rows"]:
    return np.ascontiguousarray(plane.T)


def block_reader(values: Float32[np.ndarray, "depth height width"]) -> ReadBlock:
    """Read blocks of an array that is already there as float."""

    def read_block(depth: slice, height: slice, width: slice) -> Block:
        """A block in one piece."""
        return np.ascontiguousarray(values[depth, height, width])

    return read_block


def factor_map(size: int, factor: float, form: GridForm) -> AxisMap:
    """A grid of every `factor` voxels from the first on, cubic (RoI paper, Eq. 2-9).

    The voxel spacing enters those equations on both sides and cancels, so the factor alone says
    it. Points are sampled without smoothing, as `interp3` does.

    Args:
        size: Old number of voxels.
        factor: k1 (in plane) or k2 (between slices), in voxels.
        form: "inclusive": MATLAB's 0:factor:size, points past the last voxel hold zero;
            "whole_steps": floor(size / factor) points, the last voxel repeated past the end.
    """
    steps = int(np.floor(size / factor + _ROUND_OFF))
    positions = factor * np.arange(steps + 1 if form == "inclusive" else max(steps, 1))
    weights = _keys_weights(np.minimum(positions, size - 1.0), size)
    if form == "inclusive":
        weights[positions > size - 1 + _ROUND_OFF] = 0.0
    return AxisMap(weights.astype(np.float32), 0.0, factor)


def resize_map(size: int, new_size: int) -> AxisMap:
    """Resize an axis, the outer faces of its end voxels staying where they are, cubic.

    MATLAB's `imresize3`: the kernel is widened when shrinking, so that nothing aliases, and the
    axis is mirrored beyond its ends.
    """
    step = size / new_size
    start = 0.5 * step - 0.5
    positions = start + step * np.arange(new_size)
    return AxisMap(_mirrored_weights(positions, size, step, _keys_cubic, 2), start, step)


def grid_map(
    size: int, start: float, step: float, new_size: int, *, is_mask: bool = False
) -> AxisMap:
    """A grid of any start and step, cubic, widened when coarser than the old one.

    New voxels whose centre lies outside the old ones hold zero. For a mask it is linear, so that
    values stay between 0 and 1.
    """
    positions = start + step * np.arange(new_size)
    inside = np.clip(positions, -0.5, size - 0.5)
    kernel, reach = (_triangle, 1) if is_mask else (_keys_cubic, 2)
    weights = _mirrored_weights(inside, size, step, kernel, reach)
    weights[positions != inside] = 0.0
    return AxisMap(weights, start, step)


def spline_map(size: int, new_size: int) -> AxisMap:
    """Resize an axis, the centres of its end voxels staying where they are, cubic B-spline.

    `scipy.ndimage.zoom` with its defaults (order 3): no smoothing when shrinking, the axis
    mirrored about the centres of its end voxels.
    """
    step = (size - 1) / (new_size - 1) if new_size > 1 else 1.0
    if size == 1:
        return AxisMap(np.ones((new_size, 1), dtype=np.float32), 0.0, 1.0)
    weights = ndimage.zoom(np.eye(size), (new_size / size, 1.0), order=3, mode="mirror")
    # Each weight reaches over the whole axis and fades by 0.27 a voxel; its tail is round-off.
    weights[np.abs(weights) < _NEGLIGIBLE] = 0.0
    return AxisMap(np.ascontiguousarray(weights, dtype=np.float32), 0.0, step)


def _keys_cubic(distance: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The cubic convolution kernel with a = -0.5 at distances in voxels (Keys 1981, Eq. 15)."""
    x = np.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.asarray(np.where(x <= 1.0, near, np.where(x < 2.0, far, 0.0)))


def _triangle(distance: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.asarray(np.maximum(1.0 - np.abs(distance), 0.0))


def _taps(
    positions: Float[np.ndarray, " new"], reach: float
) -> tuple[np.ndarray, Float[np.ndarray, "new taps"]]:
    """Old indices within `reach` of each position, and their distances."""
    num_taps = int(np.ceil(2 * reach)) + 1
    indices = np.ceil(positions - reach).astype(np.int64)[:, None] + np.arange(num_taps)
    return indices, positions[:, None] - indices


def _mirrored_weights(
    positions: Float[np.ndarray, " new"],
    size: int,
    step: float,
    kernel: Callable[[Float[np.ndarray, "*shape"]], Float[np.ndarray, "*shape"]],
    reach: int,
) -> Float32[np.ndarray, "new old"]:
    """Weights of a kernel widened by `step` where that is coarser, ends mirrored about faces."""
    width = max(step, 1.0)
    indices, distances = _taps(positions, reach * width)
    shares = kernel(distances / width)
    shares /= shares.sum(axis=1, keepdims=True)
    mirrored = np.mod(indices, 2 * size)
    mirrored = np.where(mirrored >= size, 2 * size - 1 - mirrored, mirrored)
    return _gathered(mirrored, shares, size).astype(np.float32)


def _keys_weights(positions: Float[np.ndarray, " new"], size: int) -> Float[np.ndarray, "new old"]:
    """Weights of plain cubic convolution; one voxel beyond each end by Keys' Eq. 19 and 25.

    That voxel is extrapolated from the last three (3, -3, 1), which keeps quadratics exact.
    """
    indices, distances = _taps(positions, 2.0)
    shares = _keys_cubic(distances)
    if size < 3:
        return _gathered(np.clip(indices, 0, size - 1), shares, size)
    extended = _gathered(np.clip(indices + 1, 0, size + 1), shares, size + 2)
    weights = extended[:, 1:-1].copy()
    weights[:, :3] += extended[:, :1] * (3.0, -3.0, 1.0)
    weights[:, -3:] += extended[:, -1:] * (1.0, -3.0, 3.0)
    return weights


def _gathered(
    indices: np.ndarray, shares: Float[np.ndarray, "new taps"], size: int
) -> Float[np.ndarray, "new old"]:
    """A dense matrix from (index, share) pairs; pairs of the same index add up."""
    weights = np.zeros((indices.shape[0], size))
    rows = np.broadcast_to(np.arange(indices.shape[0])[:, None], indices.shape)
    np.add.at(weights, (rows, indices), shares)
    return weights


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

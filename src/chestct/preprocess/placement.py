"""Where the input's voxels lie in the scan, by three placements, and what they hold.

Each placement gives resampled values and the affine map of every axis, so that the caller can say
where each input voxel lies in the patient. Before resampling zero always means "nothing there", so
that a weight of zero stands for air beyond the scan as for anything else outside: windowed values
are counted from air.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Num

from chestct.arrays import Heat, Mask, Spacing, Voxels
from chestct.errors import GridError
from chestct.preprocess.contrast import StretchLimits, saturation_limits, volume_limits
from chestct.preprocess.lungs import NetworkLungs
from chestct.preprocess.recipes import Recipe, SliceRule
from chestct.preprocess.resample import (
    AxisMaps,
    Block,
    Box,
    ReadBlock,
    block_reader,
    factor_map,
    grid_map,
    resample,
    resize_map,
    spline_map,
)
from chestct.volume import AIR_HU, Unit, Volume

_MAX_SAMPLED_VOXELS: Final = 2**28
"""Largest grid by factors: 1 GiB, twice 512 slices of 512 x 512 at the finest factors drawn."""

_LOST_LUNG_SHARE = 0.01
_EIGHT_BITS: Final = 255.0
"""White of an 8-bit export."""


@dataclass(frozen=True, eq=False)
class ScanLungs:
    """A canonical scan and its lungs.

    Attributes:
        volume: Canonical scan, C-contiguous.
        mask: Lung mask on its grid.
        box: Bounding box of the mask, None when it is empty.
        area: Lung share of each slice.
        network: What the lungs network said; None where another method found the lungs.
    """

    volume: Volume
    mask: Mask
    box: Box | None
    area: Float64[np.ndarray, " slices"]
    network: NetworkLungs | None = None

    @property
    def whole_box(self) -> Box:
        """The bounding box of the lungs, or the whole scan when there are none."""
        depth, height, width = (slice(0, size) for size in self.mask.shape)
        return self.box or (depth, height, width)


@dataclass(frozen=True, eq=False)
class Placed:
    """Resampled values and where they lie.

    Attributes:
        values: Values at the input's size, not yet finished.
        start: Scan index of the first input voxel, (depth, height, width).
        step: Scan voxels between input voxels.
        salient: First and last slice of the scan that was used.
        warnings: What was noticed.
    """

    values: Heat
    start: Spacing
    step: Spacing
    salient: tuple[int, int]
    warnings: tuple[str, ...] = field(default=())


def place(scan: ScanLungs, recipe: Recipe) -> Placed:
    """Resample a scan to the recipe's input size, as its `placement` says."""
    return _PLACEMENTS[recipe.placement](scan, recipe)


def _place_whole(scan: ScanLungs, recipe: Recipe) -> Placed:
    """The whole scan, or its salient slices, resized axis by axis."""
    first, last = _salient_by_mask(scan, recipe)
    size_map = spline_map if recipe.kernel == "spline" else resize_map
    shape, new_shape = scan.mask.shape, recipe.input_shape
    maps = (
        size_map(last - first + 1, new_shape[0]).within(slice(first, last + 1), shape[0]),
        size_map(shape[1], new_shape[1]),
        size_map(shape[2], new_shape[2]),
    )
    values = resample(_value_reader(scan.volume, recipe, None), maps)
    return _placed(values, maps, (first, last))


def _place_physical(scan: ScanLungs, recipe: Recipe) -> Placed:
    """A grid of fixed millimetres, centred on the lungs; air beyond the scan."""
    first, last = _salient_by_mask(scan, recipe)
    depth_box, height_box, width_box = scan.whole_box
    box = (
        slice(max(depth_box.start, first), min(depth_box.stop, last + 1)),
        height_box,
        width_box,
    )
    shrink = _shrink_factor(scan, recipe, box) if scan.box else 1.0
    sizes = (last - first + 1, scan.mask.shape[1], scan.mask.shape[2])
    maps = []
    for axis, origin in enumerate((first, 0, 0)):
        step = shrink * recipe.spacing_mm[axis] / scan.volume.grid.spacing_mm[axis]
        centre = (box[axis].start + box[axis].stop - 1) / 2
        start = centre - origin - step * (recipe.input_shape[axis] - 1) / 2
        part = slice(origin, origin + sizes[axis])
        axis_map = grid_map(sizes[axis], start, step, recipe.input_shape[axis])
        maps.append(axis_map.within(part, scan.mask.shape[axis]))
    values = resample(_value_reader(scan.volume, recipe, None), (maps[0], maps[1], maps[2]))
    warnings = (_shrunk_warning(recipe, shrink),) if shrink > 1.0 else ()
    return _placed(values, (maps[0], maps[1], maps[2]), (first, last), warnings)


def _shrink_factor(scan: ScanLungs, recipe: Recipe, box: Box) -> float:
    """How much coarser the grid has to be for the lungs and their margin to fit, at least 1."""
    needed = (
        (part.stop - part.start) * spacing + 2 * recipe.lung_margin_mm
        for part, spacing in zip(box, scan.volume.grid.spacing_mm, strict=True)
    )
    room = (n * s for n, s in zip(recipe.input_shape, recipe.spacing_mm, strict=True))
    return float(max(1.0, *(want / have for want, have in zip(needed, room, strict=True))))


def _shrunk_warning(recipe: Recipe, shrink: float) -> str:
    room = " x ".join(
        f"{n * s:.0f}" for n, s in zip(recipe.input_shape, recipe.spacing_mm, strict=True)
    )
    return (
        f"The lungs with their margin do not fit into {room} mm (depth, height, width); they were "
        f"shrunk to {1 / shrink:.1%} of their size, smaller than the network sees other lungs."
    )


def _place_factors(scan: ScanLungs, recipe: Recipe) -> Placed:
    """The RoI paper's way: a grid by factors, salient slices, a crop, resized."""
    factors = (recipe.slice_step, recipe.in_plane_step, recipe.in_plane_step)
    depth, height, width = (
        factor_map(size, factor, recipe.grid_form)
        for size, factor in zip(scan.mask.shape, factors, strict=True)
    )
    maps = (depth, height, width)
    _check_size(maps, recipe)
    if recipe.background == 0.0:
        depth, height, width = (m.only(part) for m, part in zip(maps, scan.whole_box, strict=True))
    sampled = resample(_value_reader(scan.volume, recipe, scan.mask), (depth, height, width))
    rows, salient = _salient_rows(scan, recipe, sampled)
    parts = (
        rows,
        _central_part(sampled.shape[1], recipe.central_crop),
        _central_part(sampled.shape[2], recipe.central_crop),
    )
    resized = tuple(
        resize_map(part.stop - part.start, new_size)
        for part, new_size in zip(parts, recipe.input_shape, strict=True)
    )
    values = resample(block_reader(sampled[parts]), (resized[0], resized[1], resized[2]))
    start = tuple(
        factor * (part.start + axis.start)
        for factor, part, axis in zip(factors, parts, resized, strict=True)
    )
    step = tuple(factor * axis.step for factor, axis in zip(factors, resized, strict=True))
    placed = Placed(values, (start[0], start[1], start[2]), (step[0], step[1], step[2]), salient)
    return _with_lost_lung(placed, scan)


def _check_size(maps: AxisMaps, recipe: Recipe) -> None:
    depth, height, width = (axis.new_size for axis in maps)
    if depth * height * width > _MAX_SAMPLED_VOXELS:
        msg = (
            f"Recipe '{recipe.name}' makes {depth} x {height} x {width} voxels of this scan, over "
            f"the {_MAX_SAMPLED_VOXELS} allowed; use a larger in_plane_step or slice_step."
        )
        raise GridError(msg)


def _salient_rows(scan: ScanLungs, recipe: Recipe, sampled: Heat) -> tuple[slice, tuple[int, int]]:
    """Salient slices of the factor grid, and the scan slices they stand for."""
    last_slice = scan.mask.shape[0] - 1
    if recipe.salient_area == "input" and recipe.salient_threshold is not None:
        low, high = _salient_slices(
            slice_area(sampled > 0), recipe.salient_threshold, recipe.salient_rule
        )
        ends = [min(round(row * recipe.slice_step), last_slice) for row in (low, high)]
        return slice(low, high + 1), (ends[0], ends[1])
    first, last = _salient_by_mask(scan, recipe)
    low = int(np.ceil(first / recipe.slice_step))
    high = int(np.floor(last / recipe.slice_step))
    if last == last_slice:
        high = sampled.shape[0] - 1
    # Steps of more than a slice can miss a short range altogether.
    low = min(low, high, sampled.shape[0] - 1)
    return slice(low, min(high, sampled.shape[0] - 1) + 1), (first, last)


def _central_part(size: int, share: float) -> slice:
    kept = max(1, round(size * share))
    start = (size - kept) // 2
    return slice(start, start + kept)


def _with_lost_lung(placed: Placed, scan: ScanLungs) -> Placed:
    """Warn when the crop cut lung off on the slices used."""
    used = scan.mask[placed.salient[0] : placed.salient[1] + 1]
    total = int(np.count_nonzero(used))
    kept = []
    for axis in (1, 2):
        half = placed.step[axis] / 2
        first = int(np.ceil(placed.start[axis] - half))
        last = placed.start[axis] + placed.step[axis] * placed.values.shape[axis] - half
        kept.append(slice(max(first, 0), max(int(np.floor(last)) + 1, 0)))
    lost = 1.0 - np.count_nonzero(used[:, kept[0], kept[1]]) / max(total, 1)
    if total == 0 or lost <= _LOST_LUNG_SHARE:
        return placed
    warning = f"The recipe's central crop cut off {lost:.0%} of the lungs on the slices used."
    return Placed(placed.values, placed.start, placed.step, placed.salient, (warning,))


def slice_area(
    is_lung: Bool[np.ndarray, "slices height width"],
) -> Float64[np.ndarray, " slices"]:
    """Share of each slice's area that is lung, 0 to 1."""
    counts = np.count_nonzero(is_lung, axis=(1, 2))
    return np.asarray(counts / (is_lung.shape[1] * is_lung.shape[2]), dtype=np.float64)


def _salient_slices(
    area: Num[np.ndarray, " slices"], threshold: float, rule: SliceRule
) -> tuple[int, int]:
    """First and last slice to keep: those on which the lungs are large (RoI paper, Algorithm 1).

    The algorithm normalises the lung area of each slice by the largest one, thresholds it at t and
    keeps slices "from the first index k_t, K_n of them, K_n the length of the thresholded vector".
    That length can be read as the number of slices that reach t ("count") or, as the script does,
    as the distance from the first to the last of them ("span"). They differ only where the area
    dips below t in between; then "count" ends too early by as many slices as lie in the dip.

    Args:
        area: Lung area per slice, in any unit.
        threshold: t in (0, 1], share of the largest area a slice has to reach.
        rule: "span" or "count".

    Returns:
        Indices of the first and the last slice kept, both included; all slices when there is no
        lung on any.
    """
    largest = float(area.max())
    if largest <= 0:
        return 0, len(area) - 1
    reaching = np.flatnonzero(area / largest >= threshold)
    first = int(reaching[0])
    return first, int(reaching[-1]) if rule == "span" else first + len(reaching) - 1


def _salient_by_mask(scan: ScanLungs, recipe: Recipe) -> tuple[int, int]:
    if recipe.salient_threshold is None:
        return 0, len(scan.area) - 1
    return _salient_slices(scan.area, recipe.salient_threshold, recipe.salient_rule)


def _placed(
    values: Heat, maps: AxisMaps, salient: tuple[int, int], warnings: tuple[str, ...] = ()
) -> Placed:
    start = (maps[0].start, maps[1].start, maps[2].start)
    step = (maps[0].step, maps[1].step, maps[2].step)
    return Placed(values, start, step, salient, warnings)


_PLACEMENTS: Final[dict[str, Callable[[ScanLungs, Recipe], Placed]]] = {
    "whole": _place_whole,
    "physical": _place_physical,
    "factors": _place_factors,
}


def _value_reader(volume: Volume, recipe: Recipe, mask: Mask | None) -> ReadBlock:
    """Read float32 blocks of a canonical scan as the recipe's values, to be resampled.

    Nothing of the scan's size is made. Where a mask is given, voxels outside it get the recipe's
    background.
    """
    values = _VALUES[recipe.intensity](volume, recipe)
    if mask is None or recipe.background is None:
        return values
    background = recipe.background

    def read_masked(depth: slice, height: slice, width: slice) -> Block:
        """Values of a block, the background's outside the mask."""
        block = values(depth, height, width)
        block[~mask[depth, height, width]] = background
        return block

    return read_masked


def finished_values(values: Heat, recipe: Recipe, unit: Unit) -> Heat:
    """Turn resampled values into the network's; may reuse the memory of `values`."""
    if recipe.intensity == "zscore":
        spread = float(values.std())
        values = (values - values.mean()) / np.float32(spread if spread > 0 else 1.0)
    elif recipe.intensity == "window":
        values = _windowed(values, recipe, unit)
    elif recipe.intensity == "window_8bit":
        values = np.rint(np.clip(values, 0.0, _EIGHT_BITS)) / np.float32(_EIGHT_BITS)
    return np.maximum(values, 0.0, out=values) if recipe.clip_negatives else values


def _windowed(values: Heat, recipe: Recipe, unit: Unit) -> Heat:
    """Values counted from air to the window; a windowed export already is one, 0 to 255."""
    low, high = recipe.window_hu if unit == "HU" else (0.0, _EIGHT_BITS)
    air = AIR_HU if unit == "HU" else 0.0
    scaled = values * np.float32(1.0 / (high - low))
    scaled += np.float32((air - low) / (high - low))
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def _minmax_values(volume: Volume, recipe: Recipe) -> ReadBlock:
    return partial(_between, volume.voxels, volume_limits(volume.voxels))


def _between(
    voxels: Voxels, limits: StretchLimits, depth: slice, height: slice, width: slice
) -> Block:
    return limits.apply(voxels[depth, height, width])


def _contrast_values(volume: Volume, recipe: Recipe) -> ReadBlock:
    voxels = volume.voxels
    full_range = volume_limits(voxels)

    def read_block(depth: slice, height: slice, width: slice) -> Block:
        """A block, each of its slices stretched by itself."""
        limits = [
            saturation_limits(voxels[i : i + 1], recipe.saturated_share, full_range=full_range)
            for i in range(depth.start, depth.stop)
        ]
        return _stretched(voxels[depth, height, width], limits)

    return read_block


def _stretched(voxels: Voxels, limits: Sequence[StretchLimits]) -> Heat:
    """Each slice along depth stretched between its own limits: `imadjust` slice by slice."""
    stretched = np.empty(voxels.shape, dtype=np.float32)
    for out, plane, limit in zip(stretched, voxels, limits, strict=True):
        out[...] = limit.apply(plane)
    return stretched


def _values_above_air(volume: Volume, recipe: Recipe) -> ReadBlock:
    air = np.float32(AIR_HU if volume.unit == "HU" else 0.0)

    def read_block(depth: slice, height: slice, width: slice) -> Block:
        """A block, counted from air."""
        block = volume.voxels[depth, height, width].astype(np.float32)
        block -= air
        return block

    return read_block


def _eight_bit_values(volume: Volume, recipe: Recipe) -> ReadBlock:
    low, high = recipe.window_hu if volume.unit == "HU" else (0.0, _EIGHT_BITS)
    window = partial(_between, volume.voxels, StretchLimits(low, high))

    def read_block(depth: slice, height: slice, width: slice) -> Block:
        """A block in the grey levels of an 8-bit picture."""
        block = window(depth, height, width)
        block *= np.float32(_EIGHT_BITS)
        np.rint(block, out=block)
        return block

    return read_block


_VALUES: Final = {
    "minmax": _minmax_values,
    "contrast": _contrast_values,
    "zscore": _values_above_air,
    "window": _values_above_air,
    "window_8bit": _eight_bit_values,
}

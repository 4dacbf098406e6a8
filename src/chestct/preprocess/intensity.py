"""Voxels to values: what a recipe does before resampling and after it.

Before resampling zero always means "nothing there", so that a weight of zero stands for air
beyond the scan as for anything else outside: windowed values are counted from air.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np

from chestct.arrays import Heat, Mask, Voxels
from chestct.preprocess.contrast import StretchLimits, saturation_limits, volume_limits
from chestct.preprocess.recipes import Recipe
from chestct.preprocess.resample import Block, ReadBlock
from chestct.volume import AIR_HU, Unit, Volume

_EIGHT_BITS: Final = 255.0
"""White of an 8-bit export."""


def value_reader(volume: Volume, recipe: Recipe, mask: Mask | None) -> ReadBlock:
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

"""Does the anatomy lie the way the geometry says? Spine behind, lung bases below, liver right.

A wrong orientation in a header turns a scan without a trace in its pixels' values, and a network
answers all the same. Each check looks at what no disease changes and speaks up only when it is
clear; on a scan that shows too little it stays silent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

from chestct.arrays import Mask, Spacing
from chestct.volume import Volume

_COARSE_MM = 4.0
_BONE_HU = 200.0
_SPINE_HALF_WIDTH_MM = 40.0
_MIN_BONE_ML = 20.0

_FRONT_SPINE_SHARE = 0.3
"""Below this share of midline bone behind the lungs' centre; four real scans have 0.82 to 0.94."""

_INVERTED_FILL = 0.7
"""Below this apex-to-base ratio of `_fill_ratio`; four real scans have 1.6 to 3.0."""

_SOLID_MM = 20.0
_SOLID_HU = (-10.0, 170.0)
_MIN_SOLID_ML = 30.0
_MIRRORED_LIVER = -1.0
"""Below this log ratio of solid organ, right to left; three real scans have 1.2 to 4.4."""

_HEART_LEFT_MM = 5.0
"""A heart that reaches this much further to the left speaks against a mirrored scan."""

_BOTH_SIDES = 0.25
_MAX_LUNG_AT_SPINE = 0.5


@dataclass(frozen=True, eq=False)
class CoarseChest:
    """A chest at a few millimetres, enough to tell front from back.

    Attributes:
        voxels: Hounsfield units on canonical axes, (depth, height, width).
        lungs: The one or two largest parts of the lung mask.
        spacing_mm: Voxel size.
        spine_column: Column (width index) of the spine, or of the lungs' middle without bone.
        bone_behind: Share of the midline bone that lies behind the lungs' centre, or None where
            there is too little bone.
    """

    voxels: Float32[np.ndarray, "depth height width"]
    lungs: Mask
    spacing_mm: Spacing
    spine_column: float
    bone_behind: float | None


def coarse_chest(volume: Volume, mask: Mask) -> CoarseChest | None:
    """Reduce a canonical scan and its lung mask; None when there is no lung to speak of."""
    strides = [max(1, round(_COARSE_MM / spacing)) for spacing in volume.grid.spacing_mm]
    every = tuple(slice(None, None, stride) for stride in strides)
    lungs = _largest_parts(mask[every])
    if not lungs.any():
        return None
    depth, height, width = (n * s for n, s in zip(strides, volume.grid.spacing_mm, strict=True))
    voxels = volume.voxels[every].astype(np.float32)
    column, behind = _spine(voxels, lungs, (depth, height, width))
    return CoarseChest(voxels, lungs, (depth, height, width), column, behind)


def orientation_faults(chest: CoarseChest) -> tuple[str, ...]:
    """What speaks against the scan's orientation, in words; empty when nothing clear does."""
    faults = []
    if chest.bone_behind is not None and chest.bone_behind < _FRONT_SPINE_SHARE:
        faults.append("the spine lies in front of the lungs (front and back exchanged)")
    if _fill_ratio(chest) < _INVERTED_FILL:
        faults.append("the bases of the lungs point to the head (upside down)")
    if _is_mirrored(chest) and not faults:
        faults.append("liver and heart lie on the wrong sides (left and right exchanged)")
    return tuple(faults)


def _largest_parts(mask: Mask) -> Mask:
    parts, count = ndimage.label(mask)
    if count == 0:
        return np.zeros_like(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    wanted = [i for i in np.argsort(sizes)[-2:] if sizes[i] > 0.15 * sizes.max()]
    return np.isin(parts, wanted)


def _spine(
    voxels: Float32[np.ndarray, "depth height width"], lungs: Mask, spacing_mm: Spacing
) -> tuple[float, float | None]:
    """Column of the spine, and the share of midline bone behind the lungs' centre."""
    slices, rows, columns = (np.flatnonzero(lungs.any(axis=a)) for a in ((1, 2), (0, 2), (0, 1)))
    centre_row = int(np.average(rows, weights=lungs.sum(axis=(0, 2))[rows]))
    middle = (int(columns[0]) + int(columns[-1])) // 2
    half = int(_SPINE_HALF_WIDTH_MM / spacing_mm[2])
    left_end = max(middle - half, 0)
    strip = voxels[slices[0] : slices[-1] + 1, :, left_end : middle + half + 1] > _BONE_HU
    behind = strip[:, centre_row:].sum(axis=(0, 1))
    total = int(strip.sum())
    if total * float(np.prod(spacing_mm)) / 1000.0 < _MIN_BONE_ML:
        return float(middle), None
    if not behind.any():
        return float(middle), 0.0
    # The median first, as an average of all would follow ribs, then an average around it.
    median = int(np.searchsorted(behind.cumsum(), behind.sum() / 2))
    near = np.abs(np.arange(behind.size) - median) * spacing_mm[2] <= _SPINE_HALF_WIDTH_MM / 2
    column = left_end + float(np.average(np.flatnonzero(near), weights=behind[near]))
    return column, float(behind.sum() / total)


def _fill_ratio(chest: CoarseChest) -> float:
    """How full of lung its own outline is near the apex, relative to near the base.

    Towards the base the lungs are a thin rim around the domes of the diaphragm, towards the apex
    they are round. Each end is a quarter of the lungs' height.
    """
    area = chest.lungs.sum(axis=(1, 2))
    slices = np.flatnonzero(area)
    quarter = max(1, (int(slices[-1]) - int(slices[0]) + 1) // 4)
    outline = _extent(chest.lungs, 1) * _extent(chest.lungs, 2)
    base = slice(int(slices[0]), int(slices[0]) + quarter)
    apex = slice(int(slices[-1]) + 1 - quarter, int(slices[-1]) + 1)
    fill_apex = area[apex].sum() / max(int(outline[apex].sum()), 1)
    fill_base = area[base].sum() / max(int(outline[base].sum()), 1)
    return float(fill_apex / fill_base)


def _extent(lungs: Mask, axis: int) -> np.ndarray:
    """Voxels from the first to the last with lung, along one in-plane axis, per slice."""
    seen = np.asarray(lungs.any(axis=3 - axis))
    first = seen.argmax(axis=1)
    last = seen.shape[1] - seen[:, ::-1].argmax(axis=1)
    return np.where(seen.any(axis=1), last - first, 0)


def _is_mirrored(chest: CoarseChest) -> bool:
    """Whether the liver lies left and the heart does not, on a scan that shows both lungs."""
    column = round(chest.spine_column)
    left_share = chest.lungs[:, :, column:].sum() / chest.lungs.sum()
    has_both = _BOTH_SIDES <= left_share <= 1 - _BOTH_SIDES
    if not has_both or _lung_at_spine(chest) > _MAX_LUNG_AT_SPINE:
        return False
    liver = _liver_side(chest)
    if liver is None or liver >= _MIRRORED_LIVER:
        return False
    return _heart_shift_mm(chest) < _HEART_LEFT_MM


def _lung_at_spine(chest: CoarseChest) -> float:
    """Share of slices with lung where the spine should be: high when only one lung is shown."""
    rows = np.flatnonzero(chest.lungs.any(axis=(0, 2)))
    behind = chest.lungs[:, (int(rows[0]) + int(rows[-1])) // 2 :, round(chest.spine_column)]
    return float(behind.any(axis=1).sum() / chest.lungs.any(axis=(1, 2)).sum())


def _liver_side(chest: CoarseChest) -> float | None:
    """Log ratio of solid organ right to left of the spine, around the base of the lungs.

    Solid: all within 20 mm is soft tissue. The liver is; stomach, spleen and heart beside the
    spine hardly are, for their size, their gas and the fat around them.
    """
    slices = np.flatnonzero(chest.lungs.any(axis=(1, 2)))
    columns = np.flatnonzero(chest.lungs.any(axis=(0, 1)))
    depth_mm = chest.spacing_mm[0]
    bottom = max(0, int(slices[0]) - round(2 * _SOLID_MM / depth_mm))
    top = int(slices[0]) + (int(slices[-1]) - int(slices[0])) // 3 + 1
    region = ndimage.uniform_filter(chest.voxels[bottom:top], 3)
    size = [max(1, round(_SOLID_MM / spacing)) for spacing in chest.spacing_mm]
    low, high = _SOLID_HU
    solid = (ndimage.minimum_filter(region, size) > low) & (
        ndimage.maximum_filter(region, size) < high
    )
    half = (int(columns[-1]) - int(columns[0]) + 1) / 2
    spine = chest.spine_column
    right = solid[:, :, max(0, int(spine - half)) : max(0, int(spine - 0.3 * half))].sum()
    left = solid[:, :, int(spine + 0.3 * half) : int(spine + half) + 1].sum()
    voxel_ml = float(np.prod(chest.spacing_mm)) / 1000.0
    if (right + left) * voxel_ml < _MIN_SOLID_ML:
        return None
    return float(np.log((right * voxel_ml + 1.0) / (left * voxel_ml + 1.0)))


def _heart_shift_mm(chest: CoarseChest) -> float:
    """How much further the heart reaches to the left of the spine than to the right, on average.

    Measured between the lungs' inner edges, in front of their centre, on the lower half of the
    slices with at least 0.8 of the largest lung area: above the diaphragm, at the heart.
    """
    area = chest.lungs.sum(axis=(1, 2))
    large = np.flatnonzero(area >= 0.8 * area.max())
    heart = chest.lungs[large[0] : (int(large[0]) + int(large[-1])) // 2 + 1]
    rows = np.flatnonzero(heart.any(axis=(0, 2)))
    front = heart[:, rows[0] : int(rows.mean()) + 1]
    column = round(chest.spine_column)
    right, left = front[:, :, :column][:, :, ::-1], front[:, :, column:]
    is_between = right.any(axis=2) & left.any(axis=2)
    if not is_between.any():
        return 0.0
    first_left = column + left.argmax(axis=2)[is_between]
    last_right = column - 1 - right.argmax(axis=2)[is_between]
    middle = float((first_left + last_right).mean()) / 2
    return 2 * (middle - chest.spine_column) * chest.spacing_mm[2]

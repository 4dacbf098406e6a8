"""Should this scan be classified at all? What speaks against it, and what a reader should know.

Reasons make a scan unsuitable: the pipeline then gives no class. Warnings go with the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from chestct.arrays import Mask
from chestct.preprocess.lungs import NetworkLungs
from chestct.preprocess.orientation import (
    CoarseChest,
    coarse_chest,
    orientation_doubts,
    orientation_faults,
)
from chestct.preprocess.placement import ScanLungs
from chestct.preprocess.recipes import Recipe

_MIN_LUNG_L: Final = 0.5
"""Less than any adult's two lungs; head, abdomen and limbs stay below it."""
_MAX_LUNG_L: Final = 12.0
"""More than any lungs at full inspiration: something else was taken for lung."""
_MIN_LUNG_HEIGHT_MM: Final = 100.0
"""Lungs cover 200 mm and more; a slab of less than half says too little."""
_MIN_SLICES: Final = 16
_LUNG_HU: Final = (-1000.0, -300.0)
"""Range of the median lung voxel, from emphysema to severe pneumonia."""

_CUT_AREA = 0.1
_HALF_AREA = 0.7
"""Share of the largest cross-section on the last slice from which only part of the lungs is in
view; chests at hand that lack an apex have 0.3."""
_COARSE_MM = 4.0
_BODY_HU, _BONE_HU = -200.0, 200.0
_HEAD_CM2, _HEAD_BONE = 400.0, 0.1
"""A head has 270 cm² and 0.22 of it bone; abdomens at hand have 740 cm² and 0.03 to 0.04."""
_DENSE_HU, _DENSE_ML = -150.0, 60.0
_GAS_HU, _GAS_ML = -975.0, 10.0
_DOUBTFUL, _NO_OUTLINE = 1.3, 2.5
"""Doubtful shares: chests at hand have 0.7 to 0.9, abdomens 1.5 to 1.7, noise 3.6 and more."""
_UNEQUAL, _ONE_LUNG = 3.0, 0.02
"""Larger over smaller lung that is said, and smaller over larger below which there is but one."""
_ROUGH_METHODS = ("paper", "published")
"""Their masks take in the heart, vessels and the chest's wall in every scan, as published."""
_CUT_EDGE = 0.02


@dataclass(frozen=True)
class _Verdict:
    """What was found out about a scan's fitness.

    Attributes:
        unsuitable_reasons: Why it should not be classified; empty when it may.
        warnings: What a reader of the result should know.
    """

    unsuitable_reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def judge_scan(scan: ScanLungs, recipe: Recipe) -> _Verdict:
    """Look for reasons not to classify a scan.

    Args:
        scan: Canonical scan with its lungs.
        recipe: What it is prepared for; only recipes that need Hounsfield units judge values.
    """
    reasons = [*_value_reasons(scan, recipe), *_size_reasons(scan)] or _outline_reasons(scan)
    if reasons or scan.volume.unit != "HU":
        return _Verdict(tuple(reasons), () if reasons else _coverage_warnings(scan))
    chest = coarse_chest(scan.volume, scan.mask, scan.network)
    if chest is None:
        return _Verdict((), _coverage_warnings(scan))
    faults = orientation_faults(chest)
    if faults:
        return _Verdict(
            tuple(f"The scan seems to be oriented wrongly: {fault}." for fault in faults), ()
        )
    doubts = orientation_doubts(chest)
    if recipe.lungs not in _ROUGH_METHODS:
        doubts += _mask_doubts(chest, scan.network)
    return _Verdict((), (*_coverage_warnings(scan), *doubts))


def _value_reasons(scan: ScanLungs, recipe: Recipe) -> list[str]:
    if not recipe.requires_hu:
        return []
    if scan.volume.unit != "HU":
        return [
            f"Recipe '{recipe.name}' needs Hounsfield units and the scan holds windowed grey "
            "values; use the original CT series."
        ]
    if scan.box is None:
        return []
    # Every third voxel per axis: a median of some hundred thousand is sharp enough.
    thin = (slice(None, None, 3),) * 3
    lungs = scan.volume.voxels[thin][scan.mask[thin]]
    median = float(np.median(lungs)) if lungs.size else 0.0
    low, high = _LUNG_HU
    if low <= median <= high:
        return []
    return [
        f"The lungs have a median of {median:.0f} HU where {low:.0f} to {high:.0f} is expected: "
        "the voxels are not in Hounsfield units or this is not lung."
    ]


def _size_reasons(scan: ScanLungs) -> list[str]:
    reasons = []
    num_slices = scan.mask.shape[0]
    if num_slices < _MIN_SLICES:
        reasons.append(f"The scan has {num_slices} slices and at least {_MIN_SLICES} are needed.")
    if scan.box is None:
        looks = _looks_like(scan)
        return [*reasons, f"No lungs were found: {looks}a CT of the whole chest is expected."]
    grid = scan.volume.grid
    lung_l = np.count_nonzero(scan.mask) * grid.voxel_ml / 1000.0
    if not _MIN_LUNG_L <= lung_l <= _MAX_LUNG_L:
        looks = _looks_like(scan) if lung_l < _MIN_LUNG_L else ""
        reasons.append(
            f"The lungs found have {lung_l:.2f} litres where {_MIN_LUNG_L} to {_MAX_LUNG_L:.0f} "
            f"are expected: {looks}this does not look like a CT of the whole chest."
        )
    elif half := _half_in_view(scan):
        reasons.append(half)
    height_mm = (scan.box[0].stop - scan.box[0].start) * grid.spacing_mm[0]
    if height_mm < _MIN_LUNG_HEIGHT_MM:
        reasons.append(
            f"The lungs are covered over {height_mm:.0f} mm along the body and at least "
            f"{_MIN_LUNG_HEIGHT_MM:.0f} mm are needed."
        )
    return reasons


def _outline_reasons(scan: ScanLungs) -> list[str]:
    """Why the network's lungs are not two lungs that can be told."""
    if scan.network is None:
        return []
    smaller, larger = _by_size(scan.network)
    if smaller < _ONE_LUNG * larger:
        side = "right" if scan.network.right_ml == larger else "left"
        return [
            f"Only the {side} lung was found. A CT of the whole chest is expected; where the other "
            "lung was removed or is without air, give a mask (--lungs)."
        ]
    if scan.network.doubtful_share <= _NO_OUTLINE:
        return []
    return [
        f"No outline of lungs can be told: {scan.network.doubtful_share:.1f} times as much is in "
        "doubt as along a plain one. A CT of the whole chest is expected; if it is one, give a "
        "mask (--lungs)."
    ]


def _looks_like(scan: ScanLungs) -> str:
    """What a scan without lungs shows, as far as that can be told, for the middle of a sentence."""
    strides = [max(1, round(_COARSE_MM / spacing)) for spacing in scan.volume.grid.spacing_mm]
    every = tuple(slice(None, None, stride) for stride in strides)
    voxels = scan.volume.voxels[every]
    if scan.volume.unit != "HU":
        return ""
    pixel_cm2 = float(np.prod(scan.volume.grid.spacing_mm[1:]) * strides[1] * strides[2]) / 100.0
    area_cm2 = float(np.median(np.count_nonzero(voxels > _BODY_HU, axis=(1, 2)))) * pixel_cm2
    num_body = int(np.count_nonzero(voxels > _BODY_HU))
    bone = int(np.count_nonzero(voxels > _BONE_HU)) / max(1, num_body)
    if area_cm2 < _HEAD_CM2 and bone > _HEAD_BONE:
        return "it looks like a head or neck; "
    largest = float(scan.area.max(initial=0.0))
    if largest > 0.0 and float(scan.area[-1]) > _CUT_AREA * largest:
        return "only their bases are in view, at the upper end of an abdomen; "
    return "it looks like an abdomen; " if area_cm2 > _HEAD_CM2 else ""


def _half_in_view(scan: ScanLungs) -> str:
    """A sentence where the scan ends amid the lungs; empty where it does not."""
    largest = float(scan.area.max())
    ends = {"feet": scan.area[0] / largest, "head": scan.area[-1] / largest}
    end = max(ends, key=ends.__getitem__)
    if ends[end] < _HALF_AREA:
        return ""
    return (
        f"Only a part of the lungs is in view: towards the {end} the scan ends where they have "
        f"{ends[end]:.0%} of their largest cross-section. A CT of the whole chest is expected."
    )


def _mask_doubts(chest: CoarseChest, network: NetworkLungs | None) -> tuple[str, ...]:
    """What speaks against the outline of the lungs."""
    doubts = [] if network is None else _network_doubts(network)
    smooth = ndimage.uniform_filter(chest.voxels, 3)
    slices = np.flatnonzero(chest.lungs.any(axis=(1, 2)))
    lower = chest.lungs.copy()
    lower[int(slices[0]) + len(slices) // 2 :] = False
    voxel_ml = float(np.prod(chest.spacing_mm)) / 1000.0
    dense_ml = _largest_piece(chest.lungs & (smooth > _DENSE_HU)) * voxel_ml
    gas_ml = _largest_piece(lower & (smooth < _GAS_HU)) * voxel_ml
    if dense_ml >= _DENSE_ML:
        doubts.append(
            f"A piece of {dense_ml:.0f} ml of what was taken for lung is as dense as soft tissue: "
            "consolidation, fluid, or another organ. Check the outline there."
        )
    if gas_ml >= _GAS_ML:
        doubts.append(
            f"A piece of {gas_ml:.0f} ml of what was taken for lung is gas without tissue, low in "
            "the chest: stomach, bowel or a bulla. Check the outline there."
        )
    return tuple(doubts)


def _network_doubts(network: NetworkLungs) -> list[str]:
    doubts = []
    if network.doubtful_share > _DOUBTFUL:
        doubts.append(
            f"The lungs' outline is uncertain: {network.doubtful_share:.1f} times as much is in "
            "doubt as along a plain outline. Check it, or give a mask (--lungs)."
        )
    smaller, larger = _by_size(network)
    if smaller * _UNEQUAL < larger:
        side = "right" if network.right_ml < network.left_ml else "left"
        doubts.append(
            f"The lungs are very unequal: the {side} one has {smaller / 1000:.2f} litres, the other"
            f" {larger / 1000:.2f}. One was removed or is without air, or was not found."
        )
    return doubts


def _by_size(network: NetworkLungs) -> tuple[float, float]:
    """Volumes of the smaller and the larger lung, in millilitres."""
    smaller, larger = sorted((network.right_ml, network.left_ml))
    return smaller, larger


def _largest_piece(mask: Mask) -> int:
    """Voxels of the largest connected piece."""
    pieces, count = ndimage.label(mask)
    return int(np.bincount(pieces.ravel())[1:].max()) if count else 0


def _coverage_warnings(scan: ScanLungs) -> tuple[str, ...]:
    """Where the scan or its field of view ends inside the lungs."""
    largest = float(scan.area.max())
    ends = {"feet": scan.area[0] / largest, "head": scan.area[-1] / largest}
    warnings = [
        f"The scan ends inside the lungs towards the {end}: {share:.0%} of their largest "
        "cross-section lies on its last slice."
        for end, share in ends.items()
        if share > _CUT_AREA
    ]
    edges = {
        "front": scan.mask[:, 0],
        "back": scan.mask[:, -1],
        "right": scan.mask[:, :, 0],
        "left": scan.mask[:, :, -1],
    }
    cut = [side for side, edge in edges.items() if edge.mean() > _CUT_EDGE]
    if cut:
        warnings.append(f"The field of view cuts the lungs at the {' and '.join(cut)}.")
    return tuple(warnings)

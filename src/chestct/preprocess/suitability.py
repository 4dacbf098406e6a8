"""Should this scan be classified at all? What speaks against it, and what a reader should know.

Reasons make a scan unsuitable: the pipeline then gives no class. Warnings go with the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from chestct.preprocess.orientation import coarse_chest, orientation_faults
from chestct.preprocess.placement import ScanLungs
from chestct.preprocess.recipe import Recipe

MIN_LUNG_L: Final = 0.5
"""Less than any adult's two lungs; head, abdomen and limbs stay below it."""
MAX_LUNG_L: Final = 12.0
"""More than any lungs at full inspiration: something else was taken for lung."""
MIN_LUNG_HEIGHT_MM: Final = 100.0
"""Lungs cover 200 mm and more; a slab of less than half says too little."""
MIN_SLICES: Final = 16
LUNG_HU: Final = (-1000.0, -300.0)
"""Range of the median lung voxel, from emphysema to severe pneumonia."""

_CUT_AREA = 0.1
_CUT_EDGE = 0.02


@dataclass(frozen=True)
class Verdict:
    """What was found out about a scan's fitness.

    Attributes:
        unsuitable_reasons: Why it should not be classified; empty when it may.
        warnings: What a reader of the result should know.
    """

    unsuitable_reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def judge_scan(scan: ScanLungs, recipe: Recipe) -> Verdict:
    """Look for reasons not to classify a scan.

    Args:
        scan: Canonical scan with its lungs.
        recipe: What it is prepared for; only recipes that need Hounsfield units judge values.
    """
    reasons = [*_value_reasons(scan, recipe), *_size_reasons(scan)]
    if not reasons and scan.volume.unit == "HU":
        chest = coarse_chest(scan.volume, scan.mask)
        faults = () if chest is None else orientation_faults(chest)
        reasons += [f"The scan seems to be oriented wrongly: {fault}." for fault in faults]
    return Verdict(tuple(reasons), () if reasons else _coverage_warnings(scan))


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
    low, high = LUNG_HU
    if low <= median <= high:
        return []
    return [
        f"The lungs have a median of {median:.0f} HU where {low:.0f} to {high:.0f} is expected: "
        "the voxels are not in Hounsfield units or this is not lung."
    ]


def _size_reasons(scan: ScanLungs) -> list[str]:
    reasons = []
    num_slices = scan.mask.shape[0]
    if num_slices < MIN_SLICES:
        reasons.append(f"The scan has {num_slices} slices and at least {MIN_SLICES} are needed.")
    if scan.box is None:
        return [*reasons, "No lungs were found: a CT of the whole chest is expected."]
    grid = scan.volume.grid
    lung_l = np.count_nonzero(scan.mask) * grid.voxel_ml / 1000.0
    if not MIN_LUNG_L <= lung_l <= MAX_LUNG_L:
        reasons.append(
            f"The lungs found have {lung_l:.2f} litres where {MIN_LUNG_L} to {MAX_LUNG_L:.0f} are "
            "expected: this does not look like a CT of the whole chest."
        )
    height_mm = (scan.box[0].stop - scan.box[0].start) * grid.spacing_mm[0]
    if height_mm < MIN_LUNG_HEIGHT_MM:
        reasons.append(
            f"The lungs are covered over {height_mm:.0f} mm along the body and at least "
            f"{MIN_LUNG_HEIGHT_MM:.0f} mm are needed."
        )
    return reasons


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

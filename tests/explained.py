"""The hand-made scan of `analyses` with a heat-map on it, made by hand as well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from analyses import SALIENT, SHAPE, lung_mask, make_analysis, make_volume, unit_axes
from scipy import ndimage

from chestct.analysis import ScanAnalysis
from chestct.arrays import Heat, Mask, Spacing
from chestct.explain.explanation import (
    EvidenceSummary,
    Explanation,
    HeatMap,
    PeakSlice,
    ScanExplanation,
    heat_by_slice,
)

HOT_SLICE = 22
"""The slice through the middle of the hot spot, which lies in the patient's left lung."""
THRESHOLD = 0.5


def scan_heat(*, strength: float = 1.0) -> np.ndarray:
    """A round hot spot in the left lung; NaN outside the salient slices."""
    depth, height, width = unit_axes()
    middle = 2 * HOT_SLICE / (SHAPE[0] - 1) - 1
    squared = ((depth - middle) / 0.3) ** 2 + (height / 0.4) ** 2 + ((width - 0.4) / 0.25) ** 2
    heat = (strength * np.exp(-squared)).astype(np.float32)
    first, last = SALIENT
    heat[:first] = np.nan
    heat[last + 1 :] = np.nan
    return heat


def make_explanation(*, strength: float = 1.0, label: str = "COVID-19") -> ScanExplanation:
    """What `explain_scan` would say of that hot spot."""
    analysis = make_analysis()
    heat = scan_heat(strength=strength)
    first, last = SALIENT
    by_slice = heat_by_slice(heat, lung_mask())
    has_peak = strength > 0.0
    return ScanExplanation(
        explanation=Explanation(
            method="gradcam",
            layer="stages.3",
            label=label,
            heat=np.ascontiguousarray(heat[first : last + 1, ::2, ::2]),
            scale=0.25 if strength > 0.0 else 0.0,
            cell=(8.0, 4.0, 4.0),
        ),
        heat=HeatMap.of(analysis.volume.grid, heat),
        summary=EvidenceSummary(
            threshold=THRESHOLD,
            shares=_shares(heat),
            involved_ml=float(_involved(heat).sum()) * analysis.volume.grid.voxel_ml,
            by_slice=by_slice,
            peaks=(PeakSlice(HOT_SLICE, "1.2.3.22", float(by_slice[HOT_SLICE])),)
            if has_peak
            else (),
            hottest_mm=_hottest(heat) if has_peak else None,
        ),
    )


def make_explained(*, strength: float = 1.0, label: str = "COVID-19") -> ScanAnalysis:
    """The analysed scan with its explanation."""
    return replace(make_analysis(), explanation=make_explanation(strength=strength, label=label))


def _hottest(heat: np.ndarray) -> tuple[float, float, float]:
    in_lungs = np.where(lung_mask(), np.nan_to_num(heat), 0.0)
    place = np.array(np.unravel_index(in_lungs.argmax(), SHAPE), dtype=np.float64)
    x, y, z = make_volume().grid.to_patient(place).tolist()
    return x, y, z


def _involved(heat: np.ndarray) -> np.ndarray:
    return lung_mask() & (np.nan_to_num(heat) >= THRESHOLD)


def _shares(heat: np.ndarray) -> dict[str, float]:
    lungs, involved = lung_mask(), _involved(heat)
    half = SHAPE[2] // 2
    return {
        "lungs": float(involved.sum() / lungs.sum()),
        "left lung": float(involved[:, :, half:].sum() / lungs[:, :, half:].sum()),
        "right lung": float(involved[:, :, :half].sum() / lungs[:, :, :half].sum()),
        "middle third": 0.31,
        "left middle third": 0.62,
        "right middle third": 0.0,
        "left upper third": 0.0004,
    }


def grown_by_a_cell(lungs: Mask, cell: Spacing, *, cells: float = 1.0) -> Mask:
    """Every voxel with lung at most one cell, or so many, away along each axis.

    Behind a gate a map can reach a cell and a half beyond the lungs: a cell counts as lung when any
    of its voxels is, and its heat is drawn linearly to half of the next one.

    Args:
        lungs: Lung mask at the network input's size.
        cell: Size of a cell in input voxels, `Explanation.cell`.
        cells: How many of them.
    """
    size = [2 * round(cells * voxels) + 1 for voxels in cell]
    return np.asarray(ndimage.maximum_filter(lungs, size, mode="constant"))


def share_inside(heat: Heat, mask: Mask) -> float:
    """Share of a map's sum that lies in a mask, 0 to 1; 0 for a map of zeros."""
    total = float(heat.sum(dtype=np.float64))
    return float(heat[mask].sum(dtype=np.float64)) / total if total else 0.0

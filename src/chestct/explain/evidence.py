"""Where in the lungs the evidence lies: shares of sides and thirds, and the slices to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float64

from chestct.arrays import Heat, Mask
from chestct.explain.explanation import EvidenceSummary, PeakSlice
from chestct.explain.regions import lung_regions
from chestct.preprocess.masks import bounding_box
from chestct.preprocess.prepared import PreparedScan
from chestct.volume import Volume, to_canonical

INVOLVED_FROM: Final = 0.5
"""Heat from which a voxel counts as involved: half of the map's largest value."""
MOST_PEAKS: Final = 5
PEAK_DISTANCE_MM: Final = 15.0
"""Slices closer to a stronger one than this are its neighbours and no peak of their own."""


def summarise_evidence(
    heat: Volume,
    prepared: PreparedScan,
    slice_uids: Sequence[str],
    *,
    threshold: float = INVOLVED_FROM,
) -> EvidenceSummary:
    """Say where in the lungs a map lies.

    Lung that was not analysed counts nowhere. For the regions see `lung_regions`.

    Args:
        heat: Map on the scan's own grid, NaN where not analysed, as `back_to_scan` gives it.
        prepared: The scan it was made for.
        slice_uids: SOPInstanceUID per slice along depth of the scan's own grid, or none.
        threshold: Heat from which a voxel counts as involved.

    Raises:
        ValueError: The map is not on the scan's own grid.
    """
    if heat.grid != prepared.scan_grid:
        raise ValueError("The map is not on the scan's own grid.")
    by_slice = heat_by_slice(heat.voxels, prepared.scan_lungs.voxels)
    shares, involved = _shares(heat, prepared.scan_lungs, threshold)
    return EvidenceSummary(
        threshold=threshold,
        shares=shares,
        involved_ml=involved * heat.grid.voxel_ml,
        by_slice=by_slice,
        peaks=_peaks(by_slice, heat.grid.spacing_mm[0], slice_uids),
    )


def heat_by_slice(heat: Heat, lungs: Mask) -> Float64[np.ndarray, " slices"]:
    """Heat summed over the lungs of each slice, in parts of the fullest slice's lung.

    1 is the fullest slice, hot throughout. A mean over each slice's own lung would make much of an
    apex, where a little heat lies on hardly any lung.

    Args:
        heat: Map, (depth, height, width), NaN where not analysed.
        lungs: Lungs on the same grid.

    Returns:
        A value per slice along depth; NaN where nothing was analysed or there is no lung.
    """
    sums = np.full(heat.shape[0], np.nan)
    for i, (plane, mask) in enumerate(zip(heat, lungs, strict=True)):
        values = plane[mask]
        values = values[np.isfinite(values)]
        if values.size:
            sums[i] = values.sum(dtype=np.float64)
    return sums / max(1, int(np.count_nonzero(lungs, axis=(1, 2)).max(initial=0)))


def _peaks(
    by_slice: Float64[np.ndarray, " slices"], slice_mm: float, slice_uids: Sequence[str]
) -> tuple[PeakSlice, ...]:
    """The slices with more evidence than any neighbour, strongest first."""
    curve = np.nan_to_num(by_slice)
    reach = max(1, int(PEAK_DISTANCE_MM / slice_mm))
    peaks: list[PeakSlice] = []
    for index in np.argsort(-curve, kind="stable").tolist():
        is_highest = 0.0 < curve[index] == curve[max(0, index - reach) : index + reach + 1].max()
        if is_highest and all(abs(index - peak.index) > reach for peak in peaks):
            uid = slice_uids[index] if index < len(slice_uids) else ""
            peaks.append(PeakSlice(index, uid, float(curve[index])))
    return tuple(peaks[:MOST_PEAKS])


def _shares(heat: Volume, lungs: Volume, threshold: float) -> tuple[dict[str, float], int]:
    """Share of each region that is involved, and the number of involved voxels in all."""
    canonical = to_canonical(lungs)
    box = bounding_box(canonical.voxels)
    if box is None:
        return {}, 0
    mask = np.ascontiguousarray(canonical.voxels[box])
    values = to_canonical(heat).voxels[box][mask]
    analysed, involved = np.isfinite(values), values >= threshold
    start = tuple(float(part.start) for part in box)
    grid = canonical.grid.moved((start[0], start[1], start[2]), (1.0, 1.0, 1.0), mask.shape)
    shares = {}
    for name, inside in lung_regions(mask, grid).items():
        total = int(np.count_nonzero(analysed & inside))
        if total:
            shares[name] = float(np.count_nonzero(involved & inside) / total)
    return shares, int(np.count_nonzero(involved))

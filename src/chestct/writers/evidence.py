"""Where along the body, and in which slices, the evidence of an explanation lies.

An explanation counts slices as the scan was stored; outputs count them from the feet.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from chestct.analysis import ScanAnalysis
from chestct.explain.evidence import heat_by_slice
from chestct.explain.explanation import PeakSlice, ScanExplanation
from chestct.pictures import AXES, Plane, Scene, fullest_slice
from chestct.preprocess.oblique import on_body, slices_follow_body
from chestct.preprocess.prepared import PreparedScan
from chestct.volume import canonical_axes
from chestct.writers.options import NothingToWriteError


def heat_of(analysis: ScanAnalysis) -> ScanExplanation:
    """The explanation of an analysis.

    Raises:
        NothingToWriteError: There is none.
    """
    if analysis.explanation is not None:
        return analysis.explanation
    if not analysis.result.is_suitable:
        raise NothingToWriteError("The scan was not classified, so there is no heat-map.")
    msg = "There is no heat-map, as no explanation was asked for: --explain (explain= in Python)."
    raise NothingToWriteError(msg)


def evidence_by_slice(
    explained: ScanExplanation, prepared: PreparedScan
) -> Float64[np.ndarray, " slices"]:
    """As `heat_by_slice`, with slices counted from the feet."""
    is_reversed = _depth_is_reversed(prepared)
    if is_reversed is not None:
        by_slice = explained.summary.by_slice
        return by_slice[::-1] if is_reversed else by_slice
    # The scan's slices do not follow the body: the curve has to be taken across them.
    heat = on_body(explained.heat, beyond=np.nan).voxels
    lungs = on_body(prepared.scan_lungs).voxels
    return heat_by_slice(heat, lungs)


def evidence_peaks(explained: ScanExplanation, prepared: PreparedScan) -> tuple[PeakSlice, ...]:
    """The peaks, strongest first, their slices counted from the feet.

    A scan whose slices do not follow the body has the one peak of `evidence_by_slice`, without a
    SOPInstanceUID, as no single image shows that slice.
    """
    peaks = explained.summary.peaks
    is_reversed = _depth_is_reversed(prepared)
    if is_reversed is not None:
        last = prepared.scan_grid.shape[0] - 1
        return tuple(replace(p, index=last - p.index) for p in peaks) if is_reversed else peaks
    evidence = np.nan_to_num(evidence_by_slice(explained, prepared), nan=0.0)
    index = int(evidence.argmax())
    return (PeakSlice(index, "", float(evidence[index])),) if evidence[index] > 0.0 else ()


def telling_slices(analysis: ScanAnalysis, scene: Scene) -> dict[Plane, int]:
    """The slice of each plane that shows most heat in the lungs; most lung where there is no heat.

    Each plane is chosen on its own: the middle of evidence in both lungs would lie between them.
    The map is summed as the network's input has it, which is a fiftieth of the scan.
    """
    explained, prepared = analysis.explanation, analysis.prepared
    if explained is None or not explained.explanation.heat.any():
        return {plane: fullest_slice(scene.lungs, plane) for plane in AXES}
    heat = explained.explanation.heat
    in_lungs = heat * prepared.lungs
    weight = in_lungs if in_lungs.any() else heat
    strongest = [weight.sum(axis=others).argmax() for others in ((1, 2), (0, 2), (0, 1))]
    point = prepared.grid.to_patient(np.array(strongest, dtype=np.float64))
    grid = scene.volume.grid
    place = np.rint(grid.to_index(point)).clip(0, np.array(grid.shape) - 1)
    chosen = {plane: int(place[axes[0]]) for plane, axes in AXES.items()}
    peaks = evidence_peaks(explained, prepared)
    return {**chosen, "axial": peaks[0].index} if peaks else chosen


def strip_slices(shown: tuple[int, int], peaks: tuple[PeakSlice, ...], count: int) -> list[int]:
    """Slices for a strip: up to half of them peaks, the others where the widest gaps are."""
    first, last = shown
    chosen = [peak.index for peak in peaks[: count // 2]]
    inset = round(0.04 * (last - first))
    candidates = range(first + inset, last - inset + 1)
    while len(chosen) < count:
        distances = [min((abs(i - j) for j in chosen), default=len(candidates)) for i in candidates]
        if max(distances) == 0:
            break
        chosen.append(candidates[int(np.argmax(distances))])
    return sorted(chosen)


def _depth_is_reversed(prepared: PreparedScan) -> bool | None:
    """Whether the scan counts its slices from the head; None where they do not follow the body."""
    if not slices_follow_body(prepared.scan_grid):
        return None
    return canonical_axes(prepared.scan_grid)[1][0]

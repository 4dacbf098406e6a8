"""Where along the body, and in which slices, evidence lies, and what it is called.

An explanation counts slices as the scan was stored; outputs count them from the feet.
"""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float64

from chestct.analysis import ScanAnalysis
from chestct.explain.back_to_scan import map_on_body
from chestct.explain.explanation import PeakSlice, ScanExplanation, heat_by_slice
from chestct.pictures import AXES, Plane, Scene, fullest_slice
from chestct.preprocess.oblique import on_body, slices_follow_body
from chestct.preprocess.prepare import PreparedScan
from chestct.volume import canonical_axes
from chestct.writers.wording import CLASSLESS_METHODS, method_words

_ACROSS: WeakKeyDictionary[ScanExplanation, Float64[np.ndarray, " slices"]] = WeakKeyDictionary()
"""What several outputs of one scan ask for, for as long as its explanation is there."""


def evidence_by_slice(
    explained: ScanExplanation, prepared: PreparedScan
) -> Float64[np.ndarray, " slices"]:
    """As `heat_by_slice`, with slices counted from the feet."""
    is_reversed = _depth_is_reversed(prepared)
    if is_reversed is not None:
        by_slice = explained.summary.by_slice
        return by_slice[::-1] if is_reversed else by_slice
    # The scan's slices do not follow the body: the curve has to be taken across them, which costs.
    if explained not in _ACROSS:
        heat, lungs = map_on_body(explained.heat), on_body(prepared.scan_lungs).voxels
        _ACROSS[explained] = heat_by_slice(heat, lungs)
    return _ACROSS[explained]


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
    """The slices through the hottest place in the lungs.

    Where they hold no heat it is the hottest place of all, without any heat the most lung.
    """
    explained, grid = analysis.explanation, scene.volume.grid
    hottest = None if explained is None else explained.summary.hottest_mm
    if hottest is None and explained is not None and explained.explanation.heat.any():
        heat = explained.explanation.heat
        place = np.array(np.unravel_index(int(heat.argmax()), heat.shape), dtype=np.float64)
        x, y, z = analysis.prepared.grid.to_patient(place).tolist()
        hottest = (x, y, z)
    if hottest is None:
        return {plane: fullest_slice(scene.lungs, plane) for plane in AXES}
    place = np.rint(grid.to_index(np.array(hottest))).clip(0, np.array(grid.shape) - 1)
    return {plane: int(place[axes[0]]) for plane, axes in AXES.items()}


def hottest_slice(analysis: ScanAnalysis) -> int | None:
    """Slice with the hottest place in the lungs, from 0 at the feet; None where there is none."""
    explained = analysis.explanation
    if explained is None or explained.summary.hottest_mm is None:
        return None
    grid = analysis.prepared.body_grid
    index = float(grid.to_index(np.array(explained.summary.hottest_mm))[0])
    return min(max(round(index), 0), grid.shape[0] - 1)


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


def heat_words(explained: ScanExplanation) -> str:
    """What the heat is: "Evidence for ..." a class, or "Network activity (...)" of a method."""
    label = label_words(explained)
    if label:
        return f"Evidence for {label}"
    name = method_words(explained.explanation.method).removeprefix("the ")
    return f"Network activity ({name})"


def label_words(explained: ScanExplanation) -> str:
    """The class the map speaks for, in words; empty where the method knows none."""
    is_classless = explained.explanation.method in CLASSLESS_METHODS
    return "" if is_classless else explained.label_set.words(explained.explanation.label)

"""What an explanation is: a heat-map as the network saw it, on the scan, and where in the lungs.

Of the lungs it tells shares of sides and thirds, and the slices to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from chestct.arrays import Heat, Mask, Spacing
from chestct.labels import LabelSet
from chestct.preprocess.prepare import PreparedScan
from chestct.preprocess.resample import bounding_box
from chestct.volume import Grid, Volume, to_canonical

HeatPlane: TypeAlias = Float32[np.ndarray, "rows columns"]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Which input voxels spoke for a class.

    Attributes:
        method: A name in `EXPLANATIONS`.
        layer: Name of the network's layer the map was taken from; empty where there is none.
        label: The class it speaks for.
        heat: At the network input's size, (depth, height, width), 0 to 1; all zero where nothing
            spoke for the class.
        scale: What 1 stands for in the method's own unit, so that maps can be compared; 0 where
            nothing spoke for the class.
        cell: Size of the layer's cells (or of the patches) in input voxels, (depth, height, width):
            the map cannot tell places apart that lie closer.
    """

    method: str
    layer: str
    label: str
    heat: Heat
    scale: float
    cell: Spacing = (1.0, 1.0, 1.0)

    @property
    def has_evidence(self) -> bool:
        """Whether anything spoke for the class; if not, the map is zero everywhere."""
        return self.scale > 0.0


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A map on a scan's own grid and axes, whose slices are made when they are asked for.

    Whole, it would take twice the memory of the scan. Iterating gives its slices along depth.

    Attributes:
        grid: The scan's own grid.
        cut: The slice across an axis of the grid at an index, the other two axes in their order;
            0 to 1, NaN where the network saw nothing ("not analysed").
        whole: All slices, where they are at hand.
    """

    grid: Grid
    cut: Callable[[int, int], HeatPlane]
    whole: Heat | None = None

    @classmethod
    def of(cls, grid: Grid, voxels: Heat) -> HeatMap:
        """A map that is at hand as a whole."""
        return cls(grid, lambda axis, index: voxels[(slice(None),) * axis + (index,)], voxels)

    def __iter__(self) -> Iterator[HeatPlane]:
        """Slices along depth."""
        return (self.cut(0, index) for index in range(self.grid.shape[0]))

    @property
    def voxels(self) -> Heat:
        """All slices, (depth, height, width), float32; where not at hand, made at each call."""
        if self.whole is not None:
            return self.whole
        voxels = np.empty(self.grid.shape, dtype=np.float32)
        for plane, made in zip(voxels, self, strict=True):
            plane[...] = made
        return voxels


@dataclass(frozen=True)
class PeakSlice:
    """A slice with much evidence.

    Attributes:
        index: Slice along depth of the scan's own grid, from 0.
        uid: Its SOPInstanceUID; empty where the scan has none.
        evidence: This slice's value in `EvidenceSummary.by_slice`, 0 to 1.
    """

    index: int
    uid: str
    evidence: float


@dataclass(frozen=True, eq=False)
class EvidenceSummary:
    """Where in the lungs the evidence lies.

    Attributes:
        threshold: Heat from which a voxel counts as involved.
        shares: Region to the share of its analysed lung volume that is involved, 0 to 1. Regions:
            "lungs", "left lung", "right lung", "upper third", "middle third", "lower third", and
            "left upper third" ... "right lower third"; a region without analysed lung is left out,
            and so are those of a side where the two lungs cannot be taken apart.
        involved_ml: Lung volume that is involved, in millilitres.
        by_slice: Heat summed over the lungs of each slice of the scan's own grid, in parts of the
            largest lung section; NaN where the slice was not analysed or holds no lung.
        peaks: Slices with more evidence than any within 15 mm, strongest first, at most five; none
            where there is no evidence.
        hottest_mm: Patient position (x, y, z) of the hottest voxel in the lungs; None where there
            is no evidence in them.
    """

    threshold: float
    shares: dict[str, float]
    involved_ml: float
    by_slice: Float64[np.ndarray, " slices"]
    peaks: tuple[PeakSlice, ...]
    hottest_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True, eq=False)
class ScanExplanation:
    """An explanation on the patient's own scan.

    Attributes:
        explanation: The map as the network's input has it.
        heat: The map on the scan's own grid and axes.
        summary: Where in the lungs it lies.
        labels: The classifier's classes, with what is said of each; None: plain names.
    """

    explanation: Explanation
    heat: HeatMap
    summary: EvidenceSummary
    labels: LabelSet | None = None

    @property
    def label_set(self) -> LabelSet:
        """The classes, with what is said of each."""
        return self.labels or LabelSet.of_names((self.explanation.label,))

    @property
    def speaks_for_disease(self) -> bool:
        """Whether what is hot can be a sign of disease: evidence for the negative class is none."""
        return self.label_set.is_finding(self.explanation.label)


_SIDES: Final = ("left", "right")
_THIRDS: Final = ("upper third", "middle third", "lower third")

_SIDES_MM: Final = 2.0
"""Voxel size at which the lungs are taken apart: enough to tell their sides, and quick."""

_EROSIONS_MM: Final = (0.0, 2.6, 5.1, 7.6, 10.1, 12.6)
"""Tried in turn until two large pieces come apart; lungs touch in front of or behind the heart."""

_LEAST_SHARE = 0.15

_LungVoxels: TypeAlias = Bool[np.ndarray, " lung_voxels"]
"""One value per voxel of a lung mask, in the order of `array[mask]`."""


def _lung_regions(lungs: Mask, grid: Grid) -> Iterator[tuple[str, _LungVoxels]]:
    """Which lung voxels lie in which region: its name and its voxels, one region after another.

    Thirds are of the height from the lowest to the highest lung voxel along the patient's own axis,
    both lungs together. Where the two lungs cannot be taken apart, the regions of a side are left
    out.
    """
    thirds = _thirds(lungs, grid)
    sides = _sides(lungs, grid)
    yield "lungs", np.ones(int(np.count_nonzero(lungs)), dtype=np.bool_)
    for side, of_side in sides.items():
        yield f"{side} lung", of_side
    yield from thirds.items()
    for side, of_side in sides.items():
        for third, of_third in thirds.items():
            yield f"{side} {third}", of_side & of_third


def _thirds(lungs: Mask, grid: Grid) -> dict[str, _LungVoxels]:
    rise = grid.index_to_patient[2, :3]
    height: Float[np.ndarray, "depth height width"] = np.zeros((1, 1, 1))
    for axis, size in enumerate(grid.shape):
        # An axis across the patient adds nothing: of most scans only one number a slice is left.
        if rise[axis]:
            height = height + _along(axis, np.arange(size) * rise[axis])
    of_voxels = np.broadcast_to(height.astype(np.float32), lungs.shape)[lungs]
    edges = np.linspace(float(of_voxels.max()), float(of_voxels.min()), len(_THIRDS) + 1)
    low, high = edges[2], edges[1]
    upper, lower = of_voxels >= high, of_voxels < low
    return dict(zip(_THIRDS, (upper, ~upper & ~lower, lower & ~upper), strict=True))


def _along(
    axis: int, values: Float[np.ndarray, " size"]
) -> Float[np.ndarray, "depth height width"]:
    """Values along one of three axes, ready to be added to others."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return values.reshape(shape)


def _sides(lungs: Mask, grid: Grid) -> dict[str, _LungVoxels]:
    """Left and right lung, or nothing where they cannot be taken apart."""
    from scipy import ndimage

    strides = [max(1, round(_SIDES_MM / spacing)) for spacing in grid.spacing_mm]
    every = tuple(slice(None, None, stride) for stride in strides)
    thinned = np.ascontiguousarray(lungs[every])
    depth, height, width = (n * s for n, s in zip(strides, grid.spacing_mm, strict=True))
    cores = _two_cores(thinned, (depth, height, width))
    if cores is None:
        return {}
    nearest = ndimage.distance_transform_edt(
        cores == 0, sampling=(depth, height, width), return_distances=False, return_indices=True
    )
    # The second part is the one further along width, which grows to the patient's left.
    is_left = (cores == 2)[tuple(nearest)]
    for axis, stride in enumerate(strides):
        is_left = is_left.repeat(stride, axis=axis)
    whole = tuple(slice(0, size) for size in lungs.shape)
    of_voxels = is_left[whole][lungs]
    return dict(zip(_SIDES, (of_voxels, ~of_voxels), strict=True))


def _two_cores(lungs: Mask, spacing_mm: Spacing) -> Int[np.ndarray, "depth height width"] | None:
    """The two lungs, thinned until they come apart, as 1 and 2 by growing width; None if one."""
    from scipy import ndimage

    depths_mm = ndimage.distance_transform_edt(np.pad(lungs, 1), sampling=spacing_mm)
    inner = (slice(1, -1),) * 3
    for radius_mm in _EROSIONS_MM:
        labels, count = ndimage.label(depths_mm[inner] > radius_mm)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        pair = np.argsort(-sizes, kind="stable")[:2]
        if count < 2 or sizes[pair[1]] < _LEAST_SHARE * sizes.sum():
            continue
        first, second = sorted(pair, key=lambda label: ndimage.center_of_mass(labels == label)[2])
        return np.asarray((labels == first) + 2 * (labels == second))
    return None


INVOLVED_FROM: Final = 0.5
"""Heat from which a voxel counts as involved: half of the map's largest value."""
_MOST_OUTSIDE: Final = 1 / 3
"""Share of the heat outside the lungs from which there is a warning."""
_MOST_PEAKS: Final = 5
_PEAK_DISTANCE_MM: Final = 15.0
"""Slices closer to a stronger one than this are its neighbours and no peak of their own."""


def summarise_evidence(
    heat: HeatMap,
    prepared: PreparedScan,
    slice_uids: Sequence[str],
    *,
    threshold: float = INVOLVED_FROM,
) -> EvidenceSummary:
    """Say where in the lungs a map lies.

    Lung that was not analysed counts nowhere. For the regions see `_lung_regions`.

    Args:
        heat: Map on the scan's own grid, as `back_to_scan` gives it.
        prepared: The scan it was made for.
        slice_uids: SOPInstanceUID per slice along depth of the scan's own grid, or none.
        threshold: Heat from which a voxel counts as involved.

    Raises:
        ValueError: The map is not on the scan's own grid.
    """
    if heat.grid != prepared.scan_grid:
        raise ValueError("The map is not on the scan's own grid.")
    by_slice = heat_by_slice(heat, prepared.scan_lungs.voxels)
    shares, involved = _shares(heat, prepared.scan_lungs, threshold)
    return EvidenceSummary(
        threshold=threshold,
        shares=shares,
        involved_ml=involved * heat.grid.voxel_ml,
        by_slice=by_slice,
        peaks=_peaks(by_slice, heat.grid.spacing_mm[0], slice_uids),
        hottest_mm=_hottest(heat, prepared.scan_lungs.voxels),
    )


def share_outside(explanation: Explanation, prepared: PreparedScan) -> float:
    """Share of the map's sum outside the lungs, as the network's input has both; 0 without heat."""
    heat = explanation.heat
    total = float(heat.sum(dtype=np.float64))
    inside = float(heat.sum(where=prepared.lungs, dtype=np.float64))
    return 1.0 - inside / total if total else 0.0


def outside_warning(explanation: Explanation, prepared: PreparedScan) -> tuple[str, ...]:
    """A sentence where more than a third of the heat lies outside the lungs, else nothing."""
    share = share_outside(explanation, prepared)
    if share <= _MOST_OUTSIDE:
        return ()
    return (
        f"{share:.0%} of the heat-map lies outside the lungs: the answer may rest on something "
        "else than lung.",
    )


def _hottest(heat: HeatMap, lungs: Mask) -> tuple[float, float, float] | None:
    """Patient position of the hottest voxel in the lungs; None where all of them are cold."""
    hottest, place = 0.0, None
    for index, (plane, mask) in enumerate(zip(heat, lungs, strict=True)):
        inside = np.where(mask, np.nan_to_num(plane), 0.0)
        row, column = np.unravel_index(int(inside.argmax()), inside.shape)
        if inside[row, column] > hottest:
            hottest, place = inside[row, column], (index, row, column)
    if place is None:
        return None
    x, y, z = heat.grid.to_patient(np.array(place, dtype=np.float64)).tolist()
    return x, y, z


def heat_by_slice(heat: Iterable[HeatPlane], lungs: Mask) -> Float64[np.ndarray, " slices"]:
    """Heat summed over the lungs of each slice, in parts of the fullest slice's lung.

    1 is the fullest slice, hot throughout. A mean over each slice's own lung would make much of an
    apex, where a little heat lies on hardly any lung.

    Args:
        heat: Slices of a map along depth, NaN where not analysed.
        lungs: Lungs on the same grid.

    Returns:
        A value per slice along depth; NaN where nothing was analysed or there is no lung.
    """
    sums = np.full(len(lungs), np.nan)
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
    reach = max(1, int(_PEAK_DISTANCE_MM / slice_mm))
    peaks: list[PeakSlice] = []
    for index in np.argsort(-curve, kind="stable").tolist():
        is_highest = 0.0 < curve[index] == curve[max(0, index - reach) : index + reach + 1].max()
        if is_highest and all(abs(index - peak.index) > reach for peak in peaks):
            uid = slice_uids[index] if index < len(slice_uids) else ""
            peaks.append(PeakSlice(index, uid, float(curve[index])))
    return tuple(peaks[:_MOST_PEAKS])


def _shares(heat: HeatMap, lungs: Volume, threshold: float) -> tuple[dict[str, float], int]:
    """Share of each region that is involved, and the number of involved voxels in all."""
    canonical = to_canonical(lungs)
    box = bounding_box(canonical.voxels)
    if box is None:
        return {}, 0
    mask = np.ascontiguousarray(canonical.voxels[box])
    state = np.empty(heat.grid.shape, dtype=np.uint8)
    for known, plane in zip(state, heat, strict=True):
        np.add(np.isfinite(plane), plane >= threshold, out=known, dtype=np.uint8)
    # 0 is not analysed, 1 is cold and 2 is involved.
    of_voxels = to_canonical(lungs.with_voxels(state)).voxels[box][mask]
    analysed, involved = of_voxels > 0, of_voxels > 1
    start = tuple(float(part.start) for part in box)
    grid = canonical.grid.moved((start[0], start[1], start[2]), (1.0, 1.0, 1.0), mask.shape)
    shares = {}
    for name, inside in _lung_regions(mask, grid):
        total = int(np.count_nonzero(analysed & inside))
        if total:
            shares[name] = float(np.count_nonzero(involved & inside) / total)
    return shares, int(np.count_nonzero(involved))

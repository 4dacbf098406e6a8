"""Should this scan be classified at all? What speaks against it, and what a reader should know.

Reasons make a scan unsuitable: the pipeline then gives no class. Warnings go with the answer.

Does the anatomy lie the way the geometry says: spine behind, lung bases below, liver right? A wrong
orientation in a header turns a scan without a trace in its pixels' values, and a network answers
all the same. No single organ tells: consolidation passes for liver, a tumour shifts the heart,
contrast outshines the spine. So several signs are added up, each within limits; a scan is refused
where the sum is clearly wrong, and a doubt is said where it is near nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

from chestct.arrays import Mask, Shape, Spacing
from chestct.preprocess.lungs import NetworkLungs
from chestct.preprocess.placement import ScanLungs
from chestct.preprocess.recipes import Recipe
from chestct.volume import Grid, Volume

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
"""Doubtful shares: chests at hand have 0.6 to 0.9, abdomens 1.2 to 1.4, noise 4.0 and more."""
_UNEQUAL, _ONE_LUNG = 3.0, 0.02
"""Larger over smaller lung that is said, and smaller over larger below which there is but one."""
_ROUGH_METHODS = ("paper", "published")
"""Their masks take in the heart, vessels and the chest's wall in every scan, as published."""
_CUT_EDGE = 0.02
_LEAST_HEIGHT = 0.55
"""Height of whole lungs in their width; 12 real chests have 0.83 to 1.31."""
_LUNGS_CM2: Final = (300.0, 950.0)
"""Width times depth of both lungs. Nine real chests and four simulated ones have 368 to 757; sizes
of 0.7 times make 180 to 371 of the former, of 1.4 times 721 to 1484."""
_MAX_DRIFT, _DRIFT_HU = 0.15, (-1000.0, 200.0)
"""Steady shift of what slices show, in their distance: 0.08 was seen in whole chests and 0.12 in
cropped ones. Slices each half a pixel further than the last have 0.1 to 0.6, a pixel 0.2 to 1.3."""


@dataclass(frozen=True)
class _Verdict:
    """Why a scan should not be classified, empty when it may, and what a reader should know."""

    unsuitable_reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def judge_scan(scan: ScanLungs, recipe: Recipe) -> _Verdict:
    """Look for reasons not to classify a scan; values are judged where a recipe needs HU."""
    reasons = [*_value_reasons(scan, recipe), *_size_reasons(scan)] or _outline_reasons(scan)
    if reasons or scan.volume.unit != "HU":
        return _Verdict(tuple(reasons), () if reasons else _coverage_warnings(scan))
    chest = _coarse_chest(scan.volume, scan.mask, scan.network)
    if chest is None:
        return _Verdict((), _coverage_warnings(scan))
    faults = _orientation_faults(chest)
    if faults:
        return _Verdict(
            tuple(f"The scan seems to be oriented wrongly: {fault}." for fault in faults), ()
        )
    doubts = (*_orientation_doubts(chest), *_drift_doubts(chest))
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
    ends = _at_ends(scan)
    end = max(ends, key=ends.__getitem__)
    if ends[end] < _HALF_AREA:
        return ""
    return (
        f"Only a part of the lungs is in view: towards the {end} the scan ends where they have "
        f"{ends[end]:.0%} of their largest cross-section. A CT of the whole chest is expected."
    )


def _at_ends(scan: ScanLungs) -> dict[str, float]:
    """Cross-sections of the lungs on the first and last slice, in parts of the largest."""
    largest = float(scan.area.max())
    return {"feet": float(scan.area[0]) / largest, "head": float(scan.area[-1]) / largest}


def _mask_doubts(chest: _CoarseChest, network: NetworkLungs | None) -> tuple[str, ...]:
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
    warnings = [
        f"The scan ends inside the lungs towards the {end}: {share:.0%} of their largest "
        "cross-section lies on its last slice."
        for end, share in _at_ends(scan).items()
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
    return tuple(warnings) or _whole_lungs_warnings(scan)


def _whole_lungs_warnings(scan: ScanLungs) -> tuple[str, ...]:
    """Whole lungs of sizes that no adult has, as where slices or pixels are of another size."""
    if scan.box is None:
        return ()
    height_mm, depth_mm, width_mm = (
        (side.stop - side.start) * spacing
        for side, spacing in zip(scan.box, scan.volume.grid.spacing_mm, strict=True)
    )
    low, high = _LUNGS_CM2
    area_cm2 = depth_mm * width_mm / 100.0
    said = []
    if height_mm < _LEAST_HEIGHT * width_mm:
        said.append(
            f"The lungs are {height_mm:.0f} mm high and {width_mm:.0f} mm wide: slices may lie "
            "farther apart than the headers say, or the lungs are very low. Sizes and volumes may "
            "be wrong."
        )
    if not low <= area_cm2 <= high:
        whose = "a child's" if area_cm2 < low else "hardly any patient's"
        said.append(
            f"The lungs are {width_mm:.0f} mm wide and {depth_mm:.0f} mm deep, as {whose} are: the "
            "pixel size may be wrong. Sizes and volumes would be, too."
        )
    return tuple(said)


def _drift_doubts(chest: _CoarseChest) -> tuple[str, ...]:
    """Slices that each lie further to a side than the last, as no body does.

    The shift between neighbours is that which best explains their difference by their slope. What
    lies on both sides of a body shrinks and grows alike, so that its anatomy hardly counts.
    """
    slices = np.flatnonzero(chest.lungs.any(axis=(1, 2)))
    shown = np.clip(chest.voxels[slices[0] : slices[-1] + 1], *_DRIFT_HU)
    if min(shown.shape) < 3:
        return ()
    between, change = (shown[1:] + shown[:-1]) / 2, shown[1:] - shown[:-1]
    drifts = []
    for axis in (1, 2):
        slope = np.gradient(between, axis=axis)
        steepness = np.maximum((slope * slope).sum(axis=(1, 2)), 1.0)
        shifts = -(slope * change).sum(axis=(1, 2)) / steepness
        drifts.append(float(shifts.mean()) * chest.spacing_mm[axis] / chest.spacing_mm[0])
    behind, left = drifts
    if max(abs(behind), abs(left)) <= _MAX_DRIFT:
        return ()
    way = ("left" if left > 0 else "right") if abs(left) > abs(behind) else ""
    way = way or ("back" if behind > 0 else "front")
    return (
        f"Towards the head each slice lies further to the {way} than the last, by "
        f"{max(abs(behind), abs(left)):.2f} mm a millimetre: slices may have been shifted (sheared)"
        ", or the patient lay aslant. Check them.",
    )


_OTHER_GAS = 3
_SPINE_HALF_WIDTH_MM = 40.0
_MIN_BONE_ML = 20.0

_RECESS_UNIT = 0.15
_BONE_UNIT = 0.2
_BACK_TO_FRONT = -0.5
"""Below this sum of signs for front and back; ten real chests have 2.4 to 6.2."""
_BACK_UNSURE = 0.8
"""Below this sum nobody can tell."""

_INVERTED_FILL = 0.8
"""Below this apex-to-base ratio of `_fill_ratio`; ten real chests have 1.5 to 3.2."""

_SOLID_MM = 20.0
_SOLID_HU = (-10.0, 170.0)
_MIN_SOLID_ML = 30.0
_SIGNS: Final = {
    "aorta": (8.0, 2.5),
    "heart": (20.0, 2.0),
    "liver": (1.5, 1.33),
    "stomach": (2.0, 1.0),
}
"""Signs for right and left: what counts one, and the most that one sign may count."""
_MIRRORED = -2.0
"""Below this sum right and left are exchanged. Nine real chests with both lungs in view have 2.3 to
5.2, one with consolidation in half of each lung -0.3; with an earlier lungs network 108 of 109
simulated ones, confusing on purpose, had more than -0.6 and one -1.6."""
_SIDES_UNSURE = 1.2
"""Below this sum nobody can tell."""

_BOTH_SIDES = 0.25
_STOMACH_GAS_ML = 5.0


@dataclass(frozen=True, eq=False)
class _CoarseChest:
    """A chest at a few millimetres, enough to tell front from back.

    Attributes:
        voxels: Hounsfield units on canonical axes, (depth, height, width).
        lungs: The one or two largest parts of the lung mask.
        spacing_mm: Voxel size.
        spine_column: Column (width index) of the spine, or of the lungs' middle without bone.
        bone_behind: Share of the midline bone that lies behind the lungs' centre, or None where
            there is too little bone.
        gas: Gas in the body that is no lung, as the lungs network found it; None without one.
    """

    voxels: Float32[np.ndarray, "depth height width"]
    lungs: Mask
    spacing_mm: Spacing
    spine_column: float
    bone_behind: float | None
    gas: Mask | None = None


def _coarse_chest(
    volume: Volume, mask: Mask, network: NetworkLungs | None = None
) -> _CoarseChest | None:
    """Reduce a canonical scan and its lung mask; None when there is no lung to speak of."""
    strides = [max(1, round(_COARSE_MM / spacing)) for spacing in volume.grid.spacing_mm]
    every = tuple(slice(None, None, stride) for stride in strides)
    lungs = _largest_parts(mask[every])
    if not lungs.any():
        return None
    depth, height, width = (n * s for n, s in zip(strides, volume.grid.spacing_mm, strict=True))
    voxels = volume.voxels[every].astype(np.float32)
    column, behind = _spine(voxels, lungs, (depth, height, width))
    gas = None if network is None else _gas_on(network, volume.grid, strides, voxels.shape)
    return _CoarseChest(voxels, lungs, (depth, height, width), column, behind, gas)


def _gas_on(network: NetworkLungs, grid: Grid, strides: list[int], shape: Shape) -> Mask:
    """Other gas of the network on every so many voxels of the scan, by the nearest of its own."""
    gas = network.probabilities.argmax(axis=0) == _OTHER_GAS
    nearest = []
    for axis, (stride, size) in enumerate(zip(strides, shape, strict=True)):
        places = np.zeros((size, 3))
        places[:, axis] = np.arange(size) * stride
        index = network.grid.to_index(grid.to_patient(places))[:, axis]
        nearest.append(np.rint(index).clip(0, gas.shape[axis] - 1).astype(int))
    return np.asarray(gas[np.ix_(*nearest)])


def _orientation_faults(chest: _CoarseChest) -> tuple[str, ...]:
    """What speaks against the scan's orientation, in words; empty when nothing clear does."""
    faults = []
    if _front_back(chest) < _BACK_TO_FRONT:
        faults.append(
            "the spine and the deepest part of the lungs lie in front (front and back exchanged)"
        )
    if _fill_ratio(chest) < _INVERTED_FILL:
        faults.append("the bases of the lungs point to the head (upside down)")
    if not faults and (_right_left(chest) or 0.0) < _MIRRORED:
        faults.append(
            "aorta, heart, liver and stomach lie on the wrong sides (left and right exchanged)"
        )
    return tuple(faults)


def _orientation_doubts(chest: _CoarseChest) -> tuple[str, ...]:
    """Sentences where the anatomy does not show which side is the left one, or the back."""
    doubts = []
    sides = _right_left(chest)
    if sides is None or sides < _SIDES_UNSURE:
        doubts.append(
            "Heart, aorta, liver and stomach do not show clearly which side of this scan is the "
            "left one; check that left and right are not exchanged."
        )
    if _front_back(chest) < _BACK_UNSURE:
        doubts.append(
            "Spine and lungs do not show clearly which way the back of this scan lies; check that "
            "front and back are not exchanged."
        )
    return tuple(doubts)


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


def _fill_ratio(chest: _CoarseChest) -> float:
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


def _front_back(chest: _CoarseChest) -> float:
    """Signs that the spine lies behind and the lungs reach deepest there; negative: in front."""
    behind = 0.5 if chest.bone_behind is None else chest.bone_behind
    return _recess(chest) / _RECESS_UNIT + (behind - 0.5) / _BONE_UNIT


def _recess(chest: _CoarseChest) -> float:
    """How far back the lowest quarter of the lungs lies, from -1, all in front, to 1.

    The lungs reach deepest behind the domes of the diaphragm.
    """
    slices, rows = (np.flatnonzero(chest.lungs.any(axis=a)) for a in ((1, 2), (0, 2)))
    first, last = int(rows[0]), int(rows[-1])
    quarter = max(1, len(slices) // 4)
    area = chest.lungs[slices[0] : slices[0] + quarter].sum(axis=(0, 2))
    centre = float(np.average(np.arange(len(area)), weights=area))
    return (centre - (first + last) / 2) / max(1.0, (last - first) / 2)


def _right_left(chest: _CoarseChest) -> float | None:
    """Sum of the signs for right and left as stored; None where not both lungs are in view."""
    column = round(chest.spine_column)
    left_share = chest.lungs[:, :, column:].sum() / chest.lungs.sum()
    if not _BOTH_SIDES <= left_share <= 1 - _BOTH_SIDES:
        return None
    found = {
        "aorta": _aorta_mm(chest),
        "heart": _heart_shift_mm(chest),
        "liver": _liver_side(chest) or 0.0,
        "stomach": _stomach_side(chest),
    }
    limits = ((found[name] / unit, most) for name, (unit, most) in _SIGNS.items())
    return float(sum(np.clip(value, -most, most) for value, most in limits))


def _aorta_mm(chest: _CoarseChest) -> float:
    """How much further from the spine lung begins on the left than on the right, at the back.

    The descending aorta lies there, left of the spine, all the way down.
    """
    area = chest.lungs.sum(axis=(1, 2))
    large = np.flatnonzero(area >= 0.6 * area.max())
    rows = np.flatnonzero(chest.lungs.any(axis=(0, 2)))
    low, high = (int(rows[0] + share * (rows[-1] - rows[0])) for share in (0.6, 0.85))
    back = chest.lungs[large[0] : large[-1] + 1, low:high]
    column = round(chest.spine_column)
    right, left = back[:, :, :column][:, :, ::-1], back[:, :, column:]
    is_between = right.any(axis=2) & left.any(axis=2)
    if not is_between.any():
        return 0.0
    further = left.argmax(axis=2)[is_between] - right.argmax(axis=2)[is_between]
    # The middle between the first voxels of both sides, twice its way from the spine.
    return float(further.mean() + 2 * column - 1 - 2 * chest.spine_column) * chest.spacing_mm[2]


def _stomach_side(chest: _CoarseChest) -> float:
    """Log ratio of other gas left to right of the spine, below the middle of the lungs."""
    if chest.gas is None:
        return 0.0
    slices = np.flatnonzero(chest.lungs.any(axis=(1, 2)))
    below = chest.gas[: (int(slices[0]) + int(slices[-1])) // 2]
    voxel_ml = float(np.prod(chest.spacing_mm)) / 1000.0
    column, beside = round(chest.spine_column), max(1, round(12.0 / chest.spacing_mm[2]))
    right = below[:, :, : max(0, column - beside)].sum() * voxel_ml
    left = below[:, :, column + beside :].sum() * voxel_ml
    return float(np.log((left + _STOMACH_GAS_ML) / (right + _STOMACH_GAS_ML)))


def _liver_side(chest: _CoarseChest) -> float | None:
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


def _heart_shift_mm(chest: _CoarseChest) -> float:
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

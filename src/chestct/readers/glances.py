"""What is kept of a slice once it is read, and what that shows of changes made to the pictures.

A measured slice has noise, which no drawing over it has: where pixels have one value, something
was painted, burnt in or cut out. Neighbouring rows and columns are alike, and one is as rough as in
the slices beside; soft tissue and air have the same values on all sides. Neighbouring slices have
noise of their own, which projections of several share, and muscle lies near 45 HU. Where that is
not so it is said, not refused: it took 0.2 ms a slice of 512 x 512. What was filled in with noise
like that beside it cannot be told so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Num

from chestct.arrays import Voxels
from chestct.lookup import first_of
from chestct.readers.hounsfield import Slab

_PICTURE_SIDE = 64
"""Rows and columns of the small pictures at most, half of it at least."""
_AIR_HU, _TISSUE_HU = -900, -500
"""What is nearer to air, and to soft tissue."""
_RANGE_HU, _SOFT_HU = (-1000, 300), (-300, 500)
_APART, _THIN = 4, 8
"""Every so many rows are looked at of each slice, and of a whole scan; columns alike."""
_LEAST_PAINTED, _MAX_EQUAL = 20, 0.5
"""Blocks of 2 x 4 pixels of one and the same value from which something was painted: 11 were seen,
in a head, none in chests. Share of equal neighbours beyond which the whole was drawn, or has few
values; 0.1 was seen."""
_LEAST_WRITTEN, _SHARP = 6, 0.9
"""Pixels of the highest value in the rows looked at, and share of sharp edges of all such pixels,
from which they were written: metal has fewer."""
_MAX_CUT_OUT = 0.005
"""Air without noise that tissue surrounds, in all tissue; none was seen in 14 real scans."""
_LEAST_TISSUE = 0.05
"""Share of tissue from which there is a body around the lungs; 0.17 was the least seen."""
_MAX_COMB = 1.0
"""Difference of neighbouring rows or columns, in that of the next but one; 0.89 was seen."""
_MAX_LINE, _LINE_FLOOR_HU = 3.0, 8.0
"""Roughness of a row or column, in that of those beside it in both neighbours; 2.2 was seen."""
_MAX_STRIPE_HU, _LEAST_ASKED = 25.0, 40
"""Change between columns, or rows, of a whole scan, beyond that of the next ones, and slices from
which it is asked: 10 was seen in whole scans, 16 in 48 slices of one, 44 in 24."""
_MAX_AIR_TREND_HU, _MAX_TREND_HU = 60.0, 90.0
"""Change of air and of soft tissue across a scan: 7 and 208, 162 and 57, 37 and 32 were seen."""
_NUM_COMPARED, _LEAST_BURNT, _NOISY = 8, 20, 0.4
"""Slices in which a pixel has one value, the fewest such pixels that are burnt in, and the share of
tissue that changes from a slice to the next in scans that are no drawings."""
_MAX_SHARED, _MAX_REPEATED = 0.2, 0.1
"""Share of tissue with the very value of the next slice, and of the next column, beyond which
slices are projections of several: 0.08 was seen, and 0.30 and more in projections of three."""
_MUSCLE_HU = (5, 75)
"""Where one peak of tissue lies: 28 to 57 was seen in scans at hand."""
_FAT_TO_MUSCLE_HU = (105, 225)
"""Distance of two clear peaks that are fat and muscle: 130 to 165 was seen, at a slope of 1."""
_PEAK, _VALLEY, _NUM_SMOOTHED = 0.2, 0.85, 45
"""Height of a peak in the highest, and of a valley in the lower of its peaks; and HU that
one count is spread over."""
_TISSUES_HU = (-400, 400)
_MIN_SIDE, _NUM_ASKED = 48, 16
_ENDS = (slice(None, 2), slice(-2, None))

Picture = Float32[np.ndarray, "low_rows low_columns"]
_Lines = Float32[np.ndarray, " lines"]
_Rows = Num[np.ndarray, "rows width"]
_Runs = Bool[np.ndarray, "rows runs"]


class Glance(NamedTuple):
    """What is kept of a slice.

    Attributes:
        rough: How rough its rows are, and its columns.
        comb: How much neighbouring rows or columns differ, in the difference of the next but one.
        is_painted: Whether parts have one value, neither of air nor of what lies in the corners.
        cut_out: Air without noise that tissue surrounds, all tissue, and all there is, in pixels.
    """

    rough: tuple[_Lines, _Lines]
    comb: float
    is_painted: bool
    cut_out: tuple[int, int, int]


def glance(slab: Slab) -> Glance:
    """Look at one slice in Hounsfield units."""
    if min(slab.shape) < _MIN_SIDE:
        nothing = np.zeros(0, np.float32)
        return Glance((nothing, nothing), 0.0, False, (0, 0, 0))
    few_rows, few_columns = (max(1, size // _PICTURE_SIDE) for size in slab.shape)
    rough_rows, comb_rows = _roughness(slab[:, ::few_columns])
    rough_columns, comb_columns = _roughness(slab[::few_rows].T)
    rows, below = slab[:-1:_APART], slab[1::_APART]
    runs = _runs_of_four(rows)
    return Glance(
        rough=(rough_rows, rough_columns),
        comb=max(comb_rows, comb_columns),
        is_painted=_is_painted(slab, rows, below, runs),
        cut_out=_cut_out(rows[::2], runs[::2]),
    )


def small_picture(slab: Slab) -> Picture:
    """A slice in up to `_PICTURE_SIDE` rows and columns, each pixel the mean of a bit of a row."""
    rows, columns = slab.shape
    step, width = (-(-size // _PICTURE_SIDE) for size in (rows, columns))
    kept = slab[step // 2 :: step, : columns // width * width].astype(np.float32)
    # Every other pixel of the bit: less noise than one has, and a few additions only.
    parts = [kept[:, offset::width] for offset in range(0, width, 2)]
    return np.asarray(sum(parts[1:], start=parts[0]) / np.float32(len(parts)))


def _roughness(lines: Slab) -> tuple[_Lines, float]:
    """How far each line is from the mean of those beside it, twice; and how combed the whole is."""
    values = np.clip(lines, *_RANGE_HU).astype(np.int16, copy=False)
    next_one = values[1:] - values[:-1]
    bent, one, two = (
        np.add.reduce(np.abs(each), axis=1, dtype=np.int32)
        for each in (next_one[1:] - next_one[:-1], next_one, values[2:] - values[:-2])
    )
    comb = float(one.mean()) / max(float(two.mean()), float(values.shape[1]))
    return bent.astype(np.float32) / np.float32(values.shape[1]), comb


def _runs_of_four(rows: _Rows) -> _Runs:
    """Where four pixels in a row have one value."""
    same = rows[:, 1:] == rows[:, :-1]
    return np.asarray(same[:, :-2] & same[:, 1:-1] & same[:, 2:])


def _is_painted(slab: Slab, rows: _Rows, below: _Rows, runs: _Runs) -> bool:
    """Whether parts of a slice have one value and no noise: by some rows first, then by all."""
    highest = rows.max()
    if np.count_nonzero(rows == highest) >= _LEAST_WRITTEN and _is_written(slab, highest):
        return True
    values = _flat_values(rows, below, runs)
    if not len(values):
        return False
    ignored = np.array([*_filled_in(slab), highest, slab.max()])
    if np.isin(values, ignored).all() or _has_few_values(rows):
        return False
    values = _flat_values(slab[:-1], slab[1:], _runs_of_four(slab[:-1]))
    _, counts = np.unique(values[~np.isin(values, ignored)], return_counts=True)
    return int(counts.max(initial=0)) >= _LEAST_PAINTED


def _filled_in(slab: Slab) -> list[float]:
    """Values in corners, where they have no noise: they fill what is outside the field of view."""
    corners = (slab[rows, columns] for rows in _ENDS for columns in _ENDS)
    return [float(corner[0, 0]) for corner in corners if not np.ptp(corner)]


def _has_few_values(rows: _Rows) -> bool:
    """Whether so many neighbours are equal that the whole was drawn, or cut off above."""
    dense = rows[:, 1:] > _AIR_HU
    num_equal = np.count_nonzero(dense & (rows[:, 1:] == rows[:, :-1]))
    return bool(num_equal > _MAX_EQUAL * np.count_nonzero(dense))


def _is_written(slab: Slab, highest: np.number) -> bool:
    """Whether what has the highest value ends from one pixel to the next, as no metal does."""
    inside = slab == highest
    beside = slab[:, 1:][inside[:, :-1] & ~inside[:, 1:]]
    half = _RANGE_HU[0] + (float(highest) - _RANGE_HU[0]) / 2
    return len(beside) >= _LEAST_WRITTEN and bool(np.mean(beside < half) >= _SHARP)


def _flat_values(rows: _Rows, below: _Rows, runs: _Runs) -> Num[np.ndarray, " blocks"]:
    """Values of the blocks of 2 x 4 pixels that have one, without those of air."""
    first = rows[:, : runs.shape[1]]
    is_flat = runs & (first > _AIR_HU) & (below[:, : runs.shape[1]] == first)
    if is_flat.any():
        is_flat &= _runs_of_four(below)
    return np.asarray(first[is_flat])


def _cut_out(rows: _Rows, runs: _Runs) -> tuple[int, int, int]:
    """Air without noise that tissue surrounds, all tissue, and all, at some of the pixels."""
    thin = (slice(None), slice(None, None, 2 * _APART))
    is_flat = (runs[:, :-4] & runs[:, 4:])[thin] & (rows[:, : runs.shape[1] - 4][thin] <= _AIR_HU)
    is_tissue = rows[thin][:, : is_flat.shape[1]] > _TISSUE_HU
    # Most slices are done with here: around the body there is no tissue in the row or column.
    is_flat &= is_tissue.any(axis=0) & is_tissue.any(axis=1, keepdims=True)
    for axis in (0, 1) if is_flat.any() else ():
        is_flat &= np.logical_or.accumulate(is_tissue, axis)
        is_flat &= np.flip(np.logical_or.accumulate(np.flip(is_tissue, axis), axis), axis)
    return int(np.count_nonzero(is_flat)), int(np.count_nonzero(is_tissue)), is_tissue.size


def said_of_changes(
    voxels: Voxels,
    glances: Sequence[Glance],
    place_of: Callable[[int], str],
    *,
    is_lossy: bool = False,
) -> tuple[str, ...]:
    """Say what pictures show of changes made to them.

    Args:
        voxels: Hounsfield units.
        glances: At each slice that was read, in their order.
        place_of: Puts such a slice in words, by its number.
        is_lossy: Whether compression with a loss took noise away, so that its lack says nothing.
    """
    painted = [i for i, one in enumerate(glances) if one.is_painted and not is_lossy]
    combed = [i for i, one in enumerate(glances) if one.comb > _MAX_COMB]
    lined = [i for i in _odd_lines(glances) if i not in combed]
    in_slices = {
        "have a patch of one value without noise, as where something was painted over or text"
        " burnt in": painted,
        "are combed: every other row or column was moved, or is of something else": combed,
        "have a row or column that fits neither those beside it nor the slices beside": lined,
    }
    said = [
        f"{len(numbers)} slice(s) {what}: {first_of(map(place_of, numbers), 3, '; ')}. Check them."
        for what, numbers in in_slices.items()
        if numbers
    ]
    said += [] if is_lossy else _cut_out_parts(glances)
    if len(voxels) >= _NUM_COMPARED:
        said += [*_burnt_in(voxels), *_stripes_and_gradients(voxels)]
        said += [*_projections(voxels), *_shifted_tissue(voxels)]
    return tuple(said)


def _odd_lines(glances: Sequence[Glance]) -> list[int]:
    """Slices with a row or column far rougher than those around it in both neighbours."""
    found: set[int] = set()
    for rough in map(np.stack, zip(*(one.rough for one in glances), strict=True)):
        if len(rough) < 3 or not rough.size:
            continue
        around = np.pad(np.maximum(rough[:-2], rough[2:]), ((0, 0), (1, 1)), mode="edge")
        around = np.maximum(np.maximum(around[:, :-2], around[:, 2:]), around[:, 1:-1])
        is_odd = rough[1:-1] > _MAX_LINE * (around + _LINE_FLOOR_HU)
        found.update((np.flatnonzero(is_odd.any(axis=1)) + 1).tolist())
    return sorted(found)


def _cut_out_parts(glances: Sequence[Glance]) -> list[str]:
    """What was set to air, by all slices together."""
    num_cut, num_tissue, num_all = np.sum([one.cut_out for one in glances], axis=0).tolist()
    said = []
    if num_cut > _MAX_CUT_OUT * num_tissue:
        said.append(
            f"Air without noise fills {num_cut / (num_cut + num_tissue):.0%} of the body's inside:"
            " lungs or other parts were cut out. What lay there is lost."
        )
    if 0 < num_tissue < _LEAST_TISSUE * num_all:
        said.append(
            f"Only {num_tissue / num_all:.1%} of the scan is as dense as tissue: all but the lungs"
            " was cut out."
        )
    return said


def _stripes_and_gradients(voxels: Voxels) -> list[str]:
    """Values that change in all slices along rows or columns, as anatomy and scanners do not."""
    if len(voxels) < _LEAST_ASKED or min(voxels.shape[1:]) < _MIN_SIDE:
        return []
    asked = np.linspace(0, len(voxels) - 1, _NUM_ASKED).astype(int)
    said = []
    for name in ("row", "column"):
        thin = voxels[asked, :, ::_THIN] if name == "row" else voxels[asked, ::_THIN]
        turned = thin.transpose((1, 0, 2) if name == "row" else (2, 0, 1))
        lines = turned.reshape(len(turned), -1)
        air, tissue = _trend(lines)
        if abs(air) > _MAX_AIR_TREND_HU and abs(tissue) > _MAX_TREND_HU and air * tissue > 0:
            said.append(
                f"From the first to the last {name}s air changes by {air:+.0f} HU and soft tissue"
                f" by {tissue:+.0f}: a gradient lies over the scan. Check its values."
            )
        if places := _stripes(np.clip(lines, *_RANGE_HU, out=lines)):
            said.append(
                f"Values change in all slices at {name} {first_of(places, 3)}, as along a stripe"
                " that was added. Check them."
            )
    return said


def _stripes(lines: Num[np.ndarray, "lines pixels"]) -> list[int]:
    """Lines from which on values change, wherever they lie, more than along the next ones."""
    change = np.median(np.diff(lines, axis=0), axis=1, overwrite_input=True)
    padded = np.pad(change, 2, mode="edge")
    beside = np.stack([padded[shift : shift + len(change)] for shift in (0, 1, 3, 4)])
    beyond = np.maximum(change - beside.max(axis=0), beside.min(axis=0) - change)
    return [int(line) + 1 for line in np.flatnonzero(beyond > _MAX_STRIPE_HU)]


def _trend(lines: Num[np.ndarray, "lines pixels"]) -> tuple[float, float]:
    """By how many HU air and soft tissue change from the first to the last quarter of the lines."""
    quarter = len(lines) // 4
    air, tissue = [], []
    for part in (lines[:quarter].ravel(), lines[-quarter:].ravel()):
        lowest = part == part.min()
        if np.mean(lowest) > 0.05:
            # Filled in outside the field of view.
            part = part[~lowest]
        soft = part[(part > _SOFT_HU[0]) & (part < _SOFT_HU[1])]
        air.append(float(np.percentile(part, 2)) if len(part) else 0.0)
        tissue.append(float(np.median(soft)) if len(soft) else 0.0)
    return air[1] - air[0], tissue[1] - tissue[0]


def _burnt_in(voxels: Voxels) -> list[str]:
    """Pixels that have one value in all slices, as text that was burnt in has."""
    compared = voxels[np.linspace(0, len(voxels) - 1, _NUM_COMPARED).astype(int), ::2]
    is_burnt = (compared[0] > _AIR_HU) & (compared[1:] == compared[0]).all(axis=0)
    is_burnt &= ~np.isin(compared[0], _filled_in(compared[0]))
    one, other = voxels[len(voxels) // 2 - 1 : len(voxels) // 2 + 1, ::2]
    is_dense = one > _AIR_HU
    # Drawings without noise have one value in many places.
    num_new = np.count_nonzero(is_dense & (one != other))
    if np.count_nonzero(is_burnt) < _LEAST_BURNT or num_new < _NOISY * np.count_nonzero(is_dense):
        return []
    return [
        "Some pixels have one value in all slices, as text or a frame that was burnt into pictures:"
        " they hide what lay there, and text may hold a name. Look before you pass pictures on."
    ]


def _projections(voxels: Voxels) -> list[str]:
    """Neighbours that share so many values as projections (MIP, MinIP) of the same slices do."""
    thin = (slice(None, None, _APART), slice(None, None, _APART))
    shared, repeated = [], []
    for index in np.linspace(0, len(voxels) - 2, _NUM_ASKED).astype(int):
        one, other = voxels[index][thin], voxels[index + 1][thin]
        beside = voxels[index, ::_APART, 1::_APART][:, : one.shape[1]]
        is_tissue = (one > _AIR_HU) & (one < one.max())
        num = max(1, int(np.count_nonzero(is_tissue)))
        shared.append(int(np.count_nonzero(is_tissue & (one == other))) / num)
        inside = is_tissue[:, : beside.shape[1]] & (one[:, : beside.shape[1]] == beside)
        repeated.append(int(np.count_nonzero(inside)) / num)
    # Not most of them only, as in a scan that was enlarged by repeating slices.
    share = float(np.percentile(shared, 10))
    if share <= _MAX_SHARED or np.median(repeated) > _MAX_REPEATED:
        return []
    return [
        f"Neighbouring slices share {share:.0%} of their values to the last bit: they are"
        " projections of several slices each (MIP, MinIP). Use the original series."
    ]


def _shifted_tissue(voxels: Voxels) -> list[str]:
    """Fat and muscle at values that neither has, as with another rescale slope or intercept."""
    asked = np.linspace(0, len(voxels) - 1, 2 * _NUM_ASKED).astype(int)
    values = np.concatenate([small_picture(voxels[index]).ravel() for index in asked])
    low, high = _TISSUES_HU
    values = values[(values > low) & (values < high)]
    found = np.bincount(np.rint(values - low).astype(int), minlength=high - low + 1)
    counts = np.convolve(found, np.hanning(_NUM_SMOOTHED), "same")
    is_peak = (counts[1:-1] > counts[:-2]) & (counts[1:-1] >= counts[2:])
    is_peak &= counts[1:-1] > _PEAK * counts.max()
    peaks = (np.flatnonzero(is_peak) + 1).tolist()
    are_two = any(
        _FAT_TO_MUSCLE_HU[0] <= other - one <= _FAT_TO_MUSCLE_HU[1]
        and counts[one:other].min() < _VALLEY * min(counts[one], counts[other])
        for one in peaks
        for other in peaks
    )
    if not are_two or any(_MUSCLE_HU[0] <= peak + low <= _MUSCLE_HU[1] for peak in peaks):
        return []
    places = " and ".join(f"{peak + low} HU" for peak in peaks)
    return [
        f"Most tissue has about {places}, where fat has -105 and muscle 45: the rescale slope or"
        " intercept may be wrong. Check the values."
    ]

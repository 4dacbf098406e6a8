"""Judge each slice of a scan by its neighbours: a slice that fits neither is not of this scan.

A slice differs from each neighbour less than those two differ from each other, however thick the
slices are: 0.8 times at most on every scan at hand, at one to five times their spacing. A blank
slice, noise, another patient's or one that was shifted differs more. What decoders cannot see in a
damaged slice shows here too. Small pictures of the slices are compared, which takes about 1 % of
the time of reading them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Float32, Num

from chestct.arrays import Voxels
from chestct.volume import Unit

_PICTURE_SIDE = 64
"""Rows and columns of the small pictures at most, half of it at least."""
_MAX_WHOLE = 1.3
"""Difference from the nearer neighbour, in differences between the neighbours, that is believed."""
_MAX_BAND = 2.2
"""The same in one of `_NUM_BANDS` bands of rows, where anatomy weighs more: 1.2 was seen."""
_MAX_END = 3.0
"""Difference of an end slice from its neighbour, in the next differences; 1.5 was seen."""
_MAX_RUN = 3
"""Most slices in a row that are judged together."""
_ALTERNATING = 1.2
"""Typical difference of neighbours, in that of slices two apart, from which two scans alternate."""
_NUM_BANDS = 16
ALTERNATING_SCANS = (
    "The slices alternate between two scans: each is like the next but one and not like its"
    " neighbours. One scan was expected; export one of them on its own."
)
"""Said of what `find_misfits` calls alternating."""

_HU_RANGE = (-1000.0, 300.0)
_WINDOWED_RANGE = (0.0, 255.0)
# Shares of the range: differences below them are nothing, however small the others are.
_WHOLE_FLOOR, _BAND_FLOOR, _END_FLOOR, _BLANK = 0.004, 0.025, 0.025, 0.004
_MIN_SLICES, _MIN_ALTERNATING, _MIN_PIXELS = 4, 8, 1024

Slab = Num[np.ndarray, "rows columns"]
Picture = Float32[np.ndarray, "low_rows low_columns"]
_Steps = Float[np.ndarray, "pairs *band"]
"""Differences of slices, whole or in bands of rows."""


@dataclass(frozen=True)
class Misfits:
    """Slices that do not belong to a scan.

    Attributes:
        blank_ends: Slices of one value before the first or after the last that shows something.
        inside: What is wrong with other slices, by their number.
        alternates: Whether two scans alternate, slice by slice; nothing else is then told.
    """

    blank_ends: tuple[int, ...] = ()
    inside: dict[int, str] = field(default_factory=dict)
    alternates: bool = False


def small_picture(slab: Slab) -> Picture:
    """A slice in up to `_PICTURE_SIDE` rows and columns, each pixel the mean of a bit of a row."""
    rows, columns = slab.shape
    step, width = (-(-size // _PICTURE_SIDE) for size in (rows, columns))
    kept = slab[step // 2 :: step, : columns // width * width].astype(np.float32)
    # Every other pixel of the bit: less noise than one has, and a few additions only.
    parts = [kept[:, offset::width] for offset in range(0, width, 2)]
    return np.asarray(sum(parts[1:], start=parts[0]) / np.float32(len(parts)))


def find_misfits(pictures: Iterable[Picture], unit: Unit) -> Misfits:
    """Find slices that do not fit their neighbours.

    Args:
        pictures: What `small_picture` gives for each slice, in their order.
        unit: Of the values.
    """
    low, high = _HU_RANGE if unit == "HU" else _WINDOWED_RANGE
    scaled, blank = [], []
    for picture in pictures:
        blank.append(np.ptp(picture) <= _BLANK * (high - low))
        scaled.append((np.clip(picture, low, high) - low) / (high - low))
    if not scaled or scaled[0].size < _MIN_PIXELS:
        return Misfits()
    is_blank = np.array(blank)
    shown = np.flatnonzero(~is_blank)
    if len(shown) < _MIN_SLICES:
        return Misfits()
    first, last = int(shown[0]), int(shown[-1])
    ends = (*range(first), *range(last + 1, len(scaled)))
    inner = scaled[first : last + 1]
    steps = {apart: _row_differences(inner, apart) for apart in range(1, _MAX_RUN + 2)}
    if _alternates(steps):
        return Misfits(alternates=True)
    strangers = _strangers(steps, is_blank[first : last + 1])
    inside = {
        first + index: "is blank" if is_blank[first + index] else "does not fit its neighbours"
        for index in sorted(strangers)
    }
    return Misfits(ends, inside)


def interpolate(voxels: Voxels, bad: Collection[int]) -> None:
    """Replace slices by what lies between the nearest good ones, in place.

    Args:
        voxels: Slices along the first axis.
        bad: Numbers of those to be replaced, not all of them.
    """
    good = [index for index in range(len(voxels)) if index not in bad]
    for index in bad:
        low = max((i for i in good if i < index), default=good[0])
        high = min((i for i in good if i > index), default=good[-1])
        share = (index - low) / (high - low) if high > low else 0.0
        mixed = voxels[low] * np.float32(1 - share) + voxels[high] * np.float32(share)
        voxels[index] = np.rint(mixed) if voxels.dtype.kind == "i" else mixed


def _alternates(steps: dict[int, _Steps]) -> bool:
    """Whether slices are more like the next but one than like the next, all along."""
    if len(steps[1]) < _MIN_ALTERNATING:
        return False
    next_one, next_but_one = (float(np.median(steps[apart].mean(axis=1))) for apart in (1, 2))
    return next_one > _ALTERNATING * next_but_one + _WHOLE_FLOOR


def _strangers(steps: dict[int, _Steps], is_blank: Bool[np.ndarray, " slices"]) -> set[int]:
    """Numbers of the slices that do not fit, the ends and the blank ones among them.

    Args:
        steps: Differences of slices in each row, by how far they are apart.
        is_blank: Which slices show nothing.
    """
    whole = {apart: rows.mean(axis=1) for apart, rows in steps.items()}
    bands = {apart: _banded(steps[apart]) for apart in (1, 2)}
    found = {int(index) for index in np.flatnonzero(is_blank)} | _end_strangers(whole[1])
    found |= _runs(whole, 1, _MAX_WHOLE, _WHOLE_FLOOR, found)
    found |= _runs(bands, 1, _MAX_BAND, _BAND_FLOOR, found)
    for length in range(2, _MAX_RUN + 1):
        found |= _runs(whole, length, _MAX_WHOLE, _WHOLE_FLOOR, found)
    return found


def _runs(
    steps: dict[int, _Steps],
    length: int,
    limit: float,
    floor: float,
    known: set[int],
) -> set[int]:
    """Numbers of the slices in runs of one length that fit neither side, while the sides fit.

    Args:
        steps: Differences of slices, by how far they are apart.
        length: Of the runs.
        limit: `_MAX_WHOLE` or `_MAX_BAND`.
        floor: Differences up to this are nothing.
        known: Slices already found: a run that they are part of, or beside, says nothing new.
    """
    if len(steps[1]) < length + 2:
        return set()
    nearer = np.minimum(steps[1][:-length], steps[1][length:])
    is_stranger = nearer > limit * steps[length + 1] + floor
    if is_stranger.ndim > 1:
        is_stranger = is_stranger.any(axis=1)
    # From the slice before a run to the one after it.
    reaches = (range(int(i), int(i) + length + 2) for i in np.flatnonzero(is_stranger))
    return {index for reach in reaches if known.isdisjoint(reach) for index in reach[1:-1]}


def _end_strangers(steps: Float[np.ndarray, " pairs"]) -> set[int]:
    """The first and last slice, if they differ far more from the next than those do."""
    ends = ((0, steps[0], steps[1:3]), (len(steps), steps[-1], steps[-3:-1]))
    return {end for end, own, others in ends if own > _MAX_END * others.max() + _END_FLOOR}


def _banded(steps: Float[np.ndarray, "pairs rows"]) -> Float[np.ndarray, "pairs bands"]:
    """Mean differences in bands of rows, the last rows left out where they fill none."""
    rows = max(1, steps.shape[1] // _NUM_BANDS)
    bands = steps.shape[1] // rows
    return np.asarray(steps[:, : bands * rows].reshape(len(steps), bands, rows).mean(axis=2))


def _row_differences(scaled: Sequence[Picture], apart: int) -> Float[np.ndarray, "pairs rows"]:
    """Mean difference, in each row, of slices that lie `apart` slices apart."""
    pairs = zip(scaled[:-apart], scaled[apart:], strict=True)
    return np.stack([np.abs(other - one).mean(axis=1) for one, other in pairs])


def permission(name: str) -> str:
    """How to permit what was refused, for the end of a message."""
    return f" Permit it: --allow-{name} (allow={{'{name}'}} in Python)."


def in_words(misfits: Sequence[str], limit: int = 3) -> str:
    """The first few, and how many more there are."""
    more = len(misfits) - limit
    return "; ".join(misfits[:limit]) + (f"; and {more} more" if more > 0 else "")

"""Slices that do not belong to a scan, and places where it jumps, found by what they show.

A slice that fits neither neighbour is not of this scan. It differs from each neighbour less than
those two differ from each other, however thick the slices are: 0.8 times at most on every scan at
hand, at one to five times their spacing. A blank slice, noise, another patient's or one that was
shifted differs more. What decoders cannot see in a damaged slice shows here too. A longer run of
such slices has a border at each end where neighbours differ more than beyond it; where both sides
fit once the run is turned round, it lies backwards. Where slices were cut out and what is left was
moved together, two neighbours differ more than those on both sides do. Two slices with the same
noise are one, written twice. Where soft tissue changes by some 20 HU from a slice to the next, one
side is off as a whole; where a part of a slice lies far outside what both neighbours show, it was
painted or moved; a slice that is the mean of its neighbours was never scanned. These are said, not
refused. Small pictures of the slices are compared, which took
0.06 s where reading took 0.67 s of processor time (P001, measured once).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from dataclasses import replace
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view

from chestct.arrays import Voxels
from chestct.errors import ReadError
from chestct.lookup import first_of
from chestct.readers.glances import (
    Picture,
    glance,
    said_of_changes,
    small_picture,
)
from chestct.volume import AIR_HU, Unit, Volume

_MAX_WHOLE = 1.3
"""Difference from the nearer neighbour, in differences between the neighbours, that is believed."""
_MAX_BAND = 2.2
"""The same in one of `_NUM_BANDS` bands of rows, where anatomy weighs more: 1.2 was seen."""
_MAX_END = 3.0
"""Difference of an end slice from its neighbour, in the next differences; 1.5 was seen."""
_MAX_RUN = 3
"""Most slices in a row that are judged by the slices on both sides alone, not by borders."""
_BORDER = 1.4
"""Difference from which a run may begin or end, in the usual ones beyond; two of 1.3 were seen."""
_MAX_ACROSS = 0.6
"""Smaller border of a run, in the difference of its two sides; 0.1 was seen in such a pair."""
_MAX_BORDERS = 3.0
"""Both borders of a run, in the usual differences beyond; 1.6 was seen."""
_MAX_BREAK = 4.0
"""A border whose parts on both sides are each at one with themselves, in the same; 1.4 was seen."""
_MAX_JUMP, _DOUBTED_JUMP = 2.5, 1.9
"""The same where slices were cut out: refused, and said. In 13 real scans 1.2 was seen as they are,
and 1.9 with every slice but one in four left out; with 20 slices cut out it is mostly above 3."""
_MAX_TO_NOISE, _LEAST_TO_NOISE = 6.0, 0.1
"""A border whose part on one side only is at one with itself: in the same, where 3.6 was seen, and
in shares of the range."""
_TURNED = 1.15
"""Borders of a run, in what they are once it is turned round, from which it lies backwards; 0.9."""
_MAX_BORDERS_JUDGED = 32
_NUM_BESIDE = 4
"""Differences on a side that say what is usual there."""
_NOISY = 0.4
"""Share of pixels that are not the same in neighbours from which equal slices are no chance."""
_MIN_REPEATS, _MAX_TO_REPEAT = 3, 5
"""Repeats, and slices to one of them, where a scan was enlarged by repeating slices evenly."""
_ALTERNATING = 1.2
"""Typical difference of neighbours, in that of slices two apart, from which two scans alternate."""
_DISORDER = 1.3
"""Difference from the nearer neighbour, in that from the most similar slice of all, from which most
slices lie in no order. In 13 real scans, and in mere noise, 1.02 was seen; shuffled ones have 2 and
more, with 20 slices only 1.35."""
_NUM_ASKED, _MIN_ORDERED = 16, 12
"""Slices that are compared with all others, and the fewest of a scan that is asked so."""
_SOFT_TISSUE_HU, _LEAST_SOFT = (-50.0, 150.0), 100
"""Soft tissue, and the fewest pixels of it in small pictures that are judged."""
_MAX_OFFSET_HU = 16.0
"""Median change of soft tissue from a slice to the next that is believed. In 13 real chests 10 was
seen, once; in others 9 at most. Of changes by 20 HU most are beyond it, wherever they are."""
_MAX_USUAL_OFFSET = 3.2
"""The same, in that which nine tenths of a scan's slices stay below: thick slices differ more."""
_MAX_AIR_HU = -900.0
"""Lowest hundredth of a scan's small pictures that is believed; -993 and less was seen in all."""
_BLOCK = 8
"""Rows and columns of the parts of small pictures that are judged."""
_MAX_OUTSIDE = 0.02
"""How far a part of a slice lies outside what its neighbours show, beyond what these differ by, in
shares of the range. In 13 real scans 0.008 was seen; in slices moved by 3 pixels of 512 some 0.03.
"""
_MAX_USUAL_OUTSIDE = 1.3
"""The same, in how far half of the slices lie outside: thick slices differ more."""
_LEAST_AHEAD = 2.0
"""The same, in that of the next slice: sharp structures are seen in several slices of a scan."""
_MEAN = 0.12
"""How far a slice is from the mean of its neighbours, in half of what these differ by, where it was
made of them: 0.29 was seen in scans."""
_LEAST_ALIKE = 0.5
"""Correlation from which neighbours show the same, neither inverted; 0.88 is the least seen."""
_NUM_BANDS = 16

_HU_RANGE = (-1000.0, 300.0)
_WINDOWED_RANGE = (0.0, 255.0)
# Shares of the range: differences below them are nothing, however small the others are.
_WHOLE_FLOOR, _BAND_FLOOR, _END_FLOOR, _BLANK = 0.004, 0.025, 0.025, 0.004
_BORDER_FLOOR, _LEAST_USUAL = 0.002, 0.001
_MIN_SLICES, _MIN_ALTERNATING, _MIN_PIXELS = 4, 8, 1024

_STRANGE = "does not fit its neighbours"
_REVERSED = "lies in reverse order with its neighbours"
_Steps = Float[np.ndarray, "pairs *band"]
"""Differences of slices, whole or in bands of rows."""
_Whole = Float[np.ndarray, " pairs"]


def are_alike(one: Picture, other: Picture) -> bool:
    """Whether neighbours show the same, neither of them inverted; a blank one says nothing."""
    low, high = (np.clip(picture, *_HU_RANGE).ravel() for picture in (one, other))
    if not (np.ptp(low) and np.ptp(high)):
        return True
    return bool(np.corrcoef(low, high)[0, 1] > _LEAST_ALIKE)


class Misfits(NamedTuple):
    """What of a scan does not go together.

    Attributes:
        inside: What is wrong with each slice that does not fit its neighbours, by its number.
        blank_ends: Slices of one value before the first or after the last that shows something.
        jumps: How many times as much as others there two neighbours differ that both fit theirs,
            by the number of the first.
        offsets: By how many HU soft tissue changes between neighbours, by the number of the first.
        odd_part: The slice a part of which shows what neither neighbour does, if one stands out.
        lowest_hu: Below it lies a hundredth of all that the pictures show.
        filled: Slices that are nothing but the mean of their neighbours.
    """

    inside: dict[int, str]
    blank_ends: tuple[int, ...]
    jumps: dict[int, float]
    offsets: dict[int, float]
    odd_part: int | None = None
    lowest_hu: float = AIR_HU
    filled: tuple[int, ...] = ()

    def doubts(self, place_of: Callable[[int], str]) -> list[str]:
        """What to say of all but `inside` and `blank_ends`.

        Args:
            place_of: Puts a slice in words, by its number.
        """
        doubts = [
            f"The scan jumps between {place_of(index)} and {place_of(index + 1)}, which differ"
            f" {ratio:.1f} times as much as neighbours there do: slices may be missing whose places"
            " were closed up, or the patient moved."
            for index, ratio in self.jumps.items()
        ]
        offsets = [
            f"soft tissue changes by {offset:+.0f} HU from {place_of(index)} to"
            f" {place_of(index + 1)}"
            for index, offset in self.offsets.items()
        ]
        if offsets:
            doubts.append(f"Values may be wrong by a constant: {in_words(offsets)}. Check them.")
        if self.lowest_hu > _MAX_AIR_HU:
            doubts.append(
                f"Hardly a value is below {self.lowest_hu:.0f} HU, and air has -1000: values may be"
                " wrong by a constant, or were cut off. Check them."
            )
        if self.filled:
            places = in_words([place_of(index) for index in self.filled])
            doubts.append(
                f"{len(self.filled)} slice(s) are nothing but the mean of those beside them, as"
                f" programs fill gaps or make slices thinner: {places}. What lay there may be lost."
            )
        if self.odd_part is not None:
            doubts.append(
                f"A part of {place_of(self.odd_part)} shows what neither neighbour does: it may"
                " have been painted over or moved. Check it."
            )
        return doubts

    def check_jumps(self, said: Sequence[str], allow: Collection[str]) -> None:
        """Refuse a scan out of which slices were cut.

        Args:
            said: What `doubts` says.
            allow: "gap" reads the slices on both sides as they lie.

        Raises:
            ReadError: That was not allowed.
        """
        if max(self.jumps.values(), default=0.0) > _MAX_JUMP and "gap" not in allow:
            msg = f"{first_of(said, 3, ' ')} A scan without holes was expected, as one can hide a"
            raise ReadError(f"{msg} finding. It can be read as it lies.{permission('gap')}")


def find_misfits(pictures: Iterable[Picture], unit: Unit, gaps: Collection[int] = ()) -> Misfits:
    """Find slices that do not belong to a scan, and places where it jumps.

    Args:
        pictures: What `small_picture` gives for each slice, in their order.
        unit: Of the values.
        gaps: Numbers of the slices after which others are missing.

    Raises:
        ReadError: Two scans alternate, slice by slice, or slices lie in no order.
    """
    low, high = _HU_RANGE if unit == "HU" else _WINDOWED_RANGE
    scaled, blank = [], []
    for picture in pictures:
        blank.append(np.ptp(picture) <= _BLANK * (high - low))
        scaled.append((np.clip(picture, low, high) - low) / (high - low))
    if not scaled or scaled[0].size < _MIN_PIXELS:
        return Misfits({}, (), {}, {})
    is_blank = np.array(blank)
    shown = np.flatnonzero(~is_blank)
    if len(shown) < _MIN_SLICES:
        return Misfits({}, (), {}, {})
    first, last = int(shown[0]), int(shown[-1])
    ends = (*range(first), *range(last + 1, len(scaled)))
    found = {int(index): "is blank" for index in np.flatnonzero(is_blank[first : last + 1])}
    inner, inner_gaps = scaled[first : last + 1], {gap - first for gap in gaps}
    more, jumps = _misfits(inner, set(found), inner_gaps)
    found |= more
    offsets: dict[int, float] = {}
    lowest_hu = float(AIR_HU)
    if unit == "HU":
        offsets = _offsets(inner, found.keys(), inner_gaps)
        lowest = float(np.percentile([one[::4, ::4] for one in inner], 1))
        lowest_hu = low + (high - low) * lowest
    odd = _odd_part(inner, found.keys(), inner_gaps)
    return Misfits(
        inside={first + index: found[index] for index in sorted(found)},
        blank_ends=ends,
        jumps={first + index: ratio for index, ratio in jumps.items()},
        offsets={first + index: offset for index, offset in offsets.items()},
        odd_part=None if odd is None else first + odd,
        lowest_hu=lowest_hu,
        filled=tuple(first + index for index in _filled(inner)),
    )


def _misfits(
    inner: Sequence[Picture], blank: set[int], gaps: Collection[int]
) -> tuple[dict[int, str], dict[int, float]]:
    """What is wrong with each slice that does not fit, and jumps; none where slices are missing."""
    farthest = min(_MAX_RUN + 1, len(inner) - 1)
    steps = {apart: _row_differences(inner, apart) for apart in range(1, farthest + 1)}
    whole = {apart: rows.mean(axis=1) for apart, rows in steps.items()}
    _refuse_alternation(whole)
    _refuse_disorder(inner)
    is_enlarged = _is_enlarged(whole[1])
    found = {} if is_enlarged else _repeats(inner, whole[1], blank)
    found |= dict.fromkeys(_strangers(steps, blank | found.keys()), _STRANGE)
    found |= _turned(whole, blank | found.keys())
    if is_enlarged or len(whole[1]) <= _NUM_BESIDE:
        return found, {}
    found |= _long_runs(inner, whole[1], blank | found.keys(), gaps)
    found |= _turned_ends(inner, whole[1], blank | found.keys() | set(gaps))
    beyond, jumps = _breaks(whole[1], blank | found.keys(), gaps)
    return found | beyond, jumps


def _offsets(inner: Sequence[Picture], known: Set[int], gaps: Set[int]) -> dict[int, float]:
    """Where soft tissue changes as a whole, in HU, between two neighbours that are both sound."""
    offsets: dict[int, float] = {}
    low, high = _HU_RANGE
    least, most = ((hu - low) / (high - low) for hu in _SOFT_TISSUE_HU)
    for index, pair in enumerate(pairwise(inner)):
        are_soft = [(least < one) & (one < most) for one in pair]
        is_judged = index not in gaps and known.isdisjoint((index, index + 1))
        if is_judged and min(np.count_nonzero(is_soft) for is_soft in are_soft) >= _LEAST_SOFT:
            change = (pair[1] - pair[0]) * (high - low)
            less, more = sorted(float(np.median(change[is_soft])) for is_soft in are_soft)
            offsets[index] = max(less, 0.0) or min(more, 0.0)
    usual = np.percentile(np.abs([*offsets.values(), 0.0]), 90)
    limit = max(_MAX_OFFSET_HU, _MAX_USUAL_OFFSET * float(usual))
    return {index: offset for index, offset in offsets.items() if abs(offset) > limit}


def _filled(inner: Sequence[Picture]) -> list[int]:
    """Slices between two others that are the mean of these."""
    found = []
    for index in range(1, len(inner) - 1):
        low, own, high = inner[index - 1 : index + 2]
        apart = _difference(low, high)
        if apart > _BORDER_FLOOR and _difference(low + high, own + own) < _MEAN * apart:
            found.append(index)
    return found


def _odd_part(inner: Sequence[Picture], known: Set[int], gaps: Set[int]) -> int | None:
    """The sound slice, if any, a part of which alone lies outside what its neighbours both show."""
    outside, beyond = {}, {}
    for index in range(1, len(inner) - 1):
        if known.isdisjoint(range(index - 1, index + 2)) and gaps.isdisjoint((index - 1, index)):
            low = np.minimum(inner[index - 1], inner[index + 1])
            high = np.maximum(inner[index - 1], inner[index + 1])
            away = np.maximum(inner[index] - high, low - inner[index])
            blocks = _in_blocks(np.maximum(away, 0.0))
            outside[index] = float(blocks.max())
            beyond[index] = float((blocks - _in_blocks(high - low)).max())
    usual = float(np.median([*outside.values(), 0.0]))
    next_most, most = sorted([*beyond.values(), 0.0, 0.0])[-2:]
    if most <= max(_MAX_OUTSIDE, _MAX_USUAL_OUTSIDE * usual, _LEAST_AHEAD * next_most):
        return None
    return max(beyond, key=beyond.__getitem__)


def _in_blocks(picture: Picture) -> Float[np.ndarray, "block_rows block_columns"]:
    """Means of parts of a picture; what fills none at the lower and right edge is left out."""
    rows, columns = (size // _BLOCK for size in picture.shape)
    whole = picture[: rows * _BLOCK, : columns * _BLOCK]
    return np.asarray(whole.reshape(rows, _BLOCK, columns, _BLOCK).mean(axis=(1, 3)))


def _refuse_alternation(steps: dict[int, _Steps]) -> None:
    """Refuse slices that are more like the next but one than like the next, all along."""
    if len(steps[1]) < _MIN_ALTERNATING:
        return
    next_one, next_but_one = (float(np.median(steps[apart])) for apart in (1, 2))
    if next_one > _ALTERNATING * next_but_one + _WHOLE_FLOOR:
        msg = (
            "The slices alternate between two scans, or lie in no order: they are more like the"
            " next but one than like their neighbours. One scan in its order was expected; export"
            " one of them on its own."
        )
        raise ReadError(msg)


def _refuse_disorder(inner: Sequence[Picture]) -> None:
    """Refuse slices that are, most of them, far more like others than like their neighbours."""
    if len(inner) < _MIN_ORDERED:
        return
    ratios = []
    for index in np.linspace(1, len(inner) - 2, _NUM_ASKED).astype(int):
        away = np.array([_difference(inner[index], other) for other in inner])
        # Itself among them, and what repeats it.
        others = away[away > 0]
        nearer = min(away[index - 1], away[index + 1])
        ratios.append((nearer + _WHOLE_FLOOR) / (others.min(initial=np.inf) + _WHOLE_FLOOR))
    if np.median(ratios) > _DISORDER:
        msg = (
            "The slices lie in no order: most are more like others of the scan than like their"
            " neighbours. They were expected in the order in which they lie in the patient, by"
            " position or by the numbers in their names."
        )
        raise ReadError(msg)


def _strangers(steps: dict[int, _Steps], known: set[int]) -> set[int]:
    """Slices that do not fit, one to three in a row, also ends, by differences in each row."""
    whole = {apart: rows.mean(axis=1) for apart, rows in steps.items()}
    bands = {apart: _banded(steps[apart]) for apart in (1, 2)}
    found = known | _end_strangers(whole[1])
    found |= _runs(whole, 1, _MAX_WHOLE, _WHOLE_FLOOR, found)
    found |= _runs(bands, 1, _MAX_BAND, _BAND_FLOOR, found)
    for length in range(2, _MAX_RUN + 1):
        found |= _runs(whole, length, _MAX_WHOLE, _WHOLE_FLOOR, found)
    return found - known


def _runs(
    steps: dict[int, _Steps],
    length: int,
    limit: float,
    floor: float,
    known: set[int],
) -> set[int]:
    """Numbers of the slices in runs of one length that fit neither side, while the sides fit.

    A run that a known slice is part of, or beside, says nothing new.
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


def _end_strangers(steps: _Whole) -> set[int]:
    """The first and last slice, if they differ far more from the next than those do."""
    ends = ((0, steps[0], steps[1:3]), (len(steps), steps[-1], steps[-3:-1]))
    return {end for end, own, others in ends if own > _MAX_END * others.max() + _END_FLOOR}


def _repeats(inner: Sequence[Picture], steps: _Whole, blank: Collection[int]) -> dict[int, str]:
    """Slices that are equal to others, noise and all, but for the one that lies best there."""
    # By their hashes, as the bytes of all of them would take as much memory again.
    equal: dict[int, list[int]] = {}
    for index, picture in enumerate(inner):
        if index not in blank:
            equal.setdefault(hash(picture.tobytes()), []).append(index)
    if len(equal) == len(inner) - len(blank) or not _is_noisy(inner):
        return {}
    said = "is the same as another slice"
    return {
        index: said
        for places in equal.values()
        for index in set(places) - {min(places, key=lambda place: _fit(steps, place))}
    }


def _is_noisy(inner: Sequence[Picture]) -> bool:
    """Whether neighbours differ in so many places that no two slices are equal by chance."""
    shares = [float(np.mean(one != other)) for one, other in pairwise(inner)]
    differing = [share for share in shares if share]
    return bool(differing) and float(np.median(differing)) >= _NOISY


def _is_enlarged(steps: _Whole) -> bool:
    """Whether repeats come evenly all along, as where a scan was enlarged by repeating slices."""
    new = np.flatnonzero(steps > 0)
    num_repeats = len(steps) - len(new)
    if num_repeats < max(_MIN_REPEATS, len(steps) / _MAX_TO_REPEAT) or len(new) < _MIN_REPEATS:
        return False
    apart = np.diff(new)
    ends = max(new[0], len(steps) - 1 - new[-1])
    return bool(max(apart.max(), ends) <= apart.min() + 1)


def _fit(steps: _Whole, place: int) -> float:
    """How much a slice that repeats others differs from the neighbours that are not among them."""
    sides = [float(steps[i]) for i in (place - 1, place) if 0 <= i < len(steps) and steps[i] > 0]
    if place in (0, len(steps)) and not sides:
        return float(np.median(steps))
    return sum(sides) / len(sides) if sides else math.inf


def _turned(whole: dict[int, _Whole], known: set[int]) -> dict[int, str]:
    """Slices in runs of two or three that fit both sides once they are turned round; none known."""
    found: dict[int, str] = {}
    for length in range(2, _MAX_RUN + 1):
        borders = whole[1][:-length] + whole[1][length:]
        turned = whole[length][:-1] + whole[length][1:]
        for low in np.flatnonzero(borders > _TURNED * turned + _BORDER_FLOOR).tolist():
            reach = range(low, low + length + 2)
            if known.isdisjoint(reach) and found.keys().isdisjoint(reach):
                found |= dict.fromkeys(reach[1:-1], _REVERSED)
    return found


def _turned_ends(inner: Sequence[Picture], steps: _Whole, known: Set[int]) -> dict[int, str]:
    """Slices in a run at either end whose outermost slice fits what lies beyond the run."""
    found: dict[int, str] = {}
    num = len(inner)
    for end, towards in ((0, 1), (num - 1, -1)):
        # In the order in which slices are met from this end.
        borders = steps[::towards]
        turned = [_difference(inner[end], inner[end + towards * i]) for i in range(2, num // 2 + 2)]
        ratios = borders[1 : len(turned) + 1] / (_TURNED * np.array(turned) + _BORDER_FLOOR)
        last = int(ratios.argmax()) + 1
        usual = float(np.median(borders[last + 1 :][:_NUM_BESIDE]))
        fits = ratios[last - 1] > 1 and turned[last - 1] < _BORDER * usual + _BORDER_FLOOR
        run = [end + towards * i for i in range(last + 2)]
        if fits and known.isdisjoint(run) and found.keys().isdisjoint(run):
            found |= dict.fromkeys(run[:-1], _REVERSED)
    return found


def _long_runs(
    inner: Sequence[Picture], steps: _Whole, known: Collection[int], gaps: Collection[int]
) -> dict[int, str]:
    """Slices in longer runs that do not fit: foreign, or in reverse order."""
    low_sides, high_sides = _borders(steps, known, gaps)
    found: dict[int, str] = {}
    for low, high in product(_strongest(low_sides), _strongest(high_sides)):
        is_new = found.keys().isdisjoint(range(low, high + 2))
        if is_new and _MAX_RUN < high - low <= len(inner) // 2:
            what = _why_no_part(inner, low, high)
            if not what and min(low_sides[low], high_sides[high]) > _MAX_BORDERS:
                what = _STRANGE
            found |= dict.fromkeys(range(low + 1, high + 1), what) if what else {}
    return found


def _breaks(
    steps: _Whole, known: Collection[int], gaps: Collection[int]
) -> tuple[dict[int, str], dict[int, float]]:
    """The shorter parts of a scan beyond breaks, and all jumps by the slices before them."""
    low_sides, high_sides = _borders(steps, known, gaps)
    ratios = np.minimum(low_sides, high_sides)
    is_break = ratios > _MAX_BREAK
    is_break |= (np.maximum(low_sides, high_sides) > _MAX_TO_NOISE) & (steps > _LEAST_TO_NOISE)
    found: dict[int, str] = {}
    for index in np.flatnonzero(is_break[1:-1]) + 1:
        is_low = 2 * (index + 1) <= len(steps) + 1
        part = range(index + 1) if is_low else range(index + 1, len(steps) + 1)
        found |= dict.fromkeys(part, "lies beyond a break in the scan")
    ratios[[0, -1]] = 0.0
    jumps = np.flatnonzero(ratios > _DOUBTED_JUMP)
    return found, {int(pair): float(ratios[pair]) for pair in jumps}


def _borders(steps: _Whole, known: Collection[int], gaps: Collection[int]) -> tuple[_Whole, _Whole]:
    """Each difference in the usual ones before it, and after it; 0 where there is no border.

    Where neighbours hardly differ, as in a phantom without noise, nothing is usual. There is no
    border beside a slice that is known not to fit, nor where others are missing.
    """
    closed = {*gaps, *known, *(index - 1 for index in known)}
    padded = np.pad(steps, _NUM_BESIDE, mode="edge")
    usual = np.median(sliding_window_view(padded, _NUM_BESIDE), axis=1)
    before, after = usual[: len(steps)], usual[_NUM_BESIDE + 1 :]
    is_open = np.minimum(before, after) > _LEAST_USUAL
    is_open[[pair for pair in closed if 0 <= pair < len(steps)]] = False
    return is_open * steps / (before + _BORDER_FLOOR), is_open * steps / (after + _BORDER_FLOOR)


def _strongest(sides: _Whole) -> list[int]:
    """Where a run may begin or end, the strongest borders first; not more than are soon judged."""
    strongest = np.argsort(-sides, kind="stable")[:_MAX_BORDERS_JUDGED]
    return [int(pair) for pair in strongest if sides[pair] > _BORDER]


def _why_no_part(inner: Sequence[Picture], low: int, high: int) -> str:
    """What is wrong with the slices after `low` up to `high`, by the slices at their borders."""
    outer_low, first, last, outer_high = (inner[i] for i in (low, low + 1, high, high + 1))
    borders = _difference(outer_low, first), _difference(last, outer_high)
    turned = _difference(outer_low, last) + _difference(first, outer_high)
    if sum(borders) > _TURNED * turned + _BORDER_FLOOR:
        return _REVERSED
    across = _difference(outer_low, outer_high)
    return _STRANGE if min(borders) > _MAX_ACROSS * across + _BORDER_FLOOR else ""


def _difference(one: Picture, other: Picture) -> float:
    """Mean difference of two slices."""
    return float(np.abs(other - one).mean())


def _banded(steps: Float[np.ndarray, "pairs rows"]) -> Float[np.ndarray, "pairs bands"]:
    """Mean differences in bands of rows, the last rows left out where they fill none."""
    rows = max(1, steps.shape[1] // _NUM_BANDS)
    bands = steps.shape[1] // rows
    return np.asarray(steps[:, : bands * rows].reshape(len(steps), bands, rows).mean(axis=2))


def _row_differences(scaled: Sequence[Picture], apart: int) -> Float[np.ndarray, "pairs rows"]:
    """Mean difference, in each row, of slices that lie `apart` slices apart."""
    pairs = zip(scaled[:-apart], scaled[apart:], strict=True)
    return np.stack([np.abs(other - one).mean(axis=1) for one, other in pairs])


def mend_misfits(voxels: Voxels, unit: Unit, allow: Collection[str]) -> list[str]:
    """Interpolate slices that do not fit their neighbours, in place.

    Args:
        voxels: Slices along the first axis.
        unit: Of the values.
        allow: "bad-slices" interpolates them; "gap" reads a scan that jumps as it lies.

    Returns:
        What to say. Blank slices at the ends stay as they are.

    Raises:
        ReadError: There are such slices, or the scan jumps, and that was not allowed; or slices
            alternate between two scans or lie in no order.
    """
    num = len(voxels)
    glances = [glance(plane) for plane in voxels]
    misfits = find_misfits((small_picture(plane) for plane in voxels), unit)
    inside = misfits.inside

    def place_of(index: int) -> str:
        return f"slice {index + 1} of {num}"

    said = misfits.doubts(place_of)
    if unit == "HU":
        said += said_of_changes(voxels, glances, place_of)
    if not inside:
        misfits.check_jumps(said, allow)
        return said
    told = in_words([f"slice {i + 1} of {num} {what}" for i, what in inside.items()])
    msg = " ".join([*said, f"{len(inside)} slice(s) do not belong to the scan: {told}."])
    if "bad-slices" not in allow:
        msg = f"{msg} All were expected to. Copy or convert it again; or they can be interpolated."
        raise ReadError(msg + permission("bad-slices"))
    if any(set(range(index, index + _MAX_RUN + 1)) <= inside.keys() for index in inside):
        msg = f"{msg} Those in a row are too many to be interpolated."
        raise ReadError(f"{msg} Copy or convert it again, or cut them off.")
    misfits.check_jumps(said, allow)
    _interpolate(voxels, inside)
    return [f"{len(inside)} slice(s) were interpolated from their neighbours: {told}.", *said]


def _interpolate(voxels: Voxels, bad: Collection[int]) -> None:
    """Replace slices by what lies between the nearest good ones, in place."""
    good = [index for index in range(len(voxels)) if index not in bad]
    for index in bad:
        low = max((i for i in good if i < index), default=good[0])
        high = min((i for i in good if i > index), default=good[-1])
        share = (index - low) / (high - low) if high > low else 0.0
        mixed = voxels[low] * np.float32(1 - share) + voxels[high] * np.float32(share)
        voxels[index] = np.rint(mixed) if voxels.dtype.kind == "i" else mixed


def without_blank_ends(volume: Volume) -> Volume:
    """A scan without the slices of one value at its ends, and with a word where there were any."""
    _, rows, columns = volume.grid.shape
    low, high = _HU_RANGE if volume.unit == "HU" else _WINDOWED_RANGE
    pictures = [small_picture(plane) for plane in volume.voxels]
    shown = [i for i, one in enumerate(pictures) if np.ptp(one) > _BLANK * (high - low)]
    num_blank = len(pictures) - (shown[-1] + 1 - shown[0]) if shown else 0
    if not num_blank or len(shown) < _MIN_SLICES or pictures[0].size < _MIN_PIXELS:
        return volume
    num_kept = len(pictures) - num_blank
    left_out = {**volume.source.left_out, BLANK_END: num_blank}
    return replace(
        volume,
        grid=volume.grid.moved((shown[0], 0, 0), (1, 1, 1), (num_kept, rows, columns)),
        voxels=volume.voxels[shown[0] : shown[0] + num_kept],
        source=replace(volume.source, left_out=left_out),
        warnings=(*volume.warnings, said_of_blank_ends(num_blank)),
    )


BLANK_END = "blank slice at an end"
"""How blank slices that are left out are counted."""


def said_of_blank_ends(num_blank: int) -> str:
    """That so many blank slices were left out."""
    return f"{num_blank} blank slice(s) at the ends of the scan were left out."


def permission(name: str) -> str:
    """How to permit what was refused, for the end of a message."""
    return f" Permit it: --allow-{name} (allow={{'{name}'}} in Python)."


def in_words(misfits: Sequence[str], limit: int = 3) -> str:
    """The first few, and how many more there are."""
    return first_of(misfits, limit, "; ")

"""Values of a scan: gathered as Hounsfield units, and doubted as such.

One slab of stored numbers at a time is rescaled and put away, so that a scan is never held twice:
not as stored and as rescaled, not as int16 and as float64. The result is int16 while every value
is a whole number that fits, and float32 from the first slab that is not. Formats other than DICOM
do not say that they hold Hounsfield units; the rules by which that is doubted stand here too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16, Num

from chestct.arrays import Shape, Voxels
from chestct.errors import ReadError
from chestct.memory import require_memory
from chestct.volume import AIR_HU

PADDING_BELOW_HU = -1500
"""Lower values are no measurement: converters write -2000, -2048 or -3024 outside the field."""

WINDOWED_HIGHEST = 255
"""Exports without an absolute scale run from 0 to this."""

LUNG_BELOW_HU = -200
"""A chest CT holds lung and air; where nothing is below this, the values are not HU."""

METAL_ABOVE_HU = 4000
"""Above the range of 12-bit CT; only metal gets there."""

MAX_METAL_SHARE = 0.05
"""More voxels than this above `METAL_ABOVE_HU`: the values are not HU."""

_BONE_ABOVE_HU, _MAX_BONE_SHARE = 900, 0.05
"""Above it are compact bone and teeth alone, and the air of inverted values; 0.007 was seen."""

_DENSE_ABOVE_HU, _SOFT_TISSUE_HU = -500, (-150, 200)
"""What is denser than lung, and muscle, organs and fat of it."""

_MIN_SOFT, _MUCH_DENSE, _LEAST_DENSE = 0.3, 0.05, 0.002
"""Share of soft tissue in what is denser than lung, from which values can be HU, in scans with so
much of that; 0.68 to 0.93 were seen. Off by 300 HU or scaled by 1.5 or 0.5, mostly below 0.2. Lungs
alone, cut out of a scan, have hardly any; 0.005 of a scan was seen to be denser in these."""

_MIN_JUDGED = 2**14
"""Fewest values of which soft tissue is expected: a drawing or a corner may hold none."""

Slab = Num[np.ndarray, "height width"]

_INT16 = np.iinfo(np.int16)
_WHOLE = 1e-6


@dataclass(frozen=True, eq=False)
class LookupTable:
    """A table from stored numbers to Hounsfield units (PS3.3 C.11.1.1).

    Attributes:
        first: Stored number that the first value is for; lower ones have it too.
        values: Hounsfield units; stored numbers beyond them have the last one.
    """

    first: int
    values: Int16[np.ndarray, " values"]

    def apply(self, stored: Slab) -> Slab:
        """One slab looked up."""
        last = self.first + len(self.values) - 1
        return np.asarray(
            self.values[np.clip(stored, self.first, last).astype(np.intp) - self.first]
        )


@dataclass(frozen=True)
class Rescale:
    """The map from stored numbers to Hounsfield units: linear, or by a table.

    Attributes:
        slope: Factor, not zero.
        intercept: Added after the factor.
        padding: Lowest and highest stored value that stand for "no data"; None when there is none.
        table: What to look numbers up in, in place of slope and intercept.
    """

    slope: float = 1.0
    intercept: float = 0.0
    padding: tuple[int, int] | None = None
    table: LookupTable | None = None

    @property
    def is_whole(self) -> bool:
        """Whether whole stored values give whole Hounsfield units."""
        numbers = (self.slope, self.intercept)
        return self.table is not None or all(abs(x - round(x)) < _WHOLE for x in numbers)

    def apply(self, slab: Slab) -> Slab:
        """One slab rescaled; itself when nothing changes, whole numbers where that is exact."""
        if self.slope == 1.0 and self.intercept == 0.0:
            return slab
        has_whole_shift = self.slope == 1.0 and float(self.intercept).is_integer()
        is_small = slab.dtype.kind in "iu" and slab.dtype.itemsize <= 4
        if has_whole_shift and is_small and abs(self.intercept) < 2**31:
            return np.asarray(slab.astype(np.int64) + int(self.intercept))
        with np.errstate(all="ignore"):
            return np.asarray(slab.astype(np.float64) * self.slope + self.intercept)


@dataclass(frozen=True, eq=False)
class Gathered:
    """Voxels put together, and what was seen on the way.

    Attributes:
        voxels: int16 or float32, C-contiguous; not finite values stand at `AIR_HU`.
        num_not_finite: How many values were NaN or infinite.
        lowest: Lowest finite value.
        highest: Highest finite value.
    """

    voxels: Voxels
    num_not_finite: int
    lowest: float
    highest: float


def gather(
    slabs: Iterable[Slab],
    shape: Shape,
    stored_axes: tuple[int, int, int] = (0, 1, 2),
    rescale: Rescale | None = None,
) -> Gathered:
    """Rescale slabs and put them into one array.

    Args:
        slabs: Stored numbers; slab i is index i along the first stored axis. A slab is used
            before the next is asked for, so that one buffer can serve all.
        shape: Voxels along (depth, height, width) of the result.
        stored_axes: For each stored axis (slab, row, column), the axis of the result it is.
        rescale: Map to HU; none when the numbers are HU as stored.

    Raises:
        ReadError: There is not one finite value, or too little memory for so many.
    """
    rescale = rescale or Rescale()
    size = " x ".join(map(str, shape))
    require_memory(2 * math.prod(shape), f"Reading {size} voxels")
    voxels: Voxels = np.empty(shape, dtype=np.int16)
    num_not_finite, lowest, highest = 0, np.inf, -np.inf
    for index, slab in enumerate(slabs):
        values, is_broken = _finite_or_air(rescale.apply(slab))
        if voxels.dtype == np.int16 and not _fits_int16(values):
            voxels = _widened(voxels, stored_axes, index)
        voxels.transpose(stored_axes)[index] = values
        if is_broken is not None:
            num_not_finite += int(np.count_nonzero(is_broken))
            values = values[~is_broken]
        if values.size:
            lowest = min(lowest, float(values.min()))
            highest = max(highest, float(values.max()))
    if lowest == np.inf:
        raise ReadError("Every voxel is NaN or infinite; a CT in Hounsfield units was expected.")
    return Gathered(voxels, num_not_finite, lowest, highest)


def why_not_hounsfield(voxels: Voxels, lowest: float) -> str | None:
    """Why these values cannot be a chest CT in Hounsfield units; None when they can."""
    if lowest >= LUNG_BELOW_HU:
        return f"no voxel is below {LUNG_BELOW_HU} (the lowest is {lowest:g})"
    num_metal = sum(int(np.count_nonzero(plane > METAL_ABOVE_HU)) for plane in voxels)
    if num_metal > MAX_METAL_SHARE * voxels.size:
        return f"{num_metal / voxels.size:.0%} of the voxels are above {METAL_ABOVE_HU}"
    return why_no_body(voxels[::2, ::3, ::3])


def why_no_body(values: Num[np.ndarray, "*axes"]) -> str | None:
    """Why these values cannot be a patient's in Hounsfield units, by their soft tissue."""
    low, high = _SOFT_TISSUE_HU
    num_dense = int(np.count_nonzero(values > _DENSE_ABOVE_HU))
    num_soft = int(np.count_nonzero((values > low) & (values < high)))
    if values.size < _MIN_JUDGED:
        return None
    if (bone := float(np.mean(values > _BONE_ABOVE_HU))) > _MAX_BONE_SHARE:
        return f"{bone:.0%} of the voxels are above {_BONE_ABOVE_HU}"
    if num_dense < _LEAST_DENSE * values.size:
        return f"{num_dense / values.size:.1%} of the voxels are above {_DENSE_ABOVE_HU}"
    if num_dense < _MUCH_DENSE * values.size or num_soft >= _MIN_SOFT * num_dense:
        return None
    return (
        f"{num_soft / num_dense:.0%} of what is above {_DENSE_ABOVE_HU} is within {low} to {high},"
        " where soft tissue is"
    )


def check_windowed(lowest: float, highest: float, doubt: str, where: str, causes: str) -> None:
    """Refuse values that are not Hounsfield units, unless they can be an 8-bit export's.

    Args:
        lowest: Of the values.
        highest: Of the values.
        doubt: Why they are not Hounsfield units.
        where: What was read, for the message.
        causes: What may be the reason, as a question.

    Raises:
        ReadError: The values leave 0 to `WINDOWED_HIGHEST`, or are a mask's.
    """
    if lowest < 0 or highest > WINDOWED_HIGHEST or highest <= 1:
        msg = (
            f"{where} holds values from {lowest:g} to {highest:g}: not Hounsfield units ({doubt}),"
        )
        raise ReadError(f"{msg} nor the 0 to {WINDOWED_HIGHEST} of an 8-bit export. {causes}")


def padding_to_air(voxels: Voxels) -> list[str]:
    """Set every value below `PADDING_BELOW_HU` to air, in place; a warning where there were any."""
    num_padding = 0
    for plane in voxels:
        is_padding = plane < PADDING_BELOW_HU
        if not is_padding.any():
            continue
        plane[is_padding] = AIR_HU
        num_padding += int(np.count_nonzero(is_padding))
    said = (
        f"{num_padding} voxels ({num_padding / voxels.size:.1%}) were below {PADDING_BELOW_HU} HU,"
        f" as converters pad outside the field of view; they were set to air."
    )
    return [said] if num_padding else []


def _finite_or_air(values: Slab) -> tuple[Slab, np.ndarray | None]:
    """Values as float32 would hold them, NaN and infinities at air, and where those were."""
    if values.dtype.kind in "iu":
        return values, None
    with np.errstate(all="ignore"):
        is_broken = ~np.isfinite(values.astype(np.float32, copy=False))
    if not is_broken.any():
        return values, None
    return np.where(is_broken, values.dtype.type(AIR_HU), values), is_broken


def _fits_int16(values: Slab) -> bool:
    """Whether int16 holds every value exactly."""
    if values.min() < _INT16.min or values.max() > _INT16.max:
        return False
    return values.dtype.kind in "iu" or bool((values == np.rint(values)).all())


def _widened(voxels: Voxels, stored_axes: tuple[int, int, int], num_filled: int) -> Voxels:
    """The first slabs of an int16 array in a float32 one; the rest is still to be filled."""
    size = " x ".join(map(str, voxels.shape))
    require_memory(4 * voxels.size, f"Reading {size} voxels that are no whole numbers")
    wide = np.empty(voxels.shape, dtype=np.float32)
    wide.transpose(stored_axes)[:num_filled] = voxels.transpose(stored_axes)[:num_filled]
    return wide

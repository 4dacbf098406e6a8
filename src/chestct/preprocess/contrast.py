"""Min-max scaling and contrast stretch, as MATLAB's `imadjust` does it without arguments.

Segmentation and scaling share these numbers, so that a mask and the values kept under it can
never disagree about where a slice saturates. Limits are values of the scan itself (Hounsfield
units), not of a copy scaled to [0, 1]: the scaling is affine, the limits mean the same, and the
comparisons stay exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Num

from chestct.arrays import Voxels

_SATURATED_SHARE: Final = 0.01
"""Share of the values that may saturate at each end (both forms of the RoI paper)."""


@dataclass(frozen=True)
class StretchLimits:
    """The two values that a contrast stretch sends to 0 and 1.

    Attributes:
        low: Largest value, in the scan's unit, that becomes 0.
        high: Smallest value that becomes 1; always above `low`.
    """

    low: float
    high: float

    def apply(self, values: Num[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
        """Scale `low`..`high` to 0..1 and cut off what lies outside."""
        scaled = values.astype(np.float32)
        scaled -= np.float32(self.low)
        scaled *= np.float32(1.0 / (self.high - self.low))
        return np.clip(scaled, 0.0, 1.0, out=scaled)


def volume_limits(voxels: Voxels) -> StretchLimits:
    """Smallest and largest value of a scan in any unit: linear min-max scaling (RoI paper, Eq. 1).

    A constant scan scales to 0 throughout.
    """
    low = float(voxels.min())
    high = float(voxels.max())
    return StretchLimits(low, high if high > low else low + 1.0)


def saturation_limits(
    voxels: Voxels, share: float = _SATURATED_SHARE, *, full_range: StretchLimits
) -> StretchLimits:
    """Limits between which at most `share` of the values is lost at each end.

    These are order statistics, rounded so that never more than the share saturates: of n sorted
    values the one with index floor(share * n) and the one with index ceil((1 - share) * n) - 1.
    GNU Octave's `stretchlim` takes the same; MATLAB's uses a histogram of 256 bins, which for
    12-bit scans is coarser (up to 7 HU) and moved up to 33 pixels of a slice's lung mask where
    the two were compared.

    Args:
        voxels: One slice as (1, height, width) or a whole scan, any unit.
        share: Share that may saturate at each end, in [0, 0.5).
        full_range: Limits of the whole scan; they are returned when the two limits coincide, as
            `imadjust` then leaves the min-max scaled values alone.
    """
    first = int(np.floor(share * voxels.size))
    last = int(np.ceil((1.0 - share) * voxels.size)) - 1
    low, high = _values_at_ranks(voxels, first, last)
    return StretchLimits(low, high) if high > low else full_range


def slice_limits(voxels: Voxels, share: float = _SATURATED_SHARE) -> tuple[StretchLimits, ...]:
    """The saturation limits of each slice along depth, in order."""
    full_range = volume_limits(voxels)
    return tuple(
        saturation_limits(voxels[i : i + 1], share, full_range=full_range)
        for i in range(voxels.shape[0])
    )


def _values_at_ranks(voxels: Voxels, first: int, last: int) -> tuple[float, float]:
    """The values at two ranks of the sorted array; by counting where values are 16-bit."""
    if voxels.dtype != np.int16:
        ordered = np.partition(voxels, (first, last), axis=None)
        return float(ordered[first]), float(ordered[last])
    # Flipping the sign bit puts signed values in unsigned order, which bincount needs.
    counts = np.zeros(2**16, dtype=np.int64)
    for plane in voxels:
        ranks = np.ascontiguousarray(plane).view(np.uint16) ^ np.uint16(0x8000)
        counts += np.bincount(ranks.ravel(), minlength=2**16)
    below = counts.cumsum()
    low, high = np.searchsorted(below, (first, last), side="right") - 2**15
    return float(low), float(high)

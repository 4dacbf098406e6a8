"""Salient slices: those on which the lungs are large (RoI paper, Algorithm 1).

The algorithm normalises the lung area of each slice by the largest one, thresholds it at t and
keeps slices "from the first index k_t, K_n of them, K_n the length of the thresholded vector".
That length can be read as the number of slices that reach t ("count") or, as the script does, as
the distance from the first to the last of them ("span"). They differ only where the area dips
below t in between; then "count" ends too early by as many slices as lie in the dip.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Num

from chestct.preprocess.recipe import SliceRule


def slice_area(
    is_lung: Bool[np.ndarray, "slices height width"],
) -> Float64[np.ndarray, " slices"]:
    """Share of each slice's area that is lung, 0 to 1."""
    counts = np.count_nonzero(is_lung, axis=(1, 2))
    return np.asarray(counts / (is_lung.shape[1] * is_lung.shape[2]), dtype=np.float64)


def salient_slices(
    area: Num[np.ndarray, " slices"], threshold: float, rule: SliceRule
) -> tuple[int, int]:
    """First and last slice to keep.

    Args:
        area: Lung area per slice, in any unit.
        threshold: t in (0, 1], share of the largest area a slice has to reach.
        rule: "span" or "count", see the module.

    Returns:
        Indices of the first and the last slice kept, both included; all slices when there is no
        lung on any.
    """
    largest = float(area.max())
    if largest <= 0:
        return 0, len(area) - 1
    reaching = np.flatnonzero(area / largest >= threshold)
    first = int(reaching[0])
    return first, int(reaching[-1]) if rule == "span" else first + len(reaching) - 1

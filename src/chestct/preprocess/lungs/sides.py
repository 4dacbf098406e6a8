"""Right and left lung apart, also where they touch in front of or behind the heart."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Int
from scipy import ndimage

from chestct.arrays import Mask, Spacing
from chestct.preprocess.lungs.morphology import erode
from chestct.preprocess.masks import within_box

EROSIONS_MM: Final = (0.0, 2.6, 5.1, 7.6, 10.1, 12.6)
"""Tried in turn until two large pieces come apart."""

_LEAST_SHARE = 0.15
_THINNING = 2


def split_left_right(lungs: Mask, spacing_mm: Spacing) -> tuple[Mask, ...]:
    """Take the lungs apart.

    Args:
        lungs: Air of both lungs without airways, (depth, height, width) of a canonical scan.
        spacing_mm: Voxel size.

    Returns:
        Right and left lung, in the order of growing width index (the patient's right comes
        first); or the one lung there is; or nothing where the mask is empty. Together they are
        the mask.
    """
    second = within_box(lungs, lambda part: _second_lung(part, spacing_mm), stride=_THINNING)
    return tuple(lung for lung in (lungs & ~second, second) if lung.any())


def _second_lung(lungs: Mask, spacing_mm: Spacing) -> Mask:
    """The lung of larger width index; empty where only one is found."""
    for radius_mm in EROSIONS_MM:
        cores = _two_cores(erode(lungs, radius_mm, spacing_mm) if radius_mm else lungs)
        if cores is not None:
            return np.asarray(lungs & _nearer_second(cores, spacing_mm))
    return np.zeros_like(lungs)


def _two_cores(eroded: Mask) -> Int[np.ndarray, "depth height width"] | None:
    """The two largest pieces as 1 and 2 by growing width, if both are a fair share."""
    labels, count = ndimage.label(eroded)
    if count < 2:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    pair = np.argsort(-sizes, kind="stable")[:2]
    if sizes[pair[1]] < _LEAST_SHARE * sizes.sum():
        return None
    first, second = sorted(pair, key=lambda label: _mean_column(labels == label))
    cores = np.zeros(eroded.shape, dtype=np.int32)
    cores[labels == first] = 1
    cores[labels == second] = 2
    return cores


def _mean_column(mask: Mask) -> float:
    """Mean index of its voxels along the width."""
    counts = np.count_nonzero(mask, axis=(0, 1))
    return float(counts @ np.arange(counts.size) / counts.sum())


def _nearer_second(cores: Int[np.ndarray, "depth height width"], spacing_mm: Spacing) -> Mask:
    """Where the second core is nearer than the first; on every other voxel, for speed."""
    thinned = cores[::_THINNING, ::_THINNING, ::_THINNING]
    spacing = tuple(_THINNING * step for step in spacing_mm)
    nearest = ndimage.distance_transform_edt(
        thinned == 0, sampling=spacing, return_distances=False, return_indices=True
    )
    second = thinned[tuple(nearest)] == 2
    full = second
    for axis in range(3):
        full = full.repeat(_THINNING, axis=axis)
    depth, height, width = cores.shape
    return np.asarray(np.where(cores > 0, cores == 2, full[:depth, :height, :width]))

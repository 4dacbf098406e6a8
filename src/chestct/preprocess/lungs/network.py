"""A scan as the lungs network sees it: about 4 mm in every direction, values from -1 to 1.

Slices without an image in them (blank ones, or room air alone) never reach the network: at the ends
they are left out, amid the scan their neighbours stand in for them.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Num

from chestct.arrays import Heat
from chestct.preprocess.threads import on_threads
from chestct.volume import Grid, Volume

NETWORK_MM: Final = 4.0
"""Voxel size aimed at; the axis's whole length is divided evenly, so it differs a little."""
NETWORK_HU: Final = (-1024.0, 600.0)
"""Values that become -1 and 1; beyond them nothing tells lung from anything else."""

_BLANK_RANGE_HU = 60.0
"""Averaged to 4 mm, any slice through a body has a larger range, and one of air alone has not."""

_Planes = Float32[np.ndarray, "slices rows columns"]


def lungs_input(volume: Volume) -> tuple[Heat, Grid]:
    """Put a scan on the network's grid: averaged where it is finer, interpolated where coarser.

    Args:
        volume: Canonical scan (depth, height, width) in Hounsfield units.

    Returns:
        Values from -1 to 1, (depth, height, width), and their grid. It covers the scan without the
        blank slices at its ends.
    """
    spacing, (_, height, width) = volume.grid.spacing_mm, volume.grid.shape
    size = (_num_voxels(width, spacing[2]), _num_voxels(height, spacing[1]))
    planes = np.stack(on_threads(lambda plane: _resized(plane, size), volume.voxels))
    live = _live_slices(planes)
    first, last = int(live[0]), int(live[-1])
    weights = _depth_weights(live - first, spacing[0])
    values = np.tensordot(weights, planes[live], axes=1)
    low, high = NETWORK_HU
    values = (values - low) * np.float32(2.0 / (high - low)) - np.float32(1.0)
    num_slices = last - first + 1
    step = tuple(
        old / new for old, new in zip((num_slices, height, width), values.shape, strict=True)
    )
    start = (first + 0.5 * step[0] - 0.5, 0.5 * step[1] - 0.5, 0.5 * step[2] - 0.5)
    return values, volume.grid.moved(start, step, values.shape)


def _num_voxels(size: int, spacing_mm: float) -> int:
    return max(1, round(size * spacing_mm / NETWORK_MM))


def _resized(
    plane: Num[np.ndarray, "height width"], size: tuple[int, int]
) -> Float32[np.ndarray, "rows columns"]:
    """A slice clipped and brought to a size (width, height), linear along axes that grow."""
    clipped = np.clip(plane, *NETWORK_HU).astype(np.float32)
    return np.asarray(cv2.resize(clipped, size, interpolation=cv2.INTER_AREA))


def _live_slices(planes: _Planes) -> Num[np.ndarray, " live"]:
    """Indices of the slices with an image in them; of all slices where none has."""
    has_image: Bool[np.ndarray, " slices"] = np.ptp(planes, axis=(1, 2)) > _BLANK_RANGE_HU
    return np.flatnonzero(has_image) if has_image.any() else np.arange(len(planes))


def _depth_weights(
    live: Num[np.ndarray, " live"], spacing_mm: float
) -> Float32[np.ndarray, "new live"]:
    """Share of each slice with an image in each new one; the first is slice 0.

    An old slice is first interpolated between the nearest ones with an image, then new ones are
    means of the old where these are thinner, and interpolated between them where thicker.
    """
    num_slices = int(live[-1]) + 1
    num_new = _num_voxels(num_slices, spacing_mm)
    step = num_slices / num_new
    if step > 1.0:
        edges = np.clip(
            step * np.arange(num_new + 1)[:, None], np.arange(num_slices), np.arange(num_slices) + 1
        )
        of_slices = np.diff(edges, axis=0) / step
    else:
        of_slices = _interpolation(step * (np.arange(num_new) + 0.5) - 0.5, np.arange(num_slices))
    weights = of_slices @ _interpolation(np.arange(num_slices), live)
    return np.asarray(weights, dtype=np.float32)


def _interpolation(
    positions: Num[np.ndarray, " wanted"], known: Num[np.ndarray, " known"]
) -> Num[np.ndarray, "wanted known"]:
    """Weights of linear interpolation; beyond the ends the end holds."""
    return np.stack([np.interp(positions, known, row) for row in np.eye(len(known))], axis=1)

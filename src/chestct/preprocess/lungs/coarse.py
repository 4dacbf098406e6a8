"""A coarse copy of a scan, for everything about shape and connection, and the way back.

Lungs are large: which air is lung is decided on voxels of about 2.5 mm, some ten times fewer
than the scan's own; only the last step, where exactly the surface runs, looks at every voxel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Num

from chestct.arrays import Shape, Spacing, Voxels
from chestct.preprocess.threads import on_threads
from chestct.volume import AIR_HU, Volume

COARSE_MM: Final = 2.5
"""Voxel size aimed at. A finer axis is averaged down to about this, a coarser one stays."""

# Real air is noisy: that a pixel has the least value in this many slices means it is padding.
_MIN_SLICES_FOR_CONSTANT = 8


@dataclass(frozen=True, eq=False)
class CoarseScan:
    """A scan averaged down.

    Attributes:
        hu: Mean Hounsfield units, air at the least, (depth, height, width).
        spacing_mm: Size of its voxels along (depth, height, width).
        depth_step: Number of the scan's slices in one coarse slice (the last may have fewer).
        full_shape: Shape of the scan.
        padding: Voxels with none of the scanner's data in some part of them, in every slice.
        full_padding: The same on the scan's own pixels, where no slice has data.
    """

    hu: Voxels
    spacing_mm: Spacing
    depth_step: int
    full_shape: Shape
    padding: Bool[np.ndarray, "height width"]
    full_padding: Bool[np.ndarray, "rows columns"]

    def volume_ml(self, num_voxels: float) -> float:
        """Volume of a number of coarse voxels in millilitres."""
        return float(num_voxels * np.prod(self.spacing_mm) / 1000.0)


def coarsen(volume: Volume) -> CoarseScan:
    """Average a canonical scan down to voxels of about `COARSE_MM`."""
    voxels, spacing = volume.voxels, volume.grid.spacing_mm
    depth, height, width = voxels.shape
    rows, columns = (
        max(1, min(n, round(n * step / COARSE_MM)))
        for n, step in zip((height, width), spacing[1:], strict=True)
    )
    step = max(1, min(depth, int(COARSE_MM / spacing[0] + 1e-6)))
    size = (columns, rows)
    planes = np.stack(
        on_threads(lambda p: cv2.resize(_plane(p), size, interpolation=cv2.INTER_AREA), voxels)
    )
    padding = _padding(voxels)
    padded_share = cv2.resize(padding.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    starts = np.arange(0, depth, step)
    if step > 1:
        counts = np.diff(np.append(starts, depth)).astype(np.float32)
        planes = np.add.reduceat(planes, starts, axis=0, dtype=np.float32)
        planes = planes / counts[:, None, None]
    return CoarseScan(
        hu=np.maximum(planes, AIR_HU).astype(np.int16),
        spacing_mm=(spacing[0] * step, spacing[1] * height / rows, spacing[2] * width / columns),
        depth_step=step,
        full_shape=volume.grid.shape,
        padding=np.asarray(padded_share > 0),
        full_padding=padding,
    )


def enlarge_slice(
    values: Num[np.ndarray, "depth height width"], scan: CoarseScan, index: int
) -> Float32[np.ndarray, "rows columns"]:
    """One slice of the full grid, interpolated linearly from values on the coarse grid.

    Args:
        values: Values on the coarse grid.
        scan: The coarse scan they belong to.
        index: Wanted slice of the scan.
    """
    step = scan.depth_step
    last = values.shape[0] - 1
    position = min(max((index - (step - 1) / 2) / step, 0.0), float(last))
    below = min(int(position), max(last - 1, 0))
    share = np.float32(position - below)
    plane = values[below].astype(np.float32)
    if share > 0:
        plane += share * (values[below + 1].astype(np.float32) - plane)
    size = (scan.full_shape[2], scan.full_shape[1])
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR))


def _plane(plane: Num[np.ndarray, "height width"]) -> Num[np.ndarray, "height width"]:
    """One slice in a type OpenCV averages, what is below air (padding) raised to air."""
    known = plane.dtype in (np.int16, np.float32)
    return np.asarray(np.maximum(plane if known else plane.astype(np.float32), AIR_HU))


def _padding(voxels: Voxels) -> Bool[np.ndarray, "height width"]:
    """Where no slice has data: below air throughout, or the scan's least value throughout."""
    highest = voxels.max(axis=0)
    if voxels.shape[0] < _MIN_SLICES_FOR_CONSTANT:
        return np.asarray(highest < AIR_HU)
    return np.asarray((highest < AIR_HU) | (highest == voxels.min()))

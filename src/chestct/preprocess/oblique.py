"""Scans whose axes do not follow the body's: put upright for the preparation, and the way back.

A stack cut at 20 degrees shows no network what it learned. Beyond `MAX_DEGREES` a scan is
interpolated onto axes to the head, to the back and to the left; results go back to its own voxels.
"""

from __future__ import annotations

import itertools
import math
from typing import Final

import numpy as np
from jaxtyping import Float64
from scipy import ndimage

from chestct.arrays import Shape, Voxels
from chestct.preprocess.threads import on_threads
from chestct.volume import (
    AIR_HU,
    CANONICAL_DIRECTION,
    Grid,
    Volume,
    canonical_axes,
    canonical_grid,
    to_canonical,
)

MAX_DEGREES: Final = 5.0
"""Turn of a scan's axes against the body's that is left as it is: patients lie no straighter."""

_MOST_GROWTH = 2.0
"""Voxels of the upright scan, which holds air in its corners, to those of the scan itself."""


def degrees_off(grid: Grid) -> float:
    """Largest angle between an axis of the body and the grid's axis that is closest to it."""
    order, _ = canonical_axes(grid)
    axes = np.asarray(grid.direction)[list(order)]
    closeness = np.abs(np.sum(axes * np.asarray(CANONICAL_DIRECTION), axis=1))
    return math.degrees(math.acos(float(closeness.min().clip(-1.0, 1.0))))


def body_grid(grid: Grid) -> Grid:
    """The grid a scan is prepared on: to the head, to the back, to the left.

    That of `to_canonical` up to `MAX_DEGREES`. Beyond, one along the body's own axes that holds
    the scan whole, each axis with the spacing of the scan's closest one; or coarser, where there
    would be more than twice the scan's voxels.
    """
    turned = canonical_grid(grid)
    if degrees_off(grid) <= MAX_DEGREES:
        return turned
    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in turned.shape))))
    # Patient x, y, z turned round: depth, height, width.
    places = turned.to_patient(corners)[:, ::-1]
    low, extent = places.min(axis=0), np.ptp(places, axis=0)
    spacing = np.asarray(turned.spacing_mm)
    spacing *= max(1.0, float(np.prod(extent / spacing)) / (_MOST_GROWTH * turned.num_voxels)) ** (
        1 / 3
    )
    shape = np.maximum(1, np.floor(extent / spacing + 0.5)).astype(int).tolist()
    x, y, z = (low + (extent - (np.array(shape) - 1) * spacing) / 2)[::-1].tolist()
    depth_mm, height_mm, width_mm = spacing.tolist()
    return Grid(
        shape=(shape[0], shape[1], shape[2]),
        spacing_mm=(depth_mm, height_mm, width_mm),
        origin_mm=(x, y, z),
    )


def on_body(volume: Volume, beyond: float | None = None) -> Volume:
    """A scan, or anything on its voxels, on the `body_grid` of its grid.

    A view of the voxels where axes need but be exchanged or reversed, else interpolated linearly.

    Args:
        volume: The scan, a mask or a map.
        beyond: Value where there is no scan; None: air, false in masks, and the lowest value where
            there are no Hounsfield units.
    """
    if degrees_off(volume.grid) <= MAX_DEGREES:
        return to_canonical(volume)
    wanted = body_grid(volume.grid)
    filler = _beyond(volume) if beyond is None else beyond
    return volume.with_voxels(interpolated(volume, wanted, filler), wanted)


def slices_follow_body(grid: Grid) -> bool:
    """Whether each slice of a scan is a slice across the body, so that both count the same."""
    return canonical_axes(grid)[0][0] == 0 and degrees_off(grid) <= MAX_DEGREES


def interpolated(volume: Volume, grid: Grid, beyond: float) -> Voxels:
    """Voxels at the places of another grid of the same patient, linearly, in the volume's type.

    A mask is true where at least half is. Beyond the volume it is `beyond`.
    """
    values = volume.voxels
    is_mask = values.dtype == np.bool_
    source = values.view(np.uint8) if is_mask else values
    result = np.empty(grid.shape, dtype=values.dtype)
    matrix, offset = index_map(grid, volume.grid)
    plane_shape: Shape = (1, grid.shape[1], grid.shape[2])

    def fill(index: int) -> None:
        """One slice; slices do not overlap, so threads need no lock."""
        plane = np.empty(plane_shape, dtype=np.float32 if is_mask else values.dtype)
        ndimage.affine_transform(
            source,
            matrix,
            offset + index * matrix[:, 0],
            output=plane,
            output_shape=plane_shape,
            order=1,
            mode="constant",
            cval=beyond,
        )
        result[index] = plane[0] >= 0.5 if is_mask else plane[0]

    on_threads(fill, range(grid.shape[0]))
    return result


def index_map(
    source: Grid, target: Grid
) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, " 3"]]:
    """Matrix and offset that take indices of one grid to those of another at the same place."""
    both = target.patient_to_index @ source.index_to_patient
    return both[:3, :3], both[:3, 3]


def _beyond(volume: Volume) -> float:
    if volume.voxels.dtype == np.bool_:
        return 0.0
    return float(AIR_HU) if volume.unit == "HU" else float(volume.voxels.min())

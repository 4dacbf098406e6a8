"""Both lungs whole, in three dimensions: what `chestct` itself uses.

Air enclosed by the body, without trachea and main bronchi; right and left told apart; vessels,
nodules and small consolidation closed over; airless lung at the chest wall recovered; the
surface drawn on the scan's own voxels. Deterministic, no trained part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from chestct.arrays import Mask, Voxels
from chestct.errors import RecipeError
from chestct.preprocess.lungs.airways import find_airways
from chestct.preprocess.lungs.candidates import AERATED_BELOW_HU, find_lung_air
from chestct.preprocess.lungs.coarse import CoarseScan, coarsen, enlarge_slice
from chestct.preprocess.lungs.consolidation import recover_consolidation
from chestct.preprocess.lungs.morphology import closing, dilate, erode, opening
from chestct.preprocess.lungs.sides import split_left_right
from chestct.preprocess.masks import within_box
from chestct.preprocess.threads import on_threads
from chestct.volume import Volume

CLOSING_MM: Final = 8.0
"""Radius of the ball that closes over vessels and nodules."""
AIRWAY_WALL_MM: Final = 2.6
MAIN_BRONCHUS_MM: Final = 3.0
"""Radius above which an airway is left out although lung lies all around it."""

_LEAST_PIECE_SHARE = 0.002
_LARGEST_HOLE_ML = 600.0


@dataclass(frozen=True, eq=False)
class CoarseLungs:
    """Lungs on the coarse grid, in the three parts the final surface is drawn from.

    Attributes:
        core: Certainly lung: the lungs less their outermost voxels.
        rim: The lungs and one voxel around them; there, voxels as thin as lung count.
        dense: Lung that is not aerated, to be kept although it is dense.
        airways: Trachea and main bronchi with their walls, to be left out.
    """

    core: Mask
    rim: Mask
    dense: Mask
    airways: Mask


def segment_recommended(volume: Volume) -> Mask:
    """Segment both lungs.

    Args:
        volume: Canonical scan in Hounsfield units; any spacing, any field of view.

    Returns:
        Mask on the volume's grid, (depth, height, width); empty where no lungs are found.

    Raises:
        RecipeError: The volume is not in Hounsfield units.
    """
    if volume.unit != "HU":
        msg = (
            f"The lung method 'recommended' needs a scan in Hounsfield units, and this one is "
            f"{volume.unit}. Use a recipe with the method 'published', or the original scan."
        )
        raise RecipeError(msg)
    scan = coarsen(volume)
    lungs = find_coarse_lungs(scan)
    if lungs is None:
        return np.zeros(volume.grid.shape, dtype=np.bool_)
    return _draw_surface(volume.voxels, scan, lungs)


def find_coarse_lungs(scan: CoarseScan) -> CoarseLungs | None:
    """Lungs on the coarse grid; None where there are none."""
    air = find_lung_air(scan)
    if not air.lungs.any():
        return None
    voxel_mm = 1.01 * max(scan.spacing_mm[1:])
    wall_mm = max(AIRWAY_WALL_MM, voxel_mm)
    lumen = find_airways(scan, air.lungs, air.enclosed)
    aerated = air.lungs & ~dilate(lumen, wall_mm, scan.spacing_mm)
    aerated = within_box(aerated, _without_crumbs)
    sides = on_threads(
        lambda side: closing(side, CLOSING_MM, scan.spacing_mm),
        split_left_right(aerated, scan.spacing_mm),
    )
    lungs = np.logical_or.reduce(sides)
    if len(sides) == 2:
        lungs |= recover_consolidation(scan, *sides)
    # With one voxel more on each side, all that is outside touches the box's faces.
    largest = _LARGEST_HOLE_ML / scan.volume_ml(1)
    lungs = within_box(lungs, lambda part: _without_holes(part, largest), (1, 1, 1))
    wide = opening(lumen, MAIN_BRONCHUS_MM, scan.spacing_mm)
    airways = dilate(wide, wall_mm, scan.spacing_mm)
    lungs &= ~airways
    return CoarseLungs(
        core=erode(lungs, voxel_mm, scan.spacing_mm),
        rim=dilate(lungs, voxel_mm, scan.spacing_mm),
        dense=lungs & ~aerated,
        airways=airways,
    )


def _without_crumbs(aerated: Mask) -> Mask:
    """Drop what the airways' removal has cut off: pieces far smaller than a lung."""
    labels, _ = ndimage.label(aerated)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    is_kept = sizes >= max(1.0, _LEAST_PIECE_SHARE * sizes.sum())
    return np.asarray(is_kept[labels])


def _without_holes(lungs: Mask, largest: float) -> Mask:
    """Fill what lung encloses on all sides, such as a mass; not what reaches the array's edge.

    Args:
        lungs: Both lungs.
        largest: Voxels that a hole has at most.
    """
    labels, _ = ndimage.label(~lungs)
    sizes = np.bincount(labels.ravel())
    is_hole = sizes < largest
    for axis in range(3):
        for end in (0, -1):
            is_hole[np.unique(labels.take(end, axis=axis))] = False
    is_hole[0] = True
    return np.asarray(is_hole[labels])


def _draw_surface(voxels: Voxels, scan: CoarseScan, lungs: CoarseLungs) -> Mask:
    """The lungs on the scan's own grid, slice by slice."""
    mask = np.empty(voxels.shape, dtype=np.bool_)

    def draw(index: int) -> None:
        """Write one slice of the mask; slices do not overlap, so threads need no lock."""
        core, rim, dense, airways = (
            enlarge_slice(part.view(np.uint8), scan, index) >= 0.5
            for part in (lungs.core, lungs.rim, lungs.dense, lungs.airways)
        )
        is_aerated = (voxels[index] < AERATED_BELOW_HU) & rim & ~airways
        mask[index] = (core | dense | is_aerated) & ~scan.full_padding

    on_threads(draw, range(voxels.shape[0]))
    return mask

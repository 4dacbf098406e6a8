"""Airless lung at the chest wall, recovered from what lies around it.

Consolidation is as dense as muscle, so no threshold finds it. Anatomy helps: inside the ribs
nothing lies outward of lung. Seen from between the lungs, along rays in the slice,

* dense tissue between aerated lung and the ribs is airless lung (or fluid beside it);
* a direction with no lung at all, but with lung above and below it, is airless lung;
* so is one with a broad lung above, abruptly ending, and lung in the mirrored direction of the
  other side: a consolidated lower lobe. The lung's own lower edge tapers, and does not qualify.

What a healthy diaphragm, heart or thick fatty wall looks like along these rays fits none of
the three. Where both lower lobes are airless down to the diaphragm, no rule finds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int
from scipy import ndimage

from chestct.arrays import Mask, Voxels
from chestct.preprocess.lungs.coarse import CoarseScan
from chestct.preprocess.lungs.morphology import closing, dilate, opening

NUM_RAYS: Final = 120
RAY_STEP_MM: Final = 2.5
RAY_LENGTH_MM: Final = 230.0
BONE_ABOVE_HU: Final = 180
SOFT_HU: Final = (-400, 180)
FAT_HU: Final = (-160, -30)
LEAST_GAP_MM: Final = 9.0
"""Pleura and muscle between lung and ribs stay below this."""

LEAST_SECTOR_MM: Final = 7.5
"""Radius of a ball that fits into what one missing direction can hold by chance."""
DENT_MM: Final = (4.0, 30.0)
"""Depths of a dent in a lung's outer surface that are taken for airless lung."""

_RIB_SPAN_MM = 12.0
_WALL_MM = 2.5
_BROAD_MM = 30.0
_LONGEST_MM = 150.0
_FRONT_SINE = -0.1
_ASIDE_COSINE = 0.25
_ASIDE_IN_FRONT = 0.6
_ASIDE_BEHIND = 0.1
_CARTILAGE_SINE = -0.5
_LIVER_SINE = 0.35
_LEAST_REACH = 0.4
_APEX_SHARE = 0.5

_ANGLES = np.arange(NUM_RAYS) * (2 * np.pi / NUM_RAYS)
# Rays to the front and back meet the heart and the spine.
_IS_ASIDE = np.abs(np.cos(_ANGLES)) > _ASIDE_COSINE

_Rays = Float32[np.ndarray, "depth ray"]


@dataclass(frozen=True, eq=False)
class _Fan:
    """Rays from one point of every slice.

    Attributes:
        rows: Row index of each sample, (ray, sample).
        columns: Column index of each sample.
        ray: Nearest ray of each voxel of the slice, (height, width).
        radius_mm: Distance of each voxel of the slice from the centre.
    """

    rows: Float32[np.ndarray, "ray sample"]
    columns: Float32[np.ndarray, "ray sample"]
    ray: Int[np.ndarray, "height width"]
    radius_mm: Float32[np.ndarray, "height width"]

    def sample(self, values: Mask) -> Bool[np.ndarray, "depth ray sample"]:
        """Values along the rays, nearest voxel, False outside the slice."""
        planes = [
            cv2.remap(plane, self.columns, self.rows, cv2.INTER_NEAREST)
            for plane in values.view(np.uint8)
        ]
        return np.stack(planes).view(np.bool_)

    def between(self, inner: _Rays, outer: _Rays) -> Mask:
        """Voxels that lie on their ray from `inner` to `outer` (mm); none where inner is inf."""
        return np.stack(
            [
                (self.radius_mm >= low[self.ray]) & (self.radius_mm <= high[self.ray])
                for low, high in zip(inner, outer, strict=True)
            ]
        )


def recover_consolidation(scan: CoarseScan, right: Mask, left: Mask) -> Mask:
    """Airless lung at the chest wall, beyond the lungs given.

    Args:
        scan: Coarse scan.
        right: One lung, gaps of vessels already closed.
        left: The other.

    Returns:
        What to add, on the coarse grid.
    """
    lungs = right | left
    fan = _fan(scan, right, left)
    is_soft = _soft_tissue(scan.hu)
    _, outer = _reach(fan.sample(lungs))
    wall = _rib_cage(fan.sample(scan.hu > BONE_ABOVE_HU), outer, scan.spacing_mm[0])
    low, high = _outward(outer, wall)
    low[_shoulder_level(lungs) :] = np.inf
    found = fan.between(low, high) & is_soft
    found &= opening(lungs | found, LEAST_GAP_MM / 2, scan.spacing_mm)
    inner, outer = _reach(fan.sample(lungs | found))
    low, high = _missing_sectors(inner, outer, scan.spacing_mm[0])
    found |= fan.between(low, np.minimum(high, wall)) & is_soft
    found &= opening(lungs | found, LEAST_SECTOR_MM, scan.spacing_mm)
    found |= _dents(fan, scan, right, left) | _between_patches(lungs, found, scan)
    return np.asarray(found & ~lungs)


def _between_patches(lungs: Mask, found: Mask, scan: CoarseScan) -> Mask:
    """Dense tissue in the gaps between the pieces found, and between them and the lungs."""
    if not found.any():
        return found
    near = dilate(found, LEAST_SECTOR_MM, scan.spacing_mm) & (scan.hu < SOFT_HU[1])
    return closing(lungs | found, LEAST_SECTOR_MM, scan.spacing_mm) & near


def _fan(scan: CoarseScan, right: Mask, left: Mask) -> _Fan:
    """Rays around the point midway between the two lungs' centres."""
    _, rows_mm, columns_mm = scan.spacing_mm
    centres = [np.argwhere(lung.any(axis=0)).mean(axis=0) for lung in (right, left)]
    row, column = (centres[0] + centres[1]) / 2
    radius = np.arange(0, RAY_LENGTH_MM, RAY_STEP_MM)
    y, x = np.ogrid[: scan.hu.shape[1], : scan.hu.shape[2]]
    y_mm, x_mm = (y - row) * rows_mm, (x - column) * columns_mm
    nearest = np.round(np.arctan2(y_mm, x_mm) * (NUM_RAYS / (2 * np.pi))).astype(np.intp)
    return _Fan(
        rows=(row + np.outer(np.sin(_ANGLES), radius) / rows_mm).astype(np.float32),
        columns=(column + np.outer(np.cos(_ANGLES), radius) / columns_mm).astype(np.float32),
        ray=nearest % NUM_RAYS,
        radius_mm=np.hypot(y_mm, x_mm).astype(np.float32),
    )


def _reach(on_rays: Bool[np.ndarray, "depth ray sample"]) -> tuple[_Rays, _Rays]:
    """First and last hit of each ray in mm; inf and -inf where there is none."""
    is_hit = on_rays.any(axis=2)
    first = on_rays.argmax(axis=2) * RAY_STEP_MM
    last = (on_rays.shape[2] - 1 - on_rays[:, :, ::-1].argmax(axis=2)) * RAY_STEP_MM
    return (
        np.where(is_hit, first, np.inf).astype(np.float32),
        np.where(is_hit, last, -np.inf).astype(np.float32),
    )


def _rib_cage(bone: Bool[np.ndarray, "depth ray sample"], outer: _Rays, slice_mm: float) -> _Rays:
    """Inner surface of the ribs along each ray, in mm; -inf where no bone is met.

    Ribs cross the slices aslant: between two of them, those of the slices around count.
    """
    radius = np.arange(bone.shape[2]) * np.float32(RAY_STEP_MM)
    beyond = bone & (radius >= outer[:, :, None] - RAY_STEP_MM) & (radius > _BROAD_MM)
    first, _ = _reach(beyond)
    slices = 2 * int(_RIB_SPAN_MM / slice_mm) + 1
    nearest = ndimage.minimum_filter(first, size=(slices, 3), mode=("nearest", "wrap"))
    return np.where(np.isfinite(nearest), nearest - _WALL_MM, -np.inf).astype(np.float32)


def _soft_tissue(hu: Voxels) -> Mask:
    """Dense tissue that is neither fat nor bone."""
    smooth = ndimage.uniform_filter(hu, size=(1, 3, 3))
    is_fat = (smooth > FAT_HU[0]) & (smooth < FAT_HU[1])
    return np.asarray((hu > SOFT_HU[0]) & (smooth < SOFT_HU[1]) & ~is_fat)


def _outward(outer: _Rays, wall: _Rays) -> tuple[_Rays, _Rays]:
    """From the outermost lung to the ribs, where they are further apart than pleura and muscle.

    In front, where cartilage hides the ribs' ends, and where only the tip of the lung behind the
    liver lies on the ray, what is outward proves nothing.
    """
    is_wide = np.isfinite(outer) & (wall > outer + LEAST_GAP_MM) & _IS_ASIDE
    is_wide &= np.sin(_ANGLES) > _CARTILAGE_SINE
    is_wide &= (np.sin(_ANGLES) > _LIVER_SINE) | (outer > _LEAST_REACH * wall)
    return np.where(is_wide, outer, np.inf).astype(np.float32), wall


def _shoulder_level(lungs: Mask) -> int:
    """First slice of the apices, where shoulder blades and arms stand in for ribs."""
    areas = np.count_nonzero(lungs, axis=(1, 2))
    return int(np.flatnonzero(areas >= _APEX_SHARE * areas.max())[-1]) + 1


def _dents(fan: _Fan, scan: CoarseScan, right: Mask, left: Mask) -> Mask:
    """Dense tissue in dents of the lungs' outer surface: the pleura itself has none."""
    lungs = right | left
    _, outer = _reach(fan.sample(lungs))
    _, hull = _reach(fan.sample(_hulls(right) | _hulls(left)))
    is_shallow = np.isfinite(outer) & (hull <= outer + DENT_MM[1])
    is_deep = is_shallow & (hull > outer + DENT_MM[0])
    # The flat edges of a dent belong to it; flat stretches elsewhere are the hull's own chords.
    near_deep = ndimage.maximum_filter(is_deep, size=(3, 7), mode=("nearest", "wrap"))
    is_dent = is_shallow & near_deep & _IS_ASIDE
    is_dent &= (np.sin(_ANGLES) > _CARTILAGE_SINE) | (np.abs(np.cos(_ANGLES)) > _ASIDE_IN_FRONT)
    low = np.where(is_dent, outer, np.inf).astype(np.float32)
    dents = fan.between(low, hull) & (scan.hu < SOFT_HU[1])
    # A ball that just reaches the neighbouring voxels takes single ones off again.
    return opening(lungs | dents, 1.01 * max(scan.spacing_mm[1:]), scan.spacing_mm)


def _hulls(lung: Mask) -> Mask:
    """The convex hull of one lung in each slice: where dents in its outer surface come to lie."""
    hulls = np.zeros(lung.shape, dtype=np.uint8)
    # A row's first and last voxel span its others.
    first, last = lung.argmax(axis=2), lung.shape[2] - 1 - lung[:, :, ::-1].argmax(axis=2)
    is_filled = np.any(lung, axis=2)
    for i in np.flatnonzero(np.any(is_filled, axis=1)):
        rows = np.flatnonzero(is_filled[i])
        ends = [np.stack([columns[i, rows], rows], axis=1) for columns in (first, last)]
        cv2.fillConvexPoly(hulls[i], cv2.convexHull(np.concatenate(ends).astype(np.int32)), 1)
    return hulls.view(np.bool_)


def _missing_sectors(inner: _Rays, outer: _Rays, slice_mm: float) -> tuple[_Rays, _Rays]:
    """Where lung should be along rays that meet none; inf and -inf where nothing is missing."""
    depth = inner.shape[0]
    index = np.arange(depth)[:, None]
    has_lung = np.isfinite(inner)
    below = np.maximum.accumulate(np.where(has_lung, index, -1), axis=0)
    above = np.minimum.accumulate(np.where(has_lung, index, depth)[::-1], axis=0)[::-1]
    is_behind = (np.sin(_ANGLES) > _FRONT_SINE) & (np.abs(np.cos(_ANGLES)) > _ASIDE_BEHIND)
    is_broad = _thickness(inner, outer, above) >= _BROAD_MM
    is_missing = ~has_lung & is_behind & (above < depth) & is_broad
    is_missing &= (above - index) * slice_mm <= _LONGEST_MM
    above_inner, above_outer = _at(inner, above), _at(outer, above)

    low = np.full(inner.shape, np.inf, dtype=np.float32)
    high = np.full(inner.shape, -np.inf, dtype=np.float32)
    is_between = is_missing & (below >= 0) & ((above - below) * slice_mm <= _LONGEST_MM)
    share = ((index - below) / np.maximum(above - below, 1)).astype(np.float32)
    for target, values, from_above in ((low, inner, above_inner), (high, outer, above_outer)):
        from_below = _at(values, below)
        mixed = from_below[is_between] * (1 - share[is_between])
        target[is_between] = mixed + from_above[is_between] * share[is_between]

    mirrored = (NUM_RAYS // 2 - np.arange(NUM_RAYS)) % NUM_RAYS
    is_lost = is_missing & ~is_between & has_lung[:, mirrored]
    low[is_lost] = np.maximum(above_inner, inner[:, mirrored])[is_lost]
    high[is_lost] = np.minimum(above_outer, outer[:, mirrored])[is_lost]
    return low, high


def _at(values: _Rays, depths: Int[np.ndarray, "depth ray"]) -> _Rays:
    """Each ray's value in another slice; indices off the end are cut off."""
    return np.take_along_axis(values, depths.clip(0, values.shape[0] - 1), axis=0)


def _thickness(inner: _Rays, outer: _Rays, depths: Int[np.ndarray, "depth ray"]) -> _Rays:
    """Extent of the lung along each ray in other slices; -inf or nothing where there is none."""
    return np.asarray(_at(outer, depths) - _at(inner, depths))

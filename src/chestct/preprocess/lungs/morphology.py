"""Binary morphology with balls measured in millimetres, on grids of any spacing.

A ball is taken apart into discs, one per slice it reaches; discs run through OpenCV. That is
some twenty times faster than `scipy.ndimage` with the same ball.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8

from chestct.arrays import Mask, Spacing
from chestct.preprocess.masks import within_box


def dilate(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """Every voxel within `radius_mm` of the mask (voxel centre to voxel centre)."""
    return within_box(
        mask, lambda part: _dilate(part, radius_mm, spacing_mm), _reach(radius_mm, spacing_mm)
    )


def erode(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """What stays of the mask when the rest grows by `radius_mm`; the array's edge does not grow."""
    return within_box(
        mask, lambda part: ~_dilate(~part, radius_mm, spacing_mm), _reach(radius_mm, spacing_mm)
    )


def opening(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """The parts of the mask into which a ball of the radius fits."""
    return dilate(erode(mask, radius_mm, spacing_mm), radius_mm, spacing_mm)


def closing(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    """The mask and every gap into which no ball of the radius fits.

    Beyond its edges the array is taken to go on as it ends, so that lung cut off by the edge of
    an image has its vessels closed like any other.
    """
    reach = [n + 1 for n in _reach(radius_mm, spacing_mm)]
    padded = np.pad(mask, [(n, n) for n in reach], mode="edge")
    closed = erode(dilate(padded, radius_mm, spacing_mm), radius_mm, spacing_mm)
    inner = tuple(slice(n, n + size) for n, size in zip(reach, mask.shape, strict=True))
    return np.ascontiguousarray(closed[inner])


def _dilate(mask: Mask, radius_mm: float, spacing_mm: Spacing) -> Mask:
    grown = mask.copy()
    filled = np.flatnonzero(np.any(mask, axis=(1, 2)))
    depth = mask.shape[0]
    for offset, disc in enumerate(_discs(radius_mm, spacing_mm)[:depth]):
        for i in filled:
            widened = cv2.dilate(mask[i].view(np.uint8), disc).view(np.bool_)
            for j in {i - offset, i + offset}:
                if 0 <= j < depth:
                    grown[j] |= widened
    return grown


def _reach(radius_mm: float, spacing_mm: Spacing) -> tuple[int, int, int]:
    """The voxels along (depth, height, width) that lie within the radius."""
    depth, height, width = (int(radius_mm // step) for step in spacing_mm)
    return depth, height, width


def _discs(radius_mm: float, spacing_mm: Spacing) -> list[UInt8[np.ndarray, "height width"]]:
    """Cross-sections of a ball, the widest first, one per slice away from its centre."""
    discs = []
    for offset in range(int(radius_mm // spacing_mm[0]) + 1):
        left_mm2 = radius_mm**2 - (offset * spacing_mm[0]) ** 2
        reach_y, reach_x = (int(left_mm2**0.5 // step) for step in spacing_mm[1:])
        y, x = np.ogrid[-reach_y : reach_y + 1, -reach_x : reach_x + 1]
        inside = (y * spacing_mm[1]) ** 2 + (x * spacing_mm[2]) ** 2 <= left_mm2
        discs.append(inside.astype(np.uint8))
    return discs

"""The clean-up both forms of the RoI paper share: threshold, clear the border, fill the holes.

The published script loops over slices, each a problem of its own, so slices are shared out over
threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Num

from chestct.arrays import Mask, Voxels
from chestct.preprocess.contrast import StretchLimits
from chestct.preprocess.threads import on_threads

KEPT_ABOVE: Final = 0.50196
"""Stretched values above this are tissue: 128/255, rounded as in the published script."""


def dark_enclosed_regions(
    voxels: Voxels, limits: Sequence[StretchLimits], kept_above: float = KEPT_ABOVE
) -> Mask:
    """What is dark and does not touch the slice border, with its holes filled, slice by slice.

    Args:
        voxels: Canonical scan, (depth, height, width).
        limits: Contrast limits of each slice, in the scan's unit.
        kept_above: Threshold on the stretched values; at or below it a pixel is dark.

    Returns:
        Mask of the scan's shape.
    """
    mask = np.empty(voxels.shape, dtype=np.bool_)

    def find(index: int) -> None:
        """Write one slice of the mask."""
        mask[index] = _dark_enclosed_region(voxels[index], limits[index], kept_above)

    on_threads(find, range(voxels.shape[0]))
    return mask


def _dark_enclosed_region(
    plane: Num[np.ndarray, "height width"], limits: StretchLimits, kept_above: float
) -> Bool[np.ndarray, "height width"]:
    """One slice of `dark_enclosed_regions`.

    A frame of one pixel joins everything at the border, so that one flood from a corner does
    the work of `imclearborder` (8-connected) and a second that of `imfill` (4-connected
    background), MATLAB's defaults in two dimensions.
    """
    threshold = limits.low + kept_above * (limits.high - limits.low)
    framed = np.ones((plane.shape[0] + 2, plane.shape[1] + 2), dtype=np.uint8)
    np.less_equal(plane, threshold, out=framed[1:-1, 1:-1].view(np.bool_))
    cv2.floodFill(framed, None, (0, 0), 0, flags=8)
    outside = 2
    cv2.floodFill(framed, None, (0, 0), outside, flags=4)
    return np.asarray(framed[1:-1, 1:-1] != outside)

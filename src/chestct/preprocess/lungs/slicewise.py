"""Lungs slice by slice, as the RoI-aware 3D ResNet paper's script and its text have them.

Both threshold each slice, clear its border and fill the holes. The script is kept for reproducing
that work, faults included: trachea and bowel gas enclosed by tissue count as lung, dense
consolidation at the chest wall does not, and lungs that touch the edge of the image vanish.

What we take as the difference: the text scales "the volume" and saturates its top and bottom
1 %, naming no slices, so here one pair of contrast limits is taken from the whole scan. The
script takes a pair from each slice, which moves the effective threshold along a scan by some
200 HU (P001: from -401 to -182 HU; here -304 throughout).

What the text leaves open is taken from the script: the threshold (text: "a threshold"), and that
the clean-up (invert, clear the border, fill the holes, in this order) works in two dimensions.
In three, clearing the border would remove both lungs of every scan whose trachea reaches the
first slice. The script loops over slices, each a problem of its own, so they are shared out over
threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Num

from chestct.arrays import Mask, Voxels
from chestct.preprocess.contrast import (
    StretchLimits,
    saturation_limits,
    slice_limits,
    volume_limits,
)
from chestct.preprocess.threads import on_threads
from chestct.volume import Volume

_KEPT_ABOVE: Final = 0.50196
"""Stretched values above this are tissue: 128/255, rounded as in the published script."""


def segment_published(volume: Volume) -> Mask:
    """Segment slice by slice as the published script does.

    Scan scaled to [0, 1]; each slice stretched so that 1 % of its pixels saturate at each end;
    pixels above 0.50196 kept and the slice inverted; objects touching the border cleared; holes
    filled. The first step is affine and cancels out of the rest.

    Args:
        volume: Canonical scan, any unit.

    Returns:
        Lung mask on the volume's grid, (depth, height, width).
    """
    return _dark_enclosed_regions(volume.voxels, slice_limits(volume.voxels))


def segment_paper(volume: Volume) -> Mask:
    """Segment slice by slice as the text has it, with contrast limits of the whole scan.

    Args:
        volume: Canonical scan, any unit.

    Returns:
        Lung mask on the volume's grid, (depth, height, width).
    """
    voxels = volume.voxels
    limits = saturation_limits(voxels, full_range=volume_limits(voxels))
    return _dark_enclosed_regions(voxels, [limits] * voxels.shape[0])


def _dark_enclosed_regions(voxels: Voxels, limits: Sequence[StretchLimits]) -> Mask:
    """What is dark and does not touch the slice border, with its holes filled, slice by slice."""
    mask = np.empty(voxels.shape, dtype=np.bool_)

    def find(index: int) -> None:
        """Write one slice of the mask."""
        mask[index] = _dark_enclosed_region(voxels[index], limits[index])

    on_threads(find, range(voxels.shape[0]))
    return mask


def _dark_enclosed_region(
    plane: Num[np.ndarray, "height width"], limits: StretchLimits
) -> Bool[np.ndarray, "height width"]:
    """One slice of `_dark_enclosed_regions`.

    A frame of one pixel joins everything at the border, so that one flood from a corner does
    the work of `imclearborder` (8-connected) and a second that of `imfill` (4-connected
    background), MATLAB's defaults in two dimensions.
    """
    threshold = limits.low + _KEPT_ABOVE * (limits.high - limits.low)
    framed = np.ones((plane.shape[0] + 2, plane.shape[1] + 2), dtype=np.uint8)
    np.less_equal(plane, threshold, out=framed[1:-1, 1:-1].view(np.bool_))
    cv2.floodFill(framed, None, (0, 0), 0, flags=8)
    outside = 2
    cv2.floodFill(framed, None, (0, 0), outside, flags=4)
    return np.asarray(framed[1:-1, 1:-1] != outside)

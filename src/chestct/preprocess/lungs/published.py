"""Lungs as the RoI-aware 3D ResNet paper's published MATLAB script finds them.

Kept for reproducing that work, faults included: trachea and bowel gas enclosed by tissue count
as lung, dense consolidation at the chest wall does not, and lungs that touch the edge of the
image vanish.
"""

from __future__ import annotations

from chestct.arrays import Mask
from chestct.preprocess.contrast import slice_limits
from chestct.preprocess.lungs.slicewise import dark_enclosed_regions
from chestct.volume import Volume


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
    return dark_enclosed_regions(volume.voxels, slice_limits(volume.voxels))

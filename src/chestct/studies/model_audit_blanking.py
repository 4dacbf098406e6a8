"""Parts of a scan painted over, to see what the answer rests on.

It is done on the prepared input and not on the scan: a scan whose lungs are filled has none to be
found, and would come back as unsuitable, or cropped elsewhere. So the network is asked the same
question, on the same grid and with the same gates, about other content.

What the paint is worth: where a recipe has a fixed scale of Hounsfield units it stands for healthy
lung, soft tissue and air in these units; other recipes scale each scan by itself, so healthy lung
is the lower quartile of the input inside the lungs, soft tissue its 99th percentile (vessels), and
air the lowest value. Lungs are painted twice, as no paint is neutral: an answer that stands both
when they are healthy and when they are solid does not rest on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from chestct.arrays import Mask
from chestct.preprocess.masks import grown
from chestct.preprocess.prepared import PreparedScan
from chestct.volume import AIR_HU, Unit

HEALTHY_HU: Final = -850.0
TISSUE_HU: Final = 40.0
MARGIN_MM: Final = 3.0
"""Rim around the lungs that counts as lung: half of a border voxel's content is lung's."""
_DENSE_ML: Final = 30.0
"""Vessels that hang together are smaller; a stomach taken for lung had 80 ml and more."""
_FIXED_SCALES: Final = ("window", "window_8bit")
_HEALTHY_PERCENT: Final = 25
_TISSUE_PERCENT: Final = 99

LESION: Final = "lesion"
LUNGS_HEALTHY: Final = "lungs-healthy"
LUNGS_TISSUE: Final = "lungs-tissue"
DENSE: Final = "dense-piece"
OUTSIDE_AIR: Final = "outside-air"
OUTSIDE_TISSUE: Final = "outside-tissue"
OUTSIDE_BACKGROUND: Final = "outside-background"

WORDS: Final[dict[str, str]] = {
    LESION: "lesion filled with healthy lung",
    LUNGS_HEALTHY: "lungs filled with healthy lung",
    LUNGS_TISSUE: "lungs filled with soft tissue",
    DENSE: "largest dense piece in the outline of the lungs filled with healthy lung",
    OUTSIDE_AIR: "all but the lungs made air",
    OUTSIDE_TISSUE: "all but the lungs made soft tissue",
    OUTSIDE_BACKGROUND: "all but the lungs made background",
}


@dataclass(frozen=True)
class Paint:
    """Values of the network's input that stand for healthy lung, soft tissue and air."""

    healthy: float
    tissue: float
    air: float


def find_paint(prepared: PreparedScan, unit: Unit) -> Paint:
    """What to paint with.

    Args:
        prepared: The scan.
        unit: Of the scan's own voxels.
    """
    recipe = prepared.recipe
    if unit == "HU" and recipe.intensity in _FIXED_SCALES:
        low, high = recipe.window_hu
        healthy, tissue, air = (
            float(np.clip((hu - low) / (high - low), 0.0, 1.0))
            for hu in (HEALTHY_HU, TISSUE_HU, AIR_HU)
        )
        return Paint(healthy, tissue, air)
    inside = prepared.input[0][lungs_with_rim(prepared)]
    healthy, tissue = np.percentile(inside, [_HEALTHY_PERCENT, _TISSUE_PERCENT]).tolist()
    return Paint(healthy, tissue, float(prepared.input.min()))


def lungs_with_rim(prepared: PreparedScan) -> Mask:
    """The lungs at the input's size with their rim."""
    depth, height, width = (MARGIN_MM / spacing for spacing in prepared.grid.spacing_mm)
    return grown(prepared.lungs, (depth, height, width))


def painted_scans(
    prepared: PreparedScan, lesion: Mask | None, paint: Paint
) -> Iterator[tuple[str, PreparedScan]]:
    """Each way to blank a part, by its name in `WORDS`, and the scan with it blanked.

    Args:
        prepared: The scan; it is not changed.
        lesion: What counts as the lesion, at the input's size; None leaves that out.
        paint: What to paint with.
    """
    lungs = lungs_with_rim(prepared)
    background = prepared.recipe.background
    if lesion is not None:
        yield LESION, _painted(prepared, lesion, paint.healthy)
    piece = _dense_piece(prepared, paint)
    if piece is not None:
        yield DENSE, _painted(prepared, piece, paint.healthy)
    yield LUNGS_HEALTHY, _painted(prepared, lungs, paint.healthy)
    yield LUNGS_TISSUE, _painted(prepared, lungs, paint.tissue)
    if background is not None:
        yield OUTSIDE_BACKGROUND, _painted(prepared, ~lungs, background)
    else:
        yield OUTSIDE_AIR, _painted(prepared, ~lungs, paint.air)
        yield OUTSIDE_TISSUE, _painted(prepared, ~lungs, paint.tissue)


def _dense_piece(prepared: PreparedScan, paint: Paint) -> Mask | None:
    """The largest piece as dense as tissue in the lungs' outline, if it is large.

    It can be consolidation, or an organ outside the lungs that was taken for lung.
    """
    from scipy import ndimage

    dense = prepared.lungs & (prepared.input[0] > (paint.healthy + 3 * paint.tissue) / 4)
    pieces, count = ndimage.label(dense)
    if count == 0:
        return None
    largest = pieces == int(np.bincount(pieces.ravel())[1:].argmax()) + 1
    volume_ml = int(np.count_nonzero(largest)) * prepared.grid.voxel_ml
    return np.asarray(largest) if volume_ml >= _DENSE_ML else None


def _painted(prepared: PreparedScan, where: Mask, value: float) -> PreparedScan:
    changed = prepared.input.copy()
    changed[:, where] = value
    return replace(prepared, input=changed)

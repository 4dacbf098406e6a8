"""A scan changed for an audit: parts painted over, and changes that should change nothing.

Painting is done on the prepared input and not on the scan: a scan whose lungs are filled has none
to be found, and would come back as unsuitable, or cropped elsewhere. So the network is asked the
same question, on the same grid and with the same gates, about other content.

What the paint is worth: where a recipe has a fixed scale of Hounsfield units it stands for healthy
lung, soft tissue and air in these units; other recipes scale each scan by itself, so healthy lung
is the lower quartile of the input inside the lungs, soft tissue its 99th percentile (vessels), and
air the lowest value. Lungs are painted twice, as no paint is neutral: an answer that stands both
when they are healthy and when they are solid does not rest on them.

Harmless changes are made to the scan itself, before its lungs are found, as the preparation is part
of what answers; only the exchange of left and right is made to what was prepared. None is drawn
from a real scanner: a kernel is a filter here, and thick slices are means of thin ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from chestct.arrays import Heat, Mask
from chestct.preprocess.masks import grown
from chestct.preprocess.prepared import PreparedScan
from chestct.volume import AIR_HU, Grid, Unit, Volume, to_canonical

_HEALTHY_HU: Final = -850.0
_TISSUE_HU: Final = 40.0
_MARGIN_MM: Final = 3.0
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
            for hu in (_HEALTHY_HU, _TISSUE_HU, AIR_HU)
        )
        return Paint(healthy, tissue, air)
    inside = prepared.input[0][_lungs_with_rim(prepared)]
    healthy, tissue = np.percentile(inside, [_HEALTHY_PERCENT, _TISSUE_PERCENT]).tolist()
    return Paint(healthy, tissue, float(prepared.input.min()))


def _lungs_with_rim(prepared: PreparedScan) -> Mask:
    """The lungs at the input's size with their rim."""
    depth, height, width = (_MARGIN_MM / spacing for spacing in prepared.grid.spacing_mm)
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
    lungs = _lungs_with_rim(prepared)
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


_SHIFT_MM: Final = 10.0
_NOISE_HU: Final = 20.0
_NOISE_GREY: Final = 4.0
"""Of exports with values from 0 to 255."""
_KERNEL_MM: Final = 0.8
"""Standard deviation of the Gauss that smooths, and that is taken away from a sharper slice."""
_THICK_MM: Final = 5.0


@dataclass(frozen=True)
class Change:
    """A change in words, and what makes it of a canonical scan and a generator."""

    words: str
    make: Callable[[Volume, np.random.Generator], Volume]


def changed_scan(volume: Volume, change: Change, rng: np.random.Generator) -> Volume:
    """A scan with a change; the scan itself stays as it is."""
    return change.make(to_canonical(volume), rng)


def _moved(volume: Volume, _: np.random.Generator, *, axis: int) -> Volume:
    """The patient moved along an axis, the grid staying; what comes into view is air."""
    steps = max(1, round(_SHIFT_MM / volume.grid.spacing_mm[axis]))
    lowest = float(volume.voxels.min())
    outside = AIR_HU if volume.unit == "HU" else lowest
    moved = np.full_like(volume.voxels, outside)
    target: list[slice] = [slice(None)] * 3
    source: list[slice] = [slice(None)] * 3
    target[axis], source[axis] = slice(steps, None), slice(None, -steps)
    moved[tuple(target)] = volume.voxels[tuple(source)]
    return volume.with_voxels(moved)


def _noisier(volume: Volume, rng: np.random.Generator) -> Volume:
    spread = _NOISE_HU if volume.unit == "HU" else _NOISE_GREY
    noise = rng.standard_normal(volume.voxels.shape, dtype=np.float32)
    return _as_stored(volume.voxels + np.float32(spread) * noise, volume)


def _smoother(volume: Volume, _: np.random.Generator) -> Volume:
    return _as_stored(_smoothed(volume), volume)


def _sharper(volume: Volume, _: np.random.Generator) -> Volume:
    values = volume.voxels.astype(np.float32)
    return _as_stored(2 * values - _smoothed(volume), volume)


def _thicker(volume: Volume, _: np.random.Generator) -> Volume:
    """Neighbouring slices become one, at least two; a rest at the top is left out."""
    grid = volume.grid
    num = min(max(2, round(_THICK_MM / grid.spacing_mm[0])), grid.shape[0])
    slabs = grid.shape[0] // num
    groups = volume.voxels[: slabs * num].reshape(slabs, num, *grid.shape[1:])
    means = groups.mean(axis=1, dtype=np.float32)
    new_grid = grid.moved(
        ((num - 1) / 2, 0.0, 0.0), (float(num), 1.0, 1.0), (slabs, grid.shape[1], grid.shape[2])
    )
    return _as_stored(means, volume, new_grid)


def _smoothed(volume: Volume) -> Heat:
    from scipy.ndimage import gaussian_filter

    _, height, width = volume.grid.spacing_mm
    sigma = (0.0, _KERNEL_MM / height, _KERNEL_MM / width)
    return np.asarray(gaussian_filter(volume.voxels, sigma, output=np.float32), dtype=np.float32)


def _as_stored(values: Heat, volume: Volume, grid: Grid | None = None) -> Volume:
    """A scan of values in the type, where of whole numbers in the limits, of the scan's own."""
    kind = volume.voxels.dtype
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return volume.with_voxels(values.astype(kind), grid)


CHANGES: Final[dict[str, Change]] = {
    "shift-left": Change(f"patient moved {_SHIFT_MM:g} mm to the left", partial(_moved, axis=2)),
    "shift-back": Change(f"patient moved {_SHIFT_MM:g} mm to the back", partial(_moved, axis=1)),
    "noise": Change(f"noise of {_NOISE_HU:g} HU added", _noisier),
    "smooth": Change(f"smoother kernel (Gauss, {_KERNEL_MM:g} mm)", _smoother),
    "sharp": Change(f"sharper kernel (unsharp mask, {_KERNEL_MM:g} mm)", _sharper),
    "thick": Change(f"slices of {_THICK_MM:g} mm or two in one", _thicker),
}
"""Change name to change."""

MIRROR: Final = "mirror"
MIRROR_WORDS: Final = "left and right exchanged"


def mirrored(prepared: PreparedScan) -> PreparedScan:
    """A prepared scan with left and right exchanged.

    Done after the preparation: that finds the liver on the wrong side, and refuses such a scan.
    """
    return replace(
        prepared,
        input=np.ascontiguousarray(prepared.input[..., ::-1]),
        lungs=np.ascontiguousarray(prepared.lungs[..., ::-1]),
    )

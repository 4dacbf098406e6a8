"""Changes of a scan that should not change what is said about the patient.

They are made to the scan itself, before its lungs are found, as the preparation is part of what
answers; only the exchange of left and right is made to what was prepared. None is drawn from a
real scanner: a kernel is a filter here, and thick slices are means of thin ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from chestct.arrays import Heat, Voxels
from chestct.preprocess.prepared import PreparedScan
from chestct.volume import AIR_HU, Volume, to_canonical

SHIFT_MM: Final = 10.0
NOISE_HU: Final = 20.0
NOISE_GREY: Final = 4.0
"""Of exports with values from 0 to 255."""
KERNEL_MM: Final = 0.8
"""Standard deviation of the Gauss that smooths, and that is taken away from a sharper slice."""
THICK_MM: Final = 5.0


@dataclass(frozen=True)
class Change:
    """A change in words, and what makes it of a canonical scan and a generator."""

    words: str
    make: Callable[[Volume, np.random.Generator], Volume]


def changed_scan(volume: Volume, change: Change, rng: np.random.Generator) -> Volume:
    """A scan with a change; the scan itself stays as it is."""
    return change.make(to_canonical(volume), rng)


def _moved_left(volume: Volume, _: np.random.Generator) -> Volume:
    return _moved(volume, axis=2)


def _moved_back(volume: Volume, _: np.random.Generator) -> Volume:
    return _moved(volume, axis=1)


def _moved(volume: Volume, *, axis: int) -> Volume:
    """The patient moved along an axis, the grid staying; what comes into view is air."""
    steps = max(1, round(SHIFT_MM / volume.grid.spacing_mm[axis]))
    lowest = float(volume.voxels.min())
    outside = AIR_HU if volume.unit == "HU" else lowest
    moved = np.full_like(volume.voxels, outside)
    target: list[slice] = [slice(None)] * 3
    source: list[slice] = [slice(None)] * 3
    target[axis], source[axis] = slice(steps, None), slice(None, -steps)
    moved[tuple(target)] = volume.voxels[tuple(source)]
    return volume.with_voxels(moved)


def _noisier(volume: Volume, rng: np.random.Generator) -> Volume:
    spread = NOISE_HU if volume.unit == "HU" else NOISE_GREY
    noise = rng.standard_normal(volume.voxels.shape, dtype=np.float32)
    return volume.with_voxels(_as_stored(volume.voxels + np.float32(spread) * noise, volume))


def _smoother(volume: Volume, _: np.random.Generator) -> Volume:
    return volume.with_voxels(_as_stored(_smoothed(volume), volume))


def _sharper(volume: Volume, _: np.random.Generator) -> Volume:
    values = volume.voxels.astype(np.float32)
    return volume.with_voxels(_as_stored(2 * values - _smoothed(volume), volume))


def _thicker(volume: Volume, _: np.random.Generator) -> Volume:
    """Neighbouring slices become one, at least two; a rest at the top is left out."""
    grid = volume.grid
    num = min(max(2, round(THICK_MM / grid.spacing_mm[0])), grid.shape[0])
    slabs = grid.shape[0] // num
    groups = volume.voxels[: slabs * num].reshape(slabs, num, *grid.shape[1:])
    means = groups.mean(axis=1, dtype=np.float32)
    new_grid = grid.moved(
        ((num - 1) / 2, 0.0, 0.0), (float(num), 1.0, 1.0), (slabs, grid.shape[1], grid.shape[2])
    )
    return volume.with_voxels(_as_stored(means, volume), new_grid)


def _smoothed(volume: Volume) -> Heat:
    from scipy.ndimage import gaussian_filter

    _, height, width = volume.grid.spacing_mm
    sigma = (0.0, KERNEL_MM / height, KERNEL_MM / width)
    return np.asarray(gaussian_filter(volume.voxels, sigma, output=np.float32), dtype=np.float32)


def _as_stored(values: Heat, volume: Volume) -> Voxels:
    """Values in the type, and where that is of whole numbers in the limits, of the scan's own."""
    kind = volume.voxels.dtype
    if kind.kind not in "iu":
        return values.astype(kind)
    limits = np.iinfo(kind)
    return np.asarray(np.clip(np.rint(values), limits.min, limits.max), dtype=kind)


CHANGES: Final[dict[str, Change]] = {
    "shift-left": Change(f"patient moved {SHIFT_MM:g} mm to the left", _moved_left),
    "shift-back": Change(f"patient moved {SHIFT_MM:g} mm to the back", _moved_back),
    "noise": Change(f"noise of {NOISE_HU:g} HU added", _noisier),
    "smooth": Change(f"smoother kernel (Gauss, {KERNEL_MM:g} mm)", _smoother),
    "sharp": Change(f"sharper kernel (unsharp mask, {KERNEL_MM:g} mm)", _sharper),
    "thick": Change(f"slices of {THICK_MM:g} mm or two in one", _thicker),
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

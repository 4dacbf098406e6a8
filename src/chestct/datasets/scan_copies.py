"""Copies of a scan that hold voxels and geometry and nothing else, read back before they count.

A TIFF stack knows no place in the patient: it is stored on axes to head, back and left, and a scan
that lies obliquely loses its angle. NIfTI keeps position and angle.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from chestct.arrays import Voxels
from chestct.errors import ChestCTError
from chestct.readers.hounsfield import PADDING_BELOW_HU, padding_to_air
from chestct.readers.pictures import SIDECAR
from chestct.volume import CANONICAL_DIRECTION, Volume, to_canonical

AIR_INTERCEPT: Final = -1024
LOWEST_INT16: Final = -32768
HIGHEST_UINT16: Final = 65535
_OBLIQUE_DEG = 0.1
_SAME_MM = 1e-3


class ExportError(ChestCTError):
    """A copy for sharing cannot be made, or not in this folder, format or with this key."""


@dataclass(frozen=True)
class Scale:
    """HU = slope * stored + intercept."""

    slope: float
    intercept: float


def cleaned(volume: Volume) -> tuple[Volume, tuple[str, ...]]:
    """A scan on canonical axes, values that are no measurement set to air, and what was done."""
    turned = to_canonical(volume)
    if turned.unit != "HU" or turned.voxels.min() >= PADDING_BELOW_HU:
        return turned, ()
    voxels = np.array(turned.voxels)
    said = tuple(padding_to_air(voxels))
    return turned.with_voxels(voxels), said


def _write_tiff16(volume: Volume, place: Path) -> tuple[str, ...]:
    """Write a folder of 16-bit TIFF slices from the feet up, with the sidecar that explains them.

    Args:
        volume: On canonical axes.
        place: Folder to make.

    Returns:
        What the copy does not hold.

    Raises:
        CopyError: No 16-bit scale gives the same values.
    """
    import tifffile

    scale = _find_scale(volume.voxels) if volume.unit == "HU" else Scale(1.0, 0.0)
    stored = _as_stored(volume.voxels, scale)
    place.mkdir(parents=True)
    width = max(4, len(str(len(stored))))
    for number, pixels in enumerate(stored, start=1):
        # No software, date or description: tags hold the pixels' layout only.
        tifffile.imwrite(
            place / f"{number:0{width}d}.tif",
            pixels,
            photometric="minisblack",
            compression="zlib",
            predictor=True,
            metadata=None,
            software=False,
        )
    sidecar: dict[str, Any] = {
        "spacing_mm": list(volume.grid.spacing_mm),
        "order": "ascending",
        "unit": volume.unit,
    }
    if volume.unit == "HU":
        sidecar |= {"slope": scale.slope, "intercept": scale.intercept}
    (place / SIDECAR).write_text(json.dumps(sidecar) + "\n", encoding="utf-8")
    angle = _angle_deg(volume)
    if angle <= _OBLIQUE_DEG:
        return ()
    return (f"lies {angle:.1f} degrees off the patient's axes, which a TIFF stack cannot say",)


def _write_nifti_copy(volume: Volume, place: Path) -> tuple[str, ...]:
    """Write `.nii.gz`, values and geometry kept; the same scan gives the same bytes."""
    from chestct.readers.nifti import image_on_grid

    image = image_on_grid(np.asarray(volume.voxels), volume.grid)
    place.parent.mkdir(parents=True, exist_ok=True)
    # Without time and name, which gzip would keep.
    place.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))
    return ()


def verify_copy(volume: Volume, place: Path) -> None:
    """Read a copy back and compare it with what was to be written.

    Raises:
        CopyError: Values, spacing or unit differ.
        ReadError: It cannot be read.
    """
    from chestct.readers import read_volume

    found = read_volume(place)
    same_voxels = found.voxels.dtype == volume.voxels.dtype and np.array_equal(
        found.voxels, volume.voxels
    )
    same_grid = np.allclose(found.grid.spacing_mm, volume.grid.spacing_mm, atol=_SAME_MM, rtol=0)
    if not (same_voxels and same_grid and found.unit == volume.unit):
        what = "unit" if found.unit != volume.unit else "values" if same_grid else "spacing"
        raise ExportError(f"its copy has other {what} when it is read back.")


@dataclass(frozen=True)
class _CopyFormat:
    """A way to copy a scan.

    Attributes:
        ending: What a copy's name ends with; empty for a folder.
        write: Writes a copy and says what it does not hold.
    """

    ending: str
    write: Callable[[Volume, Path], tuple[str, ...]]


COPY_FORMATS: Final[dict[str, _CopyFormat]] = {
    "tiff16": _CopyFormat("", _write_tiff16),
    "nifti": _CopyFormat(".nii.gz", _write_nifti_copy),
}
"""Format name to how a scan is copied in it."""


def _find_scale(voxels: Voxels) -> Scale:
    """A scale under which 16 bits hold every value exactly, as our reader computes it.

    Whole HU keep slope 1. Others lie on the steps of a scanner's rescale slope, which is found
    from the smallest distance between two values.

    Raises:
        CopyError: There is none.
    """
    low, high = float(voxels.min()), float(voxels.max())
    if voxels.dtype.kind == "i":
        fits_air = low >= AIR_INTERCEPT and high - AIR_INTERCEPT <= HIGHEST_UINT16
        return Scale(1.0, float(AIR_INTERCEPT if fits_air else LOWEST_INT16))
    values = np.unique(voxels).astype(np.float64)
    steps = np.diff(values)
    if steps.size and (high - low) / steps.min() <= HIGHEST_UINT16 + 0.5:
        # The smallest step carries the rounding of float32; the whole range averages it away.
        step = (high - low) / round((high - low) / float(steps.min()))
        for slope in (float(f"{step:.4g}"), float(f"{step:.6g}"), step):
            for intercept in (_on_step(AIR_INTERCEPT, low, slope), low):
                scale = Scale(slope, intercept)
                if _is_exact(values, scale):
                    return scale
    msg = "its values lie on no steps that 16 bits can count. Export it as NIfTI: --to nifti."
    raise ExportError(msg)


def _on_step(wanted: float, low: float, slope: float) -> float:
    """The usual intercept where the values are whole steps above it, else the lowest value."""
    num_steps = (low - wanted) / slope
    is_whole = num_steps > -0.5 and math.isclose(num_steps, round(num_steps), abs_tol=1e-3)
    return float(wanted) if is_whole else low


def _is_exact(values: np.ndarray, scale: Scale) -> bool:
    stored = np.rint((values - scale.intercept) / scale.slope)
    if stored.min() < 0 or stored.max() > HIGHEST_UINT16:
        return False
    back = (stored * scale.slope + scale.intercept).astype(np.float32)
    return bool(np.array_equal(back, values.astype(np.float32)))


def _as_stored(voxels: Voxels, scale: Scale) -> np.ndarray:
    stored = np.rint((voxels.astype(np.float64) - scale.intercept) / scale.slope)
    if stored.min() < 0 or stored.max() > HIGHEST_UINT16:
        raise ExportError("its values do not fit 16 bits. Export it as NIfTI: --to nifti.")
    return stored.astype(np.uint16)


def _angle_deg(volume: Volume) -> float:
    """Largest angle between an axis of the scan and the patient's."""
    cosines = (np.asarray(volume.grid.direction) * np.asarray(CANONICAL_DIRECTION)).sum(axis=1)
    return math.degrees(math.acos(min(1.0, float(cosines.min()))))

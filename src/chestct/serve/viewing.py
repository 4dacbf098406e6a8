"""The viewing copy: a scan, and over it lungs and heat-map, on a grid that a browser draws at once.

Everything lies on the axes of the body, so that the page need not know how a scan was stored: the
n-th slice of the report is the n-th part of the copy's height. Lungs and heat-map are one layer,
because each layer costs a browser without a graphics card a second.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, Int16, UInt8
from scipy import ndimage

from chestct.analysis import ScanAnalysis
from chestct.arrays import Shape
from chestct.explain.back_to_scan import map_on_body
from chestct.explain.explanation import HeatMap, HeatPlane
from chestct.pictures import Plane, draw_slice, fullest_slice, scene_of_scan
from chestct.preprocess.oblique import on_body
from chestct.storage import write_folder_with
from chestct.volume import Grid, Volume
from chestct.writers.nifti import write_nifti
from chestct.writers.page_pictures import to_png

_MOST_VOXELS: Final[Shape] = (200, 256, 256)
"""Largest viewing copy, (depth, height, width): drawn without a graphics card in seconds."""
HEAT_STEPS: Final = 119
"""What a heat of 1 is stored as outside the lungs; inside, `INSIDE` is added."""
INSIDE: Final = 120
RIM: Final = 255
"""The outline of the lungs, in each slice across the body."""
PARTS: Final = {"scan": "scan.nii", "layer": "layer.nii", "whole": "scan.nii"}
"""What the page may ask for, and the files in which it lies."""
FACTS_FILE: Final = "facts.json"
THUMBNAIL_FILE: Final = "thumbnail.png"

_WITHIN_SLICE: Final = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], dtype=np.bool_)
_SHOWN_HU: Final = (-1024, 3071)
_THUMBNAIL_PX: Final = 160
_PLANES: Final[tuple[Plane, ...]] = ("axial", "coronal")


def _viewing_grid(grid: Grid) -> Grid:
    """The grid of the viewing copy: the same box in the patient, in at most `_MOST_VOXELS`."""
    shape = tuple(min(n, most) for n, most in zip(grid.shape, _MOST_VOXELS, strict=True))
    step = tuple(n / new for n, new in zip(grid.shape, shape, strict=True))
    start = tuple((each - 1.0) / 2.0 for each in step)
    return grid.moved(start, step, shape)  # type: ignore[arg-type]


def write_viewing_copy(analysis: ScanAnalysis, folder: Path) -> Path:
    """Write scan, lungs and heat-map as NIfTI, a thumbnail, and `facts.json` about them.

    An older folder of this name is replaced.

    Raises:
        WriteError: It cannot be written.
    """
    return write_folder_with(folder, lambda aside: _write_parts(analysis, aside))


def write_whole_scan(analysis: ScanAnalysis, folder: Path) -> Path:
    """Write the scan alone with all its voxels, on the axes of the body.

    Raises:
        WriteError: It cannot be written.
    """
    volume = on_body(analysis.volume)

    def write(aside: Path) -> None:
        """All voxels, as one file."""
        write_nifti(aside / "scan.nii", _as_shown(volume.voxels, volume.unit), volume.grid)

    return write_folder_with(folder, write)


def _write_parts(analysis: ScanAnalysis, folder: Path) -> None:
    volume = on_body(analysis.volume)
    grid = _viewing_grid(volume.grid)
    values = _shrunk(volume.voxels.__getitem__, volume.grid.shape, grid.shape)
    write_nifti(folder / PARTS["scan"], _as_shown(values, volume.unit), grid)
    write_nifti(folder / PARTS["layer"], _layer_of(analysis, grid), grid)
    (folder / THUMBNAIL_FILE).write_bytes(_thumbnail(analysis))
    (folder / FACTS_FILE).write_text(json.dumps(_facts(analysis, volume, grid)), encoding="utf-8")


def _facts(analysis: ScanAnalysis, volume: Volume, grid: Grid) -> dict[str, object]:
    """What the page needs beside the voxels; areas and slices counted from the feet."""
    area: Float64[np.ndarray, " slices"] = analysis.prepared.lung_area
    return {
        "shape": list(grid.shape),
        "scan_shape": list(volume.grid.shape),
        "spacing_mm": [round(each, 4) for each in grid.spacing_mm],
        "unit": volume.unit,
        "range": [float(volume.voxels.min()), float(volume.voxels.max())],
        "lung_area": [round(share, 5) for share in area.tolist()],
        "has_heat": analysis.explanation is not None,
        "is_disease": analysis.explanation is None or analysis.explanation.speaks_for_disease,
    }


def _thumbnail(analysis: ScanAnalysis) -> bytes:
    """The axial and the coronal slice with most lung, side by side."""
    scene = scene_of_scan(analysis)
    pictures = [
        draw_slice(scene, plane, fullest_slice(scene.lungs, plane), _THUMBNAIL_PX)
        for plane in _PLANES
    ]
    height = min(picture.shape[0] for picture in pictures)
    tops = [(picture.shape[0] - height) // 2 for picture in pictures]
    shown = [picture[top : top + height] for picture, top in zip(pictures, tops, strict=True)]
    return to_png(np.concatenate(shown, axis=1))


def _heat_plane(heat: HeatMap, index: int) -> HeatPlane:
    """A slice of a map, zero where nothing was analysed."""
    plane: HeatPlane = np.nan_to_num(heat.cut(0, index), nan=0.0)
    return plane


def _shrunk(
    plane_of: Callable[[int], np.ndarray], old_shape: Shape, shape: Shape
) -> Float32[np.ndarray, "new_depth new_height new_width"]:
    """The mean of what lies in each voxel of a coarser grid over the same box, from its slices."""
    import cv2

    depth, height, width = shape
    shrunk = np.empty(shape, dtype=np.float32)
    for made, shares in zip(shrunk, _shares(old_shape[0], depth), strict=True):
        mean = np.zeros(old_shape[1:], dtype=np.float32)
        for old in np.flatnonzero(shares).tolist():
            mean += shares[old] * plane_of(old)
        made[...] = cv2.resize(mean, (width, height), interpolation=cv2.INTER_AREA)
    return shrunk


def _shares(old: int, new: int) -> Float32[np.ndarray, "new old"]:
    """Share of each old slice in each of fewer ones of equal height; rows add up to one."""
    edges = np.linspace(0.0, old, new + 1)
    starts, ends = np.maximum(edges[:-1, None], np.arange(old)), edges[1:, None]
    overlap = np.minimum(ends, np.arange(1, old + 1)) - starts
    return (overlap.clip(0.0) * (new / old)).astype(np.float32)


def _as_shown(values: np.ndarray, unit: str) -> Int16[np.ndarray, "depth height width"]:
    """Values in 16 bits; Hounsfield units as far as scanners give them."""
    low, high = _SHOWN_HU if unit == "HU" else (-32768, 32767)
    stored = np.empty(values.shape, dtype=np.int16)
    for made, plane in zip(stored, values, strict=True):
        made[...] = np.rint(plane).clip(low, high)
    return stored


def _layer_of(analysis: ScanAnalysis, grid: Grid) -> UInt8[np.ndarray, "depth height width"]:
    """Heat in steps, told apart inside and outside the lungs, and the outline of the lungs."""
    mask = on_body(analysis.prepared.scan_lungs).voxels
    lungs = _shrunk(mask.__getitem__, mask.shape, grid.shape) >= 0.5
    layer = np.zeros(grid.shape, dtype=np.uint8)
    if analysis.explanation is not None:
        heat = map_on_body(analysis.explanation.heat)
        shrunk = _shrunk(partial(_heat_plane, heat), heat.grid.shape, grid.shape)
        layer += np.rint(shrunk.clip(0.0, 1.0) * HEAT_STEPS).astype(np.uint8)
    layer[lungs] += INSIDE
    # Within slices: where the diaphragm lies flat, an outline across them would hide the heat.
    layer[lungs & ~ndimage.binary_erosion(lungs, _WITHIN_SLICE)] = RIM
    return layer

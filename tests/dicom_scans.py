"""Analysed scans that were read from DICOM files, for the tests of what is written as DICOM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from analyses import lung_mask, make_analysis, make_prepared, make_volume
from explained import make_explanation, scan_heat

from chestct.analysis import ScanAnalysis
from chestct.explain.explanation import HeatMap, PeakSlice
from chestct.readers import read_volume
from chestct.simulate import write_dicom_series
from chestct.volume import Volume

WANTED = ("dicom_seg", "dicom_parametric_map", "dicom_sr")


def small_scan(folder: Path) -> Path:
    """The hand-made scan of `analyses` as a CT series."""
    write_dicom_series(make_volume(), folder)
    return folder


def analysed(
    path: Path, *, has_heat: bool = True, allow: tuple[str, ...] = (), series: str | None = None
) -> ScanAnalysis:
    """The scan at `path` with lungs and a heat-map, made by hand for whatever grid it is on."""
    volume = read_volume(path, allow=allow, series=series)
    is_small_scan = volume.grid.shape == make_volume().grid.shape
    lungs = lung_mask() if is_small_scan else drawn_lungs(volume)
    heat = scan_heat() if is_small_scan else drawn_heat(volume)
    prepared = replace(
        make_prepared(make_volume()),
        scan_lungs=volume.with_voxels(lungs),
        scan_grid=volume.grid,
        lung_area=lungs.mean(axis=(1, 2)).astype(np.float64),
    )
    analysis = replace(make_analysis(), volume=volume, prepared=prepared, path=path)
    if not has_heat:
        return analysis
    made = make_explanation()
    hottest = int(np.nanmax(heat, axis=(1, 2)).argmax()) if not is_small_scan else 22
    uids = volume.source.slice_uids
    peak = PeakSlice(hottest, uids[hottest] if uids else "", 0.4)
    explanation = replace(
        made, heat=HeatMap.of(volume.grid, heat), summary=replace(made.summary, peaks=(peak,))
    )
    return replace(analysis, explanation=explanation)


def drawn_lungs(volume: Volume) -> np.ndarray:
    """An off-centre block in each slice but the first, so that no two directions look alike."""
    mask = np.zeros(volume.grid.shape, dtype=bool)
    _, rows, columns = volume.grid.shape
    for index in range(1, len(mask)):
        mask[index, rows // 4 : rows // 2 + index % 2, columns // 3 : columns - 2] = True
    return mask


def drawn_heat(volume: Volume) -> np.ndarray:
    """Heat that rises along every axis, from 0.1 to 1."""
    axes = [np.linspace(0.1, 1.0, size) for size in volume.grid.shape]
    depth, height, width = np.meshgrid(*axes, indexing="ij")
    return (depth * height * width).astype(np.float32)

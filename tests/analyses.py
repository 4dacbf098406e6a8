"""A small analysed scan made by hand: what writes about scans is tested without a network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from chestct.analysis import ScanAnalysis
from chestct.labels import UNSUITABLE
from chestct.preprocess.prepare import PreparedScan
from chestct.preprocess.recipes import RECIPES
from chestct.result import Provenance, ScanResult, Timings
from chestct.volume import Grid, ScanSource, Volume

SHAPE = (40, 60, 80)
SALIENT = (10, 29)


def unit_axes() -> list[np.ndarray]:
    """Coordinates from -1 to 1 along each axis, ready to be combined."""
    return np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij", sparse=True)


def make_volume() -> Volume:
    """Soft tissue in air with two ellipsoid lungs, canonical axes, 4 x 3 x 3 mm."""
    _, height, width = unit_axes()
    voxels = np.full(SHAPE, -1000, dtype=np.int16)
    body = np.broadcast_to((height / 0.9) ** 2 + (width / 0.95) ** 2 < 1, SHAPE)
    voxels[body] = 40
    voxels[lung_mask()] = -850
    grid = Grid(SHAPE, (4.0, 3.0, 3.0), (-120.0, -90.0, -300.0))
    source = ScanSource("dicom", "1.2.3", facts={"kernel": "B60", "secret": "x"})
    return Volume(grid, voxels, source=source)


def lung_mask() -> np.ndarray:
    """Both lungs of `make_volume`."""
    depth, height, width = unit_axes()
    return (depth / 0.8) ** 2 + (height / 0.6) ** 2 + ((abs(width) - 0.42) / 0.3) ** 2 < 1


def make_prepared(volume: Volume) -> PreparedScan:
    """The salient slices of `make_volume`, every second pixel."""
    lungs = lung_mask()
    first, last = SALIENT
    shape = (last - first + 1, SHAPE[1] // 2, SHAPE[2] // 2)
    window = (slice(first, last + 1), slice(None, None, 2), slice(None, None, 2))
    scaled = ((volume.voxels[window].astype(np.float32) + 1350) / 1500).clip(0, 1)
    return PreparedScan(
        input=scaled[None],
        lungs=lungs[window],
        grid=volume.grid.moved((float(first), 0.0, 0.0), (1.0, 2.0, 2.0), shape),
        scan_lungs=volume.with_voxels(lungs),
        scan_grid=volume.grid,
        salient=SALIENT,
        lung_area=lungs.mean(axis=(1, 2)).astype(np.float64),
        lung_volume_l=float(lungs.sum()) * volume.grid.voxel_ml / 1000,
        recipe=replace(RECIPES["roi_resnet_published"], input_shape=shape),
        warnings=(),
        unsuitable_reasons=(),
    )


def make_result() -> ScanResult:
    """A result with a warning, as the pipeline would make it."""
    return ScanResult(
        scan="p07",
        probabilities={"CAP": 0.07, "COVID-19": 0.9, "normal": 0.03},
        decision="COVID-19",
        unsuitable_reasons=(),
        warnings=("2 slices at 43.0 mm were duplicates and were dropped.",),
        lung_volume_l=1.25,
        scan_facts={"format": "dicom", "size_voxels": "40 × 60 × 80", "kernel": "B60 <b>"},
        timings_s=Timings(read=0.5, prepare=1.25, network=0.25, total=2.0),
        provenance=Provenance(
            pixel_sha256="ab" * 32,
            series_uid="1.2.3",
            classifier="trial",
            classifier_version="1",
            weights_sha256="cd" * 32,
            trained_on="simulated disease",
            recipe="roi_resnet_published",
            engine="torch float32",
            chestct_version="0.1.0",
        ),
    )


def make_analysis() -> ScanAnalysis:
    """All of it together."""
    volume = make_volume()
    return ScanAnalysis(make_result(), volume, make_prepared(volume))


def make_unsuitable() -> ScanAnalysis:
    """The same for a scan in which no lungs were found."""
    analysis = make_analysis()
    reason = "No lungs were found."
    nothing = np.zeros(SHAPE, dtype=bool)
    prepared = replace(
        analysis.prepared,
        scan_lungs=analysis.volume.with_voxels(nothing),
        lungs=np.zeros_like(analysis.prepared.lungs),
        lung_area=np.zeros(SHAPE[0]),
        lung_volume_l=0.0,
        salient=(0, SHAPE[0] - 1),
        unsuitable_reasons=(reason,),
    )
    result = replace(
        analysis.result,
        probabilities={},
        decision=UNSUITABLE,
        unsuitable_reasons=(reason,),
        lung_volume_l=0.0,
    )
    return replace(analysis, result=result, prepared=prepared)

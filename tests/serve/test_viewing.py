"""The viewing copy lies where the scan lies, and says which side is which."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from analyses import make_volume
from explained import make_explained

from chestct.analysis import ScanAnalysis
from chestct.serve.jobs import (
    _MOST_VOXELS,
    HEAT_STEPS,
    INSIDE,
    RIM,
    _viewing_grid,
    _write_viewing_copy,
    _write_whole_scan,
)
from chestct.volume import Grid, to_own_axes

LARGE = Grid((450, 512, 300), (0.7, 0.6, 0.6), (-90.0, -150.0, -400.0))


@pytest.fixture(scope="module")
def analysis() -> ScanAnalysis:
    return make_explained()


def voxels_of(path: Path) -> np.ndarray:
    """(depth, height, width) as stored: to the head, to the back, to the left."""
    return np.asarray(nibabel.load(path).dataobj).T


def test_a_large_scan_becomes_smaller_and_fills_the_same_box() -> None:
    grid = _viewing_grid(LARGE)
    assert grid.shape == (200, 256, 256)
    assert all(n <= most for n, most in zip(grid.shape, _MOST_VOXELS, strict=True))
    np.testing.assert_allclose(grid.extent_mm, LARGE.extent_mm)
    corners = np.array([[-0.5, -0.5, -0.5], [199.5, 255.5, 255.5]])
    whole = np.array([[-0.5, -0.5, -0.5], [449.5, 511.5, 299.5]])
    np.testing.assert_allclose(grid.to_patient(corners), LARGE.to_patient(whole))


def test_a_small_scan_keeps_its_voxels(analysis: ScanAnalysis, tmp_path: Path) -> None:
    folder = _write_viewing_copy(analysis, tmp_path / "copy")
    np.testing.assert_array_equal(voxels_of(folder / "scan.nii"), analysis.volume.voxels)


def test_what_is_planted_lies_at_its_place_in_the_patient(tmp_path: Path) -> None:
    """A bright cube in the patient's left, front and upper part of a scan stored upside down."""
    small = make_explained()
    grid = Grid((300, 300, 280), (1.0, 1.0, 1.0), (140.0, 150.0, 100.0), _AGAINST_EVERY_AXIS)
    voxels = np.full(grid.shape, -900, dtype=np.int16)
    place = np.array([60.0, -70.0, 40.0])
    centre = np.rint(grid.to_index(place)).astype(int)
    voxels[tuple(slice(c - 3, c + 4) for c in centre)] = 300
    volume = small.volume.with_voxels(voxels, grid)
    lungs = small.prepared.scan_lungs.with_voxels(np.zeros(grid.shape, dtype=bool), grid)
    prepared = replace(small.prepared, scan_lungs=lungs)
    analysis = ScanAnalysis(small.result, volume, prepared)
    folder = _write_viewing_copy(analysis, tmp_path / "copy")
    image = nibabel.load(folder / "scan.nii")
    bright = np.argwhere(np.asarray(image.dataobj) > -100)
    x, y, z = nibabel.affines.apply_affine(image.affine, bright).mean(axis=0)
    # NIfTI runs to the right and to the front.
    np.testing.assert_allclose((-x, -y, z), place, atol=1.0)
    assert max(image.shape) <= 256


_AGAINST_EVERY_AXIS = ((0.0, 0.0, -1.0), (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0))


def test_means_are_kept_when_a_scan_shrinks(tmp_path: Path) -> None:
    small = make_explained()
    grid = replace(small.volume.grid, shape=(410, 40, 50))
    voxels = np.random.default_rng(3).integers(-900, 200, grid.shape).astype(np.int16)
    volume = small.volume.with_voxels(voxels, grid)
    lungs = small.prepared.scan_lungs.with_voxels(np.zeros(grid.shape, dtype=bool), grid)
    analysis = ScanAnalysis(small.result, volume, replace(small.prepared, scan_lungs=lungs))
    shown = voxels_of(_write_viewing_copy(analysis, tmp_path / "copy") / "scan.nii")
    assert shown.shape == (200, 40, 50)
    np.testing.assert_allclose(shown.mean(), voxels.mean(), atol=0.5)
    np.testing.assert_allclose(shown[:100].mean(), voxels[:205].mean(), atol=0.5)


def test_the_layer_tells_heat_lungs_and_their_outline(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    layer = voxels_of(_write_viewing_copy(analysis, tmp_path / "copy") / "layer.nii")
    lungs = to_own_axes(analysis.prepared.scan_lungs.voxels, analysis.volume.grid)
    assert analysis.explanation is not None
    heat = np.nan_to_num(analysis.explanation.heat.voxels)
    rim, inside = layer == RIM, (layer >= INSIDE) & (layer < RIM)
    assert (rim | inside)[lungs].all()
    assert not (rim | inside)[~lungs].any()
    assert 0 < np.count_nonzero(rim) < np.count_nonzero(inside)
    np.testing.assert_allclose((layer[inside] - INSIDE) / HEAT_STEPS, heat[inside], atol=0.005)
    outside = layer < INSIDE
    np.testing.assert_allclose(layer[outside] / HEAT_STEPS, heat[outside], atol=0.005)


def test_facts_tell_the_page_what_it_cannot_see(analysis: ScanAnalysis, tmp_path: Path) -> None:
    facts = json.loads(
        (_write_viewing_copy(analysis, tmp_path / "copy") / "facts.json").read_text()
    )
    assert facts["shape"] == facts["scan_shape"] == list(analysis.volume.grid.shape)
    assert facts["unit"] == "HU"
    assert facts["has_heat"] is True
    np.testing.assert_allclose(facts["lung_area"], analysis.prepared.lung_area, atol=1e-5)


def test_the_whole_scan_has_every_voxel(tmp_path: Path) -> None:
    analysis = make_explained()
    folder = _write_whole_scan(analysis, tmp_path / "whole")
    np.testing.assert_array_equal(voxels_of(folder / "scan.nii"), make_volume().voxels)
    assert [path.name for path in folder.iterdir()] == ["scan.nii"]

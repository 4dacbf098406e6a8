"""Oblique scans: put upright, said so, and their results back on their own voxels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phantoms import chest, chest_grid, lungs_of, turned_grid

from chestct.preprocess.oblique import body_grid, degrees_off, on_body, slices_follow_body
from chestct.preprocess.prepare import prepare
from chestct.preprocess.recipes import RECIPES
from chestct.readers import read_volume
from chestct.simulate import write_dicom_series
from chestct.volume import CANONICAL_DIRECTION, to_canonical
from chestct.writers.nifti import write_nifti

RECIPE = replace(
    RECIPES["roi_resnet_recommended"], input_shape=(32, 32, 32), spacing_mm=(11.0, 9.0, 11.0)
)
TURNED = turned_grid(30.0, axis=0)


@pytest.mark.parametrize(("degrees", "axis"), [(20.0, 0), (-30.0, 1), (40.0, 2)])
def test_an_oblique_stack_gives_the_input_of_the_straight_scan_and_says_so(
    degrees: float, axis: int
) -> None:
    grid = turned_grid(degrees, axis)
    straight = prepare(chest(), RECIPE, lungs=lungs_of())
    oblique = prepare(chest(grid), RECIPE, lungs=lungs_of(grid))
    assert oblique.lung_volume_l == pytest.approx(straight.lung_volume_l, rel=0.05)
    both = straight.lungs & oblique.lungs
    assert 2 * both.sum() / (straight.lungs.sum() + oblique.lungs.sum()) > 0.93
    difference = np.abs(straight.input - oblique.input)[0][both]
    assert np.quantile(difference, 0.9) < 0.1
    (warning,) = [each for each in oblique.warnings if "turned" in each]
    assert f"up to {abs(degrees):.0f} degrees" in warning
    assert "own voxels" in warning


def test_a_scan_within_five_degrees_is_left_as_it_is() -> None:
    volume = chest(turned_grid(4.5, axis=1))
    assert degrees_off(volume.grid) == pytest.approx(4.5)
    assert on_body(volume).grid == to_canonical(volume).grid
    np.testing.assert_array_equal(on_body(volume).voxels, to_canonical(volume).voxels)
    assert slices_follow_body(volume.grid)
    assert not slices_follow_body(TURNED)


@pytest.mark.parametrize("grid", [TURNED, turned_grid(44.0, axis=1), turned_grid(-12.0, axis=2)])
def test_the_upright_grid_lies_on_the_bodys_axes_and_holds_the_scan_whole(grid) -> None:
    upright = body_grid(grid)
    assert upright.direction == CANONICAL_DIRECTION
    assert upright.num_voxels <= 2.1 * grid.num_voxels
    corners = np.array(list(itertools.product(*((0.0, n - 1.0) for n in grid.shape))))
    indices = upright.to_index(grid.to_patient(corners))
    assert indices.min() >= -0.51
    assert (indices <= np.asarray(upright.shape) - 0.49).all()


def test_the_lung_mask_of_an_oblique_scan_lies_on_its_own_voxels() -> None:
    volume = chest(TURNED)
    prepared = prepare(volume, RECIPE)
    assert prepared.scan_lungs.grid == volume.grid
    air = np.asarray(volume.voxels < -700)
    lungs = prepared.scan_lungs.voxels
    # The phantom's lungs are the only air in its body; the room's is far from them.
    assert air[lungs].mean() > 0.9
    assert len(prepared.lung_area) == prepared.body_grid.shape[0] > volume.grid.shape[0]


def test_beyond_an_oblique_scan_there_is_air_or_the_lowest_grey() -> None:
    grey = np.full(TURNED.shape, 9, np.uint8)
    grey[0] = 7
    scan = replace(chest(TURNED), voxels=grey, unit="windowed")
    upright = on_body(scan)
    assert upright.voxels.dtype == np.uint8
    assert upright.voxels[0, 0, 0] == 7
    assert on_body(chest(TURNED)).voxels[0, 0, 0] == -1024
    assert np.isnan(
        on_body(scan.with_voxels(np.ones(TURNED.shape, np.float32)), np.nan).voxels[0, 0, 0]
    )


def test_dicom_and_nifti_of_an_oblique_scan_give_the_same_input(tmp_path: Path) -> None:
    grid = chest_grid((48, 40, 44), (7.0, 8.0, 8.5), TURNED.direction)
    volume = chest(grid)
    volume = volume.with_voxels(np.rint(volume.voxels).astype(np.int16))
    write_dicom_series(volume, tmp_path / "dicom")
    write_nifti(tmp_path / "scan.nii.gz", volume.voxels, grid)
    first, second = (
        prepare(read_volume(tmp_path / name), RECIPE) for name in ("dicom", "scan.nii.gz")
    )
    assert degrees_off(second.scan_grid) == pytest.approx(30.0, abs=0.1)
    # Where the surface runs through a voxel's middle, the files' rounded directions decide.
    same = first.lungs == second.lungs
    assert np.count_nonzero(~same) <= 3
    np.testing.assert_allclose(first.input[0][same], second.input[0][same], atol=2e-2)
    assert first.body_grid.shape == second.body_grid.shape

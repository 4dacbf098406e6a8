"""What was done to a scan's pictures after they were made is said: one test for each kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image, ImageDraw

from chestct.errors import ReadError
from chestct.readers import read_volume
from chestct.readers.misfits import mend_misfits
from chestct.simulate import simulate_patient

SCANS = ("LIDC-IDRI-1011", "C3N-00247", "DCM1")
MIDDLE = 22
Scan = np.ndarray
"""Hounsfield units of the middle slices of a real scan, (depth, height, width)."""


@cache
def middle_of(data_folder: Path, name: str) -> Scan:
    path = data_folder / "real_scans" / f"{name}_ct.nii.gz"
    values = np.asarray(nibabel.load(path).dataobj, dtype=np.int16).T
    first = len(values) // 2 - MIDDLE
    return values[first : first + 2 * MIDDLE]


def said_of(values: Scan, folder: Path) -> tuple[str, ...]:
    image = nibabel.Nifti1Image(values.T, np.diag([-0.8, 0.8, 2.0, 1.0]))
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code=1)
    nibabel.save(image, folder / "x.nii")
    return read_volume(folder / "x.nii").warnings


def said_or_refused(values: Scan, folder: Path) -> tuple[str, ...]:
    """As `said_of`; where slices are so thick that one is refused, the reason: it says it too."""
    try:
        return said_of(values, folder)
    except ReadError as error:
        return (str(error),)


@pytest.fixture(params=SCANS)
def scan(request: pytest.FixtureRequest, data_folder: Path) -> Scan:
    return middle_of(data_folder, request.param).copy()


def test_real_scan_is_read_without_a_word(scan: Scan, tmp_path: Path) -> None:
    assert said_of(scan, tmp_path) == ()


@pytest.mark.parametrize("group", ["real_scans", "lung_masks"])
def test_no_whole_real_scan_is_called_changed(data_folder: Path, group: str) -> None:
    paths = sorted((data_folder / group).glob("*_ct.nii.gz"))
    assert {path.name: read_volume(path).warnings for path in paths} == {
        path.name: () for path in paths
    }


@pytest.mark.parametrize("seed", range(3))
def test_no_simulated_patient_is_called_changed(seed: int) -> None:
    volume = simulate_patient(np.random.default_rng(seed)).volume
    assert mend_misfits(volume.voxels.copy(), "HU", ()) == []


# --- one slice --------------------------------------------------------------------------------


def _comb_of_rows(slab: np.ndarray) -> None:
    slab[1::2] = np.roll(slab[1::2], 5, axis=1)


def _comb_of_columns(slab: np.ndarray) -> None:
    slab[:, 1::2] = np.roll(slab[:, 1::2], 5, axis=0)


@pytest.mark.parametrize("comb", [_comb_of_rows, _comb_of_columns])
def test_comb_artefact_in_one_slice_is_said(
    scan: Scan, tmp_path: Path, comb: Callable[[np.ndarray], None]
) -> None:
    comb(scan[MIDDLE])
    warnings = said_or_refused(scan, tmp_path)
    (said,) = (each for each in warnings if "every other row or column" in each)
    assert said.startswith(
        f"1 slice(s) are combed: every other row or column was moved, or is of"
        f" something else: slice {MIDDLE + 1} of {2 * MIDDLE}."
    )


def _row_moved(slab: np.ndarray) -> None:
    slab[len(slab) // 2] = np.roll(slab[len(slab) // 2], 10)


def _column_missing(slab: np.ndarray) -> None:
    slab[:, slab.shape[1] // 3] = -1000


@pytest.mark.parametrize("change", [_row_moved, _column_missing])
def test_odd_row_or_column_in_one_slice_is_said(
    scan: Scan, tmp_path: Path, change: Callable[[np.ndarray], None]
) -> None:
    change(scan[MIDDLE])
    shown = "have a row or column that fits neither those beside it nor the slices beside: slice"
    (said,) = (each for each in said_of(scan, tmp_path) if shown in each)
    assert said.startswith("1 slice(s)")
    assert f"slice {MIDDLE + 1} of" in said


def test_box_of_eight_pixels_of_one_value_within_tissue_is_said(scan: Scan, tmp_path: Path) -> None:
    rows, columns = np.nonzero(np.abs(scan[MIDDLE] - 40) < 60)
    middle = len(rows) // 2
    scan[MIDDLE, rows[middle] : rows[middle] + 8, columns[middle] : columns[middle] + 8] = 40
    (said,) = said_of(scan, tmp_path)
    assert said.startswith("1 slice(s) have a patch of one value without noise")
    assert f"slice {MIDDLE + 1} of" in said


def test_text_that_differs_in_every_slice_is_said(scan: Scan, tmp_path: Path) -> None:
    for number, slab in enumerate(scan):
        picture = Image.new("1", slab.shape[::-1])
        place = (10 + 5 * number, 6 + number)
        ImageDraw.Draw(picture).text(place, f"Im {7 * number}", fill=1, font_size=12)
        slab[np.asarray(picture)] = 3000
    said = f"{len(scan)} slice(s) have a patch of one value without noise, as where something"
    assert [each for each in said_of(scan, tmp_path) if each.startswith(said)]


# --- all slices -------------------------------------------------------------------------------


def test_every_second_slice_that_is_the_mean_of_its_neighbours_is_said(
    scan: Scan, tmp_path: Path
) -> None:
    scan[1:-1:2] = np.rint((scan[:-2:2].astype(float) + scan[2::2]) / 2)
    said = f"{len(scan[1:-1:2])} slice(s) are nothing but the mean of those beside them"
    assert [each for each in said_of(scan, tmp_path) if each.startswith(said)]


@pytest.mark.parametrize("axis", [1, 2])
def test_stripe_in_all_slices_is_said(scan: Scan, tmp_path: Path, axis: int) -> None:
    place = scan.shape[axis] // 3
    np.moveaxis(scan, axis, 0)[place : place + 3] += 40
    name = ("row", "column")[axis - 1]
    said = f"Values change in all slices at {name} {place}, {place + 3}, as along a stripe"
    assert [each for each in said_of(scan, tmp_path) if each.startswith(said)]


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("name", ["LIDC-IDRI-1011", "C3N-00247"])
def test_strong_gradient_in_all_slices_is_said(
    data_folder: Path, tmp_path: Path, name: str, axis: int
) -> None:
    scan = middle_of(data_folder, name)
    shape = [1, 1, 1]
    shape[axis] = scan.shape[axis]
    added = np.linspace(0, 350, scan.shape[axis]).astype(np.int16).reshape(shape)
    warnings = said_of(scan + added, tmp_path)
    assert [each for each in warnings if "a gradient lies over the scan" in each]


def test_parts_of_lungs_that_were_set_to_air_are_said(scan: Scan, tmp_path: Path) -> None:
    _, height, width = scan.shape
    part = scan[16:28, height // 3 : height * 2 // 3, width // 5 : width // 2]
    part[part < -500] = -1024
    (said,) = (each for each in said_of(scan, tmp_path) if "were cut out" in each)
    assert said.startswith("Air without noise fills")


def test_lungs_cut_out_of_a_scan_are_said_to_be_alone(data_folder: Path, tmp_path: Path) -> None:
    values, lungs = (
        np.asarray(nibabel.load(data_folder / "lung_masks" / f"chest64_{what}.nii.gz").dataobj)
        for what in ("ct", "lungs")
    )
    alone = np.where(lungs > 0, values, -1000).astype(np.int16).T
    warnings = said_of(alone, tmp_path)
    assert [each for each in warnings if "all but the lungs was cut out" in each]


@pytest.mark.parametrize("slope", [0.85, 0.9, 1.1, 1.2])
@pytest.mark.parametrize("name", ["A0001_B", "C3N-00247"])
def test_another_rescale_slope_is_said(
    data_folder: Path, tmp_path: Path, name: str, slope: float
) -> None:
    scan = np.maximum(middle_of(data_folder, name), -1024)
    changed = np.rint((scan + 1024.0) * slope - 1024).astype(np.int16)
    (said,) = (each for each in said_of(changed, tmp_path) if "rescale slope" in each)
    assert said.startswith("Most tissue has about ")
    assert said.endswith(" may be wrong. Check the values.")


@pytest.mark.parametrize("offset", [-90, -60, 60, 90])
@pytest.mark.parametrize("name", ["A0001_B", "C3N-00247"])
def test_a_whole_scan_off_by_a_constant_is_said(
    data_folder: Path, tmp_path: Path, name: str, offset: int
) -> None:
    changed = middle_of(data_folder, name) + np.int16(offset)
    assert [each for each in said_of(changed, tmp_path) if "where fat has -105" in each]


@pytest.mark.parametrize("num", [3, 5])
@pytest.mark.parametrize("projection", [np.max, np.min])
def test_projections_that_are_not_marked_are_said(
    scan: Scan, tmp_path: Path, projection: Callable[..., np.ndarray], num: int
) -> None:
    slabs = [projection(scan[low : low + num], axis=0) for low in range(len(scan) - num + 1)]
    warnings = said_of(np.stack(slabs), tmp_path)
    (said,) = (each for each in warnings if "(MIP, MinIP)" in each)
    assert said.startswith("Neighbouring slices share ")


def test_scan_enlarged_by_repeating_slices_is_not_called_projections(
    scan: Scan, tmp_path: Path
) -> None:
    warnings = said_of(np.repeat(scan, 2, axis=0), tmp_path)
    assert not [each for each in warnings if "(MIP, MinIP)" in each]


@pytest.mark.parametrize("noise_hu", [50, 200])
def test_noise_alone_is_not_called_another_rescale(
    scan: Scan, tmp_path: Path, noise_hu: int
) -> None:
    noise = np.random.default_rng(0).normal(0, noise_hu, scan.shape)
    warnings = said_of(np.rint(scan + noise).astype(np.int16), tmp_path)
    assert not [each for each in warnings if "rescale slope" in each]

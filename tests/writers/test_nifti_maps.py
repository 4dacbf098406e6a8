from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from analyses import lung_mask, make_volume
from dicom_scans import analysed, small_scan
from explained import scan_heat

from chestct.analysis import ScanAnalysis
from chestct.errors import WriteError
from chestct.explain.explanation import HeatMap
from chestct.simulate import write_dicom_series
from chestct.volume import Grid, Volume
from chestct.writers.nifti import (
    _STEPS,
    NOT_ANALYSED,
    _in_steps,
    write_nifti,
    write_nifti_maps,
)

OBLIQUE = Grid(
    shape=(4, 5, 6),
    spacing_mm=(2.5, 0.8, 0.7),
    origin_mm=(-100.0, 50.0, 300.0),
    direction=((0.0, 0.6, -0.8), (0.0, -0.8, -0.6), (-1.0, 0.0, 0.0)),
)


def test_every_voxel_lies_where_the_patient_lay(tmp_path: Path) -> None:
    voxels = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    made = nibabel.load(write_nifti(tmp_path / "x.nii.gz", voxels, OBLIQUE))
    stored = np.asarray(made.dataobj)
    for index in ((0, 0, 0), (3, 1, 5), (2, 4, 0)):
        depth, height, width = index
        assert stored[width, height, depth] == voxels[index]
        to_left, to_back, to_head = OBLIQUE.to_patient(np.array(index, dtype=np.float64))
        place = made.affine @ [width, height, depth, 1]
        np.testing.assert_allclose(place[:3], [-to_left, -to_back, to_head], atol=1e-3)


def test_a_mask_is_stored_as_bytes(tmp_path: Path) -> None:
    mask = np.zeros((4, 5, 6), dtype=bool)
    mask[1, 2, 3] = True
    made = nibabel.load(write_nifti(tmp_path / "x.nii", mask, OBLIQUE))
    assert made.get_data_dtype() == np.uint8
    assert np.asarray(made.dataobj)[3, 2, 1] == 1
    assert np.asarray(made.dataobj).sum() == 1


def test_channels_become_a_fourth_axis_and_one_channel_none(tmp_path: Path) -> None:
    three = np.arange(360, dtype=np.float32).reshape(3, 4, 5, 6)
    made = nibabel.load(write_nifti(tmp_path / "x.nii.gz", three, OBLIQUE))
    assert made.shape == (6, 5, 4, 3)
    assert np.asarray(made.dataobj)[5, 4, 3, 1] == three[1, 3, 4, 5]
    one = nibabel.load(write_nifti(tmp_path / "y.nii.gz", three[:1], OBLIQUE))
    assert one.shape == (6, 5, 4)


def test_a_path_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").mkdir()
    with pytest.raises(WriteError, match=r"x\.nii\.gz cannot be written"):
        write_nifti(tmp_path / "x.nii.gz", np.zeros((4, 5, 6), dtype=np.float32), OBLIQUE)
    assert [path.name for path in tmp_path.iterdir()] == ["x.nii.gz"]


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_a_step_is_what_readers_multiply_by(tmp_path: Path, name: str) -> None:
    voxels = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
    made = nibabel.load(write_nifti(tmp_path / name, voxels, OBLIQUE, step=0.25))
    np.testing.assert_array_equal(made.get_fdata().T, voxels * 0.25)
    assert made.get_data_dtype() == np.int16
    plain = nibabel.load(write_nifti(tmp_path / f"plain-{name}", voxels, OBLIQUE))
    np.testing.assert_array_equal(made.affine, plain.affine)
    assert made.header.get_xyzt_units()[0] == "mm"


OBLIQUE_SCAN = Grid(
    shape=(7, 9, 11),
    spacing_mm=(2.5, 0.8, 0.7),
    origin_mm=(-101.25, 53.5, -312.75),
    direction=((0.0, 0.6, 0.8), (0.0, 0.8, -0.6), (1.0, 0.0, 0.0)),
)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> ScanAnalysis:
    return analysed(small_scan(tmp_path_factory.mktemp("nifti") / "scan"))


def series_as_simpleitk_reads_it(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def assert_same_place(made: SimpleITK.Image, series: SimpleITK.Image) -> None:
    """The corners of both lie within 1e-4 mm of each other."""
    assert made.GetSize() == series.GetSize()
    for corner in np.ndindex(2, 2, 2):
        index = [int(at * (n - 1)) for at, n in zip(corner, series.GetSize(), strict=True)]
        np.testing.assert_allclose(
            made.TransformIndexToPhysicalPoint(index),
            series.TransformIndexToPhysicalPoint(index),
            rtol=0,
            atol=1e-4,
        )
    np.testing.assert_allclose(made.GetSpacing(), series.GetSpacing(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("grid", [make_volume().grid, OBLIQUE_SCAN], ids=["axial", "oblique"])
def test_maps_lie_where_simpleitk_puts_the_series(tmp_path: Path, grid: Grid) -> None:
    voxels = np.indices(grid.shape).sum(axis=0) * 5 - 900
    write_dicom_series(Volume(grid, voxels.astype(np.int16)), tmp_path / "scan")
    analysis = analysed(tmp_path / "scan")
    write_nifti_maps(analysis, tmp_path / "out")
    series = series_as_simpleitk_reads_it(tmp_path / "scan")
    for name in ("heat-map.nii.gz", "lungs.nii.gz"):
        made = SimpleITK.ReadImage(str(tmp_path / "out" / name))
        assert_same_place(made, series)
    lungs = SimpleITK.GetArrayFromImage(made).astype(bool)
    np.testing.assert_array_equal(lungs, analysis.prepared.scan_lungs.voxels)


def test_a_real_series_lies_where_simpleitk_puts_it(tmp_path: Path, data_folder: Path) -> None:
    whole = str(data_folder / "covid_ct_md" / "normal001")
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(whole)[60:66]
    (tmp_path / "scan").mkdir()
    for name in names:
        (tmp_path / "scan" / Path(name).name).symlink_to(name)
    write_nifti_maps(analysed(tmp_path / "scan"), tmp_path / "out")
    series = series_as_simpleitk_reads_it(tmp_path / "scan")
    for name in ("heat-map.nii.gz", "lungs.nii.gz"):
        assert_same_place(SimpleITK.ReadImage(str(tmp_path / "out" / name)), series)


@pytest.mark.parametrize("reader", ["nibabel", "SimpleITK"])
def test_heat_keeps_its_values_and_what_was_not_analysed_is_below_zero(
    analysis: ScanAnalysis, tmp_path: Path, reader: str
) -> None:
    path = write_nifti_maps(analysis, tmp_path)
    assert path.name == "heat-map.nii.gz"
    if reader == "nibabel":
        stored = nibabel.load(path).get_fdata().T
    else:
        stored = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    heat = scan_heat()
    known = ~np.isnan(heat)
    assert np.all(stored[~known] == NOT_ANALYSED)
    np.testing.assert_allclose(stored[known], heat[known], rtol=0, atol=1 / 8192)
    assert stored[known].min() >= 0.0


def test_lungs_keep_every_voxel(analysis: ScanAnalysis, tmp_path: Path) -> None:
    write_nifti_maps(analysis, tmp_path)
    lungs = np.asarray(nibabel.load(tmp_path / "lungs.nii.gz").dataobj).T
    np.testing.assert_array_equal(lungs.astype(bool), lung_mask())


def test_steps_leave_their_argument_and_the_ends_of_the_range_alone() -> None:
    heat = np.array([0.0, 1.0, 0.50001, np.nan], dtype=np.float32).reshape(1, 2, 2)
    before = heat.copy()
    steps = _in_steps(HeatMap.of(Grid((1, 2, 2), (1.0, 1.0, 1.0)), heat))
    np.testing.assert_array_equal(heat, before)
    np.testing.assert_array_equal(steps.ravel(), [0, _STEPS, _STEPS // 2, -_STEPS])


def test_without_an_explanation_only_lungs_are_written_and_an_older_heat_map_goes(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    write_nifti_maps(analysis, tmp_path)
    plain = replace(analysis, explanation=None)
    assert write_nifti_maps(plain, tmp_path).name == "lungs.nii.gz"
    assert [path.name for path in tmp_path.iterdir()] == ["lungs.nii.gz"]


def test_an_older_heat_map_that_cannot_be_removed_is_said(
    analysis: ScanAnalysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti_maps(analysis, tmp_path)
    unlink = Path.unlink

    def refuse(self: Path, **options: bool) -> None:
        if self.name == "heat-map.nii.gz":
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(WriteError, match="permission denied"):
        write_nifti_maps(replace(analysis, explanation=None), tmp_path)

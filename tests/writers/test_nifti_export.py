from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from chestct.errors import WriteError
from chestct.volume import Grid
from chestct.writers.nifti_export import write_nifti

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

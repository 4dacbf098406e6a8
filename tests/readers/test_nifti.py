"""Reading NIfTI, MetaImage and NRRD: geometry against nibabel and SimpleITK, values, refusals."""

from __future__ import annotations

import gzip
import itertools
import re
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from chestct.errors import ReadError
from chestct.extras import MissingExtraError
from chestct.readers import nifti as nifti_module
from chestct.readers import read_volume
from chestct.readers.nifti import read_nifti
from chestct.volume import AIR_HU, Grid, Volume, to_canonical

SPACING_IJK = (0.7, 0.8, 2.5)
# Columns: the file's axes i, j, k in RAS; the usual storage of an axial CT, LPS.
LPS_AFFINE = np.array([[-0.7, 0, 0, 90.0], [0, -0.8, 0, 70.0], [0, 0, 2.5, -300.0], [0, 0, 0, 1.0]])


def phantom_ijk() -> np.ndarray:
    """A small CT without any symmetry, indexed (i, j, k) = (to the left, back, head)."""
    values = np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3) * 10
    values[:2] -= 1000
    return values


def turned(order: tuple[int, ...], flips: tuple[bool, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The phantom stored with its axes permuted and reversed, and the affine that says so."""
    values = phantom_ijk().transpose(order)
    affine = LPS_AFFINE[:, [*order, 3]].copy()
    for axis, is_flipped in enumerate(flips):
        if is_flipped:
            affine[:3, 3] += affine[:3, axis] * (values.shape[axis] - 1)
            affine[:3, axis] *= -1
            values = np.flip(values, axis)
    return values, affine


def save(
    path: Path, values: np.ndarray, affine: np.ndarray = LPS_AFFINE, *, unit: str = "mm"
) -> nibabel.Nifti1Image:
    picture = nibabel.Nifti1Image(np.asarray(values), affine)
    picture.header.set_xyzt_units(unit)
    nibabel.save(picture, path)
    return picture


def edited(path: Path, **fields: object) -> Path:
    """The same file with header fields overwritten."""
    content = path.read_bytes()
    header = nibabel.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])
    return path


@pytest.fixture
def axial(tmp_path: Path) -> Path:
    path = tmp_path / "axial.nii"
    save(path, phantom_ijk())
    return path


def patient_position(volume: Volume, index: tuple[int, int, int]) -> np.ndarray:
    return volume.grid.to_patient(np.array(index, dtype=np.float64))


def test_usual_axial_file_comes_in_our_axes_without_any_change(axial: Path) -> None:
    volume = read_nifti(axial)
    assert volume.grid.shape == (3, 4, 5)
    assert volume.grid.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert volume.grid.origin_mm == pytest.approx((-90, -70, -300))
    assert volume.grid.direction == ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    np.testing.assert_array_equal(volume.voxels, phantom_ijk().T)
    assert volume.voxels.dtype == np.int16
    assert volume.voxels.flags.c_contiguous
    assert (volume.unit, volume.warnings, volume.source.format) == ("HU", (), "nifti")


ORIENTATIONS = list(
    itertools.product(itertools.permutations(range(3)), itertools.product([False, True], repeat=3))
)


@given(st.sampled_from(ORIENTATIONS), st.sampled_from([".nii", ".nii.gz"]))
@settings(max_examples=96, deadline=None)
def test_every_orientation_of_one_patient_reads_to_the_same_canonical_volume(
    tmp_path_factory: pytest.TempPathFactory,
    orientation: tuple[tuple[int, ...], tuple[bool, ...]],
    suffix: str,
) -> None:
    values, affine = turned(*orientation)
    path = tmp_path_factory.mktemp("orientations") / f"turned{suffix}"
    save(path, values, affine)
    canonical = to_canonical(read_nifti(path))
    np.testing.assert_array_equal(canonical.voxels, phantom_ijk().T)
    assert canonical.grid.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert canonical.grid.origin_mm == pytest.approx((-90, -70, -300), abs=1e-4)
    assert canonical.grid.direction == ((0, 0, 1), (0, 1, 0), (1, 0, 0))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_depth_is_the_file_axis_closest_to_the_body_axis(tmp_path: Path, order: tuple) -> None:
    values, affine = turned(order, (True, False, True))
    save(tmp_path / "a.nii", values, affine)
    volume = read_nifti(tmp_path / "a.nii")
    assert volume.grid.shape == (3, 4, 5)
    assert volume.voxels.flags.c_contiguous
    assert [int(np.argmax(np.abs(axis))) for axis in volume.grid.direction] == [2, 1, 0]


def rotation(angles: list[float]) -> np.ndarray:
    matrix = np.eye(3)
    for (first, second), angle in zip([(0, 1), (1, 2), (0, 2)], angles, strict=True):
        turn = np.eye(3)
        cos, sin = np.cos(angle), np.sin(angle)
        turn[first, first], turn[second, second] = cos, cos
        turn[first, second], turn[second, first] = -sin, sin
        matrix = matrix @ turn
    return matrix


@given(
    st.lists(st.floats(-0.7, 0.7), min_size=3, max_size=3),
    st.sampled_from(ORIENTATIONS),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_voxels_lie_where_nibabel_and_simpleitk_put_them(
    tmp_path_factory: pytest.TempPathFactory,
    angles: list[float],
    orientation: tuple[tuple[int, ...], tuple[bool, ...]],
    is_qform: bool,
) -> None:
    values, affine = turned(*orientation)
    affine[:3, :3] = rotation(angles) @ affine[:3, :3]
    path = tmp_path_factory.mktemp("oblique") / "oblique.nii"
    picture = nibabel.Nifti1Image(np.ascontiguousarray(values), affine)
    picture.set_sform(affine, code=0 if is_qform else 1)
    picture.set_qform(affine, code=1)
    picture.header.set_xyzt_units("mm")
    nibabel.save(picture, path)
    volume = read_nifti(path)
    itk_picture = SimpleITK.ReadImage(str(path))
    read_affine = nibabel.load(path).affine
    for ijk in [(0, 0, 0), (1, 2, 1), tuple(n - 1 for n in values.shape)]:
        ras = read_affine @ [*ijk, 1]
        lps = np.array([-ras[0], -ras[1], ras[2]])
        index = volume.grid.to_index(lps.astype(np.float64))
        np.testing.assert_allclose(index, np.rint(index), atol=1e-4)
        depth, height, width = np.rint(index).astype(int)
        assert volume.voxels[depth, height, width] == values[ijk]
        itk_position = itk_picture.TransformIndexToPhysicalPoint([int(n) for n in ijk])
        np.testing.assert_allclose(itk_position, lps, atol=1e-3)


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("image_type", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_both_versions_and_byte_orders_read_alike(
    tmp_path: Path, endianness: str, image_type: type
) -> None:
    header = image_type.header_class(endianness=endianness)
    header.set_data_dtype(np.int16)
    header.set_xyzt_units("mm")
    nibabel.save(image_type(phantom_ijk(), LPS_AFFINE, header), tmp_path / "a.nii.gz")
    volume = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.voxels, phantom_ijk().T)
    assert volume.voxels.dtype.isnative
    assert volume.warnings == ()


@pytest.mark.parametrize("stored", ["i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_whole_numbers_that_fit_become_int16_whatever_they_are_stored_as(
    tmp_path: Path, stored: str
) -> None:
    values = np.full((3, 3, 3), 100 if stored == "i1" else 1124)
    values[0] = 0 if stored[0] == "u" else -128
    picture = nibabel.Nifti1Image(values.astype(stored), LPS_AFFINE, dtype=stored)
    nibabel.save(picture, tmp_path / "a.nii")
    # nibabel would undo a slope and intercept set before saving
    edited(tmp_path / "a.nii", scl_slope=1, scl_inter=-1024)
    volume = read_nifti(tmp_path / "a.nii")
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, values.T - 1024)


@pytest.mark.parametrize(("slope", "intercept"), [(2, 1000), (0.5, -1000), (1, 0.5), (-1, 3)])
def test_scaling_gives_what_nibabel_gives(axial: Path, slope: float, intercept: float) -> None:
    edited(axial, scl_slope=slope, scl_inter=intercept)
    expected = np.asarray(nibabel.load(axial).dataobj).T
    volume = read_nifti(axial)
    np.testing.assert_allclose(volume.voxels, expected, rtol=1e-6)
    is_whole = bool((expected == np.rint(expected)).all())
    assert volume.voxels.dtype == (np.int16 if is_whole else np.float32)


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_an_unset_slope_means_no_scaling(axial: Path, slope: float) -> None:
    edited(axial, scl_slope=slope, scl_inter=7)
    np.testing.assert_array_equal(read_nifti(axial).voxels, phantom_ijk().T)


def test_float_values_found_late_widen_what_was_read_before(tmp_path: Path) -> None:
    values = phantom_ijk().astype(np.float32)
    values[4, 3, 2] = 0.25
    for name, order in [("a", (0, 1, 2)), ("b", (2, 0, 1))]:
        save(tmp_path / f"{name}.nii", values.transpose(order), LPS_AFFINE[:, [*order, 3]])
        volume = read_nifti(tmp_path / f"{name}.nii")
        assert volume.voxels.dtype == np.float32
        np.testing.assert_array_equal(volume.voxels, values.T)


def test_values_beyond_int16_are_kept_as_float32(tmp_path: Path) -> None:
    values = phantom_ijk().astype(np.int32)
    values[4, 3, 2] = 70_000
    save(tmp_path / "a.nii", values)
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii").voxels, values.T)


def test_nan_and_infinities_become_air_and_are_counted(tmp_path: Path) -> None:
    values = phantom_ijk().astype(np.float64)
    values[2, 0, 0], values[3, 1, 1], values[4, 2, 2] = np.nan, np.inf, 1e300
    save(tmp_path / "a.nii", values)
    volume = read_nifti(tmp_path / "a.nii")
    assert (volume.voxels == AIR_HU).sum() == 3
    assert "3 voxels were NaN or infinite" in volume.warnings[0]
    assert volume.voxels.dtype == np.int16


def test_nan_in_a_windowed_scan_becomes_its_lowest_value(tmp_path: Path) -> None:
    values = np.linspace(0.25, 99, 60, dtype=np.float32).reshape(5, 4, 3)
    values[0, 0, 1] = np.nan
    save(tmp_path / "a.nii", values)
    volume = read_nifti(tmp_path / "a.nii")
    assert volume.unit == "windowed"
    assert volume.voxels.min() == volume.voxels[1, 0, 0] == np.float32(0.25)
    assert "1 voxels were NaN or infinite; they were set to 0.25" in volume.warnings[1]


def test_a_scan_of_nothing_but_nan_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", np.full((3, 3, 3), np.nan, dtype=np.float32))
    with pytest.raises(ReadError, match="Every voxel is NaN or infinite"):
        read_nifti(tmp_path / "a.nii")


@pytest.mark.parametrize("highest", [255, 80])
def test_values_of_an_eight_bit_export_are_read_as_windowed(tmp_path: Path, highest: int) -> None:
    values = np.linspace(0, highest, 60).astype(np.uint8).reshape(5, 4, 3)
    save(tmp_path / "a.nii", values)
    volume = read_nifti(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.voxels, values.T)
    assert volume.unit == "windowed"
    assert "not Hounsfield units: no voxel is below -200 (the lowest is 0)" in volume.warnings[0]


@pytest.mark.parametrize(
    ("lowest", "highest", "reason"),
    [
        (0, 4095, "from 0 to 4095: not Hounsfield units .no voxel is below -200"),
        (0, 1, "from 0 to 1: not Hounsfield units"),
        (-150, 200, "from -150 to 200: not Hounsfield units"),
        (-1024, 30000, "of the voxels are above 4000.*Is it a mask, a normalised scan"),
    ],
)
def test_values_that_are_neither_hounsfield_units_nor_eight_bit_are_refused(
    tmp_path: Path, lowest: int, highest: int, reason: str
) -> None:
    save(tmp_path / "a.nii", np.linspace(lowest, highest, 60).astype(np.int16).reshape(5, 4, 3))
    with pytest.raises(ReadError, match=reason):
        read_nifti(tmp_path / "a.nii")


def test_converters_padding_outside_the_field_becomes_air(tmp_path: Path) -> None:
    values = phantom_ijk()
    values[0, 0, :2] = -3024
    save(tmp_path / "a.nii", values)
    volume = read_nifti(tmp_path / "a.nii")
    assert volume.voxels[0, 0, 0] == volume.voxels[1, 0, 0] == AIR_HU
    assert "2 voxels (3.3%) were below -1500 HU" in volume.warnings[0]


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3)])
def test_metres_and_microns_become_millimetres(tmp_path: Path, unit: str, factor: float) -> None:
    affine = LPS_AFFINE.copy()
    affine[:3] *= factor
    save(tmp_path / "a.nii", phantom_ijk(), affine, unit=unit)
    grid = read_nifti(tmp_path / "a.nii").grid
    assert grid.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert grid.origin_mm == pytest.approx((-90, -70, -300))


@pytest.mark.parametrize("code", [0, 5])
def test_an_unknown_unit_is_taken_for_millimetres_with_a_warning(axial: Path, code: int) -> None:
    volume = read_nifti(edited(axial, xyzt_units=code))
    assert volume.grid.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert volume.warnings == ("The file names no length unit: millimetres were assumed.",)


def test_a_time_unit_beside_the_length_unit_is_no_trouble(axial: Path) -> None:
    assert read_nifti(edited(axial, xyzt_units=2 | 8)).warnings == ()


def test_without_sform_and_qform_nibabels_affine_is_taken_with_a_warning(axial: Path) -> None:
    edited(axial, sform_code=0, qform_code=0)
    volume = read_nifti(axial)
    affine = nibabel.load(axial).affine
    np.testing.assert_allclose(volume.grid.origin_mm, np.diag([-1, -1, 1]) @ affine[:3, 3])
    assert volume.grid.direction == ((0, 0, 1), (0, -1, 0), (1, 0, 0))
    assert "does not say how the patient lies" in volume.warnings[0]


def test_geometry_of_programs_that_know_none_is_said(tmp_path: Path) -> None:
    save(tmp_path / "x.nii", phantom_ijk(), np.eye(4))
    (said,) = read_nifti(tmp_path / "x.nii").warnings
    assert said.startswith("The geometry is what programs write that know none")


def test_voxel_sizes_on_which_sform_and_pixdim_disagree_are_said(axial: Path) -> None:
    edited(axial, qform_code=0, pixdim=[1.0, 0.7, 0.8, 5.0, 1, 1, 1, 1])
    volume = read_nifti(axial)
    assert volume.grid.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert volume.warnings == (
        "Voxels have 0.7 x 0.8 x 2.5 by the sform and 0.7 x 0.8 x 5 by pixdim; the sform was"
        " taken: sizes may be wrong. Check them.",
    )


@pytest.mark.parametrize("size", [0.0, 0.705, np.nan])
def test_pixdim_that_says_the_same_or_nothing_is_read_without_a_word(
    axial: Path, size: float
) -> None:
    edited(axial, qform_code=0, pixdim=[1.0, size, 0.8, 2.5, 1, 1, 1, 1])
    assert read_nifti(axial).warnings == ()


def test_pair_of_files_is_refused_by_the_name_of_its_header(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(phantom_ijk(), LPS_AFFINE), tmp_path / "x.img")
    for path in (tmp_path / "x.hdr", tmp_path):
        with pytest.raises(ReadError, match=r"x\.hdr keeps its voxels in a separate \.img file"):
            read_volume(path)


def test_a_qform_alone_is_taken_also_with_a_qfac_of_zero(axial: Path) -> None:
    expected = read_nifti(axial).grid
    edited(axial, sform_code=0, qform_code=1)
    assert read_nifti(axial).grid.origin_mm == pytest.approx(expected.origin_mm)
    pixdim = [0.0, 0.7, 0.8, 2.5, 1, 1, 1, 1]
    volume = read_nifti(edited(axial, pixdim=pixdim))
    assert volume.grid.direction == ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    assert volume.warnings == ()


def test_an_sform_that_contradicts_the_qform_is_taken_with_a_warning(axial: Path) -> None:
    edited(axial, qform_code=1, qoffset_x=50.0)
    volume = read_nifti(axial)
    assert volume.grid.origin_mm[0] == pytest.approx(-90)
    assert volume.warnings == ("sform and qform disagree by up to 40.0; the sform was taken.",)


def test_an_impossible_qform_beside_an_sform_is_passed_over(axial: Path) -> None:
    edited(axial, qform_code=1, quatern_b=3.0)
    assert read_nifti(axial).warnings == ("The qform is impossible; the sform was taken.",)


def test_one_frame_of_a_4d_file_is_a_scan(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", phantom_ijk()[..., None])
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii").voxels, phantom_ijk().T)


def test_content_decides_whether_a_file_is_gzipped(axial: Path, tmp_path: Path) -> None:
    (tmp_path / "zipped.nii").write_bytes(gzip.compress(axial.read_bytes()))
    (tmp_path / "plain.nii.gz").write_bytes(axial.read_bytes())
    for name in ("zipped.nii", "plain.nii.gz"):
        np.testing.assert_array_equal(read_nifti(tmp_path / name).voxels, phantom_ijk().T)


def test_header_extensions_are_skipped(tmp_path: Path) -> None:
    picture = nibabel.Nifti1Image(phantom_ijk(), LPS_AFFINE)
    picture.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 1000))
    nibabel.save(picture, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii.gz").voxels, phantom_ijk().T)


def test_two_frames_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", np.stack([phantom_ijk()] * 2, axis=-1))
    with pytest.raises(ReadError, match="2 values per voxel; one 3D scan was expected"):
        read_nifti(tmp_path / "a.nii")


def test_a_single_picture_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", phantom_ijk()[..., 0])
    with pytest.raises(ReadError, match=r"declares axes of \(5, 4\) voxels"):
        read_nifti(tmp_path / "a.nii")


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_complex_and_colour_values_are_refused(tmp_path: Path, dtype: object) -> None:
    save(tmp_path / "a.nii", np.zeros((3, 3, 3), dtype=dtype))
    with pytest.raises(ReadError, match="one real number per voxel was expected"):
        read_nifti(tmp_path / "a.nii")


def test_sheared_axes_are_refused_with_their_angle(tmp_path: Path) -> None:
    affine = LPS_AFFINE.copy()
    affine[1, 2] = 2.5 * np.tan(np.radians(10))
    save(tmp_path / "a.nii", phantom_ijk(), affine)
    edited(tmp_path / "a.nii", qform_code=0)
    with pytest.raises(ReadError, match=r"sheared axes \(10.0 degrees off"):
        read_nifti(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"srow_x": [np.nan, 0, 0, 0]}, "NaN or infinite"),
        ({"srow_x": [0, 0, 0, 0]}, "voxels of 0 x 0.8 x 2.5 mm"),
        ({"xyzt_units": 1}, "voxels of 700 x 800 x 2500 mm"),
        ({"srow_x": [-0.7, 0, 0, 3e30]}, "first voxel at"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 3.0}, "impossible qform"),
        ({"dim": [3, 5000, 4, 3, 1, 1, 1, 1]}, "declares axes of"),
        ({"dim": [3, -5, 4, 3, 1, 1, 1, 1]}, "declares axes of"),
        ({"dim": [3, 4096, 4096, 4096, 1, 1, 1, 1]}, "voxels; at most"),
        ({"dim": [0, 5, 4, 3, 1, 1, 1, 1]}, r"declares axes of \(\)"),
        ({"dim": [3, 5, 4, 4, 1, 1, 1, 1]}, "is cut short"),
        ({"dim": [3, 5, 4, 2, 1, 1, 1, 1]}, "longer than it declares"),
        ({"bitpix": 8}, "declares 8 bits per voxel"),
        ({"datatype": 999}, "impossible header"),
        ({"scl_slope": 1, "scl_inter": np.inf}, "impossible header"),
        ({"vox_offset": 1e30}, "start at byte"),
        ({"vox_offset": 0}, "start at byte 0"),
        ({"vox_offset": np.nan}, "start at byte nan"),
        ({"magic": b"ni1"}, "separate .img file"),
        ({"magic": b"xyz"}, "not a NIfTI file"),
    ],
)
def test_impossible_headers_are_refused_with_the_reason(
    axial: Path, fields: dict[str, object], message: str
) -> None:
    edited(axial, **fields)
    with pytest.raises(ReadError, match=message):
        read_nifti(axial)


@pytest.mark.parametrize("content", [b"", b"\x5c", b"not a scan at all", b"\x1f\x8b"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ReadError, match=r"a\.nii"):
        read_nifti(tmp_path / "a.nii")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="is not a file"):
        read_nifti(tmp_path / "a.nii")


def test_a_header_cut_short_is_refused(axial: Path) -> None:
    axial.write_bytes(axial.read_bytes()[:200])
    with pytest.raises(ReadError, match="ends within its NIfTI header"):
        read_nifti(axial)


def test_a_gzipped_file_cut_short_damaged_or_overlong_is_refused(axial: Path) -> None:
    content = axial.read_bytes()
    path = axial.with_suffix(".nii.gz")
    bad_checksum = bytearray(gzip.compress(content))
    bad_checksum[-6] ^= 1
    cases = {
        gzip.compress(content)[:-20]: "cannot be read to its end",
        gzip.compress(content[:-20]): "is cut short",
        gzip.compress(content + b"more"): "longer than the 120 bytes",
        bytes(bad_checksum): "cannot be read to its end",
    }
    for zipped, message in cases.items():
        path.write_bytes(zipped)
        with pytest.raises(ReadError, match=message):
            read_nifti(path)


def bomb(path: Path, num_slices: int) -> Path:
    """A gzip file of `num_slices` slices of 1024 x 1024, all zero: 1000 times smaller."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((1024, 1024, num_slices))
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(num_slices):
            file.write(bytes(2 * 1024 * 1024))
    return path


def test_a_gzip_bomb_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb.nii.gz", 140)
    before = psutil.Process().memory_info().rss
    with pytest.raises(ReadError, match="compressed more than 200 times, which no scan is"):
        read_nifti(path)
    assert psutil.Process().memory_info().rss - before < 20e6


def test_a_smooth_phantom_of_ordinary_size_is_no_bomb(tmp_path: Path) -> None:
    path = bomb(tmp_path / "smooth.nii.gz", 16)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[352:] = np.repeat(np.int16([-1000, 40]), 8 * 1024 * 1024).tobytes()
    path.write_bytes(gzip.compress(bytes(content), compresslevel=1))
    assert read_nifti(path).grid.shape == (16, 1024, 1024)


def test_reading_holds_the_scan_in_memory_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tracemalloc

    values = np.random.default_rng(0).integers(-1024, 300, (96, 160, 160), dtype=np.int16)
    save(tmp_path / "a.nii.gz", values, LPS_AFFINE[:, [2, 0, 1, 3]])
    save(tmp_path / "first.nii.gz", values[:16, :64, :64], LPS_AFFINE[:, [2, 0, 1, 3]])
    read_nifti(tmp_path / "first.nii.gz")  # what a first read imports is not the scan's
    tracemalloc.start()
    volume = read_nifti(tmp_path / "a.nii.gz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * volume.voxels.nbytes


def test_an_unreadable_file_is_an_error_of_our_own(
    axial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr(nifti_module, "_read_header", fail)
    with pytest.raises(ReadError, match="cannot be read to its end"):
        read_nifti(axial)


@pytest.mark.parametrize("name", ["chest64_ct.nii.gz", "lung4d_ct.nii.gz"])
def test_real_scans_read_as_simpleitk_reads_them(data_folder: Path, name: str) -> None:
    path = data_folder / "lung_masks" / name
    volume = read_nifti(path)
    expected = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(volume.voxels, SimpleITK.GetArrayFromImage(expected))
    assert volume.grid.origin_mm == pytest.approx(expected.GetOrigin())
    assert volume.grid.spacing_mm[::-1] == pytest.approx(expected.GetSpacing())
    assert volume.unit == "HU"


# --- slices that do not fit -------------------------------------------------------------------


def layered_scan(bad: np.ndarray | None = None) -> np.ndarray:
    """Values (i, j, k) of a body that changes along k, one slice replaced if one is given."""
    i, j, k = np.mgrid[:32, :32, :12]
    body = (i - 16) ** 2 + (j - 16) ** 2 < (9 + 0.4 * k) ** 2
    values = np.where(body, 40, -1000) + np.random.default_rng(0).normal(0, 10, body.shape)
    if bad is not None:
        values[:, :, 5] = bad
    return np.round(values).astype(np.int16)


@pytest.mark.parametrize("kind", ["blank", "noise", "shifted"])
def test_slice_that_does_not_fit_is_refused_or_interpolated(tmp_path: Path, kind: str) -> None:
    whole = layered_scan()
    bad = {
        "blank": np.full((32, 32), -1000),
        "noise": np.random.default_rng(1).normal(0, 400, (32, 32)),
        "shifted": np.roll(whole[:, :, 5], 6, axis=0),
    }[kind]
    path = tmp_path / "x.nii"
    nibabel.save(nibabel.Nifti1Image(layered_scan(bad), np.diag([1.0, 1.0, 2.0, 1.0])), path)
    with pytest.raises(ReadError, match=r"slice 6 of 12 .*--allow-bad-slices"):
        read_nifti(path)
    volume = read_nifti(path, allow={"bad-slices"})
    planes = whole.transpose(2, 1, 0).astype(float)
    assert np.abs(volume.voxels[5] - (planes[4] + planes[6]) / 2).max() <= 1
    assert np.array_equal(np.delete(volume.voxels, 5, 0), np.delete(planes, 5, 0))
    assert "slice 6 of 12" in volume.warnings[-1]


def saved(values: np.ndarray, path: Path) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0])), path)
    return path


def test_slice_that_repeats_another_is_refused_or_interpolated(tmp_path: Path) -> None:
    values = layered_scan()
    values[:, :, 6] = values[:, :, 5]
    path = saved(values, tmp_path / "x.nii")
    with pytest.raises(ReadError, match=r"slice 7 of 12 is the same as another .*bad-slices"):
        read_nifti(path)
    planes = layered_scan().transpose(2, 1, 0).astype(float)
    volume = read_nifti(path, allow={"bad-slices"})
    assert np.abs(volume.voxels[6] - (planes[5] + planes[7]) / 2).max() <= 1


@pytest.mark.parametrize("factor", [1.25, 1.5, 2.0, 3.0])
def test_scan_that_was_enlarged_by_repeating_slices_is_read(tmp_path: Path, factor: float) -> None:
    values = layered_scan()
    enlarged = values[:, :, (np.arange(int(12 * factor)) / factor).astype(int)]
    volume = read_nifti(saved(enlarged, tmp_path / "x.nii"))
    assert np.array_equal(volume.voxels, enlarged.transpose(2, 1, 0))


def test_run_of_slices_that_do_not_fit_is_too_long_to_be_interpolated(tmp_path: Path) -> None:
    values = layered_scan()
    values[:, :, 4:8] = np.random.default_rng(1).normal(0, 400, (32, 32, 4))
    path = saved(values, tmp_path / "x.nii")
    with pytest.raises(ReadError, match=r"4 slice\(s\) .*slice 5 of 12 does not fit"):
        read_nifti(path)
    with pytest.raises(ReadError, match="too many to be interpolated"):
        read_nifti(path, allow={"bad-slices"})


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("num_cut", [10, 20])
@pytest.mark.parametrize("name", ["LIDC-IDRI-1011", "A0001_B", "TCGA-DE-A4MA_wholebody"])
def test_real_scan_out_of_which_slices_were_cut_is_refused(
    data_folder: Path, tmp_path: Path, name: str, num_cut: int, share: float
) -> None:
    values = np.asarray(
        nibabel.load(data_folder / "real_scans" / f"{name}_ct.nii.gz").dataobj, dtype=np.int16
    )[::2, ::2]
    first = round(share * (values.shape[2] - num_cut))
    cut = np.delete(values, range(first, first + num_cut), axis=2)
    with pytest.raises(ReadError, match=rf"jumps between slice {first} of .*Permit it"):
        read_nifti(saved(cut, tmp_path / "x.nii"))


WRONG_SCALES = {
    "off by -300": lambda hu: hu - 300,
    "off by 500": lambda hu: hu + 500,
    "steeper": lambda hu: 1.5 * (hu + 1024) - 1024,
    "flatter": lambda hu: 0.5 * (hu + 1024) - 1024,
    "inverted": lambda hu: -hu,
    "four bits lost": lambda hu: (hu + 1024) // 16 - 1024,
}


@pytest.mark.parametrize("kind", WRONG_SCALES)
@pytest.mark.parametrize("name", ["LIDC-IDRI-1011", "A0001_B", "C3N-00247"])
def test_real_values_on_another_scale_are_not_taken_for_hounsfield_units(
    data_folder: Path, tmp_path: Path, name: str, kind: str
) -> None:
    path = data_folder / "real_scans" / f"{name}_ct.nii.gz"
    values = np.asarray(nibabel.load(path).dataobj, dtype=np.int16)[::2, ::2]
    wrong = np.asarray(WRONG_SCALES[kind](values), dtype=np.int16)
    with pytest.raises(ReadError, match="not Hounsfield units"):
        read_nifti(saved(wrong, tmp_path / "x.nii"))


def test_lungs_alone_are_still_hounsfield_units(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "lung_masks"
    values, lungs = (
        np.asarray(nibabel.load(folder / f"chest64_{what}.nii.gz").dataobj)
        for what in ("ct", "lungs")
    )
    alone = np.where(lungs > 0, values, -1000).astype(np.int16)
    assert read_nifti(saved(alone, tmp_path / "x.nii")).unit == "HU"


def test_blank_slices_at_the_ends_of_a_nifti_are_padding(tmp_path: Path) -> None:
    values = layered_scan()
    values[:, :, [0, 1, 11]] = -1000
    path = tmp_path / "x.nii"
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0])), path)
    assert read_nifti(path).voxels.shape[0] == 12


# --- MetaImage and NRRD -----------------------------------------------------------------------


def itk_image(shape: tuple[int, ...] = (6, 12, 10)) -> SimpleITK.Image:
    values = np.linspace(-1000, 300, np.prod(shape), dtype=np.int16).reshape(shape)
    made = SimpleITK.GetImageFromArray(values)
    made.SetSpacing([0.7, 0.8, 2.5][: len(shape)])
    return made


def written(folder: Path, name: str, made: SimpleITK.Image | None = None) -> Path:
    SimpleITK.WriteImage(made or itk_image(), str(folder / name.lower()))
    return (folder / name.lower()).rename(folder / name)


@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd", "SCAN.MHA"])
def test_positions_are_those_that_simpleitk_gives(tmp_path: Path, name: str) -> None:
    made = itk_image()
    angle = np.radians(20)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    # Axes swapped and turned: columns run to the feet, slices nearly to the left.
    made.SetDirection((0, sin, cos, 0, cos, -sin, -1, 0, 0))
    made.SetOrigin((11.0, -22.0, 33.0))
    found = read_volume(written(tmp_path, name, made))
    for index in ((0, 0, 0), (3, 2, 1), (9, 11, 5)):
        place = np.array([made.TransformIndexToPhysicalPoint(index)])
        depth, height, width = np.rint(found.grid.to_index(place)[0]).astype(int)
        assert np.allclose(found.grid.to_patient(np.array([[depth, height, width]], float)), place)
        assert found.voxels[depth, height, width] == made[index]
    assert isinstance(found.grid, Grid)


@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd", "scan.nii"])
def test_geometry_that_simpleitk_gives_to_a_bare_array_is_said(tmp_path: Path, name: str) -> None:
    made = itk_image()
    made.SetSpacing([1.0, 1.0, 1.0])
    (said,) = read_volume(written(tmp_path, name, made)).warnings
    assert said.startswith("The geometry is what programs write that know none")


@pytest.mark.parametrize("name", ["scan.mhd", "scan.nhdr"])
def test_a_header_whose_voxels_lie_in_another_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ReadError, match=r"keeps its voxels in another file.*Convert it"):
        read_volume(written(tmp_path, name))


def test_no_other_file_is_opened_whatever_the_header_says(tmp_path: Path) -> None:
    path = written(tmp_path, "scan.mha")
    header = path.read_bytes().replace(b"LOCAL", b"/etc/passwd")
    path.write_bytes(header)
    with pytest.raises(ReadError, match="in another file"):
        read_volume(path)


def test_a_voxel_of_unknown_size_is_not_taken_for_a_millimetre(tmp_path: Path) -> None:
    path = written(tmp_path, "scan.mha")
    path.write_bytes(re.sub(rb"ElementSpacing = [^\n]*\n", b"", path.read_bytes()))
    with pytest.raises(ReadError, match="how large its voxels are"):
        read_volume(path)


@pytest.mark.parametrize("shape", [(12, 10), (6, 12, 10, 3)])
def test_what_is_no_volume_of_single_values_is_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    values = np.zeros(shape, dtype=np.int16)
    made = SimpleITK.GetImageFromArray(values, isVector=len(shape) == 4)
    with pytest.raises(ReadError, match=r"one 3D\s+scan was expected"):
        read_volume(written(tmp_path, "scan.mha", made))


def test_a_header_that_declares_too_much_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, "scan.mha")
    sized = path.read_bytes().replace(b"DimSize = 10 12 6", b"DimSize = 1024 1024 1100")
    path.write_bytes(sized)
    with pytest.raises(ReadError, match=r"declares .* voxels.*Have thicker slices reconstructed"):
        read_volume(path)


def test_without_simpleitk_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "scan.mha")
    monkeypatch.setattr("chestct.extras.is_installed", lambda package: False)
    with pytest.raises(MissingExtraError, match=r"chestct\[itk\]"):
        read_volume(path)


def test_a_folder_may_hold_one_such_file(tmp_path: Path) -> None:
    written(tmp_path, "scan.nrrd")
    (tmp_path / "notes.txt").write_text("read by two")
    assert read_volume(tmp_path).source.format == "itk"
    written(tmp_path, "other.mha")
    with pytest.raises(ReadError, match="holds 2 MetaImage or NRRD files"):
        read_volume(tmp_path)

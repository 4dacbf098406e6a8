from __future__ import annotations

import copy
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from dicom_files import (
    ENCODERS,
    SERIES,
    ct_dataset,
    enhanced_dataset,
    expected_hu,
    pixels_at,
    save,
    save_encapsulated,
    write_series,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    ParametricMapStorage,
    RawDataStorage,
    SecondaryCaptureImageStorage,
    XRayRadiationDoseSRStorage,
)

from chestct.errors import ReadError, SeveralSeriesError, UnknownNameError
from chestct.readers import (
    READERS,
    dicom_headers,
    dicom_pixels,
    dicom_series,
    dicom_slices,
    read_volume,
)
from chestct.readers.pictures import TiffGeometry

HEIGHTS = [4.0, 0.0, -2.0, 2.0, 6.0]


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def test_folder_is_read_by_position_not_by_name(tmp_path: Path) -> None:
    volume = read_volume(write_series(tmp_path, HEIGHTS))
    assert np.array_equal(volume.voxels, expected_hu(HEIGHTS))
    assert volume.voxels.dtype == np.int16
    assert volume.voxels.flags.c_contiguous
    assert volume.grid.spacing_mm == (2.0, 0.5, 0.75)
    assert volume.grid.origin_mm == (-10.0, -20.0, -2.0)
    assert (volume.unit, volume.warnings) == ("HU", ())


def test_source_says_where_slices_came_from_and_no_name(tmp_path: Path) -> None:
    source = read_volume(write_series(tmp_path, HEIGHTS)).source
    assert (source.format, source.series_uid) == ("dicom", SERIES)
    assert source.slice_uids[0] == "1.2.3.4.9.200.1"
    assert source.facts["kernel"] == "B30f"
    assert source.left_out == {}
    assert "secret" not in repr(source).lower()


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(len(HEIGHTS))), seed=st.integers(0, 10**6))
def test_any_order_and_naming_of_files_gives_the_same_volume(order, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for place, index in enumerate(order):
            z = HEIGHTS[index]
            file = folder / f"{'ab'[place % 2]}" / f"{(seed + place * 7919) % 1000}-{place}"
            save(ct_dataset(pixels_at(z), z), file)
        volume = read_volume(folder)
    assert np.array_equal(volume.voxels, expected_hu(HEIGHTS))
    assert volume.grid.origin_mm == (-10.0, -20.0, -2.0)
    assert volume.source.slice_uids[0] == "1.2.3.4.9.200.1"


def test_nested_folder_and_zip_give_the_same_volume(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan" / "deep" / "deeper", HEIGHTS)
    nested = read_volume(tmp_path / "scan")
    packed = read_volume(zipped(folder, tmp_path / "scan.zip"))
    assert np.array_equal(nested.voxels, packed.voxels)
    assert nested.grid == packed.grid


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("is_zipped", [False, True])
def test_enhanced_file_is_a_whole_scan(tmp_path: Path, syntax: str, is_zipped: bool) -> None:
    stored = np.stack([pixels_at(z) for z in HEIGHTS])
    path = save(enhanced_dataset(stored, HEIGHTS), tmp_path / "scan" / "x", syntax)
    if is_zipped:
        path = zipped(path.parent, tmp_path / "scan.zip")
    volume = read_volume(path)
    assert np.array_equal(volume.voxels, expected_hu(HEIGHTS))
    assert volume.warnings == ()


def test_compressed_enhanced_file_in_a_zip_is_read(tmp_path: Path) -> None:
    syntax = "1.2.840.10008.1.2.4.80"
    stored = np.stack([pixels_at(z) for z in HEIGHTS])
    frames = [bytes(ENCODERS[syntax](frame)) for frame in stored]
    (tmp_path / "scan").mkdir()
    save_encapsulated(enhanced_dataset(stored, HEIGHTS), tmp_path / "scan" / "x", syntax, frames)
    volume = read_volume(zipped(tmp_path / "scan", tmp_path / "scan.zip"))
    assert np.array_equal(volume.voxels, expected_hu(HEIGHTS))


def test_one_file_of_a_scan_gives_one_slice_with_a_warning(tmp_path: Path) -> None:
    path = save(ct_dataset(pixels_at(1.0), 1.0), tmp_path / "x.dcm")
    volume = read_volume(path)
    assert volume.grid.shape[0] == 1
    assert volume.warnings == ("There is 1 slice only, not a whole scan.",)


def test_slices_with_empty_or_invalid_identifiers_are_read(tmp_path: Path) -> None:
    with config.disable_value_validation():
        write_series(tmp_path, HEIGHTS, SOPInstanceUID="", SeriesInstanceUID="not a (valid) UID")
    volume = read_volume(tmp_path)
    assert volume.source.slice_uids == ("",) * 5
    assert volume.source.series_uid == "not a (valid) UID"
    assert volume.warnings == ()


def test_rescale_may_differ_from_slice_to_slice(tmp_path: Path) -> None:
    for index, z in enumerate((0.0, 2.0, 4.0)):
        dataset = ct_dataset(pixels_at(z), z, RescaleIntercept=f"{-1000 - index}")
        save(dataset, tmp_path / f"{index}")
    volume = read_volume(tmp_path)
    expected = [pixels_at(z).astype(int) - 1000 - i for i, z in enumerate((0.0, 2.0, 4.0))]
    assert np.array_equal(volume.voxels, expected)


def test_feet_first_orientation_is_kept_along_its_own_normal(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS, ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])
    volume = read_volume(tmp_path)
    assert volume.grid.direction[0] == (0.0, 0.0, -1.0)
    assert np.array_equal(volume.voxels, expected_hu(HEIGHTS)[::-1])


def test_real_scan_is_read_as_simpleitk_does(data_folder: Path) -> None:
    folder = data_folder / "covid_ct_md" / "P001"
    volume = read_volume(folder)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    assert np.array_equal(volume.voxels, SimpleITK.GetArrayViewFromImage(theirs))
    assert np.allclose(volume.grid.origin_mm, theirs.GetOrigin(), atol=1e-6)
    assert np.allclose(volume.grid.spacing_mm[::-1], theirs.GetSpacing(), atol=1e-6)
    assert volume.warnings == ()
    assert volume.source.facts["kernel"] == "D40s"


# --- what is left out -------------------------------------------------------------------------


def test_scouts_captures_and_reports_are_left_out_counted_and_said(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS)
    localizer = ct_dataset(pixels_at(0.0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    colour = ct_dataset(pixels_at(0.0), PhotometricInterpretation="PALETTE COLOR")
    capture = ct_dataset(pixels_at(0.0), SOPClassUID=SecondaryCaptureImageStorage)
    report = ct_dataset(pixels_at(0.0), SOPClassUID=XRayRadiationDoseSRStorage, Modality="SR")
    dose = ct_dataset(pixels_at(0.0), ImageType=["DERIVED", "SECONDARY", "DOSE_INFO"])
    resonance = ct_dataset(pixels_at(0.0), SOPClassUID=MRImageStorage, Modality="MR")
    others = (localizer, colour, capture, report, dose, resonance, localizer)
    for index, dataset in enumerate(others):
        save(dataset, tmp_path / f"other{index}")
    empty = ct_dataset(pixels_at(0.0), PixelData=None)
    empty.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    empty.save_as(tmp_path / "empty", enforce_file_format=True)
    (tmp_path / "notes.txt").write_text("notes")
    volume = read_volume(tmp_path)
    assert volume.source.left_out == {
        "MR image": 1,
        "colour picture": 1,
        "dose report": 1,
        "localizer": 2,
        "object without pixels": 1,
        "other file": 1,
        "secondary capture": 1,
        "structured report": 1,
    }
    assert "2 localizers" in volume.warnings[0]
    assert np.array_equal(volume.voxels, expected_hu(HEIGHTS))


def test_low_dose_is_no_dose_report_and_hounsfield_in_full_is_hu(tmp_path: Path) -> None:
    told = {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "LOW_DOSE"], "RescaleType": "HOUNSFIELD"}
    write_series(tmp_path, HEIGHTS, **told)
    volume = read_volume(tmp_path)
    assert volume.source.left_out == {}
    assert volume.unit == "HU"
    assert np.array_equal(volume.voxels, expected_hu(HEIGHTS))


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        ({"localizer": 2}, "2 localizers"),
        ({"DICOM directory": 2}, "2 DICOM directories"),
        ({"file that cannot be opened": 2}, "2 files that cannot be opened"),
        (
            {"CT slice without a position": 2, "MR image": 1},
            "2 CT slices without a position, 1 MR image",
        ),
    ],
)
def test_kinds_are_counted_in_words(kinds: dict[str, int], text: str) -> None:
    assert dicom_slices._counted(kinds) == text


def save_without_pixels(path: Path, tag: int, vr: str, value: bytes, **fields: object) -> Path:
    """An object that holds one long value in place of pixels."""
    dataset = ct_dataset(pixels_at(0.0), PixelData=None, **fields)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.add_new(tag, vr, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(
    ("tag", "vr", "fields", "kind"),
    [
        (0x7FE00008, "OF", {"Modality": "OT", "SOPClassUID": ParametricMapStorage}, "OT object"),
        (0x7FE00009, "OD", {"SOPClassUID": ParametricMapStorage}, "object without pixels"),
        (0x7FE00008, "OF", {}, "object without pixels"),
        (
            0x00420011,
            "OB",
            {"Modality": "DOC", "SOPClassUID": EncapsulatedPDFStorage},
            "DOC object",
        ),
        (0x7FE11010, "OB", {"SOPClassUID": RawDataStorage}, "object without pixels"),
    ],
)
def test_objects_with_one_long_value_are_left_out_and_the_scan_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tag: int,
    vr: str,
    fields: dict[str, str],
    kind: str,
) -> None:
    monkeypatch.setattr(dicom_headers, "MAX_HEADER_BYTES", 2**17)
    write_series(tmp_path, HEIGHTS)
    save_without_pixels(tmp_path / "other.dcm", tag, vr, bytes(2**18), **fields)
    volume = read_volume(tmp_path)
    assert volume.source.left_out == {kind: 1}
    assert np.array_equal(volume.voxels, expected_hu(HEIGHTS))


def test_document_of_any_size_is_left_out_for_little_reading(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS)
    path = tmp_path / "document.dcm"
    save_without_pixels(path, 0x00420011, "OB", bytes(16), Modality="DOC")
    content = bytearray(path.read_bytes())
    content[-20:-16] = (2**28).to_bytes(4, "little")
    path.write_bytes(content)
    os.truncate(path, len(content) - 16 + 2**28)
    assert read_volume(tmp_path).source.left_out == {"DOC object": 1}


def test_compressed_files_of_other_kinds_beside_the_slices_are_left_out(tmp_path: Path) -> None:
    write_series(tmp_path / "dicom", HEIGHTS)
    # A mask of few voxels packs as a bomb does.
    (tmp_path / "lesions.nii.gz").write_bytes(gzip.compress(bytes(2**24)))
    notes = gzip.compress(b"some notes on the scan, and more of them\n" * 99)
    (tmp_path / "notes.txt.gz").write_bytes(notes[: len(notes) // 2])
    volume = read_volume(tmp_path)
    assert volume.source.left_out == {"other file": 2}
    assert np.array_equal(volume.voxels, expected_hu(HEIGHTS))


@pytest.mark.parametrize("name", ["x.dcm.gz", "x.IMA.gz", "slice"])
def test_damaged_compressed_slice_is_refused_and_named(tmp_path: Path, name: str) -> None:
    write_series(tmp_path, HEIGHTS)
    packed = gzip.compress(save(ct_dataset(pixels_at(8.0), 8.0), tmp_path / "x").read_bytes())
    (tmp_path / "x").unlink()
    cut = packed[:-20] if name == "slice" else packed[:12]
    (tmp_path / name).write_bytes(cut)
    with pytest.raises(ReadError, match=name):
        read_volume(tmp_path)


def test_real_dicomdir_is_said_to_be_one(tmp_path: Path) -> None:
    # Its class stands in the file meta information alone, as PS3.3 F.3 has it.
    directory = Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.FileSetID = "DISK1"
    directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 360
    directory.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = 360
    directory.FileSetConsistencyFlag = 0
    record = Dataset()
    record.DirectoryRecordType, record.PatientName = "PATIENT", "Secret^Name"
    directory.DirectoryRecordSequence = Sequence([record])
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    with pytest.raises(ReadError, match=r"found 1 DICOM directory.*name the folder of one scan"):
        read_volume(tmp_path / "DICOMDIR")
    write_series(tmp_path, HEIGHTS)
    assert read_volume(tmp_path).source.left_out == {"DICOM directory": 1}


def test_dicom_directory_is_left_out(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS)
    directory = ct_dataset(pixels_at(0.0), SOPClassUID="1.2.840.10008.1.3.10")
    save(directory, tmp_path / "DICOMDIR")
    assert read_volume(tmp_path).source.left_out == {"DICOM directory": 1}


@pytest.mark.parametrize("name", ["dicom_not_a_scan", "dicom_not_a_scan/I10"])
def test_real_folder_without_a_scan_is_refused_with_what_was_found(
    data_folder: Path, name: str
) -> None:
    with pytest.raises(ReadError, match=r"found .*localizer.*A chest CT series was expected"):
        read_volume(data_folder / name)


def test_magnetic_resonance_series_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS, SOPClassUID=MRImageStorage, Modality="MR")
    with pytest.raises(ReadError, match="found 5 MR images"):
        read_volume(tmp_path)


def test_empty_folder_and_text_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError, match="found no files"):
        read_volume(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("some notes that are no scan " * 10)
    with pytest.raises(ReadError, match="found 1 other file"):
        read_volume(tmp_path / "notes.txt")


def test_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="There is no file or folder"):
        read_volume(tmp_path / "absent")


def test_path_that_cannot_be_looked_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="cannot be looked at: File name too long"):
        read_volume(tmp_path / ("x" * 300))


# --- several series ---------------------------------------------------------------------------


def series_in(folder: Path, uid: str, num: int, **fields: object) -> None:
    write_series(folder / uid, [2.0 * i for i in range(num)], SeriesInstanceUID=uid, **fields)


def test_series_with_the_most_slices_is_chosen_and_the_others_listed(tmp_path: Path) -> None:
    series_in(tmp_path, "1.1", 3, ConvolutionKernel="B60f")
    series_in(tmp_path, "1.2", 9)
    volume = read_volume(tmp_path)
    assert volume.source.series_uid == "1.2"
    assert '1.1  3 slices, 2 mm, kernel "B60f"' in volume.warnings[0]


def test_lung_kernel_is_preferred_among_series_of_nearly_as_many_slices(tmp_path: Path) -> None:
    series_in(tmp_path, "1.1", 10)
    series_in(tmp_path, "1.2", 9, ConvolutionKernel="B60f")
    assert read_volume(tmp_path).source.series_uid == "1.2"


def test_axial_series_is_preferred_over_a_longer_one_that_is_not(tmp_path: Path) -> None:
    series_in(tmp_path, "1.1", 4)
    for index in range(8):
        dataset = ct_dataset(
            pixels_at(0.0),
            SeriesInstanceUID="1.2",
            ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
            ImagePositionPatient=[0, index, 0],
        )
        save(dataset, tmp_path / f"coronal{index}")
    assert read_volume(tmp_path).source.series_uid == "1.1"
    coronal = read_volume(tmp_path, series="1.2")
    assert "The slices are not axial; the scan was read as it lies in the patient." in (
        coronal.warnings
    )
    assert coronal.grid.direction[0] == (0.0, 1.0, 0.0)


def test_original_series_is_preferred_over_a_derived_one(tmp_path: Path) -> None:
    series_in(tmp_path, "1.1", 4)
    series_in(tmp_path, "1.2", 8, ImageType=["DERIVED", "SECONDARY", "REFORMATTED"])
    assert read_volume(tmp_path).source.series_uid == "1.1"
    assert "derived" in read_volume(tmp_path, series="1.2").warnings[1]


def test_series_that_fit_equally_well_are_an_error_that_lists_them(tmp_path: Path) -> None:
    series_in(tmp_path, "1.1", 4, ConvolutionKernel="B31f")
    series_in(tmp_path, "1.2", 4)
    with pytest.raises(SeveralSeriesError, match="holds 2 CT series that fit equally") as raised:
        read_volume(tmp_path)
    assert list(raised.value.series) == ["1.1", "1.2"]
    assert raised.value.series["1.1"] == '4 slices, 2 mm, kernel "B31f"'
    # Scans are read in processes of their own, from which errors come as copies.
    assert copy.copy(raised.value).series == raised.value.series
    text = str(raised.value)
    assert '1.1  4 slices, 2 mm, kernel "B31f"' in text
    assert "--series 1.1" in text
    assert "Secret" not in text


def test_series_that_the_user_names_is_read(tmp_path: Path) -> None:
    series_in(tmp_path, "1.1", 4)
    series_in(tmp_path, "1.2", 4)
    assert read_volume(tmp_path, series="1.2").source.series_uid == "1.2"
    with pytest.raises(ReadError, match=r"no CT series 1.9\. It holds:"):
        read_volume(tmp_path, series="1.9")


def test_scans_of_two_patients_are_an_error(tmp_path: Path) -> None:
    series_in(tmp_path, "1.1", 4)
    series_in(tmp_path, "1.2", 9, PatientID="OTHER-ID")
    with pytest.raises(ReadError, match="scans of 2 patients") as raised:
        read_volume(tmp_path)
    assert "OTHER-ID" not in str(raised.value)


def test_stray_slice_of_another_series_is_left_out(tmp_path: Path) -> None:
    series_in(tmp_path, "1.1", 4)
    series_in(tmp_path, "1.2", 1, PatientID="OTHER-ID")
    volume = read_volume(tmp_path)
    assert volume.grid.shape[0] == 4
    assert "1 other CT series with 1 slice(s) were not read" in volume.warnings[0]
    assert "1 of them of another patient" in volume.warnings[0]


@pytest.mark.parametrize(
    ("kernel", "is_lung"),
    [
        ("B60f", True),
        ("B31f", False),
        ("Br64d", True),
        ("Br36d", False),
        ("Bl57", True),
        ("LUNG", True),
        ("STANDARD", False),
        ("FC51", True),
        ("FC08", False),
        ("YA", True),
        ("I70f\\3", True),
        ("", False),
    ],
)
def test_lung_kernels_of_the_makers_are_known(kernel: str, is_lung: bool) -> None:
    assert bool(dicom_slices._LUNG_KERNEL.search(kernel)) is is_lung


# --- departures -------------------------------------------------------------------------------


def test_missing_slice_is_interpolated_between_its_neighbours(tmp_path: Path) -> None:
    write_series(tmp_path, [0.0, 2.0, 6.0, 8.0])
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, expected_hu([0.0, 2.0, 4.0, 6.0, 8.0]))
    assert "1 slice(s) are missing" in volume.warnings[0]
    assert len(volume.source.slice_uids) == 5


def test_gap_is_refused_unless_allowed(tmp_path: Path) -> None:
    write_series(tmp_path, [0.0, 2.0, 4.0, 12.0, 14.0])
    with pytest.raises(ReadError, match=r"3 slice\(s\) are missing.*--allow-gap"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, allow={"gap"})
    assert np.array_equal(volume.voxels, expected_hu([2.0 * i for i in range(8)]))


def test_uneven_slices_are_interpolated(tmp_path: Path) -> None:
    write_series(tmp_path, [0.0, 2.0, 4.0, 6.6, 8.0])
    volume = read_volume(tmp_path)
    assert np.abs(volume.voxels - expected_hu([2.0 * i for i in range(5)])).max() <= 1
    assert "unevenly spaced" in volume.warnings[0]


def test_identical_duplicates_are_dropped_with_a_warning(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS)
    save(ct_dataset(pixels_at(2.0), 2.0, SOPInstanceUID="1.9.9"), tmp_path / "copy")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, expected_hu(HEIGHTS))
    assert "1 duplicated slice(s)" in volume.warnings[0]
    assert "from 2.0 to 2.0 mm" in volume.warnings[0]


def test_different_slices_at_one_position_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS)
    save(ct_dataset(pixels_at(2.5), 2.0), tmp_path / "other")
    with pytest.raises(ReadError, match=r"two different slices at the same position, 2\.0 mm"):
        read_volume(tmp_path)


def test_slice_beside_another_is_no_duplicate_of_it(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS)
    save(ct_dataset(pixels_at(2.0), 2.0, ImagePositionPatient=[50, 0, 2]), tmp_path / "beside")
    with pytest.raises(ReadError, match="two different slices"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        {"PixelSpacing": [0.6, 0.6]},
    ],
)
def test_mixed_series_is_refused_unless_the_largest_group_is_allowed(
    tmp_path: Path, fields: dict[str, list[float]]
) -> None:
    write_series(tmp_path, HEIGHTS)
    save(ct_dataset(pixels_at(8.0), 8.0, **fields), tmp_path / "odd")
    with pytest.raises(ReadError, match=r"mixes slices of 2 .*--allow-mixed-orientations"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, allow={"mixed-orientations"})
    assert np.array_equal(volume.voxels, expected_hu(HEIGHTS))
    assert "1 slice(s) were left out" in volume.warnings[0]


def test_mixed_sizes_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS)
    save(ct_dataset(pixels_at(8.0, (20, 24)), 8.0), tmp_path / "odd")
    with pytest.raises(ReadError, match=r"5 of 10 x 12 at 0\.5 mm.*1 of 20 x 24"):
        read_volume(tmp_path)


def test_real_tilted_scan_is_refused_with_its_degrees(data_folder: Path) -> None:
    with pytest.raises(ReadError, match=r"18.5 degrees.*--allow-tilt"):
        read_volume(data_folder / "dicom_gantry_tilt")


def test_real_tilted_scan_is_set_upright_when_allowed(data_folder: Path) -> None:
    folder = data_folder / "dicom_gantry_tilt"
    volume = read_volume(folder, allow={"tilt"})
    slice_8 = SimpleITK.ReadImage(str(folder / "08.dcm"))
    values = SimpleITK.GetArrayFromImage(slice_8)[0]
    for row, column in ((256, 256), (100, 300), (400, 200)):
        place = np.array(slice_8.TransformIndexToPhysicalPoint((column, row, 0)))
        depth, height, width = volume.grid.to_index(place)
        assert abs(depth - round(depth)) < 0.05
        assert abs(width - column) < 1e-6
        # The two rows around the place hold mixtures of its value with its neighbours'.
        low = int(np.floor(height))
        found = volume.voxels[round(depth), low : low + 2, column]
        around = values[row - 1 : row + 2, column]
        assert around.min() - 1 <= found.min() <= found.max() <= around.max() + 1
    assert "leans by 18.5 degrees" in volume.warnings[-1]


def test_tilted_ramp_is_set_upright_exactly(tmp_path: Path) -> None:
    row, _ = np.mgrid[:20, :12]
    for index in range(5):
        # Moving 1.3 mm down per slice: the patient's own y decides the value, 4 per mm.
        y = 1.3 * index + 0.5 * row
        stored = np.asarray(np.round(1000 + 40 * y), dtype=np.uint16)
        dataset = ct_dataset(stored, 2.0 * index)
        dataset.ImagePositionPatient = [0, 1.3 * index, 2.0 * index]
        save(dataset, tmp_path / f"{index}")
    volume = read_volume(tmp_path, allow={"tilt"})
    assert volume.grid.shape == (5, 31, 12)
    y = 0.5 * np.arange(31)
    for plane in volume.voxels[:, 12:18, :]:
        assert np.abs(plane - (1000 + 40 * y[12:18, None] - 1024)).max() <= 1.01


# --- damaged and hostile files ----------------------------------------------------------------


def test_truncated_file_among_good_ones_is_refused_and_named(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS)
    victim = sorted(tmp_path.iterdir())[2]
    content = victim.read_bytes()
    for length in (len(content) - 50, 600, 200, 0):
        victim.write_bytes(content[:length])
        with pytest.raises(ReadError, match=victim.name):
            read_volume(tmp_path)


def test_many_unreadable_files_are_counted_and_three_named(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS)
    for index in range(5):
        (tmp_path / f"bad{index}.dcm").write_text("damaged")
    with pytest.raises(ReadError, match=r"5 file\(s\) cannot be read") as raised:
        read_volume(tmp_path)
    assert "bad2.dcm" in str(raised.value)
    assert "and 2 more" in str(raised.value)
    assert "5 CT slices are fine" in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"PixelSpacing": None}, "without position, orientation or pixel spacing"),
        ({"ImageOrientationPatient": None}, "without position, orientation or pixel spacing"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "perpendicular unit vectors"),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}, "perpendicular unit vectors"),
        ({"ImagePositionPatient": [0, 0, 1e7]}, "impossible slice position"),
        ({"PixelSpacing": [0.5, 0]}, "impossible slice position or pixel spacing"),
        ({"Rows": 60_000, "Columns": 60_000}, "declares 1 frame"),
        ({"NumberOfFrames": 2}, "2 frames and positions for 1"),
    ],
)
def test_impossible_slice_is_refused_with_the_reason(
    tmp_path: Path, fields: dict[str, object], text: str
) -> None:
    save(ct_dataset(pixels_at(0.0), **fields), tmp_path / "x.dcm")
    with pytest.raises(ReadError, match=text):
        read_volume(tmp_path)


def test_deflate_bomb_is_refused_before_its_pixels_are_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heights = [float(i) for i in range(70)]
    dataset = enhanced_dataset(np.zeros((70, 200, 200), dtype=np.uint16), heights)
    path = save(dataset, tmp_path / "x.dcm", DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr(dicom_series, "UNDOUBTED_BYTES", 2**20)
    monkeypatch.setattr(dicom_pixels, "_locate_frames", None)
    with pytest.raises(ReadError, match="taken for a bomb"):
        read_volume(path)


def test_encrypted_zip_member_is_unreadable(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", HEIGHTS)
    path = zipped(folder, tmp_path / "scan.zip")
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[6] |= 1
    content[start + 8] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ReadError, match="cannot be read"):
        read_volume(path)


def test_peak_memory_stays_below_one_and_a_half_volumes(data_folder: Path) -> None:
    program = """
import sys
from chestct.readers import read_volume
def peak_kib():  # getrusage would count the parent process too
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
one = sys.argv[1] + "/98C14734-ASSH_1.dcm"
read_volume(one)
before = peak_kib()
volume = read_volume(sys.argv[1])
print((peak_kib() - before) * 1024 / volume.voxels.nbytes)
"""
    folder = data_folder / "covid_ct_md" / "P001"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    )
    # Less than the volume itself would mean that nothing was measured.
    assert 0.9 <= float(done.stdout) <= 1.5


# --- the dispatcher ---------------------------------------------------------------------------


def test_readers_are_known_by_name() -> None:
    assert list(READERS) == ["dicom", "nifti", "itk", "tiff"]


def test_unknown_permission_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tilt'"):
        read_volume(tmp_path, allow={"tild"})


def test_dicom_beside_other_formats_is_read_as_dicom(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS)
    (tmp_path / "mask.nii.gz").write_bytes(b"not looked at")
    (tmp_path / "preview.png").write_bytes(b"not looked at")
    assert read_volume(tmp_path).source.left_out == {"other file": 2}


def test_nifti_file_is_read_whether_it_or_its_folder_is_named(
    data_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(data_folder / "lung_masks" / "chest64_ct.nii.gz", tmp_path / "ct.nii.gz")
    by_file, by_folder = read_volume(tmp_path / "ct.nii.gz"), read_volume(tmp_path)
    assert by_file.source.format == "nifti"
    assert np.array_equal(by_file.voxels, by_folder.voxels)


def test_folder_of_several_nifti_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.nii", "b.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ReadError, match="holds 2 NIfTI files"):
        read_volume(tmp_path)


def test_folder_of_slices_goes_to_the_tiff_reader(tmp_path: Path) -> None:
    (tmp_path / "1.tif").write_bytes(b"not a picture")
    with pytest.raises(ReadError):
        read_volume(tmp_path)
    with pytest.raises(ReadError, match="is not DICOM but tiff"):
        read_volume(tmp_path, series="1.2.3")


@pytest.mark.parametrize(
    ("geometry", "said"),
    [
        (
            TiffGeometry((2.0, 0.7, 0.7), "ascending", slope=1, intercept=-1024),
            "--spacing-mm 2,0.7,0.7 --order ascending --slope 1 --intercept -1024",
        ),
        (
            TiffGeometry((2.0, 0.7, 0.7), "descending", unit="windowed"),
            "--spacing-mm 2,0.7,0.7 --order descending --windowed",
        ),
    ],
)
def test_geometry_of_slices_is_refused_for_scans_that_say_their_own(
    tmp_path: Path, geometry: TiffGeometry, said: str
) -> None:
    write_series(tmp_path / "scan", HEIGHTS)
    (tmp_path / "ct.nii").write_bytes(b"not looked at")
    for name, found in (("scan", "dicom"), ("ct.nii", "nifti")):
        with pytest.raises(ReadError, match=f"{said}.*{name} is no folder.*read as {found}"):
            read_volume(tmp_path / name, tiff=geometry)

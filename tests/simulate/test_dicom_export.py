"""A written series is read back, voxel for voxel, by other people's readers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from chestct.errors import WriteError
from chestct.simulate import SimulatedPatient, write_dicom_series
from chestct.simulate.dicom_export import make_uid
from chestct.volume import Grid, Volume

# Type 1 attributes of the modules of a CT image (PS3.3 A.3.3), and what they may not be without.
TYPE_1 = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "ImageType",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "PixelSpacing",
    "SliceThickness",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PatientPosition",
    "PixelData",
]
TYPE_2 = [
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "StudyID",
    "ReferringPhysicianName",
    "SeriesNumber",
    "InstanceNumber",
    "AcquisitionNumber",
    "KVP",
    "Manufacturer",
    "PositionReferenceIndicator",
]


def _read(folder: Path) -> sitk.Image:
    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))


@pytest.fixture(scope="module")
def crop(healthy: SimulatedPatient) -> Volume:
    voxels = healthy.volume.voxels[20:26, 30:80, 20:90]
    grid = healthy.volume.grid.moved((20, 30, 20), (1, 1, 1), voxels.shape)
    return healthy.volume.with_voxels(voxels, grid)


def test_simpleitk_reads_the_same_voxels_and_geometry(crop: Volume, tmp_path: Path) -> None:
    files = write_dicom_series(crop, tmp_path)
    image = _read(tmp_path)
    assert len(files) == crop.grid.shape[0]
    assert np.array_equal(sitk.GetArrayFromImage(image), crop.voxels)
    assert np.allclose(image.GetSpacing()[::-1], crop.grid.spacing_mm, atol=1e-4)
    assert np.allclose(image.GetOrigin(), crop.grid.origin_mm, atol=1e-4)


def test_an_oblique_series_keeps_its_place_in_the_patient(tmp_path: Path) -> None:
    cosine, sine = np.cos(0.3), np.sin(0.3)
    direction = ((0.0, -sine, cosine), (0.0, cosine, sine), (1.0, 0.0, 0.0))
    grid = Grid((3, 8, 9), (2.5, 0.7, 0.8), (-11.5, 20.25, 301.125), direction)
    voxels = np.arange(216, dtype=np.int16).reshape(grid.shape) - 100
    write_dicom_series(Volume(grid, voxels), tmp_path)
    image = _read(tmp_path)
    array = sitk.GetArrayFromImage(image)
    for index in ((0, 0, 0), (2, 7, 8), (1, 3, 5)):
        wanted = grid.to_patient(np.array(index, dtype=float))
        found = [round(i) for i in image.TransformPhysicalPointToContinuousIndex(wanted.tolist())]
        point = image.TransformIndexToPhysicalPoint(found)
        assert np.allclose(point, wanted, atol=1e-4)
        assert array[tuple(found[::-1])] == voxels[index]


def test_every_required_attribute_is_there(crop: Volume, tmp_path: Path) -> None:
    for path in write_dicom_series(crop, tmp_path):
        dataset = pydicom.dcmread(path)
        assert all(getattr(dataset, name) not in ("", None) for name in TYPE_1)
        assert all(name in dataset for name in TYPE_2)
        assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert dataset.SOPInstanceUID.is_valid


def test_every_file_says_that_it_is_simulated(crop: Volume, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(write_dicom_series(crop, tmp_path)[0])
    assert dataset.PatientName == "Simulated^Patient"
    assert dataset.SeriesDescription == "simulated chest CT"
    assert "not for diagnosis" in dataset.ImageComments


def test_identifiers_depend_on_the_seed_alone(crop: Volume, tmp_path: Path) -> None:
    def identifiers(name: str, seed: int) -> list[str]:
        files = write_dicom_series(crop, tmp_path / name, uid_seed=seed)
        return [str(pydicom.dcmread(path).SOPInstanceUID) for path in files]

    first, again, other = identifiers("a", 1), identifiers("b", 1), identifiers("c", 2)
    assert first == again
    assert len(set(first + other)) == 2 * len(first)
    patients = [
        pydicom.dcmread(tmp_path / name / "slice_0001.dcm").PatientID for name in ("a", "b", "c")
    ]
    assert patients[0] == patients[1] != patients[2]
    same = [(tmp_path / name / "slice_0001.dcm").read_bytes() for name in "ab"]
    assert same[0] == same[1]


def test_identifiers_are_valid() -> None:
    uid = make_uid("any", 1)
    assert uid == make_uid("any", 1)
    assert len(uid) <= 64
    assert pydicom.uid.UID(uid).is_valid


def test_whole_numbers_in_a_float_scan_are_kept(crop: Volume, tmp_path: Path) -> None:
    floating = crop.with_voxels(crop.voxels.astype(np.float32))
    write_dicom_series(floating, tmp_path)
    assert np.array_equal(sitk.GetArrayFromImage(_read(tmp_path)), crop.voxels)


def test_what_cannot_be_written_is_refused(crop: Volume, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="Hounsfield"):
        write_dicom_series(replace(crop, unit="windowed"), tmp_path)
    with pytest.raises(WriteError, match="-3000"):
        write_dicom_series(crop.with_voxels(crop.voxels * 0 - 3000), tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match="Choose another folder"):
        write_dicom_series(crop, tmp_path / "file")

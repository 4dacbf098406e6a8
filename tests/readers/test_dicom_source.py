from __future__ import annotations

import gzip
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import ct_dataset, enhanced_dataset, pixels_at, save, write_series
from pydicom.uid import DeflatedExplicitVRLittleEndian

from chestct.errors import ReadError
from chestct.readers import read_volume
from chestct.readers.dicom_source import SourceSeries, read_source

HEIGHTS = [4.0, 0.0, 2.0, 6.0]


def source_of(path: Path, allow: tuple[str, ...] = ()) -> SourceSeries:
    return read_source(path, read_volume(path, allow=allow))


def test_images_are_those_of_the_volume_in_its_order(tmp_path: Path) -> None:
    volume = read_volume(write_series(tmp_path, HEIGHTS))
    series = read_source(tmp_path, volume)
    assert [image.position_mm[2] for image in series.images] == [0.0, 2.0, 4.0, 6.0]
    assert tuple(image.uid for image in series.images) == volume.source.slice_uids
    assert {image.frame for image in series.images} == {0}
    assert sorted(image.file for image in series.images) == [0, 1, 2, 3]
    assert series.shape == (10, 12)
    assert series.is_exact


def test_the_header_holds_the_patient_and_the_study_and_nothing_else(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS, StudyInstanceUID="1.2.3", OperatorsName="Secret^Operator")
    header = source_of(tmp_path).header
    assert str(header.PatientName) == "Secret^Name"
    assert header.StudyInstanceUID == "1.2.3"
    for keyword in ("OperatorsName", "SeriesDescription", "PixelData", "Rows", "KVP"):
        assert keyword not in header


@pytest.mark.parametrize("mark", ["\x1b[31m", "\x07", "\n", "\x00"])
def test_control_characters_are_kept_in_long_texts_only(tmp_path: Path, mark: str) -> None:
    with pydicom.config.disable_value_validation():
        name, history = f"Some{mark}one^A", "first line\nsecond line"
        dataset = ct_dataset(
            pixels_at(0.0), 0.0, PatientName=name, AdditionalPatientHistory=history
        )
        save(dataset, tmp_path / "a.dcm")
    source = source_of(tmp_path)
    assert source.left_out == ("PatientName",)
    assert source.header.AdditionalPatientHistory == history


def test_what_breaks_the_standard_and_private_elements_are_left_out(tmp_path: Path) -> None:
    with pydicom.config.disable_value_validation():
        dataset = ct_dataset(pixels_at(0.0), 0.0, PatientAge="39 years", PatientSize="1.75")
        inner = pydicom.Dataset()
        inner.PatientID = "x" * 100
        dataset.OtherPatientIDsSequence = [inner]
        dataset.private_block(0x0011, "someone", create=True).add_new(1, "LO", "secret")
        save(dataset, tmp_path / "a.dcm")
    source = source_of(tmp_path)
    header = source.header
    assert source.left_out == ("PatientAge", "PatientID")
    assert "PatientAge" not in header
    assert "OtherPatientIDsSequence" not in header
    assert header.PatientSize == 1.75
    assert not [element for element in header if element.tag.is_private]


def test_interpolated_volumes_are_not_exact(tmp_path: Path) -> None:
    series = source_of(write_series(tmp_path, [0.0, 2.0, 6.0, 8.0]))
    assert len(series.images) == 4
    assert not series.is_exact


@pytest.mark.parametrize("how", ["zip", "gzip", "deflated"])
def test_packed_files_are_read_too(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "scan"
    for index, z in enumerate(HEIGHTS):
        dataset = ct_dataset(pixels_at(z), z)
        syntax = DeflatedExplicitVRLittleEndian if how == "deflated" else "1.2.840.10008.1.2.1"
        path = save(dataset, folder / f"{index}.dcm", syntax)
        if how == "gzip":
            path.with_suffix(".dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    place = folder
    if how == "zip":
        place = tmp_path / "scan.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for path in folder.iterdir():
                archive.write(path, path.name)
    series = source_of(place)
    assert str(series.header.PatientName) == "Secret^Name"
    assert len(series.images) == 4
    assert series.is_exact


def test_frames_of_a_multi_frame_file_are_numbered_as_the_file_has_them(tmp_path: Path) -> None:
    stacked = [pixels_at(z) for z in HEIGHTS]
    dataset = enhanced_dataset(np.stack(stacked), HEIGHTS)
    save(dataset, tmp_path / "enhanced.dcm")
    images = source_of(tmp_path / "enhanced.dcm").images
    assert [image.frame for image in images] == [2, 3, 1, 4]
    assert {image.file for image in images} == {0}
    assert {image.uid for image in images} == {dataset.SOPInstanceUID}


def test_duplicates_and_other_sizes_are_left_out_as_the_reader_does(tmp_path: Path) -> None:
    write_series(tmp_path, HEIGHTS)
    (tmp_path / "copy.dcm").write_bytes(sorted(tmp_path.iterdir())[0].read_bytes())
    save(ct_dataset(pixels_at(50.0, (6, 6)), 50.0), tmp_path / "other.dcm")
    series = source_of(tmp_path, allow=("mixed-orientations",))
    assert len(series.images) == 4
    assert series.is_exact


def test_a_series_that_changed_is_said(tmp_path: Path) -> None:
    volume = read_volume(write_series(tmp_path, HEIGHTS))
    other = replace(volume, source=replace(volume.source, series_uid="9.9.9"))
    with pytest.raises(ReadError, match="holds no CT series 9"):
        read_source(tmp_path, other)

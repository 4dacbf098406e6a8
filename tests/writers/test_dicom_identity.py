from __future__ import annotations

import datetime
import warnings
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from dicom_scans import WANTED, analysed, small_scan
from pydicom.uid import UID
from readers.dicom_files import ct_dataset, pixels_at, save

from chestct import extras
from chestct.analysis import ScanAnalysis
from chestct.errors import ReadError, WriteError
from chestct.extras import MissingExtraError
from chestct.writers.dicom_identity import Subject, long_string, subject_of
from chestct.writers.folders import write_outputs
from chestct.writers.options import WriteOptions

WHOLE = {
    "StudyInstanceUID": "1.2.3.4.1",
    "FrameOfReferenceUID": "1.2.3.4.2",
    "StudyDate": "20240101",
    "SeriesDate": "20240101",
    "AcquisitionDate": "20240101",
}
HEIGHTS = [2.0 * number for number in range(5)]


def edited(folder: Path, **fields: object) -> Path:
    """A small series with fields of every slice set or, if None, removed."""
    for number, z in enumerate(HEIGHTS):
        dataset = ct_dataset(pixels_at(z), z, SOPInstanceUID=f"1.2.3.9.{number + 1}", **WHOLE)
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            for name, value in fields.items():
                if value is None:
                    dataset.pop(name, None)
                else:
                    setattr(dataset, name, value)
            save(dataset, folder / f"{number}.dcm")
    return folder


def subject(analysis: ScanAnalysis, **options: bool) -> Subject:
    return subject_of(analysis, WriteOptions(**options))


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> ScanAnalysis:
    return analysed(small_scan(tmp_path_factory.mktemp("identity") / "scan"))


@pytest.mark.parametrize("name", ["StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, "not.a.uid.01"])
def test_a_series_without_an_identifier_is_refused_with_the_remedy(
    tmp_path: Path, name: str, value: str | None
) -> None:
    analysis = analysed(edited(tmp_path / "scan", **{name: value}))
    with pytest.raises(WriteError, match=rf"no valid {name}.*--make-uids"):
        subject(analysis)


def test_images_without_identifiers_or_with_one_for_all_are_refused(tmp_path: Path) -> None:
    for name, value in (("empty", ""), ("same", "1.2.3.4")):
        analysis = analysed(edited(tmp_path / name, SOPInstanceUID=value))
        with pytest.raises(WriteError, match="no valid SOPInstanceUID"):
            subject(analysis)


def test_made_identifiers_are_valid_different_and_the_same_for_every_object(
    tmp_path: Path,
) -> None:
    missing = dict.fromkeys(("StudyInstanceUID", "FrameOfReferenceUID"))
    analysis = analysed(edited(tmp_path / "scan", SOPInstanceUID="", **missing))
    first, second = subject(analysis, makes_uids=True), subject(analysis, makes_uids=True)
    uids = [image.uid for image in first.images]
    uids += [first.header.StudyInstanceUID, first.header.FrameOfReferenceUID]
    assert len(set(uids)) == len(uids)
    assert all(UID(uid).is_valid for uid in uids)
    assert [image.uid for image in second.images] == uids[:-2]
    assert first.header.SeriesInstanceUID == analysis.volume.source.series_uid
    # What is written now belongs together and is not what was written before.
    assert first.instance_uid("dicom_seg") != second.instance_uid("dicom_seg")


def test_objects_with_made_identifiers_refer_to_each_other(tmp_path: Path) -> None:
    analysis = analysed(edited(tmp_path / "scan", SOPInstanceUID="", StudyInstanceUID=None))
    options = WriteOptions(names=WANTED, makes_uids=True)
    files = write_outputs(analysis, tmp_path / "out", options).files
    objects = {name: pydicom.dcmread(path) for name, path in files.items()}
    assert len({made.StudyInstanceUID for made in objects.values()}) == 1
    (study,) = objects["dicom_sr"].CurrentRequestedProcedureEvidenceSequence
    named = {
        item.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert {
        objects["dicom_seg"].SOPInstanceUID,
        objects["dicom_parametric_map"].SOPInstanceUID,
    } <= named
    images = {item.ReferencedSOPInstanceUID for item in objects["dicom_seg"].SourceImageSequence}
    # The first slice has neither lung nor evidence, so the segmentation does not refer to it.
    assert len(images) == len(HEIGHTS) - 1
    assert images <= named


def test_valid_identifiers_are_kept_when_others_may_be_made(analysis: ScanAnalysis) -> None:
    made, kept = subject(analysis, makes_uids=True), subject(analysis)
    assert made.header.StudyInstanceUID == kept.header.StudyInstanceUID
    assert made.images == kept.images == analysis.source_series.images


def test_deterministic_objects_are_the_same_bytes(analysis: ScanAnalysis, tmp_path: Path) -> None:
    names = (*WANTED, "dicom_sc", "nifti")
    written = []
    for folder in ("a", "b"):
        options = WriteOptions(names=names, is_deterministic=True)
        write_outputs(analysis, tmp_path / folder, options)
        files = sorted(path for path in (tmp_path / folder).rglob("*") if path.is_file())
        written.append({path.name: path.read_bytes() for path in files})
    assert len(written[0]) == 5 + 20
    assert written[0] == written[1]
    made = pydicom.dcmread(tmp_path / "a" / "report.dcm")
    assert (made.ContentDate, made.ContentTime) == ("20240101", "120000")


def test_another_answer_gets_other_identifiers(analysis: ScanAnalysis) -> None:
    result = analysis.result
    retrained = replace(result, provenance=replace(result.provenance, weights_sha256="00" * 32))
    changed = replace(result, probabilities={"CAP": 0.5, "COVID-19": 0.4, "normal": 0.1})
    subjects = [
        subject(replace(analysis, result=answer), is_deterministic=True)
        for answer in (result, retrained, changed)
    ]
    subjects.append(subject(replace(analysis, explanation=None), is_deterministic=True))
    assert len({one.instance_uid("dicom_sr") for one in subjects}) == 4


def test_two_calls_give_different_identifiers_and_the_time_of_writing(
    analysis: ScanAnalysis,
) -> None:
    first, second = subject(analysis), subject(analysis)
    assert first.series_uid("dicom_sr") != second.series_uid("dicom_sr")
    assert abs(datetime.datetime.now() - first.written) < datetime.timedelta(minutes=5)


def test_values_that_break_the_standard_are_not_passed_on(tmp_path: Path) -> None:
    folder = edited(
        tmp_path / "scan",
        SpecificCharacterSet="ISO_IR 100",
        PatientBirthDate="born in 1950",
        PatientSex="W",
        PatientAge="39 years",
        PatientName="Müller^Ärmel",
        SeriesTime="soon",
    )
    found = subject(analysed(folder), is_deterministic=True)
    assert found.header.PatientBirthDate == ""
    assert found.header.PatientSex == ""
    assert "PatientAge" not in found.header
    assert str(found.header.PatientName) == "Müller^Ärmel"
    assert found.written == datetime.datetime(2024, 1, 1)


def test_names_in_any_alphabet_are_written_so_that_they_can_be_read(tmp_path: Path) -> None:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    folder = edited(
        tmp_path / "scan", SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name
    )
    options = WriteOptions(names=WANTED)
    files = write_outputs(analysed(folder), tmp_path / "out", options).files
    assert len(files) == len(WANTED)
    for path in files.values():
        assert str(pydicom.dcmread(path).PatientName) == name


def test_a_series_without_any_date_gets_a_fixed_one(tmp_path: Path) -> None:
    names = ("SeriesDate", "AcquisitionDate", "StudyDate")
    folder = edited(tmp_path / "scan", **dict.fromkeys(names))
    assert subject(analysed(folder), is_deterministic=True).written.year == 1970


def test_files_that_went_away_are_said(tmp_path: Path) -> None:
    analysis = analysed(edited(tmp_path / "scan"))
    for path in (tmp_path / "scan").iterdir():
        path.unlink()
    with pytest.raises(ReadError, match="holds no CT series"):
        subject(analysis)


def test_without_highdicom_the_extra_is_named(
    analysis: ScanAnalysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda package: package != "highdicom")
    for name in (*WANTED, "dicom_sc"):
        with pytest.raises(MissingExtraError, match=r"pip install 'chestct\[dicom\]'"):
            write_outputs(analysis, tmp_path / "out", WriteOptions(names=(name,)))
    assert list((tmp_path / "out").iterdir()) == []


def test_long_strings_are_cut_to_what_dicom_holds() -> None:
    assert long_string("short") == "short"
    assert long_string("a\\b") == "a/b"
    assert len(long_string("x" * 100)) == 64

from __future__ import annotations

import datetime
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from analyses import make_volume
from dicom_scans import WANTED, analysed, small_scan
from pydicom.uid import UID
from readers.dicom_files import ct_dataset, pixels_at, save

from chestct import extras
from chestct.analysis import ScanAnalysis
from chestct.errors import ReadError, WriteError
from chestct.explain.explanation import HeatMap, PeakSlice, ScanExplanation
from chestct.readers import read_volume
from chestct.readers.dicom_source import read_source
from chestct.result import ScanResult, Timings
from chestct.simulate import write_dicom_series
from chestct.writers import WriteOptions
from chestct.writers.dicom_objects import Subject, long_string
from chestct.writers.folders import foresee_missing, write_outputs

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
    return Subject.of(analysis, WriteOptions(**options))


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
    assert first.instance_uid("dicom_seg") == second.instance_uid("dicom_seg")


def test_objects_with_made_identifiers_refer_to_each_other(tmp_path: Path) -> None:
    analysis = analysed(edited(tmp_path / "scan", SOPInstanceUID="", StudyInstanceUID=None))
    options = WriteOptions(names=WANTED, makes_uids=True)
    files = write_outputs(analysis, tmp_path / "out", options).files
    objects = {name: pydicom.dcmread(files[name]) for name in WANTED}
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
        files = [path for kind in ("*.dcm", "*.nii.gz") for path in (tmp_path / folder).rglob(kind)]
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


def explained(analysis: ScanAnalysis) -> ScanExplanation:
    assert analysis.explanation is not None
    return analysis.explanation


def with_result(**fields: object) -> Callable[[ScanAnalysis], ScanAnalysis]:
    """Replace fields of the answer."""
    return lambda one: replace(one, result=replace(one.result, **fields))


def with_provenance(**fields: object) -> Callable[[ScanAnalysis], ScanAnalysis]:
    """Replace fields of what the answer was made with."""

    def change(one: ScanAnalysis) -> ScanAnalysis:
        result: ScanResult = one.result
        return replace(one, result=replace(result, provenance=replace(result.provenance, **fields)))

    return change


def with_map(**fields: object) -> Callable[[ScanAnalysis], ScanAnalysis]:
    """Replace fields of the explanation as the network's input has it."""

    def change(one: ScanAnalysis) -> ScanAnalysis:
        made = explained(one)
        return replace(
            one, explanation=replace(made, explanation=replace(made.explanation, **fields))
        )

    return change


def with_summary(**fields: object) -> Callable[[ScanAnalysis], ScanAnalysis]:
    """Replace fields of the explanation's summary."""

    def change(one: ScanAnalysis) -> ScanAnalysis:
        made = explained(one)
        return replace(one, explanation=replace(made, summary=replace(made.summary, **fields)))

    return change


def with_one_hot_voxel(one: ScanAnalysis) -> ScanAnalysis:
    """Change a single voxel of the heat-map."""
    made = explained(one)
    heat = made.heat.voxels.copy()
    heat[12, 3, 4] = 0.75
    return replace(one, explanation=replace(made, heat=HeatMap.of(made.heat.grid, heat)))


def with_one_lung_voxel(one: ScanAnalysis) -> ScanAnalysis:
    """Change a single voxel of the lungs."""
    lungs = one.prepared.scan_lungs
    mask = lungs.voxels.copy()
    mask[12, 3, 4] = not mask[12, 3, 4]
    return replace(one, prepared=replace(one.prepared, scan_lungs=lungs.with_voxels(mask)))


CHANGES = {
    "version": with_provenance(classifier_version="2"),
    "trained on": with_provenance(trained_on="something else"),
    "engine": with_provenance(engine="openvino bf16"),
    "temperature": with_provenance(temperature=1.5),
    "notice": with_result(notice="Another notice."),
    "warnings": with_result(warnings=()),
    "lung volume": with_result(lung_volume_l=1.26),
    "class": with_map(label="CAP"),
    "layer": with_map(layer="stages.2"),
    "threshold": with_summary(threshold=0.4),
    "peaks": with_summary(peaks=(PeakSlice(21, "", 0.4),)),
    "shares": with_summary(shares={"lungs": 0.5}),
    "heat": with_one_hot_voxel,
    "lungs": with_one_lung_voxel,
}
"""What stands in an object: name to a change of it."""
UNWRITTEN = {
    "folder": with_result(scan="a folder of another name"),
    "time": with_result(timings_s=Timings(read=9.0, prepare=9.0, network=9.0, total=27.0)),
    "facts": with_result(scan_facts={}),
}
"""What stands in none."""


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_stands_in_an_object_changes_its_identifiers(
    analysis: ScanAnalysis, change: Callable[[ScanAnalysis], ScanAnalysis]
) -> None:
    before = subject(analysis, is_deterministic=True)
    after = subject(change(analysis), is_deterministic=True)
    assert before.instance_uid("dicom_sr") != after.instance_uid("dicom_sr")
    assert before.series_uid("dicom_sr") != after.series_uid("dicom_sr")


def test_a_corrected_name_of_the_patient_changes_identifiers(tmp_path: Path) -> None:
    uids = {
        subject(
            analysed(edited(tmp_path / name, PatientName=name)), is_deterministic=True
        ).instance_uid("dicom_seg")
        for name in ("Miler^Ann", "Miller^Ann")
    }
    assert len(uids) == 2


@pytest.mark.parametrize("change", UNWRITTEN.values(), ids=UNWRITTEN)
def test_what_stands_in_no_object_changes_nothing(
    analysis: ScanAnalysis, change: Callable[[ScanAnalysis], ScanAnalysis]
) -> None:
    options = {"is_deterministic": True}
    assert subject(change(analysis), **options).seed == subject(analysis, **options).seed


def test_the_same_contents_in_other_arrays_have_the_same_identifiers(
    analysis: ScanAnalysis,
) -> None:
    made = explained(analysis)
    heat = HeatMap.of(made.heat.grid, np.asfortranarray(made.heat.voxels))
    copied = replace(analysis, explanation=replace(made, heat=heat))
    options = {"is_deterministic": True}
    assert subject(copied, **options).seed == subject(analysis, **options).seed


def test_a_report_that_points_elsewhere_is_another_one(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    made: dict[str, dict[str, Path]] = {}
    for names in (("dicom_sr",), ("dicom_seg", "dicom_sr"), ("dicom_seg",), WANTED):
        options = WriteOptions(names=names, is_deterministic=True)
        folder = tmp_path / "+".join(names)
        made["+".join(names)] = dict(write_outputs(analysis, folder, options).files)
    reports = [pydicom.dcmread(one["dicom_sr"]) for one in made.values() if "dicom_sr" in one]
    assert len({report.SOPInstanceUID for report in reports}) == 3
    assert len({report.SeriesInstanceUID for report in reports}) == 3
    # A segmentation says nothing of the report, and is the same with and without it.
    assert len({one["dicom_seg"].read_bytes() for one in made.values() if "dicom_seg" in one}) == 1


@pytest.mark.parametrize("is_deterministic", [True, False])
def test_a_report_points_at_what_was_written_with_it(
    analysis: ScanAnalysis, tmp_path: Path, is_deterministic: bool
) -> None:
    options = WriteOptions(names=WANTED, is_deterministic=is_deterministic)
    files = write_outputs(analysis, tmp_path, options).files
    objects = {name: pydicom.dcmread(files[name]) for name in WANTED}
    (study,) = objects["dicom_sr"].CurrentRequestedProcedureEvidenceSequence
    named = {
        (series.SeriesInstanceUID, item.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    for name in ("dicom_seg", "dicom_parametric_map"):
        assert (objects[name].SeriesInstanceUID, objects[name].SOPInstanceUID) in named


def test_the_same_input_classifier_and_version_give_the_same_identifiers_and_the_true_date(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    made = []
    for folder in ("a", "b"):
        files = write_outputs(analysis, tmp_path / folder, WriteOptions(names=WANTED)).files
        made.append({name: pydicom.dcmread(files[name]) for name in WANTED})
    first, second = made
    for name in WANTED:
        for level in ("SeriesInstanceUID", "SOPInstanceUID"):
            assert first[name][level].value == second[name][level].value
        said = datetime.datetime.strptime(
            first[name].ContentDate + first[name].ContentTime, "%Y%m%d%H%M%S"
        )
        assert abs(datetime.datetime.now() - said) < datetime.timedelta(minutes=5)


def test_the_time_zone_of_the_series_is_kept_and_dates_are_in_it(tmp_path: Path) -> None:
    folder = edited(tmp_path / "scan", TimezoneOffsetFromUTC="+1245")
    files = write_outputs(
        analysed(folder), tmp_path / "out", WriteOptions(names=(*WANTED, "dicom_sc"))
    ).files
    zone = datetime.timezone(datetime.timedelta(hours=12, minutes=45))
    for path in (files[name] for name in WANTED):
        made = pydicom.dcmread(path)
        assert made.TimezoneOffsetFromUTC == "+1245"
        said = datetime.datetime.strptime(made.ContentDate + made.ContentTime, "%Y%m%d%H%M%S")
        there = datetime.datetime.now(zone).replace(tzinfo=None)
        assert abs(there - said) < datetime.timedelta(minutes=5)


def test_what_was_requested_is_kept_in_every_object(tmp_path: Path) -> None:
    code = pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "CTCH", "99LOCAL", "CT chest"
    request = pydicom.Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP-7", "SPS-7"
    request.RequestedProcedureDescription = "CT chest without contrast"
    request.RequestedProcedureCodeSequence = [code]
    folder = edited(
        tmp_path / "scan",
        AccessionNumber="ACC-12",
        RequestAttributesSequence=[request],
        ProcedureCodeSequence=[code],
    )
    files = write_outputs(analysed(folder), tmp_path / "out", WriteOptions(names=WANTED)).files
    objects = {name: pydicom.dcmread(files[name]) for name in WANTED}
    (asked,) = objects["dicom_sr"].ReferencedRequestSequence
    assert (asked.AccessionNumber, asked.RequestedProcedureID) == ("ACC-12", "RP-7")
    assert asked.StudyInstanceUID == objects["dicom_sr"].StudyInstanceUID
    assert asked.RequestedProcedureCodeSequence[0].CodeValue == "CTCH"
    for name in ("dicom_seg", "dicom_parametric_map"):
        (kept,) = objects[name].RequestAttributesSequence
        assert (kept.RequestedProcedureID, kept.ScheduledProcedureStepID) == ("RP-7", "SPS-7")
    assert {made.AccessionNumber for made in objects.values()} == {"ACC-12"}
    assert {made.ProcedureCodeSequence[0].CodeValue for made in objects.values()} == {"CTCH"}


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


def test_identifiers_are_kept_where_the_standard_can_hold_them_else_named_never_shown(
    tmp_path: Path,
) -> None:
    folder = edited(
        tmp_path / "scan",
        AccessionNumber="SECRET-ORDER-0123456789",
        PatientID="SECRET\\7" + "x" * 70,
        PatientBirthDate="1950-02-03",
        PatientSex="female",
        StudyDate="2024.01.01",
        StudyTime="07:08:09",
        SeriesTime="soon",
        StudyID="  S1 ",
    )
    written = write_outputs(
        analysed(folder), tmp_path / "out", WriteOptions(names=("json", "dicom_sr"))
    )
    made = pydicom.dcmread(written.files["dicom_sr"])
    assert (made.PatientBirthDate, made.PatientSex) == ("19500203", "F")
    assert (made.StudyDate, made.StudyTime, made.StudyID) == ("20240101", "070809", "S1")
    assert (made.AccessionNumber, made.PatientID) == ("", "")
    (said,) = (w for w in written.analysis.result.warnings if "DICOM objects" in w)
    assert "AccessionNumber and PatientID and SeriesTime" in said
    text = written.files["json"].read_text()
    assert "AccessionNumber" in text
    assert "SECRET" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("StudyDate", "20240101-20240202"),
        ("StudyTime", "0700-0800"),
        ("TimezoneOffsetFromUTC", "+9999"),
        ("TimezoneOffsetFromUTC", "Z"),
    ],
)
def test_range_of_dates_or_impossible_time_zone_is_named_and_all_objects_are_written(
    tmp_path: Path, name: str, value: str
) -> None:
    analysis = analysed(edited(tmp_path / "scan", **{name: value}))
    written = write_outputs(analysis, tmp_path / "out", WriteOptions(names=WANTED))
    assert written.failed == {}
    assert not pydicom.dcmread(written.files["dicom_sr"]).get(name)
    (said,) = (w for w in written.analysis.result.warnings if "DICOM objects" in w)
    assert name in said


def test_a_series_that_follows_the_standard_gets_no_such_warning(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    written = write_outputs(analysis, tmp_path, WriteOptions(names=("dicom_sr",)))
    assert written.analysis.result.warnings == analysis.result.warnings


def test_a_name_of_one_part_is_written_and_no_library_says_it_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "王小明"
    folder = edited(tmp_path / "scan", SpecificCharacterSet="ISO_IR 192", PatientName=name)
    analysis = replace(analysed(folder), explanation=None)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        files = write_outputs(analysis, tmp_path / "out", WriteOptions(names=WANTED)).files
    assert str(pydicom.dcmread(files["dicom_sr"]).PatientName) == name
    said = [str(one.message) for one in heard]
    assert not [text for text in said if name in text]
    assert name not in "".join(capsys.readouterr())


def test_names_in_any_alphabet_are_written_so_that_they_can_be_read(tmp_path: Path) -> None:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    folder = edited(
        tmp_path / "scan", SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name
    )
    options = WriteOptions(names=WANTED)
    files = write_outputs(analysed(folder), tmp_path / "out", options).files
    for writer in WANTED:
        assert str(pydicom.dcmread(files[writer]).PatientName) == name


def test_a_series_without_any_date_gets_a_fixed_one(tmp_path: Path) -> None:
    names = ("SeriesDate", "AcquisitionDate", "StudyDate")
    folder = edited(tmp_path / "scan", **dict.fromkeys(names))
    assert subject(analysed(folder), is_deterministic=True).written.year == 1970


def split_scan(folder: Path) -> Path:
    """Two temporal positions at the same places in one series, their files taking turns."""
    for position in (1, 2):
        for path in write_dicom_series(make_volume(), folder / str(position), uid_seed=position):
            dataset = pydicom.dcmread(path)
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.1", "2.25.2"
            dataset.FrameOfReferenceUID = "2.25.3"
            dataset.TemporalPositionIndex = position
            dataset.save_as(folder / f"{path.stem}_{position}.dcm")
            path.unlink()
        (folder / str(position)).rmdir()
    return folder


@pytest.mark.parametrize("part", [1, 2])
def test_objects_refer_to_the_part_of_a_split_series_that_was_read(
    tmp_path: Path, part: int
) -> None:
    (tmp_path / "scan").mkdir()
    split_scan(tmp_path / "scan")
    read = analysed(tmp_path / "scan", series=f"2.25.2#{part}")
    files = [pydicom.dcmread(path) for path in (tmp_path / "scan").glob(f"*_{part}.dcm")]
    own = {str(file.SOPInstanceUID) for file in files}
    assert len(own) == read.volume.grid.shape[0]
    source = read.source_series
    assert source is not None
    assert source.is_exact
    assert {image.uid for image in source.images} == own
    written = write_outputs(read, tmp_path / "out", WriteOptions(names=(*WANTED, "dicom_sc")))
    assert not written.failed
    images = all_images(tmp_path / "scan")
    for path in (tmp_path / "out").rglob("*.dcm"):
        text = path.read_bytes().decode("latin-1")
        named = set(re.findall(r"2\.25\.\d{20,}", text)) & images
        assert named, path
        assert named <= own, path


def all_images(folder: Path) -> set[str]:
    """The identifiers of all images in a folder."""
    return {str(pydicom.dcmread(path).SOPInstanceUID) for path in folder.glob("*.dcm")}


@pytest.mark.parametrize("end", [0, -1])
def test_objects_do_not_refer_to_blank_slices_that_were_left_out(tmp_path: Path, end: int) -> None:
    files = write_dicom_series(make_volume(), tmp_path / "scan")
    blank = pydicom.dcmread(files[end])
    blank.PixelData = bytes(len(blank.PixelData))
    blank.save_as(files[end])
    volume = read_volume(tmp_path / "scan")
    assert volume.grid.shape[0] == len(files) - 1
    source = read_source(tmp_path / "scan", volume)
    assert source.is_exact
    assert [image.uid for image in source.images] == list(volume.source.slice_uids)


def test_files_that_went_away_are_said(tmp_path: Path) -> None:
    analysis = analysed(edited(tmp_path / "scan"))
    for path in (tmp_path / "scan").iterdir():
        path.unlink()
    with pytest.raises(ReadError, match="holds no CT slices: found no files"):
        subject(analysis)


def test_without_highdicom_the_extra_is_named(
    analysis: ScanAnalysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda package: package != "highdicom")
    names = (*WANTED, "dicom_sc")
    written = write_outputs(analysis, tmp_path / "out", WriteOptions(names=names))
    assert set(written.failed) == set(names)
    assert all("pip install 'chestct[dicom]'" in reason for reason in written.failed.values())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.json"]
    assert analysis.path is not None
    with pytest.raises(WriteError, match=r"pip install 'chestct\[dicom\]'"):
        foresee_missing(analysis.volume, analysis.path, WriteOptions(names=names))


def test_long_strings_are_cut_to_what_dicom_holds() -> None:
    assert long_string("short") == "short"
    assert long_string("a\\b") == "a/b"
    assert len(long_string("x" * 100)) == 64
    assert long_string("short", ending=", end") == "short, end"
    assert long_string("x" * 100, ending=", end") == f"{'x' * 56}..., end"

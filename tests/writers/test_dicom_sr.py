from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from analyses import make_volume
from dicom_scans import WANTED, analysed, small_scan
from highdicom.sr import Comprehensive3DSR, MeasurementReport
from pydicom.dataset import Dataset

from chestct.analysis import ScanAnalysis
from chestct.explain.explanation import ScanExplanation
from chestct.labels import NOT_FOR_CLINICAL_USE, UNSUITABLE, ClassLabel, LabelCode, LabelSet
from chestct.simulate import write_dicom_series
from chestct.volume import Grid
from chestct.writers import WriteOptions
from chestct.writers.dicom_sr import _finding_of, _probability_of, write_structured_report
from chestct.writers.folders import write_outputs


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> ScanAnalysis:
    return analysed(small_scan(tmp_path_factory.mktemp("sr") / "scan"))


def written(analysis: ScanAnalysis, folder: Path, *names: str) -> Comprehensive3DSR:
    path = write_structured_report(analysis, folder, WriteOptions(names=names or ("dicom_sr",)))
    return highdicom.sr.srread(path)


def content(report: Comprehensive3DSR) -> MeasurementReport:
    return MeasurementReport.from_sequence([report.content[0]])


def texts(item: Dataset) -> list[str]:
    """Every text below an item."""
    found = [str(item.TextValue)] if "TextValue" in item else []
    for inner in item.get("ContentSequence", ()):
        found += texts(inner)
    return found


def groups_by_tracking(report: Comprehensive3DSR) -> dict[str, list[Dataset]]:
    """Content of every measurement group by its tracking identifier."""
    measurements = next(
        item
        for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "126010"
    )
    found = {}
    for group in measurements.ContentSequence:
        items = list(group.ContentSequence)
        key = next(i.TextValue for i in items if i.ConceptNameCodeSequence[0].CodeValue == "112039")
        found[str(key)] = items
    return found


def numbers(items: list[Dataset]) -> dict[str, float]:
    """Values by the meaning of their concept; of several of one name the first."""
    found: dict[str, float] = {}
    for item in items:
        if item.ValueType == "NUM":
            meaning = item.ConceptNameCodeSequence[0].CodeMeaning
            found.setdefault(meaning, float(item.MeasuredValueSequence[0].NumericValue))
    return found


def test_it_follows_template_1500_and_is_preliminary(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    report = written(analysis, tmp_path)
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert len(content(report).get_image_measurement_groups()) >= 4


def code_of(item: Dataset) -> str:
    """A code of more than 16 characters has an attribute of its own (PS3.3 8.1)."""
    return str(item.get("CodeValue") or item.get("LongCodeValue"))


def findings_of(items: list[Dataset]) -> list[str]:
    return [
        code_of(item.ConceptCodeSequence[0])
        for item in items
        if item.ConceptNameCodeSequence[0].CodeValue == "121071"
    ]


def test_the_answer_is_the_finding_and_other_classes_are_measurements_of_it(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    groups = groups_by_tracking(written(analysis, tmp_path))
    assert list(groups)[:3] == ["answer", "lungs", "evidence"]
    assert findings_of(groups["answer"]) == ["882784691000119100"]
    assert numbers(groups["answer"]) == {
        "Probability": 0.9,
        "Probability of Community-acquired pneumonia": 0.07,
        "Probability of No pneumonia": 0.03,
    }
    others = {"385093006", "17621005"}
    assert not others & {code for items in groups.values() for code in findings_of(items)}


def test_the_procedure_is_a_ct_of_the_chest(analysis: ScanAnalysis, tmp_path: Path) -> None:
    report = written(analysis, tmp_path)
    (procedure,) = (
        item.ConceptCodeSequence[0]
        for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "121058"
    )
    assert (procedure.CodeValue, procedure.CodingSchemeDesignator) == ("24627-2", "LN")


def test_classifier_version_and_notice_are_in_it(analysis: ScanAnalysis, tmp_path: Path) -> None:
    report = written(analysis, tmp_path)
    said = texts(report)
    for words in ("trial", "1", "recipe: roi_resnet_published", "simulated disease"):
        assert any(words in text for text in said)
    assert any(NOT_FOR_CLINICAL_USE in text for text in said)
    assert any("duplicates" in text for text in said)
    assert any("not the outline of a disease" in text for text in said)


def test_lungs_and_evidence_are_measured(analysis: ScanAnalysis, tmp_path: Path) -> None:
    groups = groups_by_tracking(written(analysis, tmp_path))
    explained = analysis.explanation
    assert explained is not None
    assert numbers(groups["lungs"]) == {"Volume": 1250.0}
    evidence = numbers(groups["evidence"])
    hot = np.count_nonzero(np.nan_to_num(explained.heat.voxels) >= explained.summary.threshold)
    # That of the segment it points at, which goes beyond the lungs.
    assert evidence["Volume"] == pytest.approx(hot * 4.0 * 3.0 * 3.0 / 1000.0, abs=0.05)
    involved = evidence["Lung volume with evidence above threshold"]
    assert involved == round(explained.summary.involved_ml, 1)
    share = evidence["Share of lung volume with evidence above threshold"]
    assert share == round(100 * explained.summary.shares["lungs"], 2)


def test_sides_and_zones_are_given_back_by_highdicom(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    shares = explained(analysis).summary.shares
    found = {}
    for group in content(written(analysis, tmp_path)).get_image_measurement_groups():
        if not group.tracking_identifier.startswith("evidence in "):
            continue
        (site,), (measured,) = group.finding_sites, group.get_measurements()
        side = site.laterality.meaning if site.laterality else ""
        found[side, site.value.meaning] = measured.value
    assert found == {
        ("Left", "Lung"): round(100 * shares["left lung"], 2),
        ("Right", "Lung"): round(100 * shares["right lung"], 2),
        ("", "Middle zone of lung"): 31.0,
        ("Left", "Middle zone of lung"): 62.0,
        ("Right", "Middle zone of lung"): 0.0,
        ("Left", "Upper zone of lung"): 0.04,
    }


def test_a_peak_points_at_its_image(analysis: ScanAnalysis, tmp_path: Path) -> None:
    groups = groups_by_tracking(written(analysis, tmp_path))
    image = next(i for i in groups["peak in slice 23"] if i.ValueType == "IMAGE")
    uid = image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert uid == analysis.volume.source.slice_uids[22]


def explained(analysis: ScanAnalysis) -> ScanExplanation:
    assert analysis.explanation is not None
    return analysis.explanation


def lying(folder: Path, *direction: tuple[float, float, float]) -> ScanAnalysis:
    """The small scan with its axes along other directions of the patient."""
    volume = make_volume()
    grid = Grid(volume.grid.shape, volume.grid.spacing_mm, (0.0, 0.0, 0.0), direction)
    write_dicom_series(volume.with_voxels(volume.voxels, grid), folder)
    analysis = analysed(folder)
    assert analysis.volume.grid.shape == grid.shape
    return analysis


def peaks_of(report: Comprehensive3DSR) -> dict[str, str]:
    """Name of each peak to the SOPInstanceUID of its image."""
    images = {
        key: next(i for i in items if i.ValueType == "IMAGE")
        for key, items in groups_by_tracking(report).items()
        if key.startswith("peak")
    }
    return {
        key: str(image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for key, image in images.items()
    }


def test_peaks_are_counted_from_the_feet_however_the_scan_is_stored(tmp_path: Path) -> None:
    # Mirrored rows: the slice normal points to the feet, and slices are stored from the head.
    analysis = lying(tmp_path / "scan", (0, 0, -1), (0, 1, 0), (-1, 0, 0))
    (peak,) = explained(analysis).summary.peaks
    from_feet = analysis.volume.grid.shape[0] - peak.index
    uid = analysis.volume.source.slice_uids[peak.index]
    assert peaks_of(written(analysis, tmp_path)) == {f"peak in slice {from_feet}": uid}


def test_peaks_of_a_scan_not_stacked_along_the_body_have_no_slice_number(tmp_path: Path) -> None:
    analysis = lying(tmp_path / "scan", (0, 1, 0), (0, 0, -1), (1, 0, 0))
    (peak,) = explained(analysis).summary.peaks
    uid = analysis.volume.source.slice_uids[peak.index]
    assert peaks_of(written(analysis, tmp_path)) == {"peak 1": uid}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("gradcam", "Evidence for COVID-19 pneumonia, by gradcam: lung with"),
        ("strongest_channel", "Network activity (strongest channel): lung with"),
        ("attention", "Network activity (attention): lung with"),
    ],
)
def test_evidence_is_said_to_be_for_a_class_only_where_the_method_knows_one(
    analysis: ScanAnalysis, tmp_path: Path, method: str, words: str
) -> None:
    made = explained(analysis)
    other = replace(made, explanation=replace(made.explanation, method=method))
    report = written(replace(analysis, explanation=other), tmp_path)
    (comment,) = (text for text in texts(report) if "not the outline of a disease" in text)
    assert comment.startswith(words)
    assert ("which class it speaks for" in comment) == (method != "gradcam")


def test_segments_and_map_are_pointed_at_when_they_are_written_too(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    report = written(analysis, tmp_path, *WANTED)
    groups = groups_by_tracking(report)
    for key, number in (("lungs", 1), ("evidence", 2)):
        segment = next(i for i in groups[key] if i.ValueType == "IMAGE")
        assert segment.ReferencedSOPSequence[0].ReferencedSegmentNumber == number
    measured = next(i for i in groups["evidence"] if i.ValueType == "NUM")
    source = next(i for i in measured.ContentSequence if i.ValueType == "IMAGE")
    map_storage = "1.2.840.10008.5.1.4.1.1.30"
    assert source.ReferencedSOPSequence[0].ReferencedSOPClassUID == map_storage
    alone = groups_by_tracking(written(analysis, tmp_path))
    assert not [i for i in alone["lungs"] if i.ValueType == "IMAGE"]


def test_an_unsuitable_scan_is_reported_with_its_reasons(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    result = replace(
        analysis.result,
        decision=UNSUITABLE,
        probabilities={},
        unsuitable_reasons=("No lungs were found.",),
    )
    report = written(replace(analysis, result=result, explanation=None), tmp_path, *WANTED)
    groups = groups_by_tracking(report)
    assert list(groups) == ["not classified", "lungs"]
    assert any("No lungs were found." in text for text in texts(report))
    assert "Probability" not in numbers(groups["not classified"])


def with_classes(analysis: ScanAnalysis, *labels: str) -> ScanAnalysis:
    """The analysis with classes of a user's own, the first of which is the answer."""
    shares = dict.fromkeys(labels, 0.25 / (len(labels) - 1)) | {labels[0]: 0.75}
    return replace(
        analysis, result=replace(analysis.result, decision=labels[0], probabilities=shares)
    )


def test_a_class_of_ones_own_is_coded_in_our_scheme(analysis: ScanAnalysis, tmp_path: Path) -> None:
    own = with_classes(analysis, "pulmonary edema", "normal")
    report = pydicom.dcmread(write_structured_report(own, tmp_path, WriteOptions()))
    finding = next(
        item
        for item in groups_by_tracking(report)["answer"]
        if item.ConceptNameCodeSequence[0].CodeValue == "121071"
    ).ConceptCodeSequence[0]
    assert finding.CodingSchemeDesignator == "99CHESTCT"
    assert (finding.CodeValue, finding.CodeMeaning) == ("pulmonary edema", "pulmonary edema")
    schemes = [item.CodingSchemeDesignator for item in report.CodingSchemeIdentificationSequence]
    assert schemes == ["99CHESTCT"]


def test_a_class_with_a_code_is_coded_so_and_its_local_scheme_is_named(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    own = with_classes(analysis, "emphysema", "clear")
    labels = LabelSet(
        (
            ClassLabel("emphysema", "Emphysema of the lung", code=LabelCode("E7", "99CLINIC", "E")),
            ClassLabel("clear", negative=True),
        )
    )
    own = replace(own, result=replace(own.result, labels=labels))
    report = pydicom.dcmread(write_structured_report(own, tmp_path, WriteOptions()))
    answer = groups_by_tracking(report)["answer"]
    (finding,) = (
        item.ConceptCodeSequence[0]
        for item in answer
        if item.ConceptNameCodeSequence[0].CodeValue == "121071"
    )
    assert (finding.CodeValue, finding.CodingSchemeDesignator, finding.CodeMeaning) == (
        "E7",
        "99CLINIC",
        "E",
    )
    schemes = [item.CodingSchemeDesignator for item in report.CodingSchemeIdentificationSequence]
    assert schemes == ["99CHESTCT", "99CLINIC"]


AWKWARD_LABELS = (
    "interstitial lung disease, usual pattern",
    "interstitial lung disease, other pattern",
    "interstitial lun",
    "a\\b",
    "a/b",
    "a b",
    " a b",
    "A B",
    "two\nlines \x1b[31m",
    "肺炎",
)


def test_every_class_name_has_a_code_of_its_own_that_dicom_can_hold() -> None:
    awkward = LabelSet.of_names(AWKWARD_LABELS)
    for codes in (
        [_finding_of(label, awkward)[0] for label in AWKWARD_LABELS],
        [_probability_of(label, awkward)[0] for label in AWKWARD_LABELS],
    ):
        assert len(set(codes)) == len(AWKWARD_LABELS)
        assert all(0 < len(code) <= 16 and "\\" not in code for code in codes)
        assert all(code.isascii() and code.isprintable() and code == code.strip() for code in codes)


def test_a_backslash_in_a_class_name_does_not_become_two_values(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    own = with_classes(analysis, *AWKWARD_LABELS[3:])
    report = pydicom.dcmread(write_structured_report(own, tmp_path, WriteOptions()))
    answer = groups_by_tracking(report)["answer"]
    names = [item.ConceptNameCodeSequence[0] for item in answer if item.ValueType == "NUM"]
    assert len({name.CodeValue for name in names}) == len(AWKWARD_LABELS[3:])
    assert {name["CodeMeaning"].VM for name in names} == {1}


def test_a_changed_result_names_its_predecessor_and_the_same_result_is_the_same_report(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    changed = replace(analysis, result=replace(analysis.result, lung_volume_l=1.5))
    made = []
    for one in (analysis, analysis, changed, changed, analysis):
        write_outputs(one, tmp_path, WriteOptions(names=("dicom_sr",)))
        made.append(pydicom.dcmread(tmp_path / "report.dcm"))
    first, again, other, other_again, back = made
    assert first.SOPInstanceUID == again.SOPInstanceUID
    assert "PredecessorDocumentsSequence" not in again
    assert predecessors(other) == predecessors(other_again) == [first.SOPInstanceUID]
    assert other.SOPInstanceUID == other_again.SOPInstanceUID
    assert predecessors(back) == [other.SOPInstanceUID]
    assert len({one.SOPInstanceUID for one in (first, other, back)}) == 3


def predecessors(report: Dataset) -> list[str]:
    return [
        item.ReferencedSOPInstanceUID
        for study in report.PredecessorDocumentsSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]


def test_a_report_of_before_that_cannot_be_read_is_no_predecessor(
    analysis: ScanAnalysis, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "report.dcm").write_bytes(b"no DICOM at all")
    options = WriteOptions(names=("dicom_sr",), earlier=earlier)
    report = pydicom.dcmread(write_structured_report(analysis, tmp_path, options))
    assert "PredecessorDocumentsSequence" not in report

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from analyses import SALIENT, SHAPE, make_analysis, make_unsuitable
from explained import HOT_SLICE, make_explained, make_explanation
from pydantic import ValidationError

from chestct.labels import ClassLabel, LabelSet
from chestct.writers.json_report import ResultDocument, result_document, write_json


def test_the_file_holds_the_result_and_nothing_is_lost(tmp_path: Path) -> None:
    analysis = make_analysis()
    written = json.loads(write_json(analysis, tmp_path).read_text(encoding="utf-8"))
    result = analysis.result
    assert written["schema_version"] == "2.3"
    assert written["decision"] == result.decision
    assert written["probabilities"] == result.probabilities
    assert list(written["probabilities"]) == list(result.probabilities)
    assert written["warnings"] == list(result.warnings)
    assert written["timings_s"] == {"read": 0.5, "prepare": 1.25, "network": 0.25, "total": 2.0}
    assert written["provenance"]["pixel_sha256"] == result.provenance.pixel_sha256
    assert written["notice"] == result.notice
    first, last = SALIENT
    assert written["analysed_slices"] == {
        "first": first + 1,
        "last": last + 1,
        "total": SHAPE[0],
    }


def test_the_file_can_be_read_back_by_its_own_schema(tmp_path: Path) -> None:
    analysis = make_analysis()
    text = write_json(analysis, tmp_path).read_text(encoding="utf-8")
    assert ResultDocument.model_validate_json(text) == result_document(analysis)


def test_an_unsuitable_scan_has_reasons_and_no_probabilities() -> None:
    document = result_document(make_unsuitable())
    assert document.decision == "unsuitable"
    assert document.probabilities == {}
    assert document.unsuitable_reasons == ["No lungs were found."]
    assert document.explanation is None


def test_an_explanation_is_written_with_its_peaks_and_shares(tmp_path: Path) -> None:
    written = json.loads(write_json(make_explained(), tmp_path).read_text(encoding="utf-8"))
    explained = make_explanation()
    record = written["explanation"]
    assert (record["method"], record["layer"], record["label"], record["scale"]) == (
        "gradcam",
        "stages.3",
        "COVID-19",
        0.25,
    )
    assert record["shares"] == pytest.approx(explained.summary.shares, abs=1e-6)
    assert record["involved_ml"] == pytest.approx(explained.summary.involved_ml, abs=1e-3)
    # Cells of 8 x 4 x 4 input voxels of 4 x 6 x 6 mm.
    assert record["cell_mm"] == [32.0, 24.0, 24.0]
    (peak,) = record["peaks"]
    assert (peak["slice"], peak["uid"]) == (HOT_SLICE + 1, "1.2.3.22")
    assert peak["position_mm"] == -212.0
    assert peak["instance_number"] is None
    hottest = record["hottest"]
    assert hottest["slice"] == HOT_SLICE + 1
    assert hottest["position_mm"] == pytest.approx(explained.summary.hottest_mm, abs=1e-3)
    assert peak["evidence"] == pytest.approx(explained.summary.peaks[0].evidence, abs=1e-6)


def test_what_speaks_for_a_normal_scan_has_no_volume_and_no_shares() -> None:
    record = result_document(make_explained(label="normal")).explanation
    assert record is not None
    assert record.involved_ml is None
    assert record.shares == {}
    assert record.hottest is not None


def test_slices_that_were_not_analysed_are_null_and_not_zero(tmp_path: Path) -> None:
    text = write_json(make_explained(), tmp_path).read_text(encoding="utf-8")
    by_slice = json.loads(text)["explanation"]["by_slice"]
    first, last = SALIENT
    assert [value is None for value in by_slice] == [
        not first <= index <= last for index in range(SHAPE[0])
    ]
    known = np.array(by_slice[first : last + 1], dtype=float)
    expected = make_explanation().summary.by_slice[first : last + 1]
    np.testing.assert_allclose(known, expected, rtol=0, atol=1e-6)
    assert "NaN" not in text


def test_a_missing_layer_and_a_missing_uid_are_null() -> None:
    explained = make_explanation()
    bare = replace(
        explained,
        explanation=replace(explained.explanation, layer=""),
        summary=replace(
            explained.summary, peaks=tuple(replace(p, uid="") for p in explained.summary.peaks)
        ),
    )
    record = result_document(replace(make_analysis(), explanation=bare)).explanation
    assert record is not None
    assert record.layer is None
    assert record.peaks[0].uid is None


def test_every_kind_of_document_can_be_read_back(tmp_path: Path) -> None:
    for analysis in (make_analysis(), make_explained(), make_unsuitable()):
        text = write_json(analysis, tmp_path).read_text(encoding="utf-8")
        assert ResultDocument.model_validate_json(text) == result_document(analysis)


def test_a_document_of_another_layout_is_refused() -> None:
    document = json.loads(result_document(make_explained()).model_dump_json())
    document["explanation"]["patient"] = "x"
    with pytest.raises(ValidationError, match="patient"):
        ResultDocument.model_validate(document)


OWN = LabelSet(
    (
        ClassLabel("CAP", "Bacterial", color="#aa0000"),
        ClassLabel("COVID-19"),
        ClassLabel("normal", "Clear lungs", negative=True),
    )
)


def test_classes_are_written_with_the_classifiers_wordings_and_colours() -> None:
    analysis = make_analysis()
    own = replace(analysis, result=replace(analysis.result, labels=OWN))
    assert json.loads(result_document(own).model_dump_json())["classes"] == {
        "CAP": {"wording": "Bacterial", "color": "#aa0000", "is_negative": False},
        "COVID-19": {"wording": "COVID-19", "color": None, "is_negative": False},
        "normal": {"wording": "Clear lungs", "color": None, "is_negative": True},
    }


def test_a_document_gives_back_the_answer_that_was_written() -> None:
    for analysis in (make_analysis(), make_unsuitable()):
        result = replace(analysis.result, labels=OWN)
        document = result_document(replace(analysis, result=result))
        again = document.as_result()
        rounded = replace(result, timings_s=again.timings_s)
        assert replace(again, labels=None) == replace(rounded, labels=None)
        assert [one.words for one in again.label_set.classes] == [c.words for c in OWN.classes]
        assert again.verdict == result.verdict


def test_an_older_document_is_read_and_its_classes_are_what_their_names_say() -> None:
    values = json.loads(result_document(make_analysis()).model_dump_json())
    del values["classes"]
    values["schema_version"] = "2.1"
    document = ResultDocument.model_validate(values)
    assert json.loads(document.model_dump_json()) == values
    assert document.as_result().verdict == "COVID-19 pneumonia"


@pytest.mark.parametrize(
    "changes",
    [{"color": "red; background: url(//x)"}, {"color": "#aa00"}, {"is_negative": True}],
)
def test_a_document_with_impossible_classes_is_refused(changes: dict[str, object]) -> None:
    values = json.loads(result_document(make_analysis()).model_dump_json())
    values["classes"]["CAP"] |= changes
    with pytest.raises(ValidationError):
        ResultDocument.model_validate(values)

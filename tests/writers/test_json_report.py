from __future__ import annotations

import json
from pathlib import Path

from analyses import SALIENT, SHAPE, make_analysis, make_unsuitable

from chestct.writers.json_report import ResultDocument, result_document, write_json


def test_the_file_holds_the_result_and_nothing_is_lost(tmp_path: Path) -> None:
    analysis = make_analysis()
    written = json.loads(write_json(analysis, tmp_path).read_text(encoding="utf-8"))
    result = analysis.result
    assert written["schema_version"] == "1.0"
    assert written["decision"] == result.decision
    assert written["probabilities"] == result.probabilities
    assert list(written["probabilities"]) == list(result.probabilities)
    assert written["warnings"] == list(result.warnings)
    assert written["timings_s"] == {"read": 0.5, "prepare": 1.25, "network": 0.25, "total": 2.0}
    assert written["provenance"]["pixel_sha256"] == result.provenance.pixel_sha256
    assert written["notice"] == result.notice
    first, last = SALIENT
    assert written["analysed_slices"] == {"first": first, "last": last, "total": SHAPE[0]}


def test_the_file_can_be_read_back_by_its_own_schema(tmp_path: Path) -> None:
    analysis = make_analysis()
    text = write_json(analysis, tmp_path).read_text(encoding="utf-8")
    assert ResultDocument.model_validate_json(text) == result_document(analysis)


def test_an_unsuitable_scan_has_reasons_and_no_probabilities() -> None:
    document = result_document(make_unsuitable())
    assert document.decision == "unsuitable"
    assert document.probabilities == {}
    assert document.unsuitable_reasons == ["No lungs were found."]

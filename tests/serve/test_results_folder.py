"""What the page is told of results, and of what readers said of them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from analyses import make_unsuitable
from explained import make_explained

from chestct.datasets.reader_labels import Readings as LabelTable
from chestct.errors import ChestCTError
from chestct.evaluation.predictions import Predictions, write_predictions
from chestct.evaluation.report import write_evaluation
from chestct.labels import ClassLabel, LabelSet
from chestct.result import UNLIKE, FindingAnswer
from chestct.serve.jobs import _free_folder
from chestct.serve.results import (
    Evaluation,
    Reading,
    Readings,
    Results,
    page_of,
    rows_csv,
    scans_below,
)
from chestct.writers.folders import write_outputs


def written(folder: Path, **changes: object) -> Results:
    """A folder with the results of one scan."""
    analysis = make_explained()
    result = replace(analysis.result, **changes)  # type: ignore[arg-type]
    write_outputs(replace(analysis, result=result), folder / "p07")
    return Results(folder)


def test_a_folder_of_classify_is_listed_as_its_results_say(tmp_path: Path) -> None:
    results = written(tmp_path, is_uncertain=True)
    (entry,) = results.entries()
    row = entry.row()
    assert (row["scan"], row["verdict"], row["percent"]) == ("p07", "COVID-19 pneumonia", "90.0 %")
    assert (row["doubt"], row["num_warnings"], row["seconds"]) == ("uncertain", 1, 2.0)
    assert results.find(entry.number) == entry
    assert results.find("p07") is None
    assert "p07" not in entry.number


def test_newer_results_come_first_and_changed_ones_are_read_anew(tmp_path: Path) -> None:
    results = written(tmp_path)
    write_outputs(make_unsuitable(), tmp_path / "later")
    os.utime(tmp_path / "later" / "result.json", (4e9, 4e9))
    assert [entry.folder.name for entry in results.entries()] == ["later", "p07"]
    written(tmp_path, decision="CAP")
    assert results.entries()[1].document.decision == "CAP"


def test_folders_that_hold_no_results_are_counted_or_passed_over(tmp_path: Path) -> None:
    results = written(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, text in (("older", '{"schema_version": "1.0"}'), ("damaged", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    assert [entry.folder.name for entry in results.entries()] == ["p07"]
    assert results.num_unreadable == 2
    assert Results(tmp_path / "not there").entries() == []


def test_unlike_is_said_as_the_report_says_it(tmp_path: Path) -> None:
    (entry,) = written(tmp_path, is_uncertain=True, is_unlike=True).entries()
    assert entry.row()["doubt"] == UNLIKE
    assert page_of(entry.number, entry.document, entry.folder)["doubt"] == UNLIKE


OWN = LabelSet(
    (
        ClassLabel("CAP", "Bacterial", negative=True),
        ClassLabel("COVID-19", "Viral", color="#aa0000"),
        ClassLabel("normal", "Odd one"),
    )
)


def test_classes_are_called_and_coloured_as_the_classifier_says(tmp_path: Path) -> None:
    (entry,) = written(tmp_path, labels=OWN).entries()
    page = page_of(entry.number, entry.document, entry.folder)
    assert (entry.row()["verdict"], page["verdict"]) == ("Viral", "Viral")
    bars = [(bar["words"], bar["color"]) for bar in page["bars"]]  # type: ignore[attr-defined]
    assert bars == [("Bacterial", ""), ("Viral", "#aa0000"), ("Odd one", "")]
    assert page["evidence"]["words"] == "Evidence for “Viral”"  # type: ignore[index]
    assert page["labels"] == {"CAP": "Bacterial", "COVID-19": "Viral", "normal": "Odd one"}
    report = (entry.folder / "report.html").read_text(encoding="utf-8")
    assert "background:#aa0000" in report
    assert all(words in report for words, _ in bars)


def test_evidence_for_the_classifiers_own_negative_class_is_no_disease(tmp_path: Path) -> None:
    for name, is_disease in (("CAP", False), ("COVID-19", True)):
        analysis = make_explained(label=name)
        explained = replace(analysis.explanation, labels=OWN)  # type: ignore[type-var]
        result = replace(analysis.result, labels=OWN)
        write_outputs(replace(analysis, result=result, explanation=explained), tmp_path / "p07")
        (entry,) = Results(tmp_path).entries()
        page = page_of(entry.number, entry.document, entry.folder)
        assert page["evidence"]["is_disease"] is is_disease  # type: ignore[index]


def test_results_of_an_older_layout_are_shown_by_the_names_of_their_classes(
    tmp_path: Path,
) -> None:
    written(tmp_path, labels=OWN)
    path = tmp_path / "p07" / "result.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["classes"]
    path.write_text(json.dumps(values | {"schema_version": "2.1"}), encoding="utf-8")
    results = Results(tmp_path)
    (entry,) = results.entries()
    assert (entry.row()["verdict"], results.num_unreadable) == ("COVID-19 pneumonia", 0)


def test_findings_are_called_as_in_the_report(tmp_path: Path) -> None:
    labels = LabelSet((ClassLabel("a", "An A"), ClassLabel("b", "A B")), are_findings=True)
    (entry,) = written(
        tmp_path,
        labels=labels,
        decision="a",
        probabilities={"a": 0.8, "b": 0.3},
        findings={
            "a": FindingAnswer(0.8, 0.6, is_present=True, is_uncertain=False),
            "b": FindingAnswer(0.3, 0.4, is_present=False, is_uncertain=False),
        },
    ).entries()
    page = page_of(entry.number, entry.document, entry.folder)
    assert (page["eyebrow"], page["verdict"]) == ("Findings", "An A")
    bars = [(bar["words"], bar["is_decision"]) for bar in page["bars"]]  # type: ignore[attr-defined]
    assert bars == [("An A (present from 60.0 %)", True), ("A B (present from 40.0 %)", False)]
    assert "do not add up to 100 %" in str(page["meaning"])


def test_an_unsuitable_scan_has_reasons_and_no_probability(tmp_path: Path) -> None:
    write_outputs(make_unsuitable(), tmp_path / "p07")
    (entry,) = Results(tmp_path).entries()
    page = page_of(entry.number, entry.document, entry.folder)
    assert (page["verdict"], page["bars"], page["is_suitable"]) == ("Not classified", [], False)
    assert page["reasons"] == ["No lungs were found."]
    assert entry.row()["share"] is None


def test_the_page_of_a_scan_has_its_words_curve_and_files(tmp_path: Path) -> None:
    (entry,) = written(tmp_path).entries()
    page = page_of(entry.number, entry.document, entry.folder)
    assert [bar["percent"] for bar in page["bars"]] == ["7.0 %", "90.0 %", "3.0 %"]  # type: ignore[index, union-attr]
    assert page["slices"] == {"first": 11, "last": 30, "total": 40}
    evidence = page["evidence"]
    assert isinstance(evidence, dict)
    assert evidence["words"] == "Evidence for “COVID-19 pneumonia”"
    assert len(evidence["by_slice"]) == 40
    assert evidence["peaks"][0][0] == entry.document.explanation.peaks[0].slice  # type: ignore[union-attr]
    names = [file["name"] for file in page["files"]]  # type: ignore[union-attr]
    assert names == ["result.json", "report.html", "preview.png"]
    assert [path.name for _, path in entry.files] == names
    json.dumps(page)


def test_an_answer_that_is_being_written_has_no_files_yet(tmp_path: Path) -> None:
    (entry,) = written(tmp_path).entries()
    page = page_of(entry.number, entry.document, None)
    assert (page["files"], page["is_saved"]) == ([], False)


def test_another_classifier_answers_beside_the_first(tmp_path: Path) -> None:
    (entry,) = written(tmp_path / "a").entries()
    (other,) = written(tmp_path / "b", decision="CAP").entries()
    assert entry.row(other.document)["other"] == {
        "verdict": "Community-acquired pneumonia",
        "percent": "7.0 %",
        "doubt": "",
        "agrees": False,
    }


def test_the_list_is_a_table_that_no_spreadsheet_runs(tmp_path: Path) -> None:
    (entry,) = written(tmp_path, scan="=1+1").entries()
    header, line = rows_csv([entry.row()]).splitlines()
    assert header.startswith("scan,decision,probability,certainty,lungs_l,warnings,seconds")
    assert line.startswith("'=1+1,COVID-19,0.9,certain,1.25,1,2.0,")


def test_results_of_another_scan_of_this_name_are_never_replaced(tmp_path: Path) -> None:
    analysis = make_explained()
    assert _free_folder(tmp_path, analysis) == tmp_path / "p07"
    written(tmp_path)
    assert _free_folder(tmp_path, analysis) == tmp_path / "p07"
    provenance = replace(analysis.result.provenance, pixel_sha256="ef" * 32)
    other = replace(analysis, result=replace(analysis.result, provenance=provenance))
    assert _free_folder(tmp_path, other) == tmp_path / "p07-2"
    write_outputs(other, tmp_path / "p07-2")
    assert _free_folder(tmp_path, other) == tmp_path / "p07-2"


def test_scans_are_found_by_the_names_that_results_have(tmp_path: Path) -> None:
    for path in ("p01/series/1.dcm", "p02.zip"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    found = scans_below(tmp_path)
    assert found["p01"] == [tmp_path / "p01"]
    assert found["p01-series"] == found["series"] == [tmp_path / "p01" / "series"]
    assert found["p02.zip"] == [tmp_path / "p02.zip"]
    assert scans_below(tmp_path / "not there") == {}


def test_an_evaluation_shows_its_figures_and_each_wrong_answer_leads_to_its_scan(
    tmp_path: Path,
) -> None:
    results = written(tmp_path / "results")
    predictions = Predictions(
        scans=("scans/p01", "scans/p02", "scans/p07", "scans/p08"),
        patients=("a", "b", "c", "d"),
        truth=np.array([0, 1, 0, 1]),
        probabilities=np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.95, 0.05]]),
        labels=("normal", "COVID-19"),
    )
    folder = tmp_path / "run" / "evaluation"
    write_evaluation(predictions, folder)
    write_predictions(predictions, tmp_path / "run" / "predictions.csv")
    said = Evaluation(folder).words(results.entries())
    assert said["num_scans"] == 4
    assert ["accuracy", "0.500"] in [line[:2] for line in said["figures"]]  # type: ignore[union-attr]
    assert "confusion.png" in said["pictures"]  # type: ignore[operator]
    wrong = [(each["scan"], each["answer"], bool(each["id"])) for each in said["wrong"]]  # type: ignore[union-attr]
    # The surest first.
    assert wrong == [("p08", "No pneumonia", False), ("p07", "COVID-19 pneumonia", True)]


def test_readers_labels_are_a_table_that_dataset_readers_takes(tmp_path: Path) -> None:
    readings = Readings(tmp_path / "readers.csv")
    for scan, reader, verdict, label in (
        ("p01", "anna", "right", "COVID-19"),
        ("p01", "ben", "wrong", "CAP"),
        ("p02", "anna", "wrong", "normal"),
        ("p02", "ben", "wrong", "normal"),
        ("p03", "anna", "unsure", ""),
    ):
        reading = Reading(reader, verdict, label, "=a note,\n of two lines")
        readings.add(scan, "COVID-19", reading, ())
    table = LabelTable.read(tmp_path / "readers.csv")
    assert table.readers == ("anna", "ben")
    assert {scan.row.scan: dict(scan.given) for scan in table.scans} == {
        "p01": {"anna": "COVID-19", "ben": "CAP"},
        "p02": {"anna": "normal", "ben": "normal"},
        "p03": {},
    }
    agreed = table.agree_on()
    assert [(row.scan, row.label) for row in agreed.rows] == [("p02", "normal")]
    assert readings.of("p03") == [Reading("anna", "unsure", "", "=a note, of two lines")]


def test_a_reader_who_changes_their_mind_has_said_one_thing(tmp_path: Path) -> None:
    readings = Readings(tmp_path / "readers.csv")
    readings.add("p01", "CAP", Reading("anna", "right", "CAP"), ())
    readings.add("p01", "CAP", Reading("anna", "unsure", ""), ())
    assert readings.of("p01") == [Reading("anna", "unsure", "")]
    assert readings.verdicts() == {"p01": ["unsure"]}


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Reading("", "right", "CAP"), "name"),
        (Reading("a,b", "right", "CAP"), "name"),
        (Reading("../x", "right", "CAP"), "name"),
        (Reading("anna", "maybe", "CAP"), "right, wrong"),
        (Reading("anna", "wrong", "flu"), "label was expected: CAP"),
        (Reading("anna", "wrong", ""), "label was expected"),
        (Reading("anna", "unsure", "CAP"), "unsure gives no label"),
        (Reading("anna", "right", "CAP", "x" * 2001), "2000 characters"),
    ],
)
def test_what_no_reader_says_is_refused(tmp_path: Path, reading: Reading, words: str) -> None:
    readings = Readings(tmp_path / "readers.csv")
    with pytest.raises(ChestCTError, match=words):
        readings.add("p01", "CAP", reading, ())
    assert not readings.file.exists()


def test_another_table_of_this_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "readers.csv").write_text("something,else\n1,2\n")
    with pytest.raises(ChestCTError, match="no table of readers"):
        Readings(tmp_path / "readers.csv").add("p", "CAP", Reading("anna", "right", "CAP"), ())
    assert (tmp_path / "readers.csv").read_text() == "something,else\n1,2\n"

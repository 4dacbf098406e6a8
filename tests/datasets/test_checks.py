from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from labelled_scans import make_manifest, make_rows, write_scan

from chestct.datasets.checks import (
    LeakError,
    _Confounder,
    _ConfounderSettings,
    _describe_confounder,
    check_manifest,
    refuse_leaks,
    report_json,
)
from chestct.datasets.manifest import Manifest
from chestct.datasets.scans import ScanFacts, gather_facts

QUICK = _ConfounderSettings(permutations=19)


def confounder(**changes: object) -> _Confounder:
    found = _Confounder(
        variable="age", auc=0.83, chance_auc=0.58, p_value=0.01, is_same_as_class=False,
        num_patients=209, num_unknown=4, values={"A": {"CAP": 3}, "B": {"normal": 2}},
    )  # fmt: skip
    return replace(found, **changes)  # type: ignore[arg-type]


def test_a_renamed_reversed_copy_in_the_test_part_is_refused(scans: Manifest) -> None:
    folder = scans.folder
    write_scan(folder / "copy.nii", seed=0, is_reversed=True)
    rows = [
        replace(row, split="training" if number < 2 else "test")
        for number, row in enumerate(scans.rows)
    ]
    rows.append(replace(rows[2], scan="copy.nii", patient="another", number=6))
    manifest = scans.with_rows(rows)
    report = check_manifest(manifest, gather_facts(manifest, processes=1), QUICK)
    (refusal,) = report.refusals
    assert (refusal.kind, refusal.rows) == ("leak", (2, 6))
    with pytest.raises(LeakError, match="Rows 2 and 6 hold the same pixels") as caught:
        refuse_leaks(report)
    assert "another" not in str(caught.value)


def test_sound_scans_are_not_refused(scans: Manifest) -> None:
    report = check_manifest(scans, gather_facts(scans, processes=1), QUICK)
    assert report.refusals == ()
    refuse_leaks(report)
    assert report.has_pixels
    assert report.cases == {"COVID-19": 2, "normal": 2}
    (few,) = report.warnings
    assert "Only 2 scan(s) are COVID-19" in few.sentence
    assert "34% to 100 %" in few.sentence


def test_an_unreadable_scan_is_refused(scans: Manifest) -> None:
    scans.path(scans.rows[1]).write_bytes(b"broken")
    report = check_manifest(scans, gather_facts(scans, processes=1), QUICK)
    assert [finding.kind for finding in report.refusals] == ["unreadable"]


def test_one_class_only_is_refused() -> None:
    report = check_manifest(make_manifest(make_rows({"CAP": 40})), None, QUICK)
    assert [finding.kind for finding in report.refusals] == ["classes"]


def test_a_named_class_without_scans_is_refused_by_its_name() -> None:
    manifest = make_manifest(make_rows({"CAP": 40, "normal": 40}))
    report = check_manifest(replace(manifest, labels=("CAP", "COVID-19", "normal")), None, QUICK)
    (refusal,) = report.refusals
    assert "No scan is COVID-19" in refusal.sentence
    assert "at least two" not in refusal.sentence


def test_class_and_source_being_one_variable_is_said_as_a_reviewer_would() -> None:
    rows = [
        replace(row, site="Sari" if row.label == "COVID-19" else "Tehran")
        for row in make_rows({"COVID-19": 133, "normal": 76})
    ]
    report = check_manifest(make_manifest(rows), None, QUICK)
    (finding,) = report.warnings
    assert finding.kind == "confounder"
    for words in (
        "Class and site are the same variable",
        "Sari: 133 COVID-19; Tehran: 76 normal",
        "cross-validation included",
        "no evidence that the disease is recognised",
    ):
        assert words in finding.sentence
    assert report.refusals == ()


def test_what_predicts_the_class_is_said_with_its_figure() -> None:
    finding = _describe_confounder(confounder())
    assert finding is not None
    assert "AUC of 0.83 (209 patients; 4 of them not known; 95 %" in finding.sentence
    assert "stay below 0.58" in finding.sentence


@pytest.mark.parametrize(
    "changes", [{"auc": 0.6}, {"p_value": 0.2}, {"auc": None}, {"p_value": None}]
)
def test_what_may_be_chance_is_not_said(changes: dict[str, object]) -> None:
    assert _describe_confounder(confounder(**changes)) is None


def test_many_values_are_named_briefly() -> None:
    values = {f"v{i}": {"CAP": 1} for i in range(7)}
    finding = _describe_confounder(confounder(is_same_as_class=True, values=values))
    assert finding is not None
    assert "v3: 1 CAP; 3 more values" in finding.sentence


def test_the_gravest_comes_first_and_json_holds_everything() -> None:
    rows = make_rows({"CAP": 4, "normal": 4})
    rows[1] = replace(rows[1], patient=rows[0].patient, split="test")
    rows[0] = replace(rows[0], split="training")
    report = check_manifest(make_manifest(rows), None, QUICK)
    order = [finding.severity for finding in report.findings]
    assert order == sorted(order, key=["refuse", "warning", "note"].index)
    document = json.loads(report_json(report))
    assert document["schema"] == 1
    assert document["may_be_trained_on"] is False
    assert document["sides"] == {
        "test": {"CAP": 1, "normal": 0}, "training": {"CAP": 1, "normal": 0},
    }  # fmt: skip
    assert {each["variable"] for each in document["confounders"]} >= {"site", "age", "scanner"}
    assert rows[0].patient not in json.dumps(document)


def test_what_could_not_be_asked_is_said() -> None:
    report = check_manifest(make_manifest(make_rows({"CAP": 40, "normal": 40})), None, QUICK)
    sentences = " ".join(finding.sentence for finding in report.findings)
    assert "Could not be asked: site" in sentences
    assert "The scans were not read" in sentences


def test_facts_of_other_rows_are_a_mistake_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not belong"):
        check_manifest(make_manifest(make_rows({"CAP": 2})), [ScanFacts()], QUICK)

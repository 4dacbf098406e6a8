"""Several readers' labels: one label per scan, and how far they agree."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa

from chestct.cli import main
from chestct.datasets.manifest import ManifestError, read_manifest
from chestct.datasets.reader_labels import (
    _TOO_FEW,
    _UNDECIDED,
    Readings,
    _cohen_kappas,
    _disputes_csv,
    _draw_weights,
    _fleiss_kappas,
)
from chestct.errors import UnknownNameError

WIDE = """scan,patient,site,reader_anna,reader_ben,reader_eva
s1,p1,north,COVID-19,COVID-19,COVID-19
s2,p2,north,COVID-19,normal,COVID-19
s3,p3,south,normal,normal,
s4,p4,south,CAP,normal,COVID-19
s5,p5,south,normal,,
s6,p6,south,CAP,normal,
"""
LONG = """scan;patient;reader;label
s1;p1;anna;COVID-19
s1;p1;ben;COVID-19
s2;p2;anna;normal
s2;p2;ben;COVID-19
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def labels_by(folder: Path, rule: str = "majority", **how: Any) -> dict[str, str]:
    """Label or reason of every scan."""
    decided = Readings.read(write(folder, WIDE)).agree_on(rule, **how)
    return {row.scan: row.excluded or row.label for row in (*decided.rows, *decided.excluded)}


def test_the_majority_decides_and_ties_are_left_out(tmp_path: Path) -> None:
    assert labels_by(tmp_path) == {
        "s1": "COVID-19", "s2": "COVID-19", "s3": "normal", "s4": _UNDECIDED, "s5": _TOO_FEW,
        "s6": _UNDECIDED,
    }  # fmt: skip


def test_under_unanimous_one_other_opinion_leaves_a_scan_out(tmp_path: Path) -> None:
    found = labels_by(tmp_path, "unanimous", least_readers=1)
    assert found == {
        "s1": "COVID-19", "s2": _UNDECIDED, "s3": "normal", "s4": _UNDECIDED, "s5": "normal",
        "s6": _UNDECIDED,
    }  # fmt: skip


def test_the_adjudicator_decides_where_the_others_differ(tmp_path: Path) -> None:
    found = labels_by(tmp_path, "adjudicator", adjudicator="eva")
    assert found == {
        "s1": "COVID-19", "s2": "COVID-19", "s3": "normal", "s4": "COVID-19", "s5": _TOO_FEW,
        "s6": _UNDECIDED,
    }  # fmt: skip


def test_an_adjudicator_breaks_ties_of_the_majority(tmp_path: Path) -> None:
    assert labels_by(tmp_path, adjudicator="eva")["s4"] == "COVID-19"


def test_the_rule_adjudicator_needs_a_name_and_a_known_one(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="--adjudicator NAME"):
        labels_by(tmp_path, "adjudicator")
    with pytest.raises(ManifestError, match="Did you mean 'anna'"):
        labels_by(tmp_path, "adjudicator", adjudicator="ana")
    with pytest.raises(UnknownNameError, match="majority"):
        labels_by(tmp_path, "majorities")


def test_one_line_per_reader_is_read_as_well(tmp_path: Path) -> None:
    readings = Readings.read(write(tmp_path, LONG))
    assert readings.readers == ("anna", "ben")
    assert [dict(scan.given) for scan in readings.scans][1] == {"anna": "normal", "ben": "COVID-19"}
    assert [scan.is_disputed for scan in readings.scans] == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan,patient\ns1,p1\n", "names no readers"),
        ("scan,patient,reader_anna\n", "lists no scans"),
        ("scan,patient,reader_anna\ns1,p1,covid\n", "no label 'covid'"),
        ("scan,patient,reader_anna\ns1,,normal\n", "'patient' is empty"),
        ("scan,patient,reader_anna\ns1,p1,normal\ns1,p1,CAP\n", "rows 2 and 3 are the same scan"),
        ("scan,patient,reader,label\ns1,p1,,CAP\n", "'reader' is empty"),
        ("scan,patient,reader,label\ns1,p1,anna,\n", "'label' is empty"),
        ("scan,patient,reader,label\ns1,p1,a,CAP\ns1,p2,b,CAP\n", "differ in the column 'patient'"),
        ("scan,patient,reader,label\ns1,p1,a,CAP\ns1,p1,a,CAP\n", "has read this scan before"),
        ("scan,patient,reader_a,age\ns1,p1,CAP,old\n", "age must be years"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_row_and_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        Readings.read(write(tmp_path, text))


def test_a_scan_excluded_in_the_table_stays_excluded_with_its_reason(tmp_path: Path) -> None:
    text = "scan,patient,excluded,reader_a,reader_b\ns1,p1,image quality,CAP,CAP\ns2,p2,,CAP,CAP\n"
    decided = Readings.read(write(tmp_path, text)).agree_on()
    assert [(row.scan, row.label) for row in decided.rows] == [("s2", "CAP")]
    assert decided.excluded[0].excluded == "image quality"


def test_the_vectorised_kappas_are_those_of_the_libraries() -> None:
    rng = np.random.default_rng(5)
    first, second = rng.integers(0, 3, (2, 40))
    weights = _draw_weights([str(n) for n in range(40)], rng, num=20)
    found = _cohen_kappas(first, second, weights, 3)
    for row, kappa in zip(weights, found, strict=True):
        again = cohen_kappa_score(np.repeat(first, row), np.repeat(second, row), labels=range(3))
        assert kappa == pytest.approx(again)
    counts = rng.multinomial(4, [0.5, 0.3, 0.2], size=40)
    for row, kappa in zip(weights, _fleiss_kappas(counts, weights), strict=True):
        assert kappa == pytest.approx(fleiss_kappa(np.repeat(counts, row, axis=0)))


def test_intervals_hold_the_kappa_and_are_wider_with_fewer_scans(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    widths = []
    for num in (30, 300):
        truth = rng.choice(["CAP", "normal"], num)
        second = np.where(rng.random(num) < 0.8, truth, "CAP")
        lines = [f"s{n},p{n},{a},{b}" for n, (a, b) in enumerate(zip(truth, second, strict=True))]
        text = "scan,patient,reader_a,reader_b\n" + "\n".join(lines)
        (pair,) = Readings.read(write(tmp_path, text)).judge(rng).pairs
        assert pair.low is not None
        assert pair.kappa is not None
        assert pair.high is not None
        assert pair.low < pair.kappa < pair.high
        widths.append(pair.high - pair.low)
    assert widths[0] > 2 * widths[1]


def test_scans_of_one_patient_are_drawn_together() -> None:
    weights = _draw_weights(["a", "a", "b"], np.random.default_rng(7), num=50)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, [0, 2]].sum(axis=1) == 2).all()


def test_readers_who_share_no_scan_or_say_one_thing_only_have_no_kappa(tmp_path: Path) -> None:
    text = "scan,patient,reader_a,reader_b,reader_c\ns1,p1,CAP,,CAP\ns2,p2,,normal,normal\n"
    text += "s3,p3,CAP,,CAP\n"
    report = Readings.read(write(tmp_path, text)).judge(np.random.default_rng(8))
    notes = {pair.readers: pair.note for pair in report.pairs}
    assert notes["a", "b"] == "no scan was read by both"
    assert notes["a", "c"] == "both name one label throughout"
    assert report.all_readers is not None
    assert report.all_readers.note == "no scan was read by all"
    assert report.num_disputed == 0


def test_three_readers_have_the_fleiss_kappa_of_the_library(tmp_path: Path) -> None:
    report = Readings.read(write(tmp_path, WIDE)).judge(np.random.default_rng(9))
    assert report.all_readers is not None
    counts = [[0, 3, 0], [0, 2, 1], [1, 1, 1]]
    assert report.all_readers.num_scans == 3
    assert report.all_readers.kappa == pytest.approx(fleiss_kappa(np.array(counts)))
    assert report.all_readers.same == pytest.approx(1 / 3)


def test_all_readers_of_one_opinion_have_no_fleiss_kappa(tmp_path: Path) -> None:
    text = "scan,patient,reader_a,reader_b,reader_c\ns1,p1,CAP,CAP,CAP\ns2,p2,CAP,CAP,CAP\n"
    report = Readings.read(write(tmp_path, text)).judge(np.random.default_rng(9))
    assert report.all_readers is not None
    assert report.all_readers.note == "all name one label throughout"


def test_the_list_of_disputed_scans_says_who_said_what(tmp_path: Path) -> None:
    readings = Readings.read(write(tmp_path, WIDE))
    lines = list(csv.DictReader(_disputes_csv(readings, readings.agree_on()).splitlines()))
    assert [line["scan"] for line in lines] == ["s2", "s4", "s6"]
    assert (lines[0]["anna"], lines[0]["ben"], lines[0]["decided"]) == (
        "COVID-19", "normal", "COVID-19",
    )  # fmt: skip
    assert (lines[1]["decided"], lines[1]["excluded"]) == ("", _UNDECIDED)


def test_the_command_writes_a_manifest_that_can_be_read_and_the_agreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["dataset", "readers", str(write(tmp_path, WIDE)), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Fleiss: anna, ben, eva" in shown
    assert "excluded: readers disagree" in shown
    manifest = read_manifest(out / "consensus.csv", needs_files=False)
    assert [row.label for row in manifest.rows] == ["COVID-19", "COVID-19", "normal"]
    assert manifest.rows[0].site == "north"
    assert len(manifest.excluded) == 3
    found = json.loads((out / "agreement.json").read_text())
    assert (found["rule"]["name"], len(found["pairs"])) == ("majority", 3)
    assert "3 of 6 scans are disputed" in (out / "agreement.md").read_text()
    assert (out / "disputed.csv").is_file()

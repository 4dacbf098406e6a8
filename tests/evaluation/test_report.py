from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chestct.errors import UnknownNameError, WriteError
from chestct.evaluation.comparisons import Judgement
from chestct.evaluation.intervals import Bootstrap
from chestct.evaluation.predictions import Predictions, PredictionsError
from chestct.evaluation.report import (
    SCHEMA_VERSION,
    EvaluationSettings,
    _figures_csv,
    _report,
    recorded_exclusions,
    summarise,
    write_evaluation,
)
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.report import as_markdown

MakePredictions = Callable[..., Predictions]
QUICK = EvaluationSettings(name="MASERes", bootstrap=Bootstrap(replicates=50), formats=())
FILES = {
    *("metrics.json", "evaluation.html", "tables.md", "tables.tex", "figures.csv", "groups.csv"),
    *("confusion.csv", "comparisons.csv"),
}


def read(folder: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads((folder / "metrics.json").read_text())
    return record


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_an_evaluation_writes_record_tables_and_figures_and_leaves_nothing_else(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    settings = EvaluationSettings(bootstrap=Bootstrap(replicates=50))
    log = [{"epoch": 0, "training_loss": 1.0, "validation_loss": 1.0, "validation_accuracy": 0.3}]
    folder = tmp_path / "runs" / "evaluation"
    write_evaluation(
        make_predictions(30, sites=("A", "B")), folder, settings=settings, logs={"fold 0": log}
    )
    names = {"confusion", "roc", "reliability", "coverage_risk", "learning_curves"}
    figures = {f"{name}.{ending}" for name in names for ending in ("png", "svg", "pdf")}
    assert {path.name for path in folder.iterdir()} == FILES | figures
    assert (folder / "roc.pdf").read_bytes().startswith(b"%PDF")
    page = (folder / "evaluation.html").read_text(encoding="utf-8")
    assert page.count('<svg role="img"') == len(names)
    # Only letters and shapes: the page's own rules let no picture in.
    assert "<image" not in page
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "#000000" not in drawn
    assert [path.name for path in folder.parent.iterdir()] == ["evaluation"]


def test_the_record_holds_every_figure_with_interval_counts_and_reason(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    predictions = make_predictions(60, sites=("A", "B"))
    summary = write_evaluation(
        predictions,
        tmp_path / "e",
        settings=QUICK,
        others={"age, sex, scanner": make_predictions(60, seed=2, skill=0.2)},
        excluded={"scan9999": "no lungs found"},
    )
    record = read(tmp_path / "e")
    assert record["schema"] == "chestct.evaluation"
    assert record["schema_version"] == SCHEMA_VERSION
    assert record["notice"] == NOT_FOR_CLINICAL_USE
    assert record["settings"]["bootstrap"] == {"replicates": 50, "level": 0.95, "seed": 1}
    accuracy = record["overall"]["accuracy"]
    assert accuracy["hits"] == int(predictions.is_right.sum())
    assert accuracy["value"] == summary.figures.overall["accuracy"].value
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert set(record["per_class"]["CAP"]) == {
        "sensitivity", "specificity", "ppv", "npv", "f1", "auc",
    }  # fmt: skip
    assert set(record["sites"]) == {"A", "B"}
    assert np.sum(record["confusion"]["counts"]) == 60
    assert record["excluded"] == {"scan9999": "no lungs found"}
    assert any("left out of the figures: 1" in warning for warning in record["warnings"])
    assert record["others"]["age, sex, scanner"]["num_scans"] == 60
    tests = {row["test"] for row in record["comparisons"]["age, sex, scanner"]}
    assert tests == {"mcnemar", "delong", "kappa", "patient_bootstrap"}


def test_the_page_lists_wrong_answers_the_surest_first_and_links_their_reports(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    predictions = make_predictions(40)
    wrong = predictions.wrong_rows
    assert (np.diff(predictions.confidences[wrong]) <= 0).all()
    assert set(wrong) == set(np.flatnonzero(~predictions.is_right))
    linked, plain = (predictions.scans[row] for row in wrong[:2])
    reports = {linked: f"../answers/{linked}/report.html", "another": "x.html"}
    write_evaluation(predictions, tmp_path / "e", settings=replace(QUICK, reports=reports))
    page = (tmp_path / "e" / "evaluation.html").read_text(encoding="utf-8")
    assert f'<a href="../answers/{linked}/report.html">{linked}</a>' in page
    assert f"<td>{plain}</td>" in page
    assert page.index(linked) < page.index(f"<td>{plain}</td>")
    assert f"{len(wrong)} of 40 scans, the surest first" in page
    assert "reports" not in read(tmp_path / "e")["settings"]


def test_the_page_names_no_patient_where_a_row_is_one(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    predictions = make_predictions(30)
    votes = replace(predictions, scans=predictions.patients)
    write_evaluation(votes, tmp_path / "e", settings=QUICK)
    for path in (tmp_path / "e").iterdir():
        assert not any(patient in path.read_text() for patient in votes.patients)
    page = (tmp_path / "e" / "evaluation.html").read_text(encoding="utf-8")
    assert f"row {predictions.wrong_rows[0] + 2} of the predictions" in page


def test_groups_have_tables_with_intervals_everywhere(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    plain = make_predictions(60)
    ages = tuple("under 40" if row % 2 else "40 and over" for row in range(60))
    predictions = replace(plain, groups={"age": ages})
    write_evaluation(predictions, tmp_path / "e", settings=QUICK)
    found = read(tmp_path / "e")["groups"]["age"]
    young = plain.choose(range(1, 60, 2))
    assert found["under 40"]["num_scans"] == 30
    assert found["under 40"]["overall"]["accuracy"]["hits"] == int(young.is_right.sum())
    assert found["under 40"]["overall"]["accuracy"]["low"] is not None
    rows = read_csv(tmp_path / "e" / "groups.csv")
    assert {(row["by"], row["group"]) for row in rows} == {("age", age) for age in ages}
    assert len(rows) == 2 * (8 + 3 * 6)
    assert "## By age" in (tmp_path / "e" / "tables.md").read_text()
    with pytest.raises(PredictionsError, match="There are 60 scans and 1 age"):
        replace(plain, groups={"age": ("old",)})


def test_the_tables_stand_in_latex_with_its_signs_escaped(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    others = {"50 % & a_b": make_predictions(30, seed=2)}
    write_evaluation(make_predictions(30), tmp_path / "e", settings=QUICK, others=others)
    text = (tmp_path / "e" / "tables.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 5
    assert r"figure & MASERes & 50 \% \& a\_b \\" in text
    assert r"\caption{All classes}" in text
    body = text.split(r"\begin{tabular}{lll}")[1].split(r"\end{tabular}")[0]
    assert all(line.count(" & ") == 2 for line in body.splitlines() if line.endswith(r"\\"))


def test_the_baseline_stands_in_the_same_table(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    others = {"age | sex": make_predictions(60, seed=2, skill=0.2)}
    write_evaluation(make_predictions(60), tmp_path / "e", settings=QUICK, others=others)
    text = (tmp_path / "e" / "tables.md").read_text()
    assert "| figure | MASERes | age \\| sex |" in text
    assert NOT_FOR_CLINICAL_USE in text
    assert "## Comparisons" in text
    assert "## Sites" not in text
    rows = read_csv(tmp_path / "e" / "figures.csv")
    assert len(rows) == 2 * (8 + 3 * 6)
    assert {row["classifier"] for row in rows} == {"MASERes", "age | sex"}
    tests = read_csv(tmp_path / "e" / "comparisons.csv")
    assert {row["other"] for row in tests} == {"age | sex"}
    confusion = read_csv(tmp_path / "e" / "confusion.csv")
    assert list(confusion[0]) == ["true", "CAP", "COVID-19", "normal"]
    assert sum(int(row[label]) for row in confusion for label in list(row)[1:]) == 60


def test_no_patient_is_named_in_any_output(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    predictions = make_predictions(30, scans_per_patient=2)
    write_evaluation(predictions, tmp_path / "e", settings=QUICK)
    for path in (tmp_path / "e").iterdir():
        assert not any(patient in path.read_text() for patient in set(predictions.patients))


def test_the_same_predictions_give_the_same_files(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    settings = EvaluationSettings(bootstrap=Bootstrap(replicates=20), formats=("svg", "pdf"))
    for name in ("first", "second"):
        write_evaluation(make_predictions(30), tmp_path / name, settings=settings)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_a_folder_that_exists_keeps_its_other_files(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.jsonl").write_text("kept")
    (folder / "metrics.json").write_text("old")
    write_evaluation(make_predictions(30), folder, settings=QUICK)
    assert (folder / "log.jsonl").read_text() == "kept"
    assert read(folder)["num_scans"] == 30
    assert {path.name for path in folder.iterdir()} == FILES | {"log.jsonl"}


def test_an_evaluation_that_fails_halfway_leaves_the_old_one(
    make_predictions: MakePredictions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_evaluation(make_predictions(30), tmp_path / "e", settings=QUICK)
    before = (tmp_path / "e" / "metrics.json").read_bytes()

    def no_space(self: Path, *arguments: object, **named: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(WriteError, match="'e': no space left on device"):
        write_evaluation(make_predictions(60), tmp_path / "e", settings=QUICK)
    assert (tmp_path / "e" / "metrics.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_a_place_that_cannot_be_written_is_said(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="could not be written to 'e'"):
        write_evaluation(make_predictions(6), tmp_path / "file" / "e", settings=QUICK)


@pytest.mark.parametrize("num", [0, 1])
def test_hardly_any_scans_are_written_without_a_warning(
    make_predictions: MakePredictions, tmp_path: Path, num: int
) -> None:
    settings = EvaluationSettings(bootstrap=Bootstrap(replicates=20), formats=("png",))
    others = {"other": make_predictions(num, seed=2)}
    write_evaluation(make_predictions(num), tmp_path / "e", settings=settings, others=others)
    record = read(tmp_path / "e")
    assert record["num_scans"] == num
    assert record["overall"]["macro_auc"]["value"] is None
    assert record["overall"]["macro_auc"]["note"]
    assert record["warnings"]


def test_two_classifiers_of_one_name_and_unknown_formats_are_refused(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    with pytest.raises(PredictionsError, match="Two classifiers are called 'MASERes'"):
        write_evaluation(
            make_predictions(9), tmp_path / "e", settings=QUICK,
            others={"MASERes": make_predictions(9, seed=2)},
        )  # fmt: skip
    with pytest.raises(UnknownNameError, match=r"no figure format 'pgn'. Did you mean 'png'"):
        write_evaluation(
            make_predictions(9), tmp_path / "e", settings=EvaluationSettings(formats=("pgn",))
        )
    assert list(tmp_path.iterdir()) == []


def test_scans_that_either_left_out_are_left_out_of_the_comparison_and_counted(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    ours = make_predictions(60).choose(range(1, 60))
    theirs = make_predictions(60, seed=2, skill=0.5)
    other = Judgement(theirs.choose(range(58)), {"scan0058": "torn", "scan0059": "no lungs found"})
    summary = write_evaluation(
        ours,
        tmp_path / "e",
        settings=QUICK,
        others={"other": other, "all": theirs},
        excluded={"scan0000": "no lungs found"},
    )
    record = read(tmp_path / "e")
    assert record["num_scans"] == 59
    assert record["others"]["other"]["num_scans"] == 57
    assert record["others"]["all"]["num_scans"] == 59
    accuracy = next(row for row in record["comparisons"]["other"] if row["figure"] == "accuracy")
    assert accuracy["first"] == pytest.approx(float(ours.choose(range(57)).is_right.mean()))
    assert accuracy["second"] == pytest.approx(float(theirs.choose(range(1, 58)).is_right.mean()))
    first, second = (text for text in summary.warnings if "is compared on" in text)
    assert "'other' is compared on the 57 scans that both decided on; decided on by" in first
    assert "'MASERes' only: 2, by 'other' only: 1." in first
    assert "'MASERes' only: 0, by 'all' only: 1." in second
    assert first in (tmp_path / "e" / "tables.md").read_text()


def test_a_scan_that_nobody_says_was_left_out_is_still_a_mistake(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    other = Judgement(make_predictions(57, seed=2), {"scan0058": "torn"})
    with pytest.raises(PredictionsError, match=r"'scan0057' \(2 in all\) was judged by one"):
        write_evaluation(
            make_predictions(60), tmp_path / "e", settings=QUICK, others={"other": other}
        )


@pytest.mark.parametrize("place", [".", "evaluation"])
def test_exclusions_are_read_from_the_evaluation_beside_a_file(
    make_predictions: MakePredictions, tmp_path: Path, place: str
) -> None:
    predictions, file = make_predictions(30), tmp_path / "run" / "predictions.csv"
    assert recorded_exclusions(file, predictions) == {}
    write_evaluation(
        predictions, file.parent / place, settings=QUICK, excluded={"scan9": "no lungs found"}
    )
    assert recorded_exclusions(file, predictions) == {"scan9": "no lungs found"}
    assert recorded_exclusions(file, make_predictions(29)) == {}
    (file.parent / place / "metrics.json").write_text("[]")
    assert recorded_exclusions(file, predictions) == {}


def test_warnings_name_small_classes_ties_dependence_and_single_decisions() -> None:
    names = tuple("abcd")
    predictions = Predictions(
        names, ("p", "p", "q", "r"), np.array([0, 0, 1, 1]), np.full((4, 3), 1 / 3), ("x", "y", "z")
    )
    warnings = " ".join(summarise(predictions, QUICK).warnings)
    assert "Few scans are x (2)" in warnings
    assert "No scan is z" in warnings
    assert "Every scan was called x." in warnings
    assert "several most probable labels, the first taken: 4" in warnings
    assert "4 scans belong to 3 patients" in warnings


def test_class_and_site_in_one_are_pointed_out(make_predictions: MakePredictions) -> None:
    def warned(predictions: Predictions) -> bool:
        return any("same variable" in text for text in summarise(predictions, QUICK).warnings)

    assert warned(make_predictions(30, sites=("Siemens", "GE", "Philips")))
    assert not warned(make_predictions(30, sites=("Siemens", "GE")))
    assert not warned(make_predictions(30, sites=("Siemens",)))


def test_undefined_figures_stand_in_the_csv_as_empty_cells_with_a_reason(
    make_predictions: MakePredictions,
) -> None:
    rows = list(
        csv.DictReader(_figures_csv({"c": summarise(make_predictions(0), QUICK)}).splitlines())
    )
    assert {row["value"] for row in rows} == {""}
    assert {row["note"] for row in rows} == {"no scans"}


@pytest.mark.parametrize("p_value", [0.0, 3e-9])
def test_p_values_too_small_to_print_are_said_to_be_below_the_last_digit(
    make_predictions: MakePredictions, tmp_path: Path, p_value: float
) -> None:
    settings = EvaluationSettings(bootstrap=Bootstrap(replicates=20), formats=())
    others = {"b": make_predictions(30, seed=4)}
    summary = write_evaluation(make_predictions(30), tmp_path, settings=settings, others=others)
    rows = tuple(replace(row, p_value=p_value) for row in summary.comparisons["b"])
    changed = replace(summary, comparisons={"b": rows})
    table = as_markdown(*_report("a", changed).sections)
    lines = [line for line in table.splitlines() if line.startswith("| b | mcnemar")]
    assert [line.split(" | ")[-2] for line in lines] == ["< 0.0001"]

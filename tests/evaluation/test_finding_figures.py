"""Figures of several findings: masked, at thresholds, with means and intervals over patients."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from chestct.evaluation import intervals, metrics
from chestct.evaluation.calibration import choose_threshold
from chestct.evaluation.intervals import Bootstrap, estimate_figures
from chestct.evaluation.predictions import (
    FindingPredictions,
    Predictions,
    PredictionsError,
    read_any_predictions,
    read_predictions,
    write_predictions,
)
from chestct.evaluation.report import EvaluationSettings, write_evaluation

FEW = Bootstrap(replicates=200)


def drawn(num: int = 80, num_patients: int = 40, seed: int = 0) -> FindingPredictions:
    rng = np.random.default_rng(seed)
    truth = (rng.random((num, 3)) < (0.5, 0.3, 0.2)).astype(float)
    shares = np.clip(0.3 * truth + 0.35 + rng.normal(0, 0.2, truth.shape), 0.01, 0.99)
    truth[rng.random(truth.shape) < 0.15] = np.nan
    return FindingPredictions(
        scans=tuple(f"s{i}" for i in range(num)),
        patients=tuple(f"p{i % num_patients}" for i in range(num)),
        truth=truth,
        probabilities=shares,
        thresholds=np.tile([0.5, 0.4, 0.6], (num, 1)),
        labels=("a", "b", "c"),
    )


def test_each_finding_is_judged_on_the_scans_where_it_is_known_at_its_threshold() -> None:
    predictions = drawn()
    figures = estimate_figures(predictions, FEW)
    for index, name in enumerate(predictions.labels):
        known = ~np.isnan(predictions.truth[:, index])
        truth = predictions.truth[known, index]
        shares = predictions.probabilities[known, index]
        found = figures.per_class[name]
        assert found["auc"].value == pytest.approx(roc_auc_score(truth, shares))
        assert found["auprc"].value == pytest.approx(average_precision_score(truth, shares))
        called = shares >= predictions.thresholds[0, index]
        assert (found["sensitivity"].hits, found["sensitivity"].total) == (
            int(called[truth == 1].sum()),
            int((truth == 1).sum()),
        )
        assert found["specificity"].hits == int((~called)[truth == 0].sum())
        assert found["auc"].low < found["auc"].value < found["auc"].high  # type: ignore[operator]


def test_macro_figures_are_means_over_findings_with_an_interval_over_patients() -> None:
    figures = estimate_figures(drawn(), FEW)
    for name in ("auc", "auprc", "sensitivity", "specificity", "f1"):
        each = [figures.per_class[label][name].value for label in ("a", "b", "c")]
        macro = figures.overall[f"macro_{name}"]
        assert macro.value == pytest.approx(np.mean(each))  # type: ignore[arg-type]
        assert macro.method == intervals.PATIENTS
        assert macro.low < macro.value < macro.high  # type: ignore[operator]


def test_weights_of_one_give_the_figures_themselves_and_doubled_scans_change_no_auprc() -> None:
    predictions = drawn()
    for index in range(3):
        view = predictions.of(index)
        ones = metrics.weigh(view, np.stack([np.ones(len(view)), np.full(len(view), 2.0)]))
        expected = average_precision_score(view.truth, view.probabilities[:, 1])
        assert metrics._weighted_auprc(ones) == pytest.approx([expected, expected])
        some = np.arange(len(view)) % 3
        weighted = metrics.weigh(view, some[None].astype(float))
        by_weight = average_precision_score(
            view.truth, view.probabilities[:, 1], sample_weight=some
        )
        assert metrics._weighted_auprc(weighted) == pytest.approx([by_weight])


def test_a_finding_that_no_scan_has_is_left_out_of_the_means_and_said() -> None:
    predictions = drawn()
    truth = predictions.truth.copy()
    truth[:, 2] = np.where(np.isnan(truth[:, 2]), np.nan, 0.0)
    figures = estimate_figures(
        FindingPredictions(
            predictions.scans,
            predictions.patients,
            truth,
            predictions.probabilities,
            predictions.thresholds,
            predictions.labels,
        ),
        FEW,
    )
    assert figures.per_class["c"]["auc"].value is None
    assert figures.per_class["c"]["auc"].note == "no scan is c"
    assert "2 of 3 findings" in figures.overall["macro_auc"].note


def view_of(shares: list[float], truth: list[int]) -> Predictions:
    values = np.array(shares)
    return Predictions(
        scans=tuple(f"s{i}" for i in range(len(shares))),
        patients=tuple(f"p{i}" for i in range(len(shares))),
        truth=np.array(truth),
        probabilities=np.stack([1 - values, values], axis=1),
        labels=("no a", "a"),
    )


def test_youdens_threshold_is_where_sensitivity_and_specificity_are_largest() -> None:
    view = view_of([0.1, 0.2, 0.3, 0.5, 0.6, 0.9], [0, 0, 1, 0, 1, 1])
    found = choose_threshold(view)
    assert found.threshold == pytest.approx(0.55)
    assert (found.sensitivity, found.specificity) == (pytest.approx(2 / 3), 1.0)
    assert (found.num_present, found.num_absent) == (3, 3)
    assert found.rule.startswith("Youden's index")


def test_a_wished_sensitivity_gives_the_highest_threshold_that_has_it() -> None:
    view = view_of([0.1, 0.2, 0.3, 0.5, 0.6, 0.9], [0, 0, 1, 0, 1, 1])
    found = choose_threshold(view, 0.9)
    assert found.threshold == pytest.approx(0.25)
    assert (found.sensitivity, found.specificity) == (1.0, pytest.approx(2 / 3))
    assert "a sensitivity of 0.9" in found.rule


def test_without_scans_with_and_without_it_a_threshold_is_one_half_and_says_so() -> None:
    found = choose_threshold(view_of([0.1, 0.2], [0, 0]))
    assert found.threshold == 0.5
    assert found.rule.startswith("0.5, as the validation part has no scan with it")
    assert found.sensitivity is None


def test_predictions_of_findings_are_read_as_they_were_written(tmp_path: Path) -> None:
    predictions = drawn()
    found = read_any_predictions(write_predictions(predictions, tmp_path / "p.csv"))
    assert isinstance(found, FindingPredictions)
    assert (found.scans, found.labels) == (predictions.scans, predictions.labels)
    for name in ("truth", "probabilities", "thresholds"):
        assert np.array_equal(getattr(found, name), getattr(predictions, name), equal_nan=True)
    with pytest.raises(PredictionsError, match="has no label"):
        read_predictions(tmp_path / "p.csv")


def test_impossible_predictions_of_findings_are_refused() -> None:
    predictions = drawn(4, 4)
    with pytest.raises(PredictionsError, match="The probabilities are not 4 rows of 3 numbers"):
        FindingPredictions(
            predictions.scans,
            predictions.patients,
            predictions.truth,
            predictions.probabilities + 1,
            predictions.thresholds,
            predictions.labels,
        )


def test_an_evaluation_of_findings_has_their_tables_and_no_confusion_matrix(tmp_path: Path) -> None:
    predictions = drawn()
    settings = EvaluationSettings(name="tiny", bootstrap=FEW, formats=())
    summary = write_evaluation(
        predictions, tmp_path / "e", settings=settings, others={"baseline": predictions}
    )
    record = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert record["overall"]["macro_auc"]["value"] == summary.figures.overall["macro_auc"].value
    assert set(record["others"]) == {"baseline"}
    unknown = int(np.isnan(predictions.truth[:, 0]).sum())
    assert f"Not known of a: {unknown} scans, left out of its figures." in record["warnings"]
    table = (tmp_path / "e" / "tables.md").read_text()
    assert "macro AUPRC" in table
    assert "Confusion matrix" not in table
    assert not (tmp_path / "e" / "confusion.csv").exists()


def test_findings_have_sites_groups_and_a_list_of_their_wrong_answers(tmp_path: Path) -> None:
    sexes = tuple("FM"[i % 2] for i in range(80))
    sites = tuple("north" if i < 50 else "south" for i in range(80))
    predictions = replace(drawn(), groups={"sex": sexes}, sites=sites)
    settings = EvaluationSettings(bootstrap=FEW, formats=(), reports={"s3": "reports/s3.html"})
    summary = write_evaluation(predictions, tmp_path, settings=settings)
    women = predictions.choose(range(0, 80, 2))
    alone = estimate_figures(women, FEW)
    assert summary.groups["sex"]["F"].num_scans == 40
    assert summary.groups["sex"]["F"].figures == alone
    assert summary.sites["south"].num_scans == 30
    page = (tmp_path / "evaluation.html").read_text(encoding="utf-8")
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "## By sex" in tables
    assert "## Sites" in tables
    assert "| sex | scans | macro AUC | macro AUPRC |" in tables
    lines = (tmp_path / "groups.csv").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("sex,F,b,auc,") for line in lines)
    wrong = predictions.wrong_pairs
    called = predictions.probabilities >= predictions.thresholds
    expected = predictions.is_known & (called != (predictions.truth == 1))
    assert set(wrong) == set(map(tuple, np.argwhere(expected).tolist()))
    far = [abs(predictions.probabilities[p] - predictions.thresholds[p]) for p in wrong]
    assert far == sorted(far, reverse=True)
    num_known = int(predictions.is_known.sum())
    assert f"{len(wrong)} of {num_known} answers on findings that are known" in page
    assert "Wrong answers" not in tables
    assert any(row == 3 for row, _ in wrong) == ('href="reports/s3.html"' in page)


def test_a_group_in_which_nothing_is_known_of_a_finding_has_no_figure_of_it(
    tmp_path: Path,
) -> None:
    whole = drawn()
    truth = whole.truth.copy()
    truth[:20, 1] = np.nan
    truth[:20, 0] = 1
    sites = tuple("north" if i < 20 else "south" for i in range(80))
    predictions = replace(whole, truth=truth, sites=sites)
    settings = EvaluationSettings(bootstrap=FEW, formats=())
    north = write_evaluation(predictions, tmp_path, settings=settings).sites["north"].figures
    assert north.per_class["b"]["auc"].value is None
    assert north.per_class["a"]["specificity"].value is None
    assert north.per_class["c"]["auc"].value is not None

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as scikit

from chestct.evaluation import metrics
from chestct.evaluation.metrics import ClassCounts, confusion_matrix, per_class
from chestct.evaluation.predictions import Predictions

MakePredictions = Callable[..., Predictions]

# The confusion matrix of row 18 of the RoI-aware paper's Table 7, official labels.
ROW_18 = np.array([[23, 5, 0], [4, 44, 3], [3, 0, 48]])


def from_confusion(confusion: np.ndarray, labels: tuple[str, ...]) -> Predictions:
    """One certain prediction per count."""
    truth, decisions = np.repeat(np.argwhere(confusion >= 0), confusion.ravel(), axis=0).T
    names = tuple(str(number) for number in range(truth.size))
    return Predictions(names, names, truth, np.eye(len(labels))[decisions], labels)


def test_rows_of_the_confusion_matrix_are_true_labels() -> None:
    found = confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_specificity_and_ppv_of_the_published_headline_are_different_things() -> None:
    counts = ClassCounts.of(ROW_18, 0)
    assert (counts.tp, counts.fn, counts.fp, counts.tn) == (23, 5, 7, 95)
    found = counts.figures("CAP")
    assert found["specificity"].value == 95 / 102
    assert found["ppv"].value == 23 / 30
    assert found["sensitivity"].value == 23 / 28
    assert found["npv"].value == 95 / 100
    assert found["f1"].value == pytest.approx(2 * 23 / (28 + 30))
    assert counts.accuracy.value == 118 / 130


def test_overall_figures_of_the_published_headline_are_those_of_the_audit() -> None:
    predictions = from_confusion(ROW_18, ("CAP", "COVID-19", "normal"))
    found = {name: metrics.measure(predictions, name).value for name in metrics.OVERALL}
    assert found["accuracy"] == 115 / 130
    assert found["kappa"] == pytest.approx(0.8221, abs=5e-5)
    assert found["macro_f1"] == pytest.approx(0.8714, abs=5e-5)
    assert found["balanced_accuracy"] == pytest.approx((23 / 28 + 44 / 51 + 48 / 51) / 3)
    assert found["brier"] == pytest.approx(2 * 15 / 130)
    assert found["expected_calibration_error"] == pytest.approx(15 / 130)


def test_brier_and_log_loss_follow_their_definitions() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])
    truth = np.array([0, 1])
    predictions = Predictions(("a", "b"), ("a", "b"), truth, probabilities, ("x", "y", "z"))
    expected = (0.3**2 + 0.2**2 + 0.1**2 + 0.3**2 + 0.7**2 + 0.4**2) / 2
    assert metrics.measure(predictions, "brier").value == pytest.approx(expected)
    assert metrics.measure(predictions, "log_loss").value == pytest.approx(-np.log(0.7 * 0.3) / 2)


def test_brier_of_two_classes_counts_both_of_them() -> None:
    predictions = Predictions(
        ("a",), ("a",), np.array([1]), np.array([[0.2, 0.8]]), ("COVID-19", "normal")
    )
    assert metrics.measure(predictions, "brier").value == pytest.approx(0.08)


def test_calibration_error_is_the_mean_gap_over_bins_that_include_their_upper_end() -> None:
    confidences = np.array([0.6, 0.6, 0.9, 0.9, 0.90001])
    probabilities = np.stack([confidences, 1 - confidences], axis=1)
    names = tuple("abcde")
    predictions = Predictions(names, names, np.array([0, 1, 0, 0, 1]), probabilities, ("x", "y"))
    gaps = abs(2 * 0.6 - 1) + abs(2 * 0.9 - 2) + 0.90001
    assert metrics.measure(predictions, "expected_calibration_error").value == pytest.approx(
        gaps / 5
    )
    assert metrics.bin_members(np.array([0.0, 0.1, 0.3, 0.7, 1.0])).argmax(axis=1).tolist() == [
        0, 0, 2, 6, 9,
    ]  # fmt: skip


def test_tied_probabilities_count_half_in_the_area() -> None:
    probabilities = np.array([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8]])
    predictions = Predictions(
        tuple("abc"), tuple("abc"), np.array([0, 1, 1]), probabilities, ("x", "y")
    )
    assert metrics.auc(predictions, 1).value == 0.75
    assert metrics.auc(predictions, 0).value == 0.75


def test_a_class_without_scans_has_no_figures_and_says_so(
    make_predictions: MakePredictions,
) -> None:
    whole = make_predictions(60)
    without = whole.choose(np.flatnonzero(whole.truth != 0))
    figures = per_class(without, 0)
    assert figures["sensitivity"].value is None
    assert figures["sensitivity"].note == "no scan is CAP"
    assert figures["auc"].value is None
    assert figures["f1"].value is None
    assert figures["specificity"].value is not None
    for name in ("macro_auc", "balanced_accuracy"):
        note = metrics.measure(without, name).note
        assert note == "mean over the 2 of 3 classes that have it"
    assert metrics.measure(without, "brier").value is not None


def test_one_decision_for_all_scans_leaves_ppv_and_npv_undefined() -> None:
    predictions = from_confusion(np.array([[0, 4], [0, 6]]), ("COVID-19", "normal"))
    called_never, called_always = per_class(predictions, 0), per_class(predictions, 1)
    assert called_never["ppv"].note == "no scan was called COVID-19"
    assert called_always["npv"].note == "every scan was called normal"
    assert called_never["f1"].value == 0
    assert metrics.measure(predictions, "kappa").value == 0


def test_scans_of_a_single_label_have_neither_area_nor_kappa() -> None:
    predictions = from_confusion(np.array([[5, 0], [0, 0]]), ("COVID-19", "normal"))
    assert metrics.measure(predictions, "macro_auc").note == "all scans have one true label"
    assert metrics.auc(predictions, 0).note == "no scan is other than COVID-19"
    kappa = metrics.measure(predictions, "kappa")
    assert kappa.value is None
    assert "one and the same label" in kappa.note


def test_no_scans_give_no_figures_and_no_crash(make_predictions: MakePredictions) -> None:
    nothing = make_predictions(0)
    figures = [metrics.measure(nothing, name) for name in metrics.OVERALL]
    figures += [*per_class(nothing, 0).values()]
    assert {figure.value for figure in figures} == {None}
    assert {figure.note for figure in figures} == {"no scans"}


def test_a_class_has_the_same_figures_under_a_weighting(make_predictions: MakePredictions) -> None:
    weighted = metrics.weigh(make_predictions(9), np.ones((1, 9)))
    assert list(metrics._weighted_per_class(weighted, 0)) == list(
        per_class(weighted.predictions, 0)
    )


def by_scikit_learn(predictions: Predictions, weights: np.ndarray) -> dict[str, float]:
    """The overall figures that scikit-learn has too, every class having weight."""
    truth, said, labels = predictions.truth, predictions.decisions, range(len(predictions.labels))
    shares = predictions.probabilities
    areas = [
        scikit.roc_auc_score(truth == index, shares[:, index], sample_weight=weights)
        for index in labels
    ]
    brier = scikit.brier_score_loss(
        truth, shares, sample_weight=weights, labels=labels, scale_by_half=False
    )
    f1 = scikit.f1_score(truth, said, average="macro", sample_weight=weights)
    return {
        "accuracy": scikit.accuracy_score(truth, said, sample_weight=weights),
        "balanced_accuracy": scikit.balanced_accuracy_score(truth, said, sample_weight=weights),
        "macro_f1": f1,
        "macro_auc": float(np.mean(areas)),
        "kappa": scikit.cohen_kappa_score(truth, said, labels=labels, sample_weight=weights),
        "brier": brier,
        "log_loss": scikit.log_loss(truth, shares, labels=labels, sample_weight=weights),
    }


@pytest.mark.parametrize("decimals", [12, 1])
@pytest.mark.parametrize("labels", [("CAP", "COVID-19", "normal"), ("COVID-19", "normal")])
def test_overall_figures_equal_those_of_scikit_learn(
    make_predictions: MakePredictions, labels: tuple[str, ...], decimals: int
) -> None:
    predictions = make_predictions(80, labels=labels, decimals=decimals)
    weights = np.concatenate([np.ones((1, 80)), np.random.default_rng(5).random((4, 80))])
    weighted = metrics.weigh(predictions, weights)
    for row, each in enumerate(weights):
        for name, expected in by_scikit_learn(predictions, each).items():
            found = metrics.OVERALL[name](weighted)[row]
            assert found == pytest.approx(expected, abs=1e-12), name
            if row == 0:
                assert metrics.measure(predictions, name).value == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("decimals", [12, 1])
@pytest.mark.parametrize("labels", [("CAP", "COVID-19", "normal"), ("COVID-19", "normal")])
def test_weighted_figures_equal_those_of_scans_repeated_as_often_as_they_weigh(
    make_predictions: MakePredictions, labels: tuple[str, ...], decimals: int
) -> None:
    predictions = make_predictions(50, labels=labels, decimals=decimals)
    counts = np.random.default_rng(3).integers(0, 4, size=(3, 50))
    weighted = metrics.weigh(predictions, counts.astype(np.float64))
    for row, weights in enumerate(counts):
        repeated = repeat(predictions, weights)
        for name in metrics.OVERALL:
            expected = metrics.measure(repeated, name).value
            assert metrics.OVERALL[name](weighted)[row] == pytest.approx(expected, abs=1e-12)
        for index in range(len(labels)):
            for name, figure in per_class(repeated, index).items():
                found = metrics._weighted_per_class(weighted, index)[name][row]
                assert found == pytest.approx(figure.value, abs=1e-12), name


def test_weighted_areas_equal_those_of_scikit_learn(make_predictions: MakePredictions) -> None:
    predictions = make_predictions(80, decimals=1)
    weights = np.random.default_rng(5).random((4, 80))
    found = metrics._weighted_per_class(metrics.weigh(predictions, weights), 2)["auc"]
    expected = [
        scikit.roc_auc_score(
            predictions.truth == 2, predictions.probabilities[:, 2], sample_weight=each
        )
        for each in weights
    ]
    assert found == pytest.approx(expected, abs=1e-12)


def test_no_scans_have_weighted_figures_that_are_not_numbers(
    make_predictions: MakePredictions,
) -> None:
    weighted = metrics.weigh(make_predictions(0), np.ones((2, 0)))
    found = [measure(weighted) for measure in metrics.OVERALL.values()]
    found += [*metrics._weighted_per_class(weighted, 0).values()]
    assert np.isnan(found).all()
    assert np.shape(found) == (14, 2)


def test_measuring_does_not_change_the_predictions(make_predictions: MakePredictions) -> None:
    predictions = make_predictions(30)
    before = replace(predictions)
    for name in metrics.OVERALL:
        metrics.measure(predictions, name)
    assert np.array_equal(before.probabilities, predictions.probabilities)
    assert np.array_equal(before.truth, predictions.truth)


def repeat(predictions: Predictions, times: np.ndarray) -> Predictions:
    rows = np.repeat(np.arange(len(predictions)), times)
    names = tuple(str(number) for number in range(rows.size))
    return Predictions(
        names,
        names,
        predictions.truth[rows],
        predictions.probabilities[rows],
        predictions.labels,
    )

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import log_loss

from chestct.evaluation.calibration import (
    _logits_of,
    abstention_threshold,
    apply_temperature,
    coverage_risk,
    fit_temperature,
    reliability_curve,
)
from chestct.evaluation.metrics import measure
from chestct.evaluation.predictions import Predictions
from chestct.labels import TWO_CLASSES

MakePredictions = Callable[..., Predictions]


def draw_calibrated(num: int, seed: int = 0, classes: int = 3) -> Predictions:
    """Labels drawn from the probabilities themselves."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(num, classes))
    probabilities = apply_temperature(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 1)
    truth = (rng.random((num, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    names = tuple(str(number) for number in range(num))
    labels = tuple("ABC"[:classes])
    return Predictions(names, names, np.minimum(truth, classes - 1), probabilities, labels)


@pytest.mark.parametrize("sharpening", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_known_sharpening(sharpening: float) -> None:
    calibrated = draw_calibrated(4000)
    sharp = calibrated.with_probabilities(
        apply_temperature(calibrated.probabilities, 1 / sharpening)
    )
    found = fit_temperature(sharp)
    assert found.temperature == pytest.approx(sharpening, rel=0.05)
    assert found.note == ""
    scaled = apply_temperature(sharp.probabilities, found.temperature)
    assert log_loss(sharp.truth, scaled) <= log_loss(sharp.truth, sharp.probabilities) + 1e-12
    error = measure(sharp.with_probabilities(scaled), "expected_calibration_error").value
    assert error is not None
    assert error < 0.03


def test_no_other_temperature_has_a_lower_loss(make_predictions: MakePredictions) -> None:
    predictions = make_predictions(60)
    found = fit_temperature(predictions)
    losses = [
        log_loss(predictions.truth, apply_temperature(predictions.probabilities, t))
        for t in np.geomspace(0.1, 10, 400)
    ]
    scaled = apply_temperature(predictions.probabilities, found.temperature)
    assert log_loss(predictions.truth, scaled) <= min(losses) + 1e-9


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 20.0])
def test_a_temperature_keeps_decisions_and_sums(
    make_predictions: MakePredictions, temperature: float
) -> None:
    predictions = make_predictions(90)
    scaled = apply_temperature(predictions.probabilities, temperature)
    assert np.array_equal(scaled.argmax(axis=1), predictions.decisions)
    assert scaled.sum(axis=1) == pytest.approx(np.ones(90))
    if temperature == 1:
        assert scaled == pytest.approx(predictions.probabilities)


def test_softmax_of_the_logits_gives_the_probabilities_back() -> None:
    probabilities = np.array([[0.0, 1.0], [1e-9, 1 - 1e-9]])
    assert _logits_of(probabilities.astype(np.float32)).dtype == np.float64
    assert apply_temperature(probabilities, 1.0) == pytest.approx(probabilities, abs=1e-12)


def test_one_rounded_zero_does_not_rule_the_fit(make_predictions: MakePredictions) -> None:
    predictions = make_predictions(300)
    truth = predictions.truth.copy()
    probabilities = predictions.probabilities.copy()
    probabilities[0] = np.eye(3)[(truth[0] + 1) % 3]
    found = fit_temperature(predictions.with_probabilities(probabilities))
    assert 0.3 < found.temperature < 3


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.inf, np.nan])
def test_an_impossible_temperature_is_a_programming_error(temperature: float) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        apply_temperature(np.array([[0.5, 0.5]]), temperature)


def test_scans_that_cannot_tell_leave_the_temperature_at_one(
    make_predictions: MakePredictions,
) -> None:
    nothing = fit_temperature(make_predictions(0))
    assert (nothing.temperature, nothing.note) == (1.0, "no scans")
    perfect = fit_temperature(make_predictions(9, skill=50.0))
    assert perfect.temperature == 1
    assert "every scan is right" in perfect.note


def test_a_classifier_surer_the_more_it_errs_is_not_scaled() -> None:
    truth = np.arange(20) % 2
    probabilities = np.where(np.eye(2)[truth] > 0, 0.1, 0.9)
    names = tuple(str(number) for number in range(20))
    found = fit_temperature(Predictions(names, names, truth, probabilities, TWO_CLASSES))
    assert found.temperature == 1
    assert "out of range 0.01 to 100" in found.note


def test_the_reliability_curve_counts_every_scan_once(make_predictions: MakePredictions) -> None:
    predictions = make_predictions(120)
    curve = reliability_curve(predictions)
    assert sum(each.num_scans for each in curve) == 120
    assert [each.low for each in curve] == pytest.approx(np.arange(10) / 10)
    empty = [each for each in curve if each.num_scans == 0]
    assert empty
    assert all(each.accuracy is None and each.confidence is None for each in empty)
    for each in curve:
        if each.confidence is not None:
            assert each.low < each.confidence <= each.high
            assert each.accuracy_low is not None
            assert each.accuracy is not None
            assert each.accuracy_high is not None
            assert each.accuracy_low <= each.accuracy <= each.accuracy_high
    assert len(reliability_curve(predictions, num_bins=4)) == 4


def test_calibrated_probabilities_lie_on_the_diagonal() -> None:
    for each in reliability_curve(draw_calibrated(8000)):
        if each.num_scans > 200:
            assert each.accuracy == pytest.approx(each.confidence, abs=0.05)


def test_coverage_and_risk_of_a_hand_made_case() -> None:
    confidences = np.array([0.9, 0.8, 0.8, 0.6])
    probabilities = np.stack([confidences, 1 - confidences], axis=1)
    predictions = Predictions(
        tuple("abcd"), tuple("abcd"), np.array([0, 0, 1, 0]), probabilities, TWO_CLASSES
    )
    points = coverage_risk(predictions)
    assert [point.threshold for point in points] == [0.9, 0.8, 0.6]
    assert [point.coverage for point in points] == [0.25, 0.75, 1.0]
    assert [point.errors for point in points] == [0, 1, 1]
    assert [point.risk for point in points] == [0, 1 / 3, 1 / 4]
    assert binom.cdf(1, 4, points[-1].risk_bound) == pytest.approx(0.05)


def test_no_scans_have_no_curve(make_predictions: MakePredictions) -> None:
    nothing = make_predictions(0)
    assert coverage_risk(nothing) == ()
    assert all(each.num_scans == 0 for each in reliability_curve(nothing))


def test_a_good_classifier_decides_on_everything() -> None:
    truth = np.arange(200) % 2
    names = tuple(str(number) for number in range(200))
    perfect = Predictions(names, names, truth, 0.02 + 0.96 * np.eye(2)[truth], TWO_CLASSES)
    found = abstention_threshold(perfect, 0.05)
    assert (found.coverage, found.risk) == (1.0, 0.0)
    assert found.threshold == pytest.approx(0.98)
    assert found.risk_bound is not None
    assert found.risk_bound == pytest.approx(1 - (0.05 / found.num_tried) ** (1 / 200))


def test_the_threshold_keeps_exactly_the_scans_it_says(make_predictions: MakePredictions) -> None:
    predictions = make_predictions(600, skill=2.2)
    found = abstention_threshold(predictions, 0.1)
    assert found.threshold is not None
    kept = predictions.confidences >= found.threshold
    assert kept.mean() == found.coverage
    assert (~predictions.is_right[kept]).mean() == pytest.approx(found.risk)
    assert found.coverage is not None
    assert found.coverage < 1
    assert found.risk_bound is not None
    assert found.risk_bound <= 0.1
    stricter = abstention_threshold(predictions, 0.06)
    assert (stricter.coverage or 0) < found.coverage


@pytest.mark.parametrize("num", [0, 1, 58])
def test_too_few_scans_promise_nothing_and_say_how_many_would(
    make_predictions: MakePredictions, num: int
) -> None:
    found = abstention_threshold(make_predictions(num, skill=50.0), 0.05)
    assert found.threshold is None
    assert found.note == f"{num} scans promise nothing: 59 without an error are the least"


def test_a_bad_classifier_gets_no_threshold(make_predictions: MakePredictions) -> None:
    found = abstention_threshold(make_predictions(300, skill=0.0), 0.05)
    assert found.threshold is None
    assert found.note == "no threshold tried keeps the bound at or below 0.05"
    assert found.num_tried > 0


def test_the_promise_is_broken_no_more_often_than_it_says() -> None:
    # Errors are likelier at low confidence; the true risk of a threshold has a closed form:
    # confidence u is uniform on (0.5, 1) and the scan is wrong with probability 1 - u.
    broken = promised = 0
    names = tuple(str(number) for number in range(150))
    for seed in range(200):
        rng = np.random.default_rng(seed)
        confidence = rng.uniform(0.5, 1, size=150)
        wrong = rng.random(150) > confidence
        predictions = Predictions(
            names,
            names,
            wrong.astype(np.int64),
            np.stack([confidence, 1 - confidence], axis=1),
            TWO_CLASSES,
        )
        found = abstention_threshold(predictions, 0.18)
        if found.threshold is not None:
            promised += 1
            broken += (1 - found.threshold) / 2 > 0.18
    assert promised > 20
    assert broken <= 15


@pytest.mark.parametrize(("wished", "level"), [(0.0, 0.95), (1.0, 0.95), (0.05, 1.0)])
def test_an_impossible_wish_is_a_programming_error(
    make_predictions: MakePredictions, wished: float, level: float
) -> None:
    with pytest.raises(ValueError, match="expected 0 < each < 1"):
        abstention_threshold(make_predictions(9), wished, level=level)


def test_fitting_does_not_change_the_predictions(make_predictions: MakePredictions) -> None:
    predictions = make_predictions(30)
    before = replace(predictions)
    fit_temperature(predictions)
    abstention_threshold(predictions, 0.1)
    assert np.array_equal(before.probabilities, predictions.probabilities)

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import beta, binom
from scipy.stats import bootstrap as scipy_bootstrap

from chestct.evaluation.intervals import (
    WIDENED,
    WILSON,
    Bootstrap,
    _patient_strata,
    clopper_pearson_upper,
    draw_patients,
    estimate_figures,
    percentile_interval,
    wilson,
)
from chestct.evaluation.predictions import Predictions

MakePredictions = Callable[..., Predictions]


def test_wilson_gives_the_published_intervals_of_both_papers_results() -> None:
    assert [round(100 * end, 1) for end in wilson(115, 130)] == [81.8, 92.9]
    assert [round(100 * end, 1) for end in wilson(16, 19)] == [62.4, 94.5]
    assert [round(100 * end, 2) for end in wilson(21, 21)] == [84.54, 100.0]
    assert wilson(0, 8)[0] == 0
    assert wilson(8, 8)[1] == 1


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_proportions_are_programming_errors(hits: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"{hits} hits in {total}"):
        wilson(hits, total)
    with pytest.raises(ValueError, match=f"{hits} errors in {total}"):
        clopper_pearson_upper(hits, total)


@pytest.mark.parametrize(("errors", "total"), [(0, 59), (3, 40), (39, 40), (7, 7)])
def test_the_exact_bound_is_where_so_few_errors_become_unlikely(errors: int, total: int) -> None:
    bound = clopper_pearson_upper(errors, total)
    if errors == total:
        assert bound == 1
    else:
        assert binom.cdf(errors, total, bound) == pytest.approx(0.05, abs=1e-9)
        assert bound == pytest.approx(beta.ppf(0.95, errors + 1, total - errors))


def test_patients_are_drawn_whole_and_within_their_class(
    make_predictions: MakePredictions,
) -> None:
    predictions = make_predictions(60, scans_per_patient=1).choose([*range(30), *range(30, 45)])
    paired = Predictions(
        predictions.scans,
        tuple(f"p{label}-{row // 6}" for row, label in enumerate(predictions.truth)),
        predictions.truth,
        predictions.probabilities,
        predictions.labels,
    )
    (weights,) = draw_patients(paired, Bootstrap(replicates=50))
    patient_of_scan, strata = _patient_strata(paired)
    for patient in range(strata.size):
        together = weights[:, patient_of_scan == patient]
        assert (together == together[:, :1]).all()
    drawn = np.stack(
        [weights[:, np.flatnonzero(patient_of_scan == p)[0]] for p in range(strata.size)], 1
    )
    for label in range(3):
        assert (drawn[:, strata == label].sum(axis=1) == (strata == label).sum()).all()


def test_the_same_seed_draws_the_same_patients_in_parts_or_at_once(
    make_predictions: MakePredictions, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = make_predictions(30)
    first = np.concatenate(list(draw_patients(predictions, Bootstrap(replicates=7))))
    again = np.concatenate(list(draw_patients(predictions, Bootstrap(replicates=7))))
    other = np.concatenate(list(draw_patients(predictions, Bootstrap(replicates=7, seed=2))))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    monkeypatch.setattr("chestct.evaluation.intervals._CHUNK_CELLS", 60)
    parts = list(draw_patients(predictions, Bootstrap(replicates=7)))
    assert [len(part) for part in parts] == [2, 2, 2, 1]


def test_the_bootstrap_interval_agrees_with_scipys(make_predictions: MakePredictions) -> None:
    predictions = make_predictions(200, labels=("COVID-19", "normal"))
    ours = estimate_figures(predictions, Bootstrap(replicates=4000)).overall["brier"]
    errors = 2 * (1 - predictions.probabilities[np.arange(200), predictions.truth]) ** 2
    halves = [errors[predictions.truth == label] for label in (0, 1)]
    theirs = scipy_bootstrap(
        halves,
        lambda a, b, axis: (a.mean(axis=axis) + b.mean(axis=axis)) / 2,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(2),
        vectorized=True,
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_the_bootstrap_interval_of_the_area_covers_the_truth_about_as_often_as_it_says() -> None:
    # Two normal distributions one apart: the area is Phi(1 / sqrt(2)).
    truth, covered = np.repeat([0, 1], 40), 0
    names = tuple(str(number) for number in range(80))
    for seed in range(40):
        scores = 1 / (1 + np.exp(-np.random.default_rng(seed).normal(size=80) - truth))
        probabilities = np.stack([1 - scores, scores], axis=1)
        predictions = Predictions(names, names, truth, probabilities, ("COVID-19", "normal"))
        area = estimate_figures(predictions, Bootstrap(replicates=200)).per_class["normal"]["auc"]
        assert area.low is not None
        assert area.high is not None
        covered += area.low <= 0.7602 <= area.high
    assert 33 <= covered <= 40


def test_intervals_of_scans_in_pairs_are_those_of_half_as_many_scans(
    make_predictions: MakePredictions,
) -> None:
    single = make_predictions(60)
    rows = [row for row in range(60) for _ in range(2)]
    doubled = Predictions(
        tuple(f"s{number}" for number in range(120)),
        tuple(single.patients[row] for row in rows),
        single.truth[rows],
        single.probabilities[rows],
        single.labels,
    )
    apart, together = estimate_figures(single), estimate_figures(doubled)
    assert together.overall["macro_auc"].low == pytest.approx(apart.overall["macro_auc"].low)
    accuracy, alone = together.overall["accuracy"], apart.overall["accuracy"]
    assert (accuracy.method, alone.method) == (WIDENED, WILSON)
    assert accuracy.value == alone.value
    width, wilson_width = accuracy.high - accuracy.low, np.diff(wilson(accuracy.hits, 120))[0]
    assert width > 1.2 * wilson_width


def test_a_class_of_one_patient_has_no_bootstrap_interval_and_says_why(
    make_predictions: MakePredictions,
) -> None:
    predictions = make_predictions(30).choose([0, *(i for i in range(1, 30) if i % 3)])
    overall = estimate_figures(predictions).overall
    assert overall["kappa"].low is None
    assert overall["kappa"].note == "no interval: one patient of CAP shows no spread"
    assert overall["accuracy"].method == WILSON


def test_perfect_results_are_not_passed_off_as_certain() -> None:
    truth = np.arange(20) % 2
    names = tuple(str(number) for number in range(20))
    perfect = Predictions(names, names, truth, np.eye(2)[truth], ("COVID-19", "normal"))
    figures = estimate_figures(perfect)
    assert figures.overall["accuracy"].low == pytest.approx(0.8389, abs=1e-4)
    assert "too narrow" in figures.per_class["normal"]["auc"].note


@pytest.mark.parametrize("num", [0, 1, 2])
def test_hardly_any_scans_give_estimates_without_a_warning(
    make_predictions: MakePredictions, num: int
) -> None:
    figures = estimate_figures(make_predictions(num), Bootstrap(replicates=20))
    every = [
        *figures.overall.values(),
        *(e for c in figures.per_class.values() for e in c.values()),
    ]
    assert len(every) == 8 + 3 * 6
    assert all(each.note for each in every if each.value is None)
    assert all(each.note for each in every if each.low is None)


def test_an_interval_is_withheld_when_many_replicates_are_undefined() -> None:
    mostly = np.array([np.nan, np.nan, 0.5, 0.6])
    assert percentile_interval(mostly, 0.95) == (
        None, None, "no interval: undefined in 50% of the replicates",
    )  # fmt: skip
    few = np.concatenate([[np.nan], np.linspace(0, 1, 99)])
    low, high, note = percentile_interval(few, 0.9)
    assert (low, high, note) == (pytest.approx(0.05), pytest.approx(0.95), "")


@pytest.mark.parametrize(("replicates", "level"), [(0, 0.95), (10, 1.0), (10, 0.0)])
def test_an_impossible_bootstrap_is_a_programming_error(replicates: int, level: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        Bootstrap(replicates=replicates, level=level)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from chestct.errors import UnknownNameError
from chestct.evaluation.comparisons import (
    COMPARISONS,
    MASERES_Z_DEFECTS,
    SOUND,
    Comparison,
    compare,
    maseres_z_test,
)
from chestct.evaluation.predictions import Predictions, PredictionsError
from chestct.evaluation.report import EvaluationSettings
from chestct.labels import TWO_CLASSES

MakePredictions = Callable[..., Predictions]


def test_the_maseres_test_set_has_13_covid_and_8_normal_scans() -> None:
    assert [int(c) for c in classifier_of(8, 13, 0, 0).cases] == [13, 8]


def classifier_of(tp: int, tn: int, fp: int, fn: int) -> Predictions:
    """Certain decisions with these counts; normal (the last label) is positive, errors last."""
    truth = np.repeat([1, 0], [tp + fn, tn + fp])
    decisions = np.repeat([1, 0, 0, 1], [tp, fn, tn, fp])
    names = tuple(str(number) for number in range(truth.size))
    return Predictions(names, names, truth, np.eye(2)[decisions], TWO_CLASSES)


def all_sound(first: Predictions, second: Predictions) -> list[Comparison]:
    return [row for test in SOUND for row in compare(first, second, test)]


MASERES = classifier_of(8, 13, 0, 0)
ALEXNET = classifier_of(6, 12, 1, 2)
VOXCNN = classifier_of(7, 13, 0, 1)


@pytest.mark.parametrize(
    ("other", "published"),
    [
        (ALEXNET, {"accuracy": 0.031, "precision": 0.031, "sensitivity": 0.004,
                   "specificity": 0.093, "F1": 0.011}),
        (VOXCNN, {"accuracy": 0.153, "precision": 0.5, "sensitivity": 0.042,
                  "specificity": 0.5, "F1": 0.110}),
    ],
)  # fmt: skip
def test_the_maseres_z_test_gives_all_ten_published_p_values(
    other: Predictions, published: dict[str, float]
) -> None:
    found = {row.figure: row for row in compare(MASERES, other, "maseres_z")}
    assert {name: round(float(row.p_value or 0), 3) for name, row in found.items()} == published
    for row in found.values():
        assert all(defect in row.note for defect in MASERES_Z_DEFECTS)


def test_the_maseres_z_test_gives_the_z_values_of_the_audit() -> None:
    for second, z, p_value in [
        (18 / 21, 1.8708, 0.0307), (0.75, 2.6458, 0.0041), (12 / 13, 1.3229, 0.0929),
        (0.8, 2.2913, 0.0110), (20 / 21, 1.0247, 0.1528), (0.875, 1.7321, 0.0416),
        (14 / 15, 1.2247, 0.1103),
    ]:  # fmt: skip
        found, p = maseres_z_test(1.0, second, 21)
        assert found == pytest.approx(z, abs=5e-5)
        assert p == pytest.approx(p_value, abs=5e-5)
    assert maseres_z_test(1.0, 1.0, 21) == (None, 0.5)
    assert maseres_z_test(1.0, 0.0, 21) == (None, 0.0)
    assert maseres_z_test(0.0, 1.0, 21) == (None, 1.0)


def test_the_maseres_z_test_stays_out_unless_asked_for_by_name() -> None:
    assert "maseres_z" in COMPARISONS
    assert {*SOUND} == {*COMPARISONS} - {"maseres_z"}
    assert EvaluationSettings().comparisons == SOUND


def test_the_maseres_z_test_of_undefined_figures_says_so() -> None:
    never = classifier_of(0, 13, 0, 8)
    rows = {row.figure: row for row in compare(MASERES, never, "maseres_z")}
    assert rows["precision"].p_value is None
    assert rows["precision"].note == "undefined for one of the two"


@pytest.mark.parametrize(("other", "discordant", "p_value"), [(ALEXNET, 3, 0.25), (VOXCNN, 1, 1)])
def test_exact_mcnemar_on_the_maseres_test_set_finds_nothing(
    other: Predictions, discordant: int, p_value: float
) -> None:
    (row,) = compare(MASERES, other, "mcnemar")
    assert row.statistic == discordant
    assert row.p_value == p_value


def test_mcnemar_is_a_sign_test_on_the_scans_only_one_gets_right(
    make_predictions: MakePredictions,
) -> None:
    first, second = make_predictions(seed=1, skill=2.5), make_predictions(seed=2, skill=0.8)
    (row,) = compare(first, second, "mcnemar")
    only_first = int((first.is_right & ~second.is_right).sum())
    only_second = int((~first.is_right & second.is_right).sum())
    assert row.p_value == pytest.approx(binomtest(only_first, only_first + only_second).pvalue)
    assert row.note == f"only the first right: {only_first}, only the second: {only_second}"
    assert row.estimate == pytest.approx((only_first - only_second) / 90)


@pytest.mark.parametrize(("other", "kappa"), [(VOXCNN, 0.8966), (ALEXNET, 0.6897)])
def test_kappa_between_the_maseres_classifiers_is_the_audits_not_the_papers(
    other: Predictions, kappa: float
) -> None:
    (row,) = compare(MASERES, other, "kappa")
    assert row.estimate == pytest.approx(kappa, abs=5e-5)
    assert row.low is not None
    assert row.high is not None
    assert -1 <= row.low < kappa < row.high <= 1


def test_delong_agrees_with_the_bootstrap_of_the_difference(
    make_predictions: MakePredictions,
) -> None:
    first, second = make_predictions(300, seed=1, skill=1.8), make_predictions(300, seed=2, skill=1)
    rows = compare(first, second, "delong")
    assert [row.figure for row in rows] == ["AUC of CAP", "AUC of COVID-19", "AUC of normal"]
    mean = np.mean([row.estimate for row in rows])
    boot = {row.figure: row for row in compare(first, second, "patient_bootstrap")}["macro_auc"]
    assert boot.estimate == pytest.approx(mean)
    for row in rows:
        assert row.low is not None
        assert row.high is not None
        assert row.p_value is not None
        assert (row.p_value < 0.05) == (row.low > 0 or row.high < 0)
    assert boot.low is not None
    assert boot.low > 0


def test_delong_rejects_equal_classifiers_about_as_often_as_it_should() -> None:
    truth, rejected = np.repeat([0, 1], 30), 0
    names = tuple(str(number) for number in range(60))
    for seed in range(100):
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=60) + truth
        pair = []
        for _ in range(2):
            score = 1 / (1 + np.exp(-shared - rng.normal(size=60)))
            both = np.stack([1 - score, score], axis=1)
            pair.append(Predictions(names, names, truth, both, TWO_CLASSES))
        (row,) = compare(pair[0], pair[1], "delong")
        assert row.p_value is not None
        rejected += row.p_value < 0.05
    assert 0 < rejected <= 12


def test_a_classifier_compared_with_itself_differs_in_nothing(
    make_predictions: MakePredictions,
) -> None:
    same = make_predictions()
    for row in all_sound(same, same):
        if row.test == "kappa":
            assert row.estimate == 1
            assert "agree throughout" in row.note
            assert row.low is None
        else:
            assert row.estimate == 0
            assert row.p_value in (None, 1)


def test_perfect_against_perfectly_wrong_areas_have_no_test() -> None:
    perfect = classifier_of(5, 5, 0, 0)
    wrong = replace(perfect, probabilities=perfect.probabilities[:, ::-1])
    (row,) = compare(perfect, wrong, "delong")
    assert row.estimate == 1
    assert row.p_value is None
    assert "no spread" in row.note


def test_a_class_of_one_scan_has_no_delong_test(make_predictions: MakePredictions) -> None:
    first = make_predictions(30).choose([0, *(i for i in range(1, 30) if i % 3)])
    row = compare(first, first, "delong")[0]
    assert row.first is not None
    assert row.p_value is None
    assert "fewer than two scans" in row.note
    boot = compare(first, first, "patient_bootstrap")[0]
    assert boot.low is None
    assert "one patient of CAP" in boot.note


def test_scans_of_the_same_patients_are_pointed_out(make_predictions: MakePredictions) -> None:
    first, second = (make_predictions(seed=seed, scans_per_patient=3) for seed in (1, 2))
    for test in ("mcnemar", "delong", "kappa"):
        assert all("scans of one patient" in row.note for row in compare(first, second, test))


@pytest.mark.parametrize("num", [0, 1, 2])
def test_hardly_any_scans_compare_without_a_warning(
    make_predictions: MakePredictions, num: int
) -> None:
    first, second = make_predictions(num, seed=1), make_predictions(num, seed=2)
    rows = [row for test in COMPARISONS for row in compare(first, second, test)]
    assert len(rows) == 1 + 3 + 1 + 8 + 5
    assert all(row.note for row in rows if row.p_value is None)


def test_the_order_of_the_second_file_does_not_matter(make_predictions: MakePredictions) -> None:
    first, second = make_predictions(seed=1), make_predictions(seed=2)
    shuffled = second.choose(np.random.default_rng(0).permutation(len(second)))
    assert all_sound(first, second) == all_sound(first, shuffled)


def test_unknown_tests_and_other_scans_are_refused(make_predictions: MakePredictions) -> None:
    first = make_predictions()
    with pytest.raises(UnknownNameError, match="Did you mean 'mcnemar'"):
        compare(first, first, "mcnemars")
    with pytest.raises(PredictionsError, match="judged by one classifier only"):
        compare(first, first.choose(range(10)), "mcnemar")


def test_a_perfect_classifier_is_compared_with_one_that_always_says_the_same() -> None:
    (row,) = compare(MASERES, classifier_of(0, 13, 0, 8), "kappa")
    assert row.estimate == pytest.approx(0)
    assert row.low is None
    assert row.note.startswith("no interval: one says the same of every scan")

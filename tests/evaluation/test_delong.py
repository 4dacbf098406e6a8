from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from chestct.evaluation.comparisons import _delong_covariance

# The example of DeLong, DeLong and Clarke-Pearson (1988): albumin, total protein, 10 less the
# Krebs-Goplerud score and whether surgery failed to help (1), of their 49 patients. 43 of these
# rows are complete and are those of Example 8 of the LOGISTIC chapter of the SAS/STAT guide; all
# 49 are in the tests of Johnson's pyroc.
OVARIAN_CANCER = np.genfromtxt(
    """3.0 5.8 0 0  3.2 6.3 5 1  3.9 6.8 7 1  2.8 4.8 4 0  3.2 5.8 7 1  0.9 4.0 5 0  2.5 5.7 2 0
    1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 4 1  nan nan 4 1  3.2 5.4 6 1  3.8 6.6 4 1  4.1 6.6 5 1
    3.6 5.7 5 1  4.3 7.0 6 1  3.6 6.7 6 0  2.3 4.4 4 1  4.2 7.6 6 0  4.0 6.6 4 0  3.5 5.8 4 1
    3.8 6.8 3 1  3.0 4.7 2 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 4 1  4.1 8.2 4 1  4.3 7.0 5 1
    4.3 6.5 6 1  3.2 5.1 5 1  2.6 4.7 4 1  3.3 6.8 4 0  1.7 4.0 3 0  nan nan 4 1  3.7 6.1 5 1
    3.3 6.3 3 1  4.2 7.7 4 1  3.5 6.2 5 1  2.9 5.7 1 0  2.1 4.8 3 1  nan nan 2 1  2.8 6.2 2 0
    nan nan 3 1  nan nan 3 1  4.0 7.0 3 1  3.3 5.7 4 1  3.7 6.9 5 1  2.0 nan 3 1  3.6 6.6 5 1
    """.replace("  ", "\n").split("\n"),
)


def of_1988() -> tuple[np.ndarray, np.ndarray]:
    """K-G score, albumin and total protein with the medians in the gaps, and the truth.

    The paper does not say how it filled the gaps; medians give the areas that it prints.
    """
    *_, failed = OVARIAN_CANCER.T
    scores = OVARIAN_CANCER[:, [2, 0, 1]]
    filled = np.where(np.isnan(scores), np.nanmedian(scores, axis=0), scores)
    return filled.T, failed == 1


def all_pairs(scores: np.ndarray, is_positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The areas and their covariance straight from the paper's definition, pair by pair."""
    positives, negatives = scores[:, is_positive], scores[:, ~is_positive]
    wins = (positives[:, :, None] > negatives[:, None, :]).astype(float)
    wins += 0.5 * (positives[:, :, None] == negatives[:, None, :])
    first, second = wins.mean(axis=2), wins.mean(axis=1)
    covariance = np.cov(first) / first.shape[1] + np.cov(second) / second.shape[1]
    return wins.mean(axis=(1, 2)), covariance


def test_the_example_of_1988_gives_the_areas_that_the_paper_prints() -> None:
    scores, failed = of_1988()
    assert (failed.size, int((~failed).sum())) == (49, 12)
    areas, _ = _delong_covariance(scores, failed)
    assert np.round(areas, 2).tolist() == [0.69, 0.72, 0.65]


def test_the_example_of_1988_gives_the_p_value_of_another_program() -> None:
    areas, covariance = _delong_covariance(*of_1988())
    # Albumin against the two others, two degrees of freedom: pyroc's test_pyroc_compare.
    contrast = np.array([[0, 1, -1], [-1, 1, 0]])
    difference, spread = contrast @ areas, contrast @ covariance @ contrast.T
    statistic = difference @ np.linalg.solve(spread, difference)
    assert chi2.sf(statistic, 2) == pytest.approx(0.42291256338064165, rel=1e-9)


def test_the_complete_patients_of_1988_give_what_all_pairs_give() -> None:
    complete = OVARIAN_CANCER[~np.isnan(OVARIAN_CANCER).any(axis=1)]
    scores, failed = complete[:, :3].T, complete[:, 3] == 1
    assert failed.size == 43
    areas, covariance = _delong_covariance(scores, failed)
    expected_areas, expected_covariance = all_pairs(scores, failed)
    assert areas == pytest.approx(expected_areas, abs=1e-12)
    assert covariance == pytest.approx(expected_covariance, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    num_positive=st.integers(2, 12),
    num_negative=st.integers(2, 12),
    num_values=st.integers(1, 30),
    seed=st.integers(0, 2**16),
)
def test_midranks_give_what_all_pairs_give(
    num_positive: int, num_negative: int, num_values: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    num = num_positive + num_negative
    scores = rng.integers(0, num_values, size=(2, num)) / num_values
    is_positive = rng.permutation(np.arange(num) < num_positive)
    areas, covariance = _delong_covariance(scores, is_positive)
    expected_areas, expected_covariance = all_pairs(scores, is_positive)
    assert areas == pytest.approx(expected_areas, abs=1e-12)
    assert covariance == pytest.approx(expected_covariance, abs=1e-12)


def test_the_variance_is_that_of_areas_over_repeated_samples() -> None:
    rng, is_positive = np.random.default_rng(0), np.arange(80) < 30
    shared = rng.normal(size=(400, 1, 80))
    scores = shared + rng.normal(size=(400, 2, 80)) + is_positive * np.array([[1.5], [1.0]])
    found = [_delong_covariance(each, is_positive) for each in scores]
    expected = np.cov(np.array([areas for areas, _ in found]).T)
    assert np.mean([each for _, each in found], axis=0) == pytest.approx(expected, rel=0.2)


def test_a_single_classifier_has_a_one_by_one_covariance() -> None:
    areas, covariance = _delong_covariance(np.array([[0.9, 0.4, 0.5, 0.1]]), np.arange(4) < 2)
    assert areas.tolist() == [0.75]
    assert covariance.shape == (1, 1)


@pytest.mark.parametrize("num_positive", [0, 1, 3, 4])
def test_fewer_than_two_cases_of_either_kind_are_a_programming_error(num_positive: int) -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.4]])
    with pytest.raises(ValueError, match="expected 2 of each"):
        _delong_covariance(scores, np.arange(4) < num_positive)

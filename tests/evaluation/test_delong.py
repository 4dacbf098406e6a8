from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chestct.evaluation.delong import delong_covariance

# Albumin, total protein, K-G score and whether surgery failed to help (1), of the 43 patients of
# DeLong, DeLong and Clarke-Pearson (1988) with all three, as tabulated with Example 8 of the
# LOGISTIC chapter of the SAS/STAT guide. The figures below are its output as we remember it: the
# page's own print could not be looked up. The comparison with all pairs does not depend on them.
OVARIAN_CANCER = np.loadtxt(
    """3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
    1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
    4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
    3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
    3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
    3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
    3.6 6.6 5 1""".replace("  ", "\n").split("\n"),
)


def all_pairs(scores: np.ndarray, is_positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The areas and their covariance straight from the paper's definition, pair by pair."""
    positives, negatives = scores[:, is_positive], scores[:, ~is_positive]
    wins = (positives[:, :, None] > negatives[:, None, :]).astype(float)
    wins += 0.5 * (positives[:, :, None] == negatives[:, None, :])
    first, second = wins.mean(axis=2), wins.mean(axis=1)
    covariance = np.cov(first) / first.shape[1] + np.cov(second) / second.shape[1]
    return wins.mean(axis=(1, 2)), covariance


def test_the_worked_example_of_1988_gives_the_printed_areas_and_test() -> None:
    albumin, protein, score, helped = OVARIAN_CANCER.T
    # The event is 0; low albumin, low protein and a high score speak for it.
    scores = np.stack([-albumin, score, -protein])
    areas, covariance = delong_covariance(scores, helped == 0)
    assert np.round(areas, 4).tolist() == [0.7366, 0.7258, 0.6478]
    assert np.round(np.sqrt(np.diag(covariance)), 4).tolist() == [0.0927, 0.1028, 0.1000]
    contrast = np.array([[1, -1, 0], [0, -1, 1]])
    difference, spread = contrast @ areas, contrast @ covariance @ contrast.T
    assert round(float(difference @ np.linalg.solve(spread, difference)), 4) == 2.5340


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
    areas, covariance = delong_covariance(scores, is_positive)
    expected_areas, expected_covariance = all_pairs(scores, is_positive)
    assert areas == pytest.approx(expected_areas, abs=1e-12)
    assert covariance == pytest.approx(expected_covariance, abs=1e-12)


def test_the_variance_is_that_of_areas_over_repeated_samples() -> None:
    rng, is_positive = np.random.default_rng(0), np.arange(80) < 30
    shared = rng.normal(size=(400, 1, 80))
    scores = shared + rng.normal(size=(400, 2, 80)) + is_positive * np.array([[1.5], [1.0]])
    found = [delong_covariance(each, is_positive) for each in scores]
    expected = np.cov(np.array([areas for areas, _ in found]).T)
    assert np.mean([each for _, each in found], axis=0) == pytest.approx(expected, rel=0.2)


def test_a_single_classifier_has_a_one_by_one_covariance() -> None:
    areas, covariance = delong_covariance(np.array([[0.9, 0.4, 0.5, 0.1]]), np.arange(4) < 2)
    assert areas.tolist() == [0.75]
    assert covariance.shape == (1, 1)


@pytest.mark.parametrize("num_positive", [0, 1, 3, 4])
def test_fewer_than_two_cases_of_either_kind_are_a_programming_error(num_positive: int) -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.4]])
    with pytest.raises(ValueError, match="expected 2 of each"):
        delong_covariance(scores, np.arange(4) < num_positive)

"""DeLong's covariance of areas under ROC curves that were measured on the same cases.

DeLong, DeLong and Clarke-Pearson, Biometrics 44:837-845 (1988), computed from midranks as Sun and
Xu (IEEE Signal Processing Letters 21:1389-1393, 2014) showed: sorting instead of all pairs.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float64


def delong_covariance(
    scores: Float[np.ndarray, "classifier case"], is_positive: Bool[np.ndarray, " case"]
) -> tuple[Float64[np.ndarray, " classifier"], Float64[np.ndarray, "classifier classifier"]]:
    """Areas under the ROC curves of several classifiers, and the covariance of these areas.

    Args:
        scores: Higher means more likely positive; ties count half.
        is_positive: The truth, the same for all classifiers.

    Returns:
        The areas and their covariance matrix.

    Raises:
        ValueError: There are fewer than two positive or two negative cases.
    """
    positives, negatives = scores[:, is_positive], scores[:, ~is_positive]
    num_positive, num_negative = positives.shape[1], negatives.shape[1]
    if min(num_positive, num_negative) < 2:
        msg = f"{num_positive} positive and {num_negative} negative cases: expected 2 of each"
        raise ValueError(msg)
    pooled = _midranks(np.concatenate([positives, negatives], axis=1))
    # Share of the other group that each case stands above, ties half: the placements of DeLong.
    above_negatives = (pooled[:, :num_positive] - _midranks(positives)) / num_negative
    below_positives = 1 - (pooled[:, num_positive:] - _midranks(negatives)) / num_positive
    covariance = (
        np.atleast_2d(np.cov(above_negatives)) / num_positive
        + np.atleast_2d(np.cov(below_positives)) / num_negative
    )
    return above_negatives.mean(axis=1), covariance


def _midranks(
    values: Float[np.ndarray, "classifier case"],
) -> Float64[np.ndarray, "classifier case"]:
    """Ranks from 1 along each row, ties sharing their mean rank."""
    from scipy.stats import rankdata

    ranks: Float64[np.ndarray, "classifier case"] = rankdata(values, axis=1).astype(np.float64)
    return ranks

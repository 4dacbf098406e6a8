"""Are the probabilities right, and when should the classifier rather say nothing?

Temperature scaling (Guo et al. 2017) divides all logits by one number, which changes confidences
and never decisions. Abstaining keeps the scans whose confidence reaches a threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Float64, Int

from chestct.card import FindingThreshold
from chestct.evaluation.intervals import (
    clopper_pearson_upper,
    clopper_pearson_uppers,
    wilson,
    with_wilson,
)
from chestct.evaluation.metrics import NUM_BINS, Estimate, bin_members, proportion
from chestct.evaluation.predictions import Predictions

_TEMPERATURE_RANGE: Final = (0.01, 100.0)
"""Where the temperature is looked for; an optimum at an end is no optimum."""
_COVERAGES: Final = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Shares of the scans to decide on that an abstention threshold is sought among."""

_TINY = np.finfo(np.float64).eps
"""Stands for smaller probabilities, as in the log loss: one rounded zero must not rule the fit."""


@dataclass(frozen=True)
class _TemperatureScaling:
    """One number that all logits are divided by: above one makes probabilities less sure.

    `note` says why it is one without having been fitted; empty otherwise.
    """

    temperature: float
    note: str = ""


@dataclass(frozen=True)
class ReliabilityBin:
    """Scans of about one confidence: how sure the classifier was, how often it was right.

    Attributes:
        low: Confidence above this.
        high: Confidence up to this.
        num_scans: How many.
        confidence: Their mean confidence; None without scans.
        accuracy: Share that is right, with Wilson's 95 % interval.
        accuracy_low: Lower end.
        accuracy_high: Upper end.
    """

    low: float
    high: float
    num_scans: int
    confidence: float | None = None
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None


@dataclass(frozen=True)
class RiskPoint:
    """What happens when only scans of at least one confidence are decided on.

    Attributes:
        threshold: The confidence.
        num_scans: Scans that reach it.
        coverage: Their share of all.
        errors: How many of them are wrong.
        risk: Their share of the scans decided on.
        risk_bound: Exact one-sided 95 % upper bound of the risk (Clopper-Pearson), for a threshold
            fixed beforehand.
    """

    threshold: float
    num_scans: int
    coverage: float
    errors: int
    risk: float
    risk_bound: float


@dataclass(frozen=True)
class AbstentionThreshold:
    """Decide only when the confidence reaches the threshold.

    Attributes:
        threshold: The confidence; None where these scans cannot promise the wished error rate.
        wished_error: Highest error rate wanted among the scans decided on.
        level: Certainty of the promise.
        coverage: Share of the scans decided on.
        risk: Error rate among them, on these scans.
        risk_bound: Upper bound of the error rate on further scans of the same kind, with
            certainty `level`, over all thresholds tried (Clopper-Pearson, Bonferroni).
        num_tried: Thresholds tried.
        note: Why there is no threshold; empty otherwise.
    """

    threshold: float | None
    wished_error: float
    level: float
    coverage: float | None = None
    risk: float | None = None
    risk_bound: float | None = None
    num_tried: int = 0
    note: str = ""


def _logits_of(
    probabilities: Float[np.ndarray, "scan class"],
) -> Float64[np.ndarray, "scan class"]:
    """Logits that give these probabilities: their logarithms, at least that of 2.2e-16."""
    return np.log(np.maximum(probabilities.astype(np.float64), _TINY))


def apply_temperature(
    probabilities: Float[np.ndarray, "scan class"], temperature: float
) -> Float64[np.ndarray, "scan class"]:
    """Probabilities after dividing the logits by a temperature; the order never changes."""
    from scipy.special import softmax

    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}, expected a positive number")
    return np.asarray(softmax(_logits_of(probabilities) / temperature, axis=1))


def fit_temperature(predictions: Predictions) -> _TemperatureScaling:
    """Fit the temperature that makes the true labels of scans not used otherwise most likely.

    It is one, with a note, when there are no scans, when every scan is right (the scans then only
    ask for more certainty, without end), or when the best one is out of `_TEMPERATURE_RANGE` (the
    surer, the more wrong).
    """
    from scipy.optimize import minimize_scalar

    why_not = "" if len(predictions) else "no scans"
    if len(predictions) and predictions.is_right.all():
        why_not = "every scan is right: they cannot say how sure to be"
    if why_not:
        return _TemperatureScaling(1.0, why_not)
    logits, ends = _logits_of(predictions.probabilities), np.log(_TEMPERATURE_RANGE)
    found = minimize_scalar(
        lambda log_t: _mean_loss(logits / math.exp(log_t), predictions.truth),
        bounds=tuple(ends),
        method="bounded",
        options={"xatol": 1e-8},
    )
    if min(abs(found.x - ends)) < 1e-3:
        why_not = "the best temperature is out of range {:g} to {:g}".format(*_TEMPERATURE_RANGE)
        return _TemperatureScaling(1.0, why_not)
    return _TemperatureScaling(math.exp(found.x))


def reliability_curve(
    predictions: Predictions, num_bins: int = NUM_BINS
) -> tuple[ReliabilityBin, ...]:
    """Accuracy against confidence in equal bins of confidence, empty bins included."""
    members = bin_members(predictions.confidences, num_bins)
    edges = [float(edge) for edge in np.linspace(0, 1, num_bins + 1)]
    return tuple(
        _reliability_bin(predictions, members[:, index] > 0, (edges[index], edges[index + 1]))
        for index in range(num_bins)
    )


def coverage_risk(predictions: Predictions) -> tuple[RiskPoint, ...]:
    """Risk at every confidence that occurs, from the surest scans alone to all scans."""
    order = np.argsort(-predictions.confidences, kind="stable")
    confidences = predictions.confidences[order]
    errors = np.cumsum(~predictions.is_right[order])
    last_of_ties = np.flatnonzero(np.diff(confidences, append=-1.0))
    bounds = clopper_pearson_uppers(errors[last_of_ties], last_of_ties + 1)
    return tuple(
        RiskPoint(
            threshold=float(confidences[end]),
            num_scans=int(end) + 1,
            coverage=(int(end) + 1) / len(predictions),
            errors=int(errors[end]),
            risk=int(errors[end]) / (int(end) + 1),
            risk_bound=float(bound),
        )
        for end, bound in zip(last_of_ties, bounds, strict=True)
    )


def abstention_threshold(
    predictions: Predictions, wished_error: float, *, level: float = 0.95
) -> AbstentionThreshold:
    """Find the threshold that decides on most scans with a promised error rate.

    Thresholds of the round `_COVERAGES` are tried, as many as have enough scans for the promise
    at all; each bound holds with certainty 1 - (1 - level) / tried, so that the chosen one holds
    with certainty `level` although it was chosen on the same scans. The promise is about scans
    drawn like these, one per patient.

    Args:
        predictions: Of scans that neither the training nor the evaluation used.
        wished_error: Highest error rate among the scans decided on, between 0 and 1.
        level: Certainty of the promise.
    """
    if not (0 < wished_error < 1 and 0 < level < 1):
        raise ValueError(f"wished error {wished_error} at level {level}: expected 0 < each < 1")
    tried = _points_to_try(coverage_risk(predictions), wished_error, level)
    if not tried:
        needed = math.ceil(math.log(1 - level) / math.log(1 - wished_error))
        note = f"{len(predictions)} scans promise nothing: {needed} without an error are the least"
        return AbstentionThreshold(None, wished_error, level, note=note)
    each_level = 1 - (1 - level) / len(tried)
    for point in tried:
        bound = clopper_pearson_upper(point.errors, point.num_scans, each_level)
        if bound <= wished_error:
            return AbstentionThreshold(
                point.threshold, wished_error, level, point.coverage, point.risk, bound, len(tried)
            )
    note = f"no threshold tried keeps the bound at or below {wished_error:g}"
    return AbstentionThreshold(None, wished_error, level, num_tried=len(tried), note=note)


def _points_to_try(
    points: tuple[RiskPoint, ...], wished_error: float, level: float
) -> list[RiskPoint]:
    """The round coverages, largest first, as many as could keep the promise without an error."""
    nearest = [
        next(point for point in points if point.coverage >= coverage - 1e-9)
        for coverage in (_COVERAGES if points else ())
    ]
    distinct = list(dict.fromkeys(nearest))
    for num in range(len(distinct), 0, -1):
        least = min(point.num_scans for point in distinct[:num])
        if clopper_pearson_upper(0, least, 1 - (1 - level) / num) <= wished_error:
            return distinct[:num]
    return []


def _reliability_bin(
    predictions: Predictions, members: np.ndarray, edges: tuple[float, float]
) -> ReliabilityBin:
    num = int(members.sum())
    if num == 0:
        return ReliabilityBin(*edges, num_scans=0)
    hits = int(predictions.is_right[members].sum())
    low, high = wilson(hits, num)
    confidence = float(predictions.confidences[members].mean())
    return ReliabilityBin(*edges, num, confidence, hits / num, low, high)


def _mean_loss(logits: Float64[np.ndarray, "scan class"], truth: Int[np.ndarray, " scan"]) -> float:
    """Mean cross-entropy in nats, without the rounding of a softmax in between."""
    highest = logits.max(axis=1)
    normalisers = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return float((normalisers - logits[np.arange(len(truth)), truth]).mean())


@dataclass(frozen=True)
class AtThreshold:
    """A threshold from elsewhere, on the scans of this evaluation.

    Attributes:
        threshold: The confidence below which nothing is decided.
        wished_error: Error rate it was chosen for.
        coverage: Share of the scans that reach it.
        error: Share of these that are wrong.
    """

    threshold: float
    wished_error: float
    coverage: Estimate
    error: Estimate

    @classmethod
    def of(
        cls, predictions: Predictions, promised: AbstentionThreshold | None
    ) -> AtThreshold | None:
        """Coverage and error rate at a threshold, where one is known, with Wilson's 95 % intervals.

        The predictions have the temperature that they had when the threshold was chosen.
        """
        if promised is None or promised.threshold is None:
            return None
        is_decided = predictions.confidences >= promised.threshold
        num_decided = int(is_decided.sum())
        num_wrong = int((is_decided & ~predictions.is_right).sum())
        return cls(
            threshold=promised.threshold,
            wished_error=promised.wished_error,
            coverage=with_wilson(proportion(num_decided, len(predictions), "no scans")),
            error=with_wilson(proportion(num_wrong, num_decided, "no scan reaches the threshold")),
        )


def choose_threshold(
    view: Predictions, wished_sensitivity: float | None = None
) -> FindingThreshold:
    """Choose from which probability on a finding is called present.

    Youden's index (Youden 1950) by default: where sensitivity and specificity together are largest,
    the highest of several. Otherwise the highest with the wished sensitivity. It lies half-way to
    the next lower probability, so that rounding changes no answer.

    Args:
        view: Of one finding, as `FindingPredictions.of` gives it, on scans not trained on.
        wished_sensitivity: The least share of scans with the finding that is to reach it; None
            takes Youden's index.

    Returns:
        The threshold; 0.5, and why, where all or none of the scans have the finding.
    """
    shares, has = view.probabilities[:, 1], view.truth == 1
    num_present, num_absent = int(has.sum()), int((~has).sum())
    if not (num_present and num_absent):
        why = "0.5, as the validation part has no scan with it, or none without it"
        return FindingThreshold(
            threshold=0.5, rule=why, num_present=num_present, num_absent=num_absent
        )
    values = np.unique(shares)
    cuts = (values + np.concatenate([values[:1], values[:-1]])) / 2
    called = shares[None] >= cuts[:, None]
    found, spared = called[:, has].mean(axis=1), 1 - called[:, ~has].mean(axis=1)
    best = _best_cut(found, spared, wished_sensitivity)
    rule = "Youden's index: sensitivity + specificity largest on the validation part"
    if wished_sensitivity is not None:
        rule = f"the highest with a sensitivity of {wished_sensitivity:g} on the validation part"
    return FindingThreshold(
        threshold=float(cuts[best]),
        rule=rule,
        sensitivity=float(found[best]),
        specificity=float(spared[best]),
        num_present=num_present,
        num_absent=num_absent,
    )


def _best_cut(
    found: Float64[np.ndarray, " cut"],
    spared: Float64[np.ndarray, " cut"],
    wished_sensitivity: float | None,
) -> int:
    """Which of some cuts, by the sensitivity and specificity of each; the last of several."""
    # Equal sums of shares may differ in their last digit.
    score = np.round(found + spared, 12)
    if wished_sensitivity is not None:
        score = np.where(found >= wished_sensitivity, spared, -1.0)
    return len(score) - 1 - int(score[::-1].argmax())

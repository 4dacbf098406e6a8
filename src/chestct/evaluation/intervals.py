"""Intervals: Wilson's for proportions, a bootstrap over patients for everything else.

Wilson's interval takes scans as independent. Where a patient has several scans they are not, and
the interval is widened to the patient bootstrap's where that reaches further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float64, Int, Int64

from chestct.evaluation import metrics
from chestct.evaluation.metrics import Estimate, bin_members
from chestct.evaluation.predictions import AnyPredictions, FindingPredictions, Predictions

Weights = Float64[np.ndarray, "replicate scan"]
Replicates = Float64[np.ndarray, " replicate"]
_Key = tuple[str, str]
"""A class or finding, or "" for all of them together, and the name of a figure."""

_CHUNK_CELLS = 4_000_000
"""Replicates are drawn in parts of at most this many weights: 32 MB."""


@dataclass(frozen=True)
class Bootstrap:
    """How patients are drawn: with replacement, as many per class as there are.

    A patient's class is that of most of their scans. Keeping the classes' sizes means that no
    replicate lacks a class; the intervals are those of a study with these class sizes.

    Attributes:
        replicates: Number of draws.
        level: Share of the replicates between the two ends (percentile interval).
        seed: Of the draws; the same seed gives the same intervals.
    """

    replicates: int = 2000
    level: float = 0.95
    seed: int = 1

    def __post_init__(self) -> None:
        if self.replicates < 1 or not 0 < self.level < 1:
            msg = f"{self.replicates} replicates, level {self.level}: expected >= 1, 0 < level < 1"
            raise ValueError(msg)


@dataclass(frozen=True, eq=False)
class _Weighted:
    """Predictions under many weightings: how often each scan counts, and so each confusion."""

    predictions: Predictions
    weights: Weights
    confusion: Float64[np.ndarray, "replicate true predicted"]


def weigh(predictions: Predictions, weights: Weights) -> _Weighted:
    """Count the confusions under every weighting."""
    num = len(predictions.labels)
    cells = np.eye(num * num)[predictions.truth * num + predictions.decisions]
    return _Weighted(predictions, weights, (weights @ cells).reshape(len(weights), num, num))


def draw_patients(predictions: AnyPredictions, bootstrap: Bootstrap) -> Iterator[Weights]:
    """Draw patients with replacement, with all their scans; yields replicates in parts.

    They are drawn within their class; where scans have findings, all of them alike.
    """
    rng = np.random.default_rng(bootstrap.seed)
    patient_of_scan, strata = _patient_strata(predictions)
    num_cells = len(predictions)
    if isinstance(predictions, FindingPredictions):
        num_cells = int(predictions.is_known.sum())
    rows = max(1, _CHUNK_CELLS // max(1, num_cells))
    for start in range(0, bootstrap.replicates, rows):
        num = min(rows, bootstrap.replicates - start)
        drawn = np.zeros((num, strata.size))
        for stratum in np.unique(strata):
            members = np.flatnonzero(strata == stratum)
            shares = np.full(members.size, 1 / members.size)
            drawn[:, members] = rng.multinomial(members.size, shares, size=num)
        yield drawn[:, patient_of_scan]


def _patient_strata(
    predictions: AnyPredictions,
) -> tuple[Int64[np.ndarray, " scan"], Int64[np.ndarray, " patient"]]:
    """Index of each scan's patient, and each patient's most frequent true label (0: findings)."""
    names, patient_of_scan = np.unique(np.array(predictions.patients, str), return_inverse=True)
    strata = np.zeros(names.size, dtype=np.int64)
    if isinstance(predictions, Predictions):
        votes = np.zeros((names.size, len(predictions.labels)), dtype=np.int64)
        np.add.at(votes, (patient_of_scan, predictions.truth), 1)
        strata = votes.argmax(axis=1).astype(np.int64)
    return patient_of_scan.astype(np.int64), strata


def _balanced_accuracy(weighted: _Weighted) -> Replicates:
    """Mean sensitivity of the classes that have weight."""
    hits = np.diagonal(weighted.confusion, axis1=1, axis2=2)
    return _mean_known(_divide(hits, weighted.confusion.sum(axis=2)))


def _macro_f1(weighted: _Weighted) -> Replicates:
    """Mean F1 of the classes that have weight."""
    hits = np.diagonal(weighted.confusion, axis1=1, axis2=2)
    cases = weighted.confusion.sum(axis=2)
    scores = _divide(2 * hits, cases + weighted.confusion.sum(axis=1))
    return _mean_known(np.where(cases > 0, scores, np.nan))


def _macro_auc(weighted: _Weighted) -> Replicates:
    """Mean of the one-vs-rest areas of the classes that have one."""
    num = len(weighted.predictions.labels)
    return _mean_known(np.stack([_auc(weighted, index) for index in range(num)], axis=1))


def _accuracy(weighted: _Weighted) -> Replicates:
    """Trace over total."""
    return _divide(np.trace(weighted.confusion, axis1=1, axis2=2), _total(weighted))


def _kappa(weighted: _Weighted) -> Replicates:
    """Cohen's kappa of truth and decisions."""
    total = _total(weighted)
    rows, columns = weighted.confusion.sum(axis=2), weighted.confusion.sum(axis=1)
    chance = _divide((rows * columns).sum(axis=1), total**2)
    return _divide(_accuracy(weighted) - chance, 1 - chance)


def _brier(weighted: _Weighted) -> Replicates:
    """Squared errors summed over classes."""
    predictions = weighted.predictions
    wanted = np.eye(len(predictions.labels))[predictions.truth]
    errors = ((predictions.probabilities - wanted) ** 2).sum(axis=1)
    return _divide(weighted.weights @ errors, _total(weighted))


def _log_loss(weighted: _Weighted) -> Replicates:
    """Mean negative logarithm of the true label's probability."""
    predictions = weighted.predictions
    given = predictions.probabilities[np.arange(len(predictions)), predictions.truth]
    tiny = np.finfo(np.float64).eps
    losses = -np.log(np.clip(given, tiny, 1 - tiny))
    return _divide(weighted.weights @ losses, _total(weighted))


def _expected_calibration_error(weighted: _Weighted) -> Replicates:
    """Weighted mean gap between confidence and accuracy over bins."""
    predictions = weighted.predictions
    gaps = predictions.confidences - predictions.is_right
    sums = weighted.weights @ (gaps[:, None] * bin_members(predictions.confidences))
    return _divide(np.abs(sums).sum(axis=1), _total(weighted))


def _per_class(weighted: _Weighted, index: int) -> dict[str, Replicates]:
    """Every figure of one class against the rest; the same names as `metrics.per_class` gives."""
    confusion, total = weighted.confusion, _total(weighted)
    hits = confusion[:, index, index]
    cases, calls = confusion[:, index].sum(axis=1), confusion[:, :, index].sum(axis=1)
    true_negatives = np.asarray(total - (cases + calls) + hits)
    return {
        "sensitivity": _divide(hits, cases),
        "specificity": _divide(true_negatives, total - cases),
        "ppv": _divide(hits, calls),
        "npv": _divide(true_negatives, total - calls),
        "f1": _divide(2 * hits, cases + calls),
        "auc": _auc(weighted, index),
    }


def _auc(weighted: _Weighted, index: int) -> Replicates:
    """One-vs-rest area: pairs in the right order, ties half, over all pairs, by weight."""
    scores = weighted.predictions.probabilities[:, index]
    positives, negatives = _by_score(weighted, scores, index)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return _divide((positives * below).sum(axis=1), pairs)


def _by_score(
    weighted: _Weighted, scores: Float64[np.ndarray, " scan"], index: int
) -> tuple[Float64[np.ndarray, "replicate score"], Float64[np.ndarray, "replicate score"]]:
    """Weight of the scans of a class and of the others, at each score from the lowest on."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    is_class = (weighted.predictions.truth == index)[order]
    ranked = weighted.weights[:, order]
    if order.size == 0:
        return ranked, ranked
    of_class, of_others = (
        np.add.reduceat(ranked * which, starts, axis=1) for which in (is_class, ~is_class)
    )
    return of_class, of_others


OVERALL: Final[dict[str, Callable[[_Weighted], Replicates]]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "macro_auc": _macro_auc,
    "kappa": _kappa,
    "brier": _brier,
    "log_loss": _log_loss,
    "expected_calibration_error": _expected_calibration_error,
}
"""The same names as `metrics.OVERALL`."""


def _total(weighted: _Weighted) -> Replicates:
    return np.asarray(weighted.confusion.sum(axis=(1, 2)))


def _divide(
    above: Float64[np.ndarray, "*shape"], below: Float64[np.ndarray, "*shape"]
) -> Float64[np.ndarray, "*shape"]:
    """Quotient, not-a-number where there is nothing to divide by."""
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0))


def _mean_known(values: Float64[np.ndarray, "replicate class"]) -> Replicates:
    """Mean of the known values of each replicate, not-a-number where none is."""
    known = ~np.isnan(values)
    return _divide(np.where(known, values, 0).sum(axis=1), known.sum(axis=1).astype(np.float64))


WILSON: Final = "Wilson"
WIDENED: Final = "Wilson, widened to the patient bootstrap"
PATIENTS: Final = "patient bootstrap"

_MAX_UNDEFINED_SHARE = 0.05


@dataclass(frozen=True)
class Figures:
    """Every figure of one classifier on one set of scans.

    Attributes:
        overall: Of all classes together, by name.
        per_class: Of one class against the rest, by label and name.
    """

    overall: dict[str, Estimate]
    per_class: dict[str, dict[str, Estimate]]


def wilson(hits: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    Raises:
        ValueError: There are no trials, or more hits than trials.
    """
    from statsmodels.stats.proportion import proportion_confint

    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"no proportion has {hits} hits in {total}")
    low, high = proportion_confint(hits, total, alpha=1 - level, method="wilson")
    # Rounding leaves 1e-17 where the score interval touches an end exactly.
    return (0.0 if hits == 0 else float(low)), (1.0 if hits == total else float(high))


def clopper_pearson_upper(errors: int, total: int, level: float = 0.95) -> float:
    """Exact one-sided upper bound of an error rate: at most this, with the given certainty.

    Raises:
        ValueError: There are no trials, or more errors than trials.
    """
    if not 0 <= errors <= total or total == 0:
        raise ValueError(f"no error rate has {errors} errors in {total}")
    return float(clopper_pearson_uppers(np.array([errors]), np.array([total]), level)[0])


def clopper_pearson_uppers(
    errors: Int[np.ndarray, " rate"], totals: Int[np.ndarray, " rate"], level: float = 0.95
) -> Float64[np.ndarray, " rate"]:
    """`clopper_pearson_upper` of many rates at once; every total is at least one."""
    from statsmodels.stats.proportion import proportion_confint

    if errors.size == 0:
        return np.zeros(0)
    # The two-sided interval at twice the error probability has the one-sided bound as its end.
    _, high = proportion_confint(errors, totals, alpha=2 * (1 - level), method="beta")
    return np.where(errors == totals, 1.0, high)


def estimate_figures(predictions: Predictions, bootstrap: Bootstrap | None = None) -> Figures:
    """Compute every figure with its interval."""
    settings = bootstrap or Bootstrap()
    why_not = why_no_bootstrap(predictions)
    values = {("", name): measure(predictions) for name, measure in metrics.OVERALL.items()}
    for index, label in enumerate(predictions.labels):
        found = metrics.per_class(predictions, index)
        values |= {(label, name): value for name, value in found.items()}
    draws = {} if why_not else _replicates(predictions, settings)
    widens = predictions.num_patients < len(predictions)
    return _with_intervals(values, draws, settings.level, widens=widens, why_not=why_not)


def _with_intervals(
    values: dict[_Key, Estimate],
    draws: dict[_Key, Replicates],
    level: float,
    *,
    widens: bool,
    why_not: str = "",
) -> Figures:
    """Give every figure the interval of its kind: Wilson's for a proportion, else the bootstrap's.

    Where patients have several scans Wilson's is widened. `why_not` says why there are no draws.
    """
    overall: dict[str, Estimate] = {}
    per_class: dict[str, dict[str, Estimate]] = {}
    for (label, name), value in values.items():
        drawn = draws.get((label, name))
        if value.total is None:
            found = _with_bootstrap(value, level, drawn, why_not)
        else:
            found = with_wilson(value, level, drawn if widens else None)
        (per_class.setdefault(label, {}) if label else overall)[name] = found
    return Figures(overall, per_class)


def why_no_bootstrap(predictions: Predictions) -> str:
    """Why patients cannot be drawn: a class with one patient has no spread to show; else ""."""
    if len(predictions) == 0:
        return "no scans"
    _, strata = _patient_strata(predictions)
    for index, label in enumerate(predictions.labels):
        if int((strata == index).sum()) == 1:
            return f"no interval: one patient of {label} shows no spread"
    return ""


def percentile_interval(
    replicates: Replicates, level: float
) -> tuple[float | None, float | None, str]:
    """Low end, high end and a note; no ends when too many replicates are undefined."""
    undefined = float(np.isnan(replicates).mean()) if replicates.size else 1.0
    if undefined > _MAX_UNDEFINED_SHARE:
        return None, None, f"no interval: undefined in {undefined:.0%} of the replicates"
    tail = (1 - level) / 2
    low, high = np.nanquantile(replicates, [tail, 1 - tail])
    note = "all replicates are equal: the interval is too narrow" if low == high else ""
    return float(low), float(high), note


def _replicates(predictions: Predictions, bootstrap: Bootstrap) -> dict[_Key, Replicates]:
    """All figures of all replicates."""
    parts: dict[_Key, list[Replicates]] = {}
    for weights in draw_patients(predictions, bootstrap):
        weighted = weigh(predictions, weights)
        for name, measure in OVERALL.items():
            parts.setdefault(("", name), []).append(measure(weighted))
        for index, label in enumerate(predictions.labels):
            for name, found in _per_class(weighted, index).items():
                parts.setdefault((label, name), []).append(found)
    return {key: np.concatenate(values) for key, values in parts.items()}


def with_wilson(
    value: Estimate, level: float = 0.95, replicates: Replicates | None = None
) -> Estimate:
    """A proportion with Wilson's interval, widened to the bootstrap's when that is given."""
    if value.value is None or value.hits is None or value.total is None:
        return value
    low, high = wilson(value.hits, value.total, level)
    method = WILSON
    if replicates is not None:
        lowest, highest, _ = percentile_interval(replicates, level)
        low = low if lowest is None else min(low, lowest)
        high = high if highest is None else max(high, highest)
        method = WIDENED
    return replace(value, low=low, high=high, method=method)


def _with_bootstrap(
    value: Estimate, level: float, replicates: Replicates | None, why_not: str
) -> Estimate:
    if value.value is None:
        return value
    low, high, note = (None, None, why_not)
    if replicates is not None:
        low, high, note = percentile_interval(replicates, level)
    method = PATIENTS if low is not None else ""
    notes = "; ".join(filter(None, (value.note, note)))
    return replace(value, low=low, high=high, method=method, note=notes)


def estimate_findings(
    predictions: FindingPredictions, bootstrap: Bootstrap | None = None
) -> Figures:
    """Compute every figure with its interval: of each finding, their means, and of all together.

    A scan of which a finding is not known counts nowhere in that finding's figures. Patients are
    drawn all alike, unlike those of classes.
    """
    settings = bootstrap or Bootstrap()
    views = {label: predictions.of(index) for index, label in enumerate(predictions.labels)}
    values = {("", name): value for name, value in metrics.overall_of(predictions).items()}
    for label, view in views.items():
        values |= {(label, name): value for name, value in metrics.per_finding(view).items()}
    draws = _finding_replicates(predictions, views, settings)
    widens = predictions.num_patients < len(predictions)
    return _with_intervals(values, draws, settings.level, widens=widens)


def _finding_replicates(
    predictions: FindingPredictions, views: dict[str, Predictions], bootstrap: Bootstrap
) -> dict[_Key, Replicates]:
    """All figures of all replicates."""
    parts: dict[_Key, list[Replicates]] = {}
    pairs, is_known = predictions.pairs(), predictions.is_known
    scan_of_pair = np.nonzero(is_known)[0]
    for weights in draw_patients(predictions, bootstrap):
        drawn: dict[str, list[Replicates]] = {}
        for index, (label, view) in enumerate(views.items()):
            weighted = weigh(view, weights[:, is_known[:, index]])
            for name, found in _per_finding(weighted).items():
                parts.setdefault((label, name), []).append(found)
                drawn.setdefault(name, []).append(found)
        for name in metrics.MEANS:
            parts.setdefault(("", metrics.MACRO + name), []).append(
                _mean_known(np.stack(drawn[name], axis=1))
            )
        of_pairs = weigh(pairs, weights[:, scan_of_pair])
        for name in metrics.OF_PAIRS:
            parts.setdefault(("", name), []).append(OVERALL[name](of_pairs))
    return {key: np.concatenate(each) for key, each in parts.items()}


def _per_finding(weighted: _Weighted) -> dict[str, Replicates]:
    """Every figure of one finding; the same names as `metrics.per_finding` gives."""
    return {**_per_class(weighted, 1), "auprc": _auprc(weighted)}


def _auprc(weighted: _Weighted) -> Replicates:
    """Average precision: that at each probability, by the recall it adds."""
    hits, misses = _by_score(weighted, -weighted.predictions.probabilities[:, 1], 1)
    called = np.cumsum(hits + misses, axis=1)
    precision = np.nan_to_num(_divide(np.cumsum(hits, axis=1), called))
    return _divide((hits * precision).sum(axis=1), hits.sum(axis=1))

"""Intervals: Wilson's for proportions, a bootstrap over patients for everything else.

Wilson's interval takes scans as independent. Where a patient has several scans they are not, and
the interval is widened to the patient bootstrap's where that reaches further.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float64, Int, Int64

from chestct.evaluation import metrics
from chestct.evaluation.metrics import Estimate, Key, Replicates, Weights
from chestct.evaluation.predictions import AnyPredictions, FindingPredictions, Predictions

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


def estimate_figures(predictions: AnyPredictions, bootstrap: Bootstrap | None = None) -> Figures:
    """Compute every figure with its interval, of each class or finding and of all together.

    A scan of which a finding is not known counts nowhere in that finding's figures.
    """
    settings = bootstrap or Bootstrap()
    why_not = why_no_bootstrap(predictions)
    draws = {} if why_not else _replicates(predictions, settings)
    widens = predictions.num_patients < len(predictions)
    values = metrics.every_figure(predictions)
    return _with_intervals(values, draws, settings.level, widens=widens, why_not=why_not)


def _with_intervals(
    values: dict[Key, Estimate],
    draws: dict[Key, Replicates],
    level: float,
    *,
    widens: bool,
    why_not: str,
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


def why_no_bootstrap(predictions: AnyPredictions) -> str:
    """Why patients cannot be drawn: a class with one patient has no spread to show; else ""."""
    if isinstance(predictions, FindingPredictions):
        return ""
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


def _replicates(predictions: AnyPredictions, bootstrap: Bootstrap) -> dict[Key, Replicates]:
    """All figures of all replicates."""
    figures_under = metrics.weighing(predictions)
    parts: dict[Key, list[Replicates]] = {}
    for weights in draw_patients(predictions, bootstrap):
        for key, found in figures_under(weights).items():
            parts.setdefault(key, []).append(found)
    return {key: np.concatenate(each) for key, each in parts.items()}


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

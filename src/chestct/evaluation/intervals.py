"""Intervals: Wilson's for proportions, a bootstrap over patients for everything else.

Wilson's interval takes scans as independent. Where a patient has several scans they are not, and
the interval is widened to the patient bootstrap's where that reaches further.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64, Int

from chestct.evaluation import metrics, resampling
from chestct.evaluation.metrics import Value
from chestct.evaluation.predictions import Predictions
from chestct.evaluation.resampling import Bootstrap, Replicates

WILSON: Final = "Wilson"
WIDENED: Final = "Wilson, widened to the patient bootstrap"
PATIENTS: Final = "patient bootstrap"

_MAX_UNDEFINED_SHARE = 0.05


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; None with a reason where there is none.

    Attributes:
        value: The figure.
        low: Lower end of the interval.
        high: Upper end of the interval.
        method: How the interval was made; empty when there is none.
        note: Why figure or interval is missing, or what has to be known to read it.
        hits: Numerator of a proportion.
        total: Denominator of a proportion.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    method: str = ""
    note: str = ""
    hits: int | None = None
    total: int | None = None


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
    """Compute every figure with its interval.

    Args:
        predictions: Of one classifier.
        bootstrap: How patients are drawn; None takes the default.
    """
    settings = bootstrap or Bootstrap()
    why_not = why_no_bootstrap(predictions)
    draws = {} if why_not else _replicates(predictions, settings)

    def finish(value: Value, key: tuple[str, str]) -> Estimate:
        """Give a figure the interval of its kind."""
        if value.total is not None:
            widen = predictions.num_patients < len(predictions)
            return _with_wilson(value, settings.level, draws.get(key) if widen else None)
        return _with_bootstrap(value, settings.level, draws.get(key), why_not)

    overall = {
        name: finish(measure(predictions), ("", name)) for name, measure in metrics.OVERALL.items()
    }
    per_class = {
        label: {
            name: finish(value, (label, name))
            for name, value in metrics.per_class(predictions, index).items()
        }
        for index, label in enumerate(predictions.labels)
    }
    return Figures(overall=overall, per_class=per_class)


def why_no_bootstrap(predictions: Predictions) -> str:
    """Why patients cannot be drawn: a class with one patient has no spread to show; else ""."""
    if len(predictions) == 0:
        return "no scans"
    _, strata = resampling.patient_strata(predictions)
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


def _replicates(
    predictions: Predictions, bootstrap: Bootstrap
) -> dict[tuple[str, str], Float64[np.ndarray, " replicate"]]:
    """All figures of all replicates, by label ("" for all together) and name."""
    parts: dict[tuple[str, str], list[Replicates]] = {}
    for weights in resampling.draw_patients(predictions, bootstrap):
        weighted = resampling.weigh(predictions, weights)
        for name, measure in resampling.OVERALL.items():
            parts.setdefault(("", name), []).append(measure(weighted))
        for index, label in enumerate(predictions.labels):
            for name, measure_class in resampling.PER_CLASS.items():
                parts.setdefault((label, name), []).append(measure_class(weighted, index))
    return {key: np.concatenate(values) for key, values in parts.items()}


def _with_wilson(value: Value, level: float, replicates: Replicates | None) -> Estimate:
    """Wilson's interval, widened to the bootstrap's when that is given."""
    if value.value is None or value.hits is None or value.total is None:
        return Estimate(value.value, note=value.note, hits=value.hits, total=value.total)
    low, high = wilson(value.hits, value.total, level)
    method = WILSON
    if replicates is not None:
        lowest, highest, _ = percentile_interval(replicates, level)
        low = low if lowest is None else min(low, lowest)
        high = high if highest is None else max(high, highest)
        method = WIDENED
    return Estimate(value.value, low, high, method, value.note, value.hits, value.total)


def _with_bootstrap(
    value: Value, level: float, replicates: Replicates | None, why_not: str
) -> Estimate:
    """The percentile interval of the replicates."""
    if value.value is None:
        return Estimate(None, note=value.note)
    if replicates is None:
        return Estimate(value.value, note=_join(value.note, why_not))
    low, high, note = percentile_interval(replicates, level)
    method = PATIENTS if low is not None else ""
    return Estimate(value.value, low, high, method, _join(value.note, note))


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)

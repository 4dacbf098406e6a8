"""Figures of several findings per scan: each finding by itself, and their means.

Each finding is judged as two classes, without it and with it, on the scans of which it is known;
what is there for classes does the arithmetic. Patients are drawn for all findings at once, so that
the intervals of the means know that findings of one patient go together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from jaxtyping import Float64

from chestct.card import FindingThreshold
from chestct.evaluation import intervals, metrics
from chestct.evaluation.intervals import (
    Bootstrap,
    Estimate,
    Figures,
    Replicates,
    Weighted,
    Weights,
    divide,
    mean_known,
    weigh,
    with_interval,
)
from chestct.evaluation.metrics import Value
from chestct.evaluation.predictions import FindingPredictions, Predictions

_PRESENT: Final = 1
"""Index of the class that has the finding, of two."""
_MEANS: Final = ("auc", "auprc", "sensitivity", "specificity", "f1")
"""Figures of each finding whose mean is told."""
_MACRO: Final = "macro_"
_OF_PAIRS: Final = ("log_loss", "expected_calibration_error")
"""Figures of all known pairs of scan and finding together."""
_CHUNK_CELLS: Final = 4_000_000


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
    shares, has = view.probabilities[:, _PRESENT], view.truth == _PRESENT
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
    rule = "Youden's index: sensitivity + specificity largest on the validation part"
    score = found + spared
    if wished_sensitivity is not None:
        rule = f"the highest with a sensitivity of {wished_sensitivity:g} on the validation part"
        score = np.where(found >= wished_sensitivity, spared, -1.0)
    best = len(cuts) - 1 - int(score[::-1].argmax())
    return FindingThreshold(
        threshold=float(cuts[best]),
        rule=rule,
        sensitivity=float(found[best]),
        specificity=float(spared[best]),
        num_present=num_present,
        num_absent=num_absent,
    )


def estimate_findings(
    predictions: FindingPredictions, bootstrap: Bootstrap | None = None
) -> Figures:
    """Compute every figure with its interval: of each finding, their means, and of all together.

    A scan of which a finding is not known counts nowhere in that finding's figures.

    Args:
        predictions: Of one classifier.
        bootstrap: How often patients are drawn; unlike those of classes, all of them alike.
    """
    settings = bootstrap or Bootstrap()
    views = {label: predictions.of(index) for index, label in enumerate(predictions.labels)}
    values = {label: _values(view) for label, view in views.items()}
    overall = overall_of(predictions)
    draws = _replicates(predictions, views, settings)
    widens = predictions.num_patients < len(predictions)

    def finish(value: Value, key: tuple[str, str]) -> Estimate:
        """Give a figure the interval of its kind."""
        return with_interval(value, draws.get(key), settings.level, widens=widens)

    per_finding = {
        label: {name: finish(value, (label, name)) for name, value in each.items()}
        for label, each in values.items()
    }
    return Figures({name: finish(each, ("", name)) for name, each in overall.items()}, per_finding)


def overall_of(predictions: FindingPredictions) -> dict[str, Value]:
    """The figures of all findings together, without intervals."""
    each = [_values(predictions.of(index)) for index in range(len(predictions.labels))]
    means = {_MACRO + name: _mean([values[name] for values in each]) for name in _MEANS}
    pairs = predictions.pairs()
    return means | {name: metrics.OVERALL[name](pairs) for name in _OF_PAIRS}


def _values(view: Predictions) -> dict[str, Value]:
    """Every figure of one finding."""
    return {**metrics.per_class(view, _PRESENT), "auprc": _auprc(view)}


def _auprc(view: Predictions) -> Value:
    """Area under the precision-recall curve, as average precision; chance is the share with it."""
    from sklearn.metrics import average_precision_score

    has = view.truth == _PRESENT
    if not has.any():
        return Value(None, f"no scan is {view.labels[_PRESENT]}")
    return Value(float(average_precision_score(has, view.probabilities[:, _PRESENT])))


def _weighted_auprc(weighted: Weighted, index: int) -> Replicates:
    """The same under every weighting: precision at each probability, by the recall it adds."""
    scores = -weighted.predictions.probabilities[:, index]
    order = np.argsort(scores, kind="stable")
    if order.size == 0:
        return np.full(len(weighted.weights), np.nan)
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    has = (weighted.predictions.truth == index)[order]
    ranked = weighted.weights[:, order]
    hits = np.add.reduceat(ranked * has, starts, axis=1)
    called = np.cumsum(np.add.reduceat(ranked, starts, axis=1), axis=1)
    precision = np.nan_to_num(divide(np.cumsum(hits, axis=1), called))
    return divide((hits * precision).sum(axis=1), hits.sum(axis=1))


_REPLICATED: Final[dict[str, Callable[[Weighted, int], Replicates]]] = {
    **intervals.PER_CLASS,
    "auprc": _weighted_auprc,
}


def _replicates(
    predictions: FindingPredictions, views: dict[str, Predictions], bootstrap: Bootstrap
) -> dict[tuple[str, str], Replicates]:
    """All figures of all replicates, by finding ("" for all together) and name."""
    parts: dict[tuple[str, str], list[Replicates]] = {}
    pairs, is_known = predictions.pairs(), predictions.is_known
    scan_of_pair = np.nonzero(is_known)[0]
    for weights in _draw_patients(predictions, bootstrap):
        drawn: dict[str, list[Replicates]] = {}
        for index, (label, view) in enumerate(views.items()):
            weighted = weigh(view, weights[:, is_known[:, index]])
            for name, measure in _REPLICATED.items():
                found = measure(weighted, _PRESENT)
                parts.setdefault((label, name), []).append(found)
                drawn.setdefault(name, []).append(found)
        for name in _MEANS:
            parts.setdefault(("", _MACRO + name), []).append(
                mean_known(np.stack(drawn[name], axis=1))
            )
        of_pairs = weigh(pairs, weights[:, scan_of_pair])
        for name in _OF_PAIRS:
            parts.setdefault(("", name), []).append(intervals.OVERALL[name](of_pairs))
    return {key: np.concatenate(each) for key, each in parts.items()}


def _draw_patients(predictions: FindingPredictions, bootstrap: Bootstrap) -> Iterator[Weights]:
    """Draw patients with replacement, with all their scans; yields replicates in parts."""
    rng = np.random.default_rng(bootstrap.seed)
    names, patient_of_scan = np.unique(np.array(predictions.patients, str), return_inverse=True)
    shares: Float64[np.ndarray, " patient"] = np.full(names.size, 1 / names.size)
    rows = max(1, _CHUNK_CELLS // int(predictions.is_known.sum()))
    for start in range(0, bootstrap.replicates, rows):
        num = min(rows, bootstrap.replicates - start)
        yield rng.multinomial(names.size, shares, size=num)[:, patient_of_scan].astype(np.float64)


def _mean(values: list[Value]) -> Value:
    """Mean of the findings that have a figure."""
    known = [each.value for each in values if each.value is not None]
    if not known:
        return Value(None, "no finding has it")
    note = f"mean over the {len(known)} of {len(values)} findings that have it"
    return Value(float(np.mean(known)), "" if len(known) == len(values) else note)

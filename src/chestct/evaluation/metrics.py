"""Figures of one classifier on labelled scans, under any weighting of the scans.

Every figure is written once, for many weightings at a time, as the bootstrap draws them. A figure
of the scans as they are is that of the weighting in which each counts once.
Sensitivity, specificity and positive predictive value are three different things here, each from
its own counts: the RoI-aware 3D ResNet paper prints the third under the name of the second.
A figure that the scans cannot give (no case of a class, no scan at all) is None with a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float64, Int, Int64

from chestct.evaluation.predictions import AnyPredictions, FindingPredictions, Predictions

Weights = Float64[np.ndarray, "replicate scan"]
Replicates = Float64[np.ndarray, " replicate"]
Key = tuple[str, str]
"""A class or finding, or "" for all of them together, and the name of a figure."""
NUM_BINS: Final = 10
"""Equal bins of confidence for the calibration error; 10 rather than 15 as test sets are small."""

Confusion = Int64[np.ndarray, "true predicted"]
"""Number of scans; rows are true labels, columns decisions."""


@dataclass(frozen=True)
class Estimate:
    """A figure, with its interval where it has got one; None with a reason where there is none.

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

    @property
    def words(self) -> str:
        """The figure and its interval, such as 0.900 (0.812 to 0.951)."""
        if self.value is None or self.low is None or self.high is None:
            return "none" if self.value is None else f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class ClassCounts:
    """One class against all others: true and false positives and negatives."""

    tp: int
    fn: int
    fp: int
    tn: int

    @classmethod
    def of(cls, confusion: Confusion, index: int) -> ClassCounts:
        """Counts of one class."""
        tp = int(confusion[index, index])
        fn = int(confusion[index].sum()) - tp
        fp = int(confusion[:, index].sum()) - tp
        return cls(tp=tp, fn=fn, fp=fp, tn=int(confusion.sum()) - tp - fn - fp)

    def figures(self, label: str) -> dict[str, Estimate]:
        """What follows from them of a class of that name.

        Sensitivity (recall) is the share of the scans of the class that were called so, specificity
        that of the other scans that were not. PPV (precision) is the share of those called so that
        are of the class, NPV that of those not called so that are not. F1 is the harmonic mean of
        sensitivity and PPV.
        """
        tp, fn, fp, tn = self.tp, self.fn, self.fp, self.tn
        is_none = f"no scan is {label}"
        f1 = Estimate(2 * tp / (2 * tp + fp + fn)) if tp + fn else Estimate(None, note=is_none)
        return {
            "sensitivity": proportion(tp, tp + fn, is_none),
            "specificity": proportion(tn, tn + fp, f"no scan is other than {label}"),
            "ppv": proportion(tp, tp + fp, f"no scan was called {label}"),
            "npv": proportion(tn, tn + fn, f"every scan was called {label}"),
            "f1": f1,
        }

    @property
    def accuracy(self) -> Estimate:
        """Two-class accuracy of the class against the rest, Equation 12 of the RoI-aware paper."""
        total = self.tp + self.fn + self.fp + self.tn
        return proportion(self.tp + self.tn, total, "no scans")


def confusion_matrix(
    truth: Int[np.ndarray, " scan"], decisions: Int[np.ndarray, " scan"], num_classes: int
) -> Confusion:
    """Count scans by true label (rows) and decision (columns)."""
    cells = np.bincount(truth * num_classes + decisions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def proportion(hits: int, total: int, why_none: str) -> Estimate:
    """Hits over total, None with the given reason when the total is zero."""
    if total == 0:
        return Estimate(None, note=why_none, hits=hits, total=total)
    return Estimate(hits / total, hits=hits, total=total)


@dataclass(frozen=True, eq=False)
class Weighted:
    """Predictions under many weightings: how often each scan counts, and so each confusion."""

    predictions: Predictions
    weights: Weights
    confusion: Float64[np.ndarray, "replicate true predicted"]


def weigh(predictions: Predictions, weights: Weights) -> Weighted:
    """Count the confusions under every weighting."""
    num = len(predictions.labels)
    cells = np.eye(num * num)[predictions.truth * num + predictions.decisions]
    return Weighted(predictions, weights, (weights @ cells).reshape(len(weights), num, num))


def _each_once(predictions: Predictions) -> Weighted:
    """The scans as they are: one weighting, under which each counts once."""
    return weigh(predictions, np.ones((1, len(predictions))))


def _balanced_accuracy(weighted: Weighted) -> Replicates:
    """Mean sensitivity of the classes that have weight."""
    hits = np.diagonal(weighted.confusion, axis1=1, axis2=2)
    return _mean_known(_divide(hits, weighted.confusion.sum(axis=2)))


def _macro_f1(weighted: Weighted) -> Replicates:
    """Mean F1 of the classes that have weight."""
    hits = np.diagonal(weighted.confusion, axis1=1, axis2=2)
    cases = weighted.confusion.sum(axis=2)
    scores = _divide(2 * hits, cases + weighted.confusion.sum(axis=1))
    return _mean_known(np.where(cases > 0, scores, np.nan))


def _macro_auc(weighted: Weighted) -> Replicates:
    """Mean of the one-vs-rest areas of the classes that have one."""
    num = len(weighted.predictions.labels)
    return _mean_known(np.stack([_auc(weighted, index) for index in range(num)], axis=1))


def _accuracy(weighted: Weighted) -> Replicates:
    """Trace over total."""
    return _divide(np.trace(weighted.confusion, axis1=1, axis2=2), _total(weighted))


def _kappa(confusion: Float64[np.ndarray, "replicate first second"]) -> Replicates:
    """Cohen's kappa of two lists of labels."""
    total = np.asarray(confusion.sum(axis=(1, 2)))
    chance = _divide((confusion.sum(axis=2) * confusion.sum(axis=1)).sum(axis=1), total**2)
    agreed = _divide(np.trace(confusion, axis1=1, axis2=2), total)
    return _divide(agreed - chance, 1 - chance)


def _brier(weighted: Weighted) -> Replicates:
    """Squared errors summed over classes."""
    predictions = weighted.predictions
    wanted = np.eye(len(predictions.labels))[predictions.truth]
    errors = ((predictions.probabilities - wanted) ** 2).sum(axis=1)
    return _divide(weighted.weights @ errors, _total(weighted))


def _log_loss(weighted: Weighted) -> Replicates:
    """Mean negative logarithm of the true label's probability."""
    predictions = weighted.predictions
    given = predictions.probabilities[np.arange(len(predictions)), predictions.truth]
    tiny = np.finfo(np.float64).eps
    losses = -np.log(np.clip(given, tiny, 1 - tiny))
    return _divide(weighted.weights @ losses, _total(weighted))


def _expected_calibration_error(weighted: Weighted) -> Replicates:
    """Weighted mean gap between confidence and accuracy over bins."""
    predictions = weighted.predictions
    gaps = predictions.confidences - predictions.is_right
    sums = weighted.weights @ (gaps[:, None] * bin_members(predictions.confidences))
    return _divide(np.abs(sums).sum(axis=1), _total(weighted))


def _weighted_per_class(weighted: Weighted, index: int) -> dict[str, Replicates]:
    """Every figure of one class against the rest; the same names as `per_class` gives."""
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


def _auc(weighted: Weighted, index: int) -> Replicates:
    """One-vs-rest area: pairs in the right order, ties half, over all pairs, by weight."""
    scores = weighted.predictions.probabilities[:, index]
    positives, negatives = _by_score(weighted, scores, index)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return _divide((positives * below).sum(axis=1), pairs)


def _by_score(
    weighted: Weighted, scores: Float64[np.ndarray, " scan"], index: int
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


def _total(weighted: Weighted) -> Replicates:
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


def bin_members(
    confidences: Float64[np.ndarray, " scan"], num_bins: int = NUM_BINS
) -> Float64[np.ndarray, "scan bin"]:
    """One where a confidence lies in a bin (low, high], zero elsewhere."""
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, num_bins - 1)
    return np.eye(num_bins)[bins]


OVERALL: Final[dict[str, Callable[[Weighted], Replicates]]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "macro_auc": _macro_auc,
    "kappa": lambda weighted: _kappa(weighted.confusion),
    "brier": _brier,
    "log_loss": _log_loss,
    "expected_calibration_error": _expected_calibration_error,
}
"""Figures of all scans together, under every weighting."""


def measure(predictions: Predictions, name: str) -> Estimate:
    """A figure of all scans together, by its name in `OVERALL`."""
    if name == "accuracy":
        return proportion(int(predictions.is_right.sum()), len(predictions), "no scans")
    value = float(OVERALL[name](_each_once(predictions))[0])
    if np.isnan(value):
        return Estimate(None, note=_WHY_NONE.get(name, "") if len(predictions) else "no scans")
    num_present = int(np.count_nonzero(predictions.cases))
    is_mean = name in ("balanced_accuracy", "macro_f1", "macro_auc")
    note = _over(num_present, len(predictions.labels), "classes") if is_mean else ""
    return Estimate(value, note=note)


_ONE_LABEL: Final = "both name one and the same label throughout"
_WHY_NONE: Final = {"macro_auc": "all scans have one true label", "kappa": _ONE_LABEL}
"""Why scans can lack a figure."""


def kappa(
    first: Int[np.ndarray, " scan"], second: Int[np.ndarray, " scan"], num_classes: int
) -> Estimate:
    """Cohen's kappa of two lists of labels: agreement beyond chance."""
    value = float(_kappa(confusion_matrix(first, second, num_classes)[None].astype(float))[0])
    if np.isnan(value):
        return Estimate(None, note=_ONE_LABEL if first.size else "no scans")
    return Estimate(value)


def auc(predictions: Predictions, index: int) -> Estimate:
    """Area under the ROC curve of one class against the rest; ties count half."""
    label, num_cases = predictions.labels[index], predictions.cases[index]
    if num_cases == 0:
        return Estimate(None, note=f"no scan is {label}")
    if num_cases == len(predictions):
        return Estimate(None, note=f"no scan is other than {label}")
    return Estimate(float(_auc(_each_once(predictions), index)[0]))


def per_class(predictions: Predictions, index: int) -> dict[str, Estimate]:
    """Every figure of one class against the rest."""
    confusion = confusion_matrix(predictions.truth, predictions.decisions, len(predictions.labels))
    counts = ClassCounts.of(confusion, index)
    label = predictions.labels[index]
    figures = {**counts.figures(label), "auc": auc(predictions, index)}
    if len(predictions) == 0:
        return {name: replace(figure, note="no scans") for name, figure in figures.items()}
    return figures


def _over(num: int, num_all: int, kind: str) -> str:
    return "" if num == num_all else f"mean over the {num} of {num_all} {kind} that have it"


_PRESENT: Final = 1
"""Index of the class that has a finding, of the two of `FindingPredictions.of`."""
_MACRO: Final = "macro_"
"""Stands before the figures that are means over findings."""
_MEANS: Final = ("auc", "auprc", "sensitivity", "specificity", "f1")
"""Figures of each finding whose mean is told."""
_OF_PAIRS: Final = ("log_loss", "expected_calibration_error")
"""Names in `OVERALL` of figures that all known pairs of scan and finding give together."""


def _per_finding(view: Predictions) -> dict[str, Estimate]:
    """Every figure of one finding."""
    return {**per_class(view, _PRESENT), "auprc": _auprc(view)}


def overall_of(predictions: FindingPredictions) -> dict[str, Estimate]:
    """The figures of all findings together, without intervals."""
    each = [_per_finding(predictions.of(index)) for index in range(len(predictions.labels))]
    means = {_MACRO + name: _mean([values[name] for values in each]) for name in _MEANS}
    pairs = predictions.pairs()
    return means | {name: measure(pairs, name) for name in _OF_PAIRS}


def _auprc(view: Predictions) -> Estimate:
    """Area under the precision-recall curve, as average precision; chance is the share with it."""
    if not view.cases[_PRESENT]:
        return Estimate(None, note=f"no scan is {view.labels[_PRESENT]}")
    return Estimate(float(_weighted_auprc(_each_once(view))[0]))


def _mean(values: list[Estimate]) -> Estimate:
    """Mean of the findings that have a figure; None with the reason where none has."""
    known = [each.value for each in values if each.value is not None]
    if not known:
        return Estimate(None, note="no finding has it")
    return Estimate(float(np.mean(known)), note=_over(len(known), len(values), "findings"))


def _weighted_per_finding(weighted: Weighted) -> dict[str, Replicates]:
    """Every figure of one finding; the same names as `_per_finding` gives."""
    return {**_weighted_per_class(weighted, _PRESENT), "auprc": _weighted_auprc(weighted)}


def _weighted_auprc(weighted: Weighted) -> Replicates:
    """Average precision: that at each probability, by the recall it adds."""
    hits, misses = _by_score(weighted, -weighted.predictions.probabilities[:, _PRESENT], _PRESENT)
    called = np.cumsum(hits + misses, axis=1)
    precision = np.nan_to_num(_divide(np.cumsum(hits, axis=1), called))
    return _divide((hits * precision).sum(axis=1), hits.sum(axis=1))


def every_figure(predictions: AnyPredictions) -> dict[Key, Estimate]:
    """Every figure of the scans as they are."""
    labels = enumerate(predictions.labels)
    if isinstance(predictions, FindingPredictions):
        overall = overall_of(predictions)
        each = {label: _per_finding(predictions.of(index)) for index, label in labels}
    else:
        overall = {name: measure(predictions, name) for name in OVERALL}
        each = {label: per_class(predictions, index) for index, label in labels}
    return {
        (label, name): v for label, of in {"": overall, **each}.items() for name, v in of.items()
    }


def weighing(predictions: AnyPredictions) -> Callable[[Weights], dict[Key, Replicates]]:
    """What gives every figure under many weightings, by the keys of `every_figure`."""
    if isinstance(predictions, FindingPredictions):
        return _weighing_findings(predictions)

    def figures_under(weights: Weights) -> dict[Key, Replicates]:
        """Those of all classes together, and of each."""
        weighted = weigh(predictions, weights)
        found = {("", name): of_all(weighted) for name, of_all in OVERALL.items()}
        for index, label in enumerate(predictions.labels):
            of_class = _weighted_per_class(weighted, index)
            found |= {(label, name): each for name, each in of_class.items()}
        return found

    return figures_under


def _weighing_findings(
    predictions: FindingPredictions,
) -> Callable[[Weights], dict[Key, Replicates]]:
    pairs, is_known = predictions.pairs(), predictions.is_known
    scan_of_pair = np.nonzero(is_known)[0]
    views = [predictions.of(index) for index in range(len(predictions.labels))]

    def figures_under(weights: Weights) -> dict[Key, Replicates]:
        """Those of all findings together, and of each."""
        each = [
            _weighted_per_finding(weigh(view, weights[:, known]))
            for view, known in zip(views, is_known.T, strict=True)
        ]
        found = {
            ("", _MACRO + name): _mean_known(np.stack([of[name] for of in each], axis=1))
            for name in _MEANS
        }
        of_pairs = weigh(pairs, weights[:, scan_of_pair])
        found |= {("", name): OVERALL[name](of_pairs) for name in _OF_PAIRS}
        for label, of_finding in zip(predictions.labels, each, strict=True):
            found |= {(label, name): values for name, values in of_finding.items()}
        return found

    return figures_under

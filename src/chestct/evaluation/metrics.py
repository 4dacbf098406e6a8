"""Figures of one classifier on labelled scans, without intervals; scikit-learn does the arithmetic.

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

from chestct.evaluation.predictions import FindingPredictions, Predictions

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
    from sklearn.metrics import confusion_matrix as count

    if truth.size == 0:
        return np.zeros((num_classes, num_classes), dtype=np.int64)
    counts: Confusion = count(truth, decisions, labels=range(num_classes)).astype(np.int64)
    return counts


def proportion(hits: int, total: int, why_none: str) -> Estimate:
    """Hits over total, None with the given reason when the total is zero."""
    if total == 0:
        return Estimate(None, note=why_none, hits=hits, total=total)
    return Estimate(hits / total, hits=hits, total=total)


def _accuracy(predictions: Predictions) -> Estimate:
    """The share of scans that got their true label, over all classes."""
    return proportion(int(predictions.is_right.sum()), len(predictions), "no scans")


def auc(predictions: Predictions, index: int) -> Estimate:
    """Area under the ROC curve of one class against the rest; ties count half."""
    from sklearn.metrics import roc_auc_score

    label = predictions.labels[index]
    is_class = predictions.truth == index
    if not is_class.any():
        return Estimate(None, note=f"no scan is {label}")
    if is_class.all():
        return Estimate(None, note=f"no scan is other than {label}")
    return Estimate(float(roc_auc_score(is_class, predictions.probabilities[:, index])))


def _macro_auc(predictions: Predictions) -> Estimate:
    """Mean of the one-vs-rest areas of the classes that have one."""
    areas = [auc(predictions, index) for index in range(len(predictions.labels))]
    why_none = "all scans have one true label" if len(predictions) else "no scans"
    return _mean(areas, "classes", why_none)


def _balanced_accuracy(predictions: Predictions) -> Estimate:
    """Mean sensitivity of the classes that have scans."""
    from sklearn.metrics import recall_score

    return _mean_over_present(predictions, recall_score)


def _macro_f1(predictions: Predictions) -> Estimate:
    """Mean F1 of the classes that have scans."""
    from sklearn.metrics import f1_score

    return _mean_over_present(predictions, f1_score)


def _mean_over_present(predictions: Predictions, score: Callable[..., float]) -> Estimate:
    """The mean of a score of scikit-learn over the classes that have scans."""
    present = [int(index) for index in np.flatnonzero(predictions.cases)]
    if not present:
        return Estimate(None, note="no scans")
    mean = score(
        predictions.truth, predictions.decisions, labels=present, average="macro", zero_division=0
    )
    note = _over(len(present), len(predictions.labels), "classes")
    return Estimate(float(mean), note=note)


def kappa(
    first: Int[np.ndarray, " scan"], second: Int[np.ndarray, " scan"], num_classes: int
) -> Estimate:
    """Cohen's kappa of two lists of labels: agreement beyond chance."""
    from sklearn.metrics import cohen_kappa_score

    named = set(first.tolist()) | set(second.tolist())
    if len(named) < 2:
        why = "both name one and the same label throughout" if named else "no scans"
        return Estimate(None, note=why)
    return Estimate(float(cohen_kappa_score(first, second, labels=range(num_classes))))


def _brier(predictions: Predictions) -> Estimate:
    """Brier's score of 1950: squared errors summed over all classes, 0 (best) to 2."""
    from sklearn.metrics import brier_score_loss

    if len(predictions) == 0:
        return Estimate(None, note="no scans")
    score = brier_score_loss(
        predictions.truth,
        predictions.probabilities,
        labels=range(len(predictions.labels)),
        scale_by_half=False,
    )
    return Estimate(float(score))


def _log_loss(predictions: Predictions) -> Estimate:
    """Mean negative logarithm of the true label's probability, in nats, bounded near 36."""
    from sklearn.metrics import log_loss as mean_loss

    if len(predictions) == 0:
        return Estimate(None, note="no scans")
    labels = range(len(predictions.labels))
    return Estimate(float(mean_loss(predictions.truth, predictions.probabilities, labels=labels)))


def _expected_calibration_error(predictions: Predictions) -> Estimate:
    """Mean gap between confidence and accuracy over `NUM_BINS` equal bins (Guo et al. 2017).

    It grows as the scans get fewer, even for a perfectly calibrated classifier.
    """
    if len(predictions) == 0:
        return Estimate(None, note="no scans")
    gaps = (predictions.confidences - predictions.is_right) @ bin_members(predictions.confidences)
    return Estimate(float(np.abs(gaps).sum() / len(predictions)))


def bin_members(
    confidences: Float64[np.ndarray, " scan"], num_bins: int = NUM_BINS
) -> Float64[np.ndarray, "scan bin"]:
    """One where a confidence lies in a bin (low, high], zero elsewhere."""
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, num_bins - 1)
    return np.eye(num_bins)[bins]


OVERALL: Final[dict[str, Callable[[Predictions], Estimate]]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "macro_auc": _macro_auc,
    "kappa": lambda p: kappa(p.truth, p.decisions, len(p.labels)),
    "brier": _brier,
    "log_loss": _log_loss,
    "expected_calibration_error": _expected_calibration_error,
}
"""Figures of all scans together."""


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
MACRO: Final = "macro_"
"""Stands before the figures that are means over findings."""
MEANS: Final = ("auc", "auprc", "sensitivity", "specificity", "f1")
"""Figures of each finding whose mean is told."""
OF_PAIRS: Final = ("log_loss", "expected_calibration_error")
"""Names in `OVERALL` of figures that all known pairs of scan and finding give together."""


def per_finding(view: Predictions) -> dict[str, Estimate]:
    """Every figure of one finding."""
    return {**per_class(view, _PRESENT), "auprc": _auprc(view)}


def overall_of(predictions: FindingPredictions) -> dict[str, Estimate]:
    """The figures of all findings together, without intervals."""
    each = [per_finding(predictions.of(index)) for index in range(len(predictions.labels))]
    means = {
        MACRO + name: _mean([values[name] for values in each], "findings", "no finding has it")
        for name in MEANS
    }
    pairs = predictions.pairs()
    return means | {name: OVERALL[name](pairs) for name in OF_PAIRS}


def _auprc(view: Predictions) -> Estimate:
    """Area under the precision-recall curve, as average precision; chance is the share with it."""
    from sklearn.metrics import average_precision_score

    has = view.truth == _PRESENT
    if not has.any():
        return Estimate(None, note=f"no scan is {view.labels[_PRESENT]}")
    return Estimate(float(average_precision_score(has, view.probabilities[:, _PRESENT])))


def _mean(values: list[Estimate], kind: str, why_none: str) -> Estimate:
    """Mean of the classes or findings that have a figure; None with the reason where none has."""
    known = [each.value for each in values if each.value is not None]
    if not known:
        return Estimate(None, note=why_none)
    return Estimate(float(np.mean(known)), note=_over(len(known), len(values), kind))

"""The figures of one list of decisions against one list of labels, with Wilson's intervals.

Sensitivity, specificity and positive predictive value stand apart here. Printed percentages are
compared as exact fractions rounded half up, as a spreadsheet rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

from chestct.evaluation import metrics
from chestct.evaluation.intervals import Estimate, with_wilson
from chestct.evaluation.metrics import ClassCounts
from chestct.evaluation.predictions import Predictions
from chestct.labels import THREE_CLASSES

Record: TypeAlias = dict[str, Any]
"""A row of the audit as the template and the JSON file have it: plain values and `Estimate`s."""


@dataclass(frozen=True)
class ClassScores:
    """One class against the others.

    Attributes:
        counts: True and false positives and negatives.
        sensitivity: TP / (TP + FN).
        specificity: TN / (TN + FP).
        ppv: TP / (TP + FP), also called precision.
        npv: TN / (TN + FN).
        one_vs_rest_accuracy: (TP + TN) / all, Eq. 12 of the RoI-aware 3D ResNet paper.
        f1: Harmonic mean of sensitivity and PPV; None where it is undefined.
    """

    counts: ClassCounts
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    one_vs_rest_accuracy: Estimate
    f1: float | None


@dataclass(frozen=True)
class Scores:
    """All figures of one list of decisions.

    Attributes:
        confusion: Counts; rows are labels, columns decisions.
        accuracy: Trace over the number of scans.
        kappa: Cohen's kappa of decisions and labels.
        macro_f1: Mean F1 of the classes that have scans.
        classes: By class.
    """

    confusion: tuple[tuple[int, ...], ...]
    accuracy: Estimate
    kappa: float | None
    macro_f1: float | None
    classes: dict[str, ClassScores]


def score(
    truth: Sequence[str], decided: Sequence[str], labels: tuple[str, ...] = THREE_CLASSES
) -> Scores:
    """Compare decisions with labels, one pair per scan."""
    predictions = as_predictions(truth, decided, labels)
    confusion = metrics.confusion_matrix(predictions.truth, predictions.decisions, len(labels))
    return Scores(
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
        accuracy=with_wilson(metrics.OVERALL["accuracy"](predictions)),
        kappa=metrics.OVERALL["kappa"](predictions).value,
        macro_f1=metrics.OVERALL["macro_f1"](predictions).value,
        classes={
            label: score_class(metrics.class_counts(confusion, index), label)
            for index, label in enumerate(labels)
        },
    )


def score_class(counts: ClassCounts, label: str) -> ClassScores:
    """The figures of one class from its counts."""
    values = metrics.of_counts(counts, label)
    values["one_vs_rest_accuracy"] = metrics.one_vs_rest_accuracy(counts)
    f1 = values.pop("f1").value
    shares = {name: with_wilson(value) for name, value in values.items()}
    return ClassScores(counts, f1=f1, **shares)


def as_predictions(
    truth: Sequence[str], decided: Sequence[str], labels: tuple[str, ...]
) -> Predictions:
    """Decisions alone, each taken as certain: the published files hold no probabilities."""
    names = tuple(str(number) for number in range(len(truth)))
    decisions = np.array([labels.index(label) for label in decided], dtype=np.int64)
    expected = np.array([labels.index(label) for label in truth], dtype=np.int64)
    return Predictions(names, names, expected, np.eye(len(labels))[decisions], labels)


def rounded(value: Fraction | float, digits: int = 1) -> float:
    """Round half up; exact for fractions."""
    exact = Fraction(value)
    decimal = Decimal(exact.numerator) / Decimal(exact.denominator)
    return float(decimal.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def percent_of(estimate: Estimate, digits: int = 1) -> float | None:
    """A proportion in per cent, rounded half up from its counts; None where it has no cases."""
    if estimate.hits is None or not estimate.total:
        return None
    return rounded(Fraction(100 * estimate.hits, estimate.total), digits)


def counts_behind(percent: float, total: int, digits: int = 1) -> tuple[int, ...]:
    """Every number of hits in `total` that is printed as this percentage."""
    return tuple(
        hits for hits in range(total + 1) if rounded(Fraction(100 * hits, total), digits) == percent
    )


def nearest_count(percent: float, total: int) -> int:
    """The number of hits nearest to a printed percentage."""
    return int(rounded(Fraction(str(percent)) * total / 100, 0))

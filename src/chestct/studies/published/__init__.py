"""What the two papers and their public repositories say, and how their figures follow from counts.

`roi_aware_paper.json` and `maseres_paper.json` hold tables and counts, `roi_aware_predictions.csv`
the 18 published prediction vectors of the RoI-aware 3D ResNet paper, and
`roi_aware_workbook_labels.csv` the labels that its workbooks give differently from its label files.
Each JSON names its source. Sensitivity, specificity and positive predictive value stand apart in
`Scores`. Printed percentages are compared as exact fractions rounded half up, as a spreadsheet
rounds.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from functools import cache
from importlib.resources import files
from typing import Any, Final, TypeAlias

import numpy as np
from pydantic import TypeAdapter

from chestct.evaluation import metrics
from chestct.evaluation.intervals import with_wilson
from chestct.evaluation.metrics import ClassCounts, Estimate
from chestct.evaluation.predictions import Predictions
from chestct.labels import THREE_CLASSES

Record: TypeAlias = dict[str, Any]
"""A row of the audit as the template and the JSON file have it: plain values and `Estimate`s."""

_LABELS: Final = {label.lower(): label for label in THREE_CLASSES}


@dataclass(frozen=True)
class TableRow:
    """A row of Table 6 or 7 of the RoI-aware 3D ResNet paper, in per cent as printed.

    Attributes:
        row: Its number, 1 to 18.
        network: "ResNet-18", "ResNet-50" or "ResNet-101".
        roi: Whether the network is the RoI-aware one.
        t: Threshold of the salient slices in per cent.
        accuracy: Column AC.
        sensitivity: Columns SEN, in the order of `THREE_CLASSES`.
        spe: Columns SPE, in the same order.
    """

    row: int
    network: str
    roi: bool
    t: int
    accuracy: float
    sensitivity: tuple[float, ...]
    spe: tuple[float, ...]

    @property
    def figures(self) -> tuple[float, ...]:
        """All seven figures: accuracy, sensitivities, SPE."""
        return (self.accuracy, *self.sensitivity, *self.spe)


@dataclass(frozen=True)
class Method:
    """Accuracy and sensitivities of a method, in per cent as printed (Table 8, the abstract)."""

    name: str
    accuracy: float
    sensitivity: tuple[float, ...]


@dataclass(frozen=True)
class RoiFacts:
    """What the RoI-aware 3D ResNet paper and its repository say.

    Attributes:
        citation: Authors, journal, DOI.
        cross_validation_cases: Training cases, in the order of `THREE_CLASSES`.
        tests: Cases of the four test parts, in the same order.
        abstract: The headline.
        table_6: Five-fold cross-validation.
        table_7: The test set.
        table_8: The paper's method and six others.
        studies: Names of the 130 test studies, such as "T1-001".
        official: Label of each study in the repository's label files.
        predicted: What each row of Table 7 predicted, by row.
        workbook_labels: Labels that a row's workbook gives differently: row, study, (line, label).
    """

    citation: str
    cross_validation_cases: tuple[int, ...]
    tests: dict[str, tuple[int, ...]]
    abstract: Method
    table_6: tuple[TableRow, ...]
    table_7: tuple[TableRow, ...]
    table_8: tuple[Method, ...]
    studies: tuple[str, ...]
    official: tuple[str, ...]
    predicted: dict[int, tuple[str, ...]]
    workbook_labels: dict[int, dict[str, tuple[int, str]]]


@dataclass(frozen=True)
class TestedModel:
    """Test result of a model of the MASERes paper; normal is the positive class.

    A false positive is a missed COVID-19 case. `auc` is as the notebook printed it; None where none
    is known.
    """

    name: str
    counts: ClassCounts
    auc: float | None


@dataclass(frozen=True)
class MaseresFacts:
    """What the MASERes paper and its notebooks say.

    Attributes:
        citation: Authors, journal, DOI.
        patient_models: The three 3D networks on 21 patients.
        slice_models: The six transfer networks on 966 slices.
        damaged_models: The damaged models I to V on 21 patients.
        table_5: Published p-values: other model, figure, p.
        kappa: Published kappa of MASERes with each other model.
        table_6: Published results on COVID-CTset, per cent.
        table_6_cases: COVID-19 and normal patients behind them.
        table_7: Damaged models: COVID-19, normal and all right, per cent.
        first_after_shuffle: First five names of each class after the notebooks' shuffle.
    """

    citation: str
    patient_models: tuple[TestedModel, ...]
    slice_models: tuple[TestedModel, ...]
    damaged_models: tuple[TestedModel, ...]
    table_5: dict[str, dict[str, float]]
    kappa: dict[str, float]
    table_6: dict[str, float]
    table_6_cases: tuple[int, int]
    table_7: dict[str, dict[str, float]]
    first_after_shuffle: dict[str, tuple[str, ...]]


@cache
def roi_facts() -> RoiFacts:
    """The packaged facts of the RoI-aware 3D ResNet paper."""
    lines = _read_csv("roi_aware_predictions.csv")
    rows = (name for name in lines[0] if name.startswith("row_"))
    changed: dict[int, dict[str, tuple[int, str]]] = {}
    for line in _read_csv("roi_aware_workbook_labels.csv"):
        place = int(line["workbook_row"]), _LABELS[line["workbook_label"]]
        changed.setdefault(int(line["row"]), {})[line["study"]] = place
    known = json.loads(_text("roi_aware_paper.json")) | {
        "studies": [line["study"] for line in lines],
        "official": [_LABELS[line["official"]] for line in lines],
        "predicted": {
            int(row.removeprefix("row_")): [_LABELS[line[row]] for line in lines] for row in rows
        },
        "workbook_labels": changed,
    }
    return TypeAdapter(RoiFacts).validate_python(known)


@cache
def maseres_facts() -> MaseresFacts:
    """The packaged facts of the MASERes paper."""
    return TypeAdapter(MaseresFacts).validate_json(_text("maseres_paper.json"))


def _read_csv(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(_text(name).splitlines()))


def _text(name: str) -> str:
    return files("chestct.studies.published").joinpath(name).read_text(encoding="utf-8")


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

    @classmethod
    def of(cls, counts: ClassCounts, label: str) -> ClassScores:
        """The figures of one class from its counts."""
        values = counts.figures(label)
        values["one_vs_rest_accuracy"] = counts.accuracy
        f1 = values.pop("f1").value
        shares = {name: with_wilson(value) for name, value in values.items()}
        return cls(counts, f1=f1, **shares)


@dataclass(frozen=True)
class Scores:
    """All figures of one list of decisions; rows of `confusion` are labels, columns decisions.

    `macro_f1` is the mean F1 of the classes that have scans.
    """

    confusion: tuple[tuple[int, ...], ...]
    accuracy: Estimate
    kappa: float | None
    macro_f1: float | None
    classes: dict[str, ClassScores]

    @classmethod
    def of(cls, truth: Sequence[str], decided: Sequence[str]) -> Scores:
        """Compare decisions with labels, one pair per scan."""
        predictions = as_predictions(truth, decided, THREE_CLASSES)
        confusion = metrics.confusion_matrix(predictions.truth, predictions.decisions, 3)
        return cls(
            confusion=tuple(tuple(int(n) for n in row) for row in confusion),
            accuracy=with_wilson(metrics.measure(predictions, "accuracy")),
            kappa=metrics.measure(predictions, "kappa").value,
            macro_f1=metrics.measure(predictions, "macro_f1").value,
            classes={
                label: ClassScores.of(ClassCounts.of(confusion, index), label)
                for index, label in enumerate(THREE_CLASSES)
            },
        )


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


def counts_behind(percent: float, total: int) -> tuple[int, ...]:
    """Every number of hits in `total` that is printed as this percentage, with one digit."""
    return tuple(h for h in range(total + 1) if rounded(Fraction(100 * h, total)) == percent)


def nearest_count(percent: float, total: int) -> int:
    """The number of hits nearest to a printed percentage."""
    return int(rounded(Fraction(str(percent)) * total / 100, 0))

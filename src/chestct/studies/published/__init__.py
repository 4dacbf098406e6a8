"""What the two papers and their public repositories say, packaged as plain facts.

`roi_aware_paper.json` and `maseres_paper.json` hold tables and counts, `roi_aware_predictions.csv`
the 18 published prediction vectors of the RoI-aware 3D ResNet paper, and
`roi_aware_workbook_labels.csv` the labels that its workbooks give differently from its label files.
Each JSON names its source. Here they are read into types; nothing is computed.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

from chestct.evaluation.metrics import ClassCounts
from chestct.labels import COVID19, NORMAL, THREE_CLASSES

_NUM_ROWS: Final = 18
"""Rows of Tables 6 and 7: three networks, plain and RoI-aware, three values of t."""
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

    Attributes:
        name: As in the paper.
        counts: Normal against COVID-19; a false positive is a missed COVID-19 case.
        auc: As the notebook printed it; None where none is known.
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
    known = _read_json("roi_aware_paper.json")
    lines = _read_csv("roi_aware_predictions.csv")
    abstract = known["abstract"]
    return RoiFacts(
        citation=known["source"]["citation"],
        cross_validation_cases=tuple(known["cross_validation_cases"]),
        tests={name: tuple(cases) for name, cases in known["tests"].items()},
        abstract=Method("Abstract", abstract["accuracy"], tuple(abstract["sensitivity"])),
        table_6=tuple(_table_row(row) for row in known["table_6"]),
        table_7=tuple(_table_row(row) for row in known["table_7"]),
        table_8=tuple(
            Method(row["method"], row["accuracy"], tuple(row["sensitivity"]))
            for row in known["table_8"]
        ),
        studies=tuple(line["study"] for line in lines),
        official=tuple(_LABELS[line["official"]] for line in lines),
        predicted={
            row: tuple(_LABELS[line[f"row_{row}"]] for line in lines)
            for row in range(1, _NUM_ROWS + 1)
        },
        workbook_labels=_workbook_labels(),
    )


@cache
def maseres_facts() -> MaseresFacts:
    """The packaged facts of the MASERes paper."""
    known = _read_json("maseres_paper.json")
    ctset = dict(known["table_6"])
    cases = ctset.pop("cases")
    shuffled = known["split"]["first_after_shuffle"]
    return MaseresFacts(
        citation=known["source"]["citation"],
        patient_models=_models(known["patient_models"]),
        slice_models=_models(known["slice_models"]),
        damaged_models=_models(known["damaged_models"]),
        table_5=known["table_5"],
        kappa=known["kappa"],
        table_6=ctset,
        table_6_cases=(cases[0], cases[1]),
        table_7=known["table_7"],
        first_after_shuffle={label: tuple(shuffled[label]) for label in (COVID19, NORMAL)},
    )


def _workbook_labels() -> dict[int, dict[str, tuple[int, str]]]:
    labels: dict[int, dict[str, tuple[int, str]]] = {}
    for line in _read_csv("roi_aware_workbook_labels.csv"):
        place = int(line["workbook_row"]), _LABELS[line["workbook_label"]]
        labels.setdefault(int(line["row"]), {})[line["study"]] = place
    return labels


def _table_row(known: dict[str, Any]) -> TableRow:
    of_classes = {name: tuple(known[name]) for name in ("sensitivity", "spe")}
    return TableRow(**{**known, **of_classes})


def _models(known: dict[str, dict[str, Any]]) -> tuple[TestedModel, ...]:
    return tuple(
        TestedModel(name, ClassCounts(**{k: v for k, v in each.items() if k != "auc"}), each["auc"])
        for name, each in known.items()
    )


def _read_json(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_text(name))
    return found


def _read_csv(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(_text(name).splitlines()))


def _text(name: str) -> str:
    return files("chestct.studies.published").joinpath(name).read_text(encoding="utf-8")

"""The published predictions of the RoI-aware 3D ResNet paper score what the audit says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from chestct.evaluation import metrics
from chestct.evaluation.comparisons import compare
from chestct.evaluation.intervals import wilson
from chestct.evaluation.metrics import ClassCounts, confusion_matrix
from chestct.evaluation.predictions import Predictions

LABELS = ("cap", "covid-19", "normal")
CONFUSION = "confusion_rows_true_cols_pred_order_cap_covid_normal"


@pytest.fixture(scope="module")
def reference(data_folder: Path) -> Path:
    folder = data_folder.parent / "reference"
    if not (folder / "spgc_recomputed.json").is_file():
        pytest.skip("no audit beside the real scans: put it at ../shared/reference")
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))


def percent(value: float | None) -> float:
    assert value is not None
    return round(100 * value, 2)


def percents(hits: int | None, total: int | None) -> list[float]:
    assert hits is not None
    assert total is not None
    return [round(100 * end, 2) for end in wilson(hits, total)]


def fraction(value: float | None) -> float:
    assert value is not None
    return round(value, 4)


def as_predictions(truth: np.ndarray, decisions: np.ndarray) -> Predictions:
    """The published files hold decisions alone: each is taken as certain."""
    names = tuple(str(number) for number in range(len(truth)))
    return Predictions(names, names, truth, np.eye(len(LABELS))[decisions], LABELS)


def figures_of_class(confusion: metrics.Confusion, index: int) -> dict[str, object]:
    counts, label = ClassCounts.of(confusion, index), LABELS[index]
    found = counts.figures(label)
    sensitivity, specificity, ppv = (found[each] for each in ("sensitivity", "specificity", "ppv"))
    return {
        "tp": counts.tp,
        "fn": counts.fn,
        "fp": counts.fp,
        "tn": counts.tn,
        "sensitivity_pct": percent(sensitivity.value),
        "specificity_pct": percent(specificity.value),
        "ppv_pct": percent(ppv.value),
        "npv_pct": percent(found["npv"].value),
        "f1": fraction(found["f1"].value),
        "one_vs_rest_accuracy_eq12_pct": percent(counts.accuracy.value),
        "wilson95_pct": {
            "sensitivity": percents(sensitivity.hits, sensitivity.total),
            "specificity": percents(specificity.hits, specificity.total),
            "ppv": percents(ppv.hits, ppv.total),
        },
    }


def figures_of(truth: list[str], predicted: list[str]) -> dict[str, object]:
    expected = np.array([LABELS.index(label) for label in truth])
    decisions = np.array([LABELS.index(label) for label in predicted])
    confusion = confusion_matrix(expected, decisions, len(LABELS))
    whole = as_predictions(expected, decisions)
    accuracy = metrics.measure(whole, "accuracy")
    return {
        CONFUSION: confusion.tolist(),
        "accuracy_pct": percent(accuracy.value),
        "correct": accuracy.hits,
        "kappa": fraction(metrics.kappa(expected, decisions, len(LABELS)).value),
        "accuracy_wilson95_pct": percents(accuracy.hits, accuracy.total),
        "macro_f1": fraction(metrics.measure(whole, "macro_f1").value),
        **{label: figures_of_class(confusion, index) for index, label in enumerate(LABELS)},
    }


def first_three_tests(rows: list[dict[str, str]]) -> dict[str, object]:
    kept = [row for row in rows if not row["study"].startswith("T4")]
    figures = figures_of(
        [row["true_label"] for row in kept], [row["predicted_label"] for row in kept]
    )
    sensitivities = {label: figures[label]["sensitivity_pct"] for label in LABELS}  # type: ignore[index]
    return {
        "n": len(kept),
        "correct": figures["correct"],
        "accuracy_pct": figures["accuracy_pct"],
        "sensitivity_pct": sensitivities,
    }


def test_all_18_published_models_score_to_the_last_digit_what_the_audit_found(
    reference: Path,
) -> None:
    audit = json.loads((reference / "spgc_recomputed.json").read_text())
    predictions = read_rows(reference / "spgc_predictions.csv")
    deviations = read_rows(reference / "spgc_label_deviations.csv")
    assert len(audit["rows"]) == 18
    for number, expected in audit["rows"].items():
        key = (expected["model"], str(expected["roi_aware"]), str(expected["t"]))
        rows = [row for row in predictions if (row["model"], row["roi_aware"], row["t"]) == key]
        workbook = {
            row["study"]: row["workbook_label"] for row in deviations if row["table7_row"] == number
        }
        predicted = [row["predicted_label"] for row in rows]
        official = [row["true_label"] for row in rows]
        sheet = [workbook.get(row["study"], row["true_label"]) for row in rows]
        recomputed = {
            "model": key[0],
            "roi_aware": int(key[1]),
            "t": int(key[2]),
            "labels_deviating_in_workbook": len(workbook),
            "with_official_labels": figures_of(official, predicted),
            "with_sheet_labels": figures_of(sheet, predicted),
            "tests_1_to_3_only_official": first_three_tests(rows),
        }
        published = expected.pop("published_table7_pct")
        assert len(published) == 7
        assert recomputed == expected, f"row {number} of Table 7"


@pytest.mark.parametrize(
    ("t", "points", "p_value"), [(60, 0.0, 1.0), (70, 1.5, 0.82), (80, -0.8, 1.0)]
)
def test_the_roi_layer_changes_the_published_resnet18_as_little_as_the_audit_found(
    reference: Path, t: int, points: float, p_value: float
) -> None:
    rows = read_rows(reference / "spgc_predictions.csv")
    pair = []
    for roi_aware in ("1", "0"):
        kept = [
            row
            for row in rows
            if (row["model"], row["roi_aware"], row["t"]) == ("resnet18", roi_aware, str(t))
        ]
        truth = np.array([LABELS.index(row["true_label"]) for row in kept])
        decisions = np.array([LABELS.index(row["predicted_label"]) for row in kept])
        pair.append(as_predictions(truth, decisions))
    (row,) = compare(pair[0], pair[1], "mcnemar")
    assert row.estimate is not None
    assert row.p_value is not None
    assert round(100 * row.estimate, 1) == points
    assert round(row.p_value, 2) == p_value

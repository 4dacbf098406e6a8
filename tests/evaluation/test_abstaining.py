from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chestct.evaluation.calibration import AbstentionThreshold, AtThreshold, abstention_threshold
from chestct.evaluation.comparisons import COMPARISONS, MASERES_Z_DEFECTS
from chestct.evaluation.intervals import Bootstrap
from chestct.evaluation.predictions import Predictions, PredictionsError
from chestct.evaluation.report import EvaluationSettings, write_evaluation
from chestct.labels import TWO_CLASSES

MakePredictions = Callable[..., Predictions]
BOOTSTRAP = Bootstrap(replicates=20)
# Confidences 0.95, 0.9, 0.8 and 0.6; the second and the last scan are wrong.
FOUR = Predictions(
    tuple("abcd"),
    tuple("abcd"),
    np.array([0, 1, 1, 0]),
    np.array([[0.95, 0.05], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]),
    TWO_CLASSES,
)


def promised(threshold: float | None) -> AbstentionThreshold:
    return AbstentionThreshold(threshold, wished_error=0.05, level=0.95)


@pytest.mark.parametrize(
    ("threshold", "decided", "wrong"), [(0.5, 4, 2), (0.7, 3, 1), (0.9, 2, 1), (0.92, 1, 0)]
)
def test_scans_that_reach_the_threshold_are_decided_on(
    threshold: float, decided: int, wrong: int
) -> None:
    found = AtThreshold.of(FOUR, promised(threshold))
    assert found is not None
    assert (found.coverage.hits, found.coverage.total) == (decided, 4)
    assert (found.error.hits, found.error.total) == (wrong, decided)
    assert found.error.value == wrong / decided
    assert found.error.low is not None
    assert found.error.high is not None
    assert found.error.low <= wrong / decided <= found.error.high


def test_a_threshold_nobody_reaches_has_no_error_rate() -> None:
    found = AtThreshold.of(FOUR, promised(0.99))
    assert found is not None
    assert found.coverage.value == 0
    assert found.error.value is None
    assert found.error.note == "no scan reaches the threshold"


def test_without_a_threshold_there_is_nothing_to_say() -> None:
    assert AtThreshold.of(FOUR, promised(None)) is None
    assert AtThreshold.of(FOUR, None) is None


def test_the_classifier_s_own_threshold_stands_in_record_and_tables(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    chosen = abstention_threshold(make_predictions(600, skill=2.2), 0.1)
    judged = make_predictions(90, seed=3, skill=2.2)
    settings = EvaluationSettings(bootstrap=BOOTSTRAP, formats=(), promised=chosen)
    others = {"other": make_predictions(90, seed=4)}
    summary = write_evaluation(judged, tmp_path / "e", settings=settings, others=others)
    record = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert record["at_threshold"]["threshold"] == chosen.threshold
    assert record["at_threshold"]["wished_error"] == 0.1
    kept = judged.confidences >= (chosen.threshold or 1)
    assert record["at_threshold"]["coverage"]["hits"] == int(kept.sum())
    assert record["others"]["other"]["at_threshold"] is None
    assert summary.others.keys() == {"other"}
    text = (tmp_path / "e" / "tables.md").read_text()
    assert f"own threshold of {chosen.threshold:.4f}, chosen on other scans" in text
    assert "thresholds chosen on these very scans" in text


def test_remarks_join_the_warnings_of_the_classifier_alone(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    settings = EvaluationSettings(bootstrap=BOOTSTRAP, formats=(), remarks=("Made on a Monday.",))
    others = {"other": make_predictions(seed=4)}
    summary = write_evaluation(make_predictions(), tmp_path, settings=settings, others=others)
    assert "Made on a Monday." in summary.warnings
    assert "Made on a Monday." not in summary.others["other"].warnings
    assert "- Made on a Monday." in (tmp_path / "tables.md").read_text()


def test_the_z_test_of_the_maseres_paper_comes_when_asked_for_with_its_defects(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    settings = EvaluationSettings(bootstrap=BOOTSTRAP, formats=(), comparisons=tuple(COMPARISONS))
    others = {"other": make_predictions(seed=4)}
    summary = write_evaluation(make_predictions(), tmp_path, settings=settings, others=others)
    assert {row.test for row in summary.comparisons["other"]} == {*COMPARISONS}
    rows = [*csv.DictReader((tmp_path / "comparisons.csv").read_text().splitlines())]
    notes = [row["note"] for row in rows if row["test"] == "maseres_z"]
    assert len(notes) == 5
    assert all(defect in note for note in notes for defect in MASERES_Z_DEFECTS)


def test_a_classifier_of_other_scans_is_named_with_the_scan_and_the_remedy(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    others = {"elsewhere": make_predictions(91, seed=4)}
    words = r"'elsewhere' cannot be compared with 'classifier'.*'scan0090' \(1 in all\).*the second"
    with pytest.raises(PredictionsError, match=f"(?s){words}.*evaluate both on one manifest"):
        write_evaluation(make_predictions(90), tmp_path / "e", others=others)
    assert not (tmp_path / "e").exists()

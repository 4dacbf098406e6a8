from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chestct.errors import ChestCTError, WriteError
from chestct.evaluation.intervals import Bootstrap
from chestct.evaluation.predictions import (
    Predictions,
    PredictionsError,
    align,
    read_predictions,
    write_predictions,
)
from chestct.evaluation.report import EvaluationSettings, summarise

MakePredictions = Callable[..., Predictions]

GOOD: dict[str, Any] = {
    "scans": ("a", "b"),
    "patients": ("p", "q"),
    "truth": np.array([0, 1]),
    "probabilities": np.array([[0.8, 0.2], [0.4, 0.6]]),
    "labels": ("COVID-19", "normal"),
}


def test_decisions_take_the_first_of_tied_labels() -> None:
    tied = Predictions(**{**GOOD, "probabilities": np.array([[0.5, 0.5], [0.4, 0.6]])})
    assert tied.decisions.tolist() == [0, 1]
    assert tied.confidences.tolist() == [0.5, 0.6]
    assert tied.is_right.all()


def test_arrays_are_copies_that_cannot_be_changed() -> None:
    given = GOOD["probabilities"].copy()
    made = Predictions(**{**GOOD, "probabilities": given})
    given[0] = 0.5
    assert made.probabilities[0, 0] == 0.8
    with pytest.raises(ValueError, match="read-only"):
        made.probabilities[0, 0] = 1


def test_rows_that_add_up_to_nearly_one_are_divided_by_their_sum() -> None:
    rounded = Predictions(**{**GOOD, "probabilities": np.array([[0.8001, 0.2], [0.4, 0.6]])})
    assert rounded.probabilities.sum(axis=1) == pytest.approx([1, 1], abs=1e-15)
    assert rounded.probabilities[1].tolist() == [0.4, 0.6]


def test_float32_probabilities_of_a_network_are_taken() -> None:
    single = Predictions(
        **{**GOOD, "probabilities": np.array([[0.9, 0.1], [0.3, 0.7]], dtype=np.float32)}
    )
    assert single.probabilities.dtype == np.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("normal",)}, "at least two"),
        ({"labels": ("normal", "normal")}, "each once"),
        ({"patients": ("p",)}, "2 scans and 1 patients. Expected one per scan"),
        (
            {"truth": np.array([0]), "probabilities": np.array([[0.8, 0.2]])},
            "2 scans and 1 truth",
        ),
        ({"sites": ("x",)}, "2 scans and 1 sites"),
        ({"scans": ("a", " ")}, "row 2 has no scan name"),
        ({"patients": ("", "q")}, "row 1 has no patient"),
        ({"scans": ("a", "a")}, "'a' stands in rows 1, 2. Each scan counts once"),
        ({"truth": np.array([0, 2])}, r"row 2 \(scan 'b'.*not in 0..1"),
        ({"probabilities": np.array([[0.8, 0.2], [1.4, -0.4]])}, r"row 2.*from 0 to 1"),
        ({"probabilities": np.array([[np.nan, 0.2], [0.4, 0.6]])}, r"row 1.*from 0 to 1"),
        ({"probabilities": np.array([[0.8, 0.2], [0.4, 0.5]])}, r"row 2.*do not add up to 1"),
        ({"probabilities": np.ones((2, 3)) / 3}, r"shape \(2, 3\), expected \(2, 2\)"),
    ],
)
def test_impossible_predictions_are_refused_with_row_and_remedy(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PredictionsError, match=message):
        Predictions(**{**GOOD, **changes})
    assert issubclass(PredictionsError, ChestCTError)


def test_the_second_classifier_is_put_in_the_order_of_the_first(
    make_predictions: MakePredictions,
) -> None:
    first, second = make_predictions(9, seed=1), make_predictions(9, seed=2)
    shuffled = second.choose([4, 0, 8, 2, 1, 3, 7, 6, 5])
    aligned = align(first, shuffled)
    assert aligned.scans == first.scans
    assert np.array_equal(aligned.probabilities, second.probabilities)


def test_classifiers_of_other_scans_labels_or_truth_cannot_be_compared(
    make_predictions: MakePredictions,
) -> None:
    first = make_predictions(6)
    with pytest.raises(PredictionsError, match=r"'scan0005' \(1 in all\) was judged by one"):
        align(first, first.choose(range(5)))
    with pytest.raises(PredictionsError, match="labels"):
        align(first, replace(first, labels=("x", "y", "z")))
    with pytest.raises(PredictionsError, match="'scan0000' is CAP in one file and COVID-19"):
        align(first, replace(first, truth=(first.truth + 1) % 3))


def test_sites_are_told_apart_and_empty_ones_named(make_predictions: MakePredictions) -> None:
    predictions = make_predictions(6, sites=("Teheran", " "))
    assert predictions.sites == ("Teheran", "not given") * 3
    found = summarise(predictions, EvaluationSettings(bootstrap=Bootstrap(5)))
    assert list(found.sites) == ["Teheran", "not given"]
    assert [each.num_scans for each in found.sites.values()] == [3, 3]
    assert found.groups == {}


@pytest.mark.parametrize("sites", [None, ("a, b", 'c "d"')])
def test_predictions_come_back_from_csv_to_the_last_digit(
    make_predictions: MakePredictions, tmp_path: Path, sites: tuple[str, ...] | None
) -> None:
    written = make_predictions(12, sites=sites)
    read = read_predictions(write_predictions(written, tmp_path / "p.csv"))
    assert np.array_equal(read.probabilities, written.probabilities)
    assert read.truth.tolist() == written.truth.tolist()
    for name in ("scans", "patients", "labels", "sites"):
        assert getattr(read, name) == getattr(written, name)
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_a_file_without_scans_comes_back_empty(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    read = read_predictions(write_predictions(make_predictions(0), tmp_path / "p.csv"))
    assert len(read) == 0
    assert read.labels == ("CAP", "COVID-19", "normal")


HEADER = "scan,patient,label,probability_CAP,probability_normal\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan,label,probability_CAP,probability_normal\n", "p.csv has no patient"),
        ("scan,patient,label,probability_CAP\n", "at least two columns probability_LABEL"),
        ("", "has no scan and no patient"),
        (HEADER + "a,p,nrmal,0.5,0.5\n", "row 1 .scan 'a'.*Did you mean 'normal'"),
        (HEADER + "a,p,CAP,0.5,0.5\nb,q,CAP,x,0.5\n", "row 2 .scan 'b'.*probability_CAP is 'x'"),
        (HEADER + "a,p,CAP,0.5\n", "probability_normal is ''"),
        (HEADER + "a,p,CAP,0.5,0.9\n", "p.csv: row 1.*add up to 1"),
    ],
)
def test_a_damaged_file_is_refused_with_file_row_and_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(PredictionsError, match=message):
        read_predictions(path)


def test_a_byte_order_mark_of_a_spreadsheet_is_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("\ufeff" + HEADER + "a,p,CAP,0.75,0.25\n", encoding="utf-8")
    assert read_predictions(path).scans == ("a",)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match="could not be read"):
        read_predictions(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PredictionsError, match="could not be read"):
        read_predictions(tmp_path / "binary.csv")


def test_a_place_that_cannot_be_written_is_said(
    make_predictions: MakePredictions, tmp_path: Path
) -> None:
    (tmp_path / "none").write_text("in the way")
    with pytest.raises(WriteError, match=r"p\.csv cannot be written"):
        write_predictions(make_predictions(3), tmp_path / "none" / "p.csv")

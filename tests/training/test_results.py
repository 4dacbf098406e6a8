from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from chestct.datasets.manifest import Manifest, ManifestRow
from chestct.evaluation.predictions import Predictions
from chestct.training.loop import Outputs
from chestct.training.results import _fold_rows, pool, predictions_of, write_folds

LABELS = ("COVID-19", "normal")


def predictions(names: str, right: list[bool], sites: tuple[str, ...] | None = None) -> Predictions:
    truth = np.arange(len(names)) % 2
    sure = np.where(right, 0.9, 0.2)
    probabilities = np.stack([np.where(truth == 0, sure, 1 - sure)] * 2, axis=1)
    probabilities[:, 1] = 1 - probabilities[:, 0]
    return Predictions(tuple(names), tuple(names), truth, probabilities, LABELS, sites)


def test_logits_become_probabilities_divided_by_the_temperature() -> None:
    rows = tuple(
        ManifestRow("folder", f"p{n}", label, others={"series": f"1.2.{n}"})
        for n, label in enumerate(LABELS)
    )
    logits = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    outputs = Outputs(logits, torch.tensor([0, 1]), torch.zeros(2, 0))
    cold = predictions_of(outputs, Manifest(rows), LABELS)
    warm = predictions_of(outputs, Manifest(rows), LABELS, temperature=2.0)
    assert cold.scans == ("folder 1.2.0", "folder 1.2.1")
    np.testing.assert_allclose(cold.probabilities[0], [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))])
    np.testing.assert_allclose(warm.probabilities[0, 0], 1 / (1 + np.exp(-1)))
    assert cold.sites is None


def test_pooled_folds_keep_every_scan_and_its_site() -> None:
    first = predictions("abcd", [True] * 4, ("east",) * 4)
    pooled = pool([first, predictions("efgh", [False] * 4)])
    assert pooled.scans == tuple("abcdefgh")
    assert pooled.sites == ("east",) * 4 + ("not given",) * 4
    assert int(pooled.is_right.sum()) == 4
    assert pool([predictions("ab", [True, True])]).sites is None


def test_folds_stand_in_one_table_with_mean_and_spread(tmp_path: Path) -> None:
    folds = {
        "fold 1": predictions("abcd", [True, True, True, False]),
        "fold 2": predictions("efgh", [True, False, True, False]),
        "fold 3": predictions("i", [True]),
    }
    header, *rows = _fold_rows(folds)
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert table["fold 1"]["accuracy"] == "0.7500"
    assert table["mean"]["scans"] == "9"
    assert float(table["mean"]["accuracy"]) == pytest.approx(0.75)
    assert float(table["standard deviation"]["accuracy"]) == pytest.approx(0.25)
    # One class only: its area under the curve is not defined and takes no part in the mean.
    assert table["fold 3"]["macro_auc"] == ""
    write_folds(folds, tmp_path)
    assert (tmp_path / "folds.md").read_text().count("\n") == len(rows) + 2


def test_spread_of_a_single_fold_is_left_empty() -> None:
    *_, spread = _fold_rows({"fold 1": predictions("abcd", [True] * 4)})
    assert spread[3] == ""

"""The abstention threshold of a training: chosen on the validation part, stored in the card."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from brightness import Brightness
from tiny_classifiers import tiny_card
from torch import nn

from chestct.datasets.manifest import TEST, VALIDATION, Manifest, ManifestRow
from chestct.evaluation.calibration import AbstentionThreshold
from chestct.evaluation.predictions import Predictions
from chestct.training.data import Division
from chestct.training.judging import _promised_by
from chestct.training.plan import find_parts
from chestct.training.results import (
    Origin,
    _abstention_of,
    evaluation_settings,
    judge,
)
from chestct.training.run import LabelledSets
from chestct.training.settings import RunSettings

LABELS = ("COVID-19", "normal")


class Bright(nn.Module):
    """Tells bright from dark, the surer the brighter or darker; wrong where `is_wrong`."""

    def __init__(self, *, is_wrong: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(-20.0 if is_wrong else 20.0))

    def forward(self, batch: torch.Tensor, lungs: torch.Tensor | None = None) -> torch.Tensor:
        logit = self.scale * (batch.mean(dim=(1, 2, 3, 4)) - 0.5)
        return torch.stack([-logit, logit], dim=1)


def settings(**abstention: object) -> RunSettings:
    return RunSettings.model_validate(
        {
            "labels": LABELS,
            "network": {"name": "voxcnn"},
            "recipe": {"name": "maseres_paper"},
            "training": {"workers": 0},
            "abstention": abstention,
        }
    )


def scans(part: str, num: int) -> Manifest:
    rows = [ManifestRow(f"{part}{n}", f"{part}{n}", LABELS[n % 2]) for n in range(num)]
    return Manifest(tuple(rows), labels=LABELS)


def judged_by(
    network: nn.Module, num_validation: int, *, is_tested: bool = True, **abstention: object
) -> tuple[Predictions, Origin]:
    chosen = settings(**abstention)
    division = Division(
        scans("a", 4), scans("b", num_validation), scans("c", 10) if is_tested else None
    )
    sets = LabelledSets(
        Brightness(4), Brightness(num_validation), 2, Brightness(10) if is_tested else None
    )
    return judge(network, sets, division, find_parts(chosen), "run", chosen)


def test_the_threshold_is_that_of_the_validation_part_and_goes_into_the_card() -> None:
    judged, origin = judged_by(Bright(), 80)
    kept = _abstention_of(origin.promised, origin.num_validation)
    assert kept is not None
    assert (kept.num_scans, kept.wished_error, kept.coverage, kept.risk) == (80, 0.05, 1.0, 0.0)
    assert 0.5 < kept.abstain_below <= 1
    assert kept.risk_bound <= 0.05
    assert origin.judged_on == TEST
    assert len(judged) == 10
    card = tiny_card(abstention=kept)
    promised = _promised_by(card)
    assert promised is not None
    assert replace(promised, num_tried=origin.promised.num_tried) == origin.promised
    assert _promised_by(tiny_card()) is None


def test_the_test_part_is_evaluated_at_the_threshold_and_the_validation_part_is_not() -> None:
    _, origin = judged_by(Bright(), 80)
    assert evaluation_settings(origin).promised == origin.promised
    _, origin = judged_by(Bright(), 80, is_tested=False)
    assert origin.judged_on == VALIDATION
    assert origin.promised.threshold is not None
    assert evaluation_settings(origin).promised is None
    assert evaluation_settings(origin).remarks == ()


@pytest.mark.parametrize(
    ("network", "num", "words"),
    [(Bright(), 20, "20 scans promise nothing"), (Bright(is_wrong=True), 80, "keeps the bound")],
)
def test_a_wish_that_the_validation_part_cannot_promise_is_said_and_nothing_stored(
    network: nn.Module, num: int, words: str
) -> None:
    _, origin = judged_by(network, num)
    assert _abstention_of(origin.promised, origin.num_validation) is None
    (remark,) = evaluation_settings(origin).remarks
    assert remark.startswith("The card holds no abstention threshold")
    assert words in remark


def test_a_humbler_wish_needs_fewer_scans() -> None:
    _, origin = judged_by(Bright(), 20, wished_error=0.2)
    assert isinstance(origin.promised, AbstentionThreshold)
    assert origin.promised.threshold is not None

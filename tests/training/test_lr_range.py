from __future__ import annotations

from pathlib import Path

import pytest
import torch
from brightness import SETS, SETTINGS, Breaks, MeanThenLinear

from chestct.errors import TrainingError
from chestct.training.plan import Plan
from chestct.training.search import (
    RangeTest,
    _range_per_epoch,
    _smooth,
    run_range_test,
    write_range_test,
)
from chestct.training.settings import read_settings
from chestct.training.steps import DivergedError

QUICK = SETTINGS.model_copy(update={"workers": 0, "mixup_alpha": 0.0, "optimizer": "sgd"})


def test_the_paper_s_form_goes_on_where_it_was_and_reads_the_validation_loss(
    tmp_path: Path,
) -> None:
    settings = QUICK.model_copy(update={"epochs": 3})
    whole = _range_per_epoch(MeanThenLinear(), SETS, settings, tmp_path / "whole")
    assert whole.is_per_epoch
    assert whole.rates == pytest.approx([1e-8 * 10 ** (epoch / 20) for epoch in range(3)])
    again = _range_per_epoch(MeanThenLinear(), SETS, settings, tmp_path / "whole")
    assert again == whole


class BreaksWhileTraining(Breaks):
    def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            self.calls -= 1
        return super().forward(batch, lungs)


def test_the_paper_s_form_ends_where_the_loss_is_no_number(tmp_path: Path) -> None:
    network = BreaksWhileTraining(to_nothing=True)
    network.calls = -2
    found = _range_per_epoch(network, SETS, QUICK, tmp_path / "late")
    assert len(found.rates) == 1
    at_once = BreaksWhileTraining(to_nothing=True)
    at_once.calls = 9
    with pytest.raises(DivergedError):
        _range_per_epoch(at_once, SETS, QUICK, tmp_path / "at once")


RATES = tuple(10.0**n for n in range(-8, 0))


@pytest.mark.parametrize(
    ("losses", "suggestion"),
    [
        # Lowest at 1e-3: a tenth of it comes before half of the fall does.
        ((1.0, 1.0, 1.0, 0.9, 0.8, 0.1, 2.0, 9.0), 1e-4),
        # It goes on falling to the end, and half of the fall is done at 1e-5.
        ((1.0, 1.0, 0.9, 0.4, 0.2, 0.1, 0.1, 0.05), 1e-5),
    ],
)
def test_the_suggestion_is_the_lower_of_a_tenth_of_the_best_rate_and_half_of_the_fall(
    losses: tuple[float, ...], suggestion: float
) -> None:
    found = RangeTest(RATES, losses, losses, is_per_epoch=False)
    assert found.suggestion == pytest.approx(suggestion)
    assert found.is_clear


def test_a_flat_curve_is_not_clear_and_all_of_it_is_written(tmp_path: Path) -> None:
    found = RangeTest(RATES, (1.0,) * 8, (1.0,) * 8, is_per_epoch=True)
    assert not found.is_clear
    table, *figures = write_range_test(found, tmp_path)
    assert len(table.read_text().splitlines()) == 9
    assert all(figure.stat().st_size > 1000 for figure in figures)


def test_smoothing_keeps_a_constant_and_damps_a_spike() -> None:
    assert _smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    assert max(_smooth([1.0] * 10 + [2.0])) == pytest.approx(1.2, abs=0.05)


def test_a_range_test_by_several_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config = Path(__file__).resolve().parents[2] / "configs" / "roi_resnet18_recommended.yaml"
    plan = Plan(read_settings(config), tmp_path / "scans.csv", tmp_path / "out")
    with pytest.raises(TrainingError, match="Start it without torchrun"):
        run_range_test(plan)

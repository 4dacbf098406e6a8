from __future__ import annotations

from itertools import islice

import pytest
import torch

from chestct.training.loop import _Steps, _steps_of_epoch
from chestct.training.run import _num_plateaus, class_weights, epochs_since_best, learning_rate
from chestct.training.settings import TrainingSettings


def rates(epochs: list[float], **changes: object) -> list[float]:
    settings = TrainingSettings.model_validate({"epochs": 60, "learning_rate": 1.0, **changes})
    return [learning_rate(settings, epoch, []) for epoch in epochs]


def test_cosine_rises_then_falls_to_zero() -> None:
    start, middle, top, half, end = rates([0, 1, 2, 31, 60], warmup_epochs=2)
    assert 0 < start < middle < top == 1
    assert half == pytest.approx(0.5)
    assert end == pytest.approx(0)


def test_piecewise_is_the_paper_s_schedule() -> None:
    found = rates([0, 19.9, 20, 40, 59], schedule="piecewise", warmup_epochs=0)
    assert found == pytest.approx([1, 1, 0.2, 0.04, 0.04])


def test_plateau_drops_after_every_so_many_epochs_without_a_lower_loss() -> None:
    assert _num_plateaus([3, 2, 2, 2, 2, 2, 1, 1], patience=2) == 2
    settings = TrainingSettings(schedule="plateau", drop_every_epochs=2, warmup_epochs=0)
    assert learning_rate(settings, 5, [3, 2, 2, 2]) == pytest.approx(2e-4)


def test_epochs_since_best_counts_from_the_lowest_loss() -> None:
    assert epochs_since_best([]) == 0
    assert epochs_since_best([3, 1, 2, 2]) == 2


def test_balanced_sampling_draws_a_rare_class_as_often_as_a_common_one() -> None:
    labels = torch.tensor([0] * 900 + [1] * 100)
    settings = TrainingSettings(sampling="balanced", batch_size=10)
    drawn = [index for step in _steps_of_epoch(labels, settings, 0) for index in step]
    share = float(labels[torch.tensor(drawn)].float().mean())
    assert 0.44 < share < 0.56


def test_steps_begun_later_are_the_rest_of_the_same_epoch_and_go_on_with_the_next() -> None:
    labels = torch.arange(20) % 2
    settings = TrainingSettings(batch_size=3)
    whole, following = (_steps_of_epoch(labels, settings, epoch) for epoch in (4, 5))
    begun_later = _Steps(labels, settings, epoch=4, first_step=3)
    assert list(islice(begun_later, 7)) == whole[3:] + following[:3]
    assert sorted(index for step in whole for index in step) == list(range(20))
    assert whole != following


def test_class_weights_average_to_one_over_the_scans() -> None:
    labels = torch.tensor([0, 0, 0, 2])
    weights = class_weights(labels, 3)
    assert float(weights[labels].mean()) == pytest.approx(1)
    assert weights[1] == 0

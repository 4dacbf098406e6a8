"""The warm-up of BatchNorm's moving statistics: a plain mean first, and what is said without it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from brightness import SETS, SETTINGS, MeanThenLinear
from torch import nn

from chestct.networks import build_network
from chestct.training.loop import train
from chestct.training.run import EpochLog, _BatchNormWarmUp, remark_on_start
from chestct.training.settings import TrainingSettings

WARM = SETTINGS.model_copy(
    update={"workers": 0, "mixup_alpha": 0.0, "batch_norm_warm_up": True, "checkpoint_every_s": 0}
)


def keras_norm() -> nn.BatchNorm1d:
    return nn.BatchNorm1d(3, momentum=0.01)


def fed(norm: nn.BatchNorm1d, batches: list[torch.Tensor], *, is_wanted: bool) -> nn.BatchNorm1d:
    """The norm after a pass over each batch."""
    warm_up = _BatchNormWarmUp(norm, is_wanted=is_wanted)
    with warm_up.restored():
        for number, batch in enumerate(batches):
            warm_up.before_pass(number)
            norm(batch)
    return norm


def test_the_statistics_are_the_plain_mean_of_the_first_passes() -> None:
    torch.manual_seed(0)
    batches = [0.1 * torch.randn(8, 3) + 5 for _ in range(30)]
    norm = fed(keras_norm(), batches, is_wanted=True)
    means = torch.stack([batch.mean(dim=0) for batch in batches])
    variances = torch.stack([batch.var(dim=0) for batch in batches])
    torch.testing.assert_close(norm.running_mean, means.mean(dim=0))
    torch.testing.assert_close(norm.running_var, variances.mean(dim=0))
    assert norm.momentum == 0.01


def test_without_it_the_start_outweighs_small_variances() -> None:
    torch.manual_seed(0)
    batches = [0.1 * torch.randn(8, 3) + 5 for _ in range(30)]
    variance = fed(keras_norm(), batches, is_wanted=False).running_var
    assert variance is not None
    assert bool((variance > 50 * 0.01).all())


def test_from_the_momentum_on_it_is_the_usual_moving_mean() -> None:
    torch.manual_seed(0)
    norm, usual = nn.BatchNorm1d(3, momentum=0.5), nn.BatchNorm1d(3, momentum=0.5)
    batches = [torch.randn(8, 3) for _ in range(3)]
    fed(norm, batches, is_wanted=True)
    # Pass 0 takes all, passes 1 and 2 the momentum's half.
    usual.running_mean = batches[0].mean(dim=0)
    for batch in batches[1:]:
        usual(batch)
    torch.testing.assert_close(norm.running_mean, usual.running_mean)


def test_a_run_stopped_between_epochs_ends_with_the_same_statistics(tmp_path: Path) -> None:
    whole, resumed = MeanThenLinear(), MeanThenLinear()
    train(whole, SETS, WARM, tmp_path / "whole")

    def stop(entry: EpochLog) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(resumed, SETS, WARM, tmp_path / "resumed", after_epoch=stop)
    again = MeanThenLinear()
    train(again, SETS, WARM, tmp_path / "resumed")
    expected = whole.state_dict()
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert again.norm.momentum == 0.1


def test_a_run_with_it_differs_from_one_without(tmp_path: Path) -> None:
    warm, cold = MeanThenLinear(), MeanThenLinear()
    train(warm, SETS, WARM, tmp_path / "warm")
    train(cold, SETS, WARM.model_copy(update={"batch_norm_warm_up": False}), tmp_path / "cold")
    assert not torch.equal(warm.norm.running_var, cold.norm.running_var)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "epochs", "is_said"),
    [("maseres", 13, True), ("maseres", 50, False), ("roi_resnet18", 13, False)],
)
def test_short_runs_of_slow_momenta_are_remarked_on(name: str, epochs: int, is_said: bool) -> None:
    chosen = {"width": 2} if name == "roi_resnet18" else {"input_shape": [14, 14, 14]}
    network = build_network(name, 1, 3, chosen)
    settings = TrainingSettings(epochs=epochs, batch_size=4)
    remark = remark_on_start(network, settings, num_scans=153)
    assert (remark is not None) == is_said
    if remark is not None:
        assert "507 passes" in remark
        assert "training.batch_norm_warm_up" in remark
        warmed = settings.model_copy(update={"batch_norm_warm_up": True})
        assert remark_on_start(network, warmed, num_scans=153) is None


def test_it_excludes_compiling() -> None:
    with pytest.raises(ValueError, match="batch_norm_warm_up"):
        TrainingSettings(batch_norm_warm_up=True, compile=True)

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydantic
import pytest
import torch
from brightness import SETS, SETTINGS, Brightness, MeanThenLinear
from safetensors.torch import load_file
from torch import nn

from chestct.datasets.augment import Augmentation
from chestct.errors import ReadError, TrainingError, WriteError
from chestct.training.loop import train
from chestct.training.outputs import evaluate
from chestct.training.run import LabelledSets
from chestct.training.settings import TrainingSettings

QUICK = SETTINGS.model_copy(update={"workers": 0, "mixup_alpha": 0.0})


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


def test_training_learns_writes_a_log_and_keeps_the_best_weights(tmp_path: Path) -> None:
    network = MeanThenLinear()
    history = train(network, SETS, QUICK, tmp_path)
    assert history[-1].validation_accuracy == 1
    assert history[-1].validation_loss < history[0].validation_loss
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(QUICK.epochs))
    best = load_file(tmp_path / "best.safetensors")
    assert all(torch.equal(best[name], value) for name, value in network.state_dict().items())
    lowest = min(entry.validation_loss for entry in history)
    assert evaluate(network, Brightness(8)).loss == pytest.approx(lowest, abs=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adam"},
        {"optimizer": "sgd", "schedule": "plateau"},
        {"optimizer": "rmsprop", "schedule": "piecewise"},
        {"schedule": "constant", "class_weights": "balanced", "sampling": "balanced"},
        {"accumulation": 2, "precision": "bf16", "label_smoothing": 0.1},
    ],
    ids=str,
)
def test_every_setting_runs_and_repeats_bit_for_bit(
    tmp_path: Path, change: dict[str, object]
) -> None:
    settings = QUICK.model_copy(update={"epochs": 2, **change})
    networks = [MeanThenLinear(), MeanThenLinear()]
    for number, network in enumerate(networks):
        train(network, SETS, settings, tmp_path / str(number), augmentation=Augmentation())
    assert same_weights(*networks)
    assert not same_weights(networks[0], MeanThenLinear())


def test_two_passes_of_half_a_batch_make_the_step_of_a_whole_one(tmp_path: Path) -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(1, 2)

        def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
            return self.linear(batch.mean(dim=(2, 3, 4)))

    whole, halves = Linear(), Linear()
    settings = QUICK.model_copy(update={"epochs": 1, "schedule": "constant", "warmup_epochs": 0})
    train(whole, SETS, settings, tmp_path / "whole")
    halved = settings.model_copy(update={"batch_size": 2, "accumulation": 2})
    train(halves, SETS, halved, tmp_path / "halves")
    torch.testing.assert_close(whole.linear.weight, halves.linear.weight, atol=1e-5, rtol=0)


def test_a_run_killed_at_random_steps_ends_with_the_weights_of_one_never_killed(
    tmp_path: Path,
) -> None:
    program = [sys.executable, str(Path(__file__).with_name("brightness.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*program, str(tmp_path / "whole")], check=True, env=environment)
    broken = tmp_path / "broken"
    rng = np.random.default_rng(5)
    kills = 0
    while kills < 5:
        # A session of its own, so that its data-loading worker dies with it.
        run = subprocess.Popen([*program, str(broken)], env=environment, start_new_session=True)
        state = broken / "checkpoint.safetensors"
        before = state.stat().st_mtime_ns if state.exists() else 0
        while run.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.01)))
        os.killpg(run.pid, signal.SIGKILL)
        killed = run.wait() == -signal.SIGKILL
        kills += killed
        assert killed, "the run ended before it could be killed often enough"
    subprocess.run([*program, str(broken)], check=True, env=environment)
    for name in ("best", "checkpoint"):
        first, second = (
            load_file(folder / f"{name}.safetensors") for folder in (tmp_path / "whole", broken)
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_request_to_stop_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    class StopsItself(MeanThenLinear):
        calls = 0

        def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
            StopsItself.calls += 1
            if StopsItself.calls == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(batch, lungs)

    calm = QUICK.model_copy(update={"checkpoint_every_s": 1000.0})
    stopped, whole = StopsItself(), MeanThenLinear()
    with pytest.raises(TrainingError, match="The same command goes on"):
        train(stopped, SETS, calm, tmp_path / "stopped")
    resumed = MeanThenLinear()
    train(resumed, SETS, calm, tmp_path / "stopped")
    train(whole, SETS, calm, tmp_path / "whole")
    assert same_weights(resumed, whole)


def test_early_stopping_ends_the_run_and_gives_the_best_weights_back(tmp_path: Path) -> None:
    class Drifts(MeanThenLinear):
        """Gets worse with every epoch, whatever it learns."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("age", torch.zeros(()))

        def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.age += 1
            return super().forward(batch, lungs) * 0 + self.age * torch.tensor([1.0, -1.0])

    network = Drifts()
    settings = QUICK.model_copy(update={"epochs": 50, "early_stopping_epochs": 3})
    history = train(network, SETS, settings, tmp_path)
    assert len(history) == 4
    assert float(network.age) == 6


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    class Breaks(MeanThenLinear):
        def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
            logits = super().forward(batch, lungs)
            is_late = (tmp_path / "log.jsonl").exists()
            return logits * float("nan") if is_late and self.training else logits

    with pytest.raises(TrainingError, match="no longer a number in epoch 1, step 0"):
        train(Breaks(), SETS, QUICK, tmp_path)
    stored = load_file(tmp_path / "checkpoint.safetensors")
    assert all(torch.isfinite(value.float()).all() for value in stored.values())
    assert len(train(MeanThenLinear(), SETS, QUICK, tmp_path)) == QUICK.epochs


def test_a_folder_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    train(MeanThenLinear(), SETS, QUICK, tmp_path)
    other = QUICK.model_copy(update={"learning_rate": 0.2})
    with pytest.raises(TrainingError, match=r"learning_rate was 0\.1, is 0\.2"):
        train(MeanThenLinear(), SETS, other, tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    train(MeanThenLinear(), SETS, QUICK, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ReadError, match="is not a checkpoint of this run"):
        train(MeanThenLinear(), SETS, QUICK, tmp_path)


def test_a_disk_that_cannot_be_written_stops_the_run_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chestct.training.checkpoints.save_file", full)
    with pytest.raises(WriteError, match="free some space"):
        train(MeanThenLinear(), SETS, QUICK, tmp_path)
    assert not list(tmp_path.glob("*.part"))


def test_a_class_without_examples_does_not_break_weights_or_targets(tmp_path: Path) -> None:
    three = nn.Sequential()
    three.forward = lambda batch, lungs: three_linear(batch.mean(dim=(2, 3, 4)))  # type: ignore[method-assign]
    three_linear = nn.Linear(1, 3)
    three.add_module("linear", three_linear)
    sets = LabelledSets(Brightness(8), Brightness(8), num_classes=3)
    settings = QUICK.model_copy(update={"epochs": 1, "class_weights": "balanced"})
    assert len(train(three, sets, settings, tmp_path)) == 1


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="epoch_count"):
        TrainingSettings(epoch_count=3)  # type: ignore[call-arg]

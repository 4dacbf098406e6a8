from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydantic
import pytest
import torch
from brightness import SETS, SETTINGS, Brightness, MeanThenLinear
from lingering import PARTS, STAY_S
from safetensors.torch import load_file
from torch import nn

from chestct.datasets.augment import _Augmentation
from chestct.errors import ReadError, TrainingError, WriteError
from chestct.training import loop
from chestct.training.distributed import Ranks
from chestct.training.loop import evaluate, train
from chestct.training.run import LabelledSets, memory_explained
from chestct.training.settings import TrainingSettings

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
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
        {"average_weights": 0.99, "checkpoint_every_s": 0.0},
    ],
    ids=str,
)
def test_every_setting_runs_and_repeats_bit_for_bit(
    tmp_path: Path, change: dict[str, object]
) -> None:
    settings = QUICK.model_copy(update={"epochs": 2, **change})
    networks = [MeanThenLinear(), MeanThenLinear()]
    for number, network in enumerate(networks):
        train(network, SETS, settings, tmp_path / str(number), augmentation=_Augmentation())
    assert same_weights(*networks)
    assert not same_weights(networks[0], MeanThenLinear())


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_moving_average_of_weights_and_statistics_is_judged_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    settings = QUICK.model_copy(update={"epochs": 1, "average_weights": 0.4, "keep": keep})
    network = MeanThenLinear()
    expected = {name: value.double() for name, value in network.state_dict().items()}
    follow, number = loop._follow, 0

    def noted(average: nn.Module, own: nn.Module, decay: float, num_passes: int) -> None:
        nonlocal number
        follow(average, own, decay, num_passes)
        # As many rates as steps: 0.1, 0.18, 0.25 and so on, until 0.4 is less.
        kept = min(0.4, (1 + number) / (10 + number))
        for name, value in own.state_dict().items():
            expected[name] = kept * expected[name] + (1 - kept) * value
        number += 1

    monkeypatch.setattr(loop, "_follow", noted)
    (entry,) = train(network, SETS, settings, tmp_path)
    assert number == 6
    for name, value in network.state_dict().items():
        wanted = torch.tensor(6.0) if name.endswith("num_batches_tracked") else expected[name]
        torch.testing.assert_close(value.double(), wanted.double(), atol=1e-6, rtol=1e-6)
    assert evaluate(network, Brightness(8)).loss == pytest.approx(entry.validation_loss, abs=1e-6)


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


@dataclass
class Killing:
    """Where a run is told to be killed, and where it was.

    Attributes:
        starter: `lingering.py`, which starts the run's processes.
    """

    folder: Path
    rng: np.random.Generator
    starter: subprocess.Popen[str]
    found: list[str] = field(default_factory=list)

    def kill_in(self, part: str) -> None:
        """Start or go on with the run, let it save once, and end it at random within a part."""
        assert self.starter.stdin is not None
        assert self.starter.stdout is not None
        where, state = self.folder.with_suffix(".where"), self.folder / "checkpoint.safetensors"
        before = state.stat().st_mtime_ns if state.exists() else 0
        where.write_text("")
        self.starter.stdin.write(f"{json.dumps([str(self.folder), str(where)])}\n")
        self.starter.stdin.flush()
        number = int(self.starter.stdout.readline())
        has_ended = False
        while not has_ended:
            has_saved = state.exists() and state.stat().st_mtime_ns != before
            if has_saved and where.read_text() == part:
                break
            has_ended = bool(select.select([self.starter.stdout], [], [], 0.001)[0])
        assert not has_ended, "the run ended before it could be killed"
        time.sleep(float(self.rng.uniform(0, STAY_S)))
        os.killpg(number, signal.SIGKILL)
        assert int(self.starter.stdout.readline()) == -signal.SIGKILL
        self.found.append(where.read_text())


def run_alone(folder: Path) -> None:
    """The run that `lingering.py` has, in this process."""
    train(MeanThenLinear(), SETS, SETTINGS, folder, augmentation=_Augmentation())


def test_a_run_killed_at_random_points_of_a_step_ends_with_the_weights_of_one_never_killed(
    tmp_path: Path,
) -> None:
    run_alone(tmp_path / "whole")
    broken = tmp_path / "broken"
    program = [sys.executable, str(Path(__file__).with_name("lingering.py"))]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True, env=ONE_THREAD) as starter:
        killing = Killing(broken, np.random.default_rng(5), starter)
        for part in (*PARTS, "backward"):
            killing.kill_in(part)
    # A busy machine may be late and hit the next part; all in one would say little.
    assert len(set(killing.found)) >= 3, killing.found
    run_alone(broken)
    for name in ("best", "checkpoint"):
        first, second = (
            load_file(folder / f"{name}.safetensors") for folder in (tmp_path / "whole", broken)
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("change", [{}, {"average_weights": 0.9, "keep": "last"}], ids=str)
def test_a_request_to_stop_leaves_a_run_that_goes_on(
    tmp_path: Path, change: dict[str, object]
) -> None:
    class StopsItself(MeanThenLinear):
        calls = 0

        def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
            StopsItself.calls += 1
            if StopsItself.calls == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(batch, lungs)

    calm = QUICK.model_copy(update={"checkpoint_every_s": 1000.0, **change})
    stopped, whole = StopsItself(), MeanThenLinear()
    # A signal that the run misses fails this test and does not end all tests.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(TrainingError, match="The same command goes on"):
            train(stopped, SETS, calm, tmp_path / "stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
    resumed = MeanThenLinear()
    train(resumed, SETS, calm, tmp_path / "stopped")
    train(whole, SETS, calm, tmp_path / "whole")
    assert same_weights(resumed, whole)


def test_a_run_that_goes_on_after_an_epochs_last_step_logs_its_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising = QUICK.model_copy(update={"schedule": "range", "drop_every_epochs": 2})
    whole = train(MeanThenLinear(), SETS, rising, tmp_path / "whole")
    judged = loop._outputs_of

    def die_at_the_second(*arguments: object) -> object:
        if len((tmp_path / "stopped" / "log.jsonl").read_text().splitlines()) == 1:
            raise KeyboardInterrupt
        return judged(*arguments)  # type: ignore[arg-type]

    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "log.jsonl").touch()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_outputs_of", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            train(MeanThenLinear(), SETS, rising, tmp_path / "stopped")
    resumed = train(MeanThenLinear(), SETS, rising, tmp_path / "stopped")
    rates = [entry.learning_rate for entry in whole]
    assert rates == sorted(set(rates))
    assert [entry.learning_rate for entry in resumed] == rates


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

    monkeypatch.setattr("chestct.training.run.save_file", full)
    with pytest.raises(WriteError, match="free some space"):
        train(MeanThenLinear(), SETS, QUICK, tmp_path)
    assert not list(tmp_path.glob("*.part"))


def test_a_disk_that_fills_up_later_leaves_the_last_checkpoint_to_go_on_from(
    tmp_path: Path,
) -> None:
    def fill_up(_entry: object) -> None:
        # No file may grow beyond 200 bytes: what the system says of a full disk, for real.
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(WriteError, match="The last one is untouched: free some space"):
            train(MeanThenLinear(), SETS, QUICK, tmp_path / "full", after_epoch=fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "full").glob("*.part"))
    resumed, whole = MeanThenLinear(), MeanThenLinear()
    train(resumed, SETS, QUICK, tmp_path / "full")
    train(whole, SETS, QUICK, tmp_path / "whole")
    assert same_weights(resumed, whole)


def test_a_run_whose_memory_ran_out_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    class Grows(MeanThenLinear):
        passes = 0

        def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
            self.passes += 1
            if self.passes == 12:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().forward(batch, lungs)

    run = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"run goes on"), memory_explained(run):
        train(Grows(), SETS, QUICK, run)
    resumed, whole = MeanThenLinear(), MeanThenLinear()
    train(resumed, SETS, QUICK, run)
    train(whole, SETS, QUICK, tmp_path / "whole")
    assert same_weights(resumed, whole)


def test_precision_is_settled_when_a_run_begins_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = QUICK.model_copy(update={"precision": "auto", "epochs": 1})
    monkeypatch.setattr("chestct.training.distributed._multiplies_in_bf16", lambda _device: True)
    train(MeanThenLinear(), SETS, auto, tmp_path)
    assert json.loads((tmp_path / "settings.json").read_text())["precision"] == "bf16"
    monkeypatch.setattr("chestct.training.distributed._multiplies_in_bf16", lambda _device: False)
    assert len(train(MeanThenLinear(), SETS, auto, tmp_path)) == 1
    plain = auto.model_copy(update={"precision": "float32"})
    with pytest.raises(TrainingError, match="precision was bf16, is float32"):
        train(MeanThenLinear(), SETS, plain, tmp_path)


def test_a_compiled_network_is_trained_alike_and_kept_under_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # "eager" traces as every compiler does, and then runs what it traced as it is.
    monkeypatch.setattr("chestct.training.run._COMPILER", "eager")
    settings = QUICK.model_copy(update={"epochs": 1, "compile": True})
    compiled, plain = MeanThenLinear(), MeanThenLinear()
    train(compiled, SETS, settings, tmp_path / "compiled")
    train(plain, SETS, settings.model_copy(update={"compile": False}), tmp_path / "plain")
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value)


def test_compiling_and_recomputing_exclude_each_other() -> None:
    with pytest.raises(pydantic.ValidationError, match="switch one of them off"):
        TrainingSettings(checkpoint_activations=True, compile=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_begun_on_a_gpu_goes_on_on_the_cpu(tmp_path: Path, precision: str) -> None:
    settings = QUICK.model_copy(update={"precision": precision, "workers": None})

    class Stop(Exception):  # noqa: N818 - no error
        pass

    def stop(_entry: object) -> None:
        raise Stop

    begun = MeanThenLinear().to("cuda")
    with pytest.raises(Stop):
        train(begun, SETS, settings, tmp_path, augmentation=_Augmentation(), after_epoch=stop)
    network = MeanThenLinear()
    history = train(network, SETS, settings, tmp_path, augmentation=_Augmentation())
    assert len(history) == QUICK.epochs
    assert history[0].gpu_memory_gib is not None
    assert history[-1].gpu_memory_gib is None
    assert history[-1].validation_accuracy == 1


def test_a_class_without_examples_does_not_break_weights_or_targets(tmp_path: Path) -> None:
    three = nn.Sequential()
    three.forward = lambda batch, lungs: three_linear(batch.mean(dim=(2, 3, 4)))  # type: ignore[method-assign]
    three_linear = nn.Linear(1, 3)
    three.add_module("linear", three_linear)
    sets = LabelledSets(Brightness(8), Brightness(8), num_classes=3)
    settings = QUICK.model_copy(update={"epochs": 1, "class_weights": "balanced"})
    assert len(train(three, sets, settings, tmp_path)) == 1


def test_a_last_step_of_one_scan_is_refused_where_batchnorm_needs_two(tmp_path: Path) -> None:
    class NormOverScans(MeanThenLinear):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2))  # type: ignore[assignment]

    sets = LabelledSets(Brightness(9), Brightness(4), num_classes=2)
    with pytest.raises(TrainingError, match=r"9 scans to train on.*choose another batch_size"):
        train(NormOverScans(), sets, QUICK, tmp_path / "four")
    fives = QUICK.model_copy(update={"batch_size": 5, "epochs": 1})
    assert len(train(NormOverScans(), sets, fives, tmp_path / "five")) == 1
    assert len(train(MeanThenLinear(), sets, fives, tmp_path / "plain")) == 1


def test_more_processes_than_scans_in_a_step_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chestct.training.run.current_ranks", lambda: Ranks(0, 8))
    with pytest.raises(TrainingError, match=r"batch_size is 4, of which 8 processes"):
        train(MeanThenLinear(), SETS, QUICK, tmp_path)


def test_a_folder_that_other_processes_see_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(MeanThenLinear(), SETS, QUICK, tmp_path)
    # The first process found a checkpoint of another moment, or none.
    monkeypatch.setattr(
        "chestct.training.run.from_main", lambda told: [0, 0] if isinstance(told, list) else told
    )
    with pytest.raises(TrainingError, match="Put it on a disk that all can read"):
        train(MeanThenLinear(), SETS, QUICK, tmp_path)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="epoch_count"):
        TrainingSettings(epoch_count=3)  # type: ignore[call-arg]

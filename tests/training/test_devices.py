from __future__ import annotations

import pytest
import torch
from torch import nn

from chestct.errors import TrainingError
from chestct.training.distributed import (
    CPU,
    _multiplies_in_bf16,
    choose_device,
    device_in_words,
    device_of,
    settle_precision,
    tuned_for,
)
from chestct.training.loop import _MOST_WORKERS, _num_workers, _take_peak_memory_gib

GPU = torch.device("cuda", 0)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch says that there are two; nothing is put on them."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _device: "Drawn GPU")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.usefixtures("two_gpus")
def test_auto_is_a_gpu_of_its_own_for_each_process_of_a_machine() -> None:
    assert choose_device() == GPU
    assert choose_device("auto", local_rank=1, num_local=2) == torch.device("cuda", 1)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cpu", local_rank=1, num_local=2) == CPU
    assert device_in_words(GPU) == "cuda:0 (Drawn GPU)"


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_or_would_be_shared_is_refused() -> None:
    with pytest.raises(TrainingError, match="sees 2 CUDA GPUs here and number 2"):
        choose_device("cuda", local_rank=2, num_local=3)
    with pytest.raises(TrainingError, match="2 processes cannot share cuda:1"):
        choose_device("cuda:1", num_local=2)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert choose_device() == CPU
    assert device_in_words(CPU) == "cpu"
    with pytest.raises(TrainingError, match="sees 0 CUDA GPUs"):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps", ""])
def test_a_device_of_another_name_is_refused(name: str) -> None:
    with pytest.raises(TrainingError, match="auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_a_network_is_where_its_weights_lie() -> None:
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) == CPU


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"amx_bf16": True}, "bf16"),
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_f": True}, "float32"),
    ],
)
def test_auto_is_bf16_where_the_processor_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: told, raising=False)
    assert settle_precision("auto", None, CPU) == expected


def test_on_a_gpu_the_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for can in (True, False):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda can=can, **_named: can)
        assert _multiplies_in_bf16(GPU) is can


def test_a_run_keeps_the_precision_it_was_begun_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert settle_precision("auto", "float32", CPU) == "float32"
    assert settle_precision("auto", "bf16", CPU) == "bf16"
    assert settle_precision("float32", "bf16", CPU) == "float32"


def test_readers_are_as_many_as_cores_are_left_for_each_gpu(
    monkeypatch: pytest.MonkeyPatch, two_gpus: None
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(8)), raising=False)
    assert _num_workers(None, GPU) == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(99)), raising=False)
    assert _num_workers(None, GPU) == _MOST_WORKERS
    assert _num_workers(None, CPU) == 0
    assert _num_workers(5, CPU) == _num_workers(5, GPU) == 5


def test_cudnn_is_tuned_for_a_gpu_only_and_only_while_it_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.set_device", lambda _device: None)
    before = torch.backends.cudnn.benchmark
    with tuned_for(CPU):
        assert torch.backends.cudnn.benchmark == before
    with tuned_for(GPU):
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == before


def test_peak_memory_is_that_of_a_gpu_since_it_was_asked_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda _device: 3 * 2**29)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", asked.append)
    assert _take_peak_memory_gib(CPU) is None
    assert _take_peak_memory_gib(GPU) == 1.5
    assert asked == [GPU]

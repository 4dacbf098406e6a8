"""Devices, and several processes that train one network together.

Where `torchrun` has started several processes each is a rank; started alone there is one, and every
function here does what it says for one.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from chestct.errors import ChestCTError, TrainingError
from chestct.networks.blocks import cpu_multiplies_in_bf16

_Precision = Literal["float32", "bf16"]

CPU: Final = torch.device("cpu")
MEMORY_FORMAT: Final = torch.channels_last_3d
"""How volumes and weights lie in memory while a network is trained: channels together, everywhere.

One rule for every device and precision, so that a run that goes on elsewhere keeps it. On one CPU
thread a step takes 0.77 to 1.01 of the time of the plain format in float32; in bf16 0.68 to 0.99,
except for small RoI-aware 3D ResNets (64^3), where it takes 1.04 to 1.26:
`benchmarks/training_speed.py --layouts`.
"""
_AUTO: Final = "auto"


def choose_device(name: str = _AUTO, *, local_rank: int = 0, num_local: int = 1) -> torch.device:
    """The device "auto" (a CUDA GPU where there is one, else the CPU), "cpu", "cuda" or "cuda:N".

    Of several processes on a machine each takes a GPU of its own, by its local rank.

    Raises:
        TrainingError: There is no such device, or several processes would share a GPU.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise TrainingError(f"There is no device '{name}'. Take auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == _AUTO and count == 0):
        return CPU
    if ":" in name and num_local > 1:
        msg = f"{num_local} processes cannot share {name}. Say --device cuda: each takes its own."
        raise TrainingError(msg)
    index = int(name.partition(":")[2] or local_rank)
    if index >= count:
        msg = f"PyTorch sees {count} CUDA GPUs here and number {index} was asked for, from 0."
        raise TrainingError(f"{msg} Take --device cpu, a lower number or fewer processes.")
    return torch.device("cuda", index)


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights lie; the CPU for one without any."""
    first = next(network.parameters(), None)
    return CPU if first is None else first.device


def device_in_words(device: torch.device) -> str:
    """A device as a record of a run names it."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"


def _multiplies_in_bf16(device: torch.device) -> bool:
    """The rule behind `training.precision: auto`: bf16 where the processor has units for it.

    On a CPU these are AMX or AVX512-BF16. Convolutions on short axes, which oneDNN gets wrong in
    bf16, stay in float32: see `networks.blocks.Conv3d`.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_multiplies_in_bf16()


def settle_precision(
    wanted: Literal["float32", "bf16", "auto"], before: str | None, device: torch.device
) -> _Precision:
    """What "auto" stands for: the precision of the run that goes on, `before`, else by the rule."""
    if wanted != "auto":
        return wanted
    if before in ("float32", "bf16"):
        return "bf16" if before == "bf16" else "float32"
    return "bf16" if _multiplies_in_bf16(device) else "float32"


@contextmanager
def tuned_for(device: torch.device) -> Iterator[None]:
    """While entered, cuDNN tries its convolutions out and takes the fastest for each shape."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_device(device)
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


_Outcome = TypeVar("_Outcome")

_LONGEST_WAIT: Final = timedelta(hours=12)
"""Others wait for the first process while it prepares scans, which may take hours."""

_NAMES: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_LOST_WORDS: Final = ("connection closed", "connection reset", "connection refused", "timed out")


class OtherProcessError(ChestCTError):
    """Another of several processes ended the training and has said why."""


@dataclass(frozen=True)
class Ranks:
    """Which of several processes this is, from 0: of all, and of those on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    def share(self, items: list[int]) -> list[int]:
        """This process's part of a list; the first process has the largest."""
        return items[self.rank :: self.size]


def launched_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """What `torchrun` says of this process; one process alone where it did not start it.

    Raises:
        TrainingError: It says something that is no number.
    """
    if not all(name in environment for name in _NAMES[:3]):
        return Ranks()
    texts = [environment.get(name, environment["WORLD_SIZE"]) for name in _NAMES]
    if not all(text.isdecimal() for text in texts):
        said = ", ".join(f"{name}={text}" for name, text in zip(_NAMES, texts, strict=True))
        raise TrainingError(f"The environment says {said}; start several processes with torchrun.")
    return Ranks(*(int(text) for text in texts))


def require_one_process(work: str, instead: str = "") -> None:
    """Refuse to do in several processes what one does alone.

    `work` is a sentence about what that is, such as "A search runs in one process."; `instead` what
    to do beside starting it without torchrun, after a comma.

    Raises:
        TrainingError: `torchrun` started several processes.
    """
    if not launched_ranks().is_alone:
        raise TrainingError(f"{work} Start it without torchrun{instead}.")


def current_ranks() -> Ranks:
    """This process among those that have joined; alone before `joined` is entered."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined(launched: Ranks, device: torch.device) -> Iterator[None]:
    """While entered, the launched processes work together: over gloo, GPUs over NCCL.

    Where they have joined already this does nothing.

    Raises:
        OtherProcessError: Another one ended before its time.
    """
    if launched.is_alone or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with others_explained(), warnings.catch_warnings():
        # A layer with one input channel has two equal layouts; DDP calls that a mismatch.
        warnings.filterwarnings("ignore", message="Grad strides do not match")
        dist.init_process_group(backend, timeout=_LONGEST_WAIT)
        try:
            yield
        finally:
            dist.destroy_process_group()


@contextmanager
def others_explained() -> Iterator[None]:
    """Turn a lost connection into an error that says so.

    Raises:
        OtherProcessError: Another process ended while this one waited for it.
    """
    try:
        yield
    except RuntimeError as error:
        # Gloo has no class of its own for it, only words.
        words = str(error).lower()
        is_lost = isinstance(error, dist.DistError) or any(each in words for each in _LOST_WORDS)
        if current_ranks().is_alone or not is_lost:
            raise
        raise OtherProcessError("Another process of this training ended.") from error


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place, the same in each of them."""
    if not current_ranks().is_alone:
        dist.all_reduce(values)
    return values


def on_main(work: Callable[[], _Outcome]) -> _Outcome | None:
    """Do something in the first process only; the others wait for it and get None.

    Raises:
        OtherProcessError: It failed there, and this is another process.
    """
    ranks = current_ranks()
    outcome, is_done = None, torch.zeros(1)
    try:
        if ranks.is_main:
            outcome = work()
            is_done += 1
    finally:
        total(is_done)
    if not is_done:
        raise OtherProcessError("The first process of this training ended.")
    return outcome


def main_first(work: Callable[[], _Outcome]) -> _Outcome:
    """Do something in all processes, first in the first one, so that it alone tells what is wrong.

    Raises:
        OtherProcessError: It failed in the first one, and this is another process.
    """
    outcome = on_main(work)
    return work() if outcome is None else outcome


def from_main(value: Any) -> Any:
    """What the first process has, which must be made of what JSON knows, in all of them."""
    ranks = current_ranks()
    if ranks.is_alone:
        return value
    text = bytearray(json.dumps(value) if ranks.is_main else "", "utf-8")
    length = total(torch.tensor([len(text)]))
    is_sender = ranks.is_main
    content = torch.frombuffer(text if is_sender else bytearray(int(length)), dtype=torch.uint8)
    dist.broadcast(content, 0)
    return json.loads(content.numpy().tobytes())

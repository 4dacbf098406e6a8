"""Where a network is trained: which device, in which precision, with how many readers beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import torch
from torch import nn

from chestct.errors import TrainingError

Precision = Literal["float32", "bf16"]

CPU: Final = torch.device("cpu")
MEMORY_FORMAT: Final = torch.channels_last_3d
"""How volumes and weights lie in memory while a network is trained: channels together, everywhere.

One rule for every device and precision, so that a run that goes on elsewhere keeps it. On one CPU
thread a step takes 0.77 to 1.01 of the time of the plain format in float32; in bf16 0.68 to 0.99,
except for small RoI-aware 3D ResNets (64^3), where it takes 1.04 to 1.26:
`benchmarks/training_speed.py --layouts`.
"""
AUTO: Final = "auto"
MOST_WORKERS: Final = 8
_GIB: Final = 2**30


def choose_device(name: str = AUTO, *, local_rank: int = 0, num_local: int = 1) -> torch.device:
    """The device of a name.

    Args:
        name: "auto" (a CUDA GPU where there is one, else the CPU), "cpu", "cuda" or "cuda:N".
        local_rank: Number of this process among those of its machine: each takes a GPU of its own.
        num_local: Processes on this machine.

    Raises:
        TrainingError: There is no such device, or several processes would share a GPU.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise TrainingError(f"There is no device '{name}'. Take auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == AUTO and count == 0):
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


def multiplies_in_bf16(device: torch.device) -> bool:
    """The rule behind `training.precision: auto`: bf16 where the processor has units for it.

    On a CPU these are AMX or AVX512-BF16. Convolutions on short axes, which oneDNN gets wrong in
    bf16, stay in float32: see `networks.blocks.Conv3d`.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Older versions of PyTorch do not say what the processor can do.
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("amx_bf16") or told.get("avx512_bf16"))


def settle_precision(
    wanted: Literal["float32", "bf16", "auto"], before: str | None, device: torch.device
) -> Precision:
    """The precision that "auto" stands for: that of the run that goes on, else by the rule.

    Args:
        wanted: As in the settings.
        before: What the run in the folder was begun with, where there is one.
        device: Where the network will be trained.
    """
    if wanted != "auto":
        return wanted
    if before in ("float32", "bf16"):
        return "bf16" if before == "bf16" else "float32"
    return "bf16" if multiplies_in_bf16(device) else "float32"


def num_workers(wanted: int | None, device: torch.device) -> int:
    """How many processes read examples, where the settings leave it open.

    On a CPU none, as they would take cores from the network. For a GPU as many as there are cores
    for each GPU of this machine, less one for the training itself, and no more than eight.
    """
    if wanted is not None:
        return wanted
    if device.type != "cuda":
        return 0
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    per_gpu = (num_cores or 1) // torch.cuda.device_count()
    return min(max(per_gpu - 1, 1), MOST_WORKERS)


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


def take_peak_memory_gib(device: torch.device) -> float | None:
    """The most memory that was taken on a GPU since this was asked last; None on a CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / _GIB
    torch.cuda.reset_peak_memory_stats(device)
    return peak

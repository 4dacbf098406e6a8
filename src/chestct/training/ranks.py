"""Several processes that train one network together, started by `torchrun`.

Every process holds the whole network and takes a share of each batch; gradients are averaged, so
that all take the same steps. The first one alone writes and prints. Without `torchrun` there is
one process and nothing here does anything.

What the processes tell each other is plain: sums of tensors, and JSON as bytes. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from chestct.errors import ChestCTError, TrainingError

Outcome = TypeVar("Outcome")

LONGEST_WAIT: Final = timedelta(hours=12)
"""Others wait for the first process while it prepares scans, which may take hours."""

_NAMES: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_LOST_WORDS: Final = ("connection closed", "connection reset", "connection refused", "timed out")


class OtherProcessError(ChestCTError):
    """Another of several processes ended the training and has said why."""


@dataclass(frozen=True)
class Ranks:
    """Which one of several processes this is.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        local_rank: Its number on its machine.
        local_size: How many there are on its machine.
    """

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

    Args:
        work: A sentence about what that is: "A search runs in one process."
        instead: What to do beside starting it without torchrun, after a comma.

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
        dist.init_process_group(backend, timeout=LONGEST_WAIT)
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


def on_main(work: Callable[[], Outcome]) -> Outcome | None:
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


def main_first(work: Callable[[], Outcome]) -> Outcome:
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


def averaging(
    called: Callable[..., torch.Tensor], *, is_wanted: bool
) -> AbstractContextManager[None]:
    """While entered, gradients are averaged over the processes, or only added up in each."""
    if isinstance(called, DistributedDataParallel) and not is_wanted:
        return called.no_sync()
    return nullcontext()


def share_buffers(network: nn.Module) -> None:
    """Give all processes the running statistics of the first."""
    if not current_ranks().is_alone:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def raise_agreed(error: ChestCTError) -> None:
    """Raise an error that all processes come to at once, so that only the first one tells it."""
    if current_ranks().is_main:
        raise error
    raise OtherProcessError("All processes of this training ended.") from error

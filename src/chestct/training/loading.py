"""From labelled examples to batches on the device: which, in which order, read ahead."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader, Dataset, default_collate

from chestct.datasets.workers import end_with_parent
from chestct.errors import ChestCTError, TrainingError
from chestct.training.distributed import Ranks, num_workers
from chestct.training.settings import TrainingSettings
from chestct.training.steps import class_weights

LabelledInputs = Dataset[tuple[torch.Tensor, torch.Tensor, int]]
"""Input (channel, depth, height, width), lungs (1, depth, height, width) and label index."""

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Inputs, lungs and label indices of several examples."""

_READ_AHEAD: Final = 2
"""Batches that each reading process has ready."""


@dataclass(frozen=True)
class _Unreadable:
    """Stands for an example that could not be read, in the place of a batch too."""

    reason: str


class _Guarded(Dataset[Any]):
    """Examples, or why one could not be read.

    An exception that leaves a reading process arrives with a traceback in its message, and a user
    should not have to look at one.
    """

    def __init__(self, examples: LabelledInputs) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> object:
        try:
            return self._examples[index]
        except (ChestCTError, OSError) as error:
            return _Unreadable(str(error))


def _collate(examples: list[Any]) -> object:
    """One batch, or the first example that could not be read."""
    failed = [example for example in examples if isinstance(example, _Unreadable)]
    return failed[0] if failed else default_collate(examples)


def _begin_reading(number: int) -> None:
    """What each reading process does first; it has a number."""
    end_with_parent()


def make_loader(
    examples: LabelledInputs,
    steps: Iterable[list[int]],
    *,
    workers: int | None,
    device: torch.device,
) -> DataLoader[Any]:
    """What reads the examples of one step after the other.

    Reading processes live as long as one pass over the steps. Were they kept for the next pass, the
    loader would hold them, and an exception's traceback the loader: they would end whenever the
    garbage collector comes by, in no order, and be waited for in vain.

    Args:
        examples: What is read from.
        steps: Numbers of the examples of each step.
        workers: Processes that read; None leaves it to `devices.num_workers`.
        device: Where the batches will go.
    """
    count = num_workers(workers, device)
    return DataLoader(
        _Guarded(examples),
        worker_init_fn=_begin_reading,
        batch_sampler=steps,
        num_workers=count,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        prefetch_factor=_READ_AHEAD if count else None,
    )


def batches_on(device: torch.device, loader: DataLoader[Any]) -> Generator[Batch]:
    """A loader's batches, moved while the device is still busy with the one before.

    Reading processes end with this generator, also when it is closed early.

    Raises:
        TrainingError: An example could not be read.
    """
    found_batches = iter(loader)
    try:
        for found in found_batches:
            if isinstance(found, _Unreadable):
                msg = (
                    f"{found.reason} Training was stopped there. Mend the scan and start the same "
                    "command again: it goes on from its last checkpoint."
                )
                raise TrainingError(msg)
            batch, lungs, labels = (part.to(device, non_blocking=True) for part in found)
            yield batch, lungs, labels
    except RuntimeError:
        # All was read, and only then one of the processes ended in disorder: no harm is done.
        if not getattr(found_batches, "_shutdown", False):
            raise
    finally:
        _end_reading(found_batches)


def _end_reading(found_batches: Iterator[object]) -> None:
    """End a loader's reading processes here and now.

    PyTorch does this in `__del__`, whose time nobody knows: a process that ended in disorder is
    then reported to whoever is running when the garbage collector comes by.
    """
    shut_down = getattr(found_batches, "_shutdown_workers", None)
    if shut_down is None:
        return
    with suppress(RuntimeError):
        shut_down()
    for process in getattr(found_batches, "_workers", ()):
        process.join()


def in_steps(numbers: Sequence[int], size: int) -> list[list[int]]:
    """Numbers in their order, so many at a time."""
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def step_seed(*numbers: int) -> int:
    """A 32-bit seed that depends on all the numbers and their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _steps_of_epoch(
    labels: Int[torch.Tensor, " scan"], settings: TrainingSettings, epoch: int
) -> list[list[int]]:
    """The example numbers of each step of an epoch."""
    generator = torch.Generator().manual_seed(step_seed(settings.seed, epoch, 1))
    if settings.sampling == "balanced":
        weights = class_weights(labels, int(labels.max()) + 1)[labels]
        order = torch.multinomial(weights, len(labels), replacement=True, generator=generator)
    else:
        order = torch.randperm(len(labels), generator=generator)
    return in_steps(order.tolist(), settings.batch_size)


class Steps:
    """The example numbers of one step after the other, epoch after epoch without end.

    One list for all epochs lets the next epoch be read while the last one is being judged.

    Args:
        labels: Label index of every training example.
        settings: Batch size, sampling and seed.
        epoch: The first one, from 0.
        first_step: Of that epoch.
        ranks: Whose share of each step is wanted.
    """

    def __init__(
        self,
        labels: Int[torch.Tensor, " scan"],
        settings: TrainingSettings,
        *,
        epoch: int = 0,
        first_step: int = 0,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ) -> None:
        self._labels, self._settings, self._ranks = labels, settings, ranks
        self._epoch, self._first_step = epoch, first_step

    def __iter__(self) -> Iterator[list[int]]:
        """One list of example numbers per step."""
        epoch, first_step = self._epoch, self._first_step
        while True:
            for step in _steps_of_epoch(self._labels, self._settings, epoch)[first_step:]:
                # A process without a share takes part with a scan that counts for nothing.
                yield self._ranks.share(step) or step[:1]
            epoch, first_step = epoch + 1, 0

"""Which examples make up which step: a pure function of seed, epoch and step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int

from chestct.training.loading import in_steps
from chestct.training.objective import class_weights
from chestct.training.ranks import Ranks
from chestct.training.settings import TrainingSettings


def step_seed(*numbers: int) -> int:
    """A 32-bit seed that depends on all the numbers and their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def steps_of_epoch(
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
            for step in steps_of_epoch(self._labels, self._settings, epoch)[first_step:]:
                # A process without a share takes part with a scan that counts for nothing.
                yield self._ranks.share(step) or step[:1]
            epoch, first_step = epoch + 1, 0

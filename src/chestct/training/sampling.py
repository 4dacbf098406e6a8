"""Which examples make up which step: a pure function of seed, epoch and step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import Sampler

from chestct.training.objective import class_weights
from chestct.training.settings import TrainingSettings


def step_seed(*numbers: int) -> int:
    """A 32-bit seed that depends on all the numbers and their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class StepSampler(Sampler[list[int]]):
    """The example numbers of an epoch's steps, from a given step on."""

    def __init__(
        self,
        labels: Int[torch.Tensor, " scan"],
        settings: TrainingSettings,
        *,
        epoch: int,
        first_step: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(step_seed(settings.seed, epoch, 1))
        if settings.sampling == "balanced":
            weights = class_weights(labels, int(labels.max()) + 1)[labels]
            order = torch.multinomial(weights, len(labels), replacement=True, generator=generator)
        else:
            order = torch.randperm(len(labels), generator=generator)
        size = settings.batch_size
        steps = [order[i : i + size].tolist() for i in range(0, len(order), size)]
        self.steps: list[list[int]] = steps[first_step:]

    def __iter__(self) -> Iterator[list[int]]:
        """One list of example numbers per step."""
        return iter(self.steps)

    def __len__(self) -> int:
        """Steps that are left."""
        return len(self.steps)

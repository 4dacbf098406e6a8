"""Learning rates and stopping as pure functions of where a run stands.

Nothing here remembers anything, so a run that is resumed cannot differ from one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from chestct.training.settings import TrainingSettings


def learning_rate(
    settings: TrainingSettings, epoch: float, validation_losses: Sequence[float]
) -> float:
    """The rate of a step.

    Args:
        settings: Of the run.
        epoch: Epochs done so far, with the fraction of the one under way.
        validation_losses: One per finished epoch.
    """
    rate = settings.learning_rate
    if epoch < settings.warmup_epochs:
        return rate * max(epoch, 0.02) / settings.warmup_epochs
    if settings.schedule == "cosine":
        span = max(settings.epochs - settings.warmup_epochs, 1e-9)
        done = min((epoch - settings.warmup_epochs) / span, 1.0)
        return rate * 0.5 * (1 + math.cos(math.pi * done))
    if settings.schedule == "range":
        return rate * float(10 ** (int(epoch) / settings.drop_every_epochs))
    if settings.schedule == "piecewise":
        return rate * settings.drop_factor ** (int(epoch) // settings.drop_every_epochs)
    if settings.schedule == "plateau":
        drops = num_plateaus(validation_losses, settings.drop_every_epochs)
        return rate * settings.drop_factor**drops
    return rate


def num_plateaus(losses: Sequence[float], patience: int) -> int:
    """How often `patience` epochs in a row brought no lower loss."""
    lowest, since, plateaus = math.inf, 0, 0
    for loss in losses:
        since = 0 if loss < lowest else since + 1
        lowest = min(lowest, loss)
        if since == patience:
            plateaus, since = plateaus + 1, 0
    return plateaus


def epochs_since_best(losses: Sequence[float]) -> int:
    """Epochs after the one with the lowest loss; 0 when it is the last, or there is none."""
    if not losses:
        return 0
    return len(losses) - 1 - min(range(len(losses)), key=lambda i: losses[i])

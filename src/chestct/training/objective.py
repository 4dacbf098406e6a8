"""What a step minimises: cross-entropy, its weights, and mixup."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import nn

from chestct.errors import TrainingError
from chestct.training.settings import TrainingSettings


class DivergedError(TrainingError):
    """The loss is no longer a number."""


def class_weights(
    labels: Int[torch.Tensor, " scan"], num_classes: int
) -> Float[torch.Tensor, " class"]:
    """Inverse share of each class, scaled so that the mean over the scans is one.

    A class without scans gets weight zero.
    """
    counts = torch.bincount(labels, minlength=num_classes).float()
    present = int((counts > 0).sum())
    return torch.where(counts > 0, len(labels) / (present * counts.clamp(min=1)), 0.0)


def soft_targets(
    labels: Int[torch.Tensor, " scan"], num_classes: int
) -> Float[torch.Tensor, "scan class"]:
    """One row per scan with a one at its class."""
    return nn.functional.one_hot(labels, num_classes).float()


def mix_up(
    batch: Float[torch.Tensor, "scan ..."],
    lungs: Float[torch.Tensor, "scan ..."],
    targets: Float[torch.Tensor, "scan class"],
    alpha: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blend each scan with another one of the batch (Zhang et al. 2018).

    The lung mask becomes the union of both, since both are now in view.
    """
    order = torch.randperm(len(batch), generator=generator)
    # torch's Beta takes no generator, so it is seeded from ours.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        share = float(torch.distributions.Beta(alpha, alpha).sample())
    mixed = share * batch + (1 - share) * batch[order]
    return mixed, torch.maximum(lungs, lungs[order]), share * targets + (1 - share) * targets[order]


def loss(
    logits: Float[torch.Tensor, "scan class"],
    targets: Float[torch.Tensor, "scan class"],
    settings: TrainingSettings,
    weights: Float[torch.Tensor, " class"] | None = None,
) -> Float[torch.Tensor, ""]:
    """Cross-entropy with soft targets, in float32 whatever the network ran in."""
    return nn.functional.cross_entropy(
        logits.float(), targets, weight=weights, label_smoothing=settings.label_smoothing
    )

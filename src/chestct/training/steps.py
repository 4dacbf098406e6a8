"""What one step is made of: the loss, the rate, BatchNorm's warm-up, activations made again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from chestct.errors import TrainingError
from chestct.networks.blocks import BasicBlock, Bottleneck
from chestct.networks.maseres import SEResBlock
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
        drops = _num_plateaus(validation_losses, settings.drop_every_epochs)
        return rate * settings.drop_factor**drops
    return rate


def _num_plateaus(losses: Sequence[float], patience: int) -> int:
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


NEGLIGIBLE_START: Final = 1e-4
"""Share of the start values in the moving statistics that is not worth a word."""


class BatchNormWarmUp:
    """Sets the momentum of a network's BatchNorms before each pass.

    Args:
        network: Its BatchNorms are found now, after any replacing.
        is_wanted: Where not, nothing is ever changed.
    """

    def __init__(self, network: nn.Module, *, is_wanted: bool) -> None:
        self._momenta = _momenta(network) if is_wanted else []

    def before_pass(self, number: int) -> None:
        """Set the momentum for pass `number` of the run, from 0."""
        for norm, momentum in self._momenta:
            norm.momentum = max(momentum, 1 / (number + 1))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """When left, every momentum is the network's own again."""
        try:
            yield
        finally:
            for norm, momentum in self._momenta:
                norm.momentum = momentum


def remark_on_start(network: nn.Module, settings: TrainingSettings, num_scans: int) -> str | None:
    """What to say of a run too short for its network's momentum; None where it is long enough."""
    passes = settings.epochs * math.ceil(num_scans / settings.batch_size)
    rest = max(((1 - momentum) ** passes for _, momentum in _momenta(network)), default=0.0)
    if settings.batch_norm_warm_up or rest <= NEGLIGIBLE_START:
        return None
    return (
        f"After {passes} passes BatchNorm's moving statistics will still hold {rest:.2g} of what "
        "they began with, and may be wrong by far more: set training.batch_norm_warm_up to true, "
        "or train for longer."
    )


def _momenta(network: nn.Module) -> list[tuple[_BatchNorm, float]]:
    """BatchNorms with moving averages; None in place of a momentum is a plain mean already."""
    return [
        (module, module.momentum)
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.momentum is not None
    ]


RESIDUAL_BLOCKS: Final = (BasicBlock, Bottleneck, SEResBlock)


@contextmanager
def recomputing(network: nn.Module, *, is_wanted: bool = True) -> Iterator[None]:
    """While entered, a network's residual blocks keep their input only, and are computed again.

    Raises:
        TrainingError: It has no residual blocks.
    """
    blocks = [each for each in network.modules() if isinstance(each, RESIDUAL_BLOCKS)]
    if is_wanted and not blocks:
        msg = "training.checkpoint_activations is for residual networks; this one has no blocks."
        raise TrainingError(f"{msg} Set it to false.")
    wrapped = blocks if is_wanted else []
    for block in wrapped:
        block.forward = partial(_recomputed, block, block.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block in wrapped:
            # The class's own method is seen again.
            del block.forward


def _recomputed(
    block: nn.Module, forward: Callable[..., torch.Tensor], *inputs: object
) -> torch.Tensor:
    """A block's output, its inside forgotten where the way back will ask for it."""
    if not torch.is_grad_enabled():
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For the pass forward, and for the one that repeats it: statistics must not move twice."""
        return nullcontext(), _statistics_put_aside(block)

    output: torch.Tensor = checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)
    return output


@contextmanager
def _statistics_put_aside(block: nn.Module) -> Iterator[None]:
    """While entered, the block's BatchNorms change copies of their running statistics."""
    with ExitStack() as stack:
        for module in block.modules():
            if isinstance(module, _BatchNorm):
                kept = module._buffers
                module._buffers = {name: _copy(value) for name, value in kept.items()}
                stack.callback(setattr, module, "_buffers", kept)
        yield


def _copy(value: Any) -> Any:
    return None if value is None else value.clone()

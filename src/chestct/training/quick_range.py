"""The quick form of the learning-rate range test: one step of the training for each rate.

A step is the one that the training would take: of as many passes as it accumulates, weighed and
mixed as the settings say, in their precision and memory layout. `LEFT_OUT` names the exceptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import nn

from chestct.datasets.augment import AnyAugmentation, vary_batch
from chestct.training.devices import MEMORY_FORMAT, device_of, settle_precision, tuned_for
from chestct.training.loading import Batch, batches_on, make_loader
from chestct.training.lr_range import LOWEST_RATE, RangeTest, smooth
from chestct.training.objective import DivergedError, class_weights, loss, mix_up, soft_targets
from chestct.training.recompute import recomputing
from chestct.training.run import LabelledSets, make_optimizer
from chestct.training.sampling import Steps, step_seed
from chestct.training.settings import TrainingSettings

QUICK_STEPS: Final = 200
"""Where nothing is said."""
HIGHEST_RATE: Final = 1.0
BREAKS_AT: Final = 4.0
"""The test stops when the smoothed loss is this many times its lowest."""

OWN: Final = (
    "epochs",
    "learning_rate",
    "schedule",
    "warmup_epochs",
    "drop_every_epochs",
    "drop_factor",
    "early_stopping_epochs",
    "keep",
    "checkpoint_every_s",
    "sync_batch_norm",
)
"""Settings of a training that have no meaning here: rates, an end, what is kept, processes."""
LEFT_OUT: Final = {
    "compile": "in so few steps compiling takes longer than it saves",
    "batch_norm_warm_up": "it changes what a network that is judged normalises with, and here only "
    "the training loss is looked at",
}
"""Settings that are not honoured, and why; all that stand in neither table are."""


def range_per_step(
    network: nn.Module,
    sets: LabelledSets,
    settings: TrainingSettings,
    *,
    augmentation: AnyAugmentation | None = None,
    steps: int = QUICK_STEPS,
) -> RangeTest:
    """Train while the rate rises with every step by the same factor, from 1e-8 to 1.

    It ends early where the smoothed training loss is four times its lowest, or no number.

    Args:
        network: Freshly drawn; changed in place.
        sets: What it learns from.
        settings: Batch, optimiser and the like, but for those in `OWN` and `LEFT_OUT`.
        augmentation: As in the training to come.
        steps: How many at most.

    Raises:
        DivergedError: The very first loss is no number.
        TrainingError: Blocks are to be computed again and the network has none.
    """
    quick = _begin(network, sets, settings, augmentation)
    rates: list[float] = []
    losses: list[float] = []
    with ExitStack() as stack:
        stack.enter_context(tuned_for(quick.device))
        stack.enter_context(recomputing(network, is_wanted=settings.checkpoint_activations))
        batches = stack.enter_context(closing(_batches(quick, sets)))
        for number in range(steps):
            rate = LOWEST_RATE * (HIGHEST_RATE / LOWEST_RATE) ** (number / max(steps - 1, 1))
            value = _gather_gradients(quick, batches, number)
            if not math.isfinite(value):
                break
            rates.append(rate)
            losses.append(value)
            if _is_broken(losses):
                break
            _optimizer_step(quick, rate)
    if not rates:
        raise DivergedError("The first loss is no number: look at the scans and the settings.")
    return RangeTest.of(rates, losses, is_per_epoch=False)


def note_left_out(settings: TrainingSettings, note: Callable[[str], None]) -> None:
    """Say which of the chosen settings have no effect here; nothing where all have."""
    usual = TrainingSettings()
    chosen = [name for name in LEFT_OUT if getattr(settings, name) != getattr(usual, name)]
    if chosen:
        listed = "; ".join(f"training.{name} ({LEFT_OUT[name]})" for name in chosen)
        note(f"The quick range test leaves out {listed}. With --epochs it is honoured.")


@dataclass(frozen=True, eq=False)
class _Quick:
    """Everything a step needs."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    settings: TrainingSettings
    augmentation: AnyAugmentation | None
    num_classes: int
    weights: Float[torch.Tensor, " class"] | None
    device: torch.device


def _begin(
    network: nn.Module,
    sets: LabelledSets,
    settings: TrainingSettings,
    augmentation: AnyAugmentation | None,
) -> _Quick:
    """Set everything up as a training does: memory layout, precision, weights of the classes."""
    device = device_of(network)
    network.to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]
    is_weighted = settings.class_weights == "balanced"
    weights = class_weights(sets.training_labels, sets.num_classes) if is_weighted else None
    precision = settle_precision(settings.precision, None, device)
    return _Quick(
        network=network,
        optimizer=make_optimizer(network, settings),
        settings=settings.model_copy(update={"precision": precision}),
        augmentation=augmentation,
        num_classes=sets.num_classes,
        weights=None if weights is None else weights.to(device),
        device=device,
    )


def _batches(quick: _Quick, sets: LabelledSets) -> Generator[Batch]:
    """Batches without end, epoch after epoch, where the network's weights lie."""
    steps = Steps(sets.training_labels, quick.settings)
    workers, device = quick.settings.workers, quick.device
    return batches_on(device, make_loader(sets.training, steps, workers=workers, device=device))


def _gather_gradients(quick: _Quick, batches: Iterator[Batch], step: int) -> float:
    """Gradients of all passes of a step; returns their mean loss, which may be no number."""
    num = quick.settings.accumulation
    total = 0.0
    for number in range(step * num, (step + 1) * num):
        value = _pass(quick, next(batches), number)
        total += float(value.detach())
        if not math.isfinite(total):
            break
        (value / num).backward()  # type: ignore[no-untyped-call]
    return total / num


def _pass(quick: _Quick, batch: Batch, number: int) -> Float[torch.Tensor, ""]:
    """The loss of one batch, its randomness that of the pass's number."""
    scans, lungs, labels = batch
    settings = quick.settings
    generator = torch.Generator().manual_seed(step_seed(settings.seed, number))
    torch.manual_seed(step_seed(settings.seed, number))
    if quick.augmentation is not None:
        scans, lungs = vary_batch(scans, lungs, quick.augmentation, generator)
    quick.network.train()
    scans = scans.contiguous(memory_format=MEMORY_FORMAT)
    targets = soft_targets(labels, quick.num_classes)
    if settings.mixup_alpha > 0:
        scans, lungs, targets = mix_up(scans, lungs, targets, settings.mixup_alpha, generator)
    is_half = settings.precision == "bf16"
    with torch.autocast(quick.device.type, torch.bfloat16, enabled=is_half):
        logits = quick.network(scans, lungs)
    return loss(logits, targets, settings, quick.weights)


def _optimizer_step(quick: _Quick, rate: float) -> None:
    for group in quick.optimizer.param_groups:
        group["lr"] = rate
    quick.optimizer.step()
    quick.optimizer.zero_grad(set_to_none=True)


def _is_broken(losses: Sequence[float]) -> bool:
    smoothed = smooth(losses)
    return smoothed[-1] > BREAKS_AT * min(smoothed)

"""What one step is made of: its examples, the loss, the rate, BatchNorm's warm-up, recomputing."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, default_collate

from chestct.datasets.workers import end_with_parent
from chestct.errors import ChestCTError, TrainingError, UnknownNameError
from chestct.networks.blocks import BasicBlock, Bottleneck, PooledNetwork, is_in_head
from chestct.networks.encoders import SegResBlock, TokenBlock
from chestct.networks.maseres import SEResBlock
from chestct.training.distributed import Ranks
from chestct.training.settings import TrainingSettings


class DivergedError(TrainingError):
    """The loss is no longer a number."""


def class_weights(labels: torch.Tensor, num_classes: int) -> Float[torch.Tensor, " class"]:
    """Inverse share of each class, scaled so that the mean over the scans is one.

    A class without scans gets weight zero. Of findings it is what the scans with each weigh, so
    that they count as much as those without.

    `labels` are indices, or rows as `are_findings` tells.
    """
    if are_findings(labels):
        num_with = labels.nansum(dim=0)
        return (~labels.isnan()).sum(dim=0).sub(num_with) / num_with.clamp(min=1)
    counts = torch.bincount(labels, minlength=num_classes).float()
    present = int((counts > 0).sum())
    return torch.where(counts > 0, len(labels) / (present * counts.clamp(min=1)), 0.0)


def are_findings(labels: torch.Tensor) -> bool:
    """Whether labels are rows with 1, 0 or NaN (not known) per finding, and no indices."""
    return labels.ndim == 2


def as_targets(labels: torch.Tensor, num_classes: int) -> Float[torch.Tensor, "scan class"]:
    """What a network should say of each scan: all of one class, or of each finding 1, 0 or NaN."""
    if are_findings(labels):
        return labels.float()
    return nn.functional.one_hot(labels, num_classes).float()


def mix_up(
    batch: Float[torch.Tensor, "scan ..."],
    lungs: Float[torch.Tensor, "scan ..."],
    targets: Float[torch.Tensor, "scan class"],
    alpha: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blend each scan with another one of the batch (Zhang et al. 2018).

    The lung mask becomes the union of both, since both are now in view. A finding is known where
    it is known of both.
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


def findings_loss(
    logits: Float[torch.Tensor, "scan finding"],
    targets: Float[torch.Tensor, "scan finding"],
    label_smoothing: float = 0.0,
    weights: Float[torch.Tensor, " finding"] | None = None,
) -> Float[torch.Tensor, ""]:
    """Binary cross-entropy in nats, the mean over scans and findings that are known; else 0.

    `targets` are 1, 0, between them, or NaN where not known, and smoothing moves them towards 0.5.
    `weights` say how much more scans with each finding count than those without.
    """
    is_known = ~targets.isnan()
    wanted = targets.nan_to_num() * (1 - label_smoothing) + label_smoothing / 2
    each = nn.functional.binary_cross_entropy_with_logits(
        logits.float(), wanted, pos_weight=weights, reduction="none"
    )
    return (each * is_known).sum() / is_known.sum().clamp(min=1)


def learning_rate(
    settings: TrainingSettings, epoch: float, validation_losses: Sequence[float]
) -> float:
    """The rate of a step, by epochs done, the fraction of the one under way among them."""
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


_BACKBONE: Final = "backbone"
_HEAD: Final = "head"


def check_parts(network: nn.Module, parts: Iterable[str]) -> None:
    """Refuse names that are no part of a network, which may be on the meta device.

    Parts are dotted names of modules, or "backbone" and "head" of a network that has both.

    Raises:
        UnknownNameError: One is not; the message has the nearest names.
    """
    modules = [name for name, _ in network.named_modules() if name]
    is_divided = isinstance(network, PooledNetwork) and bool(network.HEAD)
    known = [*([_BACKBONE, _HEAD] if is_divided else []), *modules]
    for part in parts:
        if part not in known:
            nearest = get_close_matches(part, known, n=3, cutoff=0.5)
            meant = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
            top = ", ".join(name for name in known if "." not in name)
            raise UnknownNameError(f"This network has no part '{part}'.{meant} Known: {top}.")


def check_something_learns(network: nn.Module, parts: Sequence[str]) -> None:
    """Refuse to freeze all of a network.

    Raises:
        TrainingError: No weight is left to learn.
    """
    if all(_is_in(network, name, parts) for name, _ in network.named_parameters()):
        raise TrainingError("Nothing is left to learn: leave a part out, such as the head.")


def freeze(network: nn.Module, parts: Sequence[str]) -> list[_BatchNorm]:
    """Let some parts (see `check_parts`) learn no more; returns the BatchNorms that stand still."""
    for name, parameter in network.named_parameters():
        if _is_in(network, name, parts):
            parameter.requires_grad_(False)
    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and _is_in(network, name, parts)
    ]


def learns_head_alone(network: nn.Module, settings: TrainingSettings) -> bool:
    """Whether the settings freeze all of a network but its head."""
    if not settings.freeze or not isinstance(network, PooledNetwork) or not network.HEAD:
        return False
    return all(
        is_in_head(network, name) or _is_in(network, name, settings.freeze)
        for name, _ in network.named_parameters()
    )


def parameter_groups(network: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """A network's parameters for its optimiser, one group per `factor` of the learning rate.

    `rates` is part to factor, the parts as `check_parts` takes them; the longest name counts.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        parts = [part for part in rates if _is_in(network, name, [part])]
        # A module's own name says more than the words for half of the network.
        closest = max(parts, key=lambda p: (p not in (_BACKBONE, _HEAD), len(p)), default=None)
        factor = 1.0 if closest is None else rates[closest]
        groups.setdefault(factor, []).append(parameter)
    return [{"params": found, "factor": factor} for factor, found in groups.items()]


def _is_in(network: nn.Module, name: str, parts: Iterable[str]) -> bool:
    """Whether a parameter or module is in one of the parts."""
    half = None
    if isinstance(network, PooledNetwork) and network.HEAD:
        half = _HEAD if is_in_head(network, name) else _BACKBONE
    return any(part == half or f"{name}.".startswith(f"{part}.") for part in parts)


_NEGLIGIBLE_START: Final = 1e-4
"""Share of the start values in the moving statistics that is not worth a word."""


class BatchNormWarmUp:
    """Sets the momentum of a network's BatchNorms before each pass, where that is wanted.

    They are found when this is made, after any replacing.
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
    is_given = settings.start_from is not None
    if is_given or settings.batch_norm_warm_up or rest <= _NEGLIGIBLE_START:
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


_RESIDUAL_BLOCKS: Final = (BasicBlock, Bottleneck, SEResBlock, SegResBlock, TokenBlock)


@contextmanager
def recomputing(network: nn.Module, *, is_wanted: bool = True) -> Iterator[None]:
    """While entered, a network's residual blocks keep their input only, and are computed again.

    Raises:
        TrainingError: It has no residual blocks.
    """
    blocks = [each for each in network.modules() if isinstance(each, _RESIDUAL_BLOCKS)]
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


LabelledInputs = Dataset[tuple[torch.Tensor, torch.Tensor, Any]]
"""Input (channel, depth, height, width), lungs (1, depth, height, width) and label index, or a row
of 1, 0 and NaN per finding."""

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Inputs, lungs and label indices of several examples."""

_MOST_WORKERS: Final = 8
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


def _num_workers(wanted: int | None, device: torch.device) -> int:
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
    return min(max(per_gpu - 1, 1), _MOST_WORKERS)


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
    """
    count = _num_workers(workers, device)
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
    labels: torch.Tensor, settings: TrainingSettings, epoch: int
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

    `labels` are as `LabelledSets.training_labels` gives them, `epoch` and `first_step` where to
    begin.
    """

    def __init__(
        self,
        labels: torch.Tensor,
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

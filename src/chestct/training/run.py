"""A training run: what it consists of, how it is begun, stopped between steps and gone on with.

What it consists of is chosen here: which parts learn and how fast, how classes are weighed,
BatchNorm's warm-up, recomputing. Where memory runs out it is said what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
)
from copy import deepcopy
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

from chestct.datasets.augment import AnyAugmentation
from chestct.errors import ReadError, TrainingError, UnknownNameError, WriteError
from chestct.networks.blocks import BasicBlock, Bottleneck, PooledNetwork, is_in_head
from chestct.networks.encoders import SegResBlock, TokenBlock
from chestct.networks.maseres import SEResBlock
from chestct.storage import write_text, write_whole_with
from chestct.training.distributed import (
    MEMORY_FORMAT,
    current_ranks,
    device_of,
    from_main,
    on_main,
    settle_precision,
)
from chestct.training.settings import TrainingSettings

_NETWORK = "network."
_AVERAGE = "average."
_OPTIMIZER = "optimizer."


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's weights, aside first and then renamed."""
    _save(path, {name: value.detach() for name, value in network.state_dict().items()}, {})


def save_checkpoint(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, object],
    *,
    average: nn.Module | None = None,
) -> None:
    """Write everything a run needs to go on, aside first and then renamed.

    Of the optimiser the state of each parameter is kept; rates come from the schedule.
    """
    tensors = {_NETWORK + name: value for name, value in network.state_dict().items()}
    if average is not None:
        tensors |= {_AVERAGE + name: value for name, value in average.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"{_OPTIMIZER}{number}.{name}"] = torch.as_tensor(value)
    _save(path, tensors, {"progress": json.dumps(progress)})


def _load_checkpoint(path: Path, run: Run) -> dict[str, object]:
    """Put a run's network, average and optimiser back where they were; returns `progress`.

    Raises:
        ReadError: The file is damaged or belongs to another network.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            progress = json.loads((stored.metadata() or {})["progress"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        for prefix, module in ((_NETWORK, run.network), (_AVERAGE, run.average)):
            if module is not None:
                own = {
                    n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
                }
                module.load_state_dict(own)
        _load_optimizer(run.optimizer, tensors)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        msg = (
            f"{path.name} in {path.parent.name} is not a checkpoint of this run ({error}). "
            "Start in a new folder, or restore the settings the run was started with."
        )
        raise ReadError(msg) from error
    return dict(progress)


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Give every parameter its stored state back."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(_OPTIMIZER):
            number, key = name.removeprefix(_OPTIMIZER).split(".", 1)
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file aside and rename it, so that no half file is ever found."""
    stored = {name: value.contiguous() for name, value in tensors.items()}
    try:
        write_whole_with(path, lambda aside: save_file(stored, aside, metadata))
    except (SafetensorError, WriteError) as error:
        msg = (
            f"{path.name} could not be written in {path.parent.name} ({error}). The last one is "
            "untouched: free some space and start the same command again."
        )
        raise WriteError(msg) from error


_OPTIMIZERS: dict[
    str, Callable[[list[dict[str, Any]], TrainingSettings], torch.optim.Optimizer]
] = {
    "adam": lambda p, s: torch.optim.Adam(
        p, s.learning_rate, eps=s.adam_epsilon, weight_decay=s.weight_decay
    ),
    "adamw": lambda p, s: torch.optim.AdamW(
        p, s.learning_rate, eps=s.adam_epsilon, weight_decay=s.weight_decay
    ),
    "sgd": lambda p, s: torch.optim.SGD(
        p, s.learning_rate, momentum=s.momentum, weight_decay=s.weight_decay
    ),
    "rmsprop": lambda p, s: torch.optim.RMSprop(
        p, s.learning_rate, momentum=s.momentum, weight_decay=s.weight_decay
    ),
}


_COMPILER: Final = "inductor"
"""Of `training.compile`; the one that PyTorch takes when none is named."""

FREE_SETTINGS: Final = ("workers", "checkpoint_every_s", "checkpoint_activations", "start_from")
"""Settings that may differ when a run goes on: they change no result, or are but a place."""


@dataclass(frozen=True, eq=False)
class LabelledSets:
    """What a run learns from, what it is watched on, and `test`, which the loop leaves alone.

    The training examples' attribute `labels` lists their label indices.
    """

    training: LabelledInputs
    validation: LabelledInputs
    num_classes: int
    test: LabelledInputs | None = None

    @property
    def training_labels(self) -> torch.Tensor:
        """Label index of each example to learn from, or a row per example of findings."""
        return torch.as_tensor(self.training.labels)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class EpochLog:
    """What is written down of one epoch; memory is the most that a GPU's tensors took."""

    epoch: int
    learning_rate: float
    training_loss: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    gpu_memory_gib: float | None = None


@dataclass
class _Progress:
    """How far a run came: finished epochs, and steps and summed loss of the one under way."""

    step_in_epoch: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[EpochLog] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, from 0."""
        return len(self.history)

    @property
    def validation_losses(self) -> list[float]:
        """One per finished epoch."""
        return [entry.validation_loss for entry in self.history]


@dataclass(frozen=True, eq=False)
class Run:
    """Everything a step needs.

    `called` is the network as a training step calls it: compiled, or with the gradients averaged
    over all processes. `network` has the same weights. `average` is the moving average of both,
    where there is one. `frozen_norms` are its BatchNorms that stand still.
    """

    network: nn.Module
    called: Callable[..., torch.Tensor]
    optimizer: torch.optim.Optimizer
    sets: LabelledSets
    settings: TrainingSettings
    augmentation: AnyAugmentation | None
    labels: torch.Tensor
    weights: Float[torch.Tensor, " class"] | None
    folder: Path
    progress: _Progress
    warm_up: _BatchNormWarmUp
    frozen_norms: list[_BatchNorm]
    average: nn.Module | None

    @property
    def judged(self) -> nn.Module:
        """What is evaluated and kept: the network, or its average."""
        return self.network if self.average is None else self.average

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return device_of(self.network)

    @property
    def num_in_step(self) -> int:
        """Examples of the step under way, over all processes; the last of an epoch has fewer."""
        size = self.settings.batch_size
        return min(size, len(self.labels) - self.progress.step_in_epoch * size)

    @property
    def steps_per_epoch(self) -> int:
        """Forward passes of one epoch."""
        return math.ceil(len(self.labels) / self.settings.batch_size)

    @property
    def num_passes(self) -> int:
        """Forward passes done since the run began, by every process its share of them."""
        return self.progress.epoch * self.steps_per_epoch + self.progress.step_in_epoch

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or early stopping says so."""
        patience = self.settings.early_stopping_epochs
        waited = epochs_since_best(self.progress.validation_losses)
        is_waiting = patience is None or waited < patience
        return self.progress.epoch >= self.settings.epochs or not is_waiting


def start_run(
    network: nn.Module,
    sets: LabelledSets,
    settings: TrainingSettings,
    folder: Path,
    augmentation: AnyAugmentation | None,
) -> Run:
    """Set a run up, from its checkpoint where there is one.

    Raises:
        TrainingError: The folder holds a run with other settings, or not all processes see it, or a
            step has too few examples for the processes or for the network.
        ReadError: Its checkpoint is damaged or of another network.
    """
    _require_shares(network, settings, len(sets.training_labels))
    device = device_of(network)
    precision = from_main(on_main(lambda: _begin_folder(folder, settings, device)))
    settings = settings.model_copy(update={"precision": precision})
    _join_batch_norms(network, settings)
    run = make_run(network, sets, settings, augmentation, folder=folder)
    called = _as_called(network, settings)
    return replace(run, called=called, progress=_take_up(run))


def make_run(
    network: nn.Module,
    sets: LabelledSets,
    settings: TrainingSettings,
    augmentation: AnyAugmentation | None,
    *,
    folder: Path = Path(),
) -> Run:
    """A run at its beginning: parts frozen, memory laid out, a fresh optimiser, class weights.

    The precision of the settings is settled. Nothing is written in the folder.
    """
    labels, device = sets.training_labels, device_of(network)
    network.to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]
    is_weighted = settings.class_weights == "balanced"
    weights = class_weights(labels, sets.num_classes).to(device) if is_weighted else None
    return Run(
        network=network,
        called=network,
        optimizer=_OPTIMIZERS[settings.optimizer](
            _parameter_groups(network, settings.rates), settings
        ),
        sets=sets,
        settings=settings,
        augmentation=augmentation,
        labels=labels,
        weights=weights,
        folder=folder,
        progress=_Progress(),
        warm_up=_BatchNormWarmUp(network, is_wanted=settings.batch_norm_warm_up),
        frozen_norms=freeze(network, settings.freeze),
        average=deepcopy(network) if settings.average_weights else None,
    )


def _join_batch_norms(network: nn.Module, settings: TrainingSettings) -> None:
    """Replace BatchNorms by those that see the batch of all GPUs, where they are to."""
    is_on_gpu = device_of(network).type == "cuda"
    if not current_ranks().is_alone and is_on_gpu and settings.sync_batch_norm:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]


def _as_called(network: nn.Module, settings: TrainingSettings) -> Callable[..., torch.Tensor]:
    """The network wrapped for a training step."""
    device, ranks = device_of(network), current_ranks()
    called = torch.compile(network, backend=_COMPILER) if settings.compile else network
    if ranks.is_alone:
        return called
    return DistributedDataParallel(called, device_ids=[device] if device.type == "cuda" else None)


def _take_up(run: Run) -> _Progress:
    """How far the run came, network, average and optimiser put back to there.

    Raises:
        TrainingError: Another process sees another folder.
    """
    progress = _Progress()
    checkpoint = run.folder / "checkpoint.safetensors"
    if checkpoint.is_file():
        stored = _load_checkpoint(checkpoint, run)
        history = [EpochLog(**entry) for entry in stored.pop("history")]  # type: ignore[attr-defined]
        progress = _Progress(**stored, history=history)  # type: ignore[arg-type]
    here = [progress.epoch, progress.step_in_epoch]
    if from_main(here) != here:
        name = run.folder.name
        msg = f"Not all processes see the same {name}. Put it on a disk that all can read."
        raise TrainingError(msg)
    return progress


def _require_shares(network: nn.Module, settings: TrainingSettings, num: int) -> None:
    """Refuse batches that are too small for the processes, or for BatchNorm over scans alone."""
    size, batch_size = current_ranks().size, settings.batch_size
    if batch_size < size:
        msg = (
            f"training.batch_size is {batch_size}, of which {size} processes cannot each take a "
            "share. Set it to the number of processes or a multiple."
        )
        raise TrainingError(msg)
    last = num % batch_size or batch_size
    has_norm_over_scans = any(isinstance(each, nn.BatchNorm1d) for each in network.modules())
    if has_norm_over_scans and last // size < 2:
        msg = (
            f"This network's BatchNorm needs two scans at once. With {num} scans to train on, "
            f"training.batch_size {batch_size} and {size} process(es) one would be alone in the "
            "last step of an epoch: choose another batch_size."
        )
        raise TrainingError(msg)


def _begin_folder(folder: Path, settings: TrainingSettings, device: torch.device) -> str:
    """Write the settings down, or refuse when the folder's run has others; settles the precision.

    Returns:
        The precision.
    """
    path = folder / "settings.json"
    before = json.loads(path.read_text()) if path.is_file() else None
    earlier = before.get("precision") if before else None
    precision = settle_precision(settings.precision, earlier, device)
    now = {**settings.model_dump(mode="json"), "precision": precision}
    if before is None:
        write_text(path, json.dumps(now, indent=1) + "\n")
        return precision
    # A setting that came after the run began had its default before.
    before = {**TrainingSettings().model_dump(mode="json"), **before}
    changed = [n for n in now if before.get(n) != now[n] and n not in FREE_SETTINGS]
    if changed:
        listed = ", ".join(f"{name} was {before.get(name)}, is {now[name]}" for name in changed)
        msg = f"{folder.name} holds a run with other settings: {listed}. Use a new folder."
        raise TrainingError(msg)
    return precision


# On the CPU, and for some libraries of a GPU, there is no class of its own for it, only words.
_MEMORY_WORDS: Final = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "unable to allocate",
    "alloc_failed",
    "bad_alloc",
)
_SHARED_WORDS: Final = ("shared memory", "/dev/shm", "semlock")
_READER_WORDS: Final = ("dataloader worker", "data loader worker")


@contextmanager
def memory_explained(folder: Path) -> Iterator[None]:
    """Turn PyTorch's many ways of running out of memory into one that says what to do.

    Raises:
        TrainingError: Memory ran out inside, of a GPU, the machine or a process that reads scans.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        words = str(error).lower()
        if any(each in words for each in _READER_WORDS):
            remedy = "A process that reads scans was ended, as happens when memory runs out. Set "
            remedy += "fewer training.workers, or none, and start the same command again"
            raise TrainingError(f"{remedy}: {folder.name} goes on from its checkpoint.") from error
        if any(each in words for each in _SHARED_WORDS):
            msg = "Processes that read scans cannot share memory with this one, as where /dev/shm "
            msg += "may not be written to. Make it writable, or set training.workers=0; "
            raise TrainingError(f"{msg}{folder.name} goes on from its checkpoint.") from error
        is_own_class = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not (is_own_class or any(each in words for each in _MEMORY_WORDS)):
            raise
        msg = (
            f"Memory ran out while training. {folder.name} goes on with "
            "--set training.checkpoint_activations=true where the network has residual blocks, or "
            "as it is where there is more memory. Else use a new folder and a smaller "
            "training.batch_size, with training.accumulation as many times larger."
        )
        raise TrainingError(msg) from error


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


def _parameter_groups(network: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
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


class _BatchNormWarmUp:
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


def learns_head_alone(network: nn.Module, settings: TrainingSettings) -> bool:
    """Whether the settings freeze all of a network but its head."""
    if not settings.freeze or not isinstance(network, PooledNetwork) or not network.HEAD:
        return False
    return all(
        is_in_head(network, name) or _is_in(network, name, settings.freeze)
        for name, _ in network.named_parameters()
    )

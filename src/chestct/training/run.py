"""A training run: what it consists of, how it is begun, stopped between steps and gone on with.

Where memory runs out it is said what to do.
"""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from chestct.datasets.augment import AnyAugmentation
from chestct.errors import ReadError, TrainingError, WriteError
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
from chestct.training.steps import (
    BatchNormWarmUp,
    LabelledInputs,
    class_weights,
    epochs_since_best,
    freeze,
    parameter_groups,
)

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
    warm_up: BatchNormWarmUp
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
            parameter_groups(network, settings.rates), settings
        ),
        sets=sets,
        settings=settings,
        augmentation=augmentation,
        labels=labels,
        weights=weights,
        folder=folder,
        progress=_Progress(),
        warm_up=BatchNormWarmUp(network, is_wanted=settings.batch_norm_warm_up),
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


class StopRequest:
    """While entered, turns Ctrl-C and SIGTERM into a request that is looked at between steps.

    A second signal acts at once, as it would have without this.
    """

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[int, signal.Handlers | None] = {}

    def __bool__(self) -> bool:
        """Whether a signal came."""
        return self._number != 0

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal ended; that of SIGTERM by default.

        Another process of the same training may have got the signal.
        """
        return 128 + (self._number or signal.SIGTERM)

    def __enter__(self) -> StopRequest:
        """Take the signals over; outside the main thread, Python does not allow that."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)  # type: ignore[assignment]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def stopped(folder: Path, stop: StopRequest) -> TrainingError:
    """What ends a run that was asked to stop, once its state is written."""
    place = Path(*folder.parts[-2:])
    error = TrainingError(
        f"Training was stopped; its state is in {place}. The same command goes on from there."
    )
    error.exit_code = stop.exit_code
    return error


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

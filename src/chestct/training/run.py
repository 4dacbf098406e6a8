"""A training run: what it consists of, and how it is begun or taken up again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import nn

from chestct.datasets.augmentations import AnyAugmentation
from chestct.errors import TrainingError
from chestct.training.checkpoints import load_checkpoint
from chestct.training.files import write_text
from chestct.training.objective import class_weights
from chestct.training.outputs import LabelledInputs
from chestct.training.schedules import epochs_since_best
from chestct.training.settings import TrainingSettings

_OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], TrainingSettings], torch.optim.Optimizer]] = {
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


FREE_SETTINGS: Final = ("workers", "checkpoint_every_s")
"""Settings that change no result and may differ when a run goes on."""


@dataclass(frozen=True, eq=False)
class LabelledSets:
    """What a run learns from and what it is watched on.

    Attributes:
        training: Examples to learn from; its `labels` attribute lists their label indices.
        validation: Examples of other patients, to choose the epoch by.
        num_classes: Length of the classifier's label list.
        test: Examples that the finished network is judged on, or None; the loop leaves them alone.
    """

    training: LabelledInputs
    validation: LabelledInputs
    num_classes: int
    test: LabelledInputs | None = None


@dataclass(frozen=True)
class EpochLog:
    """What is written down of one epoch."""

    epoch: int
    learning_rate: float
    training_loss: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


@dataclass
class Progress:
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
    """Everything a step needs."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    sets: LabelledSets
    settings: TrainingSettings
    augmentation: AnyAugmentation | None
    labels: Int[torch.Tensor, " scan"]
    weights: Float[torch.Tensor, " class"] | None
    folder: Path
    progress: Progress

    @property
    def steps_per_epoch(self) -> int:
        """Forward passes of one epoch."""
        return math.ceil(len(self.labels) / self.settings.batch_size)

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
        TrainingError: The folder holds a run with other settings.
        ReadError: Its checkpoint is damaged or of another network.
    """
    _agree_on_settings(folder, settings)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, settings)
    labels = torch.as_tensor(sets.training.labels)  # type: ignore[attr-defined]
    is_weighted = settings.class_weights == "balanced"
    weights = class_weights(labels, sets.num_classes) if is_weighted else None
    progress = Progress()
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.is_file():
        stored = load_checkpoint(checkpoint, network, optimizer)
        history = [EpochLog(**entry) for entry in stored.pop("history")]  # type: ignore[attr-defined]
        progress = Progress(**stored, history=history)  # type: ignore[arg-type]
    return Run(
        network=network,
        optimizer=optimizer,
        sets=sets,
        settings=settings,
        augmentation=augmentation,
        labels=labels,
        weights=weights,
        folder=folder,
        progress=progress,
    )


def make_optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """A fresh optimiser of the settings' kind over all parameters."""
    return _OPTIMIZERS[settings.optimizer]([*network.parameters()], settings)


def _agree_on_settings(folder: Path, settings: TrainingSettings) -> None:
    """Write the settings down, or refuse when the folder's run has others."""
    path = folder / "settings.json"
    if not path.is_file():
        write_text(path, settings.model_dump_json(indent=1) + "\n")
        return
    # A setting that came after the run began had its default before.
    defaults, now = TrainingSettings().model_dump(), settings.model_dump()
    before = {**defaults, **json.loads(path.read_text())}
    changed = [n for n in now if before.get(n) != now[n] and n not in FREE_SETTINGS]
    if changed:
        listed = ", ".join(f"{name} was {before.get(name)}, is {now[name]}" for name in changed)
        msg = f"{folder.name} holds a run with other settings: {listed}. Use a new folder."
        raise TrainingError(msg)

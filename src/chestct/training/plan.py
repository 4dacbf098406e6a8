"""What one call of `chestct train` is to do, and the trainings it comes down to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from chestct.card import CARD_FILE
from chestct.datasets.manifest import Manifest
from chestct.training.devices import CPU, device_in_words
from chestct.training.division import Division, divide, divide_fold, with_folds
from chestct.training.ranks import current_ranks
from chestct.training.ready import Listener
from chestct.training.run import EpochLog
from chestct.training.settings import RunSettings

TRAINING_FOLDER: Final = "training"
CLASSIFIER_FOLDER: Final = "classifier"
EVALUATION_FOLDER: Final = "evaluation"
PREDICTIONS_FILE: Final = "predictions.csv"
BASELINE_FILE: Final = "baseline.csv"

AfterEpoch = Callable[[str, EpochLog], None]
"""Told the training's name and its epoch."""


@dataclass(frozen=True)
class Plan:
    """One call of `chestct train`.

    Attributes:
        settings: All of them.
        manifest: The CSV file of the scans.
        folder: The run folder.
        num_folds: Of a cross-validation, or None.
        listener: Who is told how far things are.
        after_epoch: Who is told of epochs.
        device: Where networks are trained.
    """

    settings: RunSettings
    manifest: Path
    folder: Path
    num_folds: int | None = None
    listener: Listener = field(default_factory=Listener)
    after_epoch: AfterEpoch = lambda _name, _entry: None
    device: torch.device = CPU

    @property
    def place(self) -> str:
        """Where it is trained, in words."""
        size = current_ranks().size
        return device_in_words(self.device) + (f", {size} processes" if size > 1 else "")


@dataclass(frozen=True, eq=False)
class Training:
    """One network to be trained, and what it is called."""

    name: str
    folder: Path
    division: Division


def divided(plan: Plan, manifest: Manifest) -> tuple[Manifest, list[Training]]:
    """The scans with their folds, and the trainings they are divided for.

    Raises:
        ManifestError: A patient would be on two sides, or a part would lack a class.
        TrainingError: The manifest has another number of folds.
    """
    section = plan.settings.data
    if plan.num_folds is None:
        return manifest, [Training(plan.folder.name, plan.folder, divide(manifest, section))]
    dealt = with_folds(manifest, plan.num_folds, section)
    trainings = [
        Training(f"fold {fold}", plan.folder / f"fold-{fold}", divide_fold(dealt, fold, section))
        for fold in dealt.folds
    ]
    return dealt, trainings


def is_finished(folder: Path) -> bool:
    """Whether a training wrote everything."""
    return (folder / CLASSIFIER_FOLDER / CARD_FILE).is_file()

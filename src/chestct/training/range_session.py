"""A learning-rate range test from settings and manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from chestct.datasets.manifest import read_manifest, require_classes
from chestct.training.devices import CPU, device_in_words
from chestct.training.division import divide
from chestct.training.interrupts import memory_explained
from chestct.training.lr_range import RangeTest, range_per_epoch
from chestct.training.parts import find_parts
from chestct.training.quick_range import QUICK_STEPS, note_left_out, range_per_step
from chestct.training.ranks import require_one_process
from chestct.training.ready import Listener, check_scans, make_cache, prepare_scans
from chestct.training.record import begin_record, settled
from chestct.training.run import EpochLog
from chestct.training.sets import labelled_sets
from chestct.training.settings import RunSettings

_RUN: Final = "training"


@dataclass(frozen=True)
class RangePlan:
    """One call of `chestct lr-range`.

    Attributes:
        settings: All of them; schedule, rate and number of epochs are the test's own.
        manifest: The CSV file of the scans.
        folder: Where to write to.
        steps: Of the quick form.
        epochs: Of the paper's form, or None for the quick one.
        device: Where it is trained.
    """

    settings: RunSettings
    manifest: Path
    folder: Path
    steps: int = QUICK_STEPS
    epochs: int | None = None
    device: torch.device = CPU


def run_range_test(
    plan: RangePlan, listener: Listener, after_epoch: Callable[[EpochLog], object]
) -> RangeTest:
    """Check and prepare the scans as for a training, then test.

    Raises:
        TrainingError: Several processes were started.
        ChestCTError: Settings, manifest, scans or folder are not as they should be.
    """
    require_one_process("A range test runs in one process.")
    settings = settled(plan.settings, plan.folder, plan.device)
    parts = find_parts(settings)
    manifest = read_manifest(plan.manifest, settings.labels)
    require_classes(manifest)
    division = divide(manifest, settings.data)
    cache = make_cache(settings.data, parts.recipe)
    begin_record(plan.folder, settings, plan.manifest, place=device_in_words(plan.device))
    check_scans(manifest, [division], cache, plan.folder / "check.json", listener)
    division = division.without(prepare_scans(division, settings.data, cache, listener))
    sets = labelled_sets(division, cache, settings.data)
    network = parts.build_network(settings.training.seed).to(plan.device)
    with memory_explained(plan.folder):
        if plan.epochs is None:
            note_left_out(settings.training, listener.note)
            return range_per_step(
                network, sets, settings.training, augmentation=parts.augmentation, steps=plan.steps
            )
        return range_per_epoch(
            network,
            sets,
            settings.training.model_copy(update={"epochs": plan.epochs}),
            plan.folder / _RUN,
            augmentation=parts.augmentation,
            after_epoch=after_epoch,
        )

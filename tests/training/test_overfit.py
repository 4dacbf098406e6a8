"""Every network learns eight scans by heart within a bounded number of steps of the real loop.

Inputs are the smallest that a network's layers leave something of, with dropout off. What counts is
the training accuracy, with BatchNorm's statistics those of the eight scans: the moving ones, with
Keras's momentum of 0.99 that the published networks keep, would need hundreds of steps to settle.
All must be right, and surely so: of eight scans all may be right by chance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from chestct.networks import NETWORKS, build_network
from chestct.training.loop import train
from chestct.training.run import EpochLog, LabelledSets
from chestct.training.settings import TrainingSettings

NUM_SCANS = 8
SURE_FROM = 0.35
"""Mean cross-entropy in nats, half of what a guess between two classes has."""


class SmoothScans(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Eight smooth random volumes, or the first of them; nothing about them tells the label."""

    def __init__(self, shape: tuple[int, int, int], num: int = NUM_SCANS) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(NUM_SCANS, 1, 4, 4, 4, generator=generator)
        self.scans = 4 * nn.functional.interpolate(coarse[:num], size=shape, mode="trilinear") - 2
        order = torch.randperm(NUM_SCANS, generator=generator)
        self.labels = (order % 2).tolist()[:num]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        scan = self.scans[index]
        return scan, torch.ones_like(scan), self.labels[index]


@dataclass(frozen=True)
class Task:
    network: str
    steps: int
    rate: float
    size: int
    settings: dict[str, object] = field(default_factory=dict)


RESNET = {"width": 4, "head_units": 16, "dropout": 0.0}
TASKS = {
    "roi_resnet18": Task("roi_resnet18", 15, 0.003, 32, RESNET),
    "roi_resnet50": Task("roi_resnet50", 12, 0.01, 32, RESNET),
    "roi_resnet101": Task("roi_resnet101", 16, 0.01, 32, RESNET),
    "maseres paper": Task("maseres", 10, 0.003, 14, {"attention": "paper", "dropout": 0.0}),
    "maseres published": Task("maseres", 10, 0.003, 14, {"attention": "published", "dropout": 0.0}),
    "alexnet3d": Task("alexnet3d", 10, 1e-3, 35, {"dense_units": 32, "dropout": 0.0}),
    # Its unpadded convolutions leave nothing of less than 100^3.
    "voxcnn": Task("voxcnn", 8, 1e-3, 100, {"dropout": 0.0}),
    "segresnet_encoder": Task("segresnet_encoder", 30, 0.003, 32, {"width": 4, "cells": 2}),
    "merlin_encoder": Task("merlin_encoder", 40, 0.01, 32, {"width": 4, "depth": 50, "cells": 2}),
    "colipri_encoder": Task(
        "colipri_encoder", 40, 0.003, 32, {"width": 24, "depth": 2, "heads": 2, "cells": 2}
    ),
    "lung_lesions": Task("lung_lesions", 40, 0.01, 24, {"dropout": 0.0}),
}


def test_every_network_is_among_them() -> None:
    assert {task.network for task in TASKS.values()} == set(NETWORKS)


class LearnedError(Exception):
    """All scans are right: nothing is left to be learned."""


def is_learned(network: nn.Module, scans: SmoothScans) -> bool:
    targets = torch.tensor(scans.labels)
    with torch.no_grad():
        logits = network.train()(scans.scans, torch.ones_like(scans.scans))
    is_right = bool((logits.argmax(1) == targets).all())
    return is_right and float(nn.functional.cross_entropy(logits, targets)) < SURE_FROM


@pytest.mark.parametrize("name", TASKS)
def test_a_network_learns_eight_scans_by_heart(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    shape = (task.size, task.size, task.size)
    has_any_size = task.network.startswith(("roi", "lung", "segresnet", "merlin", "colipri"))
    by_shape = {} if has_any_size else {"input_shape": list(shape)}
    torch.manual_seed(0)
    network = build_network(task.network, 1, 2, {**task.settings, **by_shape})
    scans = SmoothScans(shape)
    assert not is_learned(network, scans)
    settings = TrainingSettings(
        epochs=task.steps,
        batch_size=NUM_SCANS,
        optimizer="adam",
        learning_rate=task.rate,
        weight_decay=0.0,
        schedule="constant",
        warmup_epochs=0,
        keep="last",
    )

    def stop_when_learned(_entry: EpochLog) -> None:
        if is_learned(network, scans):
            raise LearnedError

    # What the loop finds out of its validation set is not looked at: one scan is enough.
    sets = LabelledSets(scans, SmoothScans(shape, num=1), num_classes=2)
    with pytest.raises(LearnedError):
        train(network, sets, settings, tmp_path, after_epoch=stop_when_learned)

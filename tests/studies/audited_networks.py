"""Networks made to be caught, or not, and a drawn chest to ask them about."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from phantoms import LUNG_HU, chest, chest_grid
from tiny_classifiers import tiny_card
from torch import nn

from chestct.classifier import Classifier
from chestct.labels import COVID19, NORMAL
from chestct.preprocess.recipes import RECIPES, Recipe, recipe_from_dict
from chestct.studies.model_audit import _WithNetwork
from chestct.studies.model_audit_findings import ModelAudit, ScanAudit
from chestct.volume import Volume
from chestct.writers.nifti import write_nifti

LABELS = (COVID19, NORMAL)
RECIPE = replace(
    RECIPES["maseres_recommended"],
    input_shape=(32, 32, 32),
    spacing_mm=(12.0, 12.0, 12.0),
    lungs="published",
)
"""Keeps what surrounds the lungs, which no network has to find; -1350..150 HU become 0 to 1."""
FOUND = replace(RECIPE, lungs="recommended")
MASKED = replace(RECIPE, background=0.0)
GRID = chest_grid((36, 36, 42), (10.0, 9.0, 9.0))
SICK_HU = -600.0


class Mean(nn.Module):
    """COVID-19 where the mean of a region reaches a limit: inside the lungs, or outside."""

    def __init__(self, limit: float, *, is_inside: bool) -> None:
        super().__init__()
        self.limit, self.is_inside = limit, is_inside
        # A kernel to be drawn anew, and cells for a map.
        self.cells = nn.Conv3d(1, 4, 3, padding=1)
        self.gain = nn.Parameter(torch.tensor([60.0]))

    def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
        where = lungs if self.is_inside else 1 - lungs
        cells = self.cells(batch)
        # The cells have no say in the answer, but gradients run through them.
        values = batch + 1e-6 * cells.square().mean(dim=1, keepdim=True)
        mean = (values * where).sum(dim=(1, 2, 3, 4)) / where.sum(dim=(1, 2, 3, 4))
        score = self.gain * (mean - self.limit)
        return torch.stack([score, -score], dim=1)


class SameMap(nn.Module):
    """Whatever its weight is, its map is the input."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.MaxPool3d(1)
        self.weight = nn.Parameter(torch.tensor([[2.0, 3.0]]))

    def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
        mean = self.cells(batch).mean(dim=(2, 3, 4))
        strength = self.weight.square().sum() + 1
        return torch.cat([mean * strength, -mean * strength], dim=1)


class NoCells(nn.Module):
    """The mean of the whole input: no layer with a grid that a map could be taken from."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
        return self.head(batch.mean(dim=(2, 3, 4)))


def crafted(network: nn.Module, recipe: Recipe = RECIPE) -> Classifier:
    """A classifier that is no more than a network and a recipe."""
    card = tiny_card(name="crafted", recipe=asdict(recipe), labels=LABELS)
    return _WithNetwork(
        Path("/nowhere"), card, recipe_from_dict(card.recipe), "0" * 64, given=network.eval()
    )


def as_model(*scans: ScanAudit) -> ModelAudit:
    return ModelAudit("crafted", "1", "0" * 64, "recipe", "nothing", "not for patients", scans)


@cache
def healthy_chest() -> Volume:
    return _noisy(chest(GRID), 1)


@cache
def sick_chest() -> tuple[Volume, Volume]:
    """A chest with ground glass in all of one lung's middle, and the mask of that."""
    plain = chest(GRID)
    indices = np.stack(np.indices(plain.grid.shape), axis=-1).astype(np.float64)
    x, y, z = np.moveaxis(plain.grid.to_patient(indices), -1, 0)
    round_part = ((x - 77) / 55) ** 2 + (y / 80) ** 2 + ((z + 10) / 110) ** 2 <= 1.0
    lesion = round_part & (plain.voxels == LUNG_HU)
    voxels = np.where(lesion, SICK_HU, plain.voxels).astype(np.int16)
    return _noisy(plain.with_voxels(voxels), 2), plain.with_voxels(lesion)


def write_scan(path: Path) -> Volume:
    """Write that chest as a scan that a reader believes, and give the mask of its lesions.

    Pieces that begin all at once do not fit the slices beside them, unless noise hides it.
    """
    volume, lesions = sick_chest()
    grains = np.random.default_rng(0).integers(-100, 101, volume.voxels.shape)
    write_nifti(path, (volume.voxels + grains).astype(np.int16), volume.grid)
    return lesions


def own_lungs() -> Volume:
    """The drawn chest's lungs as they were drawn."""
    plain = chest(GRID)
    return plain.with_voxels(plain.voxels == LUNG_HU)


def _noisy(volume: Volume, seed: int) -> Volume:
    noise = np.random.default_rng(seed).integers(-8, 9, volume.voxels.shape)
    return volume.with_voxels((volume.voxels + noise).clip(-1024).astype(np.int16))

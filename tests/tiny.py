"""A classifier of random weights, small enough for every test, and a scan small enough for it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from chestct.card import Card
from chestct.classifier import save_classifier
from chestct.labels import NOT_FOR_CLINICAL_USE, THREE_CLASSES
from chestct.networks import build_network
from chestct.preprocess.recipes import RECIPES

RECIPE = replace(
    RECIPES["roi_resnet_recommended"],
    input_shape=(32, 32, 32),
    spacing_mm=(10.0, 10.0, 10.0),
    lungs="published",
)
"""With lungs by rules of thumb, which takes no time."""


def save_tiny_classifier(folder: Path, **changes: Any) -> Path:
    """Save an untrained RoI-aware 3D ResNet-18 of width 4; always the same one.

    Args:
        folder: Where to.
        changes: Fields of its recipe.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network("roi_resnet18", 1, 3, {"width": 4})
    card = Card(
        name="tiny",
        version="0",
        network="roi_resnet18",
        network_settings={"width": 4},
        recipe=asdict(replace(RECIPE, **changes)),
        labels=THREE_CLASSES,
        trained_on="nothing: random weights",
        licence="Apache-2.0",
        notice=f"{NOT_FOR_CLINICAL_USE} Random weights.",
    )
    save_classifier(folder, network, card)
    return folder

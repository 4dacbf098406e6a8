"""Small classifiers with drawn weights and scans that fit them, for tests of what runs them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from chestct.card import Card
from chestct.classifier import Classifier, load_classifier, save_classifier
from chestct.contracts import settle_batch_norm
from chestct.labels import THREE_CLASSES
from chestct.networks import build_network
from chestct.preprocess.prepare import PreparedScan
from chestct.preprocess.recipes import RECIPES, Recipe
from chestct.volume import Grid, Volume

SHAPE = (40, 36, 44)


def tiny_recipe(num_channels: int = 1, shape: tuple[int, int, int] = SHAPE) -> Recipe:
    recipe = RECIPES["roi_resnet_recommended"]
    return replace(recipe, input_shape=shape, num_channels=num_channels)


def tiny_card(**changes: object) -> Card:
    fields: dict[str, object] = {
        "name": "tiny",
        "version": "1",
        "network": "roi_resnet18",
        "network_settings": {"width": 4, "gating": "all"},
        "recipe": asdict(tiny_recipe()),
        "labels": THREE_CLASSES,
        "trained_on": "nothing: its weights are drawn",
        "results": (),
        "versions": {"torch": torch.__version__},
        "licence": "Apache-2.0",
    }
    return Card.model_validate(fields | changes)


def drawn_network(card: Card, seed: int = 0) -> torch.nn.Module:
    """The card's network with random weights, as if it had been trained for a while."""
    channels = int(card.recipe["num_channels"])  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(card.network, channels, len(card.labels), card.network_settings)
        shape = tuple(card.recipe["input_shape"])  # type: ignore[arg-type]
        settle_batch_norm(network, torch.rand(2, channels, *shape))
    return network.eval()


def saved_classifier(folder: Path, card: Card | None = None, seed: int = 0) -> Classifier:
    """A classifier that was saved to `folder` and loaded again."""
    card = tiny_card() if card is None else card
    save_classifier(folder, drawn_network(card, seed), card)
    return load_classifier(folder)


def random_input(
    seed: int = 0, channels: int = 1, shape: tuple[int, int, int] = SHAPE
) -> tuple[np.ndarray, np.ndarray]:
    """A network input of drawn values and a box of lungs in its middle."""
    rng = np.random.default_rng(seed)
    values = rng.random((channels, *shape), dtype=np.float32)
    lungs = np.zeros(shape, dtype=bool)
    lungs[tuple(slice(n // 5, n - n // 5) for n in shape)] = True
    return values, lungs


def tiny_scan(recipe: Recipe, seed: int = 0) -> PreparedScan:
    """A prepared scan of drawn values that fits `recipe`."""
    values, lungs = random_input(seed, recipe.num_channels, recipe.input_shape)
    grid = Grid(recipe.input_shape, (1.5, 1.5, 1.5))
    return PreparedScan(
        input=values,
        lungs=lungs,
        grid=grid,
        scan_lungs=Volume(grid, lungs),
        scan_grid=grid,
        salient=(0, recipe.input_shape[0] - 1),
        lung_area=lungs.mean(axis=(1, 2)),
        lung_volume_l=3.0,
        recipe=recipe,
        warnings=(),
        unsuitable_reasons=(),
    )

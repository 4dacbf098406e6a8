"""From a run's settings to the things it is made of: network, recipe, augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import nn

from chestct.datasets.augment import AnyAugmentation, find_augmentation
from chestct.errors import NetworkError, RecipeError, TrainingError, UnknownNameError
from chestct.lookup import look_up
from chestct.networks import build_network
from chestct.preprocess.recipes import RECIPES, Recipe, recipe_from_dict
from chestct.training.settings import RunSettings


@dataclass(frozen=True)
class Parts:
    """What a run's settings name, found and checked.

    Attributes:
        network: Name of the network.
        network_settings: All that `build_network` has to be told, the input's shape with it.
        recipe: How scans are prepared.
        augmentation: How batches are varied, or None.
        labels: Class names in the classifier's order.
    """

    network: str
    network_settings: dict[str, object]
    recipe: Recipe
    augmentation: AnyAugmentation | None
    labels: tuple[str, ...]

    def build_network(self, seed: int) -> nn.Module:
        """The network with weights drawn from a seed; torch's own generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_network(
                self.network,
                self.recipe.num_channels,
                len(self.labels),
                self.network_settings,
            )


def find_parts(settings: RunSettings) -> Parts:
    """Find and check what the settings name, and that network and recipe fit together.

    Raises:
        TrainingError: Something is unknown, impossible or does not fit; the message names the
            setting by its dotted path.
    """
    if len(set(settings.labels)) < len(settings.labels):
        raise TrainingError(f"'labels' names a class twice: {', '.join(settings.labels)}.")
    recipe = _find_recipe(settings)
    with blamed_on("augmentation"):
        chosen = settings.augmentation
        augmentation = find_augmentation(chosen.name, chosen.overrides)
    with blamed_on("network"):
        network_settings = _fit_network(settings, recipe)
    return Parts(
        network=settings.network.name,
        network_settings=network_settings,
        recipe=recipe,
        augmentation=augmentation,
        labels=settings.labels,
    )


def _find_recipe(settings: RunSettings) -> Recipe:
    with blamed_on("recipe.name"):
        named = look_up(RECIPES, settings.recipe.name, kind="recipe")
    with blamed_on("recipe.overrides"):
        return recipe_from_dict({**asdict(named), **settings.recipe.overrides})


def _fit_network(settings: RunSettings, recipe: Recipe) -> dict[str, object]:
    """The network's settings with the recipe's input shape, tried out without any memory."""
    chosen: dict[str, object] = dict(settings.network.settings)
    num_classes = len(settings.labels)
    with torch.device("meta"):
        network = build_network(settings.network.name, recipe.num_channels, num_classes, chosen)
        has_shape = hasattr(getattr(network, "settings", None), "input_shape")
        if has_shape and "input_shape" not in chosen:
            chosen["input_shape"] = list(recipe.input_shape)
            network = build_network(settings.network.name, recipe.num_channels, num_classes, chosen)
        with torch.no_grad():
            scan = torch.zeros(1, recipe.num_channels, *recipe.input_shape)
            network.eval()(scan, torch.zeros(1, 1, *recipe.input_shape))
    return chosen


@contextmanager
def blamed_on(setting: str) -> Iterator[None]:
    """Put the dotted path of a setting before what is said of it."""
    try:
        yield
    except (NetworkError, RecipeError, TrainingError, UnknownNameError) as error:
        raise TrainingError(f"'{setting}': {error}") from error

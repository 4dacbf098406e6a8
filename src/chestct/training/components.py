"""Network, recipe and augmentation that a run's settings name, for whole scans and for slices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from chestct.card import PictureForm
from chestct.datasets.augment import SLICE_AUGMENTATIONS, AnyAugmentation, find_augmentation
from chestct.datasets.splits import SLICE_SPLITS
from chestct.errors import NetworkError, RecipeError, TrainingError, UnknownNameError
from chestct.lookup import look_up
from chestct.networks import build_network
from chestct.networks.medicalnet import load_medicalnet_weights
from chestct.networks.slices import (
    SLICE_NETWORKS,
    SliceNetwork,
    build_slice_network,
    find_weights,
    load_backbone_weights,
)
from chestct.preprocess.recipes import RECIPES, Recipe, recipe_from_dict
from chestct.storage import file_sha256
from chestct.training.settings import RunSettings, SliceRunSettings

_RESNETS = "roi_resnet"
"""What the names of the 3D ResNets begin with."""


@dataclass(frozen=True)
class Parts:
    """What a run's settings name, found and checked.

    Attributes:
        network: Name of the network.
        network_settings: All that `build_network` has to be told, the input's shape with it.
        recipe: How scans are prepared.
        augmentation: How batches are varied, or None.
        labels: Class names in the classifier's order.
        pretrained: File of MedicalNet's weights that it begins with, or None for drawn ones.
        beginning: What it begins with in words, with the file's hash; empty for drawn weights.
    """

    network: str
    network_settings: dict[str, object]
    recipe: Recipe
    augmentation: AnyAugmentation | None
    labels: tuple[str, ...]
    pretrained: Path | None = None
    beginning: str = ""

    def build_network(self, seed: int) -> nn.Module:
        """The network with weights drawn from a seed; torch's own generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build_network(
                self.network,
                self.recipe.num_channels,
                len(self.labels),
                self.network_settings,
            )
        if self.pretrained is not None:
            load_medicalnet_weights(network, self.pretrained)
        return network


def find_parts(settings: RunSettings) -> Parts:
    """Find and check what the settings name, and that network and recipe fit together.

    Raises:
        TrainingError: Something is unknown, impossible or does not fit; the message names the
            setting by its dotted path.
    """
    if len(set(settings.labels)) < len(settings.labels):
        raise TrainingError(f"'labels' names a class twice: {', '.join(settings.labels)}.")
    recipe = _find_recipe(settings)
    with _blamed_on("augmentation"):
        chosen = settings.augmentation
        augmentation = find_augmentation(chosen.name, chosen.overrides)
    with _blamed_on("network"):
        network_settings = _fit_network(settings, recipe)
    parts = Parts(
        network=settings.network.name,
        network_settings=network_settings,
        recipe=recipe,
        augmentation=augmentation,
        labels=settings.labels,
    )
    if settings.network.pretrained is None:
        return parts
    with _blamed_on("network.pretrained"):
        return _begun_with(parts, Path(settings.network.pretrained))


def _begun_with(parts: Parts, file: Path) -> Parts:
    """The same parts, the network beginning with a file's weights, which are tried out.

    Raises:
        NetworkError: The file cannot be read or does not fit, or the network is no 3D ResNet.
    """
    if not parts.network.startswith(_RESNETS):
        msg = f"MedicalNet's weights are for the 3D ResNets, not for '{parts.network}'."
        raise NetworkError(f"{msg} Leave the setting out, or train one of them.")
    found = load_medicalnet_weights(parts.build_network(0), file)
    said = f"Begun with the weights of {file.name}, SHA-256 {file_sha256(file)}. {found}"
    return replace(parts, pretrained=file, beginning=said)


def _find_recipe(settings: RunSettings) -> Recipe:
    with _blamed_on("recipe.name"):
        named = look_up(RECIPES, settings.recipe.name, kind="recipe")
    with _blamed_on("recipe.overrides"):
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
def _blamed_on(setting: str) -> Iterator[None]:
    """Put the dotted path of a setting before what is said of it."""
    try:
        yield
    except (NetworkError, RecipeError, TrainingError, UnknownNameError) as error:
        raise TrainingError(f"'{setting}': {error}") from error


RANDOM_WEIGHTS = "random weights: nothing was learned from photographs first"


@dataclass(frozen=True)
class SliceParts:
    """What a slice run's settings name, found and checked.

    Attributes:
        network: A name in `SLICE_NETWORKS`.
        network_settings: All that `build_slice_network` has to be told.
        weights: File of the backbone's weights, or None for random ones.
        form: How pictures become inputs.
        augmentation: How batches are varied, or None.
        labels: Class names in the classifier's order.
    """

    network: str
    network_settings: dict[str, object]
    weights: Path | None
    form: PictureForm
    augmentation: AnyAugmentation | None
    labels: tuple[str, ...]

    def build_network(self, seed: int) -> SliceNetwork:
        """The network, its head drawn from a seed; torch's own generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build_slice_network(self.network, len(self.labels), self.network_settings)
        if self.weights is not None:
            load_backbone_weights(network, self.weights)
        return network

    def describe_weights(self) -> str:
        """Where the backbone's weights come from, in words, with the file's hash."""
        if self.weights is None:
            return RANDOM_WEIGHTS
        facts = SLICE_NETWORKS[self.network]
        return f"{facts.weights_id}, SHA-256 {file_sha256(self.weights)}"


def find_slice_parts(settings: SliceRunSettings) -> SliceParts:
    """Find and check what the settings name, weights among them.

    Raises:
        TrainingError: Something is unknown, impossible or missing; the message names the setting.
        MissingExtraError: timm is not installed.
    """
    if len(set(settings.labels)) < len(settings.labels):
        raise TrainingError(f"'labels' names a class twice: {', '.join(settings.labels)}.")
    chosen: dict[str, object] = dict(settings.network.settings)
    with _blamed_on("augmentation"):
        wanted = settings.augmentation
        augmentation = find_augmentation(wanted.name, wanted.overrides, SLICE_AUGMENTATIONS)
    with _blamed_on("data.split"):
        look_up(SLICE_SPLITS, settings.data.split, kind="split of slices")
    with _blamed_on("network"), torch.device("meta"):
        network = build_slice_network(settings.network.name, len(settings.labels), chosen)
    with _blamed_on("network.weights"):
        weights = find_weights(settings.network.name, settings.network.weights)
    form = PictureForm(size=network.size, **settings.pictures.model_dump())
    return SliceParts(settings.network.name, chosen, weights, form, augmentation, settings.labels)

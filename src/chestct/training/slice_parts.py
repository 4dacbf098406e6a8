"""From the settings of a slice run to the things it is made of, and its slices divided."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from chestct.datasets.augment import SLICE_AUGMENTATIONS, AnyAugmentation, find_augmentation
from chestct.datasets.manifest import TEST, TRAINING, VALIDATION, Manifest, require_classes
from chestct.datasets.slice_lists import SLICE_SPLITS
from chestct.datasets.slice_store import PictureForm
from chestct.datasets.splits import SplitSettings, part
from chestct.errors import TrainingError
from chestct.lookup import look_up
from chestct.networks.slice_backbones import SLICE_NETWORKS
from chestct.networks.slice_weights import find_weights, load_backbone_weights
from chestct.networks.slices import SliceNetwork, build_slice_network
from chestct.storage import file_sha256
from chestct.training.division import Division, divide
from chestct.training.parts import blamed_on
from chestct.training.settings import DataSection
from chestct.training.slice_settings import SliceDataSection, SliceRunSettings

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
    with blamed_on("augmentation"):
        wanted = settings.augmentation
        augmentation = find_augmentation(wanted.name, wanted.overrides, SLICE_AUGMENTATIONS)
    with blamed_on("data.split"):
        look_up(SLICE_SPLITS, settings.data.split, kind="split of slices")
    with blamed_on("network"), torch.device("meta"):
        network = build_slice_network(settings.network.name, len(settings.labels), chosen)
    with blamed_on("network.weights"):
        weights = find_weights(settings.network.name, settings.network.weights)
    pictures = settings.pictures
    form = PictureForm(
        network.size, pictures.interpolation, pictures.keeps_shape, pictures.sixteen_bit
    )
    return SliceParts(settings.network.name, chosen, weights, form, augmentation, settings.labels)


def divide_slices(manifest: Manifest, section: SliceDataSection) -> Division:
    """The slices a run learns from, is watched on and is tested on.

    Raises:
        ManifestError: A patient would be on two sides, or a part would lack a class.
    """
    shares = SplitSettings(
        test_share=section.test_share,
        validation_share=section.validation_share,
        seed=section.split_seed,
    )
    has_own = section.split == "patient" and any(row.split for row in manifest.rows)
    if has_own:
        drawn = DataSection(
            validation_share=section.validation_share, split_seed=section.split_seed
        )
        return divide(manifest, drawn)
    split = look_up(SLICE_SPLITS, section.split, kind="split of slices")(manifest, shares)
    training = part(split, TRAINING)
    require_classes(training, TRAINING)
    return Division(training, part(split, VALIDATION), part(split, TEST))


def patient_labels_of(manifest: Manifest) -> dict[str, str] | None:
    """Patient to the class in the column `patient_label`; None where there is no such column."""
    found = {
        row.patient: row.others["patient_label"]
        for row in manifest.rows
        if row.others.get("patient_label")
    }
    return found or None

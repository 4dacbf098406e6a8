"""Every settings file for slices: valid, and with the paper's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from chestct.datasets.augment import SLICE_AUGMENTATIONS, _SliceAugmentation, find_augmentation
from chestct.datasets.splits import SLICE_SPLITS
from chestct.networks import settings_from
from chestct.networks.slices import SLICE_NETWORKS, _SliceSettings
from chestct.training.settings import SliceRunSettings, read_settings_as, settings_as_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "slices"
EVERY = pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)

# From protocols.md, B1: the rates that were used.
RATES = {
    "vgg19": 1e-5,
    "inception_v3": 1e-5,
    "resnet50_v2": 1e-5,
    "xception": 1e-6,
    "mobilenet_v2": 1e-6,
    "densenet169": 1e-5,
}


def test_the_papers_six_and_two_recommended_ones_are_there() -> None:
    found = {path.stem for path in CONFIGS.glob("*.yaml")}
    recommended = {"densenet169_recommended", "efficientnet_lite0_recommended"}
    assert found == {*(f"{name}_published" for name in RATES), *recommended}


@EVERY
def test_a_config_names_only_what_there_is(path: Path) -> None:
    settings = read_settings_as(SliceRunSettings, path)
    chosen = settings_from(_SliceSettings, settings.network.settings)
    if settings.network.name in SLICE_NETWORKS:
        assert chosen.size == SLICE_NETWORKS[settings.network.name].size
    assert settings.network.weights == "imagenet"
    assert settings.data.split == "patient"
    assert settings.data.split in SLICE_SPLITS
    wanted = settings.augmentation
    found = find_augmentation(wanted.name, wanted.overrides, SLICE_AUGMENTATIONS)
    assert isinstance(found, _SliceAugmentation)


@pytest.mark.parametrize("name", RATES)
def test_a_published_config_has_the_numbers_of_the_protocol(name: str) -> None:
    settings = read_settings_as(SliceRunSettings, CONFIGS / f"{name}_published.yaml")
    training = settings.training
    assert (training.epochs, training.batch_size, training.early_stopping_epochs) == (50, 32, 10)
    assert training.learning_rate == RATES[name]
    assert (training.optimizer, training.schedule) == ("adam", "constant")
    assert settings.network.name == name
    assert settings.network.settings["head"] == settings.network.settings["scaling"] == "published"
    assert settings.augmentation.name == "maseres_slices_published"


@EVERY
def test_settings_written_down_are_read_back_the_same(path: Path, tmp_path: Path) -> None:
    settings = read_settings_as(SliceRunSettings, path)
    written = tmp_path / "settings.yaml"
    written.write_text(settings_as_yaml(settings))
    assert read_settings_as(SliceRunSettings, written) == settings

"""Every settings file that is shipped: valid, complete, and with the papers' numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from chestct.datasets.augment import _Augmentation, _Turns
from chestct.training.plan import find_parts
from chestct.training.settings import read_settings

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EVERY_CONFIG = pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
MASERES_DEG = (-20, -10, -5, 0, 5, 10, 20)

# From protocols.md A4, B1 and B2: epochs, batch, rate, L2, schedule, drop after.
PROTOCOLS = {
    "roi_resnet101_paper": (60, 2, 1e-4, 0.0, "piecewise", 20),
    "roi_resnet101_published": (35, 2, 1e-4, 1e-4, "piecewise", 15),
    "maseres_paper": (50, 2, 1e-6, 0.0, "constant", None),
    "maseres_published": (50, 2, 1e-6, 0.0, "constant", None),
    "voxcnn_published": (50, 4, 7e-6, 0.0, "constant", None),
    "alexnet3d_published": (50, 4, 5e-7, 0.0, "constant", None),
    "voxcnn_paper": (50, 2, 7e-6, 0.0, "constant", None),
    "alexnet3d_paper": (50, 2, 5e-7, 0.0, "constant", None),
}


def test_all_the_published_protocols_and_a_recommended_one_are_there() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {
        *PROTOCOLS,
        "colipri",
        "ct_fm",
        "default_classifier",
        "merlin",
        "roi_resnet18_recommended",
    }


@EVERY_CONFIG
def test_a_config_names_only_what_there_is_and_network_and_recipe_fit(path: Path) -> None:
    settings = read_settings(path)
    parts = find_parts(settings)
    assert settings.recipe.name.split("_")[0] == settings.augmentation.name.split("_")[0] or (
        settings.augmentation.name in ("recommended", "none")
    )
    assert parts.recipe.input_shape
    assert parts.labels == tuple(sorted(settings.labels, key=str.lower))


@pytest.mark.parametrize(("name", "numbers"), PROTOCOLS.items())
def test_a_published_config_has_the_numbers_of_its_protocol(
    name: str, numbers: tuple[int, int, float, float, str, int | None]
) -> None:
    training = read_settings(CONFIGS / f"{name}.yaml").training
    drop = training.drop_every_epochs if training.schedule == "piecewise" else None
    found = (
        training.epochs,
        training.batch_size,
        training.learning_rate,
        training.weight_decay,
        training.schedule,
        drop,
    )
    assert found == numbers
    assert training.optimizer == "adam"
    assert training.keep == "last"
    assert training.warmup_epochs == 0
    assert training.drop_factor == 0.2
    assert training.early_stopping_epochs is None
    assert training.class_weights == "none"


def test_text_and_code_of_maseres_turn_different_planes() -> None:
    text, code = (
        find_parts(read_settings(CONFIGS / f"maseres_{form}.yaml")).augmentation
        for form in ("paper", "published")
    )
    assert text == _Turns(MASERES_DEG, plane="axial")
    assert code == _Turns(MASERES_DEG, plane="slice-row")


def test_text_and_code_of_the_roi_resnet_flip_differently() -> None:
    text, code = (
        find_parts(read_settings(CONFIGS / f"roi_resnet101_{form}.yaml")).augmentation
        for form in ("paper", "published")
    )
    assert isinstance(text, _Turns)
    assert isinstance(code, _Turns)
    assert text.angles_deg == code.angles_deg == (-12, -9, -6, -3, 0, 3, 6, 9, 12)
    assert text.flip_probability > 0 == code.flip_probability


def test_the_recommended_config_uses_the_recommended_set() -> None:
    parts = find_parts(read_settings(CONFIGS / "roi_resnet18_recommended.yaml"))
    assert parts.augmentation == _Augmentation()
    assert parts.recipe.requires_hu

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chestct.datasets.augment import _Augmentation
from chestct.errors import TrainingError
from chestct.networks import build_network
from chestct.training.plan import Parts, find_parts
from chestct.training.settings import RunSettings

SMALL = {"input_shape": [40, 40, 40]}


def settings(**changes: object) -> RunSettings:
    fields: dict[str, object] = {
        "labels": ["COVID-19", "normal"],
        "network": {"name": "maseres"},
        "recipe": {"name": "maseres_paper", "overrides": SMALL},
    }
    return RunSettings.model_validate(fields | changes)


def test_a_network_that_needs_its_input_s_size_is_told_the_recipe_s() -> None:
    parts = find_parts(settings())
    assert parts.network_settings["input_shape"] == [40, 40, 40]
    assert parts.recipe.input_shape == (40, 40, 40)
    assert parts.augmentation == _Augmentation()


def test_the_same_seed_draws_the_same_weights_and_leaves_torch_s_generator_alone() -> None:
    parts = find_parts(settings())
    before = torch.random.get_rng_state()
    first, second, other = (parts.build_network(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_3d_resnet_begins_with_the_weights_of_a_file_and_says_which(tmp_path: Path) -> None:
    drawn = build_network("roi_resnet18", 1, 2, {"width": 4}).state_dict()
    kept = {f"module.{n}": value for n, value in drawn.items() if not n.startswith("fc")}
    torch.save({"state_dict": kept}, tmp_path / "resnet_18.pth")
    wanted = {"name": "roi_resnet18", "settings": {"width": 4}}
    recipe = {"name": "roi_resnet_recommended", "overrides": SMALL}

    def begun(file: str) -> Parts:
        return find_parts(settings(network={**wanted, "pretrained": file}, recipe=recipe))

    parts = begun(str(tmp_path / "resnet_18.pth"))
    first, other = (parts.build_network(seed).state_dict() for seed in (1, 2))
    for name, value in kept.items():
        assert torch.equal(first[name.removeprefix("module.")], value), name
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])
    assert parts.beginning.startswith("Begun with the weights of resnet_18.pth, SHA-256 ")
    assert str(tmp_path) not in parts.beginning
    with pytest.raises(TrainingError, match=r"'network.pretrained': There is no weights file"):
        begun("gone.pth")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ["a", "a"]}, "'labels' names a class twice"),
        ({"network": {"name": "masere"}}, "'network': There is no network 'masere'. Did you mean"),
        ({"network": {"name": "maseres", "settings": {"drop": 1}}}, "'network': There is no"),
        ({"network": {"name": "maseres", "settings": {"input_shape": [64] * 3}}}, "'network': "),
        (
            {"network": {"name": "maseres", "pretrained": "resnet_18.pth"}},
            "'network.pretrained': MedicalNet's weights are for the 3D ResNets",
        ),
        ({"recipe": {"name": "maseres"}}, "'recipe.name': There is no recipe 'maseres'"),
        (
            {"recipe": {"name": "maseres_paper", "overrides": {"shape": 1}}},
            "'recipe.overrides': There is no recipe field 'shape'. Did you mean 'input_shape'",
        ),
        ({"augmentation": {"name": "all"}}, "'augmentation': There is no augmentation 'all'"),
        (
            {"augmentation": {"overrides": {"noice": 0}}},
            "'augmentation': There is no field 'noice'. Did you mean 'noise'",
        ),
    ],
    ids=str,
)
def test_what_does_not_exist_or_fit_is_named_by_its_setting(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(TrainingError) as error:
        find_parts(settings(**changes))
    assert words in str(error.value)

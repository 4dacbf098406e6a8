from __future__ import annotations

import pytest
import torch

from chestct.datasets.augment import Augmentation
from chestct.errors import TrainingError
from chestct.training.components import find_parts
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
    assert parts.augmentation == Augmentation()


def test_the_same_seed_draws_the_same_weights_and_leaves_torch_s_generator_alone() -> None:
    parts = find_parts(settings())
    before = torch.random.get_rng_state()
    first, second, other = (parts.build_network(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ["a", "a"]}, "'labels' names a class twice"),
        ({"network": {"name": "masere"}}, "'network': There is no network 'masere'. Did you mean"),
        ({"network": {"name": "maseres", "settings": {"drop": 1}}}, "'network': There is no"),
        ({"network": {"name": "maseres", "settings": {"input_shape": [64] * 3}}}, "'network': "),
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

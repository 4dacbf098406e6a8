from __future__ import annotations

import random

import pytest
import torch

from chestct.errors import NetworkError, UnknownNameError
from chestct.networks import build_network
from chestct.studies.damage import (
    SHARE,
    _choose_parts,
    _damage,
    _drawn,
    _Layer,
    _parts_of,
    _published_choice,
)

# protocols.md B5: weights and biases set to zero in models I to V.
PUBLISHED = {
    "I": (2052, 8),
    "II": (38848, 72),
    "III": (72, 0),
    "IV": (559872, 32),
    "V": (512, 4),
}
TOTALS = {"I": 2060, "II": 38920, "III": 72, "IV": 559904, "V": 516}
# Index lists that the notebook's seeds give: the part's first and last layer.
ENDS = {
    "I": ([0, 2, 10, 14], [7, 11, 12, 13]),
    "II": ([1, 4, 5, 10, 11, 17, 26, 28], [2, 8, 9, 12, 19, 24, 28, 31]),
    "III": ([1, 4, 5, 10, 11, 17, 26, 28], [3, 15, 18, 22, 24, 26, 27, 28]),
    "V": ([0, 2, 10, 14], [0, 2, 10, 14]),
}


@pytest.fixture(scope="module")
def maseres() -> torch.nn.Module:
    return build_network("maseres", 3, 2, {"attention": "published"})


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_damaged_model_of_the_paper_has_exactly_its_count_of_zeroed_numbers(
    maseres: torch.nn.Module, name: str
) -> None:
    layers = _parts_of(maseres)[name]
    before = {key: value.clone() for key, value in maseres.state_dict().items()}
    with torch.no_grad():
        for parameter in maseres.parameters():
            parameter[parameter == 0] = 0.5  # biases start at zero: make every change visible
    filled = {key: value.clone() for key, value in maseres.state_dict().items()}
    zeroed = _damage(maseres, layers, _published_choice(maseres, layers))
    assert zeroed == PUBLISHED[name]
    assert sum(zeroed) == TOTALS[name]
    changed = {
        key: int((value != filled[key]).sum()) for key, value in maseres.state_dict().items()
    }
    assert sum(changed.values()) == sum(zeroed)
    assert {key.rsplit(".", 1)[0] for key, count in changed.items() if count} == {
        layer.module for layer in layers
    }
    maseres.load_state_dict(before)


@pytest.mark.parametrize("name", ENDS)
def test_the_published_units_are_those_of_the_notebook_s_seeds(
    maseres: torch.nn.Module, name: str
) -> None:
    choice = _published_choice(maseres, _parts_of(maseres)[name])
    assert (choice[0], choice[-1]) == ENDS[name]


def test_a_random_choice_takes_as_many_units_and_others(maseres: torch.nn.Module) -> None:
    layers = _parts_of(maseres)["II"]
    published = _published_choice(maseres, layers)
    first, again = (
        [_drawn(generator, layer.num_units(maseres), SHARE) for layer in layers]
        for generator in (random.Random(1), random.Random(1))
    )
    assert first == again
    assert [len(units) for units in first] == [len(units) for units in published]
    assert first != published


def test_the_damaged_head_of_the_attention_keeps_its_bias_and_its_neighbours(
    maseres: torch.nn.Module,
) -> None:
    value = maseres.get_submodule("attention.value")
    before = value.weight.clone()
    _damage(maseres, [_Layer("attention.value", 1)], [[0, 5]])
    assert (value.weight[1, [0, 5]] == 0).all()
    value.weight.data[1, [0, 5]] = before[1, [0, 5]]
    assert torch.equal(value.weight, before)


def test_another_network_is_damaged_by_its_top_level_modules() -> None:
    network = build_network("roi_resnet18", 1, 3, {"width": 4, "head_units": 8})
    assert list(_parts_of(network)) == ["conv1", "layer1", "layer2", "layer3", "layer4", "fc1"]
    parts = _choose_parts(network, ["layer2.0", "fc1"])
    assert {layer.module for layer in parts["layer2.0"]} == {
        "layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0",
    }  # fmt: skip
    zeroed = _damage(network, parts["fc1"], _published_choice(network, parts["fc1"]))
    assert zeroed == (2 * 32, 2)
    assert int((network.fc1.weight == 0).all(dim=1).sum()) == 2


def test_half_the_units_can_be_taken(maseres: torch.nn.Module) -> None:
    (units,) = _published_choice(maseres, [_Layer("fc2")], share=0.5)
    assert len(units) == 8
    assert {0, 2, 10, 14} < set(units)


def test_an_unknown_part_or_one_without_weights_is_refused(maseres: torch.nn.Module) -> None:
    with pytest.raises(UnknownNameError, match=r"There is no part 'VI'\..*Known: I, II, III"):
        _choose_parts(maseres, ["VI"])
    with pytest.raises(NetworkError, match="'pool' has no weights"):
        _published_choice(maseres, [_Layer("pool")])

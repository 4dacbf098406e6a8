"""The 3D ResNets: layout, totals, settings."""

from __future__ import annotations

import pytest
import torch

from chestct.errors import NetworkError
from chestct.networks import build_network
from chestct.networks.resnet3d import _ResNet3D, _ResNetSettings


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("roi_resnet18", 33_424_195),
        ("roi_resnet50", 47_205_699),
        ("roi_resnet101", 86_251_843),
    ],
)
def test_parameters_add_up_to_the_total_of_the_layout(name: str, expected: int) -> None:
    with torch.device("meta"):
        network = build_network(name, 1, 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_a_224_cube_is_halved_to_the_grids_of_the_paper() -> None:
    with torch.device("meta"):
        network = build_network("roi_resnet18", 1, 3, {"width": 2})
        grids = {}
        for name in ("relu", "layer1", "layer2", "layer3", "layer4"):
            network.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: grids.update({name: output.shape[-1]})
            )
        network.eval()(torch.zeros(1, 1, 224, 224, 224))
    assert grids == {"relu": 112, "layer1": 56, "layer2": 28, "layer3": 14, "layer4": 7}


def test_state_dict_names_are_those_of_medicalnet() -> None:
    with torch.device("meta"):
        names = set(build_network("roi_resnet50", 1, 3).state_dict())
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer1.0.bn3.bias",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.running_var",
        "layer4.2.conv3.weight",
    } <= names
    assert not any(name.endswith("downsample.0.bias") for name in names)


def test_width_scales_every_stage() -> None:
    with torch.device("meta"):
        network = build_network("roi_resnet18", 1, 3, {"width": 8, "head_units": 16})
    assert isinstance(network, _ResNet3D)
    assert network.layer4.blocks[-1].conv2.weight.shape == (64, 64, 3, 3, 3)
    assert network.fc1.weight.shape == (16, 64)


def test_dropout_acts_in_training_only() -> None:
    network = build_network("roi_resnet18", 1, 3, {"width": 2, "dropout": 0.9}).eval()
    batch = torch.rand(2, 1, 40, 40, 40)
    assert torch.equal(network(batch), network(batch))
    network.dropout.train()
    assert not torch.equal(network(batch), network(batch))


def test_one_tiny_scan_is_too_little_to_train_on() -> None:
    network = build_network("roi_resnet18", 1, 3, {"width": 2})
    with pytest.raises(NetworkError, match="batch of two"):
        network.train()(torch.rand(1, 1, 32, 32, 32))
    assert network.eval()(torch.rand(1, 1, 32, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("width", 2.5),
        ("width", True),
        ("head_units", 10**6),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("dropout", "half"),
        ("mask_threshold", -0.1),
    ],
)
def test_an_impossible_setting_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(NetworkError, match=field):
        build_network("roi_resnet18", 1, 3, {field: value})


def test_the_defaults_are_those_of_the_paper() -> None:
    settings = _ResNetSettings()
    assert (settings.width, settings.head_units, settings.dropout) == (64, 512, 0.5)
    assert (settings.gating, settings.mask_threshold) == ("figure", 0.1)

"""Pairs of columns taken for channels: the same convolution, where it can be."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from chestct.networks import NETWORKS, build_network
from chestct.networks.blocks import _can_pair_columns, _ColumnPairConv3d, pair_columns


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [3, 7, 11, (3, 5, 7), (1, 3, 3)])
@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 12, 14), (5, 7, 22)])
def test_it_gives_what_the_convolution_gives(
    shape: tuple[int, int, int], kernel: int | tuple[int, int, int], bias: bool
) -> None:
    torch.manual_seed(0)
    edges = (kernel,) * 3 if isinstance(kernel, int) else kernel
    padding = tuple(edge // 2 for edge in edges)
    convolution = nn.Conv3d(1, 6, edges, stride=2, padding=padding, bias=bias).double()
    assert _can_pair_columns(convolution, shape[-1])
    batch = torch.randn(2, 1, *shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(_ColumnPairConv3d(convolution)(batch), convolution(batch))


@pytest.mark.parametrize(
    ("width", "options"),
    [
        (15, {}),
        (16, {"stride": 1}),
        (16, {"in_channels": 3}),
        (16, {"padding": 2}),
        (16, {"padding": "valid"}),
        (16, {"dilation": 2}),
        (16, {"padding_mode": "replicate"}),
        (16, {"kernel_size": 5, "padding": 2}),
        (16, {"kernel_size": 4, "padding": 2}),
    ],
)
def test_others_are_left_as_they_are(width: int, options: dict[str, object]) -> None:
    usual: dict[str, object] = {"in_channels": 1, "kernel_size": 7, "stride": 2, "padding": 3}
    convolution = nn.Conv3d(out_channels=4, **(usual | options))  # type: ignore[arg-type]
    network = nn.Sequential(convolution)
    pair_columns(network, width)
    assert network[0] is convolution


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_only_the_stem_of_the_resnets_of_one_channel_is_replaced(name: str, channels: int) -> None:
    with torch.device("meta"):
        network = build_network(name, channels, 3)
    pair_columns(network, 128)
    found = [
        each for each, module in network.named_modules() if isinstance(module, _ColumnPairConv3d)
    ]
    assert found == (["conv1"] if name.startswith("roi") and channels == 1 else [])


@pytest.mark.parametrize("name", ["roi_resnet18", "roi_resnet50"])
def test_a_network_answers_as_before(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, 1, 3, {"width": 8}).eval()
    replaced = deepcopy(network)
    pair_columns(replaced, 34)
    batch, lungs = torch.rand(1, 1, 32, 32, 34), (torch.rand(1, 1, 32, 32, 34) > 0.5).float()
    with torch.no_grad():
        found, expected = replaced(batch, lungs), network(batch, lungs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

"""VoxCNN: total, layer table, sizes."""

from __future__ import annotations

import pytest
import torch

from chestct.errors import NetworkError
from chestct.networks import build_network


def test_the_total_is_that_which_the_notebook_prints() -> None:
    with torch.device("meta"):
        network = build_network("voxcnn", 3, 2)
    trainable = sum(parameter.numel() for parameter in network.parameters())
    moving = network.bn.running_mean.numel() + network.bn.running_var.numel()
    assert (trainable, trainable + moving) == (432_921, 433_177)


def test_layers_hold_what_the_layer_table_says() -> None:
    with torch.device("meta"):
        network = build_network("voxcnn", 3, 2)
        totals = [
            sum(parameter.numel() for parameter in layer.parameters())
            for layer in (*network.features, network.fc1, network.fc2, network.out)
        ]
        grids: list[int] = []
        for layer in network.features:
            layer.register_forward_hook(lambda module, given, output: grids.append(output.shape[2]))
        network.eval()(torch.zeros(1, 3, 128, 128, 128))
    convolutions = [656, 1_736, 3_472, 6_928, 13_856, 27_680, 27_680, 55_360, 110_656, 110_656]
    assert [total for total in totals if total] == [*convolutions, 65_664, 8_256, 65]
    assert grids == [126, 124, 62, 60, 58, 29, 27, 25, 23, 11, 9, 7, 5, 2]


def test_batch_norm_follows_the_relu_and_has_the_numbers_of_keras() -> None:
    network = build_network("voxcnn", 1, 2, {"input_shape": [100, 100, 100]}).eval()
    seen: list[torch.Tensor] = []
    network.bn.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    with torch.no_grad():
        network(torch.randn(1, 1, 100, 100, 100))
    assert seen[0].min() == 0
    assert seen[0].max() > 0
    assert (network.bn.eps, network.bn.momentum) == (1e-3, 0.01)


@pytest.mark.parametrize("size", [100, 107, 115, 116])
def test_the_dense_layers_fit_every_size(size: int) -> None:
    with torch.device("meta"):
        network = build_network("voxcnn", 1, 3, {"input_shape": [100, size, 128]}).eval()
        assert network(torch.zeros(1, 1, 100, size, 128)).shape == (1, 3)


def test_an_axis_too_short_for_the_layers_is_refused() -> None:
    with pytest.raises(NetworkError, match="at least 100 voxels"):
        build_network("voxcnn", 1, 3, {"input_shape": [99, 128, 128]})


def test_one_scan_alone_cannot_be_trained_on() -> None:
    with torch.device("meta"):
        network = build_network("voxcnn", 1, 3)
        with pytest.raises(NetworkError, match="two or more"):
            network.train()(torch.zeros(1, 1, 128, 128, 128))

"""3D-AlexNet: total, layer table, and that its dense layers are one affine map."""

from __future__ import annotations

import pytest
import torch

from chestct.errors import NetworkError
from chestct.networks import build_network


def test_the_total_is_that_which_the_notebook_prints() -> None:
    with torch.device("meta"):
        network = build_network("alexnet3d", 3, 2)
    assert sum(parameter.numel() for parameter in network.parameters()) == 256_028_353


def test_layers_hold_what_the_layer_table_says() -> None:
    with torch.device("meta"):
        network = build_network("alexnet3d", 3, 2)
        totals = [
            sum(parameter.numel() for parameter in layer.parameters())
            for layer in (*network.features, network.fc1, network.fc2, network.out)
        ]
        grids: list[int] = []
        for layer in network.features:
            layer.register_forward_hook(lambda module, given, output: grids.append(output.shape[2]))
        network.eval()(torch.zeros(1, 3, 128, 128, 128))
    assert [total for total in totals if total] == [
        383_424,
        3_072_256,
        2_654_592,
        3_981_696,
        2_654_464,
        226_496_512,
        16_781_312,
        4_097,
    ]
    assert grids == [30, 14, 14, 6, 6, 6, 6]


def test_without_dropout_the_dense_layers_are_one_affine_map() -> None:
    settings = {"input_shape": [35, 35, 35], "dense_units": 8}
    network = build_network("alexnet3d", 1, 3, settings).eval()
    a, b = torch.randn(2, 1, 256), torch.randn(2, 1, 256)

    def dense(features: torch.Tensor) -> torch.Tensor:
        return network.out(network.fc2(network.fc1(features[0])))

    torch.testing.assert_close(dense(a) + dense(b), dense(a + b) + dense(torch.zeros_like(a)))


@pytest.mark.parametrize("size", [35, 42, 43, 51, 99])
def test_the_dense_layers_fit_every_size(size: int) -> None:
    with torch.device("meta"):
        settings = {"input_shape": [35, size, 51], "dense_units": 4}
        network = build_network("alexnet3d", 1, 3, settings)
        assert network(torch.zeros(2, 1, 35, size, 51)).shape == (2, 3)


def test_an_axis_too_short_for_the_layers_is_refused() -> None:
    with pytest.raises(NetworkError, match="at least 35 voxels"):
        build_network("alexnet3d", 1, 3, {"input_shape": [34, 64, 64]})

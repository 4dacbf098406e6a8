"""Where a layer's cells lie in the input: where the network looks, not where they would fit."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from chestct.explain.back_to_scan import _cell_centres, spread_over_input
from chestct.explain.maps import _find_layers, _Layer, pick_layer
from chestct.explain.question import CellMap, Question
from chestct.networks import build_network

SHAPE = (32, 32, 128)


@cache
def question() -> Question:
    torch.manual_seed(1)
    network = build_network("roi_resnet18", 1, 3, {"width": 2, "gating": "none"}).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            # Drawn kernels lean to one side; what is asked is where an even one looks.
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    batch = torch.rand(1, 1, *SHAPE)
    return Question(network, batch, torch.ones_like(batch))


def mean_offset_of_sight(layer: _Layer) -> float:
    """How far, along width, inner cells look beside their centre, on average."""
    kept: list[torch.Tensor] = []
    network = question().network
    hook = network.get_submodule(layer.name).register_forward_hook(
        lambda module, inputs, output: kept.append(output.clone())
    )
    batch = question().batch.clone().requires_grad_(True)
    try:
        network(batch, question().lungs)
    finally:
        hook.remove()
    middle = layer.shape[2] // 2
    offsets = []
    for column in range(middle - 1, middle + 2):
        cells = kept[0][0, ..., column].sum()
        (gradient,) = torch.autograd.grad(cells, batch, retain_graph=True)
        weight = gradient[0, 0].abs().sum(dim=(0, 1)).numpy()
        seen = np.average(np.arange(SHAPE[2]), weights=weight)
        offsets.append(seen - (layer.start[2] + layer.step[2] * column))
    return float(np.mean(offsets))


@pytest.mark.parametrize(("name", "step"), [("layer1", 4), ("layer2", 8), ("layer3", 16)])
def test_inner_cells_lie_where_the_network_looks(name: str, step: int) -> None:
    layer = _find_layers(question())[name]
    assert layer.step == (step, step, step)
    assert layer.shape[2] == SHAPE[2] // step
    # Laid evenly over the input, they would lie half a cell, less half a voxel, further on.
    evenly_laid = (step - 1) / 2
    assert abs(mean_offset_of_sight(layer)) < 0.2 * evenly_laid


def test_a_cell_on_the_border_is_where_its_inner_part_is() -> None:
    np.testing.assert_allclose(_cell_centres(0.0, 8.0, 3, 20), [1.75, 8.0, 15.75])
    np.testing.assert_allclose(_cell_centres(0.0, 1.0, 4, 4), [0, 1, 2, 3])


def test_a_map_is_linear_between_cells_and_level_beyond_the_outermost() -> None:
    values = np.array([[[2.0, 6.0]]], dtype=np.float32)
    cells = CellMap(values, (0.0, 0.0, 2.0), (4.0, 4.0, 4.0), target=0)
    spread = spread_over_input(cells, (1, 2, 9))
    np.testing.assert_allclose(spread[0, 0], [2, 2, 2, 3, 4, 5, 6, 6, 6], atol=1e-6)
    np.testing.assert_array_equal(spread[0, 0], spread[0, 1])


def test_unpadded_kernels_and_dilation_move_the_cells() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv3d(1, 1, 5, dilation=2)
            self.pool = nn.MaxPool3d(2)

        def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
            return self.pool(self.wide(batch)).flatten(1)

    batch = torch.rand(1, 1, 20, 20, 20)
    layers = _find_layers(Question(Steps(), batch, batch))
    assert layers["wide"] == _Layer("wide", (12, 12, 12), (4.0,) * 3, (1.0,) * 3)
    assert layers["pool"] == _Layer("pool", (6, 6, 6), (4.5,) * 3, (2.0,) * 3)


def test_layers_run_twice_and_layers_of_one_cell_are_left_out() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = nn.ReLU()
            self.single = nn.AdaptiveAvgPool3d(1)
            self.once = nn.Identity()

        def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
            return self.single(self.once(self.twice(self.twice(batch)))).flatten(1)

    batch = torch.rand(1, 1, 4, 4, 4)
    asked = Question(Repeated(), batch, batch)
    assert list(_find_layers(asked)) == ["once"]
    assert pick_layer(asked).name == "once"


def test_looking_for_layers_leaves_no_trace_in_the_network() -> None:
    network = question().network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    _find_layers(question())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())

"""How much of a map lies in the lungs, with and without gates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from explained import grown_by_a_cell, share_inside
from tiny_classifiers import settle_batch_norm

from chestct.explain.back_to_scan import spread_over_input
from chestct.explain.maps import gradcam_map
from chestct.explain.question import Question
from chestct.networks import build_network

SHAPE = (32, 32, 160)


def share_in_grown_lungs(gating: str, layer: str) -> float:
    """Of a network with drawn weights and a scan of noise with lungs in a part of it."""
    torch.manual_seed(4)
    network = build_network("roi_resnet18", 1, 3, {"width": 4, "gating": gating})
    settle_batch_norm(network, torch.rand(2, 1, *SHAPE))
    lungs = torch.zeros(1, 1, *SHAPE)
    lungs[..., 8:24, 8:24, 16:64] = 1.0
    batch = torch.rand(1, 1, *SHAPE)
    shares = []
    for target in range(3):
        asked = Question(network.eval(), batch, lungs, target=target, layer=layer)
        cells = gradcam_map(asked)
        heat = spread_over_input(cells, SHAPE)
        grown = grown_by_a_cell(lungs[0, 0].numpy() > 0, cells.step)
        assert grown.mean() < 0.75
        if heat.any():
            shares.append(share_inside(heat, grown))
    assert shares
    return min(shares)


@pytest.mark.parametrize(
    ("gating", "layer"),
    [("figure", "layer2"), ("figure", "layer3"), ("all", "layer2"), ("all", "layer4")],
)
def test_behind_a_gate_99_percent_of_a_map_lie_in_the_lungs_grown_by_a_cell(
    gating: str, layer: str
) -> None:
    assert share_in_grown_lungs(gating, layer) >= 0.99


@pytest.mark.parametrize("layer", ["layer2", "layer4"])
def test_without_gates_they_do_not(layer: str) -> None:
    assert share_in_grown_lungs("none", layer) < 0.9


def test_lungs_grow_by_a_cell_along_each_axis() -> None:
    lungs = np.zeros((7, 7, 7), dtype=bool)
    lungs[3, 3, 3] = True
    grown = grown_by_a_cell(lungs, (1.0, 2.0, 8.0))
    expected = np.zeros_like(lungs)
    expected[2:5, 1:6, :] = True
    np.testing.assert_array_equal(grown, expected)


def test_of_a_map_of_zeros_nothing_lies_inside() -> None:
    mask = np.ones((2, 2, 2), dtype=bool)
    assert share_inside(np.zeros((2, 2, 2), dtype=np.float32), mask) == 0.0
    assert share_inside(np.ones((2, 2, 2), dtype=np.float32), mask) == 1.0

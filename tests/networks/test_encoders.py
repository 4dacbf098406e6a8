"""The head on given encoders: it looks at the lungs alone, and weighs their parts."""

from __future__ import annotations

import pytest
import torch

from chestct.errors import NetworkError
from chestct.networks import build_network
from chestct.networks.encoders import _SegResNet

SHAPE = (16, 16, 16)


def built(cells: int) -> _SegResNet:
    torch.manual_seed(0)
    network = build_network("segresnet_encoder", 1, 2, {"width": 2, "levels": 3, "cells": cells})
    assert isinstance(network, _SegResNet)
    return network.eval()


def half_of_it() -> torch.Tensor:
    lungs = torch.zeros(1, 1, *SHAPE)
    lungs[:, :, :, :, :8] = 1
    return lungs


def test_one_cell_is_the_mean_over_the_lungs() -> None:
    network, batch = built(1), torch.rand(1, 1, *SHAPE)
    with torch.no_grad():
        features = network.layers(network.conv_init(batch))
        pooled = network.pooled_features(batch, half_of_it())
    torch.testing.assert_close(pooled[:, :-1], features[..., :2].mean(dim=(2, 3, 4)))
    assert float(pooled[0, -1]) == 0.5


def test_unscored_cells_weigh_as_much_as_they_hold_lung() -> None:
    network, batch, lungs = built(2), torch.rand(1, 1, *SHAPE), half_of_it()
    lungs[:, :, :8, :8, :8] = 0
    with torch.no_grad():
        network.attend.weight.zero_()
        pooled = network.pooled_features(batch, lungs).view(1, 9, 8)
        features = network.norm(pooled[0, :-1].T)
        expected = network.fc(features[pooled[0, -1] > 0].mean(dim=0))
        found = network.logits_of(pooled.flatten(1))[0]
    assert int((pooled[0, -1] > 0).sum()) == 3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_score_moves_the_weight_to_a_cell() -> None:
    network = built(2)
    pooled = torch.rand(1, 9, 8)
    pooled[:, -1] = 1
    with torch.no_grad():
        features = network.norm(pooled[0, :-1].T)
        network.attend.weight.copy_(200 * features[5:6])
        chosen = int(network.attend(features).argmax())
        found = network.logits_of(pooled.flatten(1))[0]
    torch.testing.assert_close(found, network.fc(features[chosen]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("cells", [1, 2])
def test_a_scan_without_lungs_gives_numbers(cells: int) -> None:
    network = built(cells)
    with torch.no_grad():
        logits = network(torch.rand(1, 1, *SHAPE), torch.zeros(1, 1, *SHAPE))
    assert logits.isfinite().all()


def test_one_small_scan_to_train_on_is_refused() -> None:
    network = built(1)
    with pytest.raises(NetworkError, match="use a batch of two"):
        network.train()(torch.zeros(1, 1, 4, 4, 4))

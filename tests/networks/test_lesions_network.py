"""What the lesion network marks, and the shares that it classifies by."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chestct.errors import NetworkError
from chestct.networks import build_network
from chestct.networks.lesions import LesionNet

SHAPE = (40, 36, 44)


def _network() -> LesionNet:
    torch.manual_seed(0)
    network = build_network("lung_lesions", 1, 3)
    assert isinstance(network, LesionNet)
    return network


class _Denser(nn.Module):
    """Stands in for a trained U-Net: what is denser than 0.5 is of the first kind."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        value = (features[:, :1] + 0.6) / 2
        return torch.cat([torch.zeros_like(value), (value - 0.5) * 400, -50 + 0 * value], dim=1)


def _marking_denser() -> LesionNet:
    network = _network().eval()
    (marker,) = network.lesions.markers
    marker.downs, marker.ups = nn.ModuleList([nn.Identity()]), nn.ModuleList()
    marker.last = _Denser()
    return network


def _lungs() -> torch.Tensor:
    """Two boxes, right and left."""
    lungs = torch.zeros(1, 1, *SHAPE)
    lungs[..., 4:36, 4:32, 4:20] = 1
    lungs[..., 4:36, 4:32, 24:40] = 1
    return lungs


def _chest(filled: float = 0.0) -> torch.Tensor:
    chest = torch.full((1, 1, *SHAPE), 0.32)
    chest[..., 10:26, 10:26, 6:18] += filled
    return chest * _lungs()


def _shares(network: LesionNet, chest: torch.Tensor) -> torch.Tensor:
    """Shares by lung (larger, smaller), map and region."""
    with torch.no_grad():
        pooled = network.pooled_features(chest, _lungs())[0]
    return (pooled.exp() - 0.003).reshape(2, 5, 7)


def test_the_share_of_a_marked_lung_is_the_lesions_size() -> None:
    network = _marking_denser()
    assert float(_shares(network, _chest())[0, 0, 0]) == pytest.approx(0.0, abs=1e-3)
    shares = _shares(network, _chest(0.24))
    size = 16 * 16 * 12 / (32 * 28 * 16)
    for number in (0, 2, 3):
        assert float(shares[0, number, 0]) == pytest.approx(size, rel=0.01)
    assert float(shares[1].max()) < 1e-3, "the other lung is healthy"
    assert float(shares[0, 1, 0]) < 1e-3, "of the second kind there is none"


def test_marked_lung_counts_as_dense_from_where_half_its_air_is_gone() -> None:
    network = _marking_denser()
    glass, solid = (_shares(network, _chest(filled))[0] for filled in (0.24, 0.5))
    assert float(glass[4, 0]) < 0.4 * float(glass[2, 0])
    assert float(solid[4, 0]) == pytest.approx(float(solid[2, 0]), rel=0.02)


def test_shares_of_regions_say_where_the_lesion_lies() -> None:
    chest = torch.full((1, 1, *SHAPE), 0.32)
    chest[..., 26:35, 22:31, 5:19] += 0.4
    whole, low, middle, high, rim, core, behind = _shares(_marking_denser(), chest * _lungs())[0, 0]
    assert low == pytest.approx(0.0, abs=1e-3)
    assert high > middle
    assert behind > 1.5 * whole
    assert core > 0
    assert rim > 0


def test_which_lung_is_ill_does_not_matter() -> None:
    network, ill = _marking_denser(), _chest(0.3)
    torch.testing.assert_close(
        _shares(network, ill), _shares(network, ill.flip(-1)), atol=0.01, rtol=0.05
    )


def test_it_learns_to_mark_what_differs_from_lung_of_any_density() -> None:
    near = (..., slice(6, 30), slice(6, 30), slice(2, 22))
    network, lungs = _network().train(), _lungs().expand(2, -1, -1, -1, -1)[near]
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.lesions.parameters(), 0.01)
    ill = (_chest(1.0) > 0.5)[near][0].long()
    kinds = torch.cat([torch.zeros_like(ill), ill])
    chests = torch.cat([_chest(), _chest(0.25)])[near]
    for _ in range(25):
        level = torch.rand(2, 1, 1, 1, 1, generator=generator) * 0.1
        logits = network.lesion_logits((chests + level) * lungs, lungs)
        loss = nn.functional.cross_entropy(logits, kinds, weight=torch.tensor([1.0, 5.0, 1.0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Still by the batch's own statistics: 25 steps are too few for running ones.
    with torch.no_grad():
        marked = network.lesion_logits((chests + 0.05) * lungs, lungs).argmax(1)
    assert float((marked[1][ill[0] == 1] == 1).float().mean()) > 0.9
    assert float((marked[0] > 0).float().mean()) < 0.05


def test_the_mean_of_several_marks() -> None:
    network = build_network("lung_lesions", 1, 3, {"members": 2}).eval()
    assert isinstance(network, LesionNet)
    first, second = network.lesions.markers
    chest, lungs = _chest(0.24), _lungs()
    with torch.no_grad():
        mean = (first(chest, lungs) + second(chest, lungs)) / 2
        torch.testing.assert_close(network.lesion_logits(chest, lungs), mean)


def test_without_lungs_and_with_one_lung_it_still_answers() -> None:
    network = _network().eval()
    with torch.no_grad():
        assert network(_chest(), torch.zeros(1, 1, *SHAPE)).isfinite().all()
        one = _lungs()
        one[..., 24:] = 0
        assert network(_chest(), one).isfinite().all()


def test_one_scan_alone_cannot_be_trained_on() -> None:
    with pytest.raises(NetworkError, match="two scans at a time"):
        _network().train()(_chest(), _lungs())

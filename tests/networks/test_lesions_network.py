"""What the density network sees of the lungs."""

from __future__ import annotations

import pytest
import torch

from chestct.errors import NetworkError
from chestct.networks import build_network
from chestct.networks.densities import _DensityNet

SHAPE = (40, 36, 44)


def _lungs() -> torch.Tensor:
    """Two boxes, right and left."""
    lungs = torch.zeros(1, 1, *SHAPE)
    lungs[..., 4:36, 4:32, 4:20] = 1
    lungs[..., 4:36, 4:32, 24:40] = 1
    return lungs


def _pooled(values: torch.Tensor) -> torch.Tensor:
    network = build_network("lung_densities", 1, 3).eval()
    assert isinstance(network, _DensityNet)
    with torch.no_grad():
        return network.pooled_features(values * _lungs(), _lungs())[0]


def _chest(level: float = 0.32) -> torch.Tensor:
    noise = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    return level + 0.02 * noise


def _share_of(pooled: torch.Tensor) -> torch.Tensor:
    """The larger of both lungs' shares of voxels with three tenths of their air replaced."""
    return pooled[4].exp() - 0.003


def test_disease_in_one_lung_raises_its_share_by_its_size() -> None:
    ill = _chest()
    ill[..., 10:26, 10:26, 6:18] += 0.3
    assert float(_share_of(_pooled(_chest()))) == pytest.approx(0.0, abs=1e-3)
    inner = 30 * 26 * 14
    assert float(_share_of(_pooled(ill))) == pytest.approx(16 * 16 * 12 / inner, rel=0.05)


def test_which_lung_is_ill_does_not_matter() -> None:
    ill = _chest()
    ill[..., 10:26, 10:26, 6:18] += 0.3
    other = ill.flip(-1)
    torch.testing.assert_close(_pooled(ill), _pooled(other), atol=0.15, rtol=0.1)


def test_a_denser_but_even_lung_is_no_disease() -> None:
    usual, shallow = _pooled(_chest()), _pooled(_chest(0.38))
    # The four plain limits see it; the shares of replaced air do not.
    relative = slice(0, 24)
    assert float((usual - shallow)[relative].abs().max()) < 1.0
    assert float((usual - shallow)[27:31].abs().max()) > 3.0


def test_without_lungs_and_with_one_lung_it_still_answers() -> None:
    network = build_network("lung_densities", 1, 3).eval()
    with torch.no_grad():
        assert network(_chest(), torch.zeros(1, 1, *SHAPE)).isfinite().all()
        one = _lungs()
        one[..., 24:] = 0
        assert network(_chest(), one).isfinite().all()


def test_one_scan_alone_cannot_be_trained_on() -> None:
    network = build_network("lung_densities", 1, 3)
    with pytest.raises(NetworkError, match="two scans at a time"):
        network.train()(_chest(), _lungs())

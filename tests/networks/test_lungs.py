"""The lungs network: sizes, classes, parameters, how far it sees, and that it can learn."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from chestct.networks.lungs import LUNG_CLASSES, SIZE_MULTIPLE, LungsNet


@pytest.mark.parametrize("size", [(8, 8, 8), (16, 24, 8), (40, 32, 48)])
def test_any_size_that_is_a_multiple_of_eight_gives_a_logit_per_class_and_voxel(size) -> None:
    network = LungsNet().eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 1, *size)).shape == (2, len(LUNG_CLASSES), *size)
    assert SIZE_MULTIPLE == 8


def test_it_stays_within_two_million_parameters() -> None:
    assert 500_000 < sum(p.numel() for p in LungsNet().parameters()) < 2_000_000


def test_every_parameter_gets_a_gradient() -> None:
    network = LungsNet()
    scans = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    F.cross_entropy(network(scans), torch.ones(1, 32, 32, 32, dtype=torch.long)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_air_beyond_the_scan_is_the_same_as_no_scan_there() -> None:
    torch.manual_seed(0)
    network = LungsNet().eval()
    scans = torch.rand(1, 1, 16, 16, 16) * 2 - 1
    inner = F.pad(scans, (16, 16) * 3, value=-1.0)
    # Until the first stage's normalisation moves air off zero, padding is air.
    first = network.stem[0][0]
    with torch.no_grad():
        alone, within = first(scans + 1), first(inner + 1)
    assert torch.allclose(alone, within[..., 8:16, 8:16, 8:16], atol=1e-6)


def test_a_voxel_sees_a_whole_thorax() -> None:
    network = LungsNet().eval()
    scans = torch.full((1, 1, 96, 96, 96), -0.5, requires_grad=True)
    network(scans)[0, :, 48, 48, 48].sum().backward()
    assert scans.grad is not None
    seen = torch.nonzero(scans.grad[0, 0].abs().amax(dim=(0, 1)))
    reach_mm = 4 * int(seen.max() - seen.min() + 1)
    assert reach_mm >= 300

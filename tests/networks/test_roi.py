"""Gating: where it sits, which mask it takes, and what it keeps out."""

from __future__ import annotations

import pytest
import torch
from tiny_classifiers import settle_batch_norm

from chestct.errors import NetworkError, UnknownNameError
from chestct.networks import build_network
from chestct.networks.resnet3d import _ResNet3D
from chestct.networks.roi import PLACEMENTS, GatedReLU, LungGrids, _halve_mask, lungs_from_input

SHAPE = (64, 64, 64)


def network_with(gating: str, name: str = "roi_resnet18", **settings: object) -> _ResNet3D:
    torch.manual_seed(0)
    network = build_network(name, 1, 3, {"width": 4, "gating": gating, **settings})
    settle_batch_norm(network, torch.rand(2, 1, *SHAPE))
    assert isinstance(network, _ResNet3D)
    return network.eval()


def gated_activations(network: torch.nn.Module) -> list[str]:
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, GatedReLU) and module.gate != "none"
    ]


def box_of_lungs(low: int = 24, high: int = 40) -> torch.Tensor:
    lungs = torch.zeros(1, 1, *SHAPE)
    lungs[..., low:high, low:high, low:high] = 1
    return lungs


def changed_beyond(batch: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """`batch` with other values everywhere but in the box from `low` to `high`."""
    changed = torch.rand(batch.shape, generator=torch.Generator().manual_seed(9))
    box = (..., slice(low, high), slice(low, high), slice(low, high))
    changed[box] = batch[box]
    return changed


@pytest.mark.parametrize(
    ("gating", "expected"),
    [
        ("none", []),
        ("text", ["relu", "layer1.0.relu1", "layer1.0.relu2", "layer1.1.relu1"]),
        ("figure", ["relu", "layer1.1.relu2", "layer2.1.relu2", "layer3.1.relu2"]),
        ("published", ["relu", "layer1.1.relu2", "layer2.1.relu2", "layer3.1.relu2"]),
        (
            "all",
            ["relu", "layer1.1.relu2", "layer2.1.relu2", "layer3.1.relu2", "layer4.1.relu2"],
        ),
    ],
)
def test_each_placement_gates_the_activations_it_names(gating: str, expected: list[str]) -> None:
    assert gated_activations(network_with(gating)) == expected


def test_every_gates_all_activations_there_are() -> None:
    names = gated_activations(network_with("every"))
    assert len(names) == 17
    assert {"relu", "layer1.0.relu1", "layer4.1.relu2"} <= set(names)


def test_text_gates_the_inner_activations_of_a_bottleneck_too() -> None:
    network = build_network("roi_resnet50", 1, 3, {"width": 2, "gating": "text"})
    expected = ["relu", "layer1.0.relu1", "layer1.0.relu2", "layer1.0.relu3"]
    assert gated_activations(network) == expected


@pytest.mark.parametrize("gating", sorted(PLACEMENTS))
def test_gating_adds_no_parameters_and_no_buffers(gating: str) -> None:
    plain, gated = network_with("none").state_dict(), network_with(gating).state_dict()
    assert {k: v.shape for k, v in plain.items()} == {k: v.shape for k, v in gated.items()}


def test_with_all_nothing_beyond_the_rim_reaches_the_pooled_features() -> None:
    network = network_with("all")
    batch = torch.rand(1, 1, *SHAPE)
    # The stem's 7^3 filters look 3 voxels out of the lungs.
    changed = changed_beyond(batch, 24 - 3, 40 + 3)
    with torch.no_grad():
        before = network.pooled_features(batch, box_of_lungs())
        after = network.pooled_features(changed, box_of_lungs())
    assert torch.equal(before, after)
    assert before.abs().sum() > 0


def test_with_all_the_rim_itself_is_seen() -> None:
    network = network_with("all")
    batch = torch.rand(1, 1, *SHAPE)
    changed = changed_beyond(batch, 24 - 2, 40 + 2)
    with torch.no_grad():
        before = network.pooled_features(batch, box_of_lungs())
        after = network.pooled_features(changed, box_of_lungs())
    assert not torch.equal(before, after)


@pytest.mark.parametrize("gating", ["none", "published"])
def test_without_lung_gates_everything_reaches_the_pooled_features(gating: str) -> None:
    network = network_with(gating)
    batch = torch.rand(1, 1, *SHAPE)
    changed = changed_beyond(batch, 24 - 3, 40 + 3)
    with torch.no_grad():
        before = network.pooled_features(batch, box_of_lungs())
        after = network.pooled_features(changed, box_of_lungs())
    assert (before - after).abs().max() > 0.01 * before.abs().max()


def test_with_all_the_last_features_are_zero_outside_the_lungs() -> None:
    lungs = torch.zeros(1, 1, *SHAPE)
    lungs[..., :32, :32, :32] = 1
    with torch.no_grad():
        features = network_with("all").stage4_features(torch.rand(1, 1, *SHAPE), lungs)
        free = network_with("figure").stage4_features(torch.rand(1, 1, *SHAPE), lungs)
    assert features.shape[2:] == (2, 2, 2)
    assert features[..., 0, 0, 0].abs().sum() > 0
    assert features.sum() == features[..., 0, 0, 0].sum()
    assert free[..., 1, 1, 1].abs().sum() > 0


def test_published_drops_only_tiny_activations() -> None:
    layer = GatedReLU()
    layer.gate = "own"
    features = torch.tensor([-1.0, 0.0005, 0.001, 0.0011, 2.0]).reshape(1, 1, 1, 1, 5)
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0011, 2.0]).reshape(1, 1, 1, 1, 5)
    assert torch.equal(layer(features, None), expected)


def test_without_lungs_the_mask_is_made_from_the_input() -> None:
    network = network_with("all", mask_threshold=0.5)
    batch = torch.rand(1, 1, *SHAPE)
    with torch.no_grad():
        by_itself = network(batch)
        with_mask = network(batch, (batch >= 0.5).float())
        with_box = network(batch, box_of_lungs())
    assert torch.equal(by_itself, with_mask)
    assert not torch.equal(by_itself, with_box)


def test_the_mask_from_the_input_takes_the_threshold_itself_and_any_channel() -> None:
    batch = torch.tensor([[0.0, 0.1, 0.05], [0.0, 0.0, 0.3]]).reshape(1, 2, 1, 1, 3)
    assert lungs_from_input(batch, 0.1).flatten().tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("size", [8, 7])
def test_a_cell_is_lung_when_any_of_its_voxels_is(size: int) -> None:
    for voxel in range(size):
        mask = torch.zeros(1, 1, size, size, size)
        mask[0, 0, voxel, 0, 2] = 1
        halved = _halve_mask(mask)
        assert halved.shape[2:] == (4, 4, 4)
        assert halved.nonzero().tolist() == [[0, 0, voxel // 2, 0, 1]]


def test_each_grid_is_made_once_per_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(mask: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(mask.shape[2:]))
        return _halve_mask(mask)

    monkeypatch.setattr("chestct.networks.roi._halve_mask", counted)
    with torch.no_grad():
        network_with("all")(torch.rand(1, 1, *SHAPE), box_of_lungs())
    assert calls[-5:] == [(n, n, n) for n in (64, 32, 16, 8, 4)]
    assert len(calls) == 5 + 5  # the first five from settling BatchNorm


def test_features_on_a_grid_that_is_no_halving_are_refused() -> None:
    with pytest.raises(NetworkError, match="no halving"):
        LungGrids(torch.ones(1, 1, 16, 16, 16)).like(torch.zeros(1, 1, 6, 8, 8))


@pytest.mark.parametrize("shape", [(1, 1, 64, 64, 60), (2, 1, 64, 64, 64)])
def test_lungs_on_another_grid_are_refused(shape: tuple[int, ...]) -> None:
    network = build_network("roi_resnet18", 1, 3, {"width": 4})
    # A plain call, past the run-time check of shapes that only tests have.
    from chestct.networks.roi import gating_mask

    unchecked = gating_mask.__wrapped__ if hasattr(gating_mask, "__wrapped__") else gating_mask
    with pytest.raises(NetworkError, match="does not fit"):
        unchecked(torch.zeros(1, 1, *SHAPE), torch.ones(shape), 0.1)
    assert network is not None


def test_an_unknown_gating_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="'figure'"):
        build_network("roi_resnet18", 1, 3, {"gating": "figures"})


def test_gating_leaves_gradients_of_gated_voxels_at_zero() -> None:
    network = network_with("all")
    batch = torch.rand(1, 1, *SHAPE, requires_grad=True)
    network(batch, box_of_lungs()).sum().backward()
    assert batch.grad is not None
    assert batch.grad[..., 24:40, 24:40, 24:40].abs().sum() > 0
    assert batch.grad[..., :20, :, :].abs().sum() == 0

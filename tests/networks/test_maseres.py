"""MASERes: totals, both forms of attention, and what the published one cannot do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chestct.errors import NetworkError, UnknownNameError
from chestct.networks import build_network
from chestct.networks.maseres import Maseres, _attend_as_published, attend_over_positions

SHAPE = (21, 14, 28)


def small(attention: str, num_classes: int = 2) -> Maseres:
    torch.manual_seed(0)
    settings = {"attention": attention, "input_shape": SHAPE}
    network = build_network("maseres", 1, num_classes, settings)
    assert isinstance(network, Maseres)
    return network.eval()


def stored_numbers(network: torch.nn.Module) -> int:
    """What Keras counts: parameters and BatchNorm's moving statistics."""
    return sum(
        tensor.numel()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )


@pytest.mark.parametrize("attention", ["paper", "published"])
@pytest.mark.parametrize(("channels", "total"), [(3, 2_406_746), (1, 2_405_882)])
def test_totals_are_those_that_the_notebook_prints(
    attention: str, channels: int, total: int
) -> None:
    with torch.device("meta"):
        network = build_network("maseres", channels, 2, {"attention": attention})
    assert stored_numbers(network) == total
    assert sum(parameter.numel() for parameter in network.parameters()) == total - 416


def test_blocks_hold_what_the_layer_table_says() -> None:
    with torch.device("meta"):
        network = build_network("maseres", 3, 2)
    parts = ("stem", "block1", "block2", "block3", "attention", "fc1", "fc2", "out")
    found = [stored_numbers(network.get_submodule(part)) for part in parts]
    assert found == [8_368, 42_528, 56_928, 56_928, 297, 2_239_616, 2_064, 17]


def test_the_paper_s_attention_is_the_softmax_of_the_products_of_positions() -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 50, 3, generator=generator) for _ in range(3))
    expected = torch.empty_like(v)
    for head in range(3):
        products = q[:, :, head, None] * k[:, None, :, head]
        expected[..., head] = (products.softmax(-1) @ v[..., head, None])[..., 0]
    torch.testing.assert_close(
        attend_over_positions(q.float(), k.float(), v.float()), expected.float()
    )


def test_the_published_attention_is_its_value_layer() -> None:
    q, k, v = (torch.randn(2, 50, 3) for _ in range(3))
    assert torch.equal(_attend_as_published(q, k, v), v)


def test_only_the_paper_s_attention_moves_information_between_positions() -> None:
    features = torch.rand(1, 32, 2, 2, 2)
    changed = features.clone()
    changed[..., 1, 1, 1] += 1
    with torch.no_grad():
        moved = {
            kind: (layer(features) - layer(changed))[0, 0].abs().max()
            for kind in ("paper", "published")
            for layer in [small(kind).attention]
        }
    assert moved["published"] == 0
    assert moved["paper"] > 1e-4


def test_attention_over_all_positions_of_128_cubed_keeps_no_square_matrix() -> None:
    q, k, v = (torch.randn(1, 5832, 3, requires_grad=True) for _ in range(3))
    saved: list[int] = []

    def measure(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(measure, lambda tensor: tensor):
        attended = attend_over_positions(q, k, v)
    attended.sum().backward()
    assert max(saved) < 5832 * 5832 // 100
    assert q.grad is not None
    assert q.grad.abs().sum() > 0


def test_two_classes_come_from_one_sigmoid_unit_for_the_second_label() -> None:
    network = small("published")
    logits = network(torch.rand(2, 1, *SHAPE))
    assert network.out.fc.out_features == 1
    assert torch.equal(logits[:, 0], torch.zeros(2))
    torch.testing.assert_close(logits.softmax(1)[:, 1], torch.sigmoid(logits[:, 1]))


def test_three_classes_have_three_units() -> None:
    assert small("paper", 3).out.fc.out_features == 3


def test_batch_norm_has_the_numbers_of_keras() -> None:
    norms = [m for m in small("published").modules() if isinstance(m, torch.nn.BatchNorm3d)]
    assert len(norms) == 8
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def test_kernels_are_drawn_as_glorot_has_it() -> None:
    network = small("published")
    for name, fan_in, fan_out in [
        ("block2.conv1", 32 * 27, 32 * 27),
        ("fc1", 3 * 2 * 4 * 3, 128),
        ("attention.value", 32, 1),
    ]:
        weight = network.get_parameter(f"{name}.weight").detach().numpy()
        bound = np.sqrt(6 / (fan_in + fan_out))
        assert np.abs(weight).max() <= bound
        assert np.abs(weight).max() > 0.8 * bound
        assert not network.get_parameter(f"{name}.bias").any()


def test_the_lungs_are_not_looked_at() -> None:
    network, batch = small("paper"), torch.rand(1, 1, *SHAPE)
    assert torch.equal(network(batch), network(batch, torch.zeros(1, 1, *SHAPE)))


def test_an_input_of_another_size_names_the_setting() -> None:
    with pytest.raises(NetworkError, match="input_shape"):
        small("paper")(torch.rand(1, 1, 28, 28, 28))


@pytest.mark.parametrize("shape", [[128, 128], [128.0, 128, 128], "128", [True, 8, 8]])
def test_an_input_shape_is_three_whole_numbers(shape: object) -> None:
    with pytest.raises(NetworkError, match="3 whole numbers"):
        build_network("maseres", 1, 2, {"input_shape": shape})


def test_an_unknown_attention_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="'published'"):
        build_network("maseres", 1, 2, {"attention": "publish"})


def test_an_input_shape_too_small_for_the_pool_is_refused() -> None:
    with pytest.raises(NetworkError, match="at least 7"):
        build_network("maseres", 1, 2, {"input_shape": [128, 6, 128]})

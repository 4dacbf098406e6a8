"""Weights of the efficientnet_pytorch family in the networks of timm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from chestct.errors import NetworkError
from chestct.extras import is_installed
from chestct.networks.slices import (
    _in_timm_names,
    build_slice_network,
    load_backbone_weights,
)

# Of both networks: repeats, kernel, stride, expansion, channels.
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]


def same(convolution: nn.Conv2d, batch: Tensor) -> Tensor:
    """A convolution with TensorFlow's padding, from its definition."""
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    lacks = [max(-(-n // stride) * stride - stride + kernel - n, 0) for n in batch.shape[-2:]]
    sides = [part for lack in reversed(lacks) for part in (lack // 2, lack - lack // 2)]
    return convolution(functional.pad(batch, sides))


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    def __init__(
        self, own: int, out: int, kernel: int, stride: int, factor: int, *, excites: bool
    ) -> None:
        super().__init__()
        wide = own * factor
        if factor > 1:
            self._expand_conv = nn.Conv2d(own, wide, 1, bias=False)
            self._bn0 = norm(wide)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = norm(wide)
        if excites:
            self._se_reduce = nn.Conv2d(wide, max(1, own // 4), 1)
            self._se_expand = nn.Conv2d(max(1, own // 4), wide, 1)
        self._project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self._bn2 = norm(out)
        self._adds = stride == 1 and own == out

    def forward(self, batch: Tensor, act: nn.Module) -> Tensor:
        found = batch
        if hasattr(self, "_expand_conv"):
            found = act(self._bn0(self._expand_conv(batch)))
        found = act(self._bn1(same(self._depthwise_conv, found)))
        if hasattr(self, "_se_reduce"):
            mean = found.mean((2, 3), keepdim=True)
            found = found * torch.sigmoid(self._se_expand(act(self._se_reduce(mean))))
        found = self._bn2(self._project_conv(found))
        return batch + found if self._adds else found


class Family(nn.Module):
    """The published network in as few lines as it takes, with that family's names."""

    def __init__(self, *, is_lite: bool) -> None:
        super().__init__()
        self._act = nn.ReLU6() if is_lite else nn.SiLU()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = norm(32)
        self._blocks, own = nn.ModuleList(), 32
        for repeats, kernel, stride, factor, out in STAGES:
            for number in range(repeats):
                first = stride if number == 0 else 1
                self._blocks.append(Block(own, out, kernel, first, factor, excites=not is_lite))
                own = out
        self._conv_head = nn.Conv2d(own, 1280, 1, bias=False)
        self._bn1 = norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, batch: Tensor) -> Tensor:
        batch = self._act(self._bn0(same(self._conv_stem, batch)))
        for block in self._blocks:
            batch = block(batch, self._act)
        return self._fc(self._act(self._bn1(self._conv_head(batch))).mean((2, 3)))


@pytest.fixture(scope="module", params=["tf_efficientnet_lite0", "tf_efficientnet_b0"])
def of_family(request: pytest.FixtureRequest) -> tuple[str, Family]:
    """timm's name and the network, with statistics of its own."""
    torch.manual_seed(5)
    network = Family(is_lite="lite" in request.param)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    with torch.no_grad():
        network.train()(torch.rand(4, 3, 64, 64))
    return request.param, network.eval()


@pytest.mark.skipif(not is_installed("timm"), reason="needs timm: see the slices step of .ci/run")
@pytest.mark.parametrize("size", [64, 75])
def test_renamed_weights_give_the_logits_of_an_independent_network(
    of_family: tuple[str, Family], tmp_path: Path, size: int
) -> None:
    name, family = of_family
    file = tmp_path / "weights.pth"
    torch.save(family.state_dict(), file)
    scaling = {"scaling": "weights", "mean": [0.498] * 3, "std": [0.502] * 3}
    network = build_slice_network(name, 2, {"size": size, **scaling}).eval()
    load_backbone_weights(network, file)
    slices = torch.rand(2, 3, 1, size, size)
    with torch.no_grad():
        expected = family((slices[:, :, 0] - 0.498) / 0.502)
        logits = family._fc(network.features(slices).mean((2, 3)))
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not is_installed("timm"), reason="needs timm: see the slices step of .ci/run")
def test_they_are_refused_where_padding_and_epsilon_are_others(
    of_family: tuple[str, Family], tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    torch.save(of_family[1].state_dict(), file)
    with torch.device("meta"):
        network = build_slice_network("efficientnet_lite0", 2)
    with pytest.raises(NetworkError, match="such as tf_efficientnet_lite0"):
        load_backbone_weights(network, file)


def test_names_are_counted_by_stage_and_what_has_no_place_keeps_its_own() -> None:
    own = ["conv_stem.weight", "blocks.0.0.conv_dw.weight", "blocks.0.0.bn1.bias"]
    own += ["blocks.1.0.conv_pw.weight", "blocks.1.1.conv_pw.weight", "conv_head.weight"]
    renamed = {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_var": "bn1.running_var",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._bn1.bias": "blocks.0.0.bn1.bias",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.0._bn2.bias": "blocks.0.0.bn2.bias",
        "_blocks.2._expand_conv.weight": "blocks.1.1.conv_pw.weight",
        "_blocks.2._bn0.bias": "blocks.1.1.bn1.bias",
        "_blocks.2._depthwise_conv.weight": "blocks.1.1.conv_dw.weight",
        "_blocks.2._bn1.bias": "blocks.1.1.bn2.bias",
        "_blocks.2._se_reduce.bias": "blocks.1.1.se.conv_reduce.bias",
        "_blocks.2._se_expand.bias": "blocks.1.1.se.conv_expand.bias",
        "_blocks.2._project_conv.weight": "blocks.1.1.conv_pwl.weight",
        "_blocks.2._bn2.bias": "blocks.1.1.bn3.bias",
        "_conv_head.weight": "conv_head.weight",
        "_bn1.weight": "bn2.weight",
        "_fc.bias": "classifier.bias",
        "_blocks.3._bn2.bias": "_blocks.3._bn2.bias",
        "_blocks.x": "_blocks.x",
        "_swish.beta": "_swish.beta",
    }
    tensors = {name: torch.full((1,), float(n)) for n, name in enumerate(renamed)}
    found = _in_timm_names(tensors, own)
    assert {name: int(value) for name, value in found.items()} == {
        name: n for n, name in enumerate(renamed.values())
    }

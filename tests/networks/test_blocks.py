"""Building blocks of the residual networks."""

from __future__ import annotations

import pytest
import torch

from chestct.networks.blocks import BasicBlock, Bottleneck, Conv3d
from chestct.networks.resnet3d import _Stage


@pytest.mark.parametrize("width", [1, 2])
def test_a_bf16_convolution_on_the_cpu_is_right_down_to_a_width_of_one(width: int) -> None:
    torch.manual_seed(0)
    convolution = Conv3d(16, 16, 3, padding=1)
    features = torch.randn(1, 16, 4, 4, width)
    with torch.no_grad():
        expected = convolution(features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = convolution(features)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_at_a_width_of_one_the_products_are_summed_in_float32() -> None:
    torch.manual_seed(0)
    convolution = Conv3d(64, 8, (3, 3, 3), padding="same", bias=False)
    features = torch.randn(1, 64, 4, 4, 1)
    with torch.no_grad():
        exact = convolution(features).bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = convolution(features)
    assert torch.equal(found, exact)


def test_weights_in_bf16_work_at_a_width_of_one() -> None:
    convolution = Conv3d(4, 4, 3, padding=1).bfloat16()
    assert convolution(torch.ones(1, 4, 2, 2, 1).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("kind", "out_channels"), [(BasicBlock, 8), (Bottleneck, 32)])
def test_a_block_that_changes_nothing_has_no_projection(kind: type, out_channels: int) -> None:
    assert kind(out_channels, 8, 1).downsample is None
    assert kind(out_channels, 8, 2).downsample is not None
    assert kind(out_channels + 1, 8, 1).downsample is not None


@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
def test_a_block_is_its_convolutions_plus_its_shortcut(kind: type) -> None:
    block = kind(8 * kind.expansion, 8, 1).eval()
    features = torch.rand(1, 8 * kind.expansion, 4, 4, 4)
    last = [module for module in block.modules() if isinstance(module, torch.nn.BatchNorm3d)][-1]
    torch.nn.init.zeros_(last.weight)
    with torch.no_grad():
        assert torch.equal(block(features, None), features)


def test_a_stage_steps_in_its_first_block_only() -> None:
    stage = _Stage("basic", 4, 8, depth=3, stride=2).eval()
    assert [block.conv1.stride[0] for block in stage.blocks] == [2, 1, 1]
    with torch.no_grad():
        assert stage(torch.rand(1, 4, 9, 8, 7), None).shape == (1, 8, 5, 4, 4)


@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [
        (3, 1, (2, 16, 16)),
        (3, 2, (16, 1, 16)),
        (3, 2, (16, 16, 1)),
        (7, 1, (1, 3, 6)),
        (7, 1, (6, 9, 7)),
        (7, 1, (9, 9, 9)),
        (3, 1, (4, 4, 4)),
    ],
    ids=str,
)
def test_a_bf16_convolution_on_the_cpu_and_its_gradients_are_right_on_short_axes(
    kernel: int, stride: int, size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    convolution = Conv3d(2, 16, kernel, stride=stride, padding=kernel // 2)
    features = torch.randn(2, 2, *size)
    results = []
    for is_mixed in (False, True):
        scan = features.clone().requires_grad_()
        convolution.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            found = convolution(scan)
        torch.manual_seed(1)
        found.float().backward(torch.randn(found.shape))
        assert scan.grad is not None
        assert convolution.weight.grad is not None
        results.append((found.detach().float(), scan.grad, convolution.weight.grad.clone()))
    for exact, mixed in zip(*results, strict=True):
        assert float((exact - mixed).abs().max()) < 0.02 * float(exact.abs().max())


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 2, 2), (4, 2, 4), (5, 5, 1), (3, 3, 3)])
def test_weight_gradients_in_bfloat16_are_those_of_float32_on_small_grids(
    shape: tuple[int, int, int],
) -> None:
    torch.manual_seed(0)
    convolution = Conv3d(32, 32, 3, padding=1, bias=False)
    batch = torch.randn(2, 32, *shape).contiguous(memory_format=torch.channels_last_3d)
    gradients = []
    for is_bfloat16 in (False, True):
        convolution.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
            output = convolution(batch)
        output.float().square().sum().backward()
        gradients.append(convolution.weight.grad.clone())
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert float(error) < 0.02

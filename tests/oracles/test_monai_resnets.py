"""Our 3D ResNets against MONAI's, with the same weights."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny_classifiers import settle_batch_norm

from chestct.networks import build_network
from chestct.networks.resnet3d import _ResNet3D

with warnings.catch_warnings():
    # MONAI's imports warn of what other packages will change.
    warnings.simplefilter("ignore")
    from monai.networks.nets.resnet import ResNet, ResNetBlock, ResNetBottleneck

LAYOUTS = {
    "roi_resnet18": (ResNetBlock, [2, 2, 2, 2]),
    "roi_resnet50": (ResNetBottleneck, [3, 4, 6, 3]),
    "roi_resnet101": (ResNetBottleneck, [3, 4, 23, 3]),
}


def monai_backbone(name: str, width: int, weights: dict[str, torch.Tensor]) -> ResNet:
    """MONAI's network without its classifier, holding our weights."""
    block, layers = LAYOUTS[name]
    network = ResNet(
        block=block,
        layers=layers,
        block_inplanes=[width, 2 * width, 4 * width, 8 * width],
        n_input_channels=1,
        conv1_t_size=7,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
    )
    backbone = {name: value for name, value in weights.items() if not name.startswith("fc")}
    network.load_state_dict(backbone, strict=True)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "width", "shape"),
    [
        ("roi_resnet18", 8, (48, 56, 64)),
        ("roi_resnet50", 8, (48, 56, 64)),
        ("roi_resnet101", 4, (48, 56, 64)),
        ("roi_resnet18", 64, (64, 64, 64)),
    ],
)
def test_pooled_features_equal_monais(name: str, width: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours = build_network(name, 1, 3, {"width": width, "gating": "none"})
    settle_batch_norm(ours, torch.rand(2, 1, *shape))
    assert isinstance(ours, _ResNet3D)
    theirs = monai_backbone(name, width, ours.state_dict())
    batch = torch.rand(1, 1, *shape)
    with torch.no_grad():
        found, expected = ours.eval().pooled_features(batch), theirs(batch)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

"""A stand-in for timm where it is not installed: its interface, with the names of MobileNetV2.

DenseNet169 and ResNet18 are the same with other channels, for tests that need two networks, or one
that is not in our table.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

CHANNELS = {"mobilenetv2_100": 1280, "densenet169": 1664, "resnet18": 512}
"""Of a network's last feature map."""


class TinyBackbone(nn.Module):
    """Two convolutions and a BatchNorm instead of fifty."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 8, 4, stride=4, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv_head = nn.Conv2d(8, channels, 8, stride=8, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward_features(self, pictures: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv_stem(pictures)))
        return torch.relu(self.bn2(self.conv_head(hidden)))


def create_model(name: str, *, pretrained: bool, num_classes: int) -> TinyBackbone:
    """As timm's; only the names that tests use, and never weights of its own accord."""
    assert (pretrained, num_classes) == (False, 0)
    return TinyBackbone(CHANNELS[name])


RESNET18 = SimpleNamespace(
    hf_hub_id="timm/resnet18.a1_in1k",
    input_size=(3, 224, 224),
    min_input_size=None,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    classifier="fc",
)
"""What timm says of its weights."""

TINY_TIMM = SimpleNamespace(
    create_model=create_model,
    is_model=CHANNELS.__contains__,
    list_models=lambda: [*CHANNELS],
    get_pretrained_cfg={"resnet18": RESNET18}.get,
)

"""The 3D networks, by name, each with every number of its layout written out.

The table holds small functions and imports no PyTorch, so that listing what there is stays
instant. All networks share one call:

    forward(batch: (batch, channel, depth, height, width), lungs: (batch, 1, depth, height, width)
    of 0 and 1, or None) -> logits (batch, class)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from chestct.errors import NetworkError
from chestct.lookup import look_up

if TYPE_CHECKING:
    from torch import nn


def roi_resnet18(in_channels: int, num_classes: int, **settings: object) -> nn.Module:
    """3D ResNet-18 with region-of-interest gating; settings as in `ResNetSettings`."""
    from chestct.networks.resnet3d import build_resnet

    return build_resnet("basic", (2, 2, 2, 2), in_channels, num_classes, settings)


def roi_resnet50(in_channels: int, num_classes: int, **settings: object) -> nn.Module:
    """3D ResNet-50 with region-of-interest gating; settings as in `ResNetSettings`."""
    from chestct.networks.resnet3d import build_resnet

    return build_resnet("bottleneck", (3, 4, 6, 3), in_channels, num_classes, settings)


def roi_resnet101(in_channels: int, num_classes: int, **settings: object) -> nn.Module:
    """3D ResNet-101 with region-of-interest gating; settings as in `ResNetSettings`."""
    from chestct.networks.resnet3d import build_resnet

    return build_resnet("bottleneck", (3, 4, 23, 3), in_channels, num_classes, settings)


def maseres(in_channels: int, num_classes: int, **settings: object) -> nn.Module:
    """MASERes; settings as in `MaseresSettings`."""
    from chestct.networks.maseres import build_maseres

    return build_maseres(in_channels, num_classes, settings)


def alexnet3d(in_channels: int, num_classes: int, **settings: object) -> nn.Module:
    """3D-AlexNet; settings as in `AlexNetSettings`."""
    from chestct.networks.alexnet3d import build_alexnet

    return build_alexnet(in_channels, num_classes, settings)


def voxcnn(in_channels: int, num_classes: int, **settings: object) -> nn.Module:
    """VoxCNN; settings as in `VoxCNNSettings`."""
    from chestct.networks.voxcnn import build_voxcnn

    return build_voxcnn(in_channels, num_classes, settings)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "roi_resnet18": roi_resnet18,
    "roi_resnet50": roi_resnet50,
    "roi_resnet101": roi_resnet101,
    "maseres": maseres,
    "alexnet3d": alexnet3d,
    "voxcnn": voxcnn,
}
"""Network name to builder, called as `builder(in_channels, num_classes, **settings)`."""


def build_network(
    name: str,
    in_channels: int,
    num_classes: int,
    settings: Mapping[str, object] | None = None,
) -> nn.Module:
    """Build a network of the table with freshly drawn weights.

    Args:
        name: A name in `NETWORKS`.
        in_channels: Channels of the input, at least one.
        num_classes: Number of logits, at least two.
        settings: The network's own settings; what is left out takes its default.

    Raises:
        UnknownNameError: There is no such network, or it has no such setting.
        NetworkError: A setting has an impossible value.
    """
    builder = look_up(NETWORKS, name, kind="network")
    if in_channels < 1 or num_classes < 2:
        msg = (
            f"A network needs at least one input channel and two classes, "
            f"not {in_channels} and {num_classes}."
        )
        raise NetworkError(msg)
    return builder(in_channels, num_classes, **(settings or {}))

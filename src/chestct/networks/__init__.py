"""The 3D networks, by name, each with every number of its layout written out.

The table says where each is and imports no PyTorch, so that listing what there is stays instant.
All networks share one call:

    forward(batch: (batch, channel, depth, height, width), lungs: (batch, 1, depth, height, width)
    of 0 and 1, or None) -> logits (batch, class)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from chestct.errors import NetworkError, UnknownNameError
from chestct.lookup import (
    Entry,
    Plugin,
    Value,
    fields_from,
    find_plugin,
    load_entry,
    plugins_of,
    unknown_name_message,
)

if TYPE_CHECKING:
    from torch import nn


NETWORKS: Final[dict[str, Entry]] = {
    "roi_resnet18": Entry(
        "chestct.networks.resnet3d:build_resnet18", "3D ResNet-18 with region-of-interest gating"
    ),
    "roi_resnet50": Entry(
        "chestct.networks.resnet3d:build_resnet50", "3D ResNet-50 with region-of-interest gating"
    ),
    "roi_resnet101": Entry(
        "chestct.networks.resnet3d:build_resnet101", "3D ResNet-101 with region-of-interest gating"
    ),
    "maseres": Entry("chestct.networks.maseres:build_maseres", "MASERes"),
    "alexnet3d": Entry("chestct.networks.maseres:build_alexnet", "3D-AlexNet"),
    "voxcnn": Entry("chestct.networks.maseres:build_voxcnn", "VoxCNN"),
    "lung_lesions": Entry(
        "chestct.networks.lesions:build_lesions", "Marks disease voxel by voxel; shares, small head"
    ),
    "segresnet_encoder": Entry(
        "chestct.networks.encoders:build_segresnet",
        "SegResNet's encoder, such as CT-FM's, for given weights, and a head on the lungs",
    ),
    "merlin_encoder": Entry(
        "chestct.networks.resnet3d:build_merlin",
        "Merlin's ResNet-152, for given weights, and a head on the lungs",
    ),
    "colipri_encoder": Entry(
        "chestct.networks.encoders:build_colipri",
        "COLIPRI's transformer (Primus-M), for given weights, and a head on the lungs",
    ),
}
"""Network name to builder, called as `builder(in_channels, num_classes, settings)`."""

_PLUGIN_KINDS: Final = ("network", "encoder")
"""What of another package becomes a network."""


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
        ChestCTError: It is another package's and cannot be imported.
    """
    builder = _builder(name)
    if in_channels < 1 or num_classes < 2:
        msg = (
            f"A network needs at least one input channel and two classes, "
            f"not {in_channels} and {num_classes}."
        )
        raise NetworkError(msg)
    network: nn.Module = builder(in_channels, num_classes, settings or {})
    return network


def settings_from(kind: type[Value], values: Mapping[str, object]) -> Value:
    """Make a network's settings, a frozen dataclass, out of plain values; see `fields_from`.

    Raises:
        UnknownNameError: A name is not a field of `kind`.
        NetworkError: A value is of another type than its field, or out of its range.
    """
    return fields_from(kind, values, what="Network setting", error=NetworkError)


def _builder(name: str) -> Any:
    """A network's builder; another package's encoder gets the head that looks at the lungs."""
    plugin = plugin_of(name)
    if plugin is not None and plugin.kind == "encoder":
        from chestct.networks.encoders import with_lung_head

        return with_lung_head(plugin.load())
    if plugin is None and name not in NETWORKS:
        others = [each for kind in _PLUGIN_KINDS for each in plugins_of(kind, NETWORKS)]
        raise UnknownNameError(unknown_name_message(name, [*NETWORKS, *others], kind="network"))
    return load_entry(NETWORKS, name, kind="network")


def plugin_of(name: str) -> Plugin | None:
    """What brings a network that is not ours: its own entry point, or that of its encoder."""
    found = (find_plugin(NETWORKS, name, kind=kind) for kind in _PLUGIN_KINDS)
    return next((plugin for plugin in found if plugin is not None), None)

"""3D-AlexNet, one of the two networks that the MASERes paper compares with, as in its notebook.

Not quite AlexNet: no pool after the last convolution, no local response normalisation, and no
ReLU after the two wide dense layers, so that the three dense layers are one affine map when used.
With three channels, two classes and 128^3 voxels it has 256,028,353 parameters. It does not look
at the lung mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from jaxtyping import Float
from torch import Tensor, nn

from chestct.networks.blocks import Pooled, PooledNetwork
from chestct.networks.keras_defaults import (
    ClassUnits,
    check_batch,
    check_input_shape,
    draw_glorot,
    flatten_channels_last,
    relu_conv,
)
from chestct.networks.roi import Features, LungBatch
from chestct.networks.settings import require_between, settings_from

SMALLEST: Final = 35
"""Fewest voxels of an axis of which the strides and pools leave one."""


@dataclass(frozen=True)
class _AlexNetSettings:
    """What can be chosen about 3D-AlexNet.

    Attributes:
        input_shape: Voxels of the input along (depth, height, width): the dense layers need it.
        dense_units: Units of each of the two wide dense layers; 4096 in the notebook.
        dropout: Share of them dropped while training.

    Raises:
        NetworkError: A value is impossible.
    """

    input_shape: tuple[int, int, int] = (128, 128, 128)
    dense_units: int = 4096
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_input_shape("3D-AlexNet", self.input_shape, SMALLEST)
        require_between("dense_units", self.dense_units, 1, 65536)
        require_between("dropout", self.dropout, 0, 0.99)


class _AlexNet3D(PooledNetwork):
    """The whole network.

    Args:
        in_channels: Channels of the input; three in the notebook.
        num_classes: Number of logits; two come from one unit, see `ClassUnits`.
        settings: Input size and head.
    """

    HEAD = ("dropout", "fc2", "out")

    def __init__(self, in_channels: int, num_classes: int, settings: _AlexNetSettings) -> None:
        super().__init__()
        self.settings = settings
        self.features = nn.Sequential(
            relu_conv(in_channels, 96, 11, stride=4),
            nn.MaxPool3d(3, stride=2),
            relu_conv(96, 256, 5, padding=2),
            nn.MaxPool3d(3, stride=2),
            relu_conv(256, 384, 3, padding=1),
            relu_conv(384, 384, 3, padding=1),
            relu_conv(384, 256, 3, padding=1),
        )
        num_cells = math.prod(_cells(n) for n in settings.input_shape)
        self.fc1 = nn.Linear(num_cells * 256, settings.dense_units)
        self.fc2 = nn.Linear(settings.dense_units, settings.dense_units)
        self.dropout = nn.Dropout(settings.dropout)
        self.out = ClassUnits(settings.dense_units, num_classes)
        draw_glorot(self)

    def pooled_features(self, batch: Features, lungs: LungBatch | None = None) -> Pooled:
        """The first dense layer's units; the lungs are not looked at."""
        check_batch("3D-AlexNet", batch, self.settings.input_shape, SMALLEST)
        units: Tensor = self.fc1(flatten_channels_last(self.features(batch)))
        return units

    def logits_of(self, pooled: Pooled) -> Float[Tensor, "batch num_classes"]:
        """What the other dense layers make of them."""
        hidden = self.dropout(pooled)
        logits: Tensor = self.out(self.dropout(self.fc2(hidden)))
        return logits


def build_alexnet(in_channels: int, num_classes: int, settings: Mapping[str, object]) -> _AlexNet3D:
    """Build 3D-AlexNet from plain settings, those of `_AlexNetSettings`."""
    return _AlexNet3D(in_channels, num_classes, settings_from(_AlexNetSettings, settings))


def _cells(size: int) -> int:
    """Cells along an axis of `size` voxels after the first convolution and both pools."""
    after_stem = (size - 11) // 4 + 1
    after_first_pool = (after_stem - 3) // 2 + 1
    return (after_first_pool - 3) // 2 + 1

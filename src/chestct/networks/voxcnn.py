"""VoxCNN, one of the two networks that the MASERes paper compares with, as in its notebook.

With three channels, two classes and 128^3 voxels it holds 433,177 numbers, 256 of them
BatchNorm's moving statistics. It does not look at the lung mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from chestct.errors import NetworkError
from chestct.networks.blocks import Pooled, PooledNetwork
from chestct.networks.keras_defaults import (
    ClassUnits,
    batch_norm_1d,
    check_batch,
    check_input_shape,
    draw_glorot,
    flatten_channels_last,
    relu_conv,
)
from chestct.networks.roi import Features, LungBatch
from chestct.networks.settings import require_between, settings_from

STAGES: Final = ((8, 8), (16, 16), (32, 32, 32), (64, 64, 64))
"""Channels of the convolutions, 3^3 and unpadded; a pool of 2 follows each group."""
SMALLEST: Final = 100
"""Fewest voxels of an axis of which the unpadded convolutions and pools leave one."""


@dataclass(frozen=True)
class _VoxCNNSettings:
    """What can be chosen about VoxCNN.

    Attributes:
        input_shape: Voxels of the input along (depth, height, width): the dense layers need it.
        dropout: Share of the first hidden units dropped while training.

    Raises:
        NetworkError: A value is impossible.
    """

    input_shape: tuple[int, int, int] = (128, 128, 128)
    dropout: float = 0.7

    def __post_init__(self) -> None:
        check_input_shape("VoxCNN", self.input_shape, SMALLEST)
        require_between("dropout", self.dropout, 0, 0.99)


class VoxCNN(PooledNetwork):
    """The whole network.

    Args:
        in_channels: Channels of the input; three in the notebook.
        num_classes: Number of logits; two come from one unit, see `ClassUnits`.
        settings: Input size and dropout.
    """

    HEAD = ("bn", "dropout", "fc2", "out")

    def __init__(self, in_channels: int, num_classes: int, settings: _VoxCNNSettings) -> None:
        super().__init__()
        self.settings = settings
        widths = [in_channels, *(width for stage in STAGES for width in stage)]
        convolutions = iter([relu_conv(a, b, 3) for a, b in pairwise(widths)])
        layers: list[nn.Module] = []
        for stage in STAGES:
            layers += [next(convolutions) for _ in stage]
            layers.append(nn.MaxPool3d(2))
        self.features = nn.Sequential(*layers)
        num_cells = math.prod(_cells(n) for n in settings.input_shape)
        self.fc1 = nn.Linear(num_cells * widths[-1], 128)
        self.bn = batch_norm_1d(128)
        self.dropout = nn.Dropout(settings.dropout)
        self.fc2 = nn.Linear(128, 64)
        self.out = ClassUnits(64, num_classes)
        draw_glorot(self)

    def pooled_features(self, batch: Features, lungs: LungBatch | None = None) -> Pooled:
        """The first dense layer's units; the lungs are not looked at.

        Raises:
            NetworkError: The input is not of the size the network was built for, or one scan alone
                is to be trained on, which BatchNorm cannot do.
        """
        check_batch("VoxCNN", batch, self.settings.input_shape, SMALLEST)
        if self.training and batch.shape[0] == 1:
            raise NetworkError("VoxCNN cannot be trained on one scan at a time: use two or more.")
        return F.relu(self.fc1(flatten_channels_last(self.features(batch))))

    def logits_of(self, pooled: Pooled) -> Float[Tensor, "batch num_classes"]:
        """What BatchNorm and the other dense layers make of them."""
        hidden = F.relu(self.fc2(self.dropout(self.bn(pooled))))
        logits: Tensor = self.out(hidden)
        return logits


def build_voxcnn(in_channels: int, num_classes: int, settings: Mapping[str, object]) -> VoxCNN:
    """Build VoxCNN from plain settings, those of `_VoxCNNSettings`."""
    return VoxCNN(in_channels, num_classes, settings_from(_VoxCNNSettings, settings))


def _cells(size: int) -> int:
    """Cells along an axis of `size` voxels after all convolutions and pools."""
    for stage in STAGES:
        size = (size - 2 * len(stage)) // 2
    return size

"""Encoders that others trained, each with a small head that looks at the lungs alone.

SegResNet's encoder (Myronenko 2018) as MONAI lays it out, names included, so that a state dict of
MONAI's `SegResEncoder` fits, or the `encoder.` part of its `SegResNetDS`. CT-FM (Pai et al. 2025,
Apache-2.0) is one of width 32 with five levels, learned from 148,000 CT scans with the axes of
this package, -1024 to 2048 HU as 0 to 1 and each scan's own spacing; `configs/ct_fm.yaml` prepares
scans in this way, on a grid of a fixed spacing. Its weights are not in this package.

The head sees the features averaged over the lungs, cell by cell of a coarse grid, and weighs the
cells by their share of lung and by a score that it learns. With one cell it is a linear probe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from chestct.errors import NetworkError
from chestct.networks.blocks import Pooled, PooledNetwork, conv
from chestct.networks.roi import Features, LungBatch, NewFeatures
from chestct.networks.settings import require_between, settings_from

_BLOCKS = (1, 2, 2, 4, 4)
"""Residual blocks of each level; MONAI's encoder has the first four, CT-FM's all five."""
_LEAST_SHARE = 1e-6
"""Of lung in a cell, below which it counts as none."""


@dataclass(frozen=True)
class _EncoderSettings:
    """What can be chosen about a SegResNet encoder and its head.

    Attributes:
        width: Channels of the first level; each further one doubles them. CT-FM: 32.
        levels: How many there are. CT-FM: 5.
        cells: Cells of the head's grid along each axis; 1 is the mean over the lungs.

    Raises:
        NetworkError: A value is impossible.
    """

    width: int = 32
    levels: int = 5
    cells: int = 1

    def __post_init__(self) -> None:
        require_between("width", self.width, 1, 1024)
        require_between("levels", self.levels, 1, len(_BLOCKS))
        require_between("cells", self.cells, 1, 16)


class SegResBlock(nn.Module):
    """BatchNorm-ReLU-convolution twice, and a shortcut.

    Args:
        channels: Coming in and going out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm3d(channels)
        self.conv1 = conv(channels, channels, 3)
        self.norm2 = nn.BatchNorm3d(channels)
        self.conv2 = conv(channels, channels, 3)

    def forward(self, features: Features) -> Features:
        """Run the block; nothing follows the sum."""
        inner = self.conv1(F.relu(self.norm1(features), inplace=True))
        inner = self.conv2(F.relu(self.norm2(inner), inplace=True))
        summed: Tensor = inner + features
        return summed


class _Level(nn.Module):
    """Blocks on one grid, then half of it; the last level keeps its grid.

    Args:
        channels: Coming in; twice as many go out where the grid is halved.
        depth: Number of blocks.
        is_last: Whether it keeps its grid.
    """

    def __init__(self, channels: int, depth: int, *, is_last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(SegResBlock(channels) for _ in range(depth)))
        half = nn.Identity() if is_last else conv(channels, 2 * channels, 3, stride=2)
        self.downsample = half

    def forward(self, features: Features) -> NewFeatures:
        """Run the blocks and halve the grid."""
        halved: Tensor = self.downsample(self.blocks(features))
        return halved


class _SegResNet(PooledNetwork):
    """SegResNet's encoder and a head on the lungs.

    Args:
        in_channels: Channels of the input; CT-FM has one.
        num_classes: Number of logits.
        settings: Width, levels and cells.
    """

    HEAD = ("norm", "attend", "fc")

    def __init__(self, in_channels: int, num_classes: int, settings: _EncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        widths = [settings.width * 2**level for level in range(settings.levels)]
        self.conv_init = conv(in_channels, settings.width, 3)
        self.layers = nn.Sequential(
            *(
                _Level(width, depth, is_last=width == widths[-1])
                for width, depth in zip(widths, _BLOCKS, strict=False)
            )
        )
        self.norm = nn.LayerNorm(widths[-1])
        # One cell has nothing to be weighed against.
        self.attend = nn.Linear(widths[-1], 1, bias=False) if settings.cells > 1 else nn.Identity()
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def pooled_features(self, batch: Features, lungs: LungBatch | None = None) -> Pooled:
        """Mean features over the lungs in each cell, then the share of lung in each.

        Without a mask all of the input counts as lung.

        Raises:
            NetworkError: The input is too small, or the mask does not fit.
        """
        self._check(batch, lungs)
        features = self.layers(self.conv_init(batch))
        mask = torch.ones_like(batch[:, :1]) if lungs is None else lungs.to(features.dtype)
        inside = F.adaptive_avg_pool3d(mask, features.shape[2:])
        cells = self.settings.cells
        share = F.adaptive_avg_pool3d(inside, cells)
        means = F.adaptive_avg_pool3d(features * inside, cells) / share.clamp(min=_LEAST_SHARE)
        return torch.cat([means, share], dim=1).flatten(1)

    def logits_of(self, pooled: Pooled) -> Float[Tensor, "batch num_classes"]:
        """What the head says of the cells, each weighed by its share of lung and its score."""
        by_cell = pooled.reshape(len(pooled), -1, self.settings.cells**3).transpose(1, 2)
        features, share = self.norm(by_cell[:, :, :-1]), by_cell[:, :, -1:]
        weights = share.clamp(min=_LEAST_SHARE).log()
        if self.settings.cells > 1:
            weights = weights + self.attend(features)
        logits: Tensor = self.fc((torch.softmax(weights, dim=1) * features).sum(dim=1))
        return logits

    def _check(self, batch: Features, lungs: LungBatch | None) -> None:
        size, smallest = tuple(batch.shape[2:]), 2 ** (self.settings.levels - 1)
        if min(size) < smallest:
            msg = f"This encoder needs at least {smallest} voxels along each axis, not {size}."
            raise NetworkError(msg)
        if self.training and batch.shape[0] == 1 and max(size) <= smallest:
            msg = f"One scan of {size} voxels leaves a single value per channel, too little to "
            raise NetworkError(f"{msg}train BatchNorm on: use a batch of two or a larger input.")
        if lungs is not None and lungs.shape[2:] != batch.shape[2:]:
            msg = f"The lung mask {tuple(lungs.shape)} does not fit the batch {tuple(batch.shape)}."
            raise NetworkError(msg)


def build_segresnet(
    in_channels: int, num_classes: int, settings: Mapping[str, object]
) -> _SegResNet:
    """Build a SegResNet encoder with its head from plain settings, those of `_EncoderSettings`."""
    return _SegResNet(in_channels, num_classes, settings_from(_EncoderSettings, settings))

"""Encoders that others trained, each with a small head that looks at the lungs alone.

SegResNet's encoder (Myronenko 2018) as MONAI lays it out, names included, so that a state dict of
MONAI's `SegResEncoder` fits, or the `encoder.` part of its `SegResNetDS`. CT-FM (Pai et al. 2025,
Apache-2.0) is one of width 32 with five levels, learned from 148,000 CT scans with the axes of
this package, -1024 to 2048 HU as 0 to 1 and each scan's own spacing; `configs/ct_fm.yaml` prepares
scans in this way, on a grid of a fixed spacing. Its weights are not in this package. Merlin's is in
`resnet3d`, COLIPRI's in `colipri`.

The head sees the features averaged over the lungs, cell by cell of a coarse grid, and weighs the
cells by their share of lung and by a score that it learns. With one cell it is a linear probe.

Other packages bring encoders without a head, by entry points of `chestct.encoders`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from chestct.errors import NetworkError
from chestct.networks import settings_from
from chestct.networks.blocks import Pooled, PooledNetwork, conv, draw_weights
from chestct.networks.roi import Features, LungBatch, NewFeatures

_BLOCKS = (1, 2, 2, 4, 4)
"""Residual blocks of each level; MONAI's encoder has the first four, CT-FM's all five."""
_LEAST_SHARE = 1e-6
"""Of lung in a cell, below which it counts as none."""


@dataclass(frozen=True)
class HeadSettings:
    """What can be chosen about the head alone.

    Attributes:
        cells: Cells of its grid along each axis; 1 is the mean over the lungs.
    """

    cells: Annotated[int, Field(ge=1, le=16)] = 1


@dataclass(frozen=True)
class _EncoderSettings(HeadSettings):
    """What can be chosen about a SegResNet encoder and its head.

    Attributes:
        width: Channels of the first level; each further one doubles them. CT-FM: 32.
        levels: How many there are. CT-FM: 5.
    """

    width: Annotated[int, Field(ge=1, le=1024)] = 32
    levels: Annotated[int, Field(ge=1, le=len(_BLOCKS))] = 5


class SegResBlock(nn.Module):
    """BatchNorm-ReLU-convolution twice, and a shortcut."""

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
    """Blocks on one grid, then half of it with twice the channels; the last level keeps both."""

    def __init__(self, channels: int, depth: int, *, is_last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(SegResBlock(channels) for _ in range(depth)))
        half = nn.Identity() if is_last else conv(channels, 2 * channels, 3, stride=2)
        self.downsample = half

    def forward(self, features: Features) -> NewFeatures:
        """Run the blocks and halve the grid."""
        halved: Tensor = self.downsample(self.blocks(features))
        return halved


class LungHeadNetwork(PooledNetwork):
    """An encoder and the head that looks at the lungs; a subclass gives the features."""

    HEAD = ("norm", "attend", "fc")

    def add_head(self, channels: int, num_classes: int, cells: int) -> None:
        """Add the head, its weights drawn; after the encoder, so that it is drawn first."""
        self._cells = cells
        self.norm = nn.LayerNorm(channels)
        # One cell has nothing to be weighed against.
        self.attend = nn.Linear(channels, 1, bias=False) if cells > 1 else nn.Identity()
        self.fc = nn.Linear(channels, num_classes)

    def encode(self, batch: Features) -> NewFeatures:
        """Features on a coarser grid."""
        raise NotImplementedError

    def check(self, batch: Features, lungs: LungBatch | None) -> None:
        """Refuse a mask that does not fit; a subclass refuses sizes that it cannot take."""
        if lungs is not None and lungs.shape[2:] != batch.shape[2:]:
            msg = f"The lung mask {tuple(lungs.shape)} does not fit the batch {tuple(batch.shape)}."
            raise NetworkError(msg)

    def pooled_features(self, batch: Features, lungs: LungBatch | None = None) -> Pooled:
        """Mean features over the lungs in each cell, then the share of lung in each.

        Without a mask all of the input counts as lung.

        Raises:
            NetworkError: The input is too small, or the mask does not fit.
        """
        self.check(batch, lungs)
        features = self.encode(batch)
        mask = torch.ones_like(batch[:, :1]) if lungs is None else lungs.to(features.dtype)
        depth, height, width = features.shape[2:]
        inside = F.adaptive_avg_pool3d(mask, (depth, height, width))
        cells = self._cells
        share = F.adaptive_avg_pool3d(inside, cells)
        means = F.adaptive_avg_pool3d(features * inside, cells) / share.clamp(min=_LEAST_SHARE)
        return torch.cat([means, share], dim=1).flatten(1)

    def logits_of(self, pooled: Pooled) -> Float[Tensor, "batch num_classes"]:
        """What the head says of the cells, each weighed by its share of lung and its score."""
        by_cell = pooled.reshape(len(pooled), -1, self._cells**3).transpose(1, 2)
        features, share = self.norm(by_cell[:, :, :-1]), by_cell[:, :, -1:]
        weights = share.clamp(min=_LEAST_SHARE).log()
        if self._cells > 1:
            weights = weights + self.attend(features)
        logits: Tensor = self.fc((torch.softmax(weights, dim=1) * features).sum(dim=1))
        return logits


class _SegResNet(LungHeadNetwork):
    """SegResNet's encoder and a head on the lungs; CT-FM has one input channel."""

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
        self.add_head(widths[-1], num_classes, settings.cells)
        draw_weights(self)

    def encode(self, batch: Features) -> NewFeatures:
        """Features of the last level."""
        features: Tensor = self.layers(self.conv_init(batch))
        return features

    def check(self, batch: Features, lungs: LungBatch | None) -> None:
        """Refuse an input that is too small, and a mask that does not fit."""
        size, smallest = tuple(batch.shape[2:]), 2 ** (self.settings.levels - 1)
        if min(size) < smallest:
            msg = f"This encoder needs at least {smallest} voxels along each axis, not {size}."
            raise NetworkError(msg)
        if self.training and batch.shape[0] == 1 and max(size) <= smallest:
            msg = f"One scan of {size} voxels leaves a single value per channel, too little to "
            raise NetworkError(f"{msg}train BatchNorm on: use a batch of two or a larger input.")
        super().check(batch, lungs)


def build_segresnet(
    in_channels: int, num_classes: int, settings: Mapping[str, object]
) -> _SegResNet:
    """Build a SegResNet encoder with its head from plain settings, those of `_EncoderSettings`."""
    return _SegResNet(in_channels, num_classes, settings_from(_EncoderSettings, settings))


class _OtherEncoder(LungHeadNetwork):
    """Another package's encoder and the head; it turns a batch into features on a coarser grid.

    Raises:
        NetworkError: It does not say in `out_channels` how many channels its features have.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, cells: int) -> None:
        super().__init__()
        channels = getattr(encoder, "out_channels", None)
        if not isinstance(channels, int):
            msg = (
                f"The encoder {type(encoder).__name__} has to say how many channels its features "
                "have, as a whole number in its attribute out_channels."
            )
            raise NetworkError(msg)
        self.encoder = encoder
        self.add_head(channels, num_classes, cells)

    def encode(self, batch: Features) -> NewFeatures:
        """The encoder's features."""
        features: Tensor = self.encoder(batch)
        return features


def with_lung_head(
    builder: Callable[[int, Mapping[str, object]], nn.Module],
) -> Callable[[int, int, Mapping[str, object]], PooledNetwork]:
    """A network's builder out of an encoder's, which is called as `builder(in_channels, settings)`.

    Of the settings, "cells" is the head's; all others are the encoder's own.
    """

    def build(in_channels: int, num_classes: int, settings: Mapping[str, object]) -> PooledNetwork:
        """Build the encoder and put the head onto it."""
        own = {name: value for name, value in settings.items() if name != "cells"}
        head = settings_from(HeadSettings, {"cells": settings.get("cells", 1)})
        return _OtherEncoder(builder(in_channels, own), num_classes, head.cells)

    return build

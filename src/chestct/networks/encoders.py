"""Encoders that others trained, each with a small head that looks at the lungs alone.

SegResNet's encoder (Myronenko 2018) as MONAI lays it out, names included, so that a state dict of
MONAI's `SegResEncoder` fits, or the `encoder.` part of its `SegResNetDS`. CT-FM (Pai et al. 2025,
Apache-2.0) is one of width 32 with five levels, learned from 148,000 CT scans with the axes of
this package, -1024 to 2048 HU as 0 to 1 and each scan's own spacing; `configs/ct_fm.yaml` prepares
scans in this way, on a grid of a fixed spacing. Its weights are not in this package. Merlin's is in
`resnet3d`.

COLIPRI (Wald et al. 2026, Microsoft, MIT) learned from chest CT scans and their reports. Its image
encoder is Primus-M (Wald et al. 2025) without the decoder: patches of 8^3 voxels become tokens,
whose places enter by a rotation of queries and keys (RoPE, Su et al. 2021) along three axes; the
blocks are those of EVA-02 (Fang et al. 2023), their branches scaled by learned factors. Names are
those of its published state dict, less `image_encoder.backbone.`; its projector and pooler, which
lead to the space shared with texts, and its text encoder have no place here, and dropped paths are
a matter of its training. `configs/colipri.yaml` prepares scans as COLIPRI does.

The head sees the features averaged over the lungs, cell by cell of a coarse grid, and weighs the
cells by their share of lung and by a score that it learns. With one cell it is a linear probe.

Other packages bring encoders without a head, by entry points of `chestct.encoders`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from chestct.errors import NetworkError
from chestct.networks import settings_from
from chestct.networks.blocks import Pooled, PooledNetwork, Turn, conv, draw_weights
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


_PATCH: Final = 8
"""Edge of a patch in voxels."""
_TEMPERATURE: Final = 10_000.0
"""Of RoPE: the slowest angle grows by nearly 1/10,000 per patch."""
_FIRST_SCALE: Final = 0.1
"""With which each branch of a block begins."""

_Tokens = Float[Tensor, "batch token channel"]
_Angles = Float[Tensor, "token pair"]


@dataclass(frozen=True)
class _ColipriSettings(HeadSettings):
    """What can be chosen about COLIPRI's image encoder and its head.

    Attributes:
        width: Channels of a token. COLIPRI: 864.
        depth: Number of blocks. COLIPRI: 16.
        heads: Of attention. COLIPRI: 12. Each has a multiple of six channels.
        axes: Where the axes grow to with which it learned. The package colipri prepares scans as
            "RAS" from its release 0.1.2 on, as "SAR" before.

    Raises:
        NetworkError: A value is impossible.
    """

    width: Annotated[int, Field(ge=6, le=8192)] = 864
    depth: Annotated[int, Field(ge=1, le=128)] = 16
    heads: Annotated[int, Field(ge=1, le=128)] = 12
    axes: str = "RAS"

    def __post_init__(self) -> None:
        if self.width % (6 * self.heads):
            msg = f"Network setting 'width' must be a multiple of six times 'heads' ({self.heads})"
            raise NetworkError(f"{msg}, not {self.width}.")


class _Attention(nn.Module):
    """Every token looks at every other, by content and by how they lie to each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: _Tokens, angles: _Angles) -> _Tokens:
        """What each token gathers from the others."""
        query, key, value = (
            part(tokens).unflatten(2, (self._heads, -1)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        seen = F.scaled_dot_product_attention(_rotated(query, angles), _rotated(key, angles), value)
        gathered: Tensor = self.proj(self.norm(seen.transpose(1, 2).flatten(2)))
        return gathered


class _GatedLayers(nn.Module):
    """SwiGLU: two layers, the first of which is gated, of 8/3 of a token's width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width * 8 // 3
        self.fc1_g = nn.Linear(width, inner)
        self.fc1_x = nn.Linear(width, inner)
        self.norm = nn.LayerNorm(inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, tokens: _Tokens) -> _Tokens:
        """Run the layers on each token."""
        inner = self.norm(F.silu(self.fc1_g(tokens)) * self.fc1_x(tokens))
        output: Tensor = self.fc2(inner)
        return output


class TokenBlock(nn.Module):
    """Attention, then layers on each token, each of them added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.gamma_1 = nn.Parameter(torch.full((width,), _FIRST_SCALE))
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _GatedLayers(width)
        self.gamma_2 = nn.Parameter(torch.full((width,), _FIRST_SCALE))

    def forward(self, tokens: _Tokens, angles: _Angles) -> _Tokens:
        """Run the block."""
        tokens = tokens + self.gamma_1 * self.attn(self.norm1(tokens), angles)
        output: Tensor = tokens + self.gamma_2 * self.mlp(self.norm2(tokens))
        return output


class _Colipri(LungHeadNetwork):
    """COLIPRI's image encoder and a head on the lungs; maps can be taken from `features`.

    Inputs are from 0 to 1; COLIPRI has one channel.
    """

    def __init__(self, in_channels: int, num_classes: int, settings: _ColipriSettings) -> None:
        super().__init__()
        self.settings = settings
        width = settings.width
        self.turn = Turn(settings.axes)
        self.down_projection = nn.ModuleDict(
            {"proj": nn.Conv3d(in_channels, width, kernel_size=_PATCH, stride=_PATCH)}
        )
        blocks = (TokenBlock(width, settings.heads) for _ in range(settings.depth))
        self.eva = nn.ModuleDict({"blocks": nn.ModuleList(blocks), "norm": nn.LayerNorm(width)})
        self.features = Turn(settings.axes, is_back=True)
        self.add_head(width, num_classes, settings.cells)
        draw_weights(self)

    def encode(self, batch: Features) -> NewFeatures:
        """What became of each patch."""
        # COLIPRI's values are from -1 to 1.
        patches = self.down_projection["proj"](2 * self.turn(batch) - 1)
        grid = tuple(patches.shape[2:])
        angles = _angles(grid, self.settings.width // (6 * self.settings.heads), patches.device)
        tokens = patches.flatten(2).transpose(1, 2)
        for block in self.eva["blocks"].children():
            tokens = block(tokens, angles)
        encoded = self.eva["norm"](tokens).transpose(1, 2).unflatten(2, grid)
        features: Tensor = self.features(encoded)
        return features

    def check(self, batch: Features, lungs: LungBatch | None) -> None:
        """Refuse a size that does not divide into patches, and a mask that does not fit."""
        size = tuple(batch.shape[2:])
        if min(size) < 2 * _PATCH or any(edge % _PATCH for edge in size):
            msg = f"This encoder needs a multiple of {_PATCH} voxels along each axis, at least "
            raise NetworkError(f"{msg}{2 * _PATCH}, not {size}.")
        super().check(batch, lungs)


def build_colipri(in_channels: int, num_classes: int, settings: Mapping[str, object]) -> _Colipri:
    """Build COLIPRI's encoder with its head from plain settings, those of `_ColipriSettings`."""
    return _Colipri(in_channels, num_classes, settings_from(_ColipriSettings, settings))


def _angles(grid: tuple[int, ...], num_speeds: int, device: torch.device) -> _Angles:
    """By how much each pair of a head's channels turns for each token: along axis after axis."""
    exponents = torch.arange(num_speeds, device=device) / num_speeds
    speeds = _TEMPERATURE**-exponents
    places = [torch.arange(size, device=device) for size in grid]
    where = torch.stack(torch.meshgrid(*places, indexing="ij"), dim=-1).flatten(0, 2)
    return (where[:, :, None] * speeds).flatten(1)


def _rotated(heads: Tensor, angles: _Angles) -> Tensor:
    """Turn each pair of neighbouring channels of (batch, head, token, channel) by its angle."""
    first, second = heads[..., 0::2], heads[..., 1::2]
    cosine, sine = angles.cos(), angles.sin()
    pairs = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.stack(pairs, dim=-1).flatten(3).to(heads.dtype)

"""The image encoder of COLIPRI, a transformer on patches of 8 voxels, with a head on the lungs.

COLIPRI (Wald et al. 2026, Microsoft, MIT) learned from chest CT scans and their reports. Its image
encoder is Primus-M (Wald et al. 2025) without the decoder: patches of 8^3 voxels become tokens,
whose places enter by a rotation of queries and keys (RoPE, Su et al. 2021) along three axes; the
blocks are those of EVA-02 (Fang et al. 2023), their branches scaled by learned factors. Names are
those of its published state dict, less `image_encoder.backbone.`; its projector and pooler, which
lead to the space shared with texts, and its text encoder have no place here, and dropped paths are
a matter of its training. `configs/colipri.yaml` prepares scans as COLIPRI does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from chestct.errors import NetworkError
from chestct.networks import settings_from
from chestct.networks.blocks import Turn, draw_weights
from chestct.networks.encoders import HeadSettings, LungHeadNetwork
from chestct.networks.roi import Features, LungBatch, NewFeatures

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

"""MASERes: a 3D squeeze-and-excitation residual network with attention (the MASERes paper).

Layer by layer as in the authors' notebook, where the text says less or something else. With three
channels, two classes and 128^3 voxels it holds 2,406,746 numbers (416 of them BatchNorm's moving
statistics), with one channel 2,405,882. It does not look at the lung mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from chestct.networks.blocks import Conv3d, Pooled, PooledNetwork
from chestct.networks.keras_defaults import (
    ClassUnits,
    batch_norm_3d,
    check_batch,
    check_input_shape,
    draw_glorot,
)
from chestct.networks.roi import Features, LungBatch, NewFeatures
from chestct.networks.settings import require_between, require_choice, settings_from

POOL: Final = 7
"""Edge of the only max pool, without padding: at 128^3 the last two voxels of an axis are lost."""
NUM_HEADS: Final = 3
SE_REDUCTION: Final = 8
_SDPA_WIDTH: Final = 8


@dataclass(frozen=True)
class _MaseresSettings:
    """What can be chosen about MASERes.

    Attributes:
        attention: "paper" (Eq. 4-5) or "published", which is inert: see `Attention`.
        input_shape: Voxels of the input along (depth, height, width): the dense layers need it.
        dropout: Share of the last hidden units dropped while training.

    Raises:
        NetworkError: A value is impossible.
        UnknownNameError: There is no such attention.
    """

    attention: str = "paper"
    input_shape: tuple[int, int, int] = (128, 128, 128)
    dropout: float = 0.25

    def __post_init__(self) -> None:
        require_choice("attention", self.attention, ATTENTIONS)
        check_input_shape("MASERes", self.input_shape, POOL)
        require_between("dropout", self.dropout, 0, 0.99)


def attend_over_positions(
    query: Float[Tensor, "batch position head"],
    key: Float[Tensor, "batch position head"],
    value: Float[Tensor, "batch position head"],
) -> Float[Tensor, "batch position head"]:
    """Eq. 4-5: alpha = softmax(Q K^T) over positions, then alpha V, without 1/sqrt(d).

    Heads are one unit wide. They are filled up with zeros, which change neither product, to a
    width for which PyTorch has kernels that never hold the position-by-position matrix.
    """
    q, k, v = (
        F.pad(x.transpose(1, 2)[..., None], (0, _SDPA_WIDTH - 1)) for x in (query, key, value)
    )
    attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    return attended[..., 0].transpose(1, 2)


def _attend_as_published(
    query: Float[Tensor, "batch position head"],
    key: Float[Tensor, "batch position head"],
    value: Float[Tensor, "batch position head"],
) -> Float[Tensor, "batch position head"]:
    """The notebook: softmax of K * Q over an axis of length 1, which is 1 everywhere, times V."""
    weight = torch.softmax((key * query)[..., None], dim=-1)[..., 0]
    return weight * value


ATTENTIONS: Final = {"paper": attend_over_positions, "published": _attend_as_published}
"""Attention name to how query, key and value are put together."""


class Attention(nn.Module):
    """Three heads side by side, each with a query, key and value one unit wide.

    The text calls it multi-head self-attention (Eq. 4-5, `paper`). In the notebook (`published`)
    the softmax runs over an axis of length one, so that each head is exactly its value layer: the
    198 parameters of `query` and `key` change nothing and get zero gradient, and no information
    moves between positions.

    Args:
        channels: Channels coming in; one per head goes out.
        kind: A name in `ATTENTIONS`.
    """

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.query = nn.Linear(channels, NUM_HEADS)
        self.key = nn.Linear(channels, NUM_HEADS)
        self.value = nn.Linear(channels, NUM_HEADS)
        self.attend = ATTENTIONS[kind]

    def draw_weights(self) -> None:
        """Glorot's bound for a layer of one unit: the heads are separate layers in Keras."""
        for layer in (self.query, self.key, self.value):
            bound = math.sqrt(6 / (layer.in_features + 1))
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, features: Features) -> Float[Tensor, "batch position head"]:
        """Attend; positions run along (depth, height, width), width fastest."""
        positions = features.flatten(2).transpose(1, 2)
        query, key, value = self.query(positions), self.key(positions), self.value(positions)
        return self.attend(query, key, value)


class _SqueezeExcitation(nn.Module):
    """Scale each channel by what the channel means of the whole volume say (ratio 8, no biases)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // SE_REDUCTION, bias=False)
        self.excite = nn.Linear(channels // SE_REDUCTION, channels, bias=False)

    def forward(self, features: Features) -> Features:
        """Scale the channels."""
        means = features.mean(dim=(2, 3, 4))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(means))))
        return features * scale[..., None, None, None]


class SEResBlock(nn.Module):
    """BatchNorm-ReLU-convolution twice, squeeze-and-excitation, plus a 1^3 shortcut of the input.

    Args:
        in_channels: Channels coming in.
        channels: Channels going out.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.bn1 = batch_norm_3d(in_channels)
        self.conv1 = Conv3d(in_channels, channels, 3, padding=1)
        self.bn2 = batch_norm_3d(channels)
        self.conv2 = Conv3d(channels, channels, 3, padding=1)
        self.se = _SqueezeExcitation(channels)
        self.shortcut = Conv3d(in_channels, channels, 1)

    def forward(self, features: Features) -> NewFeatures:
        """Run the block; nothing follows the sum."""
        inner = self.conv1(F.relu(self.bn1(features), inplace=True))
        inner = self.conv2(F.relu(self.bn2(inner), inplace=True))
        summed: Tensor = self.se(inner) + self.shortcut(features)
        return summed


class Maseres(PooledNetwork):
    """The whole network.

    Args:
        in_channels: Channels of the input; three in the notebook, one for COVID-CTset.
        num_classes: Number of logits; two come from one unit, see `ClassUnits`.
        settings: Attention, input size and dropout.
    """

    HEAD = ("fc2", "dropout", "out")

    def __init__(self, in_channels: int, num_classes: int, settings: _MaseresSettings) -> None:
        super().__init__()
        self.settings = settings
        self.stem = nn.Sequential(
            Conv3d(in_channels, 16, 3, padding=1),
            batch_norm_3d(16),
            nn.ReLU(inplace=True),
            Conv3d(16, 16, 3, padding=1),
            batch_norm_3d(16),
            nn.ReLU(inplace=True),
        )
        self.block1 = SEResBlock(16, 32)
        self.block2 = SEResBlock(32, 32)
        self.block3 = SEResBlock(32, 32)
        self.pool = nn.MaxPool3d(POOL)
        self.attention = Attention(32, settings.attention)
        num_positions = math.prod(n // POOL for n in settings.input_shape)
        self.fc1 = nn.Linear(num_positions * NUM_HEADS, 128)
        self.fc2 = nn.Linear(128, 16)
        self.dropout = nn.Dropout(settings.dropout)
        self.out = ClassUnits(16, num_classes)
        draw_glorot(self)
        self.attention.draw_weights()

    def pooled_features(self, batch: Features, lungs: LungBatch | None = None) -> Pooled:
        """The first dense layer's units, after attention; the lungs are not looked at."""
        check_batch("MASERes", batch, self.settings.input_shape, POOL)
        features = self.block3(self.block2(self.block1(self.stem(batch))))
        # Positions outside, heads inside: the order of Keras's flattening.
        attended = self.attention(self.pool(features)).flatten(1)
        return F.relu(self.fc1(attended))

    def logits_of(self, pooled: Pooled) -> Float[Tensor, "batch num_classes"]:
        """What the last two dense layers make of them."""
        hidden = F.relu(self.fc2(pooled))
        logits: Tensor = self.out(self.dropout(hidden))
        return logits


def build_maseres(in_channels: int, num_classes: int, settings: Mapping[str, object]) -> Maseres:
    """Build MASERes from plain settings, those of `_MaseresSettings`."""
    return Maseres(in_channels, num_classes, settings_from(_MaseresSettings, settings))

"""The MASERes paper's 3D networks, layer by layer as in the authors' notebooks.

MASERes is a 3D squeeze-and-excitation residual network with attention; 3D-AlexNet and VoxCNN are
compared with it. None of them looks at the lung mask. With three channels, two classes and 128^3
voxels they hold 2,406,746, 256,028,353 and 433,177 numbers, BatchNorm's moving statistics (416, 0
and 256) among them; MASERes with one channel 2,405,882.

What the notebooks get from Keras without saying so: BatchNorm has epsilon 1e-3 and momentum 0.99,
which PyTorch counts from the other end as 0.01. Kernels are drawn as Glorot has it, biases start
at zero. One difference remains: Keras feeds the moving variance with the variance of the batch,
PyTorch with its unbiased estimate, which for BatchNorm over a handful of values (VoxCNN's, 4 scans)
is larger by n / (n - 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from chestct.arrays import Shape
from chestct.errors import NetworkError
from chestct.lookup import look_up
from chestct.networks import settings_from
from chestct.networks.blocks import Conv3d, Pooled, PooledNetwork
from chestct.networks.roi import Features, LungBatch, NewFeatures

NUM_HEADS: Final = 3
_POOL: Final = 7
"""Edge of the only max pool, without padding: at 128^3 the last two voxels of an axis are lost."""
_SE_REDUCTION: Final = 8
_SDPA_WIDTH: Final = 8
_batch_norm_1d: Final = partial(nn.BatchNorm1d, eps=1e-3, momentum=0.01)
_batch_norm_3d: Final = partial(nn.BatchNorm3d, eps=1e-3, momentum=0.01)
_NUM_SIGMOID_CLASSES: Final = 2
"""Number of classes that the papers tell apart with a single unit."""

_SMALLEST_ALEXNET: Final = 35
"""Fewest voxels of an axis of which the strides and pools leave one."""
_SMALLEST_VOXCNN: Final = 100
"""Fewest voxels of an axis of which the unpadded convolutions and pools leave one."""
_VOXCNN_STAGES: Final = ((8, 8), (16, 16), (32, 32, 32), (64, 64, 64))
"""Channels of the convolutions, 3^3 and unpadded; a pool of 2 follows each group."""

_Dropout = Annotated[float, Field(ge=0, le=0.99)]


def draw_glorot(network: nn.Module) -> None:
    """Draw every kernel uniformly as Glorot has it; biases become zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ClassUnits(nn.Module):
    """The last layer: one unit per class, or a single one for two classes, as published.

    The published networks end in one sigmoid unit, the probability of the second label (normal).
    It is given here as the logits (0, z), whose softmax is (1 - sigmoid(z), sigmoid(z)) and whose
    cross-entropy is the binary one, so that all networks look alike from outside.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.is_sigmoid = num_classes == _NUM_SIGMOID_CLASSES
        self.fc = nn.Linear(features, 1 if self.is_sigmoid else num_classes)

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch class"]:
        """Logits of each scan."""
        logits: Tensor = self.fc(features)
        return torch.cat([torch.zeros_like(logits), logits], dim=1) if self.is_sigmoid else logits


def _relu_conv(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, padding: int = 0
) -> nn.Sequential:
    convolution = Conv3d(in_channels, out_channels, kernel, stride=stride, padding=padding)
    return nn.Sequential(convolution, nn.ReLU(inplace=True))


def _flatten_channels_last(
    features: Float[Tensor, "batch channel depth height width"],
) -> Float[Tensor, "batch units"]:
    """Flatten voxel by voxel, channels innermost: the order in which Keras holds dense weights."""
    return features.permute(0, 2, 3, 4, 1).flatten(1)


def _check_shape(name: str, shape: Shape, smallest: int) -> None:
    """Refuse to build a network for inputs of which its layers leave nothing."""
    if min(shape) < smallest:
        msg = f"{name} needs at least {smallest} voxels along each axis, not {shape}."
        raise NetworkError(msg)


def _check_batch(name: str, batch: Tensor, shape: Shape, smallest: int) -> None:
    """Refuse a batch of another size than the network's dense layers were built for."""
    _check_shape(name, (batch.shape[2], batch.shape[3], batch.shape[4]), smallest)
    if tuple(batch.shape[2:]) != shape:
        msg = (
            f"This {name} was built for inputs of {shape} voxels, not {tuple(batch.shape[2:])}: "
            f"build it with the setting input_shape."
        )
        raise NetworkError(msg)


@dataclass(frozen=True)
class _MaseresSettings:
    """What can be chosen about MASERes.

    Attributes:
        attention: "paper" (Eq. 4-5) or "published", which is inert: see `Attention`.
        input_shape: Voxels of the input along (depth, height, width): the dense layers need it.
        dropout: Share of the last hidden units dropped while training.
    """

    attention: str = "paper"
    input_shape: tuple[int, int, int] = (128, 128, 128)
    dropout: _Dropout = 0.25

    def __post_init__(self) -> None:
        look_up(_ATTENTIONS, self.attention, kind="'attention' setting")
        _check_shape("MASERes", self.input_shape, _POOL)


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


_ATTENTIONS: Final = {"paper": attend_over_positions, "published": _attend_as_published}
"""Attention name to how query, key and value are put together."""


class Attention(nn.Module):
    """Three heads side by side, each with a query, key and value one unit wide.

    The text calls it multi-head self-attention (Eq. 4-5, `paper`). In the notebook (`published`)
    the softmax runs over an axis of length one, so that each head is exactly its value layer: the
    198 parameters of `query` and `key` change nothing and get zero gradient, and no information
    moves between positions. One channel per head goes out.
    """

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.query = nn.Linear(channels, NUM_HEADS)
        self.key = nn.Linear(channels, NUM_HEADS)
        self.value = nn.Linear(channels, NUM_HEADS)
        self.attend = _ATTENTIONS[kind]

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
        self.squeeze = nn.Linear(channels, channels // _SE_REDUCTION, bias=False)
        self.excite = nn.Linear(channels // _SE_REDUCTION, channels, bias=False)

    def forward(self, features: Features) -> Features:
        """Scale the channels."""
        means = features.mean(dim=(2, 3, 4))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(means))))
        return features * scale[..., None, None, None]


class SEResBlock(nn.Module):
    """BatchNorm-ReLU-convolution twice, squeeze-and-excitation, and a 1^3 shortcut of the input."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.bn1 = _batch_norm_3d(in_channels)
        self.conv1 = Conv3d(in_channels, channels, 3, padding=1)
        self.bn2 = _batch_norm_3d(channels)
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
    """The whole network; three channels in the notebook, one for COVID-CTset."""

    HEAD = ("fc2", "dropout", "out")

    def __init__(self, in_channels: int, num_classes: int, settings: _MaseresSettings) -> None:
        super().__init__()
        self.settings = settings
        self.stem = nn.Sequential(
            Conv3d(in_channels, 16, 3, padding=1),
            _batch_norm_3d(16),
            nn.ReLU(inplace=True),
            Conv3d(16, 16, 3, padding=1),
            _batch_norm_3d(16),
            nn.ReLU(inplace=True),
        )
        self.block1 = SEResBlock(16, 32)
        self.block2 = SEResBlock(32, 32)
        self.block3 = SEResBlock(32, 32)
        self.pool = nn.MaxPool3d(_POOL)
        self.attention = Attention(32, settings.attention)
        num_positions = math.prod(n // _POOL for n in settings.input_shape)
        self.fc1 = nn.Linear(num_positions * NUM_HEADS, 128)
        self.fc2 = nn.Linear(128, 16)
        self.dropout = nn.Dropout(settings.dropout)
        self.out = ClassUnits(16, num_classes)
        draw_glorot(self)
        self.attention.draw_weights()

    def pooled_features(self, batch: Features, lungs: LungBatch | None = None) -> Pooled:
        """The first dense layer's units, after attention; the lungs are not looked at."""
        _check_batch("MASERes", batch, self.settings.input_shape, _POOL)
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


@dataclass(frozen=True)
class _AlexNetSettings:
    """What can be chosen about 3D-AlexNet.

    Attributes:
        input_shape: Voxels of the input along (depth, height, width): the dense layers need it.
        dense_units: Units of each of the two wide dense layers; 4096 in the notebook.
        dropout: Share of them dropped while training.
    """

    input_shape: tuple[int, int, int] = (128, 128, 128)
    dense_units: Annotated[int, Field(ge=1, le=65536)] = 4096
    dropout: _Dropout = 0.5

    def __post_init__(self) -> None:
        _check_shape("3D-AlexNet", self.input_shape, _SMALLEST_ALEXNET)


class _AlexNet3D(PooledNetwork):
    """3D-AlexNet, which is not quite AlexNet.

    It has no pool after the last convolution, no local response normalisation, and no ReLU after
    the two wide dense layers, so that the three dense layers are one affine map when used.
    """

    HEAD = ("dropout", "fc2", "out")

    def __init__(self, in_channels: int, num_classes: int, settings: _AlexNetSettings) -> None:
        super().__init__()
        self.settings = settings
        self.features = nn.Sequential(
            _relu_conv(in_channels, 96, 11, stride=4),
            nn.MaxPool3d(3, stride=2),
            _relu_conv(96, 256, 5, padding=2),
            nn.MaxPool3d(3, stride=2),
            _relu_conv(256, 384, 3, padding=1),
            _relu_conv(384, 384, 3, padding=1),
            _relu_conv(384, 256, 3, padding=1),
        )
        num_cells = math.prod(_cells_of_alexnet(n) for n in settings.input_shape)
        self.fc1 = nn.Linear(num_cells * 256, settings.dense_units)
        self.fc2 = nn.Linear(settings.dense_units, settings.dense_units)
        self.dropout = nn.Dropout(settings.dropout)
        self.out = ClassUnits(settings.dense_units, num_classes)
        draw_glorot(self)

    def pooled_features(self, batch: Features, lungs: LungBatch | None = None) -> Pooled:
        """The first dense layer's units; the lungs are not looked at."""
        _check_batch("3D-AlexNet", batch, self.settings.input_shape, _SMALLEST_ALEXNET)
        units: Tensor = self.fc1(_flatten_channels_last(self.features(batch)))
        return units

    def logits_of(self, pooled: Pooled) -> Float[Tensor, "batch num_classes"]:
        """What the other dense layers make of them."""
        hidden = self.dropout(pooled)
        logits: Tensor = self.out(self.dropout(self.fc2(hidden)))
        return logits


def build_alexnet(in_channels: int, num_classes: int, settings: Mapping[str, object]) -> _AlexNet3D:
    """Build 3D-AlexNet from plain settings, those of `_AlexNetSettings`."""
    return _AlexNet3D(in_channels, num_classes, settings_from(_AlexNetSettings, settings))


def _cells_of_alexnet(size: int) -> int:
    """Cells along an axis of `size` voxels after the first convolution and both pools."""
    after_stem = (size - 11) // 4 + 1
    after_first_pool = (after_stem - 3) // 2 + 1
    return (after_first_pool - 3) // 2 + 1


@dataclass(frozen=True)
class _VoxCNNSettings:
    """What can be chosen about VoxCNN.

    Attributes:
        input_shape: Voxels of the input along (depth, height, width): the dense layers need it.
        dropout: Share of the first hidden units dropped while training.
    """

    input_shape: tuple[int, int, int] = (128, 128, 128)
    dropout: _Dropout = 0.7

    def __post_init__(self) -> None:
        _check_shape("VoxCNN", self.input_shape, _SMALLEST_VOXCNN)


class _VoxCNN(PooledNetwork):
    """VoxCNN: small unpadded convolutions, and BatchNorm over scans alone."""

    HEAD = ("bn", "dropout", "fc2", "out")

    def __init__(self, in_channels: int, num_classes: int, settings: _VoxCNNSettings) -> None:
        super().__init__()
        self.settings = settings
        widths = [in_channels, *(width for stage in _VOXCNN_STAGES for width in stage)]
        convolutions = iter([_relu_conv(a, b, 3) for a, b in pairwise(widths)])
        layers: list[nn.Module] = []
        for stage in _VOXCNN_STAGES:
            layers += [next(convolutions) for _ in stage]
            layers.append(nn.MaxPool3d(2))
        self.features = nn.Sequential(*layers)
        num_cells = math.prod(_cells_of_voxcnn(n) for n in settings.input_shape)
        self.fc1 = nn.Linear(num_cells * widths[-1], 128)
        self.bn = _batch_norm_1d(128)
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
        _check_batch("VoxCNN", batch, self.settings.input_shape, _SMALLEST_VOXCNN)
        if self.training and batch.shape[0] == 1:
            raise NetworkError("VoxCNN cannot be trained on one scan at a time: use two or more.")
        return F.relu(self.fc1(_flatten_channels_last(self.features(batch))))

    def logits_of(self, pooled: Pooled) -> Float[Tensor, "batch num_classes"]:
        """What BatchNorm and the other dense layers make of them."""
        hidden = F.relu(self.fc2(self.dropout(self.bn(pooled))))
        logits: Tensor = self.out(hidden)
        return logits


def build_voxcnn(in_channels: int, num_classes: int, settings: Mapping[str, object]) -> _VoxCNN:
    """Build VoxCNN from plain settings, those of `_VoxCNNSettings`."""
    return _VoxCNN(in_channels, num_classes, settings_from(_VoxCNNSettings, settings))


def _cells_of_voxcnn(size: int) -> int:
    """Cells along an axis of `size` voxels after all convolutions and pools."""
    for stage in _VOXCNN_STAGES:
        size = (size - 2 * len(stage)) // 2
    return size

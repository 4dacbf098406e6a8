"""A network that marks disease in the lungs first, and classifies by how much it marked, and where.

A small 3D U-Net, or the mean of several, says of every voxel whether it shows one of `kinds` kinds
of disease; made for inputs of about 6 mm, its deepest grid sees a whole lung. What the classes are
told by are shares of lung: of each kind, of any, of what is surely marked and of what is marked and
dense; in each lung, in its thirds, along its surface, in its core and in its rear half. The head is
told the larger and the smaller share of the two lungs, so that sides do not matter.

Trained from scan labels alone, the U-Net learns through the shares. Where the disease is known
voxel by voxel, `LesionNet.lesion_logits` is what to train first.

Module that a heat-map may hook: `lesions`, one channel per kind of share on the input's own grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from chestct.errors import NetworkError
from chestct.networks import settings_from
from chestct.networks.blocks import Conv3d, Pooled, PooledNetwork
from chestct.networks.roi import Features, LungBatch, NewFeatures, lungs_from_input

MIN_SIZE: Final = 16
"""Fewest voxels an axis may have: fewer leave no core of a lung."""

_CHANNELS: Final = (8, 16, 32, 64)
_SURE, _DENSE, _SOFTNESS = 0.5, 0.6, 0.05
"""Probability from which a voxel is surely marked, and input from which it is dense: -450 HU in the
recommended window."""
_NUM_SUMMARIES: Final = 3
_NUM_REGIONS: Final = 7
_LEAST_SHARE: Final = 0.003


@dataclass(frozen=True)
class _LesionSettings:
    """What can be chosen.

    Attributes:
        kinds: Kinds of disease that are told apart voxel by voxel.
        members: U-Nets of which the mean marks.
        head_units: Hidden units.
        dropout: Share of them dropped while training.
    """

    kinds: Annotated[int, Field(ge=1, le=64)] = 2
    members: Annotated[int, Field(ge=1, le=64)] = 1
    head_units: Annotated[int, Field(ge=1, le=65536)] = 32
    dropout: Annotated[float, Field(ge=0, le=0.99)] = 0.3


class _Marker(nn.Module):
    """A U-Net that says of every voxel which kind of disease it shows, if any."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.downs = nn.ModuleList(_double(*each) for each in pairwise((2, *_CHANNELS)))
        self.ups = nn.ModuleList(
            _double(coarse + fine, fine) for fine, coarse in reversed(list(pairwise(_CHANNELS)))
        )
        # A module, so that a heat-map can follow where its cells lie.
        self.halve = nn.MaxPool3d(2)
        self.last = nn.Conv3d(_CHANNELS[0], 1 + kinds, 1)

    def forward(self, values: Features, inside: LungBatch) -> NewFeatures:
        """Logits of "nothing" and of each kind, voxel by voxel."""
        features = torch.cat([2 * values - 0.6, inside], dim=1)
        finer: list[Tensor] = []
        for level, down in enumerate(self.downs):
            features = down(self.halve(features) if level else features)
            finer.append(features)
        finer.pop()
        for up in self.ups:
            fine = finer.pop()
            wider = F.interpolate(features, size=fine.shape[2:], mode="nearest")
            features = up(torch.cat([wider, fine], dim=1))
        logits: Tensor = self.last(features)
        return logits


class _Lesions(nn.Module):
    """The U-Nets, and the maps that shares are taken of."""

    def __init__(self, settings: _LesionSettings) -> None:
        super().__init__()
        self.markers = nn.ModuleList(_Marker(settings.kinds) for _ in range(settings.members))

    def logits(self, values: Features, inside: LungBatch) -> NewFeatures:
        """The mean of all U-Nets' logits."""
        logits: Tensor = sum(marker(values, inside) for marker in self.markers) / len(self.markers)
        return logits

    def forward(self, values: Features, inside: LungBatch) -> NewFeatures:
        """Maps from 0 to 1, 0 outside the lungs: each kind, any, surely any, any that is dense."""
        kinds = self.logits(values, inside).float().softmax(dim=1)[:, 1:]
        marked = kinds.sum(dim=1, keepdim=True)
        surely = torch.sigmoid((marked - _SURE) / _SOFTNESS)
        dense = marked * torch.sigmoid((values - _DENSE) / _SOFTNESS)
        return torch.cat([kinds, marked, surely, dense], dim=1) * inside


def _double(ins: int, outs: int) -> nn.Sequential:
    """Two convolutions of 3 x 3 x 3, each with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for each in (ins, outs):
        convolution = Conv3d(each, outs, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm3d(outs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class LesionNet(PooledNetwork):
    """Shares of marked lung by region, and a small head.

    Args:
        num_classes: Number of logits.
        settings: Of marking and head.
    """

    HEAD = ("norm", "fc1", "dropout", "fc2")

    def __init__(self, num_classes: int, settings: _LesionSettings) -> None:
        super().__init__()
        num_shares = 2 * (settings.kinds + _NUM_SUMMARIES) * _NUM_REGIONS
        self.lesions = _Lesions(settings)
        self.norm = nn.BatchNorm1d(num_shares, eps=0.01)
        self.fc1 = nn.Linear(num_shares, settings.head_units)
        self.dropout = nn.Dropout(settings.dropout)
        self.fc2 = nn.Linear(settings.head_units, num_classes)

    def lesion_logits(self, batch: Features, lungs: LungBatch) -> NewFeatures:
        """Logits of "nothing" and of each kind of disease for every voxel."""
        return self.lesions.logits(batch.mean(dim=1, keepdim=True), lungs)

    def pooled_features(self, batch: Features, lungs: LungBatch | None = None) -> Pooled:
        """Logarithms of the shares, first the larger of both lungs, then the smaller.

        Raises:
            NetworkError: An axis is shorter than `MIN_SIZE`, or the mask does not fit.
        """
        size = tuple(batch.shape[2:])
        if min(size) < MIN_SIZE:
            msg = f"A lesion network needs at least {MIN_SIZE} voxels along each axis, not {size}."
            raise NetworkError(msg)
        if lungs is not None and lungs.shape[2:] != batch.shape[2:]:
            msg = f"The lung mask {tuple(lungs.shape)} does not fit the batch {tuple(batch.shape)}."
            raise NetworkError(msg)
        mask = lungs_from_input(batch) if lungs is None else lungs
        inside = mask.to(batch.dtype)
        maps = self.lesions(batch.mean(dim=1, keepdim=True), inside)
        core = _eroded(_eroded(inside))
        right, left = (_shares(maps, regions) for regions in _regions(inside, core))
        both = torch.cat([torch.maximum(right, left), torch.minimum(right, left)], dim=1)
        return torch.log(both.clamp(min=0) + _LEAST_SHARE)

    def logits_of(self, pooled: Pooled) -> Float[Tensor, "batch num_classes"]:
        """What the head makes of the shares.

        Raises:
            NetworkError: One scan alone is to be trained on, which BatchNorm cannot do.
        """
        if self.training and pooled.shape[0] == 1:
            raise NetworkError("A lesion network is trained on two scans at a time or more.")
        hidden = F.relu(self.fc1(self.norm(pooled)))
        logits: Tensor = self.fc2(self.dropout(hidden))
        return logits


def build_lesions(in_channels: int, num_classes: int, settings: Mapping[str, object]) -> LesionNet:
    """Build a lesion network from plain settings, those of `_LesionSettings`.

    It takes the mean of all channels, so that their number does not matter.
    """
    del in_channels
    return LesionNet(num_classes, settings_from(_LesionSettings, settings))


def _eroded(mask: LungBatch) -> LungBatch:
    """The mask without its outermost voxels, which are half chest wall."""
    return 1 - F.max_pool3d(1 - mask, 3, stride=1, padding=1)


def _ends(mask: LungBatch, axis: int) -> tuple[Tensor, Tensor]:
    """First and last index of a mask along an axis, each of shape (batch, 1, 1, 1, 1)."""
    others = [a for a in (2, 3, 4) if a != axis]
    used = mask.amax(dim=others, keepdim=True)
    places = torch.arange(mask.shape[axis], dtype=mask.dtype, device=mask.device)
    places = places.view([-1 if a == axis else 1 for a in range(5)])
    size = mask.shape[axis]
    first = size - ((size - places) * used).amax(dim=axis, keepdim=True)
    return first, (places * used).amax(dim=axis, keepdim=True)


def _share_along(mask: LungBatch, axis: int) -> Tensor:
    """Position along an axis, 0 at the mask's first index and 1 at its last."""
    first, last = _ends(mask, axis)
    places = torch.arange(mask.shape[axis], dtype=mask.dtype, device=mask.device)
    places = places.view([-1 if a == axis else 1 for a in range(5)])
    return (places - first) / (last - first).clamp(min=1)


def _regions(inside: LungBatch, core: LungBatch) -> list[Tensor]:
    """For each lung its regions, (batch, region, depth, height, width) of 0 and 1."""
    across = _share_along(inside, 4)
    found = []
    for is_side in (across < _MIDDLE, across >= _MIDDLE):
        side = inside * is_side.to(inside.dtype)
        height, behind = _share_along(side, 2), _share_along(side, 3)
        parts = [
            torch.ones_like(side),
            (height < 1 / 3).to(side.dtype).expand_as(side),
            ((height >= 1 / 3) & (height < 2 / 3)).to(side.dtype).expand_as(side),
            (height >= 2 / 3).to(side.dtype).expand_as(side),
            1 - core,
            core,
            (behind >= _MIDDLE).to(side.dtype).expand_as(side),
        ]
        found.append(torch.cat(parts, dim=1) * side)
    return found


_MIDDLE: Final = 0.5


def _shares(maps: NewFeatures, regions: Tensor) -> Float[Tensor, "batch share"]:
    """Mean of every map over the whole lung and over each region."""
    size = regions.flatten(2).sum(dim=2).clamp(min=1)
    sums = maps.flatten(2) @ regions.flatten(2).transpose(1, 2)
    return (sums / size[:, None]).flatten(1)

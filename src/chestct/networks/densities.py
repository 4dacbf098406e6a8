"""A network that sees how dense the lungs are, and where: few weights, for few training scans.

What it looks at is not learned: how much of a place's air is replaced, taken from the patient's
own aerated lung to soft tissue, so that neither a shallow breath nor a scanner's scale counts as
disease. It knows shares of lung beyond fixed limits, voxel by voxel and averaged over 18 and 30 mm
(at 6 mm voxels), and shares that stand out from their surroundings; in each lung, in its thirds,
along its surface, in its core and in its rear half. Only the head learns, and it is told the larger
and the smaller share of the two lungs, so that sides do not matter.

Module that a heat-map may hook: `densities`, one channel per limit on the input's own grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from chestct.errors import NetworkError
from chestct.networks import settings_from
from chestct.networks.blocks import Pooled, PooledNetwork
from chestct.networks.roi import Features, LungBatch, NewFeatures, lungs_from_input

MIN_SIZE: Final = 16
"""Fewest voxels an axis may have: fewer leave no core of a lung."""

_LIMITS: Final[dict[str, tuple[float, ...]]] = {
    "voxel": (0.04, 0.08, 0.13, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9),
    "near": (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7),
    "wide": (0.05, 0.1, 0.15, 0.25, 0.4, 0.6),
    "contrast": (0.05, 0.1, 0.2),
    "plain": (0.367, 0.4, 0.433, 0.5),
}
"""What is compared to its limits: shares of replaced air, and the plain input of the recommended
window (0.1 is 150 HU)."""
_SOFTNESS: Final = 0.015
_REGIONAL: Final = (11, 13, 14, 16, 20, 22)
"""Channels that are looked at by region as well: four of `near`, two of `wide`."""
_AERATED: Final = 0.5
"""Input below which lung holds air for sure: -600 HU."""
_BASE_RANGE: Final = (0.233, 0.467)
_SOFT_TISSUE: Final = 0.925
_LEAST_SHARE: Final = 0.003
_NUM_REGIONS: Final = 7
_NUM_SHARES: Final = sum(map(len, _LIMITS.values())) + (_NUM_REGIONS - 1) * len(_REGIONAL)


@dataclass(frozen=True)
class _DensitySettings:
    """What can be chosen about the head.

    Attributes:
        head_units: Hidden units.
        dropout: Share of them dropped while training.
    """

    head_units: Annotated[int, Field(ge=1, le=65536)] = 32
    dropout: Annotated[float, Field(ge=0, le=0.99)] = 0.3


class _Densities(nn.Module):
    """One map per limit: 1 where the lung is denser, 0 where it is not, smooth between."""

    def forward(self, values: Features, inside: LungBatch) -> NewFeatures:
        """Maps (batch, limit, depth, height, width), 0 outside the lungs."""
        base = _base(values, inside)
        filling = (values - base) / (_SOFT_TISSUE - base)
        near, wide = _mean(filling, inside, 3), _mean(filling, inside, 5)
        plain = near * (_SOFT_TISSUE - base) + base
        seen = {"voxel": filling, "near": near, "wide": wide, "plain": plain}
        seen["contrast"] = (filling - near).abs()
        maps = [
            torch.sigmoid((seen[name] - values.new_tensor(limits).view(1, -1, 1, 1, 1)) / _SOFTNESS)
            for name, limits in _LIMITS.items()
        ]
        return torch.cat(maps, dim=1) * inside


class _DensityNet(PooledNetwork):
    """Shares of dense lung by region, and a small head."""

    HEAD = ("norm", "fc1", "dropout", "fc2")

    def __init__(self, num_classes: int, settings: _DensitySettings) -> None:
        super().__init__()
        self.densities = _Densities()
        self.norm = nn.BatchNorm1d(2 * _NUM_SHARES, eps=0.01)
        self.fc1 = nn.Linear(2 * _NUM_SHARES, settings.head_units)
        self.dropout = nn.Dropout(settings.dropout)
        self.fc2 = nn.Linear(settings.head_units, num_classes)

    def pooled_features(self, batch: Features, lungs: LungBatch | None = None) -> Pooled:
        """Logarithms of the shares, first the larger of both lungs, then the smaller.

        Raises:
            NetworkError: An axis is shorter than `MIN_SIZE`, or the mask does not fit.
        """
        size = tuple(batch.shape[2:])
        if min(size) < MIN_SIZE:
            msg = f"A density network needs at least {MIN_SIZE} voxels along each axis, not {size}."
            raise NetworkError(msg)
        if lungs is not None and lungs.shape[2:] != batch.shape[2:]:
            msg = f"The lung mask {tuple(lungs.shape)} does not fit the batch {tuple(batch.shape)}."
            raise NetworkError(msg)
        mask = lungs_from_input(batch) if lungs is None else lungs
        inside = _eroded(mask.to(batch.dtype))
        maps = self.densities(batch.mean(dim=1, keepdim=True), inside)
        right, left = (
            _shares(maps, regions) for regions in _regions(inside, _eroded(_eroded(inside)))
        )
        both = torch.cat([torch.maximum(right, left), torch.minimum(right, left)], dim=1)
        return torch.log(both.clamp(min=0) + _LEAST_SHARE)

    def logits_of(self, pooled: Pooled) -> Float[Tensor, "batch num_classes"]:
        """What the head makes of the shares.

        Raises:
            NetworkError: One scan alone is to be trained on, which BatchNorm cannot do.
        """
        if self.training and pooled.shape[0] == 1:
            raise NetworkError("A density network is trained on two scans at a time or more.")
        hidden = F.relu(self.fc1(self.norm(pooled)))
        logits: Tensor = self.fc2(self.dropout(hidden))
        return logits


def build_densities(
    in_channels: int, num_classes: int, settings: Mapping[str, object]
) -> _DensityNet:
    """Build a density network from plain settings, those of `_DensitySettings`.

    It takes the mean of all channels, so that their number does not matter.
    """
    del in_channels
    return _DensityNet(num_classes, settings_from(_DensitySettings, settings))


def _base(values: Features, inside: LungBatch) -> Float[Tensor, "batch 1 1 1 1"]:
    """The patient's own aerated lung: the mean of the darker half of what holds air."""
    base = values.new_full((len(values), 1, 1, 1, 1), _AERATED)
    for _ in range(2):
        darker = inside * torch.sigmoid((base - values) / _SOFTNESS)
        total = darker.sum(dim=(2, 3, 4), keepdim=True)
        base = (values * darker).sum(dim=(2, 3, 4), keepdim=True) / total.clamp(min=1)
    return base.clamp(*_BASE_RANGE)


def _mean(values: Features, inside: LungBatch, size: int) -> Features:
    """Mean over a cube of the lung around each voxel."""
    total = F.avg_pool3d(values * inside, size, stride=1, padding=size // 2)
    return total / F.avg_pool3d(inside, size, stride=1, padding=size // 2).clamp(min=0.02)


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
    """Mean of every map over the whole lung, and of some over each region."""
    size = regions.flatten(2).sum(dim=2).clamp(min=1)
    sums = maps.flatten(2) @ regions.flatten(2).transpose(1, 2)
    means = sums / size[:, None]
    regional = means[:, list(_REGIONAL), 1:].flatten(1)
    return torch.cat([means[:, :, 0], regional], dim=1)

"""A small network, and a recipe that prepares scans for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from chestct.networks import settings_from
from chestct.networks.blocks import PooledNetwork
from chestct.preprocess.recipes import Recipe

LUNGS_5MM = Recipe(
    name="example_lungs_5mm",
    input_shape=(64, 56, 72),
    num_channels=1,
    requires_hu=True,
    lungs="recommended",
    intensity="window",
    window_hu=(-1350.0, 150.0),
    placement="physical",
    kernel="cubic",
    spacing_mm=(5.0, 5.0, 5.0),
    lung_margin_mm=5.0,
)


@dataclass(frozen=True)
class _Settings:
    """What can be chosen about the network: channels of its first convolution."""

    width: Annotated[int, Field(ge=1, le=256)] = 8


class ExampleCNN(PooledNetwork):
    """Three convolutions and the mean over the lungs; one linear layer decides."""

    HEAD = ("fc",)

    def __init__(self, in_channels: int, num_classes: int, settings: _Settings) -> None:
        super().__init__()
        widths = (in_channels, settings.width, 2 * settings.width, 4 * settings.width)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv3d(before, after, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm3d(after),
                    nn.ReLU(inplace=True),
                )
                for before, after in pairwise(widths)
            )
        )
        self.fc = nn.Linear(widths[-1], num_classes)

    def pooled_features(
        self, batch: torch.Tensor, lungs: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One vector per scan: (batch, 1 channel, depth, height, width) to (batch, features)."""
        features = self.blocks(batch)
        mask = torch.ones_like(batch[:, :1]) if lungs is None else lungs.to(features.dtype)
        share = nn.functional.adaptive_avg_pool3d(mask, features.shape[2:])
        weight = share.sum(dim=(2, 3, 4)).clamp(min=1e-6)
        return (features * share).sum(dim=(2, 3, 4)) / weight

    def logits_of(self, pooled: torch.Tensor) -> torch.Tensor:
        """(batch, features) to (batch, class)."""
        return self.fc(pooled)


def build_example_cnn(
    in_channels: int, num_classes: int, settings: Mapping[str, object]
) -> ExampleCNN:
    """What the entry point names; an unknown setting is refused by its name."""
    return ExampleCNN(in_channels, num_classes, settings_from(_Settings, settings))

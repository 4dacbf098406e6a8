"""The network that finds lungs: a small 3D U-Net over the whole scan at 4 mm.

Its first convolution halves the grid and its last, transposed, doubles it again, so that no layer
with many channels works at 4 mm: half the time, and what a lung's surface loses by it is drawn
afterwards from the scan's own voxels. Convolutions at 32 mm, one of them dilated, see a whole
thorax. BatchNorm rather than an instance's own statistics: what one voxel is does not depend on how
much of the body is in view.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from chestct.networks.blocks import Conv3d

LUNG_CLASSES: Final = ("background", "right lung", "left lung", "other gas")
"""What each logit stands for. "Other gas" is gas in the body that is no lung, with what lies in it:
airways, larynx and pharynx, stomach and bowel with food. It only helps to tell lung."""

SIZE_MULTIPLE: Final = 8
"""Every axis of the input is a multiple of it."""

_CHANNELS: Final = (32, 64, 96)
_AIR: Final = -1.0

Scans = Float[Tensor, "batch 1 depth height width"]
Logits = Float[Tensor, "batch class depth height width"]


class LungsNet(nn.Module):
    """Lungs, other gas or background for every voxel of a scan on a grid of 4 mm."""

    def __init__(self) -> None:
        super().__init__()
        first, deepest = _CHANNELS[0], _CHANNELS[-1]
        steps = list(pairwise(_CHANNELS))
        self.stem = nn.Sequential(
            _convolution(1, first, kernel=4, stride=2), _convolution(first, first)
        )
        self.downs = nn.ModuleList(
            nn.Sequential(_convolution(fine, coarse, stride=2), _convolution(coarse, coarse))
            for fine, coarse in steps
        )
        self.context = _convolution(deepest, deepest, dilation=2)
        self.narrows = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for fine, coarse in steps)
        self.ups = nn.ModuleList(
            nn.Sequential(_convolution(fine, fine), _convolution(fine, fine)) for fine, _ in steps
        )
        self.head = nn.ConvTranspose3d(first, len(LUNG_CLASSES), 4, stride=2, padding=1)

    def forward(self, scans: Scans) -> Logits:
        """Logits of every voxel.

        Args:
            scans: Hounsfield units, clipped to -1024..600 and scaled to -1..1, of canonical scans
                (depth to the head, height to the back, width to the left) at 4 mm; each size a
                multiple of `SIZE_MULTIPLE`.

        Returns:
            Logits in the order of `LUNG_CLASSES`, at the input's size.
        """
        # With air at zero, the zeros a convolution pads with are air.
        levels = [self.stem(scans - _AIR)]
        for down in self.downs:
            levels.append(down(levels[-1]))
        features = levels.pop()
        features = features + self.context(features)
        for narrow, up in zip(reversed(self.narrows), reversed(self.ups), strict=True):
            wider = F.interpolate(narrow(features), scale_factor=2.0, mode="nearest")
            features = up(wider + levels.pop())
        logits: Tensor = self.head(features)
        return logits


def _convolution(
    in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """A convolution that keeps ceil(size / stride), its normalisation and its rectifier."""
    padding = dilation * ((kernel - 1) // 2)
    return nn.Sequential(
        Conv3d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=False,
        ),
        nn.BatchNorm3d(out_channels),
        nn.ReLU(inplace=True),
    )

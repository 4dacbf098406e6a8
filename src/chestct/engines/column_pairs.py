"""Compute a network's first convolution on pairs of columns, which bfloat16 instructions prefer.

AVX512_BF16 and AMX multiply pairs of channels. A convolution of one channel fills the second of
each pair with zeros, and does half of its work in vain. At stride 2 two neighbouring columns can be
taken for two channels: the kernel has then half as many columns, and the products are the same.
For a kernel of 7^3 that is 7 x 7 x 4 pairs instead of 7 x 7 x 7.
"""

from __future__ import annotations

from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

from chestct.networks.roi import Features, NewFeatures

_PAIR: Final = 2


class _ColumnPairConv3d(nn.Module):
    """The same numbers, up to rounding, as a convolution that `_can_pair_columns` says yes to."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        depth, height, _ = (int(padding) for padding in convolution.padding)
        # A column of zeros before the kernel's first lets the pairs of kernel and input meet.
        weight = F.pad(convolution.weight.detach(), (1, 0))
        pairs = _as_channels(weight)
        self.weight = nn.Parameter(pairs.contiguous(), requires_grad=False)
        self.bias = convolution.bias
        width = pairs.shape[-1]
        self._padding = (width // 2, (width - 1) // 2, height, height, depth, depth)

    def forward(self, features: Features) -> NewFeatures:
        """Convolve (batch, 1, depth, height, width) with an even width."""
        pairs = F.pad(_as_channels(features), self._padding)
        output: Tensor = F.conv3d(pairs, self.weight, self.bias, stride=(2, 2, 1))
        return output


def _as_channels(values: Tensor) -> Tensor:
    """(n, 1, depth, height, width) seen as (n, 2, depth, height, width / 2), without a copy."""
    n, _, depth, height, width = values.shape
    return values.reshape(n, depth, height, width // _PAIR, _PAIR).permute(0, 4, 1, 2, 3)


def pair_columns(network: nn.Module, width: int) -> None:
    """Replace in place the convolutions that can be, in a network with inputs `width` wide."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv3d) and _can_pair_columns(child, width):
                setattr(parent, name, _ColumnPairConv3d(child))


def _can_pair_columns(convolution: nn.Conv3d, width: int) -> bool:
    """Whether this is a convolution that `_ColumnPairConv3d` can stand for.

    It has one channel, stride 2, an odd kernel padded by half of it, and 3, 7, 11, ... columns:
    otherwise a pair of the kernel would straddle two of the input.
    """
    kernel = convolution.kernel_size
    return (
        convolution.in_channels == 1
        and width % _PAIR == 0
        and convolution.stride == (2, 2, 2)
        and convolution.dilation == (1, 1, 1)
        and convolution.padding_mode == "zeros"
        and convolution.padding == tuple(edge // 2 for edge in kernel)
        and all(edge % 2 == 1 for edge in kernel)
        and kernel[-1] % 4 == 3
    )

"""Building blocks of 3D residual networks: convolution, basic block, bottleneck, stage.

Module names are those of He's and MedicalNet's state dicts (`conv1`, `bn1`, `downsample.0`, ...).
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from chestct.errors import NetworkError
from chestct.networks.roi import Features, GatedReLU, LungBatch, LungGrids, NewFeatures

Pooled = Float[Tensor, "batch pooled"]
"""One vector per scan: what a network's head decides on."""

SHORTEST_BF16_AXIS: Final = 3
"""Output axes from which oneDNN's bfloat16 convolution is trusted on the CPU, gradients too."""
_ENDS: Final = ("SI", "PA", "LR")
"""Of the patient along depth, height and width: where an axis grows to, and where it begins."""


class PooledNetwork(nn.Module):
    """A classifying network in two parts: one vector per scan, and a head that decides on it.

    `HEAD` names the modules that `logits_of` runs; all others are the backbone.
    """

    HEAD: tuple[str, ...] = ()

    def pooled_features(self, batch: Features, lungs: LungBatch | None = None) -> Pooled:
        """One vector per scan, of a length that does not depend on the input's size."""
        raise NotImplementedError

    def logits_of(self, pooled: Pooled) -> Float[Tensor, "batch num_classes"]:
        """What the head says of pooled features."""
        raise NotImplementedError

    def forward(
        self, batch: Features, lungs: LungBatch | None = None
    ) -> Float[Tensor, "batch num_classes"]:
        """Logits of each scan.

        Args:
            batch: Prepared scans, (batch, channel, depth, height, width).
            lungs: 1 in the lungs, 0 outside, on the same grid. Networks without gates do not look
                at it; gated ones use Eq. 10 where it is left out.

        Raises:
            NetworkError: The input is too small or not of the size the network was built for, or
                the mask does not fit.
        """
        return self.logits_of(self.pooled_features(batch, lungs))


class Turn(nn.Module):
    """Other axes than this package's, for a network that learned with them, or the way back.

    Explanations take their maps outside, where the axes are this package's.

    Args:
        axes: Where depth, height and width grow to inside, such as "RAS" (right, anterior,
            superior). Outside it is "SPL".
        is_back: Whether it leads from the inside to the outside.

    Raises:
        NetworkError: The letters do not name three axes.
    """

    def __init__(self, axes: str, *, is_back: bool = False) -> None:
        super().__init__()
        outer = [n for letter in axes for n, ends in enumerate(_ENDS) if letter in ends]
        if sorted(outer) != [0, 1, 2] or len(axes) != len(_ENDS):
            msg = (
                "Network setting 'axes' says where depth, height and width grow to: S or I, P or A "
            )
            raise NetworkError(f"{msg}and L or R in some order, not '{axes}'.")
        flipped = [n for n, letter in enumerate(axes) if letter != _ENDS[outer[n]][0]]
        self.is_back = is_back
        self.order = tuple(outer.index(n) for n in range(3)) if is_back else tuple(outer)
        """For each axis of the output, that of the input."""
        self.flipped = tuple(outer[n] for n in flipped) if is_back else tuple(flipped)
        """Axes of the output that run the other way."""

    def forward(self, features: Features) -> NewFeatures:
        """Turn (batch, channel, and three axes)."""
        turned = features.permute(0, 1, *(2 + axis for axis in self.order))
        return turned.flip([2 + axis for axis in self.flipped])


class LogitsAndFeatures(nn.Module):
    """A network that gives its pooled features, if it has any, beside its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Features, lungs: LungBatch) -> tuple[Tensor, Tensor]:
        """Logits (batch, class) and pooled features (batch, pooled)."""
        if not isinstance(self.network, PooledNetwork):
            logits = self.network(batch, lungs)
            return logits, logits[:, :0]
        pooled = self.network.pooled_features(batch, lungs)
        return self.network.logits_of(pooled), pooled


def is_in_head(network: nn.Module, name: str) -> bool:
    """Whether a parameter or module of a network is part of its head; none is without a `HEAD`."""
    head = network.HEAD if isinstance(network, PooledNetwork) else ()
    return name.partition(".")[0] in head


def cpu_multiplies_in_bf16() -> bool:
    """Whether the processor has units for bfloat16: AMX or AVX512-BF16."""
    # Older versions of PyTorch do not say what the processor can do.
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("amx_bf16") or told.get("avx512_bf16"))


class Conv3d(nn.Conv3d):
    """A 3D convolution whose bfloat16 form can be trusted on the CPU.

    On the CPU, oneDNN's bfloat16 convolution (PyTorch 2.13) gives wrong numbers where the output
    has one voxel along the innermost axis, and weight gradients that were never computed (not even
    finite, as a rule) where an axis has one or two, or is no longer than the kernel. Such grids are
    small, so there it runs in float32. So it does on processors without bfloat16, for which PyTorch
    sums in bfloat16: many times slower, and gradients of the input off by 2 to 3 % (`test_blocks`).
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the base class names it
        """Convolve (batch, channel, depth, height, width)."""
        if input.device.type != "cpu" or self._is_trusted(input):
            return super().forward(input)
        if input.dtype != torch.bfloat16 and not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            output: Tensor = self._conv_forward(input.float(), self.weight.float(), bias)
        return output.bfloat16()

    def _is_trusted(self, input: Tensor) -> bool:  # noqa: A002 - as in forward
        is_covered = any(
            1 < kernel >= size
            for size, kernel in zip(input.shape[2:], self.kernel_size, strict=True)
        )
        is_long = self._shortest_output_axis(input) >= SHORTEST_BF16_AXIS
        return not is_covered and is_long and cpu_multiplies_in_bf16()

    def _shortest_output_axis(self, input: Tensor) -> int:  # noqa: A002 - as in forward
        if isinstance(self.padding, str):
            return min(input.shape[2:])
        return min(
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                input.shape[2:],
                self.padding,
                self.dilation,
                self.kernel_size,
                self.stride,
                strict=True,
            )
        )


def conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> Conv3d:
    """A convolution without bias (BatchNorm follows), padded to keep ceil(size / stride)."""
    return Conv3d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)


def draw_weights(network: nn.Module) -> None:
    """He's initialisation; BatchNorm starts as the identity, which is PyTorch's default."""
    for module in network.modules():
        # Without memory there is nothing to draw, and PyTorch would load its compiler for it.
        if isinstance(module, nn.Conv3d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """He's option B: a 1x1x1 projection where a block changes size or width, else nothing."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        conv(in_channels, out_channels, 1, stride=stride), nn.BatchNorm3d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3^3 convolutions and a shortcut, as in ResNet-18; `channels * expansion` come out.

    The first convolution and the shortcut have the stride.
    """

    expansion: Final = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride=stride)
        self.bn1 = nn.BatchNorm3d(channels)
        self.relu1 = GatedReLU()
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm3d(channels)
        self.relu2 = GatedReLU()
        self.downsample = _projection(in_channels, channels * self.expansion, stride)

    @property
    def activations(self) -> list[GatedReLU]:
        """The block's activations in running order; the last is its output."""
        return [self.relu1, self.relu2]

    def forward(self, features: Features, lungs: LungGrids | None) -> NewFeatures:
        """Run the block; `lungs` goes to its activations."""
        shortcut = features if self.downsample is None else self.downsample(features)
        inner = self.relu1(self.bn1(self.conv1(features)), lungs)
        output: NewFeatures = self.relu2(self.bn2(self.conv2(inner)).add_(shortcut), lungs)
        return output


class Bottleneck(nn.Module):
    """1^3, 3^3 and 1^3 convolutions and a shortcut (ResNet-50); `channels * expansion` come out.

    The stride sits on the 3^3 convolution, as in MedicalNet, MONAI and torchvision (He's first
    version had it on the first 1^3 one).
    """

    expansion: Final = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm3d(channels)
        self.relu1 = GatedReLU()
        self.conv2 = conv(channels, channels, 3, stride=stride)
        self.bn2 = nn.BatchNorm3d(channels)
        self.relu2 = GatedReLU()
        self.conv3 = conv(channels, channels * self.expansion, 1)
        self.bn3 = nn.BatchNorm3d(channels * self.expansion)
        self.relu3 = GatedReLU()
        self.downsample = _projection(in_channels, channels * self.expansion, stride)

    @property
    def activations(self) -> list[GatedReLU]:
        """The block's activations in running order; the last is its output."""
        return [self.relu1, self.relu2, self.relu3]

    def forward(self, features: Features, lungs: LungGrids | None) -> NewFeatures:
        """Run the block; `lungs` goes to its activations."""
        shortcut = features if self.downsample is None else self.downsample(features)
        inner = self.relu1(self.bn1(self.conv1(features)), lungs)
        inner = self.relu2(self.bn2(self.conv2(inner)), lungs)
        output: NewFeatures = self.relu3(self.bn3(self.conv3(inner)).add_(shortcut), lungs)
        return output


BLOCKS: Final[dict[str, type[BasicBlock] | type[Bottleneck]]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
}


class _ColumnPairConv3d(nn.Module):
    """A network's first convolution on pairs of columns, which bfloat16 instructions prefer.

    AVX512_BF16 and AMX multiply pairs of channels. A convolution of one channel fills the second of
    each pair with zeros, and does half of its work in vain. At stride 2 two neighbouring columns
    can be taken for two channels: the kernel has then half as many columns, and the products are
    the same. For a kernel of 7^3 that is 7 x 7 x 4 pairs instead of 7 x 7 x 7. The numbers are
    those, up to rounding, of a convolution that `_can_pair_columns` says yes to.
    """

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
    return values.reshape(n, depth, height, width // 2, 2).permute(0, 4, 1, 2, 3)


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
        and width % 2 == 0
        and convolution.stride == (2, 2, 2)
        and convolution.dilation == (1, 1, 1)
        and convolution.padding_mode == "zeros"
        and convolution.padding == tuple(edge // 2 for edge in kernel)
        and all(edge % 2 == 1 for edge in kernel)
        and kernel[-1] % 4 == 3
    )

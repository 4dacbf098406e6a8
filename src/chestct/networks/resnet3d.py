"""3D ResNet-18, -50 and -101 with region-of-interest gating (the RoI-aware 3D ResNet paper).

He's layout with every filter extended to the third dimension, and the head of the paper's Table 5.
Strides are the standard ones; the paper does not state them. On a 224^3 input the grids are
112^3 (stem), 56^3 (stage 1), 28^3, 14^3 and 7^3 (stage 4). Parameters for one input channel and
three classes: 33,424,195 / 47,205,699 / 86,251,843.

Modules that a heat-map may hook: `relu` (stem), `layer1` ... `layer4` (stage outputs, gated where
the placement says so).

The encoder of Merlin (Blankemeier, Kumar et al., Nature 2026, MIT) is a ResNet-152 of the same
blocks, torchvision's inflated along z: its stem is flat and does not stride along z, it sees three
copies of a scan, with axes to the head, to the right and to the front. Names are Merlin's, so that
what its checkpoints hold of `i3_resnet` fits; their classifier and contrastive head have no place
here, as the head is that of `encoders`. `configs/merlin.yaml` prepares scans as Merlin does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from chestct.errors import NetworkError
from chestct.lookup import look_up
from chestct.networks import settings_from
from chestct.networks.blocks import (
    BLOCKS,
    BasicBlock,
    Bottleneck,
    Conv3d,
    Pooled,
    PooledNetwork,
    Turn,
    conv,
    draw_weights,
)
from chestct.networks.encoders import HeadSettings, LungHeadNetwork
from chestct.networks.roi import (
    MASK_THRESHOLD,
    PLACEMENTS,
    Features,
    GatedReLU,
    LungBatch,
    LungGrids,
    NewFeatures,
    gating_mask,
    has_lung_gates,
    place_gates,
)

MIN_SIZE = 32
"""Fewest voxels an axis may have: the network halves its grid five times."""
_DEPTHS: Final = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Layers to bottleneck blocks in each of the four stages (He et al. 2016, Table 1)."""


@dataclass(frozen=True)
class _ResNetSettings:
    """What can be chosen about a 3D ResNet beside its depth.

    Attributes:
        width: Channels of the stem and of stage 1; each later stage doubles them. 64 in the paper.
        gating: Where the lung mask is applied, a name in `roi.PLACEMENTS`.
        mask_threshold: p of Eq. 10, used when no lung mask is given.
        head_units: Units of the hidden layer of the head (Table 5: 512).
        dropout: Share of them dropped while training (Table 5: 0.5).
    """

    width: Annotated[int, Field(ge=1, le=4096)] = 64
    gating: str = "figure"
    mask_threshold: Annotated[float, Field(ge=0, le=1)] = MASK_THRESHOLD
    head_units: Annotated[int, Field(ge=1, le=65536)] = 512
    dropout: Annotated[float, Field(ge=0, le=0.99)] = 0.5

    def __post_init__(self) -> None:
        look_up(PLACEMENTS, self.gating, kind="'gating' setting")


class _ResNet3D(PooledNetwork):
    """A 3D ResNet of four stages of "basic" or "bottleneck" blocks, with the paper's head."""

    HEAD = ("fc1", "dropout", "fc2")

    def __init__(
        self,
        block: str,
        depths: tuple[int, int, int, int],
        in_channels: int,
        num_classes: int,
        settings: _ResNetSettings,
    ) -> None:
        super().__init__()
        self.settings = settings
        width = settings.width
        self.conv1 = conv(in_channels, width, 7, stride=2)
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = GatedReLU()
        self.maxpool = nn.MaxPool3d(kernel_size=3, stride=2, padding=1)
        expansion = 4 if block == "bottleneck" else 1
        self.layer1 = _Stage(block, width, width, depths[0], 1)
        self.layer2 = _Stage(block, width * expansion, width * 2, depths[1], 2)
        self.layer3 = _Stage(block, width * 2 * expansion, width * 4, depths[2], 2)
        self.layer4 = _Stage(block, width * 4 * expansion, width * 8, depths[3], 2)
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.fc1 = nn.Linear(width * 8 * expansion, settings.head_units)
        self.dropout = nn.Dropout(settings.dropout)
        self.fc2 = nn.Linear(settings.head_units, num_classes)
        draw_weights(self)
        place_gates(settings.gating, [[self.relu], *(stage.activations for stage in self._stages)])
        self._uses_lungs = has_lung_gates(self)

    @property
    def _stages(self) -> tuple[_Stage, _Stage, _Stage, _Stage]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    def logits_of(self, pooled: Pooled) -> Float[Tensor, "batch num_classes"]:
        """What the paper's head says of pooled features."""
        hidden = nn.functional.relu(self.fc1(pooled))
        logits: Tensor = self.fc2(self.dropout(hidden))
        return logits

    def pooled_features(self, batch: Features, lungs: LungBatch | None = None) -> Pooled:
        """What the head sees: stage 4's features, averaged over the whole grid as in the paper."""
        pooled: Tensor = self.avgpool(self.stage4_features(batch, lungs)).flatten(1)
        return pooled

    def stage4_features(self, batch: Features, lungs: LungBatch | None = None) -> NewFeatures:
        """The last feature maps, on a grid of ceil(size / 32) cells."""
        _check_size(batch, is_training=self.training)
        grids = None
        if self._uses_lungs:
            grids = gating_mask(batch, lungs, self.settings.mask_threshold)
        features: NewFeatures = self.maxpool(self.relu(self.bn1(self.conv1(batch)), grids))
        for stage in self._stages:
            features = stage(features, grids)
        return features


def build_resnet18(in_channels: int, num_classes: int, settings: Mapping[str, object]) -> _ResNet3D:
    """Build a 3D ResNet-18 from plain settings, those of `_ResNetSettings`."""
    chosen = settings_from(_ResNetSettings, settings)
    return _ResNet3D("basic", (2, 2, 2, 2), in_channels, num_classes, chosen)


def build_resnet50(in_channels: int, num_classes: int, settings: Mapping[str, object]) -> _ResNet3D:
    """Build a 3D ResNet-50 from plain settings, those of `_ResNetSettings`."""
    chosen = settings_from(_ResNetSettings, settings)
    return _ResNet3D("bottleneck", _DEPTHS[50], in_channels, num_classes, chosen)


def build_resnet101(
    in_channels: int, num_classes: int, settings: Mapping[str, object]
) -> _ResNet3D:
    """Build a 3D ResNet-101 from plain settings, those of `_ResNetSettings`."""
    chosen = settings_from(_ResNetSettings, settings)
    return _ResNet3D("bottleneck", _DEPTHS[101], in_channels, num_classes, chosen)


@dataclass(frozen=True)
class _MerlinSettings(HeadSettings):
    """What can be chosen about Merlin's encoder and its head.

    Attributes:
        depth: Number of layers. Merlin: 152.
        width: Channels of the stem and of stage 1; each later stage doubles them. Merlin: 64.
    """

    depth: Literal[50, 101, 152] = 152
    width: Annotated[int, Field(ge=1, le=4096)] = 64


class _Merlin(LungHeadNetwork):
    """Merlin's image encoder and a head on the lungs; a single channel is copied to three.

    Maps can be taken from `stage1` ... `stage4`, the stages' outputs on the scan's own axes.
    """

    def __init__(self, in_channels: int, num_classes: int, settings: _MerlinSettings) -> None:
        super().__init__()
        self.settings = settings
        width, depths, axes = settings.width, _DEPTHS[settings.depth], "SRA"
        self._copies = 3 if in_channels == 1 else 1
        stem = in_channels * self._copies
        self.turn = Turn(axes)
        self.conv1 = Conv3d(stem, width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _Stage("bottleneck", width, width, depths[0], 1)
        self.layer2 = _Stage("bottleneck", width * 4, width * 2, depths[1], 2)
        self.layer3 = _Stage("bottleneck", width * 8, width * 4, depths[2], 2)
        self.layer4 = _Stage("bottleneck", width * 16, width * 8, depths[3], 2)
        self.stage1, self.stage2, self.stage3, self.stage4 = (
            Turn(axes, is_back=True) for _ in range(4)
        )
        self.add_head(width * 32, num_classes, settings.cells)
        draw_weights(self)

    def encode(self, batch: Features) -> NewFeatures:
        """Features of stage 4: 1/16 of the depth, 1/32 of height and width."""
        copies = self.turn(batch).repeat(1, self._copies, 1, 1, 1)
        inside = self.maxpool(self.relu(self.bn1(self.conv1(copies))))
        features: Tensor = self.stage1(self.layer1(inside, None))
        features = self.stage2(self.layer2(self.turn(features), None))
        features = self.stage3(self.layer3(self.turn(features), None))
        features = self.stage4(self.layer4(self.turn(features), None))
        return features

    def check(self, batch: Features, lungs: LungBatch | None) -> None:
        """Refuse an input that is too small, and a mask that does not fit."""
        _check_size(batch, is_training=self.training)
        super().check(batch, lungs)


def build_merlin(in_channels: int, num_classes: int, settings: Mapping[str, object]) -> _Merlin:
    """Build Merlin's encoder with its head from plain settings, those of `_MerlinSettings`."""
    return _Merlin(in_channels, num_classes, settings_from(_MerlinSettings, settings))


def _check_size(batch: Tensor, *, is_training: bool) -> None:
    size = tuple(batch.shape[2:])
    if min(size) < MIN_SIZE:
        msg = f"A 3D ResNet needs at least {MIN_SIZE} voxels along each axis, not {size}."
        raise NetworkError(msg)
    if is_training and batch.shape[0] == 1 and max(size) <= MIN_SIZE:
        msg = (
            f"One scan of {size} voxels leaves a single value per channel, too little to train "
            f"BatchNorm on: use a batch of two or a larger input."
        )
        raise NetworkError(msg)


class _Stage(nn.Sequential):
    """Residual blocks in a row, `depth` of a kind in `BLOCKS`; the first of them has the stride."""

    def __init__(
        self, block: str, in_channels: int, channels: int, depth: int, stride: int
    ) -> None:
        kind = BLOCKS[block]
        first = kind(in_channels, channels, stride)
        others = [kind(channels * kind.expansion, channels, 1) for _ in range(depth - 1)]
        super().__init__(first, *others)

    @property
    def blocks(self) -> list[BasicBlock | Bottleneck]:
        """The stage's blocks in running order."""
        return [block for block in self if isinstance(block, BasicBlock | Bottleneck)]

    @property
    def activations(self) -> list[GatedReLU]:
        """The stage's activations in running order; the last is its output."""
        return [activation for block in self.blocks for activation in block.activations]

    def forward(self, features: Features, lungs: LungGrids | None) -> NewFeatures:  # type: ignore[override]
        """Run every block; `lungs` goes to their activations."""
        for block in self.blocks:
            features = block(features, lungs)
        return features

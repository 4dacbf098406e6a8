"""The six slice-level networks of the MASERes paper, as plain data.

timm brings the layers; what is chosen about them stands here. Which part of a network is cut off
and what the head then sees are the paper's (Sadeghi et al., Scientific Reports 2024, Table 3 and
the notebooks); `last_blocks` and `mean` and `std` are those of the networks in timm 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class SliceBackbone:
    """A network for pictures, cut at its last feature map.

    Attributes:
        timm_name: What timm calls it.
        weights_id: Repository of its ImageNet weights on the hub; the file is WEIGHTS_NAME.
        size: Rows and columns of its input in the paper.
        smallest: Fewest rows and columns of which its layers leave something.
        channels: Channels of the last feature map.
        mean: What its weights expect to be taken off red, green and blue, inputs being 0 to 1.
        std: What its weights expect them to be divided by then.
        last_blocks: Prefixes of the names of its weights, by block, the last block first.
        classifier: Prefixes of weights that a file may hold and that are cut off here.
        difference: How it differs from the network of Keras that the notebooks take; empty where
            the layers hold the same numbers.
    """

    timm_name: str
    weights_id: str
    size: int
    smallest: int
    channels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    last_blocks: tuple[tuple[str, ...], ...]
    classifier: tuple[str, ...]
    difference: str = ""


WEIGHTS_NAME: Final = "model.safetensors"
"""File of a repository of weights."""

_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_HALVES: Final = (0.5, 0.5, 0.5)

SLICE_NETWORKS: Final[dict[str, SliceBackbone]] = {
    "vgg19": SliceBackbone(
        timm_name="vgg19",
        weights_id="timm/vgg19.tv_in1k",
        size=224,
        smallest=32,
        channels=512,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        last_blocks=(
            ("features.28.", "features.30.", "features.32.", "features.34."),
            ("features.19.", "features.21.", "features.23.", "features.25."),
            ("features.10.", "features.12.", "features.14.", "features.16."),
        ),
        classifier=("pre_logits.", "head."),
    ),
    "inception_v3": SliceBackbone(
        timm_name="inception_v3",
        weights_id="timm/inception_v3.tv_in1k",
        size=299,
        smallest=75,
        channels=2048,
        mean=_HALVES,
        std=_HALVES,
        last_blocks=(("Mixed_7c.",), ("Mixed_7b.",), ("Mixed_7a.",)),
        classifier=("fc.", "AuxLogits."),
        difference="BatchNorm has learned scales here (17,216 numbers), in Keras it has none.",
    ),
    "resnet50_v2": SliceBackbone(
        timm_name="resnetv2_50",
        weights_id="timm/resnetv2_50.a1h_in1k",
        size=224,
        smallest=32,
        channels=2048,
        mean=_HALVES,
        std=_HALVES,
        last_blocks=(("stages.3.", "norm."), ("stages.2.",), ("stages.1.",)),
        classifier=("head.",),
        difference="Convolutions have no biases here; 19,008 numbers fewer than in Keras.",
    ),
    "xception": SliceBackbone(
        timm_name="legacy_xception",
        weights_id="timm/legacy_xception.tf_in1k",
        size=299,
        smallest=71,
        channels=2048,
        mean=_HALVES,
        std=_HALVES,
        last_blocks=(("conv4.", "bn4.", "conv3.", "bn3."), ("block12.",), ("block11.",)),
        classifier=("fc.",),
    ),
    "mobilenet_v2": SliceBackbone(
        timm_name="mobilenetv2_100",
        weights_id="timm/mobilenetv2_100.ra_in1k",
        size=224,
        smallest=32,
        channels=1280,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        last_blocks=(("conv_head.", "bn2.", "blocks.6."), ("blocks.5.",), ("blocks.4.",)),
        classifier=("classifier.",),
    ),
    "densenet169": SliceBackbone(
        timm_name="densenet169",
        weights_id="timm/densenet169.tv_in1k",
        size=224,
        smallest=32,
        channels=1664,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        last_blocks=(
            ("features.denseblock4.", "features.norm5."),
            ("features.denseblock3.", "features.transition3."),
            ("features.denseblock2.", "features.transition2."),
        ),
        classifier=("classifier.",),
    ),
}
"""Slice network name to its facts; built by `chestct.networks.slices.build_slice_network`."""

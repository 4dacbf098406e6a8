"""Networks that see one slice at a time: a network of photographs with a new, small head.

A slice comes as a volume of depth one, so that the loop, the augmentations and the evaluation are
those of whole scans: `network(batch (batch, 1, 1, height, width), lungs or None) -> logits`.

Two heads. "published", as in the MASERes notebooks: flatten, 4 units, ReLU, dropout, 1 unit. As
Keras trains a frozen network, the backbone stays in inference mode, BatchNorm included, while the
head learns. "recommended": the mean over the feature map, dropout, one layer; hundreds of times
fewer numbers to learn, so that some blocks of the backbone can be tuned too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chestct.errors import NetworkError
from chestct.extras import import_extra
from chestct.lookup import look_up
from chestct.networks.given_weights import read_tensors
from chestct.networks.keras_defaults import ClassUnits, draw_glorot
from chestct.networks.settings import require_between, require_choice, settings_from


@dataclass(frozen=True)
class _SliceBackbone:
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

SLICE_NETWORKS: Final[dict[str, _SliceBackbone]] = {
    "vgg19": _SliceBackbone(
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
    "inception_v3": _SliceBackbone(
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
    "resnet50_v2": _SliceBackbone(
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
    "xception": _SliceBackbone(
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
    "mobilenet_v2": _SliceBackbone(
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
    "densenet169": _SliceBackbone(
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


IMAGENET: Final = "imagenet"
"""Asks for the weights in the hub's cache."""
NO_WEIGHTS: Final = "none"
"""Asks for weights drawn at random, by name."""

_COUNTERS: Final = "num_batches_tracked"


def find_weights(name: str, wanted: str) -> Path | None:
    """The file that a setting asks for.

    Args:
        name: A name in `SLICE_NETWORKS`.
        wanted: `IMAGENET`, `NO_WEIGHTS`, or a path.

    Returns:
        A file, or None for random weights, which only `NO_WEIGHTS` gives.

    Raises:
        UnknownNameError: There is no such network.
        NetworkError: The file is not there; the message names it and how to get it.
        MissingExtraError: timm is not installed.
    """
    facts = look_up(SLICE_NETWORKS, name, kind="slice network")
    if wanted == NO_WEIGHTS:
        return None
    if wanted != IMAGENET:
        path = Path(wanted)
        if not path.is_file():
            raise NetworkError(_missing_file(path, name, facts))
        return path
    hub = import_extra("huggingface_hub", extra="slices")
    cached = hub.try_to_load_from_cache(facts.weights_id, WEIGHTS_NAME)
    if not isinstance(cached, str) or not Path(cached).is_file():
        raise NetworkError(_not_cached(name, facts))
    return Path(cached)


def load_backbone_weights(network: SliceNetwork, path: Path) -> None:
    """Copy a file of ImageNet weights into a slice network's backbone, in place.

    The file's 1000-class layer is left out. Everything else has to be there, in the network's own
    names and shapes, and nothing may be left over.

    Raises:
        NetworkError: The file cannot be read, or is of another network; the message says where.
    """
    tensors = _read(path)
    classifier = network.facts.classifier
    tensors = {n: t for n, t in tensors.items() if not n.startswith(classifier)}
    own = network.backbone.state_dict()
    needed = {name for name in own if not name.endswith(_COUNTERS)}
    missing, left_over = sorted(needed - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [n for n in needed & tensors.keys() if tensors[n].shape != own[n].shape]
    if missing or left_over or wrong:
        raise NetworkError(_misfit(path, network.facts, missing, left_over, sorted(wrong)))
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            msg = f"'{path.name}': tensor '{name}' holds values that are not finite."
            raise NetworkError(f"{msg} Get the file again.")
    network.backbone.load_state_dict(tensors, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        msg = (
            f"'{path.name}' is no safetensors file. Only these are read, as others can run code: "
            "load it where it comes from and save its state_dict with safetensors.torch.save_file."
        )
        raise NetworkError(msg)
    return read_tensors(path)


def _missing_file(path: Path, name: str, facts: _SliceBackbone) -> str:
    return (
        f"There is no weights file '{path}'. Expected the ImageNet weights of {name} as timm names "
        f"them: {WEIGHTS_NAME} of '{facts.weights_id}'. Give --weights FILE, or ask for random "
        f"weights by name: --weights {NO_WEIGHTS}."
    )


def _not_cached(name: str, facts: _SliceBackbone) -> str:
    return (
        f"The ImageNet weights of {name} are not on this machine: {WEIGHTS_NAME} of "
        f"'{facts.weights_id}' is not in the hub's cache. Where there is a connection run\n"
        f"  hf download {facts.weights_id} {WEIGHTS_NAME}\n"
        f"and copy the file it names here (--weights FILE), or take random weights by name "
        f"(--weights {NO_WEIGHTS}), which the paper's results say nothing about."
    )


def _misfit(
    path: Path, facts: _SliceBackbone, missing: list[str], left_over: list[str], wrong: list[str]
) -> str:
    first = {
        "lacks": missing[:1],
        "has another shape for": wrong[:1],
        "has too many, such as": left_over[:1],
    }
    said = "; ".join(f"it {what} '{names[0]}'" for what, names in first.items() if names)
    return (
        f"'{path.name}' does not hold the weights of {facts.timm_name}: {said}. Expected "
        f"{WEIGHTS_NAME} of '{facts.weights_id}'."
    )


_HEADS: Final = ("published", "recommended")
_SCALINGS: Final = ("published", "weights")
_LARGEST: Final = 1024

_HIDDEN_UNITS: Final = 4
"""Of the published head."""


@dataclass(frozen=True)
class _SliceSettings:
    """What can be chosen about a slice network.

    Attributes:
        head: A name in `_HEADS`.
        tuned_blocks: How many of the backbone's last blocks learn too, 0 to 3; 0 as published.
        dropout: Share of the head's units that is dropped while training.
        scaling: "published" leaves values between 0 and 1, as the notebooks do for all six.
            "weights" gives the backbone what its weights were trained with.
        size: Rows and columns of the input; 0 takes those of the paper.

    Raises:
        NetworkError: A number is impossible.
        UnknownNameError: There is no such head or scaling.
    """

    head: str = "published"
    tuned_blocks: int = 0
    dropout: float = 0.25
    scaling: str = "published"
    size: int = 0

    def __post_init__(self) -> None:
        require_choice("head", self.head, _HEADS)
        require_choice("scaling", self.scaling, _SCALINGS)
        require_between("tuned_blocks", self.tuned_blocks, 0, 3)
        require_between("dropout", self.dropout, 0, 0.99)
        if self.size:
            require_between("size", self.size, 32, _LARGEST)


class SliceNetwork(nn.Module):
    """A backbone out of timm and one of the two heads.

    Args:
        facts: The backbone.
        num_classes: Number of logits; two come from one unit, see `ClassUnits`.
        settings: Head, scaling and what is tuned.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, facts: _SliceBackbone, num_classes: int, settings: _SliceSettings) -> None:
        super().__init__()
        self.facts = facts
        self.settings = settings
        self.size = settings.size or facts.size
        if self.size < facts.smallest:
            msg = f"{facts.timm_name} needs at least {facts.smallest} rows, not {self.size}."
            raise NetworkError(msg)
        has_scaling = settings.scaling == "weights"
        for name, values, unchanged in (("mean", facts.mean, 0.0), ("std", facts.std, 1.0)):
            numbers = torch.tensor(values if has_scaling else [unchanged] * 3)
            self.register_buffer(name, numbers.view(1, 3, 1, 1), persistent=False)
        self.backbone = _backbone(facts)
        self.head = _head(self._num_cells(), facts.channels, num_classes, settings)
        draw_glorot(self.head)
        self._freeze()

    @property
    def is_frozen(self) -> bool:
        """Whether nothing of the backbone learns."""
        return self.settings.tuned_blocks == 0

    @property
    def num_trainable(self) -> int:
        """Numbers that learn."""
        return sum(each.numel() for each in self.parameters() if each.requires_grad)

    def train(self, mode: bool = True) -> SliceNetwork:
        """Switch the head; the backbone keeps its statistics, tuned or not, as Keras has it."""
        super().train(mode)
        self.backbone.eval()
        return self

    def to(self, *args: Any, **kwargs: Any) -> SliceNetwork:
        """As every network's; a memory layout for volumes becomes the one for pictures."""
        if kwargs.get("memory_format") is torch.channels_last_3d:
            kwargs["memory_format"] = torch.channels_last
        super().to(*args, **kwargs)
        return self

    def features(
        self, batch: Float[Tensor, "batch channel 1 height width"]
    ) -> Float[Tensor, "batch features rows columns"]:
        """The last feature map."""
        pictures = (batch.squeeze(2).expand(-1, 3, -1, -1) - self.mean) / self.std
        # Nothing is remembered for the gradients of what does not learn.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            found: Tensor = self.backbone.forward_features(pictures)  # type: ignore[operator]
        return found

    def forward(
        self, batch: Float[Tensor, "batch channel ..."], lungs: Tensor | None = None
    ) -> Float[Tensor, "batch num_classes"]:
        """Logits of each slice.

        Args:
            batch: Slices between 0 and 1, (batch, 1 or 3, 1, height, width).
            lungs: Not looked at; there so that all networks are called alike.

        Raises:
            NetworkError: The batch has another size.
        """
        self._check(batch)
        logits: Tensor = self.head(self.features(batch))
        return logits

    def _check(self, batch: Tensor) -> None:
        wanted = (1, self.size, self.size)
        if batch.ndim != 5 or batch.shape[1] not in (1, 3) or tuple(batch.shape[2:]) != wanted:
            msg = (
                f"This slice network takes inputs of (1 or 3, {', '.join(map(str, wanted))}), not "
                f"{tuple(batch.shape[1:])}: one slice of {self.size} rows and columns each."
            )
            raise NetworkError(msg)

    def _num_cells(self) -> int:
        """Places of the feature map, found without memory or time."""
        with torch.device("meta"), torch.no_grad():
            twin = _backbone(self.facts).eval()
            found = twin.forward_features(torch.zeros(1, 3, self.size, self.size))  # type: ignore[operator]
        return int(found.shape[2] * found.shape[3])

    def _freeze(self) -> None:
        blocks = self.facts.last_blocks[: self.settings.tuned_blocks]
        tuned = tuple(prefix for block in blocks for prefix in block)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name.startswith(tuned) if tuned else False)
        self.train(self.training)


def build_slice_network(
    name: str, num_classes: int, settings: Mapping[str, object] | None = None
) -> SliceNetwork:
    """Build a slice network with freshly drawn weights; `slice_weights` gives it ImageNet's.

    Args:
        name: A name in `SLICE_NETWORKS`.
        num_classes: Number of logits, at least two.
        settings: Those of `_SliceSettings`; what is left out takes its default.

    Raises:
        UnknownNameError: There is no such network, or it has no such setting.
        NetworkError: A setting has an impossible value.
        MissingExtraError: timm is not installed.
    """
    facts = look_up(SLICE_NETWORKS, name, kind="slice network")
    if num_classes < 2:
        raise NetworkError(f"A network needs at least two classes, not {num_classes}.")
    return SliceNetwork(facts, num_classes, settings_from(_SliceSettings, settings or {}))


class _FlattenChannelsLast(nn.Module):
    """Flatten place by place, channels innermost, the order in which Keras holds dense weights."""

    def forward(
        self, features: Float[Tensor, "batch channel rows columns"]
    ) -> Float[Tensor, "batch units"]:
        """Values of all places, one place after the other."""
        return features.permute(0, 2, 3, 1).flatten(1)


def _head(
    num_cells: int, channels: int, num_classes: int, settings: _SliceSettings
) -> nn.Sequential:
    dropout = nn.Dropout(settings.dropout)
    if settings.head == "recommended":
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(pool, dropout, ClassUnits(channels, num_classes))
    hidden = nn.Linear(num_cells * channels, _HIDDEN_UNITS)
    return nn.Sequential(
        _FlattenChannelsLast(), hidden, nn.ReLU(), dropout, ClassUnits(_HIDDEN_UNITS, num_classes)
    )


def _backbone(facts: _SliceBackbone) -> nn.Module:
    """The network of timm up to its last feature map, weights as timm draws them."""
    timm = import_extra("timm", extra="slices")
    network: nn.Module = timm.create_model(facts.timm_name, pretrained=False, num_classes=0)
    if hasattr(network, "pre_logits"):
        # VGG's two dense layers, six times as many numbers as all of its convolutions.
        network.pre_logits = nn.Identity()
    return network

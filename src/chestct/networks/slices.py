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
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chestct.errors import NetworkError
from chestct.extras import import_extra
from chestct.lookup import look_up
from chestct.networks.keras_defaults import ClassUnits, draw_glorot
from chestct.networks.settings import require_between, require_choice, settings_from
from chestct.networks.slice_backbones import SLICE_NETWORKS, SliceBackbone

HEADS: Final = ("published", "recommended")
SCALINGS: Final = ("published", "weights")
LARGEST: Final = 1024

HIDDEN_UNITS: Final = 4
"""Of the published head."""


@dataclass(frozen=True)
class SliceSettings:
    """What can be chosen about a slice network.

    Attributes:
        head: A name in `HEADS`.
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
        require_choice("head", self.head, HEADS)
        require_choice("scaling", self.scaling, SCALINGS)
        require_between("tuned_blocks", self.tuned_blocks, 0, 3)
        require_between("dropout", self.dropout, 0, 0.99)
        if self.size:
            require_between("size", self.size, 32, LARGEST)


class SliceNetwork(nn.Module):
    """A backbone out of timm and one of the two heads.

    Args:
        facts: The backbone.
        num_classes: Number of logits; two come from one unit, see `ClassUnits`.
        settings: Head, scaling and what is tuned.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, facts: SliceBackbone, num_classes: int, settings: SliceSettings) -> None:
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
        settings: Those of `SliceSettings`; what is left out takes its default.

    Raises:
        UnknownNameError: There is no such network, or it has no such setting.
        NetworkError: A setting has an impossible value.
        MissingExtraError: timm is not installed.
    """
    facts = look_up(SLICE_NETWORKS, name, kind="slice network")
    if num_classes < 2:
        raise NetworkError(f"A network needs at least two classes, not {num_classes}.")
    return SliceNetwork(facts, num_classes, settings_from(SliceSettings, settings or {}))


class _FlattenChannelsLast(nn.Module):
    """Flatten place by place, channels innermost, the order in which Keras holds dense weights."""

    def forward(
        self, features: Float[Tensor, "batch channel rows columns"]
    ) -> Float[Tensor, "batch units"]:
        """Values of all places, one place after the other."""
        return features.permute(0, 2, 3, 1).flatten(1)


def _head(
    num_cells: int, channels: int, num_classes: int, settings: SliceSettings
) -> nn.Sequential:
    dropout = nn.Dropout(settings.dropout)
    if settings.head == "recommended":
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(pool, dropout, ClassUnits(channels, num_classes))
    hidden = nn.Linear(num_cells * channels, HIDDEN_UNITS)
    return nn.Sequential(
        _FlattenChannelsLast(), hidden, nn.ReLU(), dropout, ClassUnits(HIDDEN_UNITS, num_classes)
    )


def _backbone(facts: SliceBackbone) -> nn.Module:
    """The network of timm up to its last feature map, weights as timm draws them."""
    timm = import_extra("timm", extra="slices")
    network: nn.Module = timm.create_model(facts.timm_name, pretrained=False, num_classes=0)
    if hasattr(network, "pre_logits"):
        # VGG's two dense layers, six times as many numbers as all of its convolutions.
        network.pre_logits = nn.Identity()
    return network

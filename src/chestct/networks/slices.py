"""Networks that see one slice at a time: a network of photographs with a new, small head.

A slice comes as a volume of depth one, so that the loop, the augmentations and the evaluation are
those of whole scans: `network(batch (batch, 1, 1, height, width), lungs or None) -> logits`.

Two heads. "published", as in the MASERes notebooks: flatten, 4 units, ReLU, dropout, 1 unit. As
Keras trains a frozen network, the backbone stays in inference mode, BatchNorm included, while the
head learns. "recommended": the mean over the feature map, dropout, one layer; hundreds of times
fewer numbers to learn, so that some blocks of the backbone, or all of it, can be tuned too.

Six backbones stand in a table, with what the paper says of them. Any other network of timm goes by
its name there, and timm says what its weights expect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from chestct.errors import NetworkError, UnknownNameError
from chestct.extras import MissingExtraError, import_extra
from chestct.lookup import unknown_name_message
from chestct.networks import settings_from
from chestct.networks.given_weights import read_tensors
from chestct.networks.maseres import ClassUnits, draw_glorot


@dataclass(frozen=True)
class _SliceBackbone:
    """A network for pictures, cut at its last feature map.

    Attributes:
        timm_name: What timm calls it.
        weights_id: Repository of its ImageNet weights on the hub, in which the file is
            WEIGHTS_NAME; empty where timm knows none.
        size: Rows and columns of its input, of the six in the paper.
        smallest: Fewest rows and columns of which its layers leave something.
        mean: What its weights expect to be taken off red, green and blue, inputs being 0 to 1.
        std: What its weights expect them to be divided by then.
        last_blocks: Prefixes of the names of its weights, by block, the last block first; empty
            where timm groups them.
        classifier: Prefixes of weights that a file may hold and that are cut off here.
        difference: How it differs from the network of Keras that the notebooks take; empty where
            the layers hold the same numbers.
    """

    timm_name: str
    weights_id: str
    size: int
    smallest: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classifier: tuple[str, ...]
    last_blocks: tuple[tuple[str, ...], ...] = ()
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
"""The paper's six by name; built, as any other of timm, by `build_slice_network`."""

_SMALLEST: Final = 32
"""Rows and columns of an input, where nothing else is known."""


def _backbone_facts(name: str) -> _SliceBackbone:
    """What is known of a network, from the table or from timm.

    Raises:
        UnknownNameError: Neither knows it.
    """
    if name in SLICE_NETWORKS:
        return SLICE_NETWORKS[name]
    unknown = unknown_name_message(name, SLICE_NETWORKS, kind="slice network")
    try:
        timm = import_extra("timm", extra="slices")
    except MissingExtraError as error:
        raise UnknownNameError(f"{unknown} For any other of timm: {error}") from error
    try:
        # Names such as "hf-hub:..." would fetch something.
        facts = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:
        # The network is there, in another form than the one after the dot.
        facts = None
    if facts is None:
        nearest = get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        more = f" Of timm's networks the nearest are {', '.join(nearest)}." if nearest else ""
        raise UnknownNameError(f"{unknown[:-1]}, and any network of timm by its name.{more}")
    classifiers = facts.classifier or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    return _SliceBackbone(
        timm_name=name,
        weights_id=facts.hf_hub_id or "",
        size=facts.input_size[-1],
        smallest=(facts.min_input_size or (_SMALLEST,))[-1],
        mean=tuple(facts.mean),
        std=tuple(facts.std),
        # VGG's dense layers before the last one are left out, too.
        classifier=("pre_logits.", *(f"{each}." for each in classifiers)),
    )


IMAGENET: Final = "imagenet"
"""Asks for the weights in the hub's cache."""
NO_WEIGHTS: Final = "none"
"""Asks for weights drawn at random, by name."""

_COUNTERS: Final = "num_batches_tracked"


def find_weights(name: str, wanted: str) -> Path | None:
    """The file that a setting asks for.

    Args:
        name: A name in `SLICE_NETWORKS`, or one of timm's.
        wanted: `IMAGENET`, `NO_WEIGHTS`, or a path.

    Returns:
        A file, or None for random weights, which only `NO_WEIGHTS` gives.

    Raises:
        UnknownNameError: There is no such network.
        NetworkError: The file is not there; the message names it and how to get it.
        MissingExtraError: timm is not installed.
    """
    facts = _backbone_facts(name)
    if wanted == NO_WEIGHTS:
        return None
    if wanted != IMAGENET:
        path = Path(wanted)
        if not path.is_file():
            raise NetworkError(_missing_file(path, name, facts))
        return path
    if not facts.weights_id:
        msg = f"timm names no weights of {name} on the hub. Give --weights FILE, or ask for random"
        raise NetworkError(f"{msg} weights by name: --weights {NO_WEIGHTS}.")
    hub = import_extra("huggingface_hub", extra="slices")
    cached = hub.try_to_load_from_cache(facts.weights_id, WEIGHTS_NAME)
    if not isinstance(cached, str) or not Path(cached).is_file():
        raise NetworkError(_not_cached(name, facts))
    return Path(cached)


def load_backbone_weights(network: SliceNetwork, path: Path) -> None:
    """Copy a file of ImageNet weights into a slice network's backbone, in place.

    The file's 1000-class layer is left out. Everything else has to be there, in the shapes of the
    network, and nothing may be left over.

    Args:
        network: Its head stays as it is.
        path: A `.safetensors` file or a PyTorch state dict, of which only plain tensors are read.
            Names are timm's, or those of the efficientnet_pytorch family.

    Raises:
        NetworkError: The file cannot be read, or is of another network; the message says where.
    """
    tensors, own = read_tensors(path), network.backbone.state_dict()
    if "_conv_stem.weight" in tensors:
        _require_tensorflow(path, network)
        tensors = _in_timm_names(tensors, own)
    classifier = network.facts.classifier
    tensors = {n: t for n, t in tensors.items() if not n.startswith(classifier)}
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


_AROUND: Final = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
"""Names of the `efficientnet_pytorch` family to those of timm. It numbers its blocks through
(`_blocks.5`) where timm counts them by stage (`blocks.2.1`), and its BatchNorms by what comes
before them."""
_IN_BLOCK: Final = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_IN_FIRST_BLOCK: Final = {
    **_IN_BLOCK,
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
"""Of a block that does not expand."""


def _in_timm_names(tensors: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Tensors by the names of the network of timm, `own`; what has no place there keeps its own."""
    steps = [name.split(".") for name in own]
    places = dict.fromkeys(".".join(each[:3]) for each in steps if each[0] == "blocks")
    blocks = dict(enumerate(places))
    return {_renamed(name, tensors, blocks): tensor for name, tensor in tensors.items()}


def _renamed(name: str, tensors: Mapping[str, Tensor], blocks: Mapping[int, str]) -> str:
    part, _, rest = name.partition(".")
    if part != "_blocks":
        return f"{_AROUND[part]}.{rest}" if part in _AROUND else name
    number, _, inner = rest.partition(".")
    layer, _, value = inner.partition(".")
    expands = f"_blocks.{number}._expand_conv.weight" in tensors
    layers = _IN_BLOCK if expands else _IN_FIRST_BLOCK
    place = blocks.get(int(number)) if number.isdigit() else None
    return name if place is None or layer not in layers else f"{place}.{layers[layer]}.{value}"


def _require_tensorflow(path: Path, network: SliceNetwork) -> None:
    """Refuse TensorFlow's numbers in a network that pads or normalises in another way.

    Padding is "SAME" there and BatchNorm's epsilon 1e-3, as in networks of timm called `tf_...`.
    """
    name = network.facts.timm_name
    if not name.startswith("tf_"):
        msg = (
            f"'{path.name}' has the names of efficientnet_pytorch, whose weights are TensorFlow's: "
            f"other padding and another epsilon than {name} has. Set network.name to that of a "
            "network which timm ported from there, such as tf_efficientnet_lite0."
        )
        raise NetworkError(msg)


def _missing_file(path: Path, name: str, facts: _SliceBackbone) -> str:
    return (
        f"There is no weights file '{path}'. Expected the ImageNet weights of {name} as timm names "
        f"them{_such_as(facts)}. Give --weights FILE, or ask for random weights by name: "
        f"--weights {NO_WEIGHTS}."
    )


def _such_as(facts: _SliceBackbone) -> str:
    """Where the hub has weights that fit; empty where timm does not say it."""
    return f": {WEIGHTS_NAME} of '{facts.weights_id}'" if facts.weights_id else ""


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
        f"'{path.name}' does not hold the weights of {facts.timm_name}: {said}. Expected those "
        f"that timm has{_such_as(facts)}."
    )


_PADDINGS: Final = {"own": None, "same": "same", "symmetric": ""}
"""Word to what timm calls it; None leaves it to the network."""
_HIDDEN_UNITS: Final = 4
"""Of the published head."""


@dataclass(frozen=True)
class _SliceSettings:
    """What can be chosen about a slice network.

    Attributes:
        head: As above.
        tuned_blocks: How many of the backbone's last blocks learn too, 0 to 3, or "all"; 0 as
            published.
        batch_norm_statistics: "frozen", as published, or "learned": those of tuned blocks move.
        dropout: Share of the head's units that is dropped while training.
        scaling: "published" leaves values between 0 and 1, as the notebooks do for all six.
            "weights" gives the backbone what its weights were trained with.
        mean: What "weights" takes off red, green and blue; empty takes what timm's weights expect.
        std: What it divides them by then.
        padding: "own" is the network's; "same" (TensorFlow's) or "symmetric" for other weights.
        size: Rows and columns of the input; 0 takes those of the paper, or timm's.
        members: Networks of this kind whose mean answers; each is trained by itself.
    """

    head: Literal["published", "recommended"] = "published"
    tuned_blocks: Annotated[int, Field(ge=0, le=3)] | Literal["all"] = 0
    batch_norm_statistics: Literal["frozen", "learned"] = "frozen"
    dropout: Annotated[float, Field(ge=0, le=0.99)] = 0.25
    scaling: Literal["published", "weights"] = "published"
    mean: tuple[float, ...] = ()
    std: tuple[Annotated[float, Field(ge=1e-3, le=1e3)], ...] = ()
    padding: Literal["own", "same", "symmetric"] = "own"
    size: Literal[0] | Annotated[int, Field(ge=32, le=1024)] = 0
    members: Annotated[int, Field(ge=1, le=20)] = 1

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 3):
                msg = f"Network setting '{name}' must be three numbers, of red, green and blue."
                raise NetworkError(msg)
            if values and self.scaling != "weights":
                msg = f"Network setting '{name}' is of scaling weights, not {self.scaling}."
                raise NetworkError(msg)


_Some = TypeVar("_Some", bound=nn.Module)


class _OfSlices(nn.Module):
    """What takes a slice of `size` rows and columns as a volume of depth one.

    From its channels `mean` is taken off, then they are divided by `std`.
    """

    mean: Tensor
    std: Tensor
    head: nn.Module

    def __init__(self, size: int, scaling: Mapping[str, tuple[float, ...]]) -> None:
        super().__init__()
        self.size = size
        self.scaling = scaling
        for name, values in scaling.items():
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def to(self: _Some, *args: Any, **kwargs: Any) -> _Some:
        """As every network's; a memory layout for volumes becomes the one for pictures."""
        if kwargs.get("memory_format") is torch.channels_last_3d:
            kwargs["memory_format"] = torch.channels_last
        nn.Module.to(self, *args, **kwargs)
        return self

    def features(
        self, batch: Float[Tensor, "batch channel 1 height width"]
    ) -> Float[Tensor, "batch features rows columns"]:
        """The last feature map."""
        return self._features((batch.squeeze(2).expand(-1, 3, -1, -1) - self.mean) / self.std)

    def _features(self, pictures: Tensor) -> Tensor:
        raise NotImplementedError

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


class SliceNetwork(_OfSlices):
    """A backbone out of timm and one of the two heads; the setting `members` is not looked at."""

    def __init__(self, facts: _SliceBackbone, num_classes: int, settings: _SliceSettings) -> None:
        size = settings.size or facts.size
        if size < facts.smallest:
            msg = f"{facts.timm_name} needs at least {facts.smallest} rows, not {size}."
            raise NetworkError(msg)
        super().__init__(size, _scaling(facts, settings))
        self.facts = facts
        self.settings = settings
        self.backbone = _backbone(facts, settings.padding)
        channels, num_cells = self._shape()
        self.head = _head(num_cells, channels, num_classes, settings)
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
        """Switch the head; the backbone keeps its statistics, as Keras has it, if not told else."""
        super().train(mode)
        self.backbone.eval()
        if self.settings.batch_norm_statistics == "learned":
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm) and _learns(module):
                    module.train(mode)
        return self

    def _features(self, pictures: Tensor) -> Tensor:
        # Nothing is remembered for the gradients of what does not learn.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            return _feature_map(self.backbone, pictures)

    def _shape(self) -> tuple[int, int]:
        """Channels and places of the feature map, found without memory or time.

        Raises:
            NetworkError: There is none, or the network cannot take inputs of this size.
        """
        name, size = self.facts.timm_name, self.size
        with torch.device("meta"), torch.no_grad():
            twin = _backbone(self.facts, self.settings.padding).eval()
            try:
                found = _feature_map(twin, torch.zeros(1, 3, size, size))
            except (RuntimeError, AssertionError, ValueError) as error:
                msg = f"{name} cannot take inputs of {size} rows and columns ({error}). Set size."
                raise NetworkError(msg) from error
        if found.ndim != 4:
            msg = f"{name} gives tokens and no map of features, so that nothing could be explained."
            raise NetworkError(f"{msg} Choose a convolutional network.")
        return found.shape[1], found.shape[2] * found.shape[3]

    def _freeze(self) -> None:
        tuned = self._tuned_prefixes()
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name.startswith(tuned))
        self.train(self.training)

    def _tuned_prefixes(self) -> tuple[str, ...]:
        """Of the names of the backbone's weights that learn."""
        number = self.settings.tuned_blocks
        if isinstance(number, str):
            return ("",)
        blocks = self.facts.last_blocks
        if number and not blocks:
            blocks = _last_blocks(self.facts.timm_name, self.backbone)
        return tuple(prefix for block in blocks[:number] for prefix in block)


def build_slice_network(
    name: str, num_classes: int, settings: Mapping[str, object] | None = None
) -> SliceNetwork | MeanOfSliceNetworks:
    """Build a slice network with freshly drawn weights; `slice_weights` gives it ImageNet's.

    Args:
        name: A name in `SLICE_NETWORKS`, or of any other network of timm.
        num_classes: Number of logits, at least two.
        settings: Those of `_SliceSettings`; what is left out takes its default.

    Raises:
        UnknownNameError: There is no such network, or it has no such setting.
        NetworkError: A setting has an impossible value.
        MissingExtraError: timm is not installed.
    """
    facts = _backbone_facts(name)
    if num_classes < 2:
        raise NetworkError(f"A network needs at least two classes, not {num_classes}.")
    chosen = settings_from(_SliceSettings, settings or {})
    members = [SliceNetwork(facts, num_classes, chosen) for _ in range(chosen.members)]
    return mean_of(members)


def mean_of(members: Sequence[SliceNetwork]) -> SliceNetwork | MeanOfSliceNetworks:
    """Networks built alike as one; a single one is itself."""
    return members[0] if len(members) == 1 else MeanOfSliceNetworks(members)


class MeanOfSliceNetworks(_OfSlices):
    """Several networks built alike as one, with the mean of their logits.

    Its feature map is theirs, channel after channel, so that a map of the whole explains it.
    """

    def __init__(self, members: Sequence[SliceNetwork]) -> None:
        super().__init__(members[0].size, members[0].scaling)
        self.facts, self.settings = members[0].facts, members[0].settings
        self.backbones = nn.ModuleList(each.backbone for each in members)
        self.head = _MeanHead([each.head for each in members])

    def _features(self, pictures: Tensor) -> Tensor:
        return torch.cat([_feature_map(each, pictures) for each in self.backbones], dim=1)


class _MeanHead(nn.Module):
    """The heads of several networks, each on its own channels, and the mean of their logits."""

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(
        self, features: Float[Tensor, "batch features rows columns"]
    ) -> Float[Tensor, "batch num_classes"]:
        """Logits of each slice."""
        own = features.chunk(len(self.heads), dim=1)
        return torch.stack([head(each) for head, each in zip(self.heads, own, strict=True)]).mean(0)


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


def _backbone(facts: _SliceBackbone, padding: str) -> nn.Module:
    """The network of timm up to its last feature map, weights as timm draws them."""
    timm = import_extra("timm", extra="slices")
    named = _PADDINGS[padding]
    given = {} if named is None else {"pad_type": named}
    try:
        network: nn.Module = timm.create_model(
            facts.timm_name, pretrained=False, num_classes=0, **given
        )
    except TypeError as error:
        if not given:
            raise
        msg = f"timm has {facts.timm_name} with its own padding alone: leave 'padding' out."
        raise NetworkError(msg) from error
    if hasattr(network, "pre_logits"):
        # VGG's two dense layers, six times as many numbers as all of its convolutions.
        network.pre_logits = nn.Identity()
    return network


def _feature_map(backbone: nn.Module, pictures: Tensor) -> Tensor:
    """The last feature map, channels before rows and columns whatever the network has."""
    found: Tensor = backbone.forward_features(pictures)  # type: ignore[operator]
    if getattr(backbone, "output_fmt", None) == "NHWC":
        return found.permute(0, 3, 1, 2)
    return found


def _last_blocks(name: str, backbone: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Names of the weights of a network's blocks as timm groups them, the last block first.

    Raises:
        NetworkError: timm does not group them.
    """
    if not hasattr(backbone, "group_matcher"):
        msg = f"timm does not say what the blocks of {name} are: set tuned_blocks to 0 or all."
        raise NetworkError(msg)
    timm = import_extra("timm", extra="slices")
    matcher = backbone.group_matcher(coarse=True)  # type: ignore[operator]
    groups: dict[int, list[str]] = timm.models.group_parameters(backbone, matcher)
    own = dict(backbone.named_parameters())
    blocks: list[tuple[str, ...]] = []
    for _, names in sorted(groups.items()):
        is_block = any(own[name].ndim > 1 for name in names)
        # A normalisation that stands alone belongs to the block before it.
        blocks.append(tuple(names) if is_block or not blocks else (*blocks.pop(), *names))
    return tuple(reversed(blocks))


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _scaling(facts: _SliceBackbone, settings: _SliceSettings) -> dict[str, tuple[float, ...]]:
    """What is taken off a picture's three channels, and what they are divided by."""
    if settings.scaling == "published":
        return {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    return {"mean": settings.mean or facts.mean, "std": settings.std or facts.std}

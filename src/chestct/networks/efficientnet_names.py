"""Weights in the names of the `efficientnet_pytorch` family, renamed to those of timm.

That family numbers its blocks through (`_blocks.5`) where timm counts them by stage
(`blocks.2.1`), and its BatchNorms by what comes before them. Their numbers are TensorFlow's:
padding is "SAME" and BatchNorm's epsilon 1e-3, as in those networks of timm whose names begin
with `tf_`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from torch import Tensor

_AROUND: Final = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
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


def is_of_family(names: Iterable[str]) -> bool:
    """Whether tensors have that family's names."""
    return "_conv_stem.weight" in names


def in_timm_names(tensors: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The same tensors by timm's names; what has no place there keeps its own.

    Args:
        tensors: By that family's names.
        own: Names of the network of timm, in its order.
    """
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

"""The parts of a network that are damaged, and how a part of their numbers is set to zero.

The MASERes paper's models I to V: a quarter of the units of each layer of one component is set to
zero, with their biases, and nothing is trained again. BatchNorm is left as it is, so that a filter
which is silenced becomes a constant, not zero.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from chestct.errors import NetworkError
from chestct.lookup import look_up
from chestct.networks.maseres import NUM_HEADS, Maseres

SHARE: Final = 0.25
"""Share of each layer's units in the paper."""


@dataclass(frozen=True)
class Layer:
    """A convolution or dense layer, or one head's own row of a dense layer.

    Attributes:
        module: Dotted name of the module.
        head: The row of its weight that is a layer of its own; its *inputs* are then set to zero
            and its bias stays, as in the paper's model III. None: output units with their biases.
    """

    module: str
    head: int | None = None

    def num_units(self, network: nn.Module) -> int:
        """How many there are to choose from."""
        weight = _weight(network, self.module)
        return int(weight.shape[0 if self.head is None else 1])


Parts = Mapping[str, Sequence[Layer]]
Choice = Sequence[Sequence[int]]
"""For each layer of a part, the units that are set to zero."""


@dataclass(frozen=True)
class Zeroed:
    """How many numbers were set to zero."""

    weights: int
    biases: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.weights + self.biases


_BLOCK: Final = ("conv1", "conv2", "se.squeeze", "se.excite", "shortcut")


def parts_of(network: nn.Module) -> dict[str, list[Layer]]:
    """The parts that can be damaged: I to V of MASERes, else one per top-level module.

    The paper's layer numbers give the order in which its seeds are counted. For the heads
    (III) the notebook numbers keys and queries before values; which of them is which it does not
    say, and it makes no difference to the published attention, where both are inert.
    """
    if isinstance(network, Maseres):
        return _maseres_parts()
    parts: dict[str, list[Layer]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            parts.setdefault(name.split(".")[0], []).append(Layer(name))
    return {
        name: layers
        for name, layers in parts.items()
        if any(quarter(layer.num_units(network)) for layer in layers)
    }


def choose_parts(network: nn.Module, names: Sequence[str] = ()) -> dict[str, list[Layer]]:
    """The named parts, or all; a name may also be a module's dotted name.

    Raises:
        UnknownNameError: There is no such part.
    """
    known = parts_of(network)
    if not names:
        return known
    inside = {
        name: [
            Layer(f"{name}.{inner}" if inner else name)
            for inner, module in part.named_modules()
            if isinstance(module, nn.Conv3d | nn.Linear)
        ]
        for name, part in network.named_modules()
        if name
    }
    offered = {**{name: layers for name, layers in inside.items() if layers}, **known}
    return {name: offered[name] if name in offered else look_up(known, name, kind="part")
            for name in names}  # fmt: skip


def published_choice(network: nn.Module, layers: Sequence[Layer], share: float = SHARE) -> Choice:
    """The notebook's choice: `random.Random(1)` for the first layer of a part, 2 for the next, ...

    The numbers of all units are shuffled and the first quarter is taken.
    """
    return [
        _drawn(random.Random(seed), layer.num_units(network), share)
        for seed, layer in enumerate(layers, start=1)
    ]


def random_choice(
    network: nn.Module, layers: Sequence[Layer], generator: random.Random, share: float = SHARE
) -> Choice:
    """Another choice of as many units."""
    return [_drawn(generator, layer.num_units(network), share) for layer in layers]


def quarter(num_units: int, share: float = SHARE) -> int:
    """How many of so many units are set to zero, rounded down."""
    return int(num_units * share)


def damage(network: nn.Module, layers: Sequence[Layer], choice: Choice) -> Zeroed:
    """Set units to zero, in place.

    Returns:
        How many numbers were set to zero.
    """
    weights = biases = 0
    with torch.no_grad():
        for layer, units in zip(layers, choice, strict=True):
            weight = _weight(network, layer.module)
            bias = getattr(network.get_submodule(layer.module), "bias", None)
            if layer.head is not None:
                weight[layer.head, list(units)] = 0
                weights += len(units)
                continue
            weight[list(units)] = 0
            weights += len(units) * weight[0].numel()
            if bias is not None:
                bias[list(units)] = 0
                biases += len(units)
    return Zeroed(weights, biases)


def _maseres_parts() -> dict[str, list[Layer]]:
    blocks = [f"block{number}.{name}" for number in (1, 2, 3) for name in _BLOCK]
    keys_and_queries = [
        Layer(f"attention.{name}", head) for head in range(NUM_HEADS) for name in ("key", "query")
    ]
    values = [Layer("attention.value", head) for head in range(NUM_HEADS)]
    return {
        "I": [Layer("stem.0"), Layer("stem.3")],
        "II": [Layer(name) for name in blocks],
        "III": [*keys_and_queries, *values],
        "IV": [Layer("fc1")],
        "V": [Layer("fc2")],
    }


def _drawn(generator: random.Random, num_units: int, share: float) -> list[int]:
    numbers = list(range(num_units))
    generator.shuffle(numbers)
    return sorted(numbers[: quarter(num_units, share)])


def _weight(network: nn.Module, module: str) -> torch.Tensor:
    weight = getattr(network.get_submodule(module), "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise NetworkError(f"'{module}' has no weights to be damaged.")
    return weight

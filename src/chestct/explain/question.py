"""What a method is asked, and what it answers: a map on a grid of cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from chestct.arrays import Heat, Shape, Spacing
from chestct.errors import ExplanationError
from chestct.networks.roi import Features, LungBatch

Listener: TypeAlias = Callable[[int, int], object]
"""Told how many steps of how many are done."""

_NUM_SIGMOID_CLASSES: Final = 2


@dataclass(frozen=True, eq=False)
class Question:
    """One scan, one network, one class.

    Attributes:
        network: The network with its weights, on the CPU.
        batch: The scan's input, (1, channel, depth, height, width).
        lungs: Its lung mask, (1, 1, depth, height, width), 0 and 1.
        target: Number of the class to explain, or None for the one with the highest logit.
        layer: Name of the layer to look at, or None for the network's last block.
        listener: Told how far a slow method is, or None.
        are_findings: Whether each logit stands for a finding by itself.
    """

    network: nn.Module
    batch: Features
    lungs: LungBatch
    target: int | None = None
    layer: str | None = None
    listener: Listener | None = None
    are_findings: bool = False

    @property
    def input_shape(self) -> Shape:
        """Voxels of the input along (depth, height, width)."""
        _, _, depth, height, width = self.batch.shape
        return depth, height, width

    def target_of(self, logits: Float[Tensor, "batch class"]) -> int:
        """The class asked for, or the first scan's most probable one."""
        return int(logits[0].argmax()) if self.target is None else self.target

    def score(self, logits: Float[Tensor, "batch class"], target: int) -> Float[Tensor, " batch"]:
        """The number whose causes are looked for."""
        return logits[:, target] if self.are_findings else class_score(logits, target)


@dataclass(frozen=True, eq=False)
class CellMap:
    """A map on a regular grid of cells along the input's axes.

    Attributes:
        values: At least 0, in the method's own unit.
        start: Input index, possibly fractional, of the first cell's centre.
        step: Input voxels between cell centres.
        target: The class it speaks for.
        layer: The layer it was taken from; empty where there is none.
        cell: What the map cannot tell apart, in input voxels, where that is not `step`.
        unit_scale: What 1 in `values` stands for, where the method made them relative itself.
    """

    values: Heat
    start: Spacing
    step: Spacing
    target: int
    layer: str = ""
    cell: Spacing | None = None
    unit_scale: float = 1.0


def class_score(logits: Float[Tensor, "batch class"], target: int) -> Float[Tensor, " batch"]:
    """The number whose causes are looked for: the class's logit.

    Of two classes it is the difference of the logits. Networks that end in one sigmoid unit give
    the logits (0, z), and a constant has no causes: the logit of their first class is -z.
    """
    if logits.shape[1] == _NUM_SIGMOID_CLASSES:
        return logits[:, target] - logits[:, 1 - target]
    return logits[:, target]


def refuse_layer(question: Question, method: str) -> None:
    """Refuse a layer's name where a method has no use for it.

    Raises:
        ExplanationError: A layer was named.
    """
    if question.layer is not None:
        msg = f"The method '{method}' looks at no layer of choice: leave out '{question.layer}'."
        raise ExplanationError(msg)

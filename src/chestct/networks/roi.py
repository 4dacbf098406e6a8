"""Region-of-interest gating: features outside the lungs are set to zero (Eq. 10-11 of the paper).

The RoI-aware 3D ResNet paper multiplies the outputs of some activation layers with a lung mask
resized to the layer's grid. It leaves three things open, which are settled here:

* *Which layers.* Text and figure disagree, so placements have names: see `PLACEMENTS`.
* *Which mask.* The lung mask itself where it is given; else Eq. 10, input >= p.
* *How it is resized.* A cell is lung when **any** of its voxels is. Disease of the lungs often
  lies against the pleura, and a rule that looks at one voxel per cell can empty a coarse grid:
  on a 64^3 input the deepest grid has two cells an axis. The price is a rim of one cell.

Multiplying before the ReLU gives the same values as after it, as the mask holds only 0 and 1,
and lets both work in place: no memory is added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from chestct.errors import NetworkError

MASK_THRESHOLD: Final = 0.1
"""p of Eq. 10: an input voxel of at least this value counts as lung."""
OWN_ACTIVATION_THRESHOLD: Final = 0.001
"""What the published layer takes for the inside of the lungs, in its own activations."""

LungBatch: TypeAlias = Float[Tensor, "batch 1 depth height width"]
Features: TypeAlias = Float[Tensor, "batch channel depth height width"]
NewFeatures: TypeAlias = Float[Tensor, "batch new_channel new_depth new_height new_width"]
"""Features with other channels or on another grid than those that came in."""


def lungs_from_input(batch: Features, threshold: float = MASK_THRESHOLD) -> LungBatch:
    """Eq. 10: 1 where the input reaches the threshold in any channel, else 0."""
    return (batch.amax(dim=1, keepdim=True) >= threshold).to(batch.dtype)


def _halve_mask(mask: LungBatch) -> Float[Tensor, "batch 1 half_depth half_height half_width"]:
    """Put a 0/1 mask on a grid of half the size, rounded up; a cell is 1 when any voxel is."""
    return F.max_pool3d(mask, kernel_size=2, stride=2, ceil_mode=True)


class LungGrids:
    """The lung masks (0 and 1) of one batch, resized once to each grid that a layer asks for.

    Made anew in every forward pass. Grids must follow from the input's by halving and rounding
    up, as those of every stride-2 layer with "same" padding do.
    """

    def __init__(self, mask: LungBatch) -> None:
        self._levels = [mask]

    def like(self, features: Features) -> LungBatch:
        """The mask on the grid of `features` and in its type."""
        wanted = features.shape[2:]
        for level in self._levels:
            if level.shape[2:] == wanted:
                return level.to(features.dtype)
        while max(self._levels[-1].shape[2:]) > max(wanted):
            self._levels.append(_halve_mask(self._levels[-1]))
        mask = self._levels[-1]
        if mask.shape[2:] != wanted:
            msg = f"Features on {tuple(wanted)} cannot be gated: no halving of the input's grid."
            raise NetworkError(msg)
        return mask.to(features.dtype)


class GatedReLU(nn.Module):
    """A ReLU that a network's placement may turn into a gated one. It has no parameters.

    Attributes:
        gate: "none" is a plain ReLU; "lungs" sets features outside the lungs to zero (Eq. 11);
            "own" is the published layer, a ReLU that also drops values in (0, 0.001].
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = "none"

    def extra_repr(self) -> str:
        """Show the gate when the network is printed."""
        return f"gate={self.gate}"

    def forward(self, features: Features, lungs: LungGrids | None) -> Features:
        """Rectify `features` in place.

        Args:
            features: Output of the layer before, overwritten.
            lungs: The masks; needed when the gate is "lungs".
        """
        if self.gate == "own":
            return F.threshold(features, OWN_ACTIVATION_THRESHOLD, 0.0, inplace=True)
        if self.gate == "lungs" and lungs is not None:
            features = features.mul_(lungs.like(features))
        return F.relu_(features)


Stages: TypeAlias = Sequence[Sequence[GatedReLU]]


def _nowhere(stages: Stages) -> list[GatedReLU]:
    return []


def _first_four(stages: Stages) -> list[GatedReLU]:
    return [activation for stage in stages for activation in stage][:4]


def _stem_and_first_three_stages(stages: Stages) -> list[GatedReLU]:
    return [stage[-1] for stage in stages[:4]]


def _every_stage(stages: Stages) -> list[GatedReLU]:
    return [stage[-1] for stage in stages]


def _every_activation(stages: Stages) -> list[GatedReLU]:
    return [activation for stage in stages for activation in stage]


PLACEMENTS: Final[dict[str, Callable[[Stages], list[GatedReLU]]]] = {
    "none": _nowhere,
    "text": _first_four,
    "figure": _stem_and_first_three_stages,
    "all": _every_stage,
    "every": _every_activation,
    "published": _stem_and_first_three_stages,
}
"""Placement name to the activations it gates, out of [stem, stage 1, ..., stage 4].

`none`: the plain ResNet. `text`: the first four activations, in the order they run. `figure`: the
stem and the outputs of stages 1 to 3. `all`: the stem and every stage's output, so that pooled
features hold nothing computed at places outside the lungs; the authors lacked the memory for it.
`every`: each activation of the network, inside the blocks too (17 in the ResNet-18).
`published`: at the places of `figure`, what the authors' code does. Its mask is made from the
layer's *own* activations (> 0.001, holes filled), so all it can remove are values in (0, 0.001]:
it does not confine anything to the lungs. The hole filling only spares some of those values and
is left out. Neither lungs nor input enter it.
"""


def place_gates(placement: str, stages: Stages) -> None:
    """Switch on the gates that a placement names, out of [stem, stage 1, ..., stage 4]."""
    for activation in PLACEMENTS[placement](stages):
        activation.gate = "own" if placement == "published" else "lungs"


def gating_mask(
    batch: Features, lungs: LungBatch | None, threshold: float = MASK_THRESHOLD
) -> LungGrids:
    """The masks for one forward pass: the lungs where they are given, else Eq. 10.

    Raises:
        NetworkError: `lungs` is not on the grid of `batch`.
    """
    if lungs is None:
        return LungGrids(lungs_from_input(batch, threshold))
    if lungs.shape[2:] != batch.shape[2:] or lungs.shape[0] != batch.shape[0]:
        msg = f"The lung mask {tuple(lungs.shape)} does not fit the batch {tuple(batch.shape)}."
        raise NetworkError(msg)
    return LungGrids(lungs)


def has_lung_gates(network: nn.Module) -> bool:
    """Whether any activation of a network looks at the lung mask."""
    return any(getattr(module, "gate", "none") == "lungs" for module in network.modules())

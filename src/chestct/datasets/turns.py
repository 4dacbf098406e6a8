"""The rotations and flips of both papers, on whole batches.

Each scan is turned by one of a few angles in one plane, its size kept and zeros coming in. The
authors interpolate with cubic B-splines; here it is cubic convolution, which runs on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float

from chestct.errors import TrainingError

_FIRST_TWO: Final = {"axial": (3, 4), "slice-row": (2, 3)}
"""Plane name to the two axes of a (batch, channel, depth, height, width) tensor that turn."""


@dataclass(frozen=True)
class Turns:
    """How a batch is turned and flipped.

    Attributes:
        angles_deg: One of these is drawn for each scan, each as likely.
        plane: "axial" turns about the body axis. "slice-row" turns depth against height, as the
            MASERes notebooks do: SciPy's default axes, on arrays whose first axis is the slice.
        flip_probability: How often front and back change sides.

    Raises:
        TrainingError: A value is impossible.
    """

    angles_deg: tuple[float, ...]
    plane: str = "axial"
    flip_probability: float = 0.0

    def __post_init__(self) -> None:
        if not self.angles_deg or not all(abs(angle) <= 180 for angle in self.angles_deg):
            msg = f"angles_deg must hold at least one angle from -180 to 180, not {self.angles_deg}"
            raise TrainingError(msg + ".")
        if self.plane not in _FIRST_TWO:
            raise TrainingError(f"plane must be 'axial' or 'slice-row', not '{self.plane}'.")
        if not 0 <= self.flip_probability <= 1:
            msg = f"flip_probability must be from 0 to 1, not {self.flip_probability}."
            raise TrainingError(msg)


def turn_batch(
    batch: Float[torch.Tensor, "batch channel depth height width"],
    lungs: Float[torch.Tensor, "batch 1 depth height width"],
    turns: Turns,
    generator: torch.Generator,
) -> tuple[
    Float[torch.Tensor, "batch channel depth height width"],
    Float[torch.Tensor, "batch 1 depth height width"],
]:
    """Return a turned copy of a batch and of its lung masks, on the batch's device."""
    num, own = len(batch), generator.device
    chosen = torch.randint(len(turns.angles_deg), (num,), generator=generator, device=own).cpu()
    angles = torch.deg2rad(torch.tensor(turns.angles_deg, dtype=torch.float32)[chosen])
    is_flipped = torch.rand(num, generator=generator, device=own) < turns.flip_probability
    first, second = _FIRST_TWO[turns.plane]
    return (
        _turned(batch, angles, is_flipped, (first, second), "bicubic"),
        _turned(lungs, angles, is_flipped, (first, second), "nearest"),
    )


def _turned(
    scans: torch.Tensor,
    angles: torch.Tensor,
    is_flipped: torch.Tensor,
    axes: tuple[int, int],
    mode: str,
) -> torch.Tensor:
    """Turn every scan in the plane of two of its axes, as so many pictures side by side."""
    flips = is_flipped.to(scans.device).view(-1, 1, 1, 1, 1)
    scans = torch.where(flips, scans.flip(3), scans)
    others = [axis for axis in (1, 2, 3, 4) if axis not in axes]
    order = (0, *others, *axes)
    planes = scans.permute(order)
    height, width = planes.shape[3:]
    flat = planes.reshape(len(scans), -1, height, width)
    grid = F.affine_grid(_maps(angles, height, width), [*flat.shape], align_corners=False)
    moved = F.grid_sample(flat, grid.to(flat), mode=mode, align_corners=False)
    back = [order.index(axis) for axis in range(5)]
    return moved.reshape(planes.shape).permute(back).contiguous()


def _maps(angles: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """One rotation per scan in normalised coordinates, (second axis, first axis) order."""
    maps = torch.zeros(len(angles), 2, 3)
    for number, angle in enumerate(angles.tolist()):
        cos, sin = math.cos(angle), math.sin(angle)
        maps[number, :, :2] = torch.tensor(
            [[cos, -sin * height / width], [sin * width / height, cos]]
        )
    return maps

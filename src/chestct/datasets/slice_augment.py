"""The augmentation of the MASERes paper's slice networks, on whole batches.

As Keras makes it: one affine map of rotation, shift, shear and zoom about the picture's middle,
linear interpolation, the nearest pixel where nothing is, and a flip of left and right. The
notebooks give a shear of 0.2, which Keras reads in degrees: half a pixel in 224, practically none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float

from chestct.errors import TrainingError


@dataclass(frozen=True)
class SliceAugmentation:
    """How much slices are varied; every range is symmetric about "unchanged".

    Attributes:
        rotation_deg: Largest turn.
        shift: Largest shift, as a share of the picture's rows and of its columns.
        shear_deg: Largest shear.
        zoom: Largest relative change of size, rows and columns each on their own.
        flip_probability: How often left and right change sides.

    Raises:
        TrainingError: A value is impossible.
    """

    rotation_deg: float = 40.0
    shift: float = 0.2
    shear_deg: float = 0.2
    zoom: float = 0.2
    flip_probability: float = 0.5

    def __post_init__(self) -> None:
        limits = {
            "rotation_deg": 180,
            "shift": 1,
            "shear_deg": 80,
            "zoom": 0.9,
            "flip_probability": 1,
        }
        for name, most in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise TrainingError(f"{name} must be from 0 to {most}, not {value}.")


SLICE_AUGMENTATIONS: Final[dict[str, SliceAugmentation | None]] = {
    "none": None,
    # Text: "0 up to 40" degrees in one passage, +-40 in another; the notebooks: +-40.
    "maseres_slices_published": SliceAugmentation(),
    # The text calls it a shear "intensity" of 0.2: taken for radians, 11 degrees.
    "maseres_slices_paper": SliceAugmentation(shear_deg=math.degrees(0.2)),
    # A patient does not lie turned by 40 degrees; the heart's side stays where it is.
    "recommended": SliceAugmentation(
        rotation_deg=10.0, shift=0.06, shear_deg=0.0, zoom=0.1, flip_probability=0.0
    ),
}
"""Augmentation name to its numbers; None leaves slices as they are."""


def vary_slices(
    batch: Float[torch.Tensor, "batch channel 1 height width"],
    augmentation: SliceAugmentation,
    generator: torch.Generator,
) -> Float[torch.Tensor, "batch channel 1 height width"]:
    """Return a varied copy of a batch of slices, on its device."""
    pictures = batch.squeeze(2)
    height, width = pictures.shape[2:]
    maps = _draw_maps(len(batch), (height, width), augmentation, generator)
    grid = F.affine_grid(maps.to(batch), [*pictures.shape], align_corners=False)
    moved = F.grid_sample(
        pictures, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    chances = torch.rand(len(batch), generator=generator, device=generator.device)
    is_flipped = (chances < augmentation.flip_probability).to(batch.device).view(-1, 1, 1, 1)
    return torch.where(is_flipped, moved.flip(3), moved).unsqueeze(2)


def _draw_maps(
    num: int,
    shape: tuple[int, int],
    augmentation: SliceAugmentation,
    generator: torch.Generator,
) -> Float[torch.Tensor, "batch 2 3"]:
    """Maps from the varied picture to the stored one, in (width, height) order from -1 to 1."""

    def draw(limit: float, count: int = 1) -> torch.Tensor:
        """Numbers for each picture, between minus and plus the limit."""
        drawn = torch.rand(num, count, generator=generator, device=generator.device)
        return ((drawn * 2 - 1) * limit).cpu()

    angle = torch.deg2rad(draw(augmentation.rotation_deg))[:, 0]
    shift = draw(2 * augmentation.shift, 2)
    shear = torch.deg2rad(draw(augmentation.shear_deg))[:, 0]
    zoom = 1 + draw(augmentation.zoom, 2)
    height, width = shape
    turn = _matrices([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    one, zero = torch.ones(num), torch.zeros(num)
    slant = _matrices([[one, -shear.sin()], [zero, shear.cos()]])
    # Rows and columns in pixels; the shares of the shift become pixels of each.
    half = torch.tensor([height / 2, width / 2])
    linear = turn @ slant @ torch.diag_embed(zoom)
    offset = (turn @ (shift * half).unsqueeze(2)).squeeze(2)
    relative = linear * half.view(1, 1, 2) / half.view(1, 2, 1)
    swapped = relative.flip(1, 2)
    return torch.cat([swapped, (offset / half).flip(1).unsqueeze(2)], dim=2)


def _matrices(rows: list[list[torch.Tensor]]) -> Float[torch.Tensor, "batch 2 2"]:
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)

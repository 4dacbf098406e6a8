"""Vary a batch of network inputs and their lung masks together, on the batch's device.

The `recommended` set: small rotations about the body axis, scaling, shifts and left-right
mirroring in one interpolation, then brightness, contrast and noise. Everything is drawn from one
seeded generator, so a run can be repeated; the generator may be on another device than the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float

_COARSE = (5, 5, 5)
"""Control points of the elastic deformation along (depth, height, width)."""


@dataclass(frozen=True)
class Augmentation:
    """How much a batch is varied; every range is symmetric about "unchanged".

    Attributes:
        rotation_deg: Largest turn in the axial plane.
        scaling: Largest relative change of size, each axis on its own.
        shift: Largest shift, as a share of the input's half extent, each axis on its own.
        mirror_probability: How often left and right change sides.
        contrast: Largest relative change of contrast.
        brightness: Largest change of brightness, in units of the input's range.
        noise: Largest standard deviation of added noise, in units of the input's range.
        elastic: Largest local shift of a smooth random deformation, as a share of the half extent;
            0 leaves it out, and its time.
    """

    rotation_deg: float = 8.0
    scaling: float = 0.1
    shift: float = 0.06
    mirror_probability: float = 0.5
    contrast: float = 0.12
    brightness: float = 0.04
    noise: float = 0.03
    elastic: float = 0.0


def augment_batch(
    batch: Float[torch.Tensor, "batch channel depth height width"],
    lungs: Float[torch.Tensor, "batch 1 depth height width"],
    augmentation: Augmentation,
    generator: torch.Generator,
) -> tuple[
    Float[torch.Tensor, "batch channel depth height width"],
    Float[torch.Tensor, "batch 1 depth height width"],
]:
    """Return a varied copy of a batch and of its lung masks; what lies outside counts as zero.

    Values stay in [0, 1], or in the range of the example where that is wider (standardised inputs).
    """
    transforms = _draw_transforms(len(batch), tuple(batch.shape[2:]), augmentation, generator)
    if augmentation.elastic > 0:
        deformation = _draw_deformation(batch, augmentation.elastic, generator)
        moved, moved_lungs = _deform(batch, lungs, transforms.to(batch), deformation)
    else:
        moved, moved_lungs = _move(batch, lungs, transforms.to(batch))

    def draw(limit: float) -> torch.Tensor:
        """A number for each example, between minus and plus the limit."""
        return _uniform((len(batch), 1, 1, 1, 1), limit, generator).to(batch)

    low, high = (limit.view(-1, 1, 1, 1, 1) for limit in torch.aminmax(batch.flatten(1), dim=1))
    low, high = low.clamp(max=0), high.clamp(min=1)
    span = high - low
    # One field for all examples, each with its own strength: drawing it costs as much as the rest.
    noise = _draw_noise(batch[:1], generator)
    strength, contrast = draw(augmentation.noise).abs(), draw(augmentation.contrast)
    varied = torch.addcmul(draw(augmentation.brightness) * span, noise, strength * span)
    varied.addcmul_(moved, 1 + contrast).clamp_(low, high)
    # Background stays background: the recipes set it to exactly zero, and so must training.
    # Interpolation leaves rounding there, which is why the comparison is not with zero itself.
    return varied.mul_(moved.abs_() >= 1e-4), moved_lungs


def _move(
    batch: torch.Tensor, lungs: torch.Tensor, transforms: Float[torch.Tensor, "batch 3 4"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply maps that leave depth an axis of its own: first each slice, then along depth.

    The same values as one interpolation in 3D, several times as fast: the places and weights within
    a slice are worked out once for all slices.
    """
    depth, height, width = batch.shape[2:]
    plane = F.affine_grid(
        transforms[:, :2, [0, 1, 3]], [len(batch), 1, height, width], align_corners=False
    )
    middle = transforms[:, 2, 3, None] + transforms[:, 2, 2, None] * _centres(depth).to(batch)
    places = ((middle + 1) * depth - 1) / 2
    slices = torch.arange(depth).to(batch)
    linear = (1 - (places[:, :, None] - slices).abs()).clamp_(min=0)
    nearest = (places.round()[:, :, None] == slices).to(batch)
    return (
        _along_depth(_within_slices(batch, plane, "bilinear"), linear),
        _along_depth(_within_slices(lungs, plane, "nearest"), nearest),
    )


def _centres(num: int) -> Float[torch.Tensor, " voxel"]:
    """Voxel centres of an axis that reaches from -1 to 1."""
    return (torch.arange(num) * 2 + 1) / num - 1


def _within_slices(batch: torch.Tensor, plane: torch.Tensor, mode: str) -> torch.Tensor:
    """Interpolate every slice at the same places, (batch, height, width, 2)."""
    slices = batch.flatten(1, 2)
    return F.grid_sample(slices, plane, mode=mode, align_corners=False).view_as(batch)


def _along_depth(
    batch: torch.Tensor, weights: Float[torch.Tensor, "batch depth depth"]
) -> torch.Tensor:
    """New slices as weighted sums of the old ones."""
    return (weights[:, None] @ batch.flatten(3)).view_as(batch)


def _deform(
    batch: torch.Tensor,
    lungs: torch.Tensor,
    transforms: Float[torch.Tensor, "batch 3 4"],
    deformation: Float[torch.Tensor, "batch depth height width 3"],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply maps and a local deformation in one interpolation in 3D."""
    grid = F.affine_grid(transforms, [*batch.shape], align_corners=False) + deformation
    moved = F.grid_sample(batch, grid, mode="bilinear", align_corners=False)
    return moved, F.grid_sample(lungs, grid, mode="nearest", align_corners=False)


def _draw_noise(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard normal noise for every voxel, drawn where the batch is."""
    if generator.device.type != batch.device.type:
        seed = int(torch.randint(2**62, (1,), generator=generator))
        generator = torch.Generator(batch.device).manual_seed(seed)
    return torch.randn(batch.shape, generator=generator, device=generator.device).to(batch)


def _draw_deformation(
    batch: torch.Tensor, limit: float, generator: torch.Generator
) -> Float[torch.Tensor, "batch depth height width 3"]:
    """Shifts that change slowly from place to place: drawn on a coarse grid, then interpolated."""
    coarse = _uniform((len(batch), 3, *_COARSE), limit, generator).to(batch)
    size = [*batch.shape[2:]]
    smooth = F.interpolate(coarse, size=size, mode="trilinear", align_corners=True)
    return smooth.permute(0, 2, 3, 4, 1)


def _uniform(shape: tuple[int, ...], limit: float, generator: torch.Generator) -> torch.Tensor:
    """Numbers in [-limit, limit]."""
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    return (drawn * 2 - 1) * limit


def _draw_transforms(
    num: int,
    shape: tuple[int, ...],
    augmentation: Augmentation,
    generator: torch.Generator,
) -> Float[torch.Tensor, "batch 3 4"]:
    """One affine map per example, in the (width, height, depth) order of `affine_grid`."""
    _, height, width = shape
    angle = _uniform((num,), math.radians(augmentation.rotation_deg), generator)
    scale = 1 + _uniform((num, 3), augmentation.scaling, generator)
    mirror = (
        torch.rand(num, generator=generator, device=generator.device)
        < augmentation.mirror_probability
    )
    scale[:, 0] = torch.where(mirror, -scale[:, 0], scale[:, 0])
    matrix = torch.zeros(num, 3, 4, device=generator.device)
    # Coordinates are normalised per axis, so a rotation in the plane carries the aspect ratio.
    matrix[:, 0, 0] = angle.cos() * scale[:, 0]
    matrix[:, 0, 1] = -angle.sin() * scale[:, 1] * height / width
    matrix[:, 1, 0] = angle.sin() * scale[:, 0] * width / height
    matrix[:, 1, 1] = angle.cos() * scale[:, 1]
    matrix[:, 2, 2] = scale[:, 2]
    matrix[:, :, 3] = _uniform((num, 3), augmentation.shift, generator)
    return matrix

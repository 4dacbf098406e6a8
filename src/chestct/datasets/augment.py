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
    grid = F.affine_grid(transforms.to(batch), [*batch.shape], align_corners=False)
    if augmentation.elastic > 0:
        grid = grid + _draw_deformation(batch, augmentation.elastic, generator)
    moved = F.grid_sample(batch, grid, mode="bilinear", align_corners=False)
    moved_lungs = F.grid_sample(lungs, grid, mode="nearest", align_corners=False)

    def draw(limit: float) -> torch.Tensor:
        return _uniform((len(batch), 1, 1, 1, 1), limit, generator).to(batch)

    low = batch.amin(dim=(1, 2, 3, 4), keepdim=True).clamp(max=0)
    high = batch.amax(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1)
    noise = _draw_noise(batch, generator) * draw(augmentation.noise).abs()
    # Background stays background: the recipes set it to exactly zero, and so must training.
    # Interpolation leaves rounding there, which is why the comparison is not with zero itself.
    is_background = moved.abs() < 1e-4
    contrast, brightness = draw(augmentation.contrast), draw(augmentation.brightness)
    span = high - low
    varied = moved * (1 + contrast) + brightness * span + noise * span
    return varied.clamp(low, high).masked_fill(is_background, 0), moved_lungs


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

"""Vary a batch of network inputs and their lung masks together, on the batch's device.

The `recommended` set: small rotations about the body axis, scaling, shifts and left-right
mirroring in one interpolation, then brightness, contrast and noise. Everything is drawn from one
seeded generator, so a run can be repeated; the generator may be on another device than the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Final, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field

from chestct.errors import TrainingError
from chestct.lookup import fields_from, look_up

Features = Float[torch.Tensor, "batch channel depth height width"]
LungBatch = Float[torch.Tensor, "batch 1 depth height width"]

_BACKGROUND, _HALF = 1e-4, 0.5
_COARSE = (5, 5, 5)
"""Control points of the elastic deformation along (depth, height, width)."""


@dataclass(frozen=True)
class _Augmentation:
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
        blur: Largest standard deviation of a Gaussian blur, in voxels, each axis on its own: soft
            kernels and thick slices. Background takes no part in it; 0 leaves it out.
        cut_probability: How often the view ends inside the lungs, at one end of one axis.
    """

    rotation_deg: float = 8.0
    scaling: float = 0.1
    shift: float = 0.06
    mirror_probability: float = 0.5
    contrast: float = 0.12
    brightness: float = 0.04
    noise: float = 0.03
    elastic: float = 0.0
    blur: float = 0.0
    cut_probability: float = 0.0


def _augment_batch(
    batch: Features,
    lungs: LungBatch,
    augmentation: _Augmentation,
    generator: torch.Generator,
) -> tuple[Features, LungBatch]:
    """Return a varied copy of a batch and of its lung masks; what lies outside counts as zero.

    Values stay in [0, 1], or in the range of the example where that is wider (standardised inputs).
    """
    transforms = _draw_transforms(len(batch), tuple(batch.shape[2:]), augmentation, generator)
    if augmentation.elastic > 0:
        deformation = _draw_deformation(batch, augmentation.elastic, generator)
        moved, moved_lungs = _deform(batch, lungs, transforms.to(batch), deformation)
    else:
        moved, moved_lungs = _move(batch, lungs, transforms.to(batch))

    if augmentation.blur > 0:
        moved = _blur(moved, augmentation.blur, generator)
    if augmentation.cut_probability > 0:
        kept = _draw_view(moved_lungs, augmentation.cut_probability, generator)
        moved, moved_lungs = moved * kept, moved_lungs * kept

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
    return varied.mul_(moved.abs_() >= _BACKGROUND), moved_lungs


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
        _along(_within_slices(batch, plane, "bilinear"), linear, 2),
        _along(_within_slices(lungs, plane, "nearest"), nearest, 2),
    )


def _centres(num: int) -> Float[torch.Tensor, " voxel"]:
    """Voxel centres of an axis that reaches from -1 to 1."""
    return (torch.arange(num) * 2 + 1) / num - 1


def _within_slices(batch: torch.Tensor, plane: torch.Tensor, mode: str) -> torch.Tensor:
    """Interpolate every slice at the same places, (batch, height, width, 2)."""
    slices = batch.flatten(1, 2)
    return F.grid_sample(slices, plane, mode=mode, align_corners=False).view_as(batch)


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


def _blur(batch: torch.Tensor, limit: float, generator: torch.Generator) -> torch.Tensor:
    """Blur each example by its own widths; what is background stays so and counts for nothing."""
    inside = (batch.abs() >= _BACKGROUND).to(batch)
    values, weight = batch * inside, inside
    for axis in (2, 3, 4):
        width = _uniform((len(batch),), limit, generator).abs().clamp(min=1e-3).to(batch)
        apart = torch.arange(batch.shape[axis]).to(batch)
        apart = (apart[:, None] - apart[None]) / width[:, None, None]
        kernel = torch.exp(-0.5 * apart**2)
        values, weight = (_along(each, kernel, axis) for each in (values, weight))
    return values / weight.clamp(min=1e-6) * inside


def _along(
    batch: torch.Tensor, weights: Float[torch.Tensor, "batch new old"], axis: int
) -> torch.Tensor:
    """Weighted sums along one axis, the weights of each example its own."""
    moved = batch.movedim(axis, 2)
    return (weights[:, None] @ moved.flatten(3)).view_as(moved).movedim(2, axis)


def _draw_view(
    lungs: torch.Tensor, probability: float, generator: torch.Generator
) -> Float[torch.Tensor, "batch 1 depth height width"]:
    """1 where the view reaches: at times one end of one axis is beyond it, up to half of it."""
    kept = torch.ones_like(lungs)
    for number in range(len(lungs)):
        is_cut, share, axis, end = torch.rand(4, generator=generator, device=generator.device)
        if is_cut < probability:
            along = kept[number, 0].movedim(int(axis * 3), 0)
            size = int(0.5 * float(share) * along.shape[0])
            along[:size] *= float(end < _HALF)
            along[along.shape[0] - size :] *= float(end >= _HALF)
    return kept


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
    augmentation: _Augmentation,
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


_FIRST_TWO: Final = {"axial": (3, 4), "slice-row": (2, 3)}
"""Plane name to the two axes of a (batch, channel, depth, height, width) tensor that turn."""


@dataclass(frozen=True)
class _Turns:
    """How a batch is turned and flipped.

    Attributes:
        angles_deg: One of these is drawn for each scan, each as likely.
        plane: "axial" turns about the body axis. "slice-row" turns depth against height, as the
            MASERes notebooks do: SciPy's default axes, on arrays whose first axis is the slice.
        flip_probability: How often front and back change sides.

    Raises:
        TrainingError: There is no angle.
    """

    angles_deg: tuple[Annotated[float, Field(ge=-180, le=180)], ...]
    plane: Literal["axial", "slice-row"] = "axial"
    flip_probability: Annotated[float, Field(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        if not self.angles_deg:
            raise TrainingError("angles_deg must hold at least one angle.")


def _turn_batch(
    batch: Features,
    lungs: LungBatch,
    turns: _Turns,
    generator: torch.Generator,
) -> tuple[Features, LungBatch]:
    """Return a turned copy of a batch and of its lung masks, on the batch's device."""
    num, own = len(batch), generator.device
    chosen = torch.randint(len(turns.angles_deg), (num,), generator=generator, device=own).cpu()
    angles = torch.deg2rad(torch.tensor(turns.angles_deg, dtype=torch.float32)[chosen])
    is_flipped = torch.rand(num, generator=generator, device=own) < turns.flip_probability
    axes = _FIRST_TWO[turns.plane]
    return (
        _turned(batch, angles, is_flipped, axes, "bicubic"),
        _turned(lungs, angles, is_flipped, axes, "nearest"),
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


@dataclass(frozen=True)
class _SliceAugmentation:
    """How much slices are varied; every range is symmetric about "unchanged".

    Attributes:
        rotation_deg: Largest turn.
        shift: Largest shift, as a share of the picture's rows and of its columns.
        shear_deg: Largest shear.
        zoom: Largest relative change of size, rows and columns each on their own.
        flip_probability: How often left and right change sides.
        contrast: Largest relative change of contrast about the slice's mean.
        brightness: Largest change of brightness, in units of the range from black to white.
    """

    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 40.0
    shift: Annotated[float, Field(ge=0, le=1)] = 0.2
    shear_deg: Annotated[float, Field(ge=0, le=80)] = 0.2
    zoom: Annotated[float, Field(ge=0, le=0.9)] = 0.2
    flip_probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0


SLICE_AUGMENTATIONS: Final[dict[str, _SliceAugmentation | None]] = {
    "none": None,
    # Text: "0 up to 40" degrees in one passage, +-40 in another; the notebooks: +-40.
    "maseres_slices_published": _SliceAugmentation(),
    # The text calls it a shear "intensity" of 0.2: taken for radians, 11 degrees.
    "maseres_slices_paper": _SliceAugmentation(shear_deg=math.degrees(0.2)),
    # A patient does not lie turned by 40 degrees; the heart's side stays where it is.
    "recommended": _SliceAugmentation(
        rotation_deg=10.0, shift=0.06, shear_deg=0.0, zoom=0.1, flip_probability=0.0
    ),
}
"""Augmentation name to its numbers; None leaves slices as they are."""


def _vary_slices(
    batch: Features, augmentation: _SliceAugmentation, generator: torch.Generator
) -> Features:
    """Return a varied copy of a batch of slices, which are scans of depth one."""
    pictures = batch.squeeze(2)
    height, width = pictures.shape[2:]
    maps = _draw_maps(len(batch), (height, width), augmentation, generator)
    grid = F.affine_grid(maps.to(batch), [*pictures.shape], align_corners=False)
    moved = F.grid_sample(
        pictures, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    chances = torch.rand(len(batch), generator=generator, device=generator.device)
    is_flipped = (chances < augmentation.flip_probability).to(batch.device).view(-1, 1, 1, 1)
    moved = torch.where(is_flipped, moved.flip(3), moved)
    if augmentation.contrast > 0 or augmentation.brightness > 0:
        moved = _vary_greys(moved, augmentation, generator)
    return moved.unsqueeze(2)


def _vary_greys(
    pictures: torch.Tensor, augmentation: _SliceAugmentation, generator: torch.Generator
) -> torch.Tensor:
    """Another contrast and brightness for each slice, from black to white at most."""
    contrast, brightness = (
        _uniform((len(pictures), 1, 1, 1), limit, generator).to(pictures)
        for limit in (augmentation.contrast, augmentation.brightness)
    )
    mean = pictures.mean((1, 2, 3), keepdim=True)
    return ((pictures - mean) * (1 + contrast) + mean + brightness).clamp(0, 1)


def _draw_maps(
    num: int,
    shape: tuple[int, int],
    augmentation: _SliceAugmentation,
    generator: torch.Generator,
) -> Float[torch.Tensor, "batch 2 3"]:
    """Maps from the varied picture to the stored one, in (width, height) order from -1 to 1."""
    angle = torch.deg2rad(_uniform((num,), augmentation.rotation_deg, generator).cpu())
    shift = _uniform((num, 2), 2 * augmentation.shift, generator).cpu()
    shear = torch.deg2rad(_uniform((num,), augmentation.shear_deg, generator).cpu())
    zoom = 1 + _uniform((num, 2), augmentation.zoom, generator).cpu()
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


AnyAugmentation = _Augmentation | _Turns | _SliceAugmentation

_MASERES_DEG: Final = (-20.0, -10.0, -5.0, 0.0, 5.0, 10.0, 20.0)
_ROI_RESNET_DEG: Final = (-12.0, -9.0, -6.0, -3.0, 0.0, 3.0, 6.0, 9.0, 12.0)

AUGMENTATIONS: Final[dict[str, AnyAugmentation | None]] = {
    "none": None,
    "recommended": _Augmentation(),
    # The text gives no angles: those of the scripts. Its flip is called vertical, without a rate.
    "roi_resnet_paper": _Turns(_ROI_RESNET_DEG, flip_probability=0.5),
    # The script behind the test-set models turns and never flips.
    "roi_resnet_published": _Turns(_ROI_RESNET_DEG),
    "roi_resnet_published_folds": _Turns(_ROI_RESNET_DEG, flip_probability=0.4),
    # The text means a rotation of the patient; the notebooks turn slices against rows.
    "maseres_paper": _Turns(_MASERES_DEG),
    "maseres_published": _Turns(_MASERES_DEG, plane="slice-row"),
}
"""Augmentation name to its numbers; None leaves batches as they are."""


def find_augmentation(
    name: str,
    overrides: Mapping[str, object],
    table: Mapping[str, AnyAugmentation | None] = AUGMENTATIONS,
) -> AnyAugmentation | None:
    """An augmentation of a table, some of its fields changed; see `fields_from`.

    Raises:
        UnknownNameError: There is no such augmentation, or it has no such field.
        TrainingError: A value is impossible.
    """
    found = look_up(table, name, kind="augmentation")
    if found is None:
        if overrides:
            raise TrainingError("The augmentation 'none' has no fields to override.")
        return None
    return fields_from(
        type(found), {**asdict(found), **overrides}, what="Field", error=TrainingError
    )


def vary_batch(
    batch: Features,
    lungs: LungBatch,
    augmentation: AnyAugmentation,
    generator: torch.Generator,
) -> tuple[Features, LungBatch]:
    """Return a varied copy of a batch and of its lung masks."""
    if isinstance(augmentation, _SliceAugmentation):
        return _vary_slices(batch, augmentation, generator), lungs
    if isinstance(augmentation, _Turns):
        return _turn_batch(batch, lungs, augmentation, generator)
    return _augment_batch(batch, lungs, augmentation, generator)

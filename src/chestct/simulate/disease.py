"""Where in the lungs a place is, and disease as fields over them, before it is put into a scan.

A `LungMap` works from a lung mask alone, so that disease can be put into real scans as into
simulated ones. Lobes are approximate: fissures cannot be seen in a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64, Int8
from scipy import ndimage

from chestct.arrays import Mask, Shape, Spacing
from chestct.errors import GridError
from chestct.simulate.fields import AnyField, Field, Plane, smooth_noise
from chestct.simulate.trees import Segments, fill_tubes, join_segments
from chestct.volume import Grid

_STEP_MM = 3.0
_FEW_VOXELS = 200


@dataclass(frozen=True, eq=False)
class LungMap:
    """Coarse description of the lungs, canonical axes.

    Attributes:
        inside: The lungs.
        side: -1 in the right lung, 1 in the left, everywhere the nearer one's.
        corner: Index in the scan of the first coarse voxel; the map covers the lungs only.
        step: Voxels of the scan per coarse voxel, per axis.
        spacing_mm: Coarse spacing.
    """

    inside: Mask
    side: Int8[np.ndarray, "depth height width"]
    corner: Shape
    step: Shape
    spacing_mm: Spacing

    @cached_property
    def depth_mm(self) -> Field:
        """Distance from the lungs' surface."""
        return np.asarray(
            ndimage.distance_transform_edt(self.inside, sampling=self.spacing_mm), dtype=np.float32
        )

    def _fraction(self, axis: int) -> Field:
        """Position along an axis, 0 to 1 between the extremes of each lung."""
        along = np.arange(self.inside.shape[axis], dtype=np.float32)
        wanted = [-1 if a == axis else 1 for a in range(3)]
        result = np.zeros(self.inside.shape, dtype=np.float32)
        for side in (-1, 1):
            lung = self.inside & (self.side == side)
            others = tuple(a for a in range(3) if a != axis)
            places = np.flatnonzero(lung.any(axis=others))
            if places.size == 0:
                continue
            span = max(int(places[-1] - places[0]), 1)
            share = ((along - places[0]) / span).reshape(wanted)
            np.copyto(result, np.clip(share, 0, 1), where=self.side == side)
        return result

    def to_mm(self, places: Float64[np.ndarray, "places 3"]) -> Float64[np.ndarray, "places 3"]:
        """Coarse indices as mm from the scan's first voxel."""
        spacing = np.asarray(self.spacing_mm)
        corner = np.asarray(self.corner) / np.asarray(self.step)
        return np.asarray((places + corner) * spacing)

    @cached_property
    def height(self) -> Field:
        """0 at the lowest, 1 at the highest place of each lung."""
        return self._fraction(0)

    @cached_property
    def back(self) -> Field:
        """0 at the foremost, 1 at the rearmost place of each lung."""
        return self._fraction(1)

    def behind_mm(self) -> Field:
        """Lung between a place and the rear surface straight behind it, in mm."""
        lung = self.inside[:, ::-1].astype(np.float32)
        return np.asarray(np.cumsum(lung, axis=1)[:, ::-1] * self.spacing_mm[1], dtype=np.float32)

    def draw_lobes(self, rng: np.random.Generator) -> Int8[np.ndarray, "depth height width"]:
        """Lobes with plausible fissures, continued beyond the lungs' surface.

        1 right upper, 2 right middle, 3 right lower, 4 left upper, 5 left lower.
        """
        bent = rng.uniform(0.06, 0.16) + 0.05 * self.noise(rng, 70.0)
        bulge = rng.uniform(-0.12, 0.12) * np.sin(np.pi * self.back)
        is_lower = self.height < bent + bulge + rng.uniform(0.55, 0.68) * self.back
        flat = rng.uniform(0.46, 0.58) + 0.04 * self.noise(rng, 60.0)
        is_middle = ~is_lower & (self.height < flat) & (self.side < 0)
        right = np.where(is_lower, 3, np.where(is_middle, 2, 1))
        left = np.where(is_lower, 5, 4)
        return np.where(self.side < 0, right, left).astype(np.int8)

    def noise(self, rng: np.random.Generator, scale_mm: float) -> Field:
        """A smooth random field of unit standard deviation on the coarse grid."""
        return smooth_noise(rng, self.inside.shape, self.spacing_mm, scale_mm)

    def offsets_mm(
        self,
        centre: Float64[np.ndarray, " 3"],
        box: tuple[slice, slice, slice] = (slice(None),) * 3,
    ) -> tuple[AnyField, AnyField, AnyField]:
        """Distances along each axis from a coarse index, broadcastable; inside a box alone."""
        lines = []
        for axis, part in enumerate(box):
            line = np.arange(self.inside.shape[axis], dtype=np.float32) - np.float32(centre[axis])
            lines.append(line[part] * self.spacing_mm[axis])
        return lines[0][:, None, None], lines[1][None, :, None], lines[2][None, None]

    def box_around(
        self, centre: Float64[np.ndarray, " 3"], reach_mm: float
    ) -> tuple[slice, slice, slice]:
        """Slices that cover everything within `reach_mm` of a coarse index."""
        slices = []
        for size, middle, mm in zip(self.inside.shape, centre, self.spacing_mm, strict=True):
            reach = int(np.ceil(reach_mm / mm))
            low, high = max(int(middle) - reach, 0), min(int(middle) + reach + 1, size)
            slices.append(slice(low, high))
        return slices[0], slices[1], slices[2]

    def pick(
        self, rng: np.random.Generator, weight: Field, number: int
    ) -> Float64[np.ndarray, "places 3"]:
        """Draw coarse indices inside the lungs with the given relative odds."""
        odds = np.where(self.inside, weight, 0).astype(np.float64).ravel()
        total = odds.sum()
        if total <= 0:
            return np.zeros((0, 3))
        chosen = np.searchsorted(np.cumsum(odds), rng.random(number) * total)
        places = np.unravel_index(np.minimum(chosen, odds.size - 1), self.inside.shape)
        return np.stack(places, axis=1).astype(np.float64)

    def at_slice(self, field: Field, level: int, size: tuple[int, int]) -> Plane:
        """A coarse field in one slice of the scan, at its resolution of `size` (rows, columns)."""
        place = (level - self.corner[0]) / self.step[0]
        place = min(max(place, 0.0), field.shape[0] - 1.0)
        low = min(int(place), max(field.shape[0] - 2, 0))
        high = min(low + 1, field.shape[0] - 1)
        coarse = field[low] + np.float32(place - low) * (field[high] - field[low])
        rows = (1 / self.step[1], -self.corner[1] / self.step[1])
        columns = (1 / self.step[2], -self.corner[2] / self.step[2])
        return enlarge(coarse, rows, columns, size)


def enlarge(
    plane: Float32[np.ndarray, "_ _"],
    rows: tuple[float, float],
    columns: tuple[float, float],
    size: tuple[int, int],
) -> Plane:
    """Sample a plane linearly at rows `rows[0] * i + rows[1]`, columns alike."""
    matrix = np.array([[columns[0], 0.0, columns[1]], [0.0, rows[0], rows[1]]])
    return cv2.warpAffine(
        plane,
        matrix,
        (size[1], size[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def map_lungs(lungs: Mask, spacing_mm: Spacing) -> LungMap:
    """Describe a lung mask, on canonical axes, on a grid of about 3 mm.

    Raises:
        GridError: The mask holds hardly any lung.
    """
    step = tuple(max(round(_STEP_MM / mm), 1) for mm in spacing_mm)
    coarse = lungs[:: step[0], :: step[1], :: step[2]]
    if int(coarse.sum()) < _FEW_VOXELS:
        msg = "The lung mask is all but empty: disease needs lungs to be in."
        raise GridError(msg)
    box = _bounds(coarse)
    inside = np.ascontiguousarray(coarse[box])
    corner = tuple(int(s.start) * n for s, n in zip(box, step, strict=True))
    coarse_mm = tuple(n * mm for n, mm in zip(step, spacing_mm, strict=True))
    return LungMap(
        inside=inside,
        side=_sides(inside),
        corner=(corner[0], corner[1], corner[2]),
        step=(step[0], step[1], step[2]),
        spacing_mm=(coarse_mm[0], coarse_mm[1], coarse_mm[2]),
    )


def _bounds(mask: Mask) -> tuple[slice, slice, slice]:
    """The box around a mask with two voxels to spare, where the grid has them."""
    slices = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        used = np.flatnonzero(mask.any(axis=others))
        slices.append(slice(max(int(used[0]) - 2, 0), int(used[-1]) + 3))
    return slices[0], slices[1], slices[2]


def _sides(inside: Mask) -> Int8[np.ndarray, "depth height width"]:
    """Tell right from left: by connected parts where the lungs are apart, else by the middle."""
    columns = np.flatnonzero(inside.any(axis=(0, 1)))
    middle = (columns[0] + columns[-1]) / 2
    by_middle = np.where(np.arange(inside.shape[2]) < middle, -1, 1).astype(np.int8)
    # Half the resolution is plenty to tell left from right.
    apart = ndimage.binary_erosion(inside[::2, ::2, ::2])
    parts, count = ndimage.label(apart)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    large = [i + 1 for i in range(count) if sizes[i] > 0.12 * sizes.sum()]
    centres = [2 * float(ndimage.center_of_mass(parts == i)[2]) for i in large]
    if not (large and min(centres) < middle < max(centres)):
        return np.broadcast_to(by_middle, inside.shape).copy()
    table = np.zeros(count + 1, dtype=np.int8)
    for part, centre in zip(large, centres, strict=True):
        table[part] = -1 if centre < middle else 1
    known = table[parts]
    nearest = ndimage.distance_transform_edt(
        known == 0, return_distances=False, return_indices=True
    )
    sides = known[tuple(nearest)]
    for axis in range(3):
        sides = np.repeat(sides, 2, axis=axis).take(range(inside.shape[axis]), axis=axis)
    return np.asarray(sides, dtype=np.int8)


def relative_involvement(filling: Field, lungs: LungMap) -> float:
    """Share of the lungs in which more than a tenth of the air is replaced."""
    return float((filling > 0.1)[lungs.inside].mean())


_NO_SEGMENTS = join_segments([])


@dataclass(frozen=True, eq=False)
class Disease:
    """Filling of the lungs' air, 0 to 1, on the coarse grid of a `LungMap`.

    Attributes:
        haze: Ground glass.
        net: Additional filling of septa inside ground glass (crazy paving).
        dense: Consolidation.
        effusion: Depth in mm in fluid that has taken the lung's place; negative outside.
        buds: Centrilobular nodules and their stalks, mm from the scan's first voxel.
        bronchi: Airways that stay open inside consolidation.
        lost: Share of the lung's tissue that is gone (emphysema); negative where a shallow breath
            leaves more of it in the same space; None for no change anywhere.
    """

    haze: Field
    net: Field
    dense: Field
    effusion: Field
    buds: Segments = _NO_SEGMENTS
    bronchi: Segments = _NO_SEGMENTS
    lost: Field | None = None

    def tubes_on(self, grid: Grid) -> tuple[Field, Field] | None:
        """Nodules with filled bronchi, and hollow bronchi, on the scan's grid; None without any."""
        if not (len(self.buds) or len(self.bronchi)):
            return None
        filled = fill_tubes(self.buds, grid.shape, grid.spacing_mm)
        return 0.85 * filled, fill_tubes(self.bronchi, grid.shape, grid.spacing_mm)


def disease_of(lungs: LungMap, **given: Float[np.ndarray, "_ _ _"] | Segments) -> Disease:
    """Disease with the given fields of `Disease`, as float32; healthy in all others."""
    empty = np.zeros(lungs.inside.shape, dtype=np.float32)
    parts: dict[str, Any] = {"haze": empty, "net": empty, "dense": empty, "effusion": empty - 5.0}
    for name, part in given.items():
        parts[name] = part if isinstance(part, Segments) else part.astype(np.float32)
    return Disease(**parts)


def joined(first: Disease, second: Disease) -> Disease:
    """Both at once: what is denser wins, place by place; losses of tissue add up."""
    lost = [part.lost for part in (first, second) if part.lost is not None]
    return Disease(
        haze=np.maximum(first.haze, second.haze),
        net=np.maximum(first.net, second.net),
        dense=np.maximum(first.dense, second.dense),
        effusion=np.maximum(first.effusion, second.effusion),
        buds=join_segments([first.buds, second.buds]),
        bronchi=join_segments([first.bronchi, second.bronchi]),
        lost=np.sum(lost, axis=0) if lost else None,
    )


def smooth_step(values: Float[np.ndarray, "depth height width"]) -> Field:
    """0 below 0, 1 above 1, rounded in between."""
    share = np.clip(values, 0, 1)
    return np.asarray(share * share * (3 - 2 * share), dtype=np.float32)


def dependent_haze(
    lungs: LungMap, strength: float, reach_mm: float, rng: np.random.Generator
) -> Field:
    """Density that gravity alone makes: strongest at the rearmost pleura, gone over `reach_mm`."""
    behind = (1 - lungs.back) * lungs.inside.shape[1] * lungs.spacing_mm[1] * 0.4
    near = np.exp(-behind / reach_mm - lungs.depth_mm / (0.8 * reach_mm))
    uneven = np.clip(1 + 0.4 * lungs.noise(rng, 25.0), 0, 2)
    return np.asarray(strength * near * uneven, dtype=np.float32)

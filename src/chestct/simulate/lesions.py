"""Put disease into a scan, simulated or real, inside a given lung mask.

Disease is described as `filling`: the share of a place's air that fluid or cells replace. Ground
glass fills a fifth to a half, consolidation nearly all. Since only air is replaced, vessels stay
visible in ground glass and vanish in consolidation, as they do in patients; and since it is
added to the scan as it is, the scan's own noise stays on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Num, Shaped

from chestct.arrays import Mask, Spacing, Voxels
from chestct.errors import GridError
from chestct.labels import CAP, COVID19, NORMAL
from chestct.lookup import look_up
from chestct.simulate.airless import AIRLESS
from chestct.simulate.covid import draw_covid, draw_varied_covid
from chestct.simulate.disease import Disease, add_dependent_density, joined, no_disease
from chestct.simulate.fields import Field, Plane, smooth_noise
from chestct.simulate.lung_map import LungMap, enlarge, map_lungs, relative_involvement
from chestct.simulate.normal import draw_background, draw_normal
from chestct.simulate.pneumonia import draw_pneumonia, draw_varied_pneumonia
from chestct.volume import Volume, to_canonical, to_own_axes

PATTERNS: dict[str, Callable[[LungMap, np.random.Generator], Disease]] = {
    CAP: draw_pneumonia,
    COVID19: draw_covid,
    NORMAL: draw_normal,
}
"""How each pattern of disease is drawn."""

TISSUE_HU = 38.0
"""Attenuation of lung without any air."""
FLUID_HU = 8.0
"""Attenuation of a pleural effusion."""
LESION_FILLING = 0.09
"""Filling from which a voxel counts as lesion."""
_FINE_MM = 1.5
_LEAST_INVOLVED, _MOST_DRAWS = 0.01, 6

Voxels2D = Num[np.ndarray, "rows columns"]


@dataclass(frozen=True, eq=False)
class Diseased:
    """A scan with disease in it.

    Attributes:
        volume: The scan, same grid and type as before.
        lesions: Voxels of disease, inside the lung mask.
        effusion: Voxels of fluid around the lung, which took the place of lung.
    """

    volume: Volume
    lesions: Mask
    effusion: Mask


VARIED: dict[str, Callable[[LungMap, np.random.Generator], Disease]] = {
    CAP: draw_varied_pneumonia,
    COVID19: draw_varied_covid,
    NORMAL: lambda lungs, _: no_disease(lungs),
}
"""The same classes with more faces; what healthy lungs may show comes on top of each."""


def insert_lesions(
    volume: Volume,
    lungs: Mask,
    pattern: str,
    rng: np.random.Generator,
    *,
    varied: bool = False,
) -> tuple[Volume, Mask]:
    """Put disease of a pattern into a scan.

    Args:
        volume: Scan in HU, any axis-aligned orientation; it is not changed.
        lungs: Its lung mask, same grid.
        pattern: "COVID-19", "CAP" or "normal", or a name in `airless.AIRLESS`.
        rng: Where the randomness comes from.
        varied: Draw from `VARIED`: more faces of each disease, in lungs that may show whatever is
            no pneumonia (emphysema, bands, nodules, a shallow breath). From the same generator
            state that background is the same for each pattern.

    Returns:
        The scan with disease, and where it is. Fluid around the lung is not part of the mask.

    Raises:
        UnknownNameError: There is no such pattern.
        GridError: The mask does not fit the scan or is empty, or the scan is not in HU.
    """
    diseased = add_disease(volume, lungs, pattern, rng, varied=varied)
    return diseased.volume, diseased.lesions


def add_disease(
    volume: Volume,
    lungs: Mask,
    pattern: str,
    rng: np.random.Generator,
    *,
    varied: bool = False,
) -> Diseased:
    """Like `insert_lesions`, with the effusion apart."""
    draw = look_up({**(VARIED if varied else PATTERNS), **AIRLESS}, pattern, kind="pattern")
    if lungs.shape != volume.grid.shape:
        msg = f"A lung mask of {lungs.shape} does not fit a scan of {volume.grid.shape}."
        raise GridError(msg)
    if volume.unit != "HU":
        raise GridError("Disease can only be put into a scan in Hounsfield units.")
    scan = to_canonical(volume)
    mask = to_canonical(volume.with_voxels(lungs)).voxels
    lung_map = map_lungs(mask, scan.grid.spacing_mm)
    if varied:
        background = draw_background(lung_map, rng)
        disease = joined(background, _drawn_visibly(draw, lung_map, rng))
    else:
        disease = add_dependent_density(draw(lung_map, rng), lung_map, rng)
    voxels, filled, fluid = _blend(scan, mask, lung_map, disease, rng)
    return Diseased(
        volume.with_voxels(_turn_back(voxels, volume)),
        _turn_back(filled, volume),
        _turn_back(fluid, volume),
    )


def _drawn_visibly(
    draw: Callable[[LungMap, np.random.Generator], Disease],
    lungs: LungMap,
    rng: np.random.Generator,
) -> Disease:
    """Disease that can be seen: a hundredth of the lungs at least; healthy lungs as they are."""
    for _ in range(_MOST_DRAWS):
        disease = draw(lungs, rng)
        if relative_involvement(np.maximum(disease.haze, disease.dense), lungs) >= _LEAST_INVOLVED:
            break
    return disease


def _turn_back(voxels: Shaped[np.ndarray, "_ _ _"], volume: Volume) -> Shaped[np.ndarray, "_ _ _"]:
    """Canonical voxels on the volume's own axes."""
    return np.ascontiguousarray(to_own_axes(voxels, volume.grid))


@dataclass(frozen=True, eq=False)
class _Texture:
    """Fine random fields on a lattice of 1.5 mm, or near the voxels' size, around the lungs."""

    grain: Field
    septa: Field
    step_mm: Spacing
    scan_mm: Spacing
    corner_mm: Spacing

    def at_slice(self, field: Field, level: int, size: tuple[int, int]) -> Plane:
        """A coarse field at one slice of the scan, (rows, columns) of the given size."""
        place = (level * self.scan_mm[0] - self.corner_mm[0]) / self.step_mm[0]
        low = int(np.clip(place, 0, field.shape[0] - 2))
        coarse = field[low] + np.float32(place - low) * (field[low + 1] - field[low])
        rows = (self.scan_mm[1] / self.step_mm[1], -self.corner_mm[1] / self.step_mm[1])
        columns = (self.scan_mm[2] / self.step_mm[2], -self.corner_mm[2] / self.step_mm[2])
        return enlarge(coarse, rows, columns, size)


def _textures(scan: Volume, lungs: LungMap, rng: np.random.Generator) -> _Texture:
    """Draw the fine textures: grain of ground glass, and the net of thickened septa."""
    extent = [n * s for n, s in zip(lungs.inside.shape, lungs.spacing_mm, strict=True)]
    fine = [max(_FINE_MM, 0.6 * mm) for mm in scan.grid.spacing_mm]
    step = (fine[0], fine[1], fine[2])
    shape = tuple(int(mm / s) + 3 for mm, s in zip(extent, step, strict=True))
    size = (shape[0], shape[1], shape[2])
    grain = smooth_noise(rng, size, step, 4.0)
    cells = smooth_noise(rng, size, step, 7.0)
    septa = np.exp(-((cells / 0.17) ** 2))
    corner = lungs.to_mm(np.zeros((1, 3)))[0]
    return _Texture(
        grain,
        septa.astype(np.float32),
        step,
        scan.grid.spacing_mm,
        (float(corner[0]), float(corner[1]), float(corner[2])),
    )


def _blend(
    scan: Volume, mask: Mask, lungs: LungMap, disease: Disease, rng: np.random.Generator
) -> tuple[Voxels, Mask, Mask]:
    """Replace air slice by slice."""
    voxels = np.array(scan.voxels)
    filled = np.zeros(voxels.shape, dtype=bool)
    fluid = np.zeros(voxels.shape, dtype=bool)
    tubes = disease.tubes_on(scan.grid)
    texture = _textures(scan, lungs, rng)
    size = scan.grid.shape[1:]
    for level in np.flatnonzero(mask.any(axis=(1, 2))):
        share = _filling(disease, lungs, texture, int(level), size)
        if tubes is not None:
            share = np.maximum(share, tubes.filled[level])
            share = share * (1 - tubes.hollow[level])
        reach = _with_rim(mask[level], scan.voxels[level])
        share = np.where(reach, share, 0).astype(np.float32)
        wet = np.clip(lungs.at_slice(disease.effusion, int(level), size) / 1.5 + 0.5, 0, 1)
        wet = np.where(reach, wet, 0).astype(np.float32)
        plane, pixel_mm = scan.voxels[level], scan.grid.spacing_mm[1]
        if disease.lost is not None:
            gone = lungs.at_slice(disease.lost, int(level), size)
            gone = np.where(mask[level], gone, 0).astype(np.float32)
            plane = _lose_tissue(plane, gone, pixel_mm)
        new = _replace_air(plane, share, wet, pixel_mm)
        voxels[level] = _like(new, voxels.dtype)
        fluid[level] = (wet > 0.5) & mask[level]
        filled[level] = (share > LESION_FILLING) & mask[level] & ~fluid[level]
    return voxels, filled, fluid


def _with_rim(
    lung: Bool[np.ndarray, "rows columns"], plane: Voxels2D
) -> Bool[np.ndarray, "rows columns"]:
    """The lung and the half-filled voxels around it, which would else stay as a dark line."""
    wider = cv2.dilate(lung.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return np.asarray(lung | (wider & (plane < -200)))


def _filling(
    disease: Disease, lungs: LungMap, texture: _Texture, level: int, size: tuple[int, int]
) -> Plane:
    """Filling of one slice: ground glass with grain and septa, and consolidation."""
    grain = texture.at_slice(texture.grain, level, size)
    septa = texture.at_slice(texture.septa, level, size)
    # The grain moves edges before they are cut, so that they fray at the scale of lobules.
    haze = lungs.at_slice(disease.haze, level, size)
    edge = np.clip(haze * (1 + 0.18 * grain), 0, 1)
    net = lungs.at_slice(disease.net, level, size)
    glass = edge * (0.92 + 0.14 * grain) + edge * net * septa
    dense = lungs.at_slice(disease.dense, level, size)
    solid = dense * (1 + 0.3 * grain * np.clip(1.05 - dense, 0, 1))
    return np.asarray(np.clip(np.maximum(glass, solid), 0, 1), dtype=np.float32)


def _replace_air(plane: Voxels2D, share: Plane, wet: Plane, pixel_mm: float) -> Plane:
    """Fill air; noise stays, a little stronger, as in denser tissue."""
    before = plane.astype(np.float32)
    soft = cv2.GaussianBlur(before, (0, 0), max(0.8 / pixel_mm, 0.4))
    detail = before - soft
    # What stands out of the noise is vessels and walls: they drown where all air is gone.
    touched = np.abs(detail[share + wet > 0.02])
    usual = 1.4826 * float(np.median(touched)) if touched.size else 0.0
    noise = 1.25 * np.clip(detail, -2.2 * usual, 2.2 * usual)
    filled = soft + share * np.maximum(TISSUE_HU - soft, 0) + detail + share * (noise - detail)
    return np.asarray(filled + wet * (FLUID_HU + noise - filled), dtype=np.float32)


def _lose_tissue(plane: Voxels2D, gone: Plane, pixel_mm: float) -> Plane:
    """Make lung darker where tissue is lost, denser where there is more; vessels and noise stay."""
    before = plane.astype(np.float32)
    soft = cv2.GaussianBlur(before, (0, 0), max(1.2 / pixel_mm, 0.4))
    tissue = np.clip((-500 - soft) / 200, 0, 1) * np.maximum(soft + 985, 0)
    return np.asarray(before - gone * tissue, dtype=np.float32)


def _like(values: Plane, dtype: np.dtype[Any]) -> Voxels2D:
    """Values in the scan's own type."""
    if np.issubdtype(dtype, np.integer):
        return np.asarray(np.rint(values), dtype=dtype)
    return np.asarray(values, dtype=dtype)

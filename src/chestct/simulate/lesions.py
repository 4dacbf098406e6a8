"""Put disease into a scan, simulated or real, inside a given lung mask.

Disease is described as `filling`: the share of a place's air that fluid or cells replace. Ground
glass fills a fifth to a half, consolidation nearly all. Since only air is replaced, vessels stay
visible in ground glass and vanish in consolidation, as they do in patients; and since it is
added to the scan as it is, the scan's own noise stays on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Num, Shaped
from scipy import ndimage

from chestct.arrays import Mask, Voxels
from chestct.errors import GridError
from chestct.labels import CAP, COVID19, NORMAL
from chestct.lookup import look_up
from chestct.simulate.disease import (
    Disease,
    LungMap,
    beside_fluid,
    dependent_haze,
    disease_of,
    draw_covid,
    draw_pneumonia,
    draw_varied_covid,
    draw_varied_pneumonia,
    enlarge,
    joined,
    map_lungs,
    relative_involvement,
    smooth_step,
)
from chestct.simulate.fields import Field, Plane, smooth_noise
from chestct.simulate.trees import Segments
from chestct.volume import Volume, to_canonical, to_own_axes


def _draw_normal(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Healthy lungs; in one of four a thin plate of collapsed lung near the diaphragm."""
    disease = disease_of(lungs)
    if rng.random() > 0.25:
        return disease
    weight = np.exp(-lungs.height * 14) * (lungs.depth_mm < 14)
    places = lungs.pick(rng, weight.astype(np.float32), int(rng.integers(1, 3)))
    dense = disease.dense
    for place in places:
        z, y, x = lungs.offsets_mm(place)
        tilt = rng.normal(0, 0.25, 2)
        flat = np.abs(z + tilt[0] * y + tilt[1] * x) / rng.uniform(2.0, 3.2)
        wide = np.hypot(y, x) / rng.uniform(9, 22)
        plate = smooth_step(1.6 - np.maximum(flat, 1.2 * wide))
        dense = np.maximum(dense, rng.uniform(0.15, 0.4) * plate)
    return replace(disease, dense=dense.astype(np.float32))


def _draw_background(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """What a patient's lungs show beside pneumonia: density from gravity and breath, and findings.

    Each finding is drawn on its own; a third of the patients have none.
    """
    strength, reach = _gravity(rng)
    haze = dependent_haze(lungs, strength, reach, rng)
    background = replace(_draw_normal(lungs, rng), haze=haze, lost=_breath(lungs, rng))
    if rng.random() < 0.3:
        return background
    for odds, finding in _FINDINGS:
        if rng.random() < odds:
            background = joined(background, finding(lungs, rng))
    return background


def _gravity(rng: np.random.Generator) -> tuple[float, float]:
    """Strength and reach in mm of dependent density: a trace in most, plain to see in some."""
    if rng.random() < 0.3:
        return rng.uniform(0.12, 0.38), rng.uniform(6, 22)
    return rng.uniform(0.0, 0.13), rng.uniform(5, 16)


def _breath(lungs: LungMap, rng: np.random.Generator) -> Field | None:
    """Lung that holds less air throughout: a shallow breath, at times in a mosaic."""
    if rng.random() < 0.55:
        return None
    slope = 1 + rng.uniform(0, 0.7) * (lungs.back - 0.5)
    mosaic = rng.uniform(0, 0.35) if rng.random() < 0.4 else 0.0
    patches = 1 + mosaic * np.tanh(2 * lungs.noise(rng, 28.0))
    return np.asarray(-rng.uniform(0.1, 1.3) * slope * patches, dtype=np.float32)


def _emphysema(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Holes of destroyed lung, mostly in the upper lobes."""
    lean = rng.uniform(0, 2.0) * (lungs.height - 0.5)
    level = lungs.noise(rng, rng.uniform(6, 16)) + lean - rng.uniform(0.0, 1.5)
    lost = rng.uniform(0.4, 0.95) * smooth_step(level / 0.7)
    return disease_of(lungs, lost=lost)


def _bands(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Scars and collapsed plates: thin, dense, at any tilt, from the pleura inwards."""
    dense = np.zeros(lungs.inside.shape, dtype=np.float32)
    weight = np.exp(-lungs.height / 0.4) * np.exp(-lungs.depth_mm / 20)
    for place in lungs.pick(rng, weight.astype(np.float32), int(rng.integers(1, 7))):
        z, y, x = lungs.offsets_mm(place)
        normal = rng.normal(0, 1, 3) * (1.0, 0.5, 0.5)
        normal /= np.linalg.norm(normal)
        off = z * normal[0] + y * normal[1] + x * normal[2] + 1.5 * lungs.noise(rng, 40.0)
        wide = np.sqrt(z * z + y * y + x * x) / rng.uniform(12, 38)
        plate = smooth_step(1.7 - np.maximum(np.abs(off) / rng.uniform(1.5, 3), 1.3 * wide))
        dense = np.maximum(dense, rng.uniform(0.3, 0.9) * plate)
    return disease_of(lungs, dense=dense)


def _caps(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Scars of the apices: dense and a few mm thick."""
    thick = rng.uniform(3, 9) * np.clip(1 + 0.6 * lungs.noise(rng, 14.0), 0, 2)
    near = smooth_step((lungs.height - 0.9) / 0.06)
    dense = rng.uniform(0.5, 0.9) * smooth_step((thick - lungs.depth_mm) / 2 + 0.5) * near
    return disease_of(lungs, dense=dense)


def _nodules(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """One to eight round nodules of 3 to 12 mm, at times far more (metastases)."""
    number = int(rng.integers(1, 9)) if rng.random() < 0.85 else int(rng.integers(15, 60))
    places = lungs.pick(rng, (lungs.depth_mm > 2).astype(np.float32), number)
    centres = lungs.to_mm(places + rng.uniform(-0.5, 0.5, places.shape))
    radius = rng.uniform(1.5, 6.0, len(centres))
    half = np.stack([0.5 * radius, np.zeros_like(radius), np.zeros_like(radius)], axis=1)
    return disease_of(lungs, buds=Segments(centres - half, centres + half, radius))


def _mass(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """A solid mass of 2 to 8 cm, lobed or spiky, without air, with hazy lung about it."""
    place = lungs.pick(rng, (0.3 + lungs.height).astype(np.float32), 1)[0]
    z, y, x = lungs.offsets_mm(place)
    radius = rng.uniform(9, 38)
    spikes = rng.uniform(0.05, 0.22) * lungs.noise(rng, 8.0)
    level = 1 - np.sqrt(z * z + y * y + x * x) / radius + spikes + 0.12 * lungs.noise(rng, 25.0)
    dense = smooth_step(level / rng.uniform(0.1, 0.25))
    rim = rng.uniform(0, 0.4) * smooth_step((level + 0.3) / 0.45)
    return disease_of(lungs, dense=dense, haze=rim)


def _fibrosis(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """A fine net under the pleura of the bases, with hardly any ground glass."""
    near = np.exp(-lungs.depth_mm / rng.uniform(4, 10)) * np.exp(-lungs.height / 0.35)
    haze = rng.uniform(0.08, 0.16) * np.clip(1.4 * near, 0, 1)
    net = np.full(lungs.inside.shape, rng.uniform(0.8, 1.8), dtype=np.float32)
    return disease_of(lungs, haze=haze, net=net * (haze > 0.02))


def _fluid(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Effusion without pneumonia, on one side or both."""
    sides = ((-1,), (1,), (-1, 1))[int(rng.integers(3))]
    found = [beside_fluid(lungs, side, rng) for side in sides]
    return found[0] if len(found) == 1 else joined(found[0], found[1])


_FINDINGS: tuple[tuple[float, Callable[[LungMap, np.random.Generator], Disease]], ...] = (
    (0.25, _emphysema),
    (0.3, _bands),
    (0.2, _caps),
    (0.3, _nodules),
    (0.25, _mass),
    (0.08, _fibrosis),
    (0.1, _fluid),
)
"""Finding and how often it is drawn, where any is."""


_DRY = -5.0


def _draw_airless_lobe(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """One lobe without air, more often a lower one; now and then with fluid behind it."""
    lobes = lungs.draw_lobes(rng)
    present = [n for n in range(1, 6) if ((lobes == n) & lungs.inside).sum() > 40]
    odds = np.array([{3: 0.35, 5: 0.35}.get(n, 0.1) for n in present])
    lobe = lobes == int(rng.choice(present, p=odds / odds.sum()))
    disease = _solid(lungs, lobe, rng)
    if rng.random() < 0.4:
        side = int(np.sign(lungs.side[lobe].mean())) or 1
        fluid = _layer(lungs, rng.uniform(6, 30), rng)
        disease = replace(disease, effusion=np.where(lungs.side == side, fluid, _DRY))
    return disease


def _draw_airless_lung(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """One lung without any air, half of them beside a large effusion."""
    side = int(rng.choice([-1, 1]))
    disease = _solid(lungs, lungs.side == side, rng)
    if rng.random() < 0.5:
        fluid = _layer(lungs, rng.uniform(20, 70), rng)
        disease = replace(disease, effusion=np.where(lungs.side == side, fluid, _DRY))
    return disease


def _draw_posterior(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Confluent consolidation along the back wall of one or both lungs, hazy in front of it."""
    behind = _behind_mm(lungs)
    thick = rng.uniform(15, 60) * (1 + 0.35 * lungs.noise(rng, 45.0))
    thick = thick * np.clip(1.5 - lungs.height / rng.uniform(0.5, 1.3), 0, 1)
    thick = np.where(lungs.side == rng.choice([-1, 1]), thick * rng.choice([0, 0.4, 1]), thick)
    inward = thick - behind + 4.0 * lungs.noise(rng, 16.0)
    dense = rng.uniform(0.8, 1.0) * smooth_step(inward / rng.uniform(4, 16))
    haze = rng.uniform(0.1, 0.5) * smooth_step(inward / 30.0 + 1.0) * (thick > 0)
    disease = disease_of(lungs, dense=dense, haze=haze)
    if rng.random() < 0.4:
        disease = replace(disease, effusion=_layer(lungs, rng.uniform(4, 20), rng))
    return disease


def _draw_effusion(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Fluid layered along the back of one or both lungs, with airless lung in front of it."""
    deepest = rng.uniform(15, 85)
    fluid = _layer(lungs, deepest, rng)
    if rng.random() < 0.6:
        fluid = np.where(lungs.side == rng.choice([-1, 1]), fluid, np.float32(_DRY))
    rim = rng.uniform(3, 0.5 * deepest + 10)
    near = ndimage.distance_transform_edt(fluid < 0, sampling=lungs.spacing_mm)
    dense = smooth_step((rim - near + 2.0 * lungs.noise(rng, 18.0)) / 6.0)
    dense = np.asarray(dense * rng.uniform(0.7, 1.0), dtype=np.float32)
    return disease_of(lungs, dense=dense, effusion=fluid)


def _draw_mass(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """One to three lumps, lobed, anywhere from hilum to pleura; large ones may be hollow."""
    dense = np.zeros(lungs.inside.shape, dtype=np.float32)
    lumps = 0.25 * lungs.noise(rng, 20.0) + 0.1 * lungs.noise(rng, 8.0)
    for place in lungs.pick(rng, np.ones_like(dense), int(rng.integers(1, 4))):
        z, y, x = lungs.offsets_mm(place)
        radius = rng.uniform(8, 45)
        level = 1 - np.sqrt(z * z + y * y + x * x) / radius + lumps
        lump = smooth_step(level * radius / 3.0)
        if radius > 20 and rng.random() < 0.3:
            lump = lump * (1 - smooth_step((level - 0.5) * radius / 3.0))
        np.maximum(dense, lump, out=dense)
    return disease_of(lungs, dense=dense)


AIRLESS: dict[str, Callable[[LungMap, np.random.Generator], Disease]] = {
    "airless lobe": _draw_airless_lobe,
    "airless lung": _draw_airless_lung,
    "posterior consolidation": _draw_posterior,
    "effusion": _draw_effusion,
    "mass": _draw_mass,
}
"""How each pattern that hides lungs is drawn."""


def _solid(lungs: LungMap, part: Mask, rng: np.random.Generator) -> Disease:
    """A part of the lungs without air; a trace of air may be left in islands."""
    left = np.clip(lungs.noise(rng, 25.0) - rng.uniform(0.8, 4.0), 0, 1)
    dense = rng.uniform(0.95, 1.0) * (1 - left)
    dense = ndimage.gaussian_filter(np.where(part, dense, 0), 0.5)
    return disease_of(lungs, dense=dense)


def _behind_mm(lungs: LungMap) -> Field:
    """Distance in mm forwards from the rearmost lung of the same column."""
    rows = np.arange(lungs.inside.shape[1], dtype=np.float32)[None, :, None]
    last = np.where(lungs.inside, rows, -1).max(axis=1, keepdims=True)
    return np.asarray((last - rows) * lungs.spacing_mm[1], dtype=np.float32)


def _layer(lungs: LungMap, deepest_mm: float, rng: np.random.Generator) -> Field:
    """Depth in mm in fluid that lies along the back of both lungs, thinner towards the top."""
    reach = rng.uniform(0.4, 1.1)
    deep = deepest_mm * np.sqrt(np.clip(1 - lungs.height / reach, 0, 1))
    fluid = deep - np.minimum(_behind_mm(lungs), 1.6 * lungs.depth_mm + 0.3 * deepest_mm)
    fluid = fluid + 1.5 * lungs.noise(rng, 30.0)
    return np.where(deep > 1.0, np.maximum(fluid, -4.9), _DRY).astype(np.float32)


PATTERNS: dict[str, Callable[[LungMap, np.random.Generator], Disease]] = {
    CAP: draw_pneumonia,
    COVID19: draw_covid,
    NORMAL: _draw_normal,
}
"""How each pattern of disease is drawn."""

_TISSUE_HU = 38.0
"""Attenuation of lung without any air."""
_FLUID_HU = 8.0
"""Attenuation of a pleural effusion."""
_LESION_FILLING = 0.09
"""Filling from which a voxel counts as lesion."""
_FINE_MM = 1.5
_LEAST_INVOLVED, _MOST_DRAWS = 0.01, 6

_Voxels2D = Num[np.ndarray, "rows columns"]


@dataclass(frozen=True, eq=False)
class _Diseased:
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
    NORMAL: lambda lungs, _: disease_of(lungs),
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
        pattern: "COVID-19", "CAP" or "normal", or a name in `AIRLESS`.
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
) -> _Diseased:
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
        background = _draw_background(lung_map, rng)
        disease = joined(background, _drawn_visibly(draw, lung_map, rng))
    else:
        disease = _with_dependent_density(draw(lung_map, rng), lung_map, rng)
    voxels, filled, fluid = _blend(scan, mask, lung_map, disease, rng)
    return _Diseased(
        volume.with_voxels(_turn_back(voxels, volume)),
        _turn_back(filled, volume),
        _turn_back(fluid, volume),
    )


def _with_dependent_density(disease: Disease, lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Add what gravity alone does to the rearmost lung: every patient has some."""
    strength = rng.uniform(0.0, 0.13) * rng.uniform(0.2, 1.0)
    reach = rng.uniform(5, 16)
    haze = dependent_haze(lungs, strength, reach, rng)
    return replace(disease, haze=np.maximum(disease.haze, haze))


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


def _textures(
    scan: Volume, lungs: LungMap, rng: np.random.Generator
) -> Callable[[int], tuple[Plane, Plane]]:
    """What gives grain of ground glass and net of thickened septa at a slice of the scan.

    Both are random fields on a lattice of 1.5 mm, or near the voxels' size, around the lungs.
    """
    scan_mm = scan.grid.spacing_mm
    extent = [n * s for n, s in zip(lungs.inside.shape, lungs.spacing_mm, strict=True)]
    fine = [max(_FINE_MM, 0.6 * mm) for mm in scan_mm]
    step = (fine[0], fine[1], fine[2])
    shape = tuple(int(mm / s) + 3 for mm, s in zip(extent, step, strict=True))
    size = (shape[0], shape[1], shape[2])
    grain = smooth_noise(rng, size, step, 4.0)
    cells = smooth_noise(rng, size, step, 7.0)
    septa = np.exp(-((cells / 0.17) ** 2)).astype(np.float32)
    corner = lungs.to_mm(np.zeros((1, 3)))[0].tolist()
    rows, columns = ((scan_mm[a] / step[a], -corner[a] / step[a]) for a in (1, 2))

    def at_slice(level: int) -> tuple[Plane, Plane]:
        """Grain and septa at the scan's resolution."""
        place = (level * scan_mm[0] - corner[0]) / step[0]
        low = int(np.clip(place, 0, size[0] - 2))
        share = np.float32(place - low)
        coarse = [each[low] + share * (each[low + 1] - each[low]) for each in (grain, septa)]
        first, second = (enlarge(each, rows, columns, scan.grid.shape[1:]) for each in coarse)
        return first, second

    return at_slice


def _blend(
    scan: Volume, mask: Mask, lungs: LungMap, disease: Disease, rng: np.random.Generator
) -> tuple[Voxels, Mask, Mask]:
    """Replace air slice by slice."""
    voxels = np.array(scan.voxels)
    filled = np.zeros(voxels.shape, dtype=bool)
    fluid = np.zeros(voxels.shape, dtype=bool)
    tubes = disease.tubes_on(scan.grid)
    textures = _textures(scan, lungs, rng)
    size = scan.grid.shape[1:]
    for level in np.flatnonzero(mask.any(axis=(1, 2))):
        share = _filling(disease, lungs, textures(int(level)), int(level), size)
        if tubes is not None:
            filled_tubes, hollow = tubes
            share = np.maximum(share, filled_tubes[level])
            share = share * (1 - hollow[level])
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
        filled[level] = (share > _LESION_FILLING) & mask[level] & ~fluid[level]
    return voxels, filled, fluid


def _with_rim(
    lung: Bool[np.ndarray, "rows columns"], plane: _Voxels2D
) -> Bool[np.ndarray, "rows columns"]:
    """The lung and the half-filled voxels around it, which would else stay as a dark line."""
    wider = cv2.dilate(lung.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return np.asarray(lung | (wider & (plane < -200)))


def _filling(
    disease: Disease,
    lungs: LungMap,
    texture: tuple[Plane, Plane],
    level: int,
    size: tuple[int, int],
) -> Plane:
    """Filling of one slice: ground glass with grain and septa, and consolidation."""
    grain, septa = texture
    # The grain moves edges before they are cut, so that they fray at the scale of lobules.
    haze = lungs.at_slice(disease.haze, level, size)
    edge = np.clip(haze * (1 + 0.18 * grain), 0, 1)
    net = lungs.at_slice(disease.net, level, size)
    glass = edge * (0.92 + 0.14 * grain) + edge * net * septa
    dense = lungs.at_slice(disease.dense, level, size)
    solid = dense * (1 + 0.3 * grain * np.clip(1.05 - dense, 0, 1))
    return np.asarray(np.clip(np.maximum(glass, solid), 0, 1), dtype=np.float32)


def _replace_air(plane: _Voxels2D, share: Plane, wet: Plane, pixel_mm: float) -> Plane:
    """Fill air; noise stays, a little stronger, as in denser tissue."""
    before = plane.astype(np.float32)
    soft = cv2.GaussianBlur(before, (0, 0), max(0.8 / pixel_mm, 0.4))
    detail = before - soft
    # What stands out of the noise is vessels and walls: they drown where all air is gone.
    touched = np.abs(detail[share + wet > 0.02])
    usual = 1.4826 * float(np.median(touched)) if touched.size else 0.0
    noise = 1.25 * np.clip(detail, -2.2 * usual, 2.2 * usual)
    filled = soft + share * np.maximum(_TISSUE_HU - soft, 0) + detail + share * (noise - detail)
    return np.asarray(filled + wet * (_FLUID_HU + noise - filled), dtype=np.float32)


def _lose_tissue(plane: _Voxels2D, gone: Plane, pixel_mm: float) -> Plane:
    """Make lung darker where tissue is lost, denser where there is more; vessels and noise stay."""
    before = plane.astype(np.float32)
    soft = cv2.GaussianBlur(before, (0, 0), max(1.2 / pixel_mm, 0.4))
    tissue = np.clip((-500 - soft) / 200, 0, 1) * np.maximum(soft + 985, 0)
    return np.asarray(before - gone * tissue, dtype=np.float32)


def _like(values: Plane, dtype: np.dtype[Any]) -> _Voxels2D:
    """Values in the scan's own type."""
    if np.issubdtype(dtype, np.integer):
        return np.asarray(np.rint(values), dtype=dtype)
    return np.asarray(values, dtype=dtype)

"""Community-acquired pneumonia: consolidation of a lobe or segments, usually on one side."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int8
from scipy import ndimage

from chestct.arrays import Mask
from chestct.simulate.disease import Disease, joined, no_disease, smooth_step
from chestct.simulate.fields import Field
from chestct.simulate.lung_map import LungMap
from chestct.simulate.tubes import Segments, join_segments
from chestct.simulate.vessels import grow_tree

_LOBE_ODDS = {1: 0.2, 2: 0.15, 3: 0.3, 4: 0.12, 5: 0.23}


@dataclass(frozen=True, eq=False)
class _Region:
    """The diseased part of the lungs on the coarse grid.

    Attributes:
        lobe: The lobe it lies in.
        level: Above 0 inside, in units of the softness of its edge.
        is_lobar: The whole of it is consolidated; otherwise patchy.
    """

    lobe: Mask
    level: Field
    is_lobar: bool


def draw_pneumonia(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Draw one patient's pneumonia: lobar consolidation or bronchopneumonia."""
    disease = no_disease(lungs)
    haze, dense, effusion = disease.haze, disease.dense, disease.effusion
    buds: list[Segments] = []
    bronchi: list[Segments] = []
    map_of_lobes = lungs.draw_lobes(rng)
    lobes = _draw_lobes(map_of_lobes[lungs.inside], rng)
    for lobe in lobes:
        region = _draw_region(lungs, map_of_lobes == lobe, rng)
        solid = _consolidation(lungs, region, rng)
        dense = np.maximum(dense, solid)
        rim = smooth_step(region.level / 1.6 + 0.75) * float(rng.uniform(0.05, 0.32))
        haze = np.maximum(haze, rim)
        bronchi.append(open_bronchi(lungs, solid, rng))
        if rng.random() < (0.45 if region.is_lobar else 0.9):
            buds.append(_buds(lungs, region, rng))
    if rng.random() < 0.35:
        side = -1 if lobes[0] < 4 else 1
        effusion = draw_effusion(lungs, side, rng)
    return replace(
        disease,
        haze=haze.astype(np.float32),
        dense=dense.astype(np.float32),
        effusion=effusion,
        buds=join_segments(buds),
        bronchi=join_segments(bronchi),
    )


def _draw_lobes(map_of_lobes: Int8[np.ndarray, " voxels"], rng: np.random.Generator) -> list[int]:
    """One lobe, at times two of one lung, seldom one of each lung."""
    sizes = np.bincount(map_of_lobes, minlength=6)
    present = [lobe for lobe in _LOBE_ODDS if sizes[lobe] > 40]
    odds = np.array([_LOBE_ODDS[lobe] for lobe in present])
    first = int(rng.choice(present, p=odds / odds.sum()))
    kind = rng.random()
    if kind < 0.62:
        return [first]
    on_side = {1: (1, 2, 3), 2: (1, 2, 3), 3: (1, 2, 3), 4: (4, 5), 5: (4, 5)}[first]
    is_wanted = [lobe != first and (lobe in on_side) == (kind < 0.85) for lobe in present]
    others = [lobe for lobe, wanted in zip(present, is_wanted, strict=True) if wanted]
    return [first, int(rng.choice(others))] if others else [first]


def _draw_region(lungs: LungMap, inside: Mask, rng: np.random.Generator) -> _Region:
    """A segment or more of a lobe: sharp at the fissure, frayed inside the lobe."""
    seeds = lungs.pick(rng, inside.astype(np.float32), 1)[0]
    z, y, x = lungs.offsets_mm(seeds)
    volume_ml = float((inside & lungs.inside).sum()) * float(np.prod(lungs.spacing_mm)) / 1000
    whole_mm = (volume_ml * 1000 * 0.75 / np.pi) ** (1 / 3)
    reach = whole_mm * float(rng.uniform(0.5, 1.6))
    apart = np.sqrt(z * z + y * y + x * x)
    level = (1 - apart / reach) * 3.5 + 0.6 * lungs.noise(rng, 26.0) + 0.25 * lungs.noise(rng, 9.0)
    level = np.where(inside, level, -4.0)
    return _Region(inside, level.astype(np.float32), bool(rng.random() < 0.6))


def _consolidation(lungs: LungMap, region: _Region, rng: np.random.Generator) -> Field:
    """Solid in lobar pneumonia, islands in bronchopneumonia."""
    level = region.level
    if not region.is_lobar:
        islands = lungs.noise(rng, float(rng.uniform(9, 18))) - float(rng.uniform(-0.2, 0.5))
        level = np.minimum(level, 2.4 * islands)
    filling = float(rng.uniform(0.9, 1.0)) if region.is_lobar else float(rng.uniform(0.72, 0.98))
    solid = filling * smooth_step(level / float(rng.uniform(0.25, 0.7)))
    # Half a voxel of blur takes the steps off the fissure.
    solid = ndimage.gaussian_filter(solid, 0.5) * region.lobe
    return np.asarray(solid, dtype=np.float32)


def _hilum(lungs: LungMap, side: int) -> Float64[np.ndarray, " 3"]:
    """Coarse index near a lung's hilum: half way up, at the mediastinal surface."""
    lung = lungs.inside & (lungs.side == side)
    near = lung & (np.abs(lungs.height - 0.5) < 0.08) & (np.abs(lungs.back - 0.55) < 0.12)
    places = np.argwhere(near if near.any() else lung)
    medial = places[:, 2].max() if side < 0 else places[:, 2].min()
    return np.asarray(places[np.abs(places[:, 2] - medial) <= 1].mean(axis=0), dtype=np.float64)


def open_bronchi(lungs: LungMap, solid: Field, rng: np.random.Generator) -> Segments:
    """Branching airways from the hilum that hold air inside the consolidation."""
    number = int(rng.integers(8, 40))
    ends = lungs.pick(rng, (solid > 0.5).astype(np.float32), number)
    if len(ends) == 0 or rng.random() < 0.15:
        return join_segments([])
    side = int(np.sign(lungs.side[tuple(ends[0].astype(int))]))
    root = lungs.to_mm(_hilum(lungs, side)[None])[0]
    ends = lungs.to_mm(ends)
    towards = ends.mean(axis=0) - root
    trunk = np.stack([root, root + 0.15 * towards, root + 0.3 * towards])
    tree = grow_tree(trunk[:, ::-1].copy(), ends[:, ::-1].copy(), rng)
    return tree.segments(float(rng.uniform(0.55, 0.85)), 2.8)


def _buds(lungs: LungMap, region: _Region, rng: np.random.Generator) -> Segments:
    """Centrilobular nodules, each with a stalk or two, around the consolidation."""
    near = np.exp(-(np.clip(-region.level, 0, None) ** 2) / 0.6) * (lungs.depth_mm > 4)
    number = int(rng.integers(30, 180))
    places = lungs.pick(rng, (near * region.lobe).astype(np.float32), number)
    if len(places) == 0:
        return join_segments([])
    centres = lungs.to_mm(places + rng.uniform(-0.5, 0.5, places.shape))
    radius = rng.uniform(1.2, 2.9, len(centres))
    half = rng.normal(size=centres.shape)
    half *= (0.5 * radius / np.linalg.norm(half, axis=1))[:, None]
    stalk = rng.normal(size=centres.shape)
    stalk *= (rng.uniform(4, 9, len(centres)) / np.linalg.norm(stalk, axis=1))[:, None]
    has_stalk = rng.random(len(centres)) < 0.7
    bodies = Segments(centres - half, centres + half, radius)
    stalks = Segments(centres, centres + stalk, rng.uniform(0.6, 1.0, len(centres)))
    return join_segments([bodies, stalks.only(has_stalk)])


def draw_effusion(lungs: LungMap, side: int, rng: np.random.Generator) -> Field:
    """A crescent of fluid between lung and chest wall, deepest behind and below."""
    deepest = float(rng.uniform(8, 34))
    behind = np.clip((lungs.back - float(rng.uniform(0.45, 0.7))) / 0.4, 0, 1)
    below = np.clip((float(rng.uniform(0.35, 0.65)) - lungs.height) / 0.35, 0, 1)
    level = deepest * behind * np.sqrt(below) - lungs.depth_mm
    level = level + 0.8 * lungs.noise(rng, 20.0)
    is_there = (lungs.side == side) & (behind > 0) & (below > 0)
    return np.where(is_there, level, -5.0).astype(np.float32)


def draw_varied_pneumonia(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """One patient's pneumonia with any of its faces: lobes, foci along bronchi, one round focus.

    A third have fluid beside the lung, with collapsed lung before it.
    """
    faces = (draw_pneumonia, _foci_along_bronchi, _round_focus)
    face = faces[int(rng.choice(3, p=(0.6, 0.28, 0.12)))]
    disease = face(lungs, rng)
    if rng.random() < 0.35:
        ill = disease.dense * lungs.inside
        side = -1 if (ill * (lungs.side < 0)).sum() > 0.5 * ill.sum() else 1
        disease = joined(disease, beside_fluid(lungs, side, rng))
    return disease


def beside_fluid(lungs: LungMap, side: int, rng: np.random.Generator) -> Disease:
    """A pleural effusion with the collapsed lung that it presses on."""
    effusion = draw_effusion(lungs, side, rng)
    collapsed = np.exp(-np.abs(effusion + 3.0) / float(rng.uniform(2, 6)))
    wet = ndimage.maximum_filter(effusion, size=(3, 5, 5)) > 0
    dense = float(rng.uniform(0.5, 0.95)) * collapsed * wet
    return replace(no_disease(lungs), effusion=effusion, dense=dense.astype(np.float32))


def _foci_along_bronchi(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Bronchopneumonia: many small foci and buds about the bronchi of one to three lobes."""
    lobes = lungs.draw_lobes(rng)
    first = _draw_lobes(lobes[lungs.inside], rng)
    chosen = set(first) | ({int(rng.integers(1, 6))} if rng.random() < 0.35 else set())
    dense = np.zeros(lungs.inside.shape, dtype=np.float32)
    haze, buds = dense.copy(), []
    size = float(rng.uniform(8, 20))
    field = lungs.noise(rng, size) + 0.4 * lungs.noise(rng, 7.0)
    for lobe in sorted(chosen):
        region = _draw_region(lungs, lobes == lobe, rng)
        islands = np.minimum(field - float(rng.uniform(0.0, 0.9)), 0.7 * region.level + 0.6)
        part = float(rng.uniform(0.6, 1.0)) * smooth_step(islands / float(rng.uniform(0.4, 0.9)))
        dense = np.maximum(dense, part * region.lobe)
        about = float(rng.uniform(0.05, 0.35)) * smooth_step((islands + 0.5) / 0.8)
        haze = np.maximum(haze, about * region.lobe)
        buds += [_buds(lungs, region, rng) for _ in range(int(rng.integers(1, 4)))]
    return replace(
        no_disease(lungs),
        haze=haze.astype(np.float32),
        dense=dense.astype(np.float32),
        buds=join_segments(buds),
        bronchi=open_bronchi(lungs, dense, rng),
    )


def _round_focus(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """One dense focus of 2 to 7 cm on the pleura, with a frayed edge and a little haze."""
    weight = np.exp(-lungs.depth_mm / 15) * (0.2 + lungs.back) * (1.3 - lungs.height)
    place = lungs.pick(rng, weight.astype(np.float32), 1)[0]
    z, y, x = lungs.offsets_mm(place)
    radius = float(rng.uniform(10, 36))
    apart = np.sqrt((z * rng.uniform(0.8, 1.3)) ** 2 + y * y + x * x)
    level = 1 - apart / radius + 0.16 * lungs.noise(rng, 22.0) + 0.1 * lungs.noise(rng, 8.0)
    level = np.where(lungs.side == lungs.side[tuple(place.astype(int))], level, -2.0)
    dense = float(rng.uniform(0.85, 1.0)) * smooth_step(level / float(rng.uniform(0.12, 0.35)))
    haze = float(rng.uniform(0.1, 0.35)) * smooth_step((level + 0.35) / 0.5)
    return replace(
        no_disease(lungs),
        haze=haze.astype(np.float32),
        dense=dense.astype(np.float32),
        bronchi=open_bronchi(lungs, dense, rng),
    )

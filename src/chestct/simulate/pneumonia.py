"""The two pneumonias, drawn as fields over the lungs.

Community-acquired pneumonia consolidates a lobe or segments, usually on one side. COVID-19 makes
patches of ground glass under the pleura, in both lungs, low and behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from jaxtyping import Float64, Int8
from scipy import ndimage

from chestct.arrays import Mask
from chestct.simulate.disease import (
    Disease,
    LungMap,
    disease_of,
    joined,
    relative_involvement,
    smooth_step,
)
from chestct.simulate.fields import AnyField, Field
from chestct.simulate.trees import Segments, grow_tree, join_segments

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
    healthy = disease_of(lungs)
    haze, dense, effusion = healthy.haze, healthy.dense, healthy.effusion
    buds: list[Segments] = []
    bronchi: list[Segments] = []
    map_of_lobes = lungs.draw_lobes(rng)
    lobes = _draw_lobes(map_of_lobes[lungs.inside], rng)
    for lobe in lobes:
        region = _draw_region(lungs, map_of_lobes == lobe, rng)
        solid = _consolidation(lungs, region, rng)
        dense = np.maximum(dense, solid)
        rim = smooth_step(region.level / 1.6 + 0.75) * rng.uniform(0.05, 0.32)
        haze = np.maximum(haze, rim)
        bronchi.append(_open_bronchi(lungs, solid, rng))
        if rng.random() < (0.45 if region.is_lobar else 0.9):
            buds.append(_buds(lungs, region, rng))
    if rng.random() < 0.35:
        side = -1 if lobes[0] < 4 else 1
        effusion = _draw_effusion(lungs, side, rng)
    return Disease(haze, healthy.net, dense, effusion, join_segments(buds), join_segments(bronchi))


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
    reach = whole_mm * rng.uniform(0.5, 1.6)
    apart = np.sqrt(z * z + y * y + x * x)
    level = (1 - apart / reach) * 3.5 + 0.6 * lungs.noise(rng, 26.0) + 0.25 * lungs.noise(rng, 9.0)
    level = np.where(inside, level, -4.0)
    return _Region(inside, level.astype(np.float32), rng.random() < 0.6)


def _consolidation(lungs: LungMap, region: _Region, rng: np.random.Generator) -> Field:
    """Solid in lobar pneumonia, islands in bronchopneumonia."""
    level = region.level
    if not region.is_lobar:
        islands = lungs.noise(rng, rng.uniform(9, 18)) - rng.uniform(-0.2, 0.5)
        level = np.minimum(level, 2.4 * islands)
    filling = rng.uniform(0.9, 1.0) if region.is_lobar else rng.uniform(0.72, 0.98)
    solid = filling * smooth_step(level / rng.uniform(0.25, 0.7))
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


def _open_bronchi(lungs: LungMap, solid: Field, rng: np.random.Generator) -> Segments:
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
    return tree.segments(rng.uniform(0.55, 0.85), 2.8)


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


def _draw_effusion(lungs: LungMap, side: int, rng: np.random.Generator) -> Field:
    """A crescent of fluid between lung and chest wall, deepest behind and below."""
    deepest = rng.uniform(8, 34)
    behind = np.clip((lungs.back - rng.uniform(0.45, 0.7)) / 0.4, 0, 1)
    below = np.clip((rng.uniform(0.35, 0.65) - lungs.height) / 0.35, 0, 1)
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
    effusion = _draw_effusion(lungs, side, rng)
    collapsed = np.exp(-np.abs(effusion + 3.0) / rng.uniform(2, 6))
    wet = ndimage.maximum_filter(effusion, size=(3, 5, 5)) > 0
    dense = rng.uniform(0.5, 0.95) * collapsed * wet
    return disease_of(lungs, effusion=effusion, dense=dense)


def _foci_along_bronchi(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Bronchopneumonia: many small foci and buds about the bronchi of one to three lobes."""
    lobes = lungs.draw_lobes(rng)
    first = _draw_lobes(lobes[lungs.inside], rng)
    chosen = set(first) | ({int(rng.integers(1, 6))} if rng.random() < 0.35 else set())
    dense = np.zeros(lungs.inside.shape, dtype=np.float32)
    haze, buds = dense.copy(), []
    size = rng.uniform(8, 20)
    field = lungs.noise(rng, size) + 0.4 * lungs.noise(rng, 7.0)
    for lobe in sorted(chosen):
        region = _draw_region(lungs, lobes == lobe, rng)
        islands = np.minimum(field - rng.uniform(0.0, 0.9), 0.7 * region.level + 0.6)
        part = rng.uniform(0.6, 1.0) * smooth_step(islands / rng.uniform(0.4, 0.9))
        dense = np.maximum(dense, part * region.lobe)
        about = rng.uniform(0.05, 0.35) * smooth_step((islands + 0.5) / 0.8)
        haze = np.maximum(haze, about * region.lobe)
        buds += [_buds(lungs, region, rng) for _ in range(int(rng.integers(1, 4)))]
    return disease_of(
        lungs,
        haze=haze,
        dense=dense,
        buds=join_segments(buds),
        bronchi=_open_bronchi(lungs, dense, rng),
    )


def _round_focus(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """One dense focus of 2 to 7 cm on the pleura, with a frayed edge and a little haze."""
    weight = np.exp(-lungs.depth_mm / 15) * (0.2 + lungs.back) * (1.3 - lungs.height)
    place = lungs.pick(rng, weight.astype(np.float32), 1)[0]
    z, y, x = lungs.offsets_mm(place)
    radius = rng.uniform(10, 36)
    apart = np.sqrt((z * rng.uniform(0.8, 1.3)) ** 2 + y * y + x * x)
    level = 1 - apart / radius + 0.16 * lungs.noise(rng, 22.0) + 0.1 * lungs.noise(rng, 8.0)
    level = np.where(lungs.side == lungs.side[tuple(place.astype(int))], level, -2.0)
    dense = rng.uniform(0.85, 1.0) * smooth_step(level / rng.uniform(0.12, 0.35))
    haze = rng.uniform(0.1, 0.35) * smooth_step((level + 0.35) / 0.5)
    return disease_of(lungs, haze=haze, dense=dense, bronchi=_open_bronchi(lungs, dense, rng))


_MOST_FOCI = 60
_FACE_ODDS = (0.26, 0.26, 0.15, 0.1, 0.23)
"""How often each face of `draw_varied_covid` is drawn, patches alone first."""


def draw_covid(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Draw one patient's COVID-19 pneumonia, from a few faint patches to half of both lungs."""
    involvement = float(np.clip(rng.lognormal(np.log(0.09), 1.0), 0.012, 0.5))
    size_mm, filling = rng.uniform(7.5, 16) * (1 + 1.3 * involvement), rng.uniform(0.2, 0.46)
    paving = rng.uniform(0.1, 0.6) if rng.random() < 0.55 else 0.0
    dense_share = float(rng.choice([0.0, 0.15, 0.3, 0.6]))
    typical = (size_mm, filling, dense_share)
    # How strongly patches keep to the pleura, to the bases and to the back.
    subpleural, low, behind = rng.uniform(4, 13), rng.uniform(0.5, 2.2), rng.uniform(1.0, 3.2)
    weight = np.exp(-lungs.depth_mm / subpleural - low * lungs.height)
    weight = weight * (0.04 + lungs.back**behind)
    # Mediastinal surfaces count as pleura in a mask; disease prefers the outer wall.
    weight = np.asarray(weight * _outer(lungs), dtype=np.float32)
    warp = 0.55 * lungs.noise(rng, 22.0) + 0.3 * lungs.noise(rng, 9.0)
    haze, dense = np.zeros_like(weight), np.zeros_like(weight)
    sides = [lungs.pick(rng, weight * (lungs.side == side), _MOST_FOCI) for side in (1, -1)]
    # One after the other in each lung, so that the disease is in both.
    places = [place for pair in zip_longest(*sides) for place in pair if place is not None]
    for number, place in enumerate(places[:_MOST_FOCI]):
        box, glass, core = _draw_focus(lungs, place, warp, typical, rng)
        np.maximum(haze[box], glass, out=haze[box])
        np.maximum(dense[box], core, out=dense[box])
        if number >= 2 and relative_involvement(haze, lungs) >= involvement:
            break
    net = np.clip(0.6 + 0.6 * lungs.noise(rng, 40.0), 0, 1.2) * paving
    return disease_of(lungs, haze=haze, dense=dense, net=net)


def _outer(lungs: LungMap) -> Field:
    """Near 1 beside the chest wall, small beside the mediastinum."""
    columns = np.arange(lungs.inside.shape[2], dtype=np.float32)
    weight = np.zeros(lungs.inside.shape, dtype=np.float32)
    for side in (-1, 1):
        lung = lungs.inside & (lungs.side == side)
        used = np.flatnonzero(lung.any(axis=(0, 1)))
        if used.size == 0:
            continue
        share = (columns - used[0]) / max(int(used[-1] - used[0]), 1)
        share = share if side > 0 else 1 - share
        outward = np.clip(0.15 + 1.1 * share, 0.15, 1.0)
        np.copyto(weight, outward[None, None], where=lung)
    # Behind, the lung lies on the chest wall from the spine outwards.
    behind = np.clip(2.2 * lungs.back - 1.0, 0, 1) * lungs.inside
    return np.asarray(np.maximum(weight, behind), dtype=np.float32)


def _draw_focus(
    lungs: LungMap,
    place: Float64[np.ndarray, " 3"],
    warp: Field,
    typical: tuple[float, float, float],
    rng: np.random.Generator,
) -> tuple[tuple[slice, slice, slice], AnyField, AnyField]:
    """One patch: flat along the pleura, frayed, now and then with a dense core.

    `typical` is this patient's radius of patches in mm, filling of their ground glass, and share of
    them with a consolidated core. Gives the patch's box, and ground glass and consolidation in it.
    """
    size_mm, usual_filling, dense_share = typical
    radius = size_mm * float(np.clip(rng.lognormal(0, 0.4), 0.45, 2.4))
    box = lungs.box_around(place, 2.6 * radius)
    z, y, x = lungs.offsets_mm(place, box)
    stretch = np.exp(rng.normal(0, 0.25, 3))
    # Most patches sit on the pleura; the others lie where they were drawn.
    is_deep = rng.random() < 0.25
    middle_mm = lungs.depth_mm[tuple(int(i) for i in place)] if is_deep else 0.0
    inward = (lungs.depth_mm[box] - middle_mm) / (0.7 * radius)
    apart = (z * stretch[0]) ** 2 + (y * stretch[1]) ** 2 + (x * stretch[2]) ** 2
    level = 1 - np.sqrt(0.7 * apart / radius**2 + 0.5 * inward**2) + 0.5 * warp[box]
    softness = rng.uniform(0.25, 0.7)
    filling = usual_filling * rng.uniform(0.55, 1.25)
    haze = np.float32(min(filling, 0.6)) * smooth_step(level / softness)
    if rng.random() < dense_share:
        core = smooth_step((level - rng.uniform(0.35, 0.7) + 0.45 * warp[box]) / 0.5)
        return box, haze, np.float32(rng.uniform(0.45, 0.9)) * core
    return box, haze, np.zeros_like(haze)


def draw_varied_covid(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """One patient's COVID-19 pneumonia with any of its faces, most with scattered patches too.

    Patches alone; confluent disease along the back wall; ground glass of most of both lungs that
    spares the pleura; bands under the pleura as it organises; lobes filled up to their fissures.
    """
    faces = (None, _along_the_back, _diffuse, _organising, _lobes)
    face = faces[int(rng.choice(len(faces), p=_FACE_ODDS))]
    disease = draw_covid(lungs, rng)
    if face is None:
        return disease
    disease = joined(disease, face(lungs, rng))
    if rng.random() < 0.25:
        disease = joined(disease, _along_the_back(lungs, rng))
    if rng.random() < 0.25:
        disease = joined(disease, _organising(lungs, rng))
    return disease


def _paving(lungs: LungMap, rng: np.random.Generator) -> Field:
    """Strength of crazy paving, uneven; often none."""
    strength = rng.uniform(0.15, 0.7) if rng.random() < 0.5 else 0.0
    uneven = np.clip(0.6 + 0.6 * lungs.noise(rng, 40.0), 0, 1.2)
    return np.asarray(strength * uneven, dtype=np.float32)


def _per_side(lungs: LungMap, rng: np.random.Generator, low: float) -> Field:
    """A factor for each lung, `low` to 1: no patient's lungs are equally ill."""
    right, left = rng.permutation([1.0, rng.uniform(low, 1.0)])
    return np.asarray(np.where(lungs.side < 0, right, left), dtype=np.float32)


def _uneven(lungs: LungMap, rng: np.random.Generator) -> Field:
    """What frays every edge: large, middle and small irregularities together."""
    mixed = 0.6 * lungs.noise(rng, 55.0) + 0.5 * lungs.noise(rng, 24.0)
    return np.asarray(mixed + 0.3 * lungs.noise(rng, 9.0), dtype=np.float32)


def _along_the_back(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Confluent consolidation on the rear pleura of both lungs, ground glass in front of it."""
    rear_mm = lungs.behind_mm()
    thick = rng.uniform(8, 60) * _per_side(lungs, rng, 0.1)
    top = rng.uniform(0.35, 1.1)
    taper = np.clip((top - lungs.height) / 0.35, 0, 1)
    reach = thick * taper * np.clip(1 + 0.55 * _uneven(lungs, rng), 0.0, 2.2)
    solid = smooth_step((reach - rear_mm) / rng.uniform(4, 12))
    islands = 0.75 + 0.35 * lungs.noise(rng, 11.0)
    solid = rng.uniform(0.75, 1.0) * solid * np.clip(islands, 0.25, 1)
    glass = smooth_step((reach * rng.uniform(1.3, 2.2) + 6 * taper - rear_mm) / 14)
    haze = rng.uniform(0.2, 0.5) * glass * np.clip(0.9 + 0.3 * lungs.noise(rng, 16.0), 0, 1)
    return disease_of(
        lungs,
        haze=haze,
        dense=solid,
        net=_paving(lungs, rng),
        bronchi=_open_bronchi(lungs, solid, rng),
    )


def _diffuse(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Ground glass of a third to nearly all of both lungs, often with a spared rim."""
    limit = rng.uniform(-1.0, 0.5)
    lean = 1.4 * (0.5 - lungs.height) + 0.8 * (lungs.back - 0.5)
    level = _uneven(lungs, rng) + lean - limit
    glass = smooth_step(level / rng.uniform(0.4, 1.2))
    if rng.random() < 0.5:
        spared = rng.uniform(2, 7)
        glass = glass * np.clip((lungs.depth_mm - spared) / 4, 0.1, 1)
    deep = np.clip(1 + 0.35 * lungs.noise(rng, 30.0), 0.4, 1.6)
    haze = np.minimum(rng.uniform(0.15, 0.45) * glass * deep * _per_side(lungs, rng, 0.3), 1)
    core = smooth_step((level - rng.uniform(1.0, 2.5)) / 0.6)
    solid = rng.uniform(0.4, 0.9) * core * (rng.random() < 0.5)
    return disease_of(lungs, haze=haze, dense=solid, net=_paving(lungs, rng))


def _organising(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Dense bands that run along the pleura a little below it, with a haze about them."""
    middle = rng.uniform(4, 13) + 2.5 * lungs.noise(rng, 30.0)
    flat = np.abs(lungs.depth_mm - middle) / rng.uniform(2.5, 5.5)
    where = 1.6 * (0.5 - lungs.height) + 1.2 * (lungs.back - 0.5) + 1.2 * lungs.noise(rng, 45.0)
    gaps = smooth_step((where - rng.uniform(-0.2, 0.9)) / 0.6) * _outer(lungs)
    solid = rng.uniform(0.45, 0.95) * smooth_step(1.6 - flat) * gaps
    haze = rng.uniform(0.12, 0.35) * smooth_step(1.6 - 0.45 * flat) * gaps
    return disease_of(lungs, haze=haze, dense=solid)


def _lobes(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Ground glass of two to four lobes, sharp at the fissures, in both lungs."""
    lobes = lungs.draw_lobes(rng)
    chosen = {int(rng.choice([1, 2, 3, 3])), int(rng.choice([4, 5, 5]))}
    chosen |= {int(lobe) for lobe in rng.choice([1, 2, 3, 4, 5], int(rng.integers(0, 3)))}
    haze = np.zeros(lungs.inside.shape, dtype=np.float32)
    uneven = _uneven(lungs, rng)
    inward = lungs.depth_mm / rng.uniform(25, 120)
    for lobe in sorted(chosen):
        level = uneven + rng.uniform(-0.2, 2.0) - inward
        part = smooth_step(level / 0.8) * rng.uniform(0.08, 0.55)
        haze = np.where(lobes == lobe, part, haze)
    core = smooth_step((uneven - rng.uniform(0.9, 2.0)) / 0.5) * (haze > 0.1)
    solid = rng.uniform(0.4, 0.95) * core
    return disease_of(lungs, haze=haze, dense=solid, net=_paving(lungs, rng))

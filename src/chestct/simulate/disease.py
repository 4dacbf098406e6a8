"""Where in the lungs a place is, and disease as fields over them, before it is put into a scan.

A `LungMap` works from a lung mask alone, so that disease can be put into real scans as into
simulated ones. Lobes are approximate: fissures cannot be seen in a mask.

The two pneumonias are drawn here. Community-acquired pneumonia consolidates a lobe or segments,
usually on one side. COVID-19 makes patches of ground glass under the pleura, in both lungs, low and
behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64, Int8
from scipy import ndimage

from chestct.arrays import Mask, Shape, Spacing
from chestct.errors import GridError
from chestct.simulate.fields import AnyField, Field, Plane, smooth_noise
from chestct.simulate.trees import Segments, fill_tubes, grow_tree, join_segments
from chestct.volume import Grid

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

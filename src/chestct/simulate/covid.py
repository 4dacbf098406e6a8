"""COVID-19 pneumonia: patches of ground glass under the pleura, in both lungs, low and behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
from jaxtyping import Float64

from chestct.simulate.disease import Disease, joined, no_disease, smooth_step
from chestct.simulate.fields import AnyField, Field
from chestct.simulate.lung_map import LungMap, relative_involvement
from chestct.simulate.pneumonia import open_bronchi

_MOST_FOCI = 60
_FACE_ODDS = (0.34, 0.24, 0.16, 0.12, 0.14)
"""How often each face of `draw_varied_covid` is drawn, patches alone first."""


@dataclass(frozen=True)
class _Course:
    """How the disease went in one patient.

    Attributes:
        involvement: Share of the lungs wanted.
        size_mm: Typical radius of a patch.
        filling: Typical filling of ground glass.
        net: Strength of crazy paving.
        dense: Share of patches with a consolidated core.
        subpleural: How strongly patches keep to the pleura.
        low: How strongly they keep to the bases.
        behind: How strongly they keep to the back.
    """

    involvement: float
    size_mm: float
    filling: float
    net: float
    dense: float
    subpleural: float
    low: float
    behind: float


def _draw_course(rng: np.random.Generator) -> _Course:
    """From a few faint patches to half of both lungs."""
    involvement = float(np.clip(rng.lognormal(np.log(0.09), 1.0), 0.012, 0.5))
    return _Course(
        involvement=involvement,
        size_mm=float(rng.uniform(7.5, 16)) * (1 + 1.3 * involvement),
        filling=float(rng.uniform(0.2, 0.46)),
        net=float(rng.uniform(0.1, 0.6)) if rng.random() < 0.55 else 0.0,
        dense=float(rng.choice([0.0, 0.15, 0.3, 0.6])),
        subpleural=float(rng.uniform(4, 13)),
        low=float(rng.uniform(0.5, 2.2)),
        behind=float(rng.uniform(1.0, 3.2)),
    )


def draw_covid(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Draw one patient's COVID-19 pneumonia."""
    course = _draw_course(rng)
    weight = np.exp(-lungs.depth_mm / course.subpleural - course.low * lungs.height)
    weight = weight * (0.04 + lungs.back**course.behind)
    # Mediastinal surfaces count as pleura in a mask; disease prefers the outer wall.
    weight = np.asarray(weight * _outer(lungs), dtype=np.float32)
    warp = 0.55 * lungs.noise(rng, 22.0) + 0.3 * lungs.noise(rng, 9.0)
    haze, dense = np.zeros_like(weight), np.zeros_like(weight)
    sides = [lungs.pick(rng, weight * (lungs.side == side), _MOST_FOCI) for side in (1, -1)]
    # One after the other in each lung, so that the disease is in both.
    places = [place for pair in zip_longest(*sides) for place in pair if place is not None]
    for number, place in enumerate(places[:_MOST_FOCI]):
        box, glass, core = _draw_focus(lungs, place, warp, course, rng)
        np.maximum(haze[box], glass, out=haze[box])
        np.maximum(dense[box], core, out=dense[box])
        if number >= 2 and relative_involvement(haze, lungs) >= course.involvement:
            break
    net = np.clip(0.6 + 0.6 * lungs.noise(rng, 40.0), 0, 1.2) * course.net
    return replace(no_disease(lungs), haze=haze, dense=dense, net=net.astype(np.float32))


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
    course: _Course,
    rng: np.random.Generator,
) -> tuple[tuple[slice, slice, slice], AnyField, AnyField]:
    """One patch: flat along the pleura, frayed, now and then with a dense core.

    Returns:
        The box it lies in, its ground glass and its consolidation there.
    """
    radius = course.size_mm * float(np.clip(rng.lognormal(0, 0.4), 0.45, 2.4))
    box = lungs.box_around(place, 2.6 * radius)
    z, y, x = (line[part] for line, part in zip(lungs.offsets_mm(place), _open(box), strict=True))
    stretch = np.exp(rng.normal(0, 0.25, 3))
    # Most patches sit on the pleura; the others lie where they were drawn.
    is_deep = rng.random() < 0.25
    middle_mm = lungs.depth_mm[tuple(int(i) for i in place)] if is_deep else 0.0
    inward = (lungs.depth_mm[box] - middle_mm) / (0.7 * radius)
    apart = (z * stretch[0]) ** 2 + (y * stretch[1]) ** 2 + (x * stretch[2]) ** 2
    level = 1 - np.sqrt(0.7 * apart / radius**2 + 0.5 * inward**2) + 0.5 * warp[box]
    softness = float(rng.uniform(0.25, 0.7))
    filling = course.filling * float(rng.uniform(0.55, 1.25))
    haze = np.float32(min(filling, 0.6)) * smooth_step(level / softness)
    if rng.random() < course.dense:
        core = smooth_step((level - float(rng.uniform(0.35, 0.7)) + 0.45 * warp[box]) / 0.5)
        return box, haze, np.float32(rng.uniform(0.45, 0.9)) * core
    return box, haze, np.zeros_like(haze)


def _open(box: tuple[slice, slice, slice]) -> list[tuple[slice, slice, slice]]:
    """For each axis, the box along it and everything along the others."""
    whole = slice(None)
    return [(box[0], whole, whole), (whole, box[1], whole), (whole, whole, box[2])]


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
        disease = joined(disease, _organising(lungs, rng))
    return disease


def _paving(lungs: LungMap, rng: np.random.Generator) -> Field:
    """Strength of crazy paving, uneven; often none."""
    strength = float(rng.uniform(0.15, 0.7)) if rng.random() < 0.5 else 0.0
    uneven = np.clip(0.6 + 0.6 * lungs.noise(rng, 40.0), 0, 1.2)
    return np.asarray(strength * uneven, dtype=np.float32)


def _per_side(lungs: LungMap, rng: np.random.Generator, low: float) -> Field:
    """A factor for each lung, `low` to 1: no patient's lungs are equally ill."""
    right, left = rng.permutation([1.0, float(rng.uniform(low, 1.0))])
    return np.asarray(np.where(lungs.side < 0, right, left), dtype=np.float32)


def _uneven(lungs: LungMap, rng: np.random.Generator) -> Field:
    """What frays every edge: large, middle and small irregularities together."""
    mixed = 0.6 * lungs.noise(rng, 55.0) + 0.5 * lungs.noise(rng, 24.0)
    return np.asarray(mixed + 0.3 * lungs.noise(rng, 9.0), dtype=np.float32)


def _along_the_back(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Confluent consolidation on the rear pleura of both lungs, ground glass in front of it."""
    rear_mm = lungs.behind_mm()
    thick = float(rng.uniform(8, 60)) * _per_side(lungs, rng, 0.25)
    top = float(rng.uniform(0.35, 1.1))
    taper = np.clip((top - lungs.height) / 0.35, 0, 1)
    reach = thick * taper * np.clip(1 + 0.55 * _uneven(lungs, rng), 0.0, 2.2)
    solid = smooth_step((reach - rear_mm) / float(rng.uniform(4, 12)))
    islands = 0.75 + 0.35 * lungs.noise(rng, 11.0)
    solid = float(rng.uniform(0.75, 1.0)) * solid * np.clip(islands, 0.25, 1)
    glass = smooth_step((reach * float(rng.uniform(1.3, 2.2)) + 6 * taper - rear_mm) / 14)
    haze = float(rng.uniform(0.2, 0.5)) * glass * np.clip(0.9 + 0.3 * lungs.noise(rng, 16.0), 0, 1)
    return replace(
        no_disease(lungs),
        haze=haze.astype(np.float32),
        dense=solid.astype(np.float32),
        net=_paving(lungs, rng),
        bronchi=open_bronchi(lungs, solid, rng),
    )


def _diffuse(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Ground glass of a third to nearly all of both lungs, often with a spared rim."""
    limit = float(rng.uniform(-1.0, 0.5))
    lean = 1.4 * (0.5 - lungs.height) + 0.8 * (lungs.back - 0.5)
    level = _uneven(lungs, rng) + lean - limit
    glass = smooth_step(level / float(rng.uniform(0.4, 1.2)))
    if rng.random() < 0.5:
        spared = float(rng.uniform(2, 7))
        glass = glass * np.clip((lungs.depth_mm - spared) / 4, 0.1, 1)
    deep = np.clip(1 + 0.35 * lungs.noise(rng, 30.0), 0.4, 1.6)
    haze = np.minimum(float(rng.uniform(0.15, 0.45)) * glass * deep * _per_side(lungs, rng, 0.6), 1)
    core = smooth_step((level - float(rng.uniform(1.0, 2.5))) / 0.6)
    solid = float(rng.uniform(0.4, 0.9)) * core * (rng.random() < 0.5)
    return replace(
        no_disease(lungs),
        haze=haze.astype(np.float32),
        dense=np.asarray(solid, dtype=np.float32),
        net=_paving(lungs, rng),
    )


def _organising(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Dense bands that run along the pleura a little below it, with a haze about them."""
    middle = float(rng.uniform(4, 13)) + 2.5 * lungs.noise(rng, 30.0)
    flat = np.abs(lungs.depth_mm - middle) / float(rng.uniform(2.5, 5.5))
    where = 1.6 * (0.5 - lungs.height) + 1.2 * (lungs.back - 0.5) + 1.2 * lungs.noise(rng, 45.0)
    gaps = smooth_step((where - float(rng.uniform(-0.2, 0.9))) / 0.6) * _outer(lungs)
    solid = float(rng.uniform(0.45, 0.95)) * smooth_step(1.6 - flat) * gaps
    haze = float(rng.uniform(0.12, 0.35)) * smooth_step(1.6 - 0.45 * flat) * gaps
    return replace(no_disease(lungs), haze=haze.astype(np.float32), dense=solid.astype(np.float32))


def _lobes(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Ground glass of two to four lobes, sharp at the fissures, in both lungs."""
    lobes = lungs.draw_lobes(rng)
    chosen = {int(rng.choice([1, 2, 3, 3])), int(rng.choice([4, 5, 5]))}
    chosen |= {int(lobe) for lobe in rng.choice([1, 2, 3, 4, 5], int(rng.integers(0, 3)))}
    haze = np.zeros(lungs.inside.shape, dtype=np.float32)
    uneven = _uneven(lungs, rng)
    inward = lungs.depth_mm / float(rng.uniform(25, 120))
    for lobe in sorted(chosen):
        level = uneven + float(rng.uniform(-0.2, 2.0)) - inward
        part = smooth_step(level / 0.8) * float(rng.uniform(0.15, 0.5))
        haze = np.where(lobes == lobe, part, haze)
    core = smooth_step((uneven - float(rng.uniform(0.9, 2.0))) / 0.5) * (haze > 0.1)
    solid = float(rng.uniform(0.4, 0.95)) * core
    return replace(
        no_disease(lungs),
        haze=haze.astype(np.float32),
        dense=solid.astype(np.float32),
        net=_paving(lungs, rng),
    )

"""COVID-19 pneumonia: patches of ground glass under the pleura, in both lungs, low and behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
from jaxtyping import Float64

from chestct.simulate.disease import Disease, no_disease, smooth_step
from chestct.simulate.fields import AnyField, Field
from chestct.simulate.lung_map import LungMap, relative_involvement

_MOST_FOCI = 60


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

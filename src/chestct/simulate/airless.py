"""Disease that takes all air from large parts of the lungs, so that outlines are hard to find.

No class of the classifier: airless lobes and lungs, consolidation and fluid along the back wall,
large effusions, masses. For teaching and testing what finds lungs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import ndimage

from chestct.arrays import Mask
from chestct.simulate.disease import Disease, no_disease, smooth_step
from chestct.simulate.fields import Field
from chestct.simulate.lung_map import LungMap

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
        fluid = _layer(lungs, float(rng.uniform(6, 30)), rng)
        disease = replace(disease, effusion=np.where(lungs.side == side, fluid, _DRY))
    return disease


def _draw_airless_lung(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """One lung without any air, half of them beside a large effusion."""
    side = int(rng.choice([-1, 1]))
    disease = _solid(lungs, lungs.side == side, rng)
    if rng.random() < 0.5:
        fluid = _layer(lungs, float(rng.uniform(20, 70)), rng)
        disease = replace(disease, effusion=np.where(lungs.side == side, fluid, _DRY))
    return disease


def _draw_posterior(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Confluent consolidation along the back wall of one or both lungs, hazy in front of it."""
    behind = _behind_mm(lungs)
    thick = float(rng.uniform(15, 60)) * (1 + 0.35 * lungs.noise(rng, 45.0))
    thick = thick * np.clip(1.5 - lungs.height / float(rng.uniform(0.5, 1.3)), 0, 1)
    thick = np.where(lungs.side == rng.choice([-1, 1]), thick * rng.choice([0, 0.4, 1]), thick)
    inward = thick - behind + 4.0 * lungs.noise(rng, 16.0)
    dense = float(rng.uniform(0.8, 1.0)) * smooth_step(inward / float(rng.uniform(4, 16)))
    haze = float(rng.uniform(0.1, 0.5)) * smooth_step(inward / 30.0 + 1.0) * (thick > 0)
    disease = replace(no_disease(lungs), dense=dense, haze=haze.astype(np.float32))
    if rng.random() < 0.4:
        disease = replace(disease, effusion=_layer(lungs, float(rng.uniform(4, 20)), rng))
    return disease


def _draw_effusion(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Fluid layered along the back of one or both lungs, with airless lung in front of it."""
    deepest = float(rng.uniform(15, 85))
    fluid = _layer(lungs, deepest, rng)
    if rng.random() < 0.6:
        fluid = np.where(lungs.side == rng.choice([-1, 1]), fluid, np.float32(_DRY))
    rim = float(rng.uniform(3, 0.5 * deepest + 10))
    near = ndimage.distance_transform_edt(fluid < 0, sampling=lungs.spacing_mm)
    dense = smooth_step((rim - near + 2.0 * lungs.noise(rng, 18.0)) / 6.0)
    dense = np.asarray(dense * float(rng.uniform(0.7, 1.0)), dtype=np.float32)
    return replace(no_disease(lungs), dense=dense, effusion=fluid.astype(np.float32))


def _draw_mass(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """One to three lumps, lobed, anywhere from hilum to pleura; large ones may be hollow."""
    dense = np.zeros(lungs.inside.shape, dtype=np.float32)
    lumps = 0.25 * lungs.noise(rng, 20.0) + 0.1 * lungs.noise(rng, 8.0)
    for place in lungs.pick(rng, np.ones_like(dense), int(rng.integers(1, 4))):
        z, y, x = lungs.offsets_mm(place)
        radius = float(rng.uniform(8, 45))
        level = 1 - np.sqrt(z * z + y * y + x * x) / radius + lumps
        lump = smooth_step(level * radius / 3.0)
        if radius > 20 and rng.random() < 0.3:
            lump = lump * (1 - smooth_step((level - 0.5) * radius / 3.0))
        np.maximum(dense, lump, out=dense)
    return replace(no_disease(lungs), dense=dense)


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
    left = np.clip(lungs.noise(rng, 25.0) - float(rng.uniform(0.8, 4.0)), 0, 1)
    dense = float(rng.uniform(0.95, 1.0)) * (1 - left)
    dense = ndimage.gaussian_filter(np.where(part, dense, 0), 0.5)
    return replace(no_disease(lungs), dense=np.asarray(dense, dtype=np.float32))


def _behind_mm(lungs: LungMap) -> Field:
    """Distance in mm forwards from the rearmost lung of the same column."""
    rows = np.arange(lungs.inside.shape[1], dtype=np.float32)[None, :, None]
    last = np.where(lungs.inside, rows, -1).max(axis=1, keepdims=True)
    return np.asarray((last - rows) * lungs.spacing_mm[1], dtype=np.float32)


def _layer(lungs: LungMap, deepest_mm: float, rng: np.random.Generator) -> Field:
    """Depth in mm in fluid that lies along the back of both lungs, thinner towards the top."""
    reach = float(rng.uniform(0.4, 1.1))
    deep = deepest_mm * np.sqrt(np.clip(1 - lungs.height / reach, 0, 1))
    fluid = deep - np.minimum(_behind_mm(lungs), 1.6 * lungs.depth_mm + 0.3 * deepest_mm)
    fluid = fluid + 1.5 * lungs.noise(rng, 30.0)
    return np.where(deep > 1.0, np.maximum(fluid, -4.9), _DRY).astype(np.float32)

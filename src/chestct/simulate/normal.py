"""What lungs may show that is no pneumonia, from a trace of collapsed lung to a mass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from chestct.simulate.disease import Disease, dependent_haze, joined, no_disease, smooth_step
from chestct.simulate.fields import Field
from chestct.simulate.lung_map import LungMap
from chestct.simulate.pneumonia import beside_fluid
from chestct.simulate.tubes import Segments


def draw_normal(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Healthy lungs; in one of four a thin plate of collapsed lung near the diaphragm."""
    disease = no_disease(lungs)
    if rng.random() > 0.25:
        return disease
    weight = np.exp(-lungs.height * 14) * (lungs.depth_mm < 14)
    places = lungs.pick(rng, weight.astype(np.float32), int(rng.integers(1, 3)))
    dense = disease.dense
    for place in places:
        z, y, x = lungs.offsets_mm(place)
        tilt = rng.normal(0, 0.25, 2)
        flat = np.abs(z + tilt[0] * y + tilt[1] * x) / float(rng.uniform(2.0, 3.2))
        wide = np.hypot(y, x) / float(rng.uniform(9, 22))
        plate = smooth_step(1.6 - np.maximum(flat, 1.2 * wide))
        dense = np.maximum(dense, float(rng.uniform(0.15, 0.4)) * plate)
    return replace(disease, dense=dense.astype(np.float32))


def draw_background(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """What a patient's lungs show beside pneumonia: density from gravity and breath, and findings.

    Each finding is drawn on its own; a third of the patients have none.
    """
    strength, reach = _gravity(rng)
    haze = dependent_haze(lungs, strength, reach, rng)
    background = replace(draw_normal(lungs, rng), haze=haze, lost=_breath(lungs, rng))
    if rng.random() < 0.3:
        return background
    for odds, finding in _FINDINGS:
        if rng.random() < odds:
            background = joined(background, finding(lungs, rng))
    return background


def _gravity(rng: np.random.Generator) -> tuple[float, float]:
    """Strength and reach in mm of dependent density: a trace in most, plain to see in some."""
    if rng.random() < 0.3:
        return float(rng.uniform(0.12, 0.38)), float(rng.uniform(6, 22))
    return float(rng.uniform(0.0, 0.13)), float(rng.uniform(5, 16))


def _breath(lungs: LungMap, rng: np.random.Generator) -> Field | None:
    """Lung that holds less air throughout: a shallow breath, at times in a mosaic."""
    if rng.random() < 0.55:
        return None
    slope = 1 + float(rng.uniform(0, 0.7)) * (lungs.back - 0.5)
    mosaic = float(rng.uniform(0, 0.35)) if rng.random() < 0.4 else 0.0
    patches = 1 + mosaic * np.tanh(2 * lungs.noise(rng, 28.0))
    return np.asarray(-float(rng.uniform(0.1, 1.3)) * slope * patches, dtype=np.float32)


def _emphysema(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Holes of destroyed lung, mostly in the upper lobes."""
    lean = float(rng.uniform(0, 2.0)) * (lungs.height - 0.5)
    level = lungs.noise(rng, float(rng.uniform(6, 16))) + lean - float(rng.uniform(0.0, 1.5))
    lost = float(rng.uniform(0.4, 0.95)) * smooth_step(level / 0.7)
    return replace(no_disease(lungs), lost=lost.astype(np.float32))


def _bands(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Scars and collapsed plates: thin, dense, at any tilt, from the pleura inwards."""
    dense = np.zeros(lungs.inside.shape, dtype=np.float32)
    weight = np.exp(-lungs.height / 0.4) * np.exp(-lungs.depth_mm / 20)
    for place in lungs.pick(rng, weight.astype(np.float32), int(rng.integers(1, 7))):
        z, y, x = lungs.offsets_mm(place)
        normal = rng.normal(0, 1, 3) * (1.0, 0.5, 0.5)
        normal /= np.linalg.norm(normal)
        off = z * normal[0] + y * normal[1] + x * normal[2] + 1.5 * lungs.noise(rng, 40.0)
        wide = np.sqrt(z * z + y * y + x * x) / float(rng.uniform(12, 38))
        plate = smooth_step(1.7 - np.maximum(np.abs(off) / float(rng.uniform(1.5, 3)), 1.3 * wide))
        dense = np.maximum(dense, float(rng.uniform(0.3, 0.9)) * plate)
    return replace(no_disease(lungs), dense=dense.astype(np.float32))


def _caps(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Scars of the apices: dense and a few mm thick."""
    thick = float(rng.uniform(3, 9)) * np.clip(1 + 0.6 * lungs.noise(rng, 14.0), 0, 2)
    near = smooth_step((lungs.height - 0.9) / 0.06)
    dense = float(rng.uniform(0.5, 0.9)) * smooth_step((thick - lungs.depth_mm) / 2 + 0.5) * near
    return replace(no_disease(lungs), dense=dense.astype(np.float32))


def _nodules(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """One to eight round nodules of 3 to 12 mm, at times far more (metastases)."""
    number = int(rng.integers(1, 9)) if rng.random() < 0.85 else int(rng.integers(15, 60))
    places = lungs.pick(rng, (lungs.depth_mm > 2).astype(np.float32), number)
    centres = lungs.to_mm(places + rng.uniform(-0.5, 0.5, places.shape))
    radius = rng.uniform(1.5, 6.0, len(centres))
    half = np.stack([0.5 * radius, np.zeros_like(radius), np.zeros_like(radius)], axis=1)
    return replace(no_disease(lungs), buds=Segments(centres - half, centres + half, radius))


def _mass(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """A solid mass of 2 to 6 cm with a lobed or spiky edge and no air inside."""
    place = lungs.pick(rng, (0.3 + lungs.height).astype(np.float32), 1)[0]
    z, y, x = lungs.offsets_mm(place)
    radius = float(rng.uniform(9, 30))
    spikes = float(rng.uniform(0.05, 0.22)) * lungs.noise(rng, 8.0)
    level = 1 - np.sqrt(z * z + y * y + x * x) / radius + spikes + 0.12 * lungs.noise(rng, 25.0)
    dense = smooth_step(level / float(rng.uniform(0.1, 0.25)))
    rim = float(rng.uniform(0, 0.3)) * smooth_step((level + 0.25) / 0.4)
    return replace(no_disease(lungs), dense=dense, haze=rim.astype(np.float32))


def _fibrosis(lungs: LungMap, rng: np.random.Generator) -> Disease:
    """A fine net under the pleura of the bases, with hardly any ground glass."""
    near = np.exp(-lungs.depth_mm / float(rng.uniform(4, 10))) * np.exp(-lungs.height / 0.35)
    haze = float(rng.uniform(0.08, 0.16)) * np.clip(1.4 * near, 0, 1)
    net = np.full(lungs.inside.shape, float(rng.uniform(0.8, 1.8)), dtype=np.float32)
    return replace(no_disease(lungs), haze=haze.astype(np.float32), net=net * (haze > 0.02))


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
    (0.12, _mass),
    (0.08, _fibrosis),
    (0.1, _fluid),
)
"""Finding and how often it is drawn, where any is."""

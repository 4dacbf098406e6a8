"""A patient without pneumonia: at most a trace of collapsed lung at the base."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from chestct.simulate.disease import Disease, no_disease, smooth_step
from chestct.simulate.lung_map import LungMap


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

"""Disease as fields over the lungs, before it is put into a scan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Float32

from chestct.simulate.fields import Field
from chestct.simulate.lung_map import LungMap
from chestct.simulate.tubes import Segments, fill_tubes, join_segments
from chestct.volume import Grid


def _no_segments() -> Segments:
    return join_segments([])


@dataclass(frozen=True, eq=False)
class Tubes:
    """Small things on the scan's own grid, 0 to 1.

    Attributes:
        filled: Nodules and filled small bronchi.
        hollow: Bronchi that still hold air.
    """

    filled: Float32[np.ndarray, "depth height width"]
    hollow: Float32[np.ndarray, "depth height width"]


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
    buds: Segments = field(default_factory=_no_segments)
    bronchi: Segments = field(default_factory=_no_segments)
    lost: Field | None = None

    def tubes_on(self, grid: Grid) -> Tubes | None:
        """Draw buds and bronchi on the scan's grid; None where there are none."""
        if not (len(self.buds) or len(self.bronchi)):
            return None
        filled = fill_tubes(self.buds, grid.shape, grid.spacing_mm)
        return Tubes(0.85 * filled, fill_tubes(self.bronchi, grid.shape, grid.spacing_mm))


def no_disease(lungs: LungMap) -> Disease:
    """Healthy lungs."""
    empty = np.zeros(lungs.inside.shape, dtype=np.float32)
    return Disease(haze=empty, net=empty, dense=empty, effusion=empty - 5.0)


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


def add_dependent_density(disease: Disease, lungs: LungMap, rng: np.random.Generator) -> Disease:
    """Add what gravity alone does to the rearmost lung: every patient has some."""
    strength = float(rng.uniform(0.0, 0.13)) * float(rng.uniform(0.2, 1.0))
    reach = float(rng.uniform(5, 16))
    haze = dependent_haze(lungs, strength, reach, rng)
    return replace(disease, haze=np.maximum(disease.haze, haze))


def dependent_haze(
    lungs: LungMap, strength: float, reach_mm: float, rng: np.random.Generator
) -> Field:
    """Density that gravity alone makes: strongest at the rearmost pleura, gone over `reach_mm`."""
    behind = (1 - lungs.back) * lungs.inside.shape[1] * lungs.spacing_mm[1] * 0.4
    near = np.exp(-behind / reach_mm - lungs.depth_mm / (0.8 * reach_mm))
    uneven = np.clip(1 + 0.4 * lungs.noise(rng, 25.0), 0, 2)
    return np.asarray(strength * near * uneven, dtype=np.float32)

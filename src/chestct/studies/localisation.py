"""How much of a heat-map lies where the disease is, on simulated patients whose truth is known.

Maps are judged on the network input's grid, where every voxel has the same size and no voxel was
made up by enlarging. Lungs are those the network's gates see; lesions come from the simulation.
A map cannot tell places apart within one cell of its layer, so lungs and lesions are also judged
grown by one cell along each axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np
from jaxtyping import Bool

from chestct.arrays import Heat, Mask, Spacing
from chestct.classifier import Classifier
from chestct.explain.run import explain
from chestct.preprocess.prepared import PreparedScan

INVOLVED_FROM: Final = 0.5
"""Heat from which a voxel belongs to the region whose overlap with the lesions is measured."""


@dataclass(frozen=True)
class Asked:
    """A way to make a map.

    Attributes:
        method: A name in `EXPLANATIONS`.
        layer: The network's layer, or None for its last block.
    """

    method: str
    layer: str | None = None

    @property
    def name(self) -> str:
        """Method and layer in words."""
        return f"{self.method}, {self.layer or 'last block'}"


@dataclass(frozen=True)
class MapScores:
    """Where one map lies. Shares are of the map's sum, None where the map is zero everywhere.

    Attributes:
        in_lungs: Share inside the lungs.
        in_grown_lungs: Share inside the lungs grown by one cell of the layer.
        in_lesions: Share inside the lesions.
        in_grown_lesions: Share inside the lesions grown by one cell.
        is_hit: Whether the map's largest value lies in a lesion.
        is_near_hit: Whether it lies in a lesion grown by one cell.
        dice: Overlap of lesions and voxels of at least half the largest value.
        lesion_share: Share of the lungs that is lesion: what an even map over the lungs would
            have in lesions, and how often a random place in the lungs would hit.
        grown_lungs_fill: Share of the input that the grown lungs fill: what an even map over the
            whole input would have in them.
    """

    in_lungs: float | None
    in_grown_lungs: float | None
    in_lesions: float | None
    in_grown_lesions: float | None
    is_hit: bool
    is_near_hit: bool
    dice: float
    lesion_share: float
    grown_lungs_fill: float


def grown_by_cells(
    mask: Mask, cell: Spacing
) -> Bool[np.ndarray, "same_depth same_height same_width"]:
    """A mask grown by one cell along each axis, a box and not a ball, as cells are boxes."""
    from scipy.ndimage import maximum_filter

    size = [2 * ceil(extent) + 1 for extent in cell]
    return np.asarray(maximum_filter(mask, size=size, mode="constant", cval=0), dtype=np.bool_)


def measure_map(heat: Heat, lungs: Mask, lesions: Mask, cell: Spacing) -> MapScores:
    """Judge one map.

    Args:
        heat: The map at the input's size, 0 to 1.
        lungs: Lungs at the input's size.
        lesions: Lesions at the input's size; not empty.
        cell: The size of the layer's cells in voxels of the input.

    Raises:
        ValueError: There is no lung or no lesion.
    """
    if not (lungs.any() and lesions.any()):
        raise ValueError("Without lungs or lesions there is nothing to compare a map with.")
    near_lungs, near_lesions = grown_by_cells(lungs, cell), grown_by_cells(lesions, cell)
    strongest = (heat == heat.max()) & (heat > 0)
    hot = heat >= INVOLVED_FROM
    overlap = 2 * np.count_nonzero(hot & lesions)
    return MapScores(
        in_lungs=_share(heat, lungs),
        in_grown_lungs=_share(heat, near_lungs),
        in_lesions=_share(heat, lesions),
        in_grown_lesions=_share(heat, near_lesions),
        is_hit=_mostly_in(strongest, lesions),
        is_near_hit=_mostly_in(strongest, near_lesions),
        dice=overlap / (np.count_nonzero(hot) + np.count_nonzero(lesions)),
        lesion_share=np.count_nonzero(lesions & lungs) / np.count_nonzero(lungs),
        grown_lungs_fill=float(near_lungs.mean()),
    )


def measure_answer(
    classifier: Classifier, prepared: PreparedScan, lesions: Mask, label: str, asked: Asked
) -> MapScores:
    """Make one map for a class and judge it; for the arguments see `measure_map`."""
    found = explain(classifier, prepared, method=asked.method, layer=asked.layer, label=label)
    return measure_map(found.heat, prepared.lungs, lesions, found.cell)


def _share(heat: Heat, mask: Mask) -> float | None:
    total = float(heat.sum(dtype=np.float64))
    return float(heat.sum(dtype=np.float64, where=mask)) / total if total > 0 else None


def _mostly_in(strongest: Mask, mask: Mask) -> bool:
    """Whether at least half of the places that share the largest value lie inside."""
    num = int(np.count_nonzero(strongest))
    return num > 0 and 2 * int(np.count_nonzero(strongest & mask)) >= num

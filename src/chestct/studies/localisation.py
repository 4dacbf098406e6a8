"""How much of a heat-map lies where the disease is, on simulated patients whose truth is known.

Maps are judged on the network input's grid, where every voxel has the same size and no voxel was
made up by enlarging. Lungs are those the network's gates see; lesions come from the simulation.
A map cannot tell places apart within one cell of its layer, so lungs and lesions are also judged
grown by one cell along each axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool

from chestct.arrays import Heat, Mask, Spacing
from chestct.classifier import Classifier
from chestct.errors import ReadError
from chestct.evaluation.intervals import (
    PATIENTS,
    WILSON,
    Bootstrap,
    Estimate,
    percentile_interval,
    wilson,
)
from chestct.explain.run import explain
from chestct.preprocess.masks import bounding_box, mask_on_grid
from chestct.preprocess.oblique import on_body
from chestct.preprocess.prepared import PreparedScan
from chestct.readers.masks import same_place
from chestct.report.tables import as_markdown_table
from chestct.volume import Volume

TRUTH_FOLDER: Final = "truth"


def lesion_file(scan: Path) -> Path:
    """Where `benchmarks/simulated_cohort.py` put the true lesions of a simulated patient."""
    return scan.parent / TRUTH_FOLDER / f"{scan.name.partition('.')[0]}-lesions.nii.gz"


def mask_at_input(mask: Volume, prepared: PreparedScan) -> Mask:
    """A mask of the scan at the size of the network's input: true where at least half is covered.

    Args:
        mask: Truth values on the scan's voxels, in any axis order.
        prepared: The scan.

    Raises:
        ReadError: The mask's grid is not the scan's.
    """
    if not same_place(mask.grid, prepared.scan_grid):
        msg = (
            f"The lesions lie on {mask.grid.shape} voxels and the scan on "
            f"{prepared.scan_grid.shape}, or at another place: draw them on this very scan."
        )
        raise ReadError(msg)
    canonical = on_body(mask)
    grid = canonical.grid
    start = grid.to_index(np.asarray(prepared.grid.origin_mm, dtype=np.float64))
    depth, height, width = (
        new / old for new, old in zip(prepared.grid.spacing_mm, grid.spacing_mm, strict=True)
    )
    voxels = np.ascontiguousarray(canonical.voxels, dtype=np.bool_)
    where = (float(start[0]), float(start[1]), float(start[2]))
    return mask_on_grid(
        voxels, bounding_box(voxels), (where, (depth, height, width), prepared.grid.shape)
    )


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


SHARES: Final[dict[str, str]] = {
    "in_lungs": "in lungs",
    "in_grown_lungs": "in lungs + 1 cell",
    "in_lesions": "in lesions",
    "in_grown_lesions": "in lesions + 1 cell",
    "dice": "Dice at 0.5",
}
"""Figures with a mean and a bootstrap over patients: field of `MapScores` to heading."""
HITS: Final[dict[str, str]] = {"is_hit": "pointing game", "is_near_hit": "within 1 cell"}
"""Figures that are counted, with Wilson's interval."""
CHANCE: Final = ("lesion_share", "grown_lungs_fill")


def summarise_maps(
    scores: Sequence[MapScores], bootstrap: Bootstrap | None = None
) -> dict[str, Estimate]:
    """Every figure over patients, by its field in `MapScores`.

    Maps that are zero everywhere have no shares; they count as misses, and as a Dice of 0.

    Raises:
        ValueError: There are no maps.
    """
    if not scores:
        raise ValueError("there are no maps to summarise")
    settings = bootstrap or Bootstrap()
    found = {name: _mean(scores, name, settings) for name in (*SHARES, *CHANCE)}
    return found | {name: _rate(scores, name) for name in HITS}


def as_table(rows: Mapping[tuple[str, ...], Sequence[MapScores]], headings: Sequence[str]) -> str:
    """A Markdown table, one line per row.

    Args:
        rows: What a row is (as many texts as headings) to the maps of its patients.
        headings: Of these texts.
    """
    names = [*SHARES, *HITS]
    lines = []
    for what, scores in rows.items():
        found = summarise_maps(scores)
        empty = sum(each.in_lungs is None for each in scores)
        chance = ", ".join(_percent(found[name].value) for name in CHANCE)
        cells = [estimate_text(found[name]) for name in names]
        lines.append([*what, *cells, chance, str(empty)])
    titles = [*SHARES.values(), *HITS.values()]
    return as_markdown_table([*headings, *titles, "chance: lesion, lungs + 1", "empty"], lines)


def estimate_text(estimate: Estimate) -> str:
    """A share in per cent with its interval."""
    if estimate.low is None or estimate.high is None:
        return _percent(estimate.value)
    return f"{_percent(estimate.value)} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f}"


def _mean(scores: Sequence[MapScores], name: str, settings: Bootstrap) -> Estimate:
    known = [getattr(each, name) for each in scores if getattr(each, name) is not None]
    if not known:
        return Estimate(None, note="no map has evidence")
    values = np.array(known, dtype=np.float64)
    if values.size == 1:
        return Estimate(float(values[0]), note="no interval: one patient shows no spread")
    rng = np.random.default_rng(settings.seed)
    drawn = rng.integers(values.size, size=(settings.replicates, values.size))
    low, high, note = percentile_interval(values[drawn].mean(axis=1), settings.level)
    return Estimate(float(values.mean()), low, high, PATIENTS, note)


def _rate(scores: Sequence[MapScores], name: str) -> Estimate:
    hits, total = sum(getattr(each, name) for each in scores), len(scores)
    low, high = wilson(hits, total)
    return Estimate(hits / total, low, high, WILSON, hits=hits, total=total)

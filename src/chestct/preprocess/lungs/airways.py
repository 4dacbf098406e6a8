"""Trachea and main bronchi: found in the slices, then grown until they would leak.

In axial slices the trachea is a round dark spot that runs on from slice to slice. From it the
lumen is grown in three dimensions at rising thresholds; where the wall gives way the volume
jumps from some tens of millilitres to a lung, and the last threshold before the jump counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from chestct.arrays import Mask, Spacing
from chestct.preprocess.lungs.coarse import CoarseScan
from chestct.preprocess.threads import on_threads

LUMEN_BELOW_HU: Final = -800
TRACHEA_MM2: Final = (40.0, 900.0)
"""Cross-sections taken for a trachea; partial volume makes small ones smaller still."""
THRESHOLDS_HU: Final = tuple(range(-980, -680, 20))

_WIDEST_MM = 45.0
_LEAST_FILL = 0.5
_SHORTEST_MM = 12.0
_LARGEST_TREE_ML = 150.0
_LEAK_FACTOR = 1.6
_LEAK_ML = 10.0
_BOX_MM = (70.0, 55.0, 60.0)


@dataclass(frozen=True, eq=False)
class Spot:
    """One round dark spot in a slice.

    Attributes:
        depth: Index of the slice.
        pixels: Where in the slice.
    """

    depth: int
    pixels: Bool[np.ndarray, "height width"]


def find_airways(scan: CoarseScan, lungs: Mask, enclosed: Mask) -> Mask:
    """The lumen of trachea and main bronchi, without walls; empty where no trachea is found.

    Args:
        scan: Coarse scan.
        lungs: Lung air, with or without the airways in it.
        enclosed: Where there is body around.
    """
    trachea = _longest_chain(scan, lungs, enclosed)
    if not trachea:
        return np.zeros(scan.hu.shape, dtype=np.bool_)
    return _grow(scan, trachea)


def _longest_chain(scan: CoarseScan, lungs: Mask, enclosed: Mask) -> list[Spot]:
    """The longest run of overlapping spots that begins in the upper half of the lungs."""
    depths = np.flatnonzero(lungs.any(axis=(1, 2)))
    if not depths.size:
        return []
    middle = (depths[0] + depths[-1]) / 2
    ended: list[list[Spot]] = []
    running: list[list[Spot]] = []
    found = on_threads(lambda i: _round_spots(scan, i, enclosed[i]), range(scan.hu.shape[0]))
    for spots in reversed(found):
        continued = []
        for chain in running:
            index = next((i for i, s in enumerate(spots) if _overlap(chain[-1], s)), None)
            if index is None:
                ended.append(chain)
            else:
                continued.append([*chain, spots.pop(index)])
        running = continued + [[spot] for spot in spots]
    chains = [c for c in ended + running if c[0].depth >= middle]
    longest = max(chains, key=len, default=[])
    return longest if len(longest) * scan.spacing_mm[0] >= _SHORTEST_MM else []


def _overlap(one: Spot, other: Spot) -> bool:
    return bool((one.pixels & other.pixels).any())


def _round_spots(
    scan: CoarseScan, depth: int, enclosed: Bool[np.ndarray, "height width"]
) -> list[Spot]:
    """Dark pieces of one slice that have the size and compactness of a trachea."""
    _, rows_mm, columns_mm = scan.spacing_mm
    dark = ((scan.hu[depth] < LUMEN_BELOW_HU) & enclosed).view(np.uint8)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(dark, connectivity=4)
    _, _, width, height, area = boxes[1:].T
    area_mm2 = area * (rows_mm * columns_mm)
    is_round = (area_mm2 >= TRACHEA_MM2[0]) & (area_mm2 <= TRACHEA_MM2[1])
    is_round &= area >= _LEAST_FILL * width * height
    is_round &= np.maximum(width * columns_mm, height * rows_mm) < _WIDEST_MM
    return [Spot(depth, labels == label + 1) for label in np.flatnonzero(is_round)]


def _grow(scan: CoarseScan, trachea: list[Spot]) -> Mask:
    """The dark region connected with the trachea, at the last threshold before it leaks."""
    box = _box_around(trachea, scan.spacing_mm, scan.hu.shape)
    hu = scan.hu[box]
    tree = np.zeros(scan.hu.shape, dtype=np.bool_)
    for spot in trachea:
        tree[spot.depth] = spot.pixels
    seed = tree[box]
    grown, volume_ml = seed, scan.volume_ml(int(np.count_nonzero(seed)))
    for threshold in THRESHOLDS_HU:
        labels, _ = ndimage.label(hu < threshold)
        shared = np.bincount(labels[seed])
        shared[0] = 0
        if not shared.any():
            continue
        reached = labels == int(shared.argmax())
        reached_ml = scan.volume_ml(int(np.count_nonzero(reached)))
        leaks = reached_ml > _LEAK_FACTOR * volume_ml + _LEAK_ML
        if leaks or reached_ml > _LARGEST_TREE_ML:
            break
        grown, volume_ml = reached, max(volume_ml, reached_ml)
    tree[box] |= grown
    return tree


def _box_around(
    trachea: list[Spot], spacing_mm: Spacing, shape: tuple[int, ...]
) -> tuple[slice, slice, slice]:
    """The trachea's slices and those where the main bronchi may be, around its lower end."""
    down, *aside = (int(mm / step) for mm, step in zip(_BOX_MM, spacing_mm, strict=True))
    centre = np.argwhere(trachea[-1].pixels).mean(axis=0).astype(int)
    rows, columns = (
        slice(max(0, int(c) - n), min(size, int(c) + n + 1))
        for c, n, size in zip(centre, aside, shape[1:], strict=True)
    )
    return slice(max(0, trachea[-1].depth - down), trachea[0].depth + 1), rows, columns

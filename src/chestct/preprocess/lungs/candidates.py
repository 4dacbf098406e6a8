"""Which air is lung: air inside the body, in pieces large enough and of the right density.

Outside air is told from lung by what surrounds it, not by whether it touches the edge of the
image: a field of view that cuts the body leaves lung at the edge too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int, UInt8
from scipy import ndimage

from chestct.arrays import Mask
from chestct.preprocess.lungs.coarse import CoarseScan
from chestct.preprocess.lungs.morphology import erode, opening

AERATED_BELOW_HU: Final = -400
"""Halfway between normal lung and soft tissue; most ground glass is below."""
TISSUE_ABOVE_HU: Final = -300
LUNG_MEDIAN_HU: Final = (-975, -500)
"""Median of a lung, emphysema included. Free gas lies below, most of what is in bowel above."""
SMALLEST_LUNG_ML: Final = 120
"""Sinuses and throat of a head hold some 50 ml, the lungs of a newborn scarcely more."""
SMALLEST_LUNG_CM2: Final = 40
"""Mean cross-section that stands in for the volume in scans of a few slices."""

# Nearly all of a lung has body on all four sides, a fifth still where the field of view cuts
# both flanks; of the foam in a table or air under the arms a fifth has three, none has four.
ENCLOSED_SHARES: Final = {3: 0.4, 4: 0.05}
"""Number of sides to the share of a lung's voxels that must have body on so many."""

_TABLE_MM = 5.0
_SECOND_LUNG_SHARE = 0.03
_BASE_SHARE = 0.35
# Of noise that hangs together by chance next to nothing has all its neighbours in it.
_LEAST_INNER_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Air:
    """Air of a coarse scan, taken apart.

    Attributes:
        lungs: Enclosed air taken for lung, airways still in it.
        enclosed: Every voxel with body on at least three of its four sides, in-plane.
    """

    lungs: Mask
    enclosed: Mask


def find_lung_air(scan: CoarseScan) -> Air:
    """Tell lung from all other air; no lung at all where there is none large enough."""
    sides = _sides_with_body(_body(scan))
    aerated = (scan.hu < AERATED_BELOW_HU) & ~scan.padding
    labels, _ = ndimage.label(aerated)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    for num_sides, share in ENCLOSED_SHARES.items():
        enclosed = np.bincount(labels[sides >= num_sides], minlength=sizes.size)
        sizes[enclosed < share * sizes] = 0
    is_lung = np.zeros(sizes.size, dtype=np.bool_)
    is_lung[_lung_labels(scan, labels, sizes)] = True
    lungs = is_lung[labels]
    inner = erode(lungs, 1.01 * max(scan.spacing_mm[1:]), scan.spacing_mm)
    if np.count_nonzero(inner) < _LEAST_INNER_SHARE * np.count_nonzero(lungs):
        lungs = np.zeros_like(lungs)
    return Air(lungs=lungs, enclosed=sides >= min(ENCLOSED_SHARES))


def _lung_labels(
    scan: CoarseScan, labels: Int[np.ndarray, "depth height width"], sizes: Int[np.ndarray, " n"]
) -> list[int]:
    """The largest lung-like piece, and further ones that may be the other lung."""
    chosen: list[int] = []
    boxes = ndimage.find_objects(labels)
    sizes_ml = sizes * scan.volume_ml(1)
    extent_mm = scan.hu.shape[0] * scan.spacing_mm[0]
    first_ml = min(SMALLEST_LUNG_ML, SMALLEST_LUNG_CM2 * extent_mm / 10)
    low, high = 0.0, 0.0
    for label in np.argsort(-sizes, kind="stable"):
        smallest_ml = first_ml if not chosen else _SECOND_LUNG_SHARE * sizes_ml[chosen[0]]
        if sizes_ml[label] < max(smallest_ml, 1e-9):
            break
        box = boxes[label - 1]
        piece = labels[box] == label
        if not LUNG_MEDIAN_HU[0] < np.median(scan.hu[box][piece]) < LUNG_MEDIAN_HU[1]:
            continue
        areas = np.count_nonzero(piece, axis=(1, 2))
        middle = float(np.average(np.arange(areas.size), weights=areas)) + box[0].start + 0.5
        if chosen and not low + _BASE_SHARE * (high - low) <= middle <= high:
            continue
        if not chosen:
            low, high = box[0].start, box[0].stop
        chosen.append(int(label))
    return chosen


def _body(scan: CoarseScan) -> Mask:
    """The largest piece of tissue that is thicker than a table top."""
    labels, _ = ndimage.label(opening(scan.hu > TISSUE_ABOVE_HU, _TABLE_MM, scan.spacing_mm))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = int(sizes.argmax())
    return np.asarray((labels == largest) & (largest > 0))


def _sides_with_body(body: Mask) -> UInt8[np.ndarray, "depth height width"]:
    """On how many of its four sides in the slice (front, back, right, left) a voxel has body."""
    sides = np.zeros(body.shape, dtype=np.uint8)
    for axis in (1, 2):
        size = body.shape[axis]
        is_met = body.any(axis=axis, keepdims=True)
        first = np.where(is_met, body.argmax(axis=axis, keepdims=True), size)
        last = size - 1 - np.flip(body, axis).argmax(axis=axis, keepdims=True)
        index = np.arange(size).reshape((-1, 1) if axis == 1 else (1, -1))
        sides += index >= first
        sides += index <= np.where(is_met, last, -1)
    return sides

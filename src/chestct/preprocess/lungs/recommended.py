"""Both lungs, found by a small network and drawn on the scan's own voxels.

The network (`network`) says on voxels of 4 mm how probably each is lung. Where exactly the surface
runs is decided on the scan's own voxels, from that probability and the voxel's own value: near the
surface a thin voxel is lung sooner than a dense one, unless lung there is dense itself, and than
one that is as bright as blood with contrast medium or bone.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Num
from scipy import ndimage

from chestct.arrays import Heat, Mask, Voxels
from chestct.engines import AUTO
from chestct.errors import RecipeError
from chestct.preprocess.lungs import FoundLungs, NetworkLungs
from chestct.preprocess.lungs.network import ask_network
from chestct.preprocess.threads import on_threads
from chestct.volume import AIR_HU, Volume

_AERATED_HU: Final = (-550.0, -250.0)
"""Below the first value a voxel is thin like lung, above the second it is dense like tissue."""
_THIN_EVIDENCE: Final = 4.0
"""Log odds by which a thin voxel speaks for lung."""
_DENSE_SHARE: Final = (0.05, 0.23)
_DENSE_EVIDENCE: Final = (-2.3, 2.0)
"""Log odds by which a dense voxel speaks for lung where of the lung nearby a smaller share than the
first is dense, as in healthy lungs, and where a larger one than the second is (docs/lungs.md)."""
_BRIGHT_HU: Final = (150.0, 200.0)
"""Airless lung seldom reaches the first value; above the second are contrast medium and bone."""
_BRIGHT_EVIDENCE: Final = 3.0
"""Log odds by which a bright voxel speaks against lung; of vessels in lungs the network is sure."""
_FAT_HU: Final = (-140.0, -50.0)
_FAT_SPREAD_HU: Final = 30.0
_FAT_PIXEL_MM: Final = 2.0
"""Fat is where the mean of nine such pixels lies between these values and their standard deviation
is smaller than that: at an edge between lung and tissue, whose mean is alike, it is far larger."""
_MISTAKEN_LUNG: Final = 0.3
_MISTAKEN_NEARBY: Final = (3, 6)
"""Where body fat is lung more probably than the first says, beside gas of bowel, the network takes
colon behind a thin rim of lung for disease: within so many of its voxels of such fat, and so many
of such gas, dense voxels are none (docs/lungs.md)."""
_OTHER_GAS = 0.3
_BODY_FAT_SHARE: Final = 0.6
"""A piece of fat is the body's where so much of it lies away from all lung; in disease that is half
filled, which may look like fat, little does."""
_SMALLEST_PIECE_ML: Final = 10.0
_SMALLEST_PIECE_SHARE: Final = 0.01
"""A piece apart from the others that is smaller, or a smaller share of all pieces, is no lung."""
_LEAST_SURE_SHARE: Final = 0.2
"""Nor is a piece of which the network is sure of a smaller share: in noise it is of a tenth, in the
lowest centimetres of real lungs of a third, in whole lungs of nine tenths."""

_LEAST_LUNG = 0.15
_SURE = 0.9
_LARGEST_HOLE_ML = 600.0
_LIKELY = 0.7
_NEARBY = 7
_LEAST_ODDS = 1e-3
# Real air is noisy: that a pixel has the least value in this many slices means it is padding.
_MIN_SLICES_FOR_CONSTANT = 8

_Plane = Float32[np.ndarray, "rows columns"]
_Numbers = Float32[np.ndarray, "..."]


_Evidence: TypeAlias = tuple[Heat, Heat, Heat]
"""What the network's grid says of each of its voxels, to be interpolated: log odds of lung against
background; log odds by which a dense voxel speaks for lung, positive where lung nearby is dense and
negative where it is thin; probability of lung less that of other gas."""


def find_recommended(volume: Volume, *, engine: str = AUTO) -> FoundLungs:
    """Find both lungs.

    Args:
        volume: Canonical scan in Hounsfield units; any spacing, any field of view.
        engine: As in `chestct.engines.voxel_runner`.

    Returns:
        Mask on the volume's grid (empty where no lungs are found), and what the network said.

    Raises:
        RecipeError: The volume is not in Hounsfield units.
        NetworkError: The network's files are missing or damaged.
        EngineError: The engine cannot run the network.
    """
    if volume.unit != "HU":
        msg = (
            f"The lung method 'recommended' needs a scan in Hounsfield units, and this one is "
            f"{volume.unit}. Use a recipe with the method 'published', or the original scan."
        )
        raise RecipeError(msg)
    network = ask_network(volume, engine=engine)
    return FoundLungs(_draw_lungs(volume, network), network)


def _draw_lungs(volume: Volume, network: NetworkLungs) -> Mask:
    """The lungs on the scan's own voxels.

    Args:
        volume: Canonical scan in Hounsfield units.
        network: What the network said of it.
    """
    voxels = volume.voxels
    mask = np.zeros(voxels.shape, dtype=np.bool_)
    lung = _settled(network)
    planes = np.flatnonzero((lung > _LEAST_LUNG).any(axis=(1, 2)))
    if not planes.size:
        return mask
    start, step = _depth_on_network(volume, network)
    evidence = _evidence(network, lung, _fat_on_network(volume, lung.shape, start, step))
    ends = (np.array([planes[0] - 1.5, planes[-1] + 1.5]) - start) / step
    is_padding = _padding(voxels)

    def draw(index: int) -> None:
        """Write one slice of the mask; slices do not overlap, so threads need no lock."""
        is_lung = _is_lung(voxels[index], evidence, start + step * index)
        mask[index] = is_lung & ~is_padding

    on_threads(draw, range(max(0, int(ends[0])), min(len(voxels), int(ends[1]) + 2)))
    return mask


def _depth_on_network(volume: Volume, network: NetworkLungs) -> tuple[float, float]:
    """Depth of the scan's first slice and of one slice on the network's grid."""
    step = volume.grid.spacing_mm[0] / network.grid.spacing_mm[0]
    first = np.asarray(volume.grid.origin_mm, dtype=np.float64)
    return float(network.grid.to_index(first)[0]), step


def _settled(network: NetworkLungs) -> Heat:
    """Probability of lung, 0 away from every large piece and 1 in what lung encloses.

    A piece goes on where the network is in doubt, as long as it is thin like lung: so much of the
    surface is drawn. What counts for its size is where the network is sure, for of what it never
    saw (noise, food) it may believe that it is lung, but it is not sure of any part.
    """
    lung, other_gas = network.probabilities[1] + network.probabilities[2], network.probabilities[3]
    is_lung = lung > 0.5
    goes_on = (lung > _LEAST_LUNG) & (lung > other_gas) & (network.hu < _AERATED_HU[0])
    labels, _ = ndimage.label(is_lung | goes_on)
    sizes = np.bincount(labels.ravel())
    sure = np.bincount(labels[lung > _SURE], minlength=len(sizes))
    sure_ml = sure * network.grid.voxel_ml
    is_kept = sure_ml > max(_SMALLEST_PIECE_ML, _SMALLEST_PIECE_SHARE * sure_ml.sum())
    is_kept &= sure > _LEAST_SURE_SHARE * sizes
    is_kept[0] = False
    near = ndimage.binary_dilation(is_kept[labels], iterations=2)
    holes = _holes(is_lung, _LARGEST_HOLE_ML / network.grid.voxel_ml)
    filled = np.where(holes & (other_gas < 0.5), 1.0, lung)
    return np.where(near, filled, 0.0).astype(np.float32)


def _holes(lungs: Mask, largest: float) -> Mask:
    """What lung encloses, such as a mass, of fewer voxels than `largest`; not at the edges."""
    labels, _ = ndimage.label(~lungs)
    is_hole = np.bincount(labels.ravel()) < largest
    for axis in range(3):
        for end in (0, -1):
            is_hole[np.unique(labels.take(end, axis=axis))] = False
    is_hole[0] = False
    return np.asarray(is_hole[labels])


def _fat_on_network(volume: Volume, shape: tuple[int, ...], start: float, step: float) -> Heat:
    """Share of fat in each voxel of the network's grid, by the nearest slice.

    Args:
        volume: Canonical scan in Hounsfield units.
        shape: Of the network's grid.
        start: Depth of the scan's first slice on the network's grid.
        step: Depth of one slice there.
    """
    nearest = np.clip(np.rint((np.arange(shape[0]) - start) / step), 0, len(volume.voxels) - 1)
    spacing_mm, (_, rows, columns) = volume.grid.spacing_mm[1:], shape

    def share(index: float) -> _Plane:
        fat = _find_fat(volume.voxels[int(index)], spacing_mm)
        return np.asarray(cv2.resize(fat, (columns, rows), interpolation=cv2.INTER_AREA))

    return np.stack(on_threads(share, nearest))


def _find_fat(
    plane: Num[np.ndarray, "rows columns"], spacing_mm: tuple[float, ...]
) -> Float32[np.ndarray, "fat_rows fat_columns"]:
    """Where a slice shows fat, 1 there and 0 elsewhere, on pixels of some 2 mm.

    Args:
        plane: The slice in HU.
        spacing_mm: Size of its pixels, (row, column).
    """
    rows, columns = (
        min(size, max(1, round(size * mm / _FAT_PIXEL_MM)))
        for size, mm in zip(plane.shape, spacing_mm, strict=True)
    )
    hu = np.clip(plane, AIR_HU, _BRIGHT_HU[1]).astype(np.float32)
    hu = cv2.resize(hu, (columns, rows), interpolation=cv2.INTER_AREA)
    mean = cv2.blur(hu, (3, 3))
    variance = cv2.blur(hu * hu, (3, 3)) - mean * mean
    low, high = _FAT_HU
    is_fat = (mean > low) & (mean < high) & (variance < _FAT_SPREAD_HU**2)
    grown = cv2.dilate(is_fat.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return np.asarray(grown & (np.abs(hu - mean) < 2 * _FAT_SPREAD_HU), dtype=np.float32)


def _near_colon(network: NetworkLungs, lung: Heat, fat: Heat) -> Mask:
    """Where colon and the fat about it are taken for lung."""
    labels, _ = ndimage.label(fat > 0.5)
    sizes = np.bincount(labels.ravel())
    outside = np.bincount(labels[lung < _LEAST_LUNG], minlength=len(sizes))
    is_body = outside > _BODY_FAT_SHARE * sizes
    is_body[0] = False
    of_fat, of_gas = _MISTAKEN_NEARBY
    is_mistaken = is_body[labels] & (lung > _MISTAKEN_LUNG)
    is_gas = network.probabilities[3] > _OTHER_GAS
    return np.asarray(
        ndimage.binary_dilation(is_mistaken, iterations=of_fat)
        & ndimage.binary_dilation(is_gas, iterations=of_gas)
    )


def _evidence(network: NetworkLungs, lung: Heat, fat: Heat) -> _Evidence:
    background = 1 - lung - np.minimum(network.probabilities[3], 1 - lung)
    odds = np.log(np.maximum(lung, _LEAST_ODDS) / np.maximum(background, _LEAST_ODDS))
    # At the surface, where lung is less likely, half of a voxel may be chest wall.
    is_likely = lung > _LIKELY
    counted, dense = (
        ndimage.uniform_filter(part.astype(np.float32), _NEARBY, mode="nearest")
        for part in (is_likely, is_likely & (network.hu > _AERATED_HU[1]))
    )
    least, most = _DENSE_EVIDENCE
    share = dense / np.maximum(counted, np.float32(1e-3))
    of_dense = least + (most - least) * _rise(share, _DENSE_SHARE)
    of_dense[_near_colon(network, lung, fat)] = least
    lead = lung - network.probabilities[3]
    return odds.astype(np.float32), of_dense.astype(np.float32), lead


def _is_lung(
    plane: Num[np.ndarray, "rows columns"], evidence: _Evidence, position: float
) -> Bool[np.ndarray, "rows columns"]:
    """Which pixels of one slice are lung.

    Args:
        plane: The slice.
        evidence: On the network's grid.
        position: Depth of the slice on the network's grid.
    """
    odds, dense, lead = (_enlarged(part, position, plane.shape) for part in evidence)
    hu = plane.astype(np.float32)
    of_value = _THIN_EVIDENCE + (dense - _THIN_EVIDENCE) * _rise(hu, _AERATED_HU)
    of_value -= _BRIGHT_EVIDENCE * _rise(hu, _BRIGHT_HU)
    return np.asarray((odds + of_value > 0) & (lead > 0))


def _rise(values: _Numbers, between: tuple[float, float]) -> _Numbers:
    """0 below the first value, 1 above the second, linear between them."""
    low, high = between
    return np.asarray(np.clip((values - low) / np.float32(high - low), 0, 1))


def _enlarged(values: Heat, position: float, shape: tuple[int, ...]) -> _Plane:
    """Values of one slice of the scan, interpolated linearly from the network's grid."""
    last = len(values) - 1
    position = min(max(position, 0.0), float(last))
    below = min(int(position), max(last - 1, 0))
    plane = values[below]
    share = np.float32(position - below)
    if share > 0:
        plane = plane + share * (values[below + 1] - plane)
    return np.asarray(cv2.resize(plane, shape[::-1], interpolation=cv2.INTER_LINEAR))


def _padding(voxels: Voxels) -> Bool[np.ndarray, "rows columns"]:
    """Where no slice has data: below air throughout, or the scan's least value throughout."""
    highest = voxels.max(axis=0)
    if voxels.shape[0] < _MIN_SLICES_FOR_CONSTANT:
        return np.asarray(highest < AIR_HU)
    return np.asarray((highest < AIR_HU) | (highest == voxels.min()))

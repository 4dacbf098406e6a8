"""Metal in and on the body, and the streaks it throws across its slices."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Float64, Int16

from chestct.simulate.anatomy import Anatomy
from chestct.simulate.fields import Plane
from chestct.simulate.pose import Pose
from chestct.simulate.tubes import Segments, fill_tubes
from chestct.volume import Grid, Volume

METALS = ("pacemaker", "wires", "rods", "clips", "teeth", "hip", "electrodes")
"""What may be in or on a body."""

Path = list[tuple[float, float, float]]


def add_metal(
    scan: Volume, metal: str, anatomy: Anatomy, pose: Pose, rng: np.random.Generator
) -> Int16[np.ndarray, "depth height width"]:
    """A scan's voxels with metal and its streaks.

    Args:
        scan: Scan in HU, canonical axes.
        metal: One of `METALS`, or "none".
        anatomy: Sizes of the body.
        pose: Where the body lies.
        rng: Where the randomness comes from.
    """
    voxels = scan.voxels.astype(np.float32)
    if metal != "none":
        segments = pose.place(_segments(metal, anatomy, rng), scan.grid)
        filled = fill_tubes(segments, scan.grid.shape, scan.grid.spacing_mm)
        for level in np.flatnonzero(filled.reshape(len(filled), -1).max(axis=1) > 0.05):
            voxels[level] += _streaks(filled[level], scan.grid, rng)
            voxels[level] += filled[level] * (9000.0 - voxels[level])
    return np.clip(np.rint(voxels), -1024, 3071).astype(np.int16)


def _segments(metal: str, anatomy: Anatomy, rng: np.random.Generator) -> Segments:
    """Metal as tubes in the body's (z, y, x)."""
    paths: list[tuple[Path, float]] = _PATHS[metal](anatomy, rng)
    starts, ends, radii = [], [], []
    for path, radius in paths:
        for start, end in pairwise(path):
            starts.append(start[::-1])
            ends.append(end[::-1])
            radii.append(radius)
    return Segments(np.array(starts, float), np.array(ends, float), np.array(radii, float))


def _pacemaker(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[Path, float]]:
    """A box under the skin of the chest and its lead to the heart."""
    side = float(rng.choice([-1, 1, 1]))
    width, depth, apex = anatomy.half_width, anatomy.half_depth, anatomy.lung_height
    box = (side * 0.62 * width, -0.85 * depth - 12, 0.85 * apex)
    low = (box[0] + side * 18, box[1] + 4, box[2] - 25)
    lead = [box, (side * 30.0, -0.2 * depth, 0.95 * apex), (-28.0, -0.2 * depth, 0.6 * apex),
            (-10.0, -0.3 * depth, 0.15 * apex), (40.0, -0.5 * depth, 0.08 * apex)]  # fmt: skip
    return [([box, low], 9.0), (lead, 1.1)]


def _wires(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[Path, float]]:
    """Wires around the breast bone, and a valve in the heart."""
    depth, apex = anatomy.half_depth, anatomy.lung_height
    loops: list[tuple[Path, float]] = []
    for share in np.linspace(0.15, 0.8, 6):
        z = float(share) * apex
        ring: Path = [
            (x, -y * depth - 4, z)
            for x, y in ((-14.0, 0.9), (0.0, 1.06), (14.0, 0.9), (-14.0, 0.88))
        ]
        loops.append((ring, 0.9))
    turns = np.linspace(0, 2 * np.pi, 9)
    valve = [(12 + 12 * float(np.cos(t)), -0.25 * depth, 0.22 * apex + 12 * float(np.sin(t)))
             for t in turns]  # fmt: skip
    return [*loops, (valve, 1.6)]


def _rods(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[Path, float]]:
    """Two rods beside the spine with screws into the vertebrae."""
    y, pitch = anatomy.spine_y, anatomy.rib_pitch
    low = float(rng.uniform(-120, 20))
    found: list[tuple[Path, float]] = []
    for side in (-1.0, 1.0):
        found.append(([(side * 20, y + 34, low), (side * 20, y + 34, low + 6 * pitch)], 3.0))
        for step in range(0, 7, 2):
            z = low + step * pitch
            found.append(([(side * 20, y + 34, z), (side * 10, y - 5, z)], 2.6))
    return found


def _clips(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[Path, float]]:
    """A dozen clips anywhere in the trunk."""
    size = np.array([0.8 * anatomy.half_width, 0.8 * anatomy.half_depth, 0.5 * anatomy.lung_height])
    places = rng.uniform(-1, 1, (12, 3)) * size + np.array([0, 0, 0.45 * anatomy.lung_height])
    ends = places + rng.normal(0, 3, places.shape)
    return [([_point(a), _point(b)], 1.2) for a, b in zip(places, ends, strict=True)]


def _teeth(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[Path, float]]:
    """Fillings and crowns."""
    found: list[tuple[Path, float]] = []
    for angle in rng.uniform(-1.2, 1.2, 5):
        x, y = 26 * np.sin(angle), -50 - 32 * np.cos(angle)
        z = anatomy.lung_height + 122 + float(rng.uniform(-4, 4))
        found.append(([(float(x), float(y), z), (float(x), float(y), z + 5)], 3.5))
    return found


def _hip(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[Path, float]]:
    """An artificial hip joint."""
    side, z = float(rng.choice([-1, 1])), -anatomy.dome - 250.0
    return [
        ([(side * 88, -4.0, z), (side * 89, -4.0, z + 1)], 22.0),
        ([(side * 88, -4.0, z), (side * 112, 0.0, z - 20), (side * 100, 0.0, z - 150)], 8.0),
    ]


def _electrodes(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[Path, float]]:
    """Electrodes and their cables on the skin of the chest."""
    depth, apex = anatomy.half_depth, anatomy.lung_height
    y = -depth - 20 - anatomy.fat
    found: list[tuple[Path, float]] = []
    for _ in range(3):
        x, z = float(rng.uniform(-100, 100)), float(rng.uniform(0.1, 0.9)) * apex
        found.append(([(x, y, z), (x, y + 2, z)], 5.0))
        found.append(([(x, y, z), (float(rng.uniform(-150, 150)), y - 15, z - 90)], 1.3))
    return found


_PATHS = {
    "pacemaker": _pacemaker,
    "wires": _wires,
    "rods": _rods,
    "clips": _clips,
    "teeth": _teeth,
    "hip": _hip,
    "electrodes": _electrodes,
}


def _point(place: Float64[np.ndarray, " 3"]) -> tuple[float, float, float]:
    return float(place[0]), float(place[1]), float(place[2])


def _streaks(
    filled: Float32[np.ndarray, "rows columns"], grid: Grid, rng: np.random.Generator
) -> Plane:
    """Bright and dark rays from a slice's metal, weaker with distance, in HU."""
    mass = float(filled.sum()) * grid.spacing_mm[1] ** 2
    rows, columns = np.indices(filled.shape, dtype=np.float32)
    weight = filled / filled.sum()
    y = (rows - float((rows * weight).sum())) * grid.spacing_mm[1]
    x = (columns - float((columns * weight).sum())) * grid.spacing_mm[2]
    angle = np.arctan2(y, x)
    rays = np.zeros(filled.shape, dtype=np.float32)
    for waves in rng.integers(3, 34, 9):
        rays += np.cos(2 * int(waves) * angle + float(rng.uniform(0, 6.3))) / np.sqrt(9.0)
    reach = 25.0 + 2.0 * np.sqrt(mass)
    strength = float(np.clip(55.0 * np.sqrt(mass), 60, 1100)) * float(rng.uniform(0.5, 1.2))
    return np.asarray(strength * rays * reach / (reach + np.hypot(x, y)) ** 1.0 * 0.6, np.float32)

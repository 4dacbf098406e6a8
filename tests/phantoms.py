"""A chest drawn from ellipsoids on any grid: quick, exact, its landmarks known in millimetres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chestct.volume import CANONICAL_DIRECTION, Grid, Volume

Point = tuple[float, float, float]

LUNG_HU, TISSUE_HU, LIVER_HU, BONE_HU, FAT_HU, GAS_HU = -850.0, 40.0, 60.0, 500.0, -90.0, -980.0
BLOB_SIGMA_MM = 5.0


def chest_grid(
    shape: tuple[int, int, int] = (72, 72, 84),
    spacing_mm: tuple[float, float, float] = (5.0, 4.5, 4.5),
    direction: tuple[tuple[float, float, float], ...] = CANONICAL_DIRECTION,
) -> Grid:
    """A grid whose centre lies in the middle of the chest, at patient position (0, 0, 0)."""
    centred = Grid(shape, spacing_mm, (0.0, 0.0, 0.0), direction)
    half = (np.asarray(shape) - 1) / 2.0
    x, y, z = (-centred.to_patient(half)).tolist()
    return Grid(shape, spacing_mm, (x, y, z), direction)


def turned_grid(degrees: float, axis: int) -> Grid:
    """A chest grid turned about one patient axis (0 x, 1 y, 2 z)."""
    angle = np.deg2rad(degrees)
    first, second = (i for i in range(3) if i != axis)
    turn = np.eye(3)
    turn[first, first] = turn[second, second] = np.cos(angle)
    turn[first, second], turn[second, first] = np.sin(angle), -np.sin(angle)
    turned = np.asarray(CANONICAL_DIRECTION) @ turn
    depth, height, width = (tuple(float(x) for x in row) for row in turned)
    return chest_grid(direction=(depth, height, width))  # type: ignore[arg-type]


def chest(
    grid: Grid | None = None, blobs: Sequence[Point] = (), *, has_lungs: bool = True
) -> Volume:
    """Draw the chest on a grid; each blob is a soft-tissue nodule at a patient position."""
    grid = grid or chest_grid()
    indices = np.stack(np.indices(grid.shape), axis=-1).astype(np.float64)
    x, y, z = np.moveaxis(grid.to_patient(indices), -1, 0)

    def ellipsoid(centre: Point, radii: Point) -> np.ndarray:
        scaled = ((p - c) / r for p, c, r in zip((x, y, z), centre, radii, strict=True))
        return np.asarray(sum(part**2 for part in scaled) <= 1.0)

    hu = np.full(grid.shape, -1024.0)
    # Towards the neck the body narrows: above blunt shoulders a network expects more lung.
    taper = np.clip((z - 60.0) / 100.0, 0.0, 1.0)
    in_body = (x / (165.0 - 105.0 * taper)) ** 2 + (y / (115.0 - 50.0 * taper)) ** 2 <= 1.0
    hu[in_body] = FAT_HU
    inner = (x / (155.0 - 105.0 * taper)) ** 2 + (y / (105.0 - 50.0 * taper)) ** 2
    hu[inner <= 1.0] = TISSUE_HU
    hu[ellipsoid((60.0, 0.0, -150.0), (75.0, 85.0, 60.0))] = FAT_HU
    if has_lungs:
        for side in (-1.0, 1.0):
            lung = ellipsoid((side * 77.0, 0.0, -20.0), (60.0, 88.0, 150.0)) & (z > -130.0)
            hu[lung] = LUNG_HU
    hu[ellipsoid((-77.0, -5.0, -120.0), (62.0, 80.0, 75.0))] = LIVER_HU
    hu[ellipsoid((77.0, -5.0, -125.0), (62.0, 80.0, 65.0))] = FAT_HU
    hu[ellipsoid((60.0, -20.0, -125.0), (35.0, 40.0, 35.0)) & in_body] = GAS_HU
    hu[ellipsoid((30.0, -25.0, -45.0), (58.0, 45.0, 55.0))] = TISSUE_HU
    hu[(x**2 + (y - 10.0) ** 2 <= 8.0**2) & (z > 60.0)] = GAS_HU
    hu[x**2 + (y - 78.0) ** 2 <= 17.0**2] = BONE_HU
    hu[(x**2 + (y + 92.0) ** 2 <= 9.0**2) & (z > -60.0)] = BONE_HU
    for centre in blobs:
        squared = sum((p - c) ** 2 for p, c in zip((x, y, z), centre, strict=True))
        hu += 850.0 * np.exp(-squared / (2 * BLOB_SIGMA_MM**2))
    return Volume(grid, np.rint(hu).astype(np.int16))


def lungs_of(grid: Grid | None = None) -> Volume:
    """The chest's lungs as they are drawn: no network has to find them in so plain a body."""
    plain = chest(grid)
    return plain.with_voxels(np.asarray(plain.voxels == LUNG_HU))

"""Outline of the body, its muscle and rib cage, and the two lungs inside, as signed distances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

from chestct.simulate.anatomy import Anatomy
from chestct.simulate.fields import Field, Frame, ellipsoid, smooth_overlap, smooth_union

Outline = Float32[np.ndarray, "depth 181"]
"""Distance from the body's axis in mm, per height and per degree from the back to the front."""
Table = Float32[np.ndarray, "depth columns"]
"""Any values per height."""

_LEVELS = (-0.8, -0.3, 0.2, 0.5, 0.75, 0.9, 1.05, 1.25)
"""Heights at which outlines are given, in lung heights above the right diaphragm."""
_CAGE_WIDTH = (0.97, 1.0, 0.99, 0.94, 0.82, 0.7, 0.58, 0.5)
_CAGE_DEPTH = (1.02, 1.04, 1.04, 1.0, 0.88, 0.78, 0.7, 0.66)
_WALL_ANGLES = (0, 30, 60, 90, 120, 150, 180)
_WALL_MM = (
    (30, 30, 17, 13, 12, 12, 12),
    (29, 29, 17, 12.5, 12, 12, 12),
    (28, 28, 18, 13.5, 12.5, 12, 12),
    (28, 31, 29, 26, 19, 15, 12),
    (30, 38, 54, 62, 38, 23, 13),
    (36, 50, 86, 100, 58, 32, 17),
    (50, 74, 118, 138, 84, 46, 24),
    (50, 74, 112, 130, 84, 50, 30),
)
"""Thickness of bone and muscle outside the cage by level (rows) and angle from the back."""
_FAT = (0.7, 0.9, 1.0, 1.0, 1.1, 1.2, 1.1)


@dataclass(frozen=True, eq=False)
class ChestWall:
    """Signed distances in mm, negative inside.

    Attributes:
        body: The skin's surface.
        muscle: The muscles' outer surface; between it and the skin lies fat.
        cage: The rib cage's inner surface.
        breasts: Gland and fat of the breasts.
    """

    body: Field
    muscle: Field
    cage: Field
    breasts: Field | None


def build_chest_wall(frame: Frame, anatomy: Anatomy, rng: np.random.Generator) -> ChestWall:
    """Body outline, muscle and rib cage of one patient."""
    cage_line = _cage_outline(frame, anatomy)
    muscle_line = cage_line + _wall_outline(frame, anatomy)
    fat_line = anatomy.fat * _fat_profile(frame, anatomy)
    cage = _apply(frame, cage_line * _beside_spine())
    # A little unevenness, as nobody is a smooth ellipse.
    uneven = 1.6 * frame.noise(rng, 70.0)
    cage = cage + uneven
    muscle = _apply(frame, muscle_line) + uneven + 1.5 * frame.noise(rng, 60.0)
    body = _apply(frame, muscle_line + fat_line) + uneven + 1.2 * frame.noise(rng, 90.0)
    body = np.minimum(body, muscle - 1.5)
    # Lying flattens the back.
    rear = float((muscle_line + fat_line)[:, :30].max()) - float(rng.uniform(6, 16))
    body = smooth_overlap(body, frame.y - rear + 0 * body, 25.0)
    muscle = np.maximum(muscle, body + 1.5)
    breasts = _breasts(frame, anatomy, cage_line + 0.7 * fat_line) if anatomy.breast else None
    if breasts is not None:
        body = smooth_union(body, breasts, 22.0)
    return ChestWall(body, muscle, cage, breasts)


def build_lungs(
    frame: Frame, anatomy: Anatomy, cage: Field, mediastinum: Field, rng: np.random.Generator
) -> tuple[Field, Field]:
    """Both lungs as one signed distance, and that of the abdomen below the diaphragm."""
    diaphragm = diaphragm_distance(frame, anatomy) + 1.5 * frame.noise(rng, 60.0)
    apex = _apex_distance(frame, anatomy)
    lungs = smooth_overlap(cage, apex, 14.0)
    lungs = smooth_overlap(lungs, -mediastinum, 4.0)
    lungs = smooth_overlap(lungs, -diaphragm, 3.0)
    return lungs, np.maximum(diaphragm, cage)


def diaphragm_distance(frame: Frame, anatomy: Anatomy) -> Field:
    """Signed distance from the diaphragm, negative below it."""
    right = _dome(frame, anatomy, -0.5 * anatomy.half_width, 0.0)
    left = _dome(frame, anatomy, 0.52 * anatomy.half_width, anatomy.left_dome)
    height = np.maximum(right, left)
    across, along = np.gradient(height[0], frame.step_mm)
    slope = np.sqrt(1 + across**2 + along**2)
    return np.asarray((frame.z - height) / slope, dtype=np.float32)


def thoracic_inlet(frame: Frame, anatomy: Anatomy, cage: Field) -> Field:
    """The chest's cavity: the cage, closed above by the root of the neck."""
    return smooth_overlap(cage, _apex_distance(frame, anatomy) - 2.0, 12.0)


def _dome(frame: Frame, anatomy: Anatomy, centre_x: float, top: float) -> Field:
    """Height of one dome over the plane; it falls steepest towards the back."""
    side = (frame.x - centre_x) / (0.5 * anatomy.half_width)
    lateral = np.where(side * centre_x > 0, 38.0, 24.0) * side * side
    behind = frame.y + 0.15 * anatomy.half_depth
    depth = behind / (1.1 * anatomy.half_depth)
    fall = np.where(behind > 0, anatomy.dome * depth**2, 42.0 * depth**2)
    return np.asarray(top - lateral - fall, dtype=np.float32)


def _apex_distance(frame: Frame, anatomy: Anatomy) -> Field:
    """Signed distance from the paraboloids that close the lungs at the top."""
    side = np.abs(frame.x) - 0.37 * anatomy.half_width
    behind = frame.y - 0.12 * anatomy.half_depth
    height = anatomy.lung_height - 0.015 * side**2 - 0.011 * behind**2
    slope = np.sqrt(1 + (0.03 * side) ** 2 + (0.022 * behind) ** 2)
    return np.asarray((frame.z - height) / slope, dtype=np.float32)


def _levels(frame: Frame, anatomy: Anatomy, values: tuple[float, ...]) -> Table:
    """Values given at the levels, at each height of the grid, shape (depth, 1)."""
    height = frame.z[:, 0, 0] / anatomy.lung_height
    return _smooth(np.interp(height, _LEVELS, values).astype(np.float32)[:, None], 6.0)


def _smooth(table: Table, sigma: float) -> Table:
    return np.asarray(ndimage.gaussian_filter1d(table, sigma, axis=0, mode="nearest"))


def _cage_outline(frame: Frame, anatomy: Anatomy) -> Outline:
    """Superellipse whose width and depth change with height; flatter in front and beside."""
    angle = np.radians(np.arange(181, dtype=np.float32))[None]
    width = anatomy.half_width * _levels(frame, anatomy, _CAGE_WIDTH)
    depth = anatomy.half_depth * _levels(frame, anatomy, _CAGE_DEPTH)
    power = np.where(np.cos(angle) > 0, 2.5, 2.15)
    sideways = (np.abs(np.sin(angle)) / width) ** power
    backwards = (np.abs(np.cos(angle)) / depth) ** power
    return np.asarray((sideways + backwards) ** (-1 / power), dtype=np.float32)


def _beside_spine() -> Float32[np.ndarray, "1 181"]:
    """Ribs leave the spine backwards: the cage reaches farthest back a hand's breadth aside."""
    angle = np.arange(181, dtype=np.float32)[None]
    return np.asarray(1 - 0.4 * np.exp(-((angle / 25) ** 4)), dtype=np.float32)


def _wall_outline(frame: Frame, anatomy: Anatomy) -> Outline:
    """Thickness of ribs and muscle."""
    angles = np.arange(181)
    rows = np.array([np.interp(angles, _WALL_ANGLES, row) for row in _WALL_MM])
    rows = ndimage.gaussian_filter1d(rows, 8.0, axis=1, mode="nearest")
    height = frame.z[:, 0, 0] / anatomy.lung_height
    place = np.interp(height, _LEVELS, np.arange(len(_LEVELS)))
    low = np.minimum(place.astype(np.intp), len(_LEVELS) - 2)
    share = (place - low)[:, None]
    table = rows[low] * (1 - share) + rows[low + 1] * share
    table = 10.0 + (table - 10.0) * anatomy.muscle
    return _smooth(table.astype(np.float32), 5.0)


def _fat_profile(frame: Frame, anatomy: Anatomy) -> Outline:
    """Fat under the skin relative to the chest's side: thick in front of the belly."""
    angles = np.arange(181)
    around = np.interp(angles, _WALL_ANGLES, _FAT)
    belly = np.exp(-(((angles - 150) / 45) ** 2))
    height = frame.z[:, 0, 0] / anatomy.lung_height
    share = np.clip(0.5 - height * 1.6, 0, 1)[:, None]
    table = around[None] * (1 - 0.25 * np.clip(height, 0, 1)[:, None]) + 0.6 * share * belly[None]
    return np.asarray(table, dtype=np.float32)


def _apply(frame: Frame, outline: Outline) -> Field:
    """Signed distance from a star-shaped outline, by height and angle."""
    place = frame.angle[0]
    low = np.minimum(place.astype(np.intp), 179)
    share = place - low
    steep = np.gradient(outline, axis=1) * (180 / np.pi) / outline
    cosine = 1 / np.sqrt(1 + steep**2)
    fields = np.empty(frame.shape, dtype=np.float32)
    for level in range(frame.shape[0]):
        line = outline[level]
        edge = line[low] + share * (line[low + 1] - line[low])
        np.multiply(frame.radius[0] - edge, cosine[level][low], out=fields[level])
    return fields


def _breasts(frame: Frame, anatomy: Anatomy, chest_line: Outline) -> Field:
    """Two ellipsoids on the chest, flattened as in a patient lying on the back."""
    level = int(np.argmin(np.abs(frame.z[:, 0, 0] - 0.3 * anatomy.lung_height)))
    place = np.radians(138.0)
    reach = float(chest_line[level, 138])
    x, y = reach * np.sin(place), reach * np.cos(place)
    size = (62.0, 12.0 + anatomy.breast, 58.0)
    height = 0.32 * anatomy.lung_height
    left = ellipsoid(frame, (float(x), float(y), height), size, 22.0)
    right = ellipsoid(frame, (-float(x), float(y), height), size, -22.0)
    return np.asarray(np.minimum(left, right))

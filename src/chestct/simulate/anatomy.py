"""One patient's sizes, drawn once, and the chest they make: wall, lungs, bones.

Positions are patient coordinates in mm: x to the left, y to the back, z to the head, with the
body's axis at x = y = 0 and z = 0 at the top of the right diaphragm. Shapes are signed distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

from chestct.simulate.fields import (
    AnyField,
    Field,
    Frame,
    ellipsoid,
    smooth_overlap,
    smooth_union,
    tube_distance,
)


@dataclass(frozen=True)
class Anatomy:
    """Sizes of one patient, in mm unless said otherwise.

    Attributes:
        is_female: Adds breasts and a smaller frame.
        half_width: Largest half width of the rib cage's inside.
        half_depth: Largest half depth of the rib cage's inside.
        lung_height: From the right diaphragm's top to the lung apex.
        fat: Thickness of fat under the skin at the chest's side.
        muscle: Factor on the thickness of the muscles around the chest.
        breast: How far the breasts stand out; 0 in men.
        rib_pitch: Height of one vertebra with its disc, and so between ribs.
        rib_drop: How far a rib descends from the spine to the front.
        dome: How far the posterior recess lies below the right diaphragm's top.
        left_dome: Height of the left diaphragm's top, negative.
        heart: Factor on the heart's size.
        vessel: Factor on the calibre of the great vessels.
        turn_degrees: Turn of the body about its long axis.
        kyphosis: How much the upper spine leans back at the level of the apex.
        scoliosis: Sideways shift of the upper body.
        arms_down: Arms beside the body instead of above the head.
    """

    is_female: bool
    half_width: float
    half_depth: float
    lung_height: float
    fat: float
    muscle: float
    breast: float
    rib_pitch: float
    rib_drop: float
    dome: float
    left_dome: float
    heart: float
    vessel: float
    turn_degrees: float
    kyphosis: float
    scoliosis: float
    arms_down: bool

    @property
    def spine_y(self) -> float:
        """Position of the vertebral bodies' centre, towards the back."""
        return 0.58 * self.half_depth

    @property
    def carina(self) -> tuple[float, float, float]:
        """Where the trachea divides, (x, y, z)."""
        return 2.0, 0.14 * self.half_depth, 0.58 * self.lung_height

    @property
    def right_hilum(self) -> tuple[float, float, float]:
        """Where the right lung's vessels and bronchus enter it, (x, y, z)."""
        return -0.36 * self.half_width, 0.12 * self.half_depth, 0.43 * self.lung_height

    @property
    def left_hilum(self) -> tuple[float, float, float]:
        """Where the left lung's vessels and bronchus enter it, (x, y, z)."""
        return 0.38 * self.half_width, 0.2 * self.half_depth, 0.46 * self.lung_height


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one adult: both sexes, slim to heavy, deep to shallow breath."""
    is_female = rng.random() < 0.45
    size = rng.normal(0.94 if is_female else 1.03, 0.05)
    breath = rng.uniform(0.0, 1.0)
    half_width = 127.0 * size * (0.96 + 0.07 * breath) * rng.normal(1, 0.03)
    half_depth = 81.0 * size * (0.95 + 0.10 * breath) * rng.normal(1, 0.04)
    fat = float(np.clip(rng.lognormal(2.45, 0.55), 4, 45))
    return Anatomy(
        is_female=is_female,
        half_width=half_width,
        half_depth=half_depth,
        lung_height=min((168.0 + 62.0 * breath) * size * rng.normal(1, 0.04), 238.0),
        fat=fat,
        muscle=rng.uniform(0.7, 1.1) * (0.85 if is_female else 1.05),
        breast=float(rng.uniform(12, 30) + 0.6 * fat) if is_female else 0.0,
        rib_pitch=rng.uniform(23, 28) * size,
        rib_drop=rng.uniform(75, 110) * size,
        dome=rng.uniform(65, 100) * size,
        left_dome=rng.uniform(-24, -4),
        heart=size * rng.uniform(0.88, 1.18),
        vessel=size * rng.uniform(0.88, 1.15),
        turn_degrees=rng.normal(0, 2.5),
        kyphosis=rng.uniform(1, 9),
        scoliosis=rng.normal(0, 3),
        arms_down=rng.random() < 0.1,
    )


_Outline = Float32[np.ndarray, "depth 181"]
"""Distance from the body's axis in mm, per height and per degree from the back to the front."""
_Table = Float32[np.ndarray, "depth columns"]
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
class _ChestWall:
    """Signed distances in mm, negative inside.

    Attributes:
        body: The skin's surface.
        muscle: The muscles' outer surface; between it and the skin lies fat.
        cage: The rib cage's inner surface.
    """

    body: Field
    muscle: Field
    cage: Field


def build_chest_wall(frame: Frame, anatomy: Anatomy, rng: np.random.Generator) -> _ChestWall:
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
    rear = float((muscle_line + fat_line)[:, :30].max()) - rng.uniform(6, 16)
    body = smooth_overlap(body, frame.y - rear + 0 * body, 25.0)
    muscle = np.maximum(muscle, body + 1.5)
    if anatomy.breast:
        breasts = _breasts(frame, anatomy, cage_line + 0.7 * fat_line)
        body = smooth_union(body, breasts, 22.0)
    return _ChestWall(body, muscle, cage)


def build_lungs(
    frame: Frame, anatomy: Anatomy, cage: Field, mediastinum: Field, rng: np.random.Generator
) -> tuple[Field, Field]:
    """Both lungs as one signed distance, and that of the abdomen below the diaphragm."""
    diaphragm = _diaphragm_distance(frame, anatomy) + 1.5 * frame.noise(rng, 60.0)
    apex = _apex_distance(frame, anatomy)
    lungs = smooth_overlap(cage, apex, 14.0)
    lungs = smooth_overlap(lungs, -mediastinum, 4.0)
    lungs = smooth_overlap(lungs, -diaphragm, 3.0)
    return lungs, np.maximum(diaphragm, cage)


def _diaphragm_distance(frame: Frame, anatomy: Anatomy) -> Field:
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


def _levels(frame: Frame, anatomy: Anatomy, values: tuple[float, ...]) -> _Table:
    """Values given at the levels, at each height of the grid, shape (depth, 1)."""
    height = frame.z[:, 0, 0] / anatomy.lung_height
    return _smooth(np.interp(height, _LEVELS, values).astype(np.float32)[:, None], 6.0)


def _smooth(table: _Table, sigma: float) -> _Table:
    return np.asarray(ndimage.gaussian_filter1d(table, sigma, axis=0, mode="nearest"))


def _cage_outline(frame: Frame, anatomy: Anatomy) -> _Outline:
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


def _wall_outline(frame: Frame, anatomy: Anatomy) -> _Outline:
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


def _fat_profile(frame: Frame, anatomy: Anatomy) -> _Outline:
    """Fat under the skin relative to the chest's side: thick in front of the belly."""
    angles = np.arange(181)
    around = np.interp(angles, _WALL_ANGLES, _FAT)
    belly = np.exp(-(((angles - 150) / 45) ** 2))
    height = frame.z[:, 0, 0] / anatomy.lung_height
    share = np.clip(0.5 - height * 1.6, 0, 1)[:, None]
    table = around[None] * (1 - 0.25 * np.clip(height, 0, 1)[:, None]) + 0.6 * share * belly[None]
    return np.asarray(table, dtype=np.float32)


def _apply(frame: Frame, outline: _Outline) -> Field:
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


def _breasts(frame: Frame, anatomy: Anatomy, chest_line: _Outline) -> Field:
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


def build_bones(
    frame: Frame, anatomy: Anatomy, wall: _ChestWall, cavity: Field, rng: np.random.Generator
) -> tuple[Field, Field, Field]:
    """Signed distances in mm from all bone, the ribs' cartilage and the spinal canal.

    `cavity` is the cage, closed above the lungs. `rng` makes the two sides differ a little.
    """
    cage = wall.cage
    spine, canal = _spine(frame, anatomy)
    ribs, cartilage = _ribs(frame, anatomy, cavity, 2.5 * frame.noise(rng, 80.0))
    bones = np.minimum(spine, ribs)
    bones = np.minimum(bones, _sternum(frame, anatomy, cage))
    bones = np.minimum(bones, _shoulder_blades(frame, anatomy, cage))
    bones = np.minimum(bones, _collar_bones(frame, anatomy, cage))
    # Nobody's bones stand out of the muscle.
    bones = np.maximum(bones, wall.muscle + 2.5)
    return np.maximum(bones, -canal), cartilage, canal


def _ribs(frame: Frame, anatomy: Anatomy, cage: Field, uneven: Field) -> tuple[Field, Field]:
    """Oblique arcs in the shell outside the cage, the twelve pairs at once as a periodic shape."""
    angle = frame.angle
    around = 0.5 - 0.5 * np.cos(np.radians(np.clip(angle * 1.15, 0, 180)))
    upper = np.clip(1.15 - 0.75 * frame.z / anatomy.lung_height, 0.45, 1.15)
    height = frame.z + anatomy.rib_drop * around * upper + uneven
    # The cartilage in front rises again to the breast bone.
    height = height - 0.35 * np.clip(angle - 150, 0, 30)
    phase = height / anatomy.rib_pitch + 0.25
    number = np.round(phase)
    beside = (phase - number) * anatomy.rib_pitch
    ribs = np.hypot((cage - 5.5) / 3.6, beside / 6.2)
    distance = (ribs - 1) * 3.8
    top = np.round(anatomy.lung_height / anatomy.rib_pitch)
    distance = np.where((number <= top) & (angle > 11), distance, 20.0)
    bony = np.maximum(distance, (angle - 148) * 1.5)
    soft = np.maximum(distance, np.maximum((148 - angle) * 1.5, (angle - 171) * 1.5))
    return bony.astype(np.float32), soft.astype(np.float32)


def _spine(frame: Frame, anatomy: Anatomy) -> tuple[Field, Field]:
    """Vertebral bodies with discs between, arches, processes; and the canal."""
    pitch = anatomy.rib_pitch
    x, y = frame.x, frame.y - anatomy.spine_y
    level = frame.z - np.round(frame.z / pitch) * pitch
    waist = 1 - 0.09 * np.cos(np.pi * level / (0.5 * pitch))
    body = (np.hypot(x / (17.5 * waist), y / (14.5 * waist)) - 1) * 14.5
    body = np.maximum(body, np.abs(level) - (0.5 * pitch - 2.2))
    canal = (np.hypot(x / 10.5, (y - 24.0) / 8.5) - 1) * 8.5 + 0 * frame.z
    arch = np.abs(np.hypot(x / 1.15, y - 24.0) - 12.5) - 3.2
    arch = np.maximum(arch, np.abs(level - 1) - 0.36 * pitch)
    lean = frame.z + 0.75 * (y - 34.0)
    lean = lean - np.round(lean / pitch) * pitch
    spinous = np.maximum(np.abs(x) - 2.8, np.abs(y - 47.0) - 15.0)
    spinous = np.maximum(spinous, np.abs(lean) - 0.3 * pitch)
    wing = np.abs(y - 26.0 - 0.22 * (np.abs(x) - 12)) - 4.2
    wing = np.maximum(wing, np.abs(np.abs(x) - 24.0) - 12.0)
    wing = np.maximum(wing, np.abs(level + 2) - 6.5)
    spine = np.minimum(np.minimum(body, arch), np.minimum(spinous, wing))
    return spine.astype(np.float32), canal.astype(np.float32)


def _front(frame: Frame, cage: Field) -> AnyField:
    """Position y of the cage's front on the midline, shape (depth, 1, 1)."""
    middle = int(np.argmin(np.abs(frame.x[0, 0])))
    inside = cage[:, :, middle] < 0
    first = np.argmax(inside, axis=1)
    return np.asarray(frame.y[0, first, 0][:, None, None])


def _sternum(frame: Frame, anatomy: Anatomy, cage: Field) -> Field:
    """Handle and body of the breast bone, just in front of the cage."""
    top, bottom = 0.86 * anatomy.lung_height, 0.86 * anatomy.lung_height - 165.0
    half_width = 11.0 + 14.0 / (1 + np.exp(-(frame.z - top + 45) / 8))
    depth = np.abs(frame.y - _front(frame, cage) + 8.5) - 4.6
    corner = np.hypot(np.maximum(np.abs(frame.x) - half_width + 4, 0), np.maximum(depth + 4, 0))
    field = corner - 4.0
    field = np.maximum(field, np.abs(frame.z - (top + bottom) / 2) - (top - bottom) / 2)
    return np.asarray(field, dtype=np.float32)


def _shoulder_blades(frame: Frame, anatomy: Anatomy, cage: Field) -> Field:
    """A thin shell behind the ribs, with its ridge, on both sides."""
    height = frame.z / anatomy.lung_height
    gap = 22.0 + 26.0 * np.clip(height - 0.65, 0, 0.5) + 0.1 * np.clip(frame.angle - 35, 0, 60)
    shell = np.abs(cage - gap) - 2.3 - 2.0 * np.clip((frame.angle - 62) / 15, 0, 1)
    inner = 33.0 + 14.0 * np.clip(0.65 - height, 0, 1)
    outer = 55.0 + 42.0 * np.clip((height - 0.35) / 0.55, 0, 1)
    sideways = np.maximum(inner - frame.angle, frame.angle - outer) * 1.8
    upright = np.maximum(0.36 - height, height - 1.02) * anatomy.lung_height
    ridge = np.hypot((cage - gap - 10) / 14, (height - 0.88) * anatomy.lung_height / 5) * 5 - 5
    blade = np.maximum(np.maximum(shell, sideways), upright)
    return np.asarray(np.minimum(blade, np.maximum(ridge, sideways)), dtype=np.float32)


def _collar_bones(frame: Frame, anatomy: Anatomy, cage: Field) -> Field:
    """Collar bones from the breast bone to the shoulders, and the heads of the upper arms."""
    level = int(np.argmin(np.abs(frame.z[:, 0, 0] - 0.9 * anatomy.lung_height)))
    front = float(_front(frame, cage)[level, 0, 0]) - 4.0
    apex = anatomy.lung_height
    reach = 1.22 * anatomy.half_width
    field = frame.full(25.0)
    for side in (-1.0, 1.0):
        path = [
            (side * 20.0, front, 0.9 * apex),
            (side * 0.5 * reach, front + 10.0, 0.99 * apex),
            (side * reach, 12.0, 1.1 * apex),
        ]
        bone = tube_distance(frame, path, (9.0, 6.0, 6.5))
        head = (side * reach, 16.0, 1.04 * apex)
        up = (side * reach * 1.02, 4.0, 1.04 * apex + (-120.0 if anatomy.arms_down else 120.0))
        arm = tube_distance(frame, (head, up), (23.0, 11.0))
        field = np.minimum(field, np.minimum(bone, arm))
    return field

"""Ribs, spine, sternum, shoulder blades, collar bones and upper arms as one signed distance."""

from __future__ import annotations

import numpy as np

from chestct.simulate.anatomy import Anatomy
from chestct.simulate.chest_wall import ChestWall
from chestct.simulate.fields import AnyField, Field, Frame, tube_distance


def build_bones(
    frame: Frame, anatomy: Anatomy, wall: ChestWall, cavity: Field, rng: np.random.Generator
) -> tuple[Field, Field, Field]:
    """Signed distances in mm from all bone, the ribs' cartilage and the spinal canal.

    Args:
        frame: The grid.
        anatomy: Sizes.
        wall: Body, muscle and rib cage.
        cavity: The cage, closed above the lungs.
        rng: Makes the two sides differ a little.
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

"""A patient's body before it is scanned: organs, tissues, and every shape on one coarse grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from chestct.simulate.anatomy import (
    Anatomy,
    build_bones,
    build_chest_wall,
    build_lungs,
    thoracic_inlet,
)
from chestct.simulate.fields import (
    Field,
    Frame,
    Number,
    Place,
    ellipsoid,
    smooth_union,
    tube_distance,
)
from chestct.simulate.trees import Trees, grow_trees


@dataclass(frozen=True)
class BloodHU:
    """Attenuation of blood: plain scans about 42, with contrast medium more.

    Attributes:
        right: Right heart and pulmonary arteries.
        left: Left heart and aorta.
    """

    right: float
    left: float


def _draw_blood(rng: np.random.Generator) -> BloodHU:
    """Most scans are plain; one in eight was made with contrast medium."""
    plain = rng.uniform(34, 50)
    if rng.random() > 0.12:
        return BloodHU(plain, plain)
    return BloodHU(plain + rng.uniform(60, 260), plain + rng.uniform(60, 230))


def _build_mediastinum(
    frame: Frame, anatomy: Anatomy, blood: BloodHU, rng: np.random.Generator
) -> tuple[Field, list[tuple[Field, float]]]:
    """What parts the lungs, as one signed distance, and the organs in it with their HU."""
    organs = _heart(frame, anatomy, blood) + _great_vessels(frame, anatomy, blood)
    bumps = 1.6 * frame.noise(rng, 32.0)
    organs = [(field + bumps, value) for field, value in organs]
    solid = organs[0][0]
    for field, _ in organs[1:]:
        solid = np.minimum(solid, field)
    # Fat follows the grooves between the chambers.
    groove = 2.2 - 13.0 * np.abs(frame.noise(rng, 48.0)) - 0.12 * np.clip(-organs[0][0], 0, 40)
    organs[:2] = [(np.maximum(field, groove), value) for field, value in organs[:2]]
    solid = smooth_union(solid, _fat_pad(frame, anatomy) + bumps, 12.0)
    # Fat around the organs is thicker here and thinner there.
    solid = solid - np.clip(1.2 + 2.0 * frame.noise(rng, 45.0), 0.3, 6.0)
    solid = smooth_union(solid, _slab(frame, anatomy), 10.0)
    return smooth_union(solid, _airway_distance(frame, anatomy) - 3.5, 6.0), organs


def _fat_pad(frame: Frame, anatomy: Anatomy) -> Field:
    """Fat between the heart and the breast bone, where no lung comes between."""
    depth, apex = anatomy.half_depth, anatomy.lung_height
    semi_axes = (48.0 * anatomy.heart, 0.34 * depth, 0.3 * apex)
    return ellipsoid(frame, (10.0, -0.78 * depth, 0.1 * apex), semi_axes)


def _airway_distance(frame: Frame, anatomy: Anatomy) -> Field:
    """Signed distance from the hollow of trachea and main bronchi."""
    carina, depth = anatomy.carina, anatomy.half_depth
    top = (0.0, -0.05 * depth, 1.45 * anatomy.lung_height)
    size = 8.6 * anatomy.vessel
    trunk = tube_distance(frame, (top, carina), (size, size * 0.97))
    right, left = anatomy.right_hilum, anatomy.left_hilum
    bronchi = [tube_distance(frame, (carina, right), (0.8 * size, 0.62 * size))]
    bronchi.append(tube_distance(frame, (carina, left), (0.72 * size, 0.55 * size)))
    return smooth_union(trunk, np.minimum(*bronchi), 4.0)


def _slab(frame: Frame, anatomy: Anatomy) -> Field:
    """Fat and small structures on the midline, and the spine with what lies beside it."""
    height = frame.z / anatomy.lung_height
    half = 9.0 + 6.0 / (1 + np.exp(-(height - 0.2) / 0.05))
    half = half + 12.0 / (1 + np.exp(-(height - 0.75) / 0.08))
    # In front the lungs end in edges that come close to each other behind the breast bone.
    wedge = 4.0 + 0.5 * np.clip(frame.y + 0.95 * anatomy.half_depth, 0, None)
    wedge = wedge + 60.0 * np.clip(np.abs(height - 0.5) - 0.38, 0, 1)
    slab = np.abs(frame.x) - np.minimum(half, wedge)
    y = frame.y - anatomy.spine_y
    spine = (np.hypot(frame.x / 21.0, np.minimum(y, 0) / 18.0) - 1) * 19.0
    behind = np.hypot(frame.x / 30.0, (y - 26.0) / 17.0)
    spine = smooth_union(spine + 0 * frame.z, (behind - 1) * 19.0 + 0 * frame.z, 8.0)
    return smooth_union(slab.astype(np.float32), spine.astype(np.float32), 14.0)


def _heart(frame: Frame, anatomy: Anatomy, blood: BloodHU) -> list[tuple[Field, float]]:
    """Ventricles lying to the left on the diaphragm, right and left atrium."""
    size, depth, apex = anatomy.heart, anatomy.half_depth, anatomy.lung_height
    level = 0.14 * apex
    left = ellipsoid(
        frame, (25 * size, -0.41 * depth, level), (62 * size, 44 * size, 48 * size), -30.0
    )
    right = ellipsoid(
        frame, (-5 * size, -0.45 * depth, level + 8), (45 * size, 44 * size, 46 * size), 10.0
    )
    base = ellipsoid(
        frame, (4 * size, 0.08 * depth, level + 24), (34 * size, 22 * size, 28 * size), 0.0
    )
    muscle = (blood.left + blood.right) / 2 if blood.left < 60 else 0.55 * blood.left
    chamber = ellipsoid(
        frame, (24 * size, -0.37 * depth, level), (43 * size, 26 * size, 33 * size), -32.0
    )
    whole = smooth_union(left, right, 16.0)
    return [
        (smooth_union(whole, base, 10.0), muscle),
        (right + 4.0, blood.right),
        (chamber, blood.left),
        (base + 2.0, blood.left),
    ]


def _great_vessels(frame: Frame, anatomy: Anatomy, blood: BloodHU) -> list[tuple[Field, float]]:
    """Aorta, caval veins, pulmonary arteries and veins, gullet and the branches of the arch."""
    depth, apex, size = anatomy.half_depth, anatomy.lung_height, anatomy.vessel
    right, left = anatomy.right_hilum, anatomy.left_hilum
    back = anatomy.spine_y - 17.0
    arch: list[Place] = [
        (2, -0.2 * depth, 0.2 * apex),
        (-14, -0.34 * depth, 0.4 * apex),
        (-10, -0.3 * depth, 0.58 * apex),
        (6, -0.1 * depth, 0.7 * apex),
        (20, 0.16 * depth, 0.69 * apex),
        (25, back - 6, 0.6 * apex),
        (22, back, 0.4 * apex),
        (13, back + 2, 0.0),
        (5, back + 3, -140.0),
    ]
    aorta: list[Number] = [15.5, 16.5, 15.5, 14.0, 13.0, 12.5, 12.0, 11.5, 10.5]
    trunk: list[Place] = [(16, -0.42 * depth, 0.3 * apex), (17, -0.22 * depth, 0.47 * apex)]
    fork = (14.0, -0.1 * depth, 0.49 * apex)
    atrium = (4.0, 0.1 * depth, 0.3 * apex)
    veins = [(right[0] * 0.8, 0.1 * depth, 0.32 * apex), (left[0] * 0.8, 0.16 * depth, 0.33 * apex)]
    neck = 1.4 * apex
    vessels: list[tuple[list[Place], list[Number], float]] = [
        (arch, aorta, blood.left),
        ([*trunk, fork], [13, 13, 11], blood.right),
        ([fork, (right[0], right[1] - 5, right[2] + 4)], [10.5, 9], blood.right),
        ([fork, (left[0], left[1] - 3, left[2] + 10)], [10.5, 9.5], blood.right),
        ([(-27, -0.2 * depth, 0.3 * apex), (-29, -0.2 * depth, 0.85 * apex)], [9, 8.5],
         blood.right),
        ([(-24, 0.02 * depth, -140), (-24, -0.1 * depth, 0.14 * apex)], [11, 12], blood.right),
        ([atrium, veins[0]], [9, 7], blood.left),
        ([atrium, veins[1]], [9, 7], blood.left),
        ([(-10, -0.12 * depth, 0.68 * apex), (-26, -0.1 * depth, neck)], [6, 5], blood.left),
        ([(6, 0.0, 0.7 * apex), (14, -0.05 * depth, neck)], [4.5, 4], blood.left),
        ([(18, 0.1 * depth, 0.68 * apex), (28, 0.1 * depth, apex), (90, 0, 1.08 * apex)],
         [5, 5, 5], blood.left),
        ([(-29, -0.2 * depth, 0.82 * apex), (-36, -0.3 * depth, neck)], [7, 6], blood.right),
        ([(-29, -0.25 * depth, 0.78 * apex), (34, -0.32 * depth, 0.92 * apex),
          (40, -0.3 * depth, neck)], [7, 6, 6], blood.right),
        ([(2, 0.34 * depth, neck), (3, 0.36 * depth, 0.6 * apex), (8, back - 16, 0.2 * apex),
          (16, 0.2 * depth, -25)], [7, 7, 7, 8], 36.0),
    ]  # fmt: skip
    return [
        (tube_distance(frame, path, [size * r for r in radii]), value)
        for path, radii, value in vessels
    ]


def _build_abdomen(
    frame: Frame, anatomy: Anatomy, cavity: Field, rng: np.random.Generator
) -> tuple[list[tuple[Field, Field | float]], Field]:
    """Liver, spleen, stomach, kidneys and bowel below the diaphragm; and the gas in them."""
    width, depth = anatomy.half_width, anatomy.half_depth
    inside = cavity + 1.2
    wedge = (frame.x - rng.uniform(0, 25) + 0.6 * frame.y) * 0.85
    wedge = wedge + 6.0 * frame.noise(rng, 50.0)
    liver = np.maximum(inside, np.maximum(wedge, -frame.z - rng.uniform(110, 150)))
    x, z = 0.5 * width + rng.normal(0, 5), anatomy.left_dome - 44 + rng.normal(0, 6)
    stomach = ellipsoid(frame, (x, -0.12 * depth, z), (0.32 * width, 0.45 * depth, 40), 25.0)
    stomach = np.maximum(stomach, inside)
    organs: list[tuple[Field, Field | float]] = [
        (liver.astype(np.float32), rng.uniform(42, 64)),
        (stomach, rng.uniform(15, 45)),
        (_clip(frame, inside, (0.72 * width, 0.45 * depth, z - 6), (27, 40, 42)), 47.0),
        (_clip(frame, inside, (58, 0.48 * depth, -125), (27, 24, 48)), 34.0),
        (_clip(frame, inside, (-56, 0.48 * depth, -132), (27, 24, 48)), 34.0),
    ]
    fill = rng.uniform(-0.6, 0.1) * depth
    gas = np.maximum(stomach + 4.0, frame.y - fill)
    for _ in range(int(rng.integers(4, 9))):
        centre = (
            rng.uniform(-0.2, 0.9) * width,
            rng.uniform(-0.85, 0.1) * depth,
            rng.uniform(-140, -25),
        )
        size = (rng.uniform(10, 24), rng.uniform(10, 20), rng.uniform(12, 32))
        loop = _clip(frame, np.maximum(inside, -liver), centre, size)
        organs.append((loop, rng.uniform(5, 40)))
        level = rng.uniform(-1.1, 0.6) * size[1] + centre[1]
        gas = np.minimum(gas, np.maximum(loop + 3.0, frame.y - level))
    return organs, gas.astype(np.float32)


def _clip(
    frame: Frame,
    inside: Field,
    centre: Place,
    semi_axes: Place,
) -> Field:
    """An ellipsoid that does not leave the cavity."""
    return np.asarray(np.maximum(ellipsoid(frame, centre, semi_axes), inside), dtype=np.float32)


def _gather_organs(
    frame: Frame, organs: Sequence[tuple[Field, Field | float]]
) -> tuple[Field, Field]:
    """Signed distance in mm from all organs, and at each place the HU of the nearest one."""
    distance = frame.full(60.0)
    value = frame.full(40.0)
    for field, value_hu in organs:
        nearer = field < distance
        # Later entries are inner chambers: inside them they win over what surrounds them.
        nearer |= field < 0
        np.copyto(value, value_hu, where=nearer)
        np.minimum(distance, field, out=distance)
    return distance, value


_STEP_MM = 3.0

_Abdomen = Callable[
    [Frame, Anatomy, Field, np.random.Generator], tuple[list[tuple[Field, Field | float]], Field]
]
"""Makes organs with their HU, and gas, below the diaphragm from a grid, sizes and the cavity."""


@dataclass(frozen=True, eq=False)
class Layers:
    """Coarse fields from which every slice is painted; distances in mm, negative inside."""

    body: Field
    muscle: Field
    strands: Field
    cage: Field
    organs: Field
    organ_hu: Field
    gas: Field
    lungs: Field
    bones: Field
    cartilage: Field
    canal: Field
    airways: Field
    fissure: Field
    mottle: Field


@dataclass(frozen=True)
class _Tissues:
    """Attenuation of this patient's tissues in HU.

    Attributes:
        fat: Under the skin and in the mediastinum.
        muscle: Muscle.
        marrow: Inside of bones.
        cortex: Surface of bones.
        lung: Parenchyma at mid height, without visible vessels.
        lung_slope: Difference of the parenchyma between front and back.
        blood: In the lung's vessels.
        fissure: How much the fissures stand out.
    """

    fat: float
    muscle: float
    marrow: float
    cortex: float
    lung: float
    lung_slope: float
    blood: float
    fissure: float


@dataclass(frozen=True, eq=False)
class Model:
    """A patient's body before it is scanned: layers on the frame, and the trees of both lungs."""

    anatomy: Anatomy
    frame: Frame
    layers: Layers
    tissues: _Tissues
    trees: Trees

    @property
    def top_mm(self) -> float:
        """Height of the model's upper end."""
        return self.frame.low_mm[0] + self.frame.step_mm * (self.frame.shape[0] - 1)

    @property
    def half_width_mm(self) -> float:
        """Half the body's width at the middle of the lungs."""
        level = int((0.3 * self.anatomy.lung_height - self.frame.low_mm[0]) / self.frame.step_mm)
        across = np.flatnonzero((self.layers.body[level] < 0).any(axis=0))
        return float(self.frame.x[0, 0, across[-1]])

    @property
    def back_mm(self) -> float:
        """Position y of the body's back, the rearmost of all heights."""
        behind = np.flatnonzero((self.layers.body < 0).any(axis=(0, 2)))
        return float(self.frame.y[0, behind[-1], 0])


def build_model(
    anatomy: Anatomy,
    rng: np.random.Generator,
    *,
    frame: Frame | None = None,
    abdomen: _Abdomen = _build_abdomen,
    blood: BloodHU | None = None,
    coarse: float = 1.0,
) -> Model:
    """Build a patient's body: all fields, tissues and trees.

    Without a frame one reaches from the upper abdomen to the neck; without `blood` its attenuation
    is drawn. `coarse` is how much farther apart than usual the ends of vessels lie.
    """
    frame = frame or make_frame(anatomy)
    wall = build_chest_wall(frame, anatomy, rng)
    blood = blood or _draw_blood(rng)
    mediastinum, organs = _build_mediastinum(frame, anatomy, blood, rng)
    lungs, cavity = build_lungs(frame, anatomy, wall.cage, mediastinum, rng)
    below, gas = abdomen(frame, anatomy, cavity, rng)
    nearest, organ_hu = _gather_organs(frame, [*organs, *below])
    cavity_wall = thoracic_inlet(frame, anatomy, wall.cage)
    bones, cartilage, canal = build_bones(frame, anatomy, wall, cavity_wall, rng)
    layers = Layers(
        body=wall.body,
        muscle=wall.muscle,
        strands=wall.cage / 34.0 + 0.8 * frame.noise(rng, 60.0),
        cage=cavity_wall,
        organs=nearest,
        organ_hu=organ_hu,
        gas=gas,
        lungs=lungs,
        bones=bones,
        cartilage=cartilage,
        canal=canal,
        airways=_airway_distance(frame, anatomy),
        fissure=_fissure(frame, anatomy) + 7.0 * frame.noise(rng, 70.0),
        mottle=0.7 * frame.noise(rng, 45.0) + 0.7 * frame.noise(rng, 14.0),
    )
    tissues = _draw_tissues(blood, rng)
    trees = grow_trees(frame, anatomy, lungs, rng, coarse=coarse)
    return Model(anatomy, frame, layers, tissues, trees)


def _fissure(frame: Frame, anatomy: Anatomy) -> Field:
    """Signed distance from the oblique fissures: high behind, low in front."""
    plane = frame.z - 0.3 * anatomy.lung_height - 0.85 * (frame.y - 0.1 * anatomy.half_depth)
    return np.asarray(plane / np.hypot(1, 0.85) + 0 * frame.x, dtype=np.float32)


def _draw_tissues(blood: BloodHU, rng: np.random.Generator) -> _Tissues:
    """Attenuations within what is usual."""
    return _Tissues(
        fat=rng.normal(-104, 4),
        muscle=rng.normal(54, 5),
        marrow=rng.uniform(110, 240),
        cortex=rng.uniform(520, 800),
        lung=float(np.clip(rng.normal(-862, 22), -905, -800)),
        lung_slope=rng.uniform(20, 75),
        blood=blood.right,
        fissure=rng.uniform(15, 90),
    )


def make_frame(anatomy: Anatomy) -> Frame:
    """A grid around the body, from the upper abdomen to the neck."""
    reach = 1.75 * anatomy.half_width + anatomy.fat + 25
    deep = anatomy.half_depth + 62 + 2.0 * anatomy.fat + anatomy.breast
    low = (-anatomy.dome - 60, -deep, -reach)
    high = (anatomy.lung_height + 50, deep, reach)
    shape = tuple(int((b - a) / _STEP_MM) + 1 for a, b in zip(low, high, strict=True))
    return Frame(low, (shape[0], shape[1], shape[2]), _STEP_MM)

"""A patient's body before it is scanned: every tissue's shape on one coarse grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from chestct.simulate.anatomy import Anatomy
from chestct.simulate.bones import build_bones
from chestct.simulate.chest_wall import build_chest_wall, build_lungs, thoracic_inlet
from chestct.simulate.fields import Field, Frame
from chestct.simulate.lung_trees import Trees, grow_trees
from chestct.simulate.organs import (
    BloodHU,
    airway_distance,
    build_abdomen,
    build_mediastinum,
    draw_blood,
    gather_organs,
)

_STEP_MM = 3.0

Abdomen = Callable[
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
class Tissues:
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
    """A patient's body before it is scanned.

    Attributes:
        anatomy: Sizes.
        frame: Grid of the layers.
        layers: Fields.
        tissues: Attenuations.
        trees: Vessels and bronchi of both lungs.
    """

    anatomy: Anatomy
    frame: Frame
    layers: Layers
    tissues: Tissues
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
    abdomen: Abdomen = build_abdomen,
    blood: BloodHU | None = None,
    coarse: float = 1.0,
) -> Model:
    """Build a patient's body: all fields, tissues and trees.

    Args:
        anatomy: Sizes.
        rng: Where the randomness comes from.
        frame: Grid of the fields; None makes one from the upper abdomen to the neck.
        abdomen: Makes what lies below the diaphragm.
        blood: Its attenuation; None draws it.
        coarse: How much farther apart than usual the ends of vessels lie.
    """
    frame = frame or make_frame(anatomy)
    wall = build_chest_wall(frame, anatomy, rng)
    blood = blood or draw_blood(rng)
    mediastinum, organs = build_mediastinum(frame, anatomy, blood, rng)
    lungs, cavity = build_lungs(frame, anatomy, wall.cage, mediastinum, rng)
    below, gas = abdomen(frame, anatomy, cavity, rng)
    soft = gather_organs(frame, [*organs, *below], gas)
    cavity_wall = thoracic_inlet(frame, anatomy, wall.cage)
    bones, cartilage, canal = build_bones(frame, anatomy, wall, cavity_wall, rng)
    layers = Layers(
        body=wall.body,
        muscle=wall.muscle,
        strands=wall.cage / 34.0 + 0.8 * frame.noise(rng, 60.0),
        cage=cavity_wall,
        organs=soft.distance,
        organ_hu=soft.value_hu,
        gas=soft.gas,
        lungs=lungs,
        bones=bones,
        cartilage=cartilage,
        canal=canal,
        airways=airway_distance(frame, anatomy),
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


def _draw_tissues(blood: BloodHU, rng: np.random.Generator) -> Tissues:
    """Attenuations within what is usual."""
    return Tissues(
        fat=float(rng.normal(-104, 4)),
        muscle=float(rng.normal(54, 5)),
        marrow=float(rng.uniform(110, 240)),
        cortex=float(rng.uniform(520, 800)),
        lung=float(np.clip(rng.normal(-862, 22), -905, -800)),
        lung_slope=float(rng.uniform(20, 75)),
        blood=blood.right,
        fissure=float(rng.uniform(15, 90)),
    )


def make_frame(anatomy: Anatomy) -> Frame:
    """A grid around the body, from the upper abdomen to the neck."""
    reach = 1.75 * anatomy.half_width + anatomy.fat + 25
    deep = anatomy.half_depth + 62 + 2.0 * anatomy.fat + anatomy.breast
    low = (-anatomy.dome - 60, -deep, -reach)
    high = (anatomy.lung_height + 50, deep, reach)
    shape = tuple(int((b - a) / _STEP_MM) + 1 for a, b in zip(low, high, strict=True))
    return Frame(low, (shape[0], shape[1], shape[2]), _STEP_MM)

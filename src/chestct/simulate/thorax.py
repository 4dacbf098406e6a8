"""Simulate one patient's chest CT, from one generator: a body with its disease, and its scan.

A scan is a body that lies somewhere, its tissues painted slice by slice, and what the scanner
adds: blur, correlated noise, table, clothing and field of view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16
from scipy import fft

from chestct.arrays import Mask, Shape
from chestct.errors import GridError
from chestct.labels import THREE_CLASSES
from chestct.lookup import look_up
from chestct.simulate.anatomy import (
    Anatomy,
    build_bones,
    build_chest_wall,
    build_lungs,
    draw_anatomy,
    thoracic_inlet,
)
from chestct.simulate.fields import (
    Field,
    Frame,
    Number,
    Place,
    Plane,
    ellipsoid,
    smooth_union,
    tube_distance,
)
from chestct.simulate.lesions import add_disease
from chestct.simulate.trees import Segments, Trees, fill_tubes, grow_trees
from chestct.volume import AIR_HU, Grid, ScanSource, Volume


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


_SPACING_ODDS = (0.12, 0.12, 0.12, 0.28, 0.1, 0.1, 0.03, 0.13)
"""How often each slice spacing is drawn."""


@dataclass(frozen=True)
class ThoraxSettings:
    """What may be fixed about a simulated scan; None means drawn from the generator.

    Attributes:
        rows: Rows and columns of a slice.
        slice_spacing_mm: Distance between slices; None draws one from 1 to 5 mm.
        field_of_view_mm: Edge length of a slice; None draws one around the body.
        kernel: Name in `KERNELS`; None draws one.
        noise_hu: Noise in soft tissue before the kernel's factor; None draws it.
    """

    rows: int = 256
    slice_spacing_mm: float | None = None
    field_of_view_mm: float | None = None
    kernel: str | None = None
    noise_hu: float | None = None

    def __post_init__(self) -> None:
        if not 32 <= self.rows <= 1024:
            raise GridError(f"A simulated slice has 32 to 1024 rows, not {self.rows}.")
        if self.slice_spacing_mm is not None and not 0.5 <= self.slice_spacing_mm <= 10:
            msg = f"Simulated slices lie 0.5 to 10 mm apart, not {self.slice_spacing_mm}."
            raise GridError(msg)
        if self.field_of_view_mm is not None and not 150 <= self.field_of_view_mm <= 700:
            msg = f"A simulated field of view is 150 to 700 mm, not {self.field_of_view_mm}."
            raise GridError(msg)


@dataclass(frozen=True, eq=False)
class SimulatedPatient:
    """A simulated scan in HU, int16, on canonical axes, with its truth.

    The lungs have everything in them, without trachea and main bronchi; lesions are disease, or in
    a normal patient dependent density. The label is "CAP", "COVID-19" or "normal".
    """

    volume: Volume
    lungs: Mask
    lesions: Mask
    label: str
    anatomy: Anatomy


def simulate_patient(
    rng: np.random.Generator,
    settings: ThoraxSettings | None = None,
    *,
    pattern: str | None = None,
) -> SimulatedPatient:
    """Simulate a patient's chest CT.

    Args:
        rng: Everything random comes from here: the same state gives the same scan.
        settings: What to fix about the scan.
        pattern: "CAP", "COVID-19" or "normal"; None draws one with equal chances.

    Raises:
        UnknownNameError: There is no such pattern or kernel.
        GridError: Settings outside their limits.
    """
    settings = settings or ThoraxSettings()
    kernel = look_up(KERNELS, settings.kernel, kind="kernel") if settings.kernel else None
    drawn = str(rng.choice(THREE_CLASSES))
    label = look_up({name: name for name in THREE_CLASSES}, pattern or drawn, kind="pattern")
    anatomy = draw_anatomy(rng)
    model = build_model(anatomy, rng)
    grid, pose = _place_scan(model, settings, rng)
    scanner = draw_scanner(rng, model.back_mm + rng.uniform(2, 10))
    scanner = _with_settings(scanner, kernel, settings.noise_hu)
    voxels, lungs = compose(model, grid, pose, scanner, rng)
    scan = Volume(grid=grid, voxels=voxels, source=_source(scanner, grid))
    diseased = add_disease(scan, lungs, label, rng)
    # Fluid has taken the lung's place: it is no part of the true lungs.
    return SimulatedPatient(
        diseased.volume, lungs & ~diseased.effusion, diseased.lesions, label, anatomy
    )


def _source(scanner: Scanner, grid: Grid) -> ScanSource:
    """What a header would say about the scan."""
    facts = {
        "kernel": scanner.kernel.name,
        "slice_thickness_mm": f"{grid.spacing_mm[0]:g}",
        "manufacturer": "simulated",
        "patient_position": "HFS",
    }
    return ScanSource(format="simulated", facts=facts)


def _with_settings(scanner: Scanner, kernel: _Kernel | None, noise_hu: float | None) -> Scanner:
    """The scanner with what the settings fix."""
    if kernel is not None:
        scanner = replace(scanner, kernel=kernel)
    if noise_hu is not None:
        scanner = replace(scanner, noise_hu=noise_hu)
    return scanner


def _place_scan(
    model: Model, settings: ThoraxSettings, rng: np.random.Generator
) -> tuple[Grid, Pose]:
    """Choose the scan's grid around the patient, and where in it the body lies."""
    anatomy = model.anatomy
    pose = Pose(anatomy, (rng.normal(0, 7), rng.normal(0, 8)))
    spacing = settings.slice_spacing_mm or float(
        rng.choice([1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0], p=_SPACING_ODDS)
    )
    low = -anatomy.dome - rng.uniform(8, 45)
    high = anatomy.lung_height + rng.uniform(10, 40)
    low, high = max(low, model.frame.low_mm[0] + 5), min(high, model.top_mm - 5)
    depth = int(np.ceil((high - low) / spacing)) + 1
    body_mm = 2.0 * (model.half_width_mm + 8.0)
    drawn = float(np.clip(body_mm * rng.uniform(0.86, 1.22), 260, 500))
    view = settings.field_of_view_mm or drawn
    return square_grid(depth, settings.rows, spacing, view, low), pose


@dataclass(frozen=True)
class Pose:
    """Where the body lies in the scanner: turned and bent as its anatomy says, and shifted.

    `shift_mm` is (x, y), of the whole body.
    """

    anatomy: Anatomy
    shift_mm: tuple[float, float]

    def shift(
        self, z: Float64[np.ndarray, " heights"]
    ) -> tuple[Float64[np.ndarray, " heights"], Float64[np.ndarray, " heights"]]:
        """Shift (x, y) in mm of the body at given heights."""
        height = z / self.anatomy.lung_height
        bend = self.anatomy.kyphosis * np.clip((height - 0.4) / 0.6, -1.6, 1.6) ** 2
        return self.shift_mm[0] + self.anatomy.scoliosis * height, self.shift_mm[1] - bend

    def place(self, segments: Segments, grid: Grid) -> Segments:
        """Turn segments from model (z, y, x) into mm from the grid's first voxel."""
        turn = np.radians(self.anatomy.turn_degrees)
        origin = np.asarray(grid.origin_mm[::-1])

        def place(points: Float64[np.ndarray, "points 3"]) -> Float64[np.ndarray, "points 3"]:
            """Points (z, y, x) in mm of the body to points of the scan."""
            z, y, x = points.T
            shift_x, shift_y = self.shift(z)
            turned_x = x * np.cos(turn) - y * np.sin(turn) + shift_x
            turned_y = x * np.sin(turn) + y * np.cos(turn) + shift_y
            return np.asarray(np.stack([z, turned_y, turned_x], axis=1) - origin)

        return Segments(place(segments.start), place(segments.end), segments.radius)

    def slice_map(self, grid: Grid, z: float, frame: Frame) -> Float64[np.ndarray, "2 3"]:
        """Affine map from a slice's (column, row) to the frame's, at height z."""
        turn = np.radians(self.anatomy.turn_degrees)
        shift_x, shift_y = (float(s[0]) for s in self.shift(np.array([z])))
        pixel = grid.spacing_mm[2] / frame.step_mm
        cosine, sine = np.cos(turn), np.sin(turn)
        x, y = grid.origin_mm[0] - shift_x, grid.origin_mm[1] - shift_y
        column = (x * cosine + y * sine - frame.low_mm[2]) / frame.step_mm
        row = (y * cosine - x * sine - frame.low_mm[1]) / frame.step_mm
        along, across = pixel * cosine, pixel * sine
        return np.array([[along, across, column], [-across, along, row]])


def square_grid(
    num_slices: int, rows: int, spacing_mm: float, view_mm: float, low_mm: float
) -> Grid:
    """A canonical grid of square slices around the axis, the lowest at `low_mm`."""
    pixel = view_mm / rows
    first = -0.5 * pixel * (rows - 1)
    return Grid((num_slices, rows, rows), (spacing_mm, pixel, pixel), (first, first, low_mm))


@dataclass(frozen=True)
class _Kernel:
    """A reconstruction kernel.

    Attributes:
        name: As a manufacturer would call it.
        blur_mm: Standard deviation of the in-plane point spread.
        edge: Share of the overshoot that a sharp kernel adds at edges.
        ramp: Exponent of frequency in the noise spectrum: 0 white, 1 a ramp.
        cutoff: Frequency in 1/mm at which the noise power has fallen to exp(-1).
        noise: Factor on the noise of soft tissue.
    """

    name: str
    blur_mm: float
    edge: float
    ramp: float
    cutoff: float
    noise: float


KERNELS: dict[str, _Kernel] = {
    "B30f": _Kernel("B30f", 0.62, 0.0, 0.25, 0.40, 0.75),
    "D40s": _Kernel("D40s", 0.48, 0.0, 0.1, 0.50, 1.25),
    "B50f": _Kernel("B50f", 0.42, 0.25, 0.4, 0.60, 1.6),
    "B60f": _Kernel("B60f", 0.38, 0.45, 0.6, 0.68, 2.0),
    "B70f": _Kernel("B70f", 0.34, 0.75, 0.8, 0.80, 2.8),
}
"""From smooth to sharp; shapes of spectra follow measured ones of such kernels."""


@dataclass(frozen=True)
class Scanner:
    """How one scan was made.

    Attributes:
        kernel: Reconstruction kernel.
        noise_hu: Noise in soft tissue at the chest, before the kernel's factor.
        table_y: Where the table lies, in mm behind the body's axis; None for no table.
        table_kind: 0 to 2, which shape of table.
        has_clothing: Folds of cloth over the chest.
        is_padded: Outside the circular field of view stands air of exactly -1024.
        is_prone: The patient lies on the belly: the table is in front.
    """

    kernel: _Kernel
    noise_hu: float
    table_y: float | None
    table_kind: int
    has_clothing: bool
    is_padded: bool
    is_prone: bool = False


def draw_scanner(rng: np.random.Generator, table_y: float) -> Scanner:
    """Draw a scanner and its settings."""
    name = str(rng.choice(list(KERNELS), p=[0.25, 0.35, 0.12, 0.16, 0.12]))
    return Scanner(
        kernel=KERNELS[name],
        noise_hu=float(np.clip(rng.lognormal(2.9, 0.4), 8, 45)),
        table_y=table_y if rng.random() < 0.95 else None,
        table_kind=int(rng.integers(3)),
        has_clothing=rng.random() < 0.6,
        is_padded=rng.random() < 0.4,
    )


def _blur_plane(plane: Plane, kernel: _Kernel, pixel_mm: float) -> Plane:
    """Apply the kernel's point spread, with overshoot for sharp ones."""
    sigma = max(kernel.blur_mm / pixel_mm, 0.2)
    soft = cv2.GaussianBlur(plane, (0, 0), sigma)
    if kernel.edge:
        soft = soft + kernel.edge * (soft - cv2.GaussianBlur(soft, (0, 0), 1.8 * sigma + 0.5))
    return np.asarray(soft, dtype=np.float32)


def _scan_noise(
    rng: np.random.Generator,
    shape: Shape,
    spacing_mm: tuple[float, float, float],
    kernel: _Kernel,
    streaks: Float32[np.ndarray, " depth"],
) -> Float32[np.ndarray, "depth height width"]:
    """Noise of unit standard deviation with the kernel's spectrum.

    `streaks` is how strong those are in each slice that broad shoulders cause.
    """
    rows, columns = shape[1:]
    across = np.fft.fftfreq(rows, spacing_mm[1]).astype(np.float32)[:, None]
    along = np.fft.rfftfreq(columns, spacing_mm[2]).astype(np.float32)[None]
    frequency = np.hypot(across, along)
    shaped = (frequency + 0.04) ** kernel.ramp * np.exp(-0.5 * (frequency / kernel.cutoff) ** 3)
    shaped = shaped * (1 + 1.3 * np.exp(-((frequency / 0.07) ** 2)))
    sideways = shaped * np.exp(-((along / 0.06) ** 2))
    noise = np.empty(shape, dtype=np.float32)
    for level in range(shape[0]):
        spectrum = rng.standard_normal((rows, columns // 2 + 1, 2), dtype=np.float32)
        gain = shaped + float(streaks[level]) * sideways
        waves = spectrum.view(np.complex64)[..., 0] * gain
        plane = fft.irfft2(waves, s=(rows, columns), overwrite_x=True)
        noise[level] = plane / (plane.std() + 1e-9)
    # Neighbouring slices share projections: about a quarter of the variance at 2 mm.
    shared = 0.28 * min(2.0 / spacing_mm[0], 2.0)
    noise[1:] += shared * noise[:-1]
    noise[1:] /= np.sqrt(1 + shared**2)
    return noise


def _table_plane(
    scanner: Scanner, x: Float32[np.ndarray, "1 columns"], y: Float32[np.ndarray, "rows 1"]
) -> Plane | None:
    """Attenuation above air of the patient table, the same in all slices."""
    if scanner.table_y is None:
        return None
    y = -y if scanner.is_prone else y
    kind = scanner.table_kind
    bend = (430.0, 900.0, 330.0)[kind]
    depth = y - scanner.table_y + x * x / (2 * bend)
    half_width = (245.0, 215.0, 205.0)[kind]
    thick = (26.0, 38.0, 48.0)[kind] * np.sqrt(np.clip(1 - (x / half_width) ** 2, 0.01, 1))
    shell = np.exp(-((depth / 1.2) ** 2)) + 0.9 * np.exp(-(((depth - thick) / 1.0) ** 2))
    foam = (depth > 0) & (depth < thick)
    pad = (depth < -1) & (depth > -9)
    plane = 820.0 * shell + 60.0 * foam + (45.0 * pad if kind != 1 else 0.0)
    return np.where(np.abs(x) < half_width, plane, 0.0).astype(np.float32)


def _clothing_lines(
    rng: np.random.Generator,
    body: Plane,
    x: Float32[np.ndarray, "1 columns"],
    pixel_mm: float,
) -> Plane:
    """Attenuation above air of thin folds of cloth near the skin, alike for like generators."""
    plane = np.zeros_like(body)
    for _ in range(2):
        lift = rng.uniform(1, 16)
        wave = lift * (1 + 0.7 * np.sin(x / rng.uniform(25, 90) + rng.uniform(0, 6)))
        wave = wave + rng.uniform(0, 4) * np.sin(x / rng.uniform(8, 20))
        # Cloth shows only where it lies across the slice.
        seen = np.clip(np.sin(x / rng.uniform(20, 70) + rng.uniform(0, 6)), 0, 1)
        line = np.exp(-(((body - np.maximum(wave, 0.5)) / (0.8 * pixel_mm)) ** 2))
        plane += rng.uniform(30, 130) * seen * line
    return plane


class _Grain:
    """Fine texture of unit standard deviation, slice after slice, alike along all axes."""

    def __init__(self, rng: np.random.Generator, grid: Grid, sigma_mm: float) -> None:
        self._rng, self._shape = rng, grid.shape[1:]
        self._sigma = max(sigma_mm / grid.spacing_mm[1], 0.3)
        self._kept = float(np.exp(-grid.spacing_mm[0] / (2 * sigma_mm)))
        self._plane = self._fresh()

    def _fresh(self) -> Plane:
        white = self._rng.standard_normal(self._shape, dtype=np.float32)
        plane = cv2.GaussianBlur(white, (0, 0), self._sigma)
        return np.asarray(plane / plane.std(), dtype=np.float32)

    def next_slice(self) -> Plane:
        """The next slice's texture, correlated with the one before."""
        fresh = np.sqrt(1 - self._kept**2) * self._fresh()
        self._plane = (self._kept * self._plane + fresh).astype(np.float32)
        return self._plane


_Lung = Bool[np.ndarray, "rows columns"]


def compose(
    model: Model, grid: Grid, pose: Pose, scanner: Scanner, rng: np.random.Generator
) -> tuple[Int16[np.ndarray, "depth height width"], Mask]:
    """Scan a body: voxels in HU, and the lungs without trachea and main bronchi.

    The grid is canonical; `rng` is for textures and noise.
    """
    vessels, walls, hollows = (
        fill_tubes(pose.place(part, grid), grid.shape, grid.spacing_mm) for part in model.trees
    )
    texture = _Grain(rng, grid, 1.6)
    voxels = np.empty(grid.shape, dtype=np.float32)
    lungs = np.empty(grid.shape, dtype=bool)
    solid = np.empty(grid.shape[0], dtype=np.float32)
    painter = _Painter(model, grid, pose, scanner, int(rng.integers(2**31)))
    for level in range(grid.shape[0]):
        plane, lungs[level], body = painter.paint(level, texture.next_slice())
        for share, value in ((vessels, model.tissues.blood), (walls, 10.0), (hollows, -985.0)):
            plane += share[level] * (value - plane)
        voxels[level] = _blur_plane(plane, scanner.kernel, grid.spacing_mm[1])
        solid[level] = body
    return painter.finish(voxels, solid, rng), lungs


def sample_field(model: Model, stack: Field, grid: Grid, pose: Pose, level: int) -> Plane:
    """A field on a model's frame at one slice of a scan, at the scan's resolution."""
    frame = model.frame
    z = grid.origin_mm[2] + level * grid.spacing_mm[0]
    place = np.clip((z - frame.low_mm[0]) / frame.step_mm, 0, frame.shape[0] - 1.001)
    low, share = int(place), np.float32(place - int(place))
    return cv2.warpAffine(
        stack[low] + share * (stack[low + 1] - stack[low]),
        pose.slice_map(grid, z, frame),
        (grid.shape[2], grid.shape[1]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


class _Painter:
    """Paints slices of one model; holds what all slices share."""

    def __init__(self, model: Model, grid: Grid, pose: Pose, scanner: Scanner, seed: int) -> None:
        self.model, self.grid, self.pose, self.scanner = model, grid, pose, scanner
        pixel = grid.spacing_mm[1]
        rows, columns = grid.shape[1:]
        self.x = (grid.origin_mm[0] + pixel * np.arange(columns, dtype=np.float32))[None]
        self.y = (grid.origin_mm[1] + pixel * np.arange(rows, dtype=np.float32))[:, None]
        self.table = _table_plane(scanner, self.x, self.y)
        self.seed = seed
        self.softness = 1.0 / max(pixel, 0.8)

    def _layers(self, level: int) -> dict[str, Plane]:
        """All layers at the scan's resolution."""
        return {
            field.name: sample_field(
                self.model, getattr(self.model.layers, field.name), self.grid, self.pose, level
            )
            for field in fields(Layers)
        }

    def _inside(self, distance: Plane) -> Plane:
        """Share of a pixel inside a signed distance."""
        return np.asarray(np.clip(0.5 - distance * self.softness, 0, 1), dtype=np.float32)

    def paint(self, level: int, texture: Plane) -> tuple[Plane, _Lung, float]:
        """One slice in HU without noise, its lung mask, and the body's share of the slice."""
        at = self._layers(level)
        plane = self._surroundings(level, at["body"])
        for distance, value in self._tissues(at, texture):
            plane += self._inside(distance) * (value - plane)
        mask = (at["lungs"] < 0) & (at["airways"] > 2.0)
        return plane, mask, float((at["body"] < 0).mean())

    def _surroundings(self, level: int, body: Plane) -> Plane:
        """Air, table and clothing."""
        plane = np.full(body.shape, -1000.0, dtype=np.float32)
        if self.table is not None:
            plane += self.table
        if self.scanner.has_clothing:
            folds = np.random.default_rng(self.seed + level // 4)
            plane += _clothing_lines(folds, body, self.x, self.grid.spacing_mm[1])
        return plane

    def _tissues(
        self, at: dict[str, Plane], texture: Plane
    ) -> Iterator[tuple[Plane, Plane | float]]:
        """Signed distance and HU of each tissue, from the outermost to what covers all others."""
        tissue = self.model.tissues
        yield at["body"], 10.0
        yield at["body"] + 1.8, tissue.fat + 6.0 * texture
        yield at["muscle"], self._muscle(at, texture)
        yield at["cage"] + 2.0, tissue.fat + 9.0 * texture
        yield at["organs"], at["organ_hu"] + 4.0 * texture
        yield at["gas"], -980.0
        yield at["lungs"] - 0.9, 42.0
        yield at["cartilage"], 125.0 + 20.0 * texture
        marrow = tissue.marrow + 45.0 * texture
        yield at["bones"], marrow + (tissue.cortex - marrow) * np.clip(1 + at["bones"] / 2.2, 0, 1)
        yield at["canal"], 28.0
        yield at["lungs"], self._parenchyma(at, texture)
        yield at["airways"] - 1.6, 30.0
        yield at["airways"], -985.0

    def _muscle(self, at: dict[str, Plane], texture: Plane) -> Plane:
        """Muscle with layers of fat between, where it is thick."""
        tissue = self.model.tissues
        narrow = np.clip(0.05 + 0.05 * at["mottle"], 0, 0.16)
        layer = 16.0 * (np.abs(np.mod(at["strands"], 1.0) - 0.5) - narrow)
        thick = (at["cage"] > 13) & (at["muscle"] < -4)
        share = self._inside(layer) * thick * np.clip(0.7 + 0.5 * at["mottle"], 0, 1)
        value = tissue.muscle + 7.0 * texture + share * (tissue.fat - tissue.muscle)
        return np.asarray(value, dtype=np.float32)

    def _parenchyma(self, at: dict[str, Plane], texture: Plane) -> Plane:
        """Lung without visible vessels: denser behind, mottled, with its fissures."""
        tissue, anatomy = self.model.tissues, self.model.anatomy
        height = (self.y - self.pose.shift_mm[1]) / (2 * anatomy.half_depth)
        value = tissue.lung + tissue.lung_slope * height + 12.0 * at["mottle"]
        # Vessels too small to see make the distribution lean towards dense.
        value = value + 19.0 * texture + 9.0 * (texture * texture - 1)
        value = value + tissue.fissure * np.exp(-((at["fissure"] / 0.9) ** 2))
        return np.asarray(value, dtype=np.float32)

    def finish(
        self,
        voxels: Float32[np.ndarray, "depth height width"],
        solid: Float32[np.ndarray, " depth"],
        rng: np.random.Generator,
    ) -> Int16[np.ndarray, "depth height width"]:
        """Add noise, set what lies outside the field of view, round to whole HU."""
        shape, spacing = self.grid.shape, self.grid.spacing_mm
        broad = np.clip(solid / max(float(np.median(solid)), 1e-3) - 1.0, 0, 1)
        noise = _scan_noise(rng, shape, spacing, self.scanner.kernel, 6.0 * broad)
        sigma = self.scanner.noise_hu * self.scanner.kernel.noise * np.sqrt(2.0 / spacing[0])
        outside = np.hypot(self.x, self.y) > 0.5 * spacing[1] * shape[1]
        for level in range(shape[0]):
            density = np.clip((voxels[level] + 1000) / 1000, 0, 1.1)
            wide = max(22.0 / spacing[1], 1.0)
            density = cv2.blur(density, (2 * int(wide) + 1,) * 2)
            gain = sigma * (0.38 + 0.62 * density) * (1 + 0.6 * broad[level])
            voxels[level] += gain * noise[level]
            if self.scanner.is_padded:
                voxels[level][outside] = AIR_HU
        np.clip(voxels, AIR_HU, 3071, out=voxels)
        return np.asarray(np.rint(voxels), dtype=np.int16)

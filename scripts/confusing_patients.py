"""Patients who confuse what finds lungs: any part of the body, any filling, any field of view.

The body is that of `simulate_patient`, built on a larger and coarser grid, with head, neck, arms,
bowel and pelvis around it; the scan is then padded and crossed by metal. Made for training at about
4 mm: a patient takes a second or two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from confusing_bodies import (
    CONTENTS,
    Belly,
    add_growth,
    add_surroundings,
)
from jaxtyping import Float32, Float64, Int16, UInt8

from chestct.arrays import Mask
from chestct.errors import GridError
from chestct.labels import NORMAL
from chestct.lookup import look_up
from chestct.simulate.anatomy import Anatomy, draw_anatomy
from chestct.simulate.fields import Frame, Plane
from chestct.simulate.lesions import add_disease
from chestct.simulate.thorax import (
    BloodHU,
    Model,
    Pose,
    Scanner,
    build_model,
    compose,
    draw_scanner,
    make_frame,
    sample_field,
    square_grid,
)
from chestct.simulate.trees import Segments, fill_tubes
from chestct.volume import Grid, ScanSource, Volume

_METALS = ("pacemaker", "wires", "rods", "clips", "teeth", "hip", "electrodes")
"""What may be in or on a body."""

_Path = list[tuple[float, float, float]]


def _add_metal(
    scan: Volume, metal: str, anatomy: Anatomy, pose: Pose, rng: np.random.Generator
) -> Int16[np.ndarray, "depth height width"]:
    """A scan's voxels with metal and its streaks.

    Args:
        scan: Scan in HU, canonical axes.
        metal: One of `_METALS`, or "none".
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
    paths: list[tuple[_Path, float]] = _PATHS[metal](anatomy, rng)
    starts, ends, radii = [], [], []
    for path, radius in paths:
        for start, end in pairwise(path):
            starts.append(start[::-1])
            ends.append(end[::-1])
            radii.append(radius)
    return Segments(np.array(starts, float), np.array(ends, float), np.array(radii, float))


def _pacemaker(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[_Path, float]]:
    """A box under the skin of the chest and its lead to the heart."""
    side = float(rng.choice([-1, 1, 1]))
    width, depth, apex = anatomy.half_width, anatomy.half_depth, anatomy.lung_height
    box = (side * 0.62 * width, -0.85 * depth - 12, 0.85 * apex)
    low = (box[0] + side * 18, box[1] + 4, box[2] - 25)
    lead = [box, (side * 30.0, -0.2 * depth, 0.95 * apex), (-28.0, -0.2 * depth, 0.6 * apex),
            (-10.0, -0.3 * depth, 0.15 * apex), (40.0, -0.5 * depth, 0.08 * apex)]  # fmt: skip
    return [([box, low], 9.0), (lead, 1.1)]


def _wires(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[_Path, float]]:
    """Wires around the breast bone, and a valve in the heart."""
    depth, apex = anatomy.half_depth, anatomy.lung_height
    loops: list[tuple[_Path, float]] = []
    for share in np.linspace(0.15, 0.8, 6):
        z = float(share) * apex
        ring: _Path = [
            (x, -y * depth - 4, z)
            for x, y in ((-14.0, 0.9), (0.0, 1.06), (14.0, 0.9), (-14.0, 0.88))
        ]
        loops.append((ring, 0.9))
    turns = np.linspace(0, 2 * np.pi, 9)
    valve = [(12 + 12 * float(np.cos(t)), -0.25 * depth, 0.22 * apex + 12 * float(np.sin(t)))
             for t in turns]  # fmt: skip
    return [*loops, (valve, 1.6)]


def _rods(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[_Path, float]]:
    """Two rods beside the spine with screws into the vertebrae."""
    y, pitch = anatomy.spine_y, anatomy.rib_pitch
    low = rng.uniform(-120, 20)
    found: list[tuple[_Path, float]] = []
    for side in (-1.0, 1.0):
        found.append(([(side * 20, y + 34, low), (side * 20, y + 34, low + 6 * pitch)], 3.0))
        for step in range(0, 7, 2):
            z = low + step * pitch
            found.append(([(side * 20, y + 34, z), (side * 10, y - 5, z)], 2.6))
    return found


def _clips(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[_Path, float]]:
    """A dozen clips anywhere in the trunk."""
    size = np.array([0.8 * anatomy.half_width, 0.8 * anatomy.half_depth, 0.5 * anatomy.lung_height])
    places = rng.uniform(-1, 1, (12, 3)) * size + np.array([0, 0, 0.45 * anatomy.lung_height])
    ends = places + rng.normal(0, 3, places.shape)
    return [([_point(a), _point(b)], 1.2) for a, b in zip(places, ends, strict=True)]


def _teeth(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[_Path, float]]:
    """Fillings and crowns."""
    found: list[tuple[_Path, float]] = []
    for angle in rng.uniform(-1.2, 1.2, 5):
        x, y = 26 * np.sin(angle), -50 - 32 * np.cos(angle)
        z = anatomy.lung_height + 122 + rng.uniform(-4, 4)
        found.append(([(float(x), float(y), z), (float(x), float(y), z + 5)], 3.5))
    return found


def _hip(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[_Path, float]]:
    """An artificial hip joint."""
    side, z = float(rng.choice([-1, 1])), -anatomy.dome - 250.0
    return [
        ([(side * 88, -4.0, z), (side * 89, -4.0, z + 1)], 22.0),
        ([(side * 88, -4.0, z), (side * 112, 0.0, z - 20), (side * 100, 0.0, z - 150)], 8.0),
    ]


def _electrodes(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[_Path, float]]:
    """Electrodes and their cables on the skin of the chest."""
    depth, apex = anatomy.half_depth, anatomy.lung_height
    y = -depth - 20 - anatomy.fat
    found: list[tuple[_Path, float]] = []
    for _ in range(3):
        x, z = rng.uniform(-100, 100), rng.uniform(0.1, 0.9) * apex
        found.append(([(x, y, z), (x, y + 2, z)], 5.0))
        found.append(([(x, y, z), (rng.uniform(-150, 150), y - 15, z - 90)], 1.3))
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
        rays += np.cos(2 * int(waves) * angle + rng.uniform(0, 6.3)) / np.sqrt(9.0)
    reach = 25.0 + 2.0 * np.sqrt(mass)
    strength = float(np.clip(55.0 * np.sqrt(mass), 60, 1100)) * rng.uniform(0.5, 1.2)
    return np.asarray(strength * rays * reach / (reach + np.hypot(x, y)) ** 1.0 * 0.6, np.float32)


_Labels = UInt8[np.ndarray, "depth height width"]
RIGHT_LUNG, LEFT_LUNG, OTHER_GAS = 1, 2, 3
"""Labels beside 0 for background; 3 is airways, gas and contents of stomach and bowel."""

_STEPS_MM = (5.0, 8.0)
"""Finest and coarsest grid of the body; in between it is as coarse as the scan."""
_LUNG_VOXELS = 400
"""Fewer voxels of lung than this in view are left without disease."""

VIEWS: dict[str, tuple[tuple[str, float, float], tuple[str, float, float]]] = {
    "chest": (("base", -45, -8), ("apex", 8, 45)),
    "chest and neck": (("base", -60, -8), ("apex", 70, 190)),
    "chest and abdomen": (("base", -260, -120), ("apex", 8, 60)),
    "chest to pelvis": (("base", -330, -260), ("apex", 8, 60)),
    "whole body": (("base", -420, -270), ("apex", 120, 345)),
    "upper chest and head": (("dome", 40, 150), ("apex", 150, 345)),
    "part of the chest": (("base", 0, 110), ("apex", -90, 0)),
    "abdomen with lung bases": (("base", -300, -120), ("dome", -45, 60)),
    "abdomen": (("base", -420, -260), ("base", -60, -4)),
    "head": (("apex", 55, 130), ("apex", 270, 345)),
    "neck": (("apex", -30, 40), ("apex", 100, 190)),
}
"""From where to where a scan reaches: landmark and range of mm above it, below and above.

Landmarks are the lungs' lowest recess (base), the right diaphragm's top (dome), the apex."""
_VIEW_ODDS = (0.3, 0.1, 0.1, 0.08, 0.07, 0.07, 0.06, 0.08, 0.07, 0.04, 0.03)
_GROWTH_ODDS = 0.15
_PADDING_HU = (-1024, -1024, -2000, -2048, -3024, -1000, 0)


@dataclass(frozen=True)
class ConfusingSettings:
    """What may be fixed about a confusing patient; None means drawn from the generator.

    Attributes:
        rows: Rows and columns of a slice.
        slice_spacing_mm: Distance between slices; None draws 3 to 5 mm.
        field_of_view_mm: Edge length of a slice; None draws one, which may cut the body.
        view: Name in `VIEWS`.
        stomach: What fills it, one of `CONTENTS`.
        colon: What fills most of it, one of `CONTENTS`.
        build: "thin", "usual" or "obese".
        raised: Raised diaphragm: "none", "right", "left" or "both".
        arms: "up", "down", "across" or "none".
        airway: "closed", "tracheostomy" or "open" (through nose and mouth).
        is_prone: The patient lies on the belly.
        has_contrast: Contrast medium in the blood.
        pattern: Disease: "normal", "CAP", "COVID-19" or a name in `lesions.AIRLESS`.
        metal: Name in `_METALS`, or "none".
        padding: Value in HU outside the reconstruction's circle, or "none".
        blank_slices: Slices of the padding's value at an end or amid the scan.
    """

    rows: int = 112
    slice_spacing_mm: float | None = None
    field_of_view_mm: float | None = None
    view: str | None = None
    stomach: str | None = None
    colon: str | None = None
    build: str | None = None
    raised: str | None = None
    arms: str | None = None
    airway: str | None = None
    is_prone: bool | None = None
    has_contrast: bool | None = None
    pattern: str | None = None
    metal: str | None = None
    padding: int | str | None = None
    blank_slices: int | None = None

    def __post_init__(self) -> None:
        if not 32 <= self.rows <= 512:
            raise GridError(f"A confusing patient's slice has 32 to 512 rows, not {self.rows}.")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value is not None:
                look_up({choice: choice for choice in allowed}, value, kind=name)


_CHOICES: dict[str, dict[str, float]] = {
    "view": dict(zip(VIEWS, _VIEW_ODDS, strict=True)),
    "stomach": dict(zip(CONTENTS, (0.25, 0.2, 0.4, 0.05, 0.1), strict=True)),
    "colon": dict(zip(CONTENTS, (0.4, 0.05, 0.4, 0.05, 0.1), strict=True)),
    "build": {"thin": 0.2, "usual": 0.55, "obese": 0.25},
    "raised": {"none": 0.6, "left": 0.2, "right": 0.1, "both": 0.1},
    "arms": {"up": 0.45, "down": 0.25, "across": 0.15, "none": 0.15},
    "airway": {"closed": 0.4, "open": 0.4, "tracheostomy": 0.2},
    "pattern": {
        NORMAL: 0.34, "CAP": 0.1, "COVID-19": 0.1, "airless lobe": 0.12, "airless lung": 0.08,
        "posterior consolidation": 0.12, "effusion": 0.09, "mass": 0.05,
    },
    "metal": {"none": 0.75, **dict.fromkeys(_METALS, 0.25 / len(_METALS))},
}  # fmt: skip
"""Names that each setting may have, with their odds."""


@dataclass(frozen=True, eq=False)
class ConfusingPatient:
    """A simulated scan of any part of the body, with its truth.

    Attributes:
        volume: Scan in HU, int16, canonical axes.
        labels: 0 background, 1 right lung, 2 left lung, 3 airways, other gas in the body, and
            contents of stomach and bowel. Airless lung is lung; fluid around it is background.
        lesions: Voxels of disease inside the lungs.
        settings: What was fixed and drawn, nothing of it None but a drawn field of view.
        anatomy: The numbers behind the body.
    """

    volume: Volume
    labels: _Labels
    lesions: Mask
    settings: ConfusingSettings
    anatomy: Anatomy


def simulate_confusing_patient(
    rng: np.random.Generator, settings: ConfusingSettings | None = None
) -> ConfusingPatient:
    """Simulate a scan that is hard for what finds lungs.

    Args:
        rng: Everything random comes from here: the same state gives the same scan.
        settings: What to fix; all else is drawn.

    Raises:
        GridError: Settings outside their limits.
        UnknownNameError: A setting has no such choice.
    """
    chosen = _draw_settings(settings or ConfusingSettings(), rng)
    anatomy = _draw_body(chosen, rng)
    low, high = _draw_reach(chosen, anatomy, rng)
    belly = _draw_belly(chosen, rng)
    model = _build(anatomy, (low, high), belly, chosen, rng)
    model, hollow = add_surroundings(model, belly, str(chosen.arms), str(chosen.airway), rng)
    if rng.random() < _GROWTH_ODDS:
        model = add_growth(model, rng)
    grid, pose = _place(model, chosen, (low, high), rng)
    scanner = _draw_scanner(model, chosen, rng)
    voxels, lungs = compose(model, grid, pose, scanner, rng)
    facts = {"kernel": scanner.kernel.name, "manufacturer": "simulated"}
    scan = Volume(grid=grid, voxels=voxels, source=ScanSource(format="simulated", facts=facts))
    labels = _label(model, hollow, lungs, grid, pose)
    lesions = np.zeros(grid.shape, dtype=bool)
    if int(lungs.sum()) > _LUNG_VOXELS:
        varied = rng.random() < 0.5
        diseased = add_disease(scan, lungs, str(chosen.pattern), rng, varied=varied)
        scan, lesions = diseased.volume, diseased.lesions
        labels[diseased.effusion] = 0
    values = _add_metal(scan, str(chosen.metal), anatomy, pose, rng)
    values = _pad(values, labels, lesions, chosen, rng)
    return ConfusingPatient(scan.with_voxels(values), labels, lesions, chosen, anatomy)


def _draw_settings(settings: ConfusingSettings, rng: np.random.Generator) -> ConfusingSettings:
    """Draw what is not fixed; every draw is made, so that fixing one changes no other."""
    drawn: dict[str, object] = {
        name: str(rng.choice(list(odds), p=np.array(list(odds.values())) / sum(odds.values())))
        for name, odds in _CHOICES.items()
    }
    drawn["slice_spacing_mm"] = rng.uniform(3, 5)
    drawn["is_prone"] = rng.random() < 0.1
    drawn["has_contrast"] = rng.random() < 0.4
    value = int(rng.choice(_PADDING_HU))
    drawn["padding"] = value if rng.random() < 0.5 else "none"
    drawn["blank_slices"] = int(rng.integers(1, 6)) if rng.random() < 0.15 else 0
    missing = {name: v for name, v in drawn.items() if getattr(settings, name) is None}
    return replace(settings, **missing)  # type: ignore[arg-type]


def _draw_body(settings: ConfusingSettings, rng: np.random.Generator) -> Anatomy:
    """An adult of the wanted build, with diaphragms raised as wanted."""
    anatomy = draw_anatomy(rng)
    thin, obese = rng.uniform(3, 7), rng.uniform(35, 75)
    fat = {"thin": thin, "usual": anatomy.fat, "obese": obese}[str(settings.build)]
    raise_left, raise_right = rng.uniform(15, 75), rng.uniform(25, 80)
    height, left = anatomy.lung_height, anatomy.left_dome
    if settings.raised in ("right", "both"):
        height = max(height - raise_right, 95.0)
        left -= 0.0 if settings.raised == "both" else 0.8 * raise_right
    if settings.raised == "left":
        left = min(left + raise_left, 0.5 * height)
    return replace(
        anatomy,
        fat=fat,
        lung_height=height,
        left_dome=left,
        heart=anatomy.heart * float(rng.choice([1.0, 1.0, rng.uniform(0.8, 1.45)])),
        turn_degrees=anatomy.turn_degrees * float(rng.choice([1.0, 1.0, 4.0])),
        kyphosis=rng.uniform(1, 22),
        scoliosis=anatomy.scoliosis * float(rng.choice([1.0, 1.0, 4.0])),
        arms_down=settings.arms != "up",
    )


def _draw_reach(
    settings: ConfusingSettings, anatomy: Anatomy, rng: np.random.Generator
) -> tuple[float, float]:
    """Lowest and highest slice in mm."""
    landmarks = {"base": -anatomy.dome, "dome": 0.0, "apex": anatomy.lung_height}
    low, high = (
        landmarks[name] + rng.uniform(least, most)
        for name, least, most in VIEWS[str(settings.view)]
    )
    return low, max(high, low + 60)


def _draw_belly(settings: ConfusingSettings, rng: np.random.Generator) -> Belly:
    """The organs below the diaphragm, with what fills stomach and bowel."""
    enhanced = rng.uniform(20, 80)
    return Belly(
        stomach=str(settings.stomach),
        stomach_size=rng.lognormal(0.25, 0.4),
        colon=str(settings.colon),
        colon_mm=rng.uniform(16, 34),
        is_prone=bool(settings.is_prone),
        has_hernia=rng.random() < 0.08,
        has_free_air=rng.random() < 0.04,
        gullet_mm=rng.uniform(5, 17) * float(rng.random() < 0.2),
        contrast_hu=enhanced if settings.has_contrast else 0.0,
    )


def _build(
    anatomy: Anatomy,
    reach: tuple[float, float],
    belly: Belly,
    settings: ConfusingSettings,
    rng: np.random.Generator,
) -> Model:
    """The body on a coarse grid that covers the scan, and the chest in any case."""
    low = min(reach[0] - 15, -10.0)
    high = max(reach[1] + 15, anatomy.lung_height + 25)
    usual = make_frame(anatomy)
    wide = 75.0 if settings.arms == "down" else 0.0
    pixel = settings.field_of_view_mm or 0.0
    step = float(np.clip(min(pixel / settings.rows, settings.slice_spacing_mm or 0), *_STEPS_MM))
    depth, across = -usual.low_mm[1] + 10, -usual.low_mm[2] + wide + 0.3 * anatomy.fat
    shape = tuple(int(mm / step) + 1 for mm in (high - low, 2 * depth, 2 * across))
    frame = Frame((low, -depth, -across), (shape[0], shape[1], shape[2]), step)
    plain = rng.uniform(34, 50)
    more = rng.uniform(60, 330, 2) if settings.has_contrast else np.zeros(2)
    blood = BloodHU(plain + float(more[0]), plain + float(more[1]))
    model = build_model(anatomy, rng, frame=frame, abdomen=belly, blood=blood, coarse=0.34 * step)
    lung = float(np.clip(rng.normal(-860, 35), -960, -740))
    slope = model.tissues.lung_slope * (-1 if settings.is_prone else 1)
    return replace(model, tissues=replace(model.tissues, lung=lung, lung_slope=slope))


def _place(
    model: Model, settings: ConfusingSettings, reach: tuple[float, float], rng: np.random.Generator
) -> tuple[Grid, Pose]:
    """The scan's grid: as wide as the body or narrower, now and then far from its middle."""
    spacing = float(settings.slice_spacing_mm or 4.0)
    body_mm = 2.0 * (model.anatomy.half_width + 20 + model.anatomy.fat)
    view = settings.field_of_view_mm or float(np.clip(body_mm * rng.uniform(0.85, 1.5), 180, 650))
    if settings.field_of_view_mm is None and rng.random() < 0.12:
        view = rng.uniform(160, 260)
    shift = rng.normal(0, 8, 2) * float(rng.choice([1, 1, 1, 5]))
    if rng.random() < 0.08:
        # One half of the body in view.
        shift[0] += float(rng.choice([-1, 1])) * (0.5 * view + rng.uniform(-50, 50))
    num_slices = int((reach[1] - reach[0]) / spacing) + 1
    grid = square_grid(num_slices, settings.rows, spacing, view, reach[0])
    return grid, Pose(model.anatomy, (float(shift[0]), float(shift[1])))


def _draw_scanner(model: Model, settings: ConfusingSettings, rng: np.random.Generator) -> Scanner:
    """A scanner whose table lies under the patient."""
    frame, prone = model.frame, bool(settings.is_prone)
    chest = (frame.z > 0) & (frame.z < model.anatomy.lung_height) & (model.layers.body < 0)
    used = np.flatnonzero(chest.any(axis=(0, 2)))
    edge = -frame.y[0, used[0], 0] if prone else frame.y[0, used[-1], 0]
    scanner = draw_scanner(rng, float(edge) + rng.uniform(2, 10))
    # Slices as thick as these are far less noisy than the usual ones.
    return replace(scanner, is_prone=prone, is_padded=False)


def _label(model: Model, hollow: np.ndarray, lungs: Mask, grid: Grid, pose: Pose) -> _Labels:
    """Paint the labels."""
    labels = np.zeros(grid.shape, dtype=np.uint8)
    across = np.broadcast_to(model.frame.x, model.frame.shape)
    for level in range(grid.shape[0]):
        gas = sample_field(model, hollow, grid, pose, level) < 0
        left = sample_field(model, across, grid, pose, level) > 0
        plane = np.where(gas, OTHER_GAS, 0)
        plane = np.where(lungs[level], np.where(left, LEFT_LUNG, RIGHT_LUNG), plane)
        labels[level] = plane
    return labels


def _pad(
    voxels: np.ndarray,
    labels: _Labels,
    lesions: Mask,
    settings: ConfusingSettings,
    rng: np.random.Generator,
) -> np.ndarray:
    """Set what was not reconstructed: outside a circle, and blank slices; labels follow."""
    value = -1024 if settings.padding == "none" else int(settings.padding or 0)
    missing = np.zeros(voxels.shape, dtype=bool)
    if settings.padding != "none":
        rows, columns = voxels.shape[1:]
        across = np.arange(columns) - (columns - 1) / 2
        along = np.arange(rows) - (rows - 1) / 2
        missing |= np.hypot(along[:, None], across[None]) > 0.5 * rows
    number = int(settings.blank_slices or 0)
    if number:
        amid = int(rng.integers(0, max(len(voxels) - 1, 1)))
        start = int(rng.choice([0, len(voxels) - number, amid]))
        missing[max(start, 0) : start + (1 if start == amid else number)] = True
    labels[missing], lesions[missing] = 0, False
    return np.where(missing, value, voxels).astype(np.int16)

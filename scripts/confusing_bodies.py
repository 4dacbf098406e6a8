"""What lies around the chest and may be taken for lung: head, neck, arms, bowel, pelvis.

Shapes are signed distances as those of the chest, on a grid that reaches from thigh to crown.
Positions are patient coordinates in mm (x to the left, y to the back, z to the head).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from chestct.simulate.anatomy import Anatomy
from chestct.simulate.fields import (
    Field,
    Frame,
    Number,
    Place,
    ellipsoid,
    smooth_overlap,
    smooth_union,
    tube_distance,
)
from chestct.simulate.thorax import Layers, Model

CONTENTS = ("gas", "fluid", "food", "contrast", "empty")
"""What may fill a stomach or a piece of bowel."""
_WALL_MM = 3.0


_Organ = tuple[Field, Field | float]


@dataclass(eq=False)
class Belly:
    """Organs below the diaphragm with what fills them, collected while they are made.

    Attributes:
        stomach: What fills it, one of `CONTENTS`.
        stomach_size: Factor on the stomach's size; 1 holds about half a litre.
        colon: One of `CONTENTS`.
        colon_mm: Usual radius of the colon.
        is_prone: The patient lies on the belly, so that gas rises to the back.
        has_hernia: Part of the stomach lies above the diaphragm, behind the heart.
        has_free_air: Gas lies free under the diaphragm.
        gullet_mm: Radius of the gullet where it holds gas; 0 where it holds none.
        contrast_hu: What contrast medium in the blood adds to organs.
        organs: Signed distances with their HU; what comes later lies inside.
        gas: Signed distance from all gas.
        lumen: Signed distance from all gas and contents.
    """

    stomach: str
    stomach_size: float
    colon: str
    colon_mm: float
    is_prone: bool
    has_hernia: bool
    has_free_air: bool
    gullet_mm: float
    contrast_hu: float
    organs: list[_Organ] = field(default_factory=list)
    gas: Field = field(init=False)
    lumen: Field = field(init=False)

    def __call__(
        self, frame: Frame, anatomy: Anatomy, cavity: Field, rng: np.random.Generator
    ) -> tuple[list[_Organ], Field]:
        """Make everything between diaphragm and pelvic floor."""
        inside = cavity + 1.5
        floor = _hip_height(anatomy) - 100.0
        inside = np.maximum(inside, floor - frame.z)
        self.gas, self.lumen = frame.full(60.0), frame.full(60.0)
        liver = self._solid_organs(frame, anatomy, inside, rng)
        free = np.maximum(inside, -liver - 2.0)
        self._small_bowel(frame, anatomy, free, rng)
        self._colon(frame, anatomy, free, rng)
        self._stomach(frame, anatomy, inside, rng)
        if self.has_free_air:
            front = frame.y + 0.45 * anatomy.half_depth + 6.0 * frame.noise(rng, 50.0)
            air = np.maximum(np.maximum(inside + 1.0, front), -70.0 - frame.z)
            self._add_gas(air.astype(np.float32), air.astype(np.float32))
        return self.organs, self.gas

    def hollows_among_lungs(self, frame: Frame, anatomy: Anatomy) -> Field:
        """Signed distance from what lies between the lungs besides the usual: hernia, gullet."""
        shape = frame.full(25.0)
        if self.has_hernia:
            shape = np.minimum(shape, _hernia_distance(frame, anatomy))
        if self.gullet_mm:
            shape = np.minimum(shape, _gullet_distance(frame, anatomy, self.gullet_mm))
        return shape

    def _solid_organs(
        self, frame: Frame, anatomy: Anatomy, inside: Field, rng: np.random.Generator
    ) -> Field:
        """Liver, spleen, kidneys, psoas muscles, bladder, lower aorta and caval vein."""
        width, depth, hips = anatomy.half_width, anatomy.half_depth, _hip_height(anatomy)
        more, size = self.contrast_hu, rng.uniform(0.85, 1.4)
        wedge = (frame.x - rng.uniform(0, 35) + 0.6 * frame.y) * 0.85
        wedge = wedge + 6.0 * frame.noise(rng, 50.0)
        end = -frame.z - rng.uniform(100, 165) - 0.35 * frame.x
        liver: Field = np.maximum(inside, np.maximum(wedge, end)).astype(np.float32)
        liver_hu = float(rng.normal(54, 9) if rng.random() < 0.85 else rng.uniform(-5, 35))
        top = anatomy.left_dome - rng.uniform(35, 60)
        spleen = (0.7 * width, 0.42 * depth, top)
        spleen_mm = (26 * size, 42 * size, 44 * size)
        back = anatomy.spine_y - 10.0
        solid: list[_Organ] = [
            (liver, liver_hu + 0.4 * more),
            (np.maximum(ellipsoid(frame, spleen, spleen_mm, -20.0), inside), 48.0 + 0.5 * more),
            (ellipsoid(frame, (60, 0.45 * depth, -125), (27, 25, 52)), 33.0 + 0.8 * more),
            (ellipsoid(frame, (-58, 0.45 * depth, -135), (27, 25, 52)), 33.0 + 0.8 * more),
            (ellipsoid(frame, (0, -0.25 * depth, hips - 70), (42, 34, 32)), 8.0),
            (tube_distance(frame, [(5, back, -140), (4, back, hips)], (10, 8)), 42 + 0.8 * more),
            (tube_distance(frame, [(-24, back, -140), (-20, back, hips)], (11, 9)), 42 + more / 2),
        ]  # fmt: skip
        for side in (-1, 1):
            path = [(side * 36, 0.62 * depth, -110.0), (side * 62, 0.2 * depth, hips - 60)]
            solid.append((tube_distance(frame, path, (14, 24)), 55.0))
        self.organs += [(np.maximum(shape, inside), value) for shape, value in solid]
        return liver

    def _stomach(
        self, frame: Frame, anatomy: Anatomy, inside: Field, rng: np.random.Generator
    ) -> None:
        """Fundus close under the left dome, body, outlet; at times a part above the diaphragm."""
        width, depth, size = anatomy.half_width, anatomy.half_depth, self.stomach_size
        top = anatomy.left_dome - rng.uniform(2, 14)
        tall, wide = 46.0 * size**0.5, 0.31 * width * size**0.4
        x = float(np.clip(0.48 * width + rng.normal(0, 5), 0, 0.95 * width - wide))
        y = rng.uniform(-0.15, 0.1) * depth
        fundus = ellipsoid(frame, (x, y, top - tall), (wide, 0.5 * depth * size**0.4, tall), 20.0)
        below = (0.8 * x, -0.45 * depth, top - 1.7 * tall)
        body = [(x, y - 0.1 * depth, top - tall), below, (-10.0, -0.45 * depth, below[2] - 15)]
        outlet = tube_distance(frame, body, (0.7 * wide, 24 * size**0.4, 12))
        stomach = smooth_union(fundus, outlet, 14.0) + 2.0 * frame.noise(rng, 40.0)
        stomach = np.maximum(stomach, inside + 0.5)
        if self.has_hernia:
            stomach = np.minimum(stomach, _hernia_distance(frame, anatomy))
        self._add_hollow(frame, stomach, self.stomach, rng)
        if self.gullet_mm:
            gullet = _gullet_distance(frame, anatomy, self.gullet_mm)
            self._add_hollow(frame, gullet, str(rng.choice(["gas", "gas", "fluid", "food"])), rng)

    def _colon(self, frame: Frame, anatomy: Anatomy, free: Field, rng: np.random.Generator) -> None:
        """Ascending, transverse, descending and sigmoid colon, each with its own share of gas."""
        kind, radius = self.colon, self.colon_mm
        haustra = 3.0 * frame.noise(rng, 22.0)
        for path in _colon_paths(frame, anatomy, rng):
            size = radius * rng.uniform(0.7, 1.15)
            content = kind if rng.random() < 0.7 else str(rng.choice(CONTENTS))
            if content == "empty":
                size = 9.0
            tube = tube_distance(frame, path, [size] * len(path)) + haustra
            self._add_hollow(frame, np.maximum(tube, free), content, rng)

    def _small_bowel(
        self, frame: Frame, anatomy: Anatomy, free: Field, rng: np.random.Generator
    ) -> None:
        """Loops in the middle of the belly, most with fluid, some with gas."""
        width, depth, hips = anatomy.half_width, anatomy.half_depth, _hip_height(anatomy)
        loops = frame.full(60.0)
        for _ in range(int(rng.integers(10, 22))):
            centre = np.array([rng.uniform(-0.55, 0.65) * width, rng.uniform(-0.75, 0.15) * depth,
                               rng.uniform(hips - 40, -70)])  # fmt: skip
            bend = centre + rng.normal(0, 24, 3)
            path: list[Place] = [(p[0], p[1], p[2]) for p in (centre.tolist(), bend.tolist())]
            size = rng.uniform(9, 17)
            np.minimum(loops, tube_distance(frame, path, (size, size)), out=loops)
        lumen = np.maximum(loops, free)
        self._add_hollow(frame, lumen, "bowel", rng)

    def _add_hollow(
        self, frame: Frame, shape: Field, content: str, rng: np.random.Generator
    ) -> None:
        """Add an organ with its wall, contents and gas."""
        shape = shape.astype(np.float32)
        self.organs.append((shape, 40.0 + 0.3 * self.contrast_hu))
        lumen = (shape + _WALL_MM).astype(np.float32)
        if content == "empty":
            return
        self.organs.append((lumen, _content_hu(frame, content, rng)))
        self._add_gas(_gas_in(frame, lumen, content, self.is_prone, rng), lumen)

    def _add_gas(self, gas: Field, lumen: Field) -> None:
        np.minimum(self.gas, gas, out=self.gas)
        np.minimum(self.lumen, lumen, out=self.lumen)


def _content_hu(frame: Frame, content: str, rng: np.random.Generator) -> Field | float:
    """Attenuation of what is not gas: water, mottled food or stool, contrast medium."""
    if content == "contrast":
        return rng.uniform(120, 500)
    if content != "food":
        return rng.uniform(0, 40)
    mean, amplitude = rng.uniform(-130, 40), rng.uniform(20, 110)
    mottle = frame.noise(rng, rng.uniform(9, 22))
    return np.clip(mean + amplitude * mottle, -320, 110).astype(np.float32)


def _gas_in(
    frame: Frame, lumen: Field, content: str, is_prone: bool, rng: np.random.Generator
) -> Field:
    """Signed distance from the gas inside a lumen: above a level, or in bubbles within food."""
    inside = np.broadcast_to(frame.y, lumen.shape)[lumen < 0]
    if inside.size == 0:
        return frame.full(60.0)
    low, high = {
        "gas": (0.75, 1.2),
        "fluid": (0.0, 0.6),
        "food": (-0.1, 0.4),
        "contrast": (0.0, 0.4),
        "bowel": (-0.2, 0.35),
    }[content]
    share = float(np.clip(rng.uniform(low, high), 0, 1))
    level = float(np.quantile(inside, 1 - share if is_prone else share)) if share < 1 else 1e4
    above = level - frame.y if is_prone and share < 1 else frame.y - level
    if share == 0:
        above = np.full_like(frame.y, 60.0)
    gas = np.maximum(lumen + 0.5, above)
    if content == "food":
        bubbles = 7.0 * (rng.uniform(0.9, 2.2) - frame.noise(rng, rng.uniform(9, 18)))
        gas = np.minimum(gas, np.maximum(lumen + 1.0, bubbles))
    return np.asarray(gas, dtype=np.float32)


def _colon_paths(frame: Frame, anatomy: Anatomy, rng: np.random.Generator) -> list[list[Place]]:
    """The colon from caecum to rectum, in pieces; at times in front of the liver."""
    width, depth, hips = anatomy.half_width, anatomy.half_depth, _hip_height(anatomy)
    sag = rng.uniform(-190, -80)
    flexure = anatomy.left_dome - rng.uniform(18, 70)
    right: Place = (-0.6 * width, -0.4 * depth, -100.0)
    left: Place = (0.74 * width, rng.uniform(-0.35, 0.3) * depth, flexure)
    middle: Place = (rng.uniform(-0.1, 0.2) * width, -0.72 * depth, sag)
    if rng.random() < 0.12:
        right, middle = (-0.5 * width, -0.7 * depth, -45.0), (0.1 * width, -0.75 * depth, -60.0)
    caecum: Place = (-0.5 * width, -0.15 * depth, hips - 15)
    low: Place = (0.55 * width, 0.1 * depth, hips + 10)
    bend: Place = (0.35 * width, -0.25 * depth, hips - 50)
    end: Place = (0.0, 0.5 * depth, hips - 95)
    return [
        [caecum, (-0.72 * width, 0.1 * depth, 0.5 * (hips - 100)), right],
        [right, middle, left],
        [left, (0.8 * width, 0.3 * depth, flexure - 60), low],
        [low, bend, (0.0, 0.0, hips - 40), (0.0, 0.35 * depth, hips - 50), end],
    ]


def _gullet_distance(frame: Frame, anatomy: Anatomy, radius: float) -> Field:
    """Signed distance from a gullet that holds gas, narrow at its lower end."""
    apex, depth, back = anatomy.lung_height, anatomy.half_depth, anatomy.spine_y - 24.0
    path: list[Place] = [(4, 0.28 * depth, 1.1 * apex), (5, 0.34 * depth, 0.7 * apex),
                         (8, back - 5, 0.3 * apex), (14, 0.3 * depth, 5.0)]  # fmt: skip
    return tube_distance(frame, path, (0.6 * radius, radius, radius, 0.6 * radius))


def _hernia_distance(frame: Frame, anatomy: Anatomy) -> Field:
    """Signed distance from a part of the stomach that lies behind the heart."""
    centre = (8.0, 0.28 * anatomy.half_depth, 0.12 * anatomy.lung_height)
    return ellipsoid(frame, centre, (34.0, 26.0, 0.16 * anatomy.lung_height + 10))


def _hip_height(anatomy: Anatomy) -> float:
    """Height of the iliac crests' lower half, where the pelvis begins."""
    return -anatomy.dome - 165.0


def add_surroundings(
    model: Model, belly: Belly, arms: str, airway: str, rng: np.random.Generator
) -> tuple[Model, Field]:
    """Add head, neck, arms and pelvis to a body that was built on a large grid.

    Args:
        model: The body.
        belly: Its organs below the diaphragm.
        arms: "up", "down", "across" the belly, or "none" in view.
        airway: "closed", "tracheostomy", or "open" through nose and mouth.
        rng: Where the randomness comes from.

    Returns:
        The whole body, and the signed distance from gas and contents of all hollow organs.
    """
    frame, anatomy, layers = model.frame, model.anatomy, model.layers
    layers = _without_ends(frame, anatomy, layers)
    layers = _add_pelvis(frame, anatomy, layers)
    layers, sinuses = _add_head(frame, anatomy, layers, arms, rng)
    layers = _add_arms(frame, anatomy, layers, arms, rng)
    trachea = np.maximum(layers.airways, frame.z - anatomy.lung_height - 20)
    airways = np.minimum(trachea, _upper_airways(frame, anatomy, airway, rng))
    hollow = np.minimum(np.minimum(belly.lumen, sinuses), airways)
    hollow = np.maximum(hollow, layers.body)
    away = -belly.hollows_among_lungs(frame, anatomy) + _WALL_MM
    layers = replace(layers, lungs=np.maximum(layers.lungs, away))
    layers = replace(layers, airways=airways)
    return replace(model, layers=layers), np.asarray(hollow, dtype=np.float32)


def _without_ends(frame: Frame, anatomy: Anatomy, layers: Layers) -> Layers:
    """End the ribs below, and what the chest's model continues above, where they end in a body."""
    lowest = -anatomy.dome - 40.0 + 0.25 * np.abs(frame.x)
    outside = np.maximum(lowest - frame.z, frame.z - anatomy.lung_height - 28)
    away = np.minimum(outside, np.abs(frame.x) - 44.0)
    crown = frame.z - anatomy.lung_height - 165.0
    return replace(
        layers,
        bones=np.maximum(np.maximum(layers.bones, away), crown).astype(np.float32),
        cartilage=np.maximum(layers.cartilage, outside).astype(np.float32),
        canal=np.maximum(layers.canal, crown).astype(np.float32),
        organs=np.maximum(layers.organs, crown + 40).astype(np.float32),
    )


def add_growth(model: Model, rng: np.random.Generator) -> Model:
    """Add a lump of soft tissue that grows into a lung from mediastinum, chest wall or dome."""
    layers, frame = model.layers, model.frame
    places = np.argwhere(np.abs(layers.lungs) < frame.step_mm)
    z, y, x = (places[rng.integers(len(places))] * frame.step_mm + frame.low_mm).tolist()
    size = rng.uniform(14, 48) * rng.uniform(0.7, 1.3, 3)
    lump = ellipsoid(frame, (x, y, z), (size[0], size[1], size[2])) + 3.0 * frame.noise(rng, 25.0)
    lump = np.maximum(lump, layers.muscle + 4).astype(np.float32)
    hu = rng.uniform(5, 90)
    layers = replace(
        layers,
        lungs=np.maximum(layers.lungs, -lump).astype(np.float32),
        organs=np.minimum(layers.organs, lump),
        organ_hu=np.where(lump < 0, np.float32(hu), layers.organ_hu),
    )
    return replace(model, layers=layers)


def _add_pelvis(frame: Frame, anatomy: Anatomy, layers: Layers) -> Layers:
    """Iliac wings, sacrum, hips and thighs."""
    hips, depth = _hip_height(anatomy), anatomy.half_depth
    wings = np.abs(ellipsoid(frame, (0, 0.05 * depth, hips - 15), (112, 0.8 * depth, 80))) - 4.5
    wings = np.maximum(wings, np.maximum(48.0 - np.abs(frame.x), -0.25 * depth - frame.y))
    wings = np.maximum(wings, np.maximum(frame.z - hips - 50, hips - 75 - frame.z))
    sacrum = ellipsoid(frame, (0, 0.72 * depth, hips - 35), (46, 18, 55))
    bones = np.minimum(wings, sacrum)
    crotch = hips - 130.0
    thighs = frame.full(25.0)
    for side in (-1, 1):
        hip: Place = (side * 88.0, -0.05 * depth, hips - 85)
        bones = np.minimum(bones, ellipsoid(frame, hip, (25, 25, 25)))
        knee: Place = (side * 92.0, 0.0, hips - 500)
        shaft = tube_distance(frame, [(side * 112.0, 0.0, hips - 105), knee], (17, 14))
        bones = np.minimum(bones, shaft)
        thigh = tube_distance(frame, [(side * 86.0, 0.0, hips - 90), knee], (84, 70))
        thighs = np.minimum(thighs, thigh - 0.3 * anatomy.fat)
    body = smooth_union(
        smooth_overlap(layers.body, crotch - frame.z + 0 * thighs, 20.0), thighs, 12
    )
    muscle = np.maximum(layers.muscle, crotch - frame.z)
    muscle = np.minimum(muscle, thighs + 3.0 + 0.6 * anatomy.fat)
    spine = np.maximum(layers.bones, hips - 60 - frame.z)
    return replace(
        layers,
        body=body.astype(np.float32),
        muscle=np.maximum(muscle, body + 1.5).astype(np.float32),
        bones=np.minimum(spine, bones).astype(np.float32),
        cage=np.maximum(layers.cage, hips - 105 - frame.z).astype(np.float32),
        canal=np.maximum(layers.canal, hips - 60 - frame.z).astype(np.float32),
        organs=np.maximum(layers.organs, hips - 105 - frame.z).astype(np.float32),
    )


def _add_head(
    frame: Frame, anatomy: Anatomy, layers: Layers, arms: str, rng: np.random.Generator
) -> tuple[Layers, Field]:
    """Shoulders that end, neck, skull with brain, face with its cavities.

    Returns:
        The layers, and the signed distance from the gas of the face's cavities.
    """
    apex = anatomy.lung_height
    slope, rise = (0.12, 62.0) if arms == "up" else (0.42, 52.0)
    aside, behind = np.abs(frame.x) - 55, np.abs(frame.y - 20) - 45
    aside, behind = slope * np.clip(aside, 0, None), 0.9 * np.clip(behind, 0, None)
    shoulder = frame.z - apex - rise + np.hypot(aside, behind)
    wide = 55.0 + 0.35 * anatomy.fat
    neck = tube_distance(frame, [(0, 22, apex - 30), (0, 16, apex + 160)], (wide + 6, wide))
    cranium = ellipsoid(frame, (0, 6, apex + 222), (77, 96, 104))
    face = ellipsoid(frame, (0, -38, apex + 155), (60 + 0.2 * anatomy.fat, 58, 78))
    nose = ellipsoid(frame, (0, -96, apex + 163), (13, 17, 20))
    head = smooth_union(smooth_union(cranium, face, 20.0), nose, 10.0)
    upper = smooth_union(head, neck, 25.0) + 1.0 * frame.noise(rng, 50.0)
    torso = smooth_overlap(layers.body, shoulder + 0 * upper, 30.0)
    body = smooth_union(torso, upper, 25.0).astype(np.float32)
    muscle = np.maximum(layers.muscle, shoulder + 0.4 * anatomy.fat + 3)
    muscle = np.minimum(muscle, upper + 3.0 + 0.35 * anatomy.fat)
    bones = np.minimum(np.maximum(layers.bones, body + 4.0), _skull(frame, apex, cranium))
    brain = cranium + 13.0
    cavities = _cavities(frame, apex, rng)
    organ_hu = np.where(brain < 2.0, np.float32(34.0), layers.organ_hu)
    layers = replace(
        layers,
        body=body,
        muscle=np.maximum(muscle, body + 1.5).astype(np.float32),
        bones=np.maximum(bones, -cavities - 1.0).astype(np.float32),
        organs=np.minimum(layers.organs, brain).astype(np.float32),
        organ_hu=organ_hu.astype(np.float32),
        gas=np.minimum(layers.gas, cavities).astype(np.float32),
    )
    return layers, cavities


def _skull(frame: Frame, apex: float, cranium: Field) -> Field:
    """Vault and base of the skull, jaws and teeth."""
    shell = np.abs(cranium + 9.5) - 3.4
    jaw = [(50, 15, apex + 158), (46, -12, apex + 118), (22, -72, apex + 106), (0, -82, apex + 105)]
    other = [(-x, y, z) for x, y, z in jaw]
    lower = np.minimum(*(tube_distance(frame, path, (7, 7, 8, 8)) for path in (jaw, other)))
    upper = ellipsoid(frame, (0, -52, apex + 158), (44, 32, 34))
    teeth: list[Place] = [(-24, -50, apex + 122), (0, -84, apex + 122), (24, -50, apex + 122)]
    arch = tube_distance(frame, teeth, (6, 6, 6))
    bones = np.minimum(np.minimum(shell, lower), np.minimum(np.abs(upper) - 2.0, arch))
    return np.asarray(bones, dtype=np.float32)


def _cavities(frame: Frame, apex: float, rng: np.random.Generator) -> Field:
    """Gas of sinuses, nose and mastoid cells; one in six sinuses is full of fluid."""
    shapes: list[tuple[Place, Place]] = [((0, -20, apex + 181), (12, 10, 10))]
    for side in (-1, 1):
        shapes += [
            ((side * 27, -58, apex + 160), (13, 15, 16)),
            ((side * 12, -72, apex + 203), (12, 6, 11)),
            ((side * 9, -52, apex + 184), (6, 22, 11)),
            ((side * 54, 22, apex + 168), (8, 12, 16)),
            ((side * 7, -60, apex + 160), (3.5, 30, 13)),
        ]
    cells = 2.0 * frame.noise(rng, 12.0)
    field = frame.full(60.0)
    for centre, size in shapes:
        if rng.random() < 0.84:
            np.minimum(field, ellipsoid(frame, centre, size), out=field)
    return np.asarray(np.where(field < 10, field + cells, field), dtype=np.float32)


def _upper_airways(frame: Frame, anatomy: Anatomy, airway: str, rng: np.random.Generator) -> Field:
    """Windpipe of the neck, larynx, pharynx, and the ways out to the room."""
    apex = anatomy.lung_height
    y = -0.05 * anatomy.half_depth
    size = 8.6 * anatomy.vessel
    wide = rng.uniform(8, 14)
    path: list[Place] = [(0, y, apex - 10), (0, y - 4, apex + 55),
                         (0, y - 6, apex + 72), (0, y + 2, apex + 92),
                         (0, y + 6, apex + 130), (0, y, apex + 165)]  # fmt: skip
    sizes: list[Number] = [size, size, 0.6 * size, wide, wide, wide]
    airways = tube_distance(frame, path, sizes)
    for side in (-1, 1):
        pouch = ellipsoid(frame, (side * 13, y + 4, apex + 84), (6, 5, 12))
        airways = np.minimum(airways, pouch)
    airways = np.minimum(airways, ellipsoid(frame, (0, y - 14, apex + 100), (14, 6, 8)))
    nose = tube_distance(frame, [(0, y, apex + 163), (0, -70, apex + 158)], (10, 5))
    airways = np.minimum(airways, nose)
    if airway == "open":
        mouth: list[Place] = [(0, y + 2, apex + 130), (0, -60, apex + 130), (0, -110, apex + 126)]
        airways = np.minimum(airways, tube_distance(frame, mouth, (10, 16, 12)))
        for side in (-1, 1):
            nostril: list[Place] = [(side * 7, -65, apex + 157), (side * 8, -118, apex + 146)]
            airways = np.minimum(airways, tube_distance(frame, nostril, (6, 5)))
    if airway == "tracheostomy":
        hole: list[Place] = [(0, y, apex + 18), (0, -75, apex + 38), (0, -110, apex + 44)]
        airways = np.minimum(airways, tube_distance(frame, hole, (7, 7, 7)))
    return np.asarray(airways, dtype=np.float32)


def _add_arms(
    frame: Frame, anatomy: Anatomy, layers: Layers, arms: str, rng: np.random.Generator
) -> Layers:
    """Arms beside the head, beside the chest, or folded over the belly."""
    if arms == "none":
        return layers
    skin, bone = frame.full(25.0), frame.full(25.0)
    stout = rng.uniform(0.9, 1.1) + 0.006 * anatomy.fat
    for side in (-1, 1):
        path = _arm_path(anatomy, arms, side, rng)
        skin = np.minimum(skin, tube_distance(frame, path, np.array([50, 40, 32, 26]) * stout))
        bone = np.minimum(bone, tube_distance(frame, path, (12, 13, 13, 12)))
    body = smooth_union(layers.body, skin, 12.0)
    muscle = np.minimum(layers.muscle, skin + 3.0 + 0.3 * anatomy.fat)
    return replace(
        layers,
        body=body.astype(np.float32),
        muscle=np.maximum(muscle, body + 1.5).astype(np.float32),
        bones=np.minimum(layers.bones, bone).astype(np.float32),
    )


def _arm_path(anatomy: Anatomy, arms: str, side: int, rng: np.random.Generator) -> list[Place]:
    """Shoulder, elbow, wrist and hand of one arm."""
    apex, reach = anatomy.lung_height, 1.22 * anatomy.half_width
    shoulder: Place = (side * reach, 12.0, 1.04 * apex)
    body = anatomy.half_width + 20 + anatomy.fat
    jitter = rng.normal(0, 8)
    if arms == "up":
        elbow = (side * rng.uniform(125, 185), -10.0 + jitter, apex + 255)
        return [shoulder, elbow, (side * 40.0, -30 + jitter, apex + 330), (0.0, -30, apex + 345)]
    elbow = (side * (body + 38 + 0.2 * anatomy.fat), 25.0 + jitter, apex - 300)
    if arms == "down":
        wrist = (side * (body + 42), 0.0 + jitter, apex - 530)
        return [shoulder, elbow, wrist, (side * (body + 20), -5.0, apex - 620)]
    front = -anatomy.half_depth - 2.0 * anatomy.fat - 45
    return [shoulder, elbow, (side * 80.0, front, apex - 340), (side * 0.0, front, apex - 350)]

"""The numbers that make one simulated patient differ from the next, drawn once per patient.

Positions are patient coordinates in mm: x to the left, y to the back, z to the head, with the
body's axis at x = y = 0 and z = 0 at the top of the right diaphragm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
    is_female = bool(rng.random() < 0.45)
    size = float(rng.normal(0.94 if is_female else 1.03, 0.05))
    breath = float(rng.uniform(0.0, 1.0))
    half_width = 127.0 * size * (0.96 + 0.07 * breath) * float(rng.normal(1, 0.03))
    half_depth = 81.0 * size * (0.95 + 0.10 * breath) * float(rng.normal(1, 0.04))
    fat = float(np.clip(rng.lognormal(2.45, 0.55), 4, 45))
    return Anatomy(
        is_female=is_female,
        half_width=half_width,
        half_depth=half_depth,
        lung_height=min((168.0 + 62.0 * breath) * size * float(rng.normal(1, 0.04)), 238.0),
        fat=fat,
        muscle=float(rng.uniform(0.7, 1.1)) * (0.85 if is_female else 1.05),
        breast=float(rng.uniform(12, 30) + 0.6 * fat) if is_female else 0.0,
        rib_pitch=float(rng.uniform(23, 28)) * size,
        rib_drop=float(rng.uniform(75, 110)) * size,
        dome=float(rng.uniform(65, 100)) * size,
        left_dome=float(rng.uniform(-24, -4)),
        heart=size * float(rng.uniform(0.88, 1.18)),
        vessel=size * float(rng.uniform(0.88, 1.15)),
        turn_degrees=float(rng.normal(0, 2.5)),
        kyphosis=float(rng.uniform(1, 9)),
        scoliosis=float(rng.normal(0, 3)),
        arms_down=bool(rng.random() < 0.1),
    )

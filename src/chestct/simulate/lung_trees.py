"""Vessels and bronchi of both lungs, as tubes in the patient."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from chestct.simulate.anatomy import Anatomy
from chestct.simulate.fields import Field, Frame, Points
from chestct.simulate.tubes import Segments, join_segments
from chestct.simulate.vessels import draw_ends, grow_tree


class Trees(NamedTuple):
    """Tubes in mm, (depth, height, width) = (z, y, x), both lungs together.

    Attributes:
        vessels: Arteries and veins.
        walls: Bronchi with their walls.
        hollows: The bronchi's air.
    """

    vessels: Segments
    walls: Segments
    hollows: Segments


def grow_trees(
    frame: Frame,
    anatomy: Anatomy,
    lungs: Field,
    rng: np.random.Generator,
    *,
    coarse: float = 1.0,
) -> Trees:
    """Grow arteries, veins and bronchi of both lungs, with ends `coarse` times farther apart."""
    vessels, bronchi = [], []
    spacing = coarse * float(rng.uniform(10.0, 12.0))
    # Fewer ends, each thicker, so that the trunks keep their calibre.
    calibre = coarse * float(rng.uniform(0.49, 0.67))
    for hilum, side in ((anatomy.right_hilum, -1.0), (anatomy.left_hilum, 1.0)):
        lung = np.where(frame.x * side > 0, lungs, np.float32(60.0))
        root = _root(hilum, side)
        airway_ends = draw_ends(frame, lung, 25.0 * max(1.0, 0.8 * coarse), rng)
        airways = grow_tree(root, airway_ends, rng)
        bronchi.append(airways.segments(0.62, 2.6))
        # Arteries run beside bronchi: the same first ends, a few millimetres off.
        beside = np.array([side * 3.0, -4.0, 4.0])
        ends = np.concatenate([airway_ends + beside / 2, draw_ends(frame, lung, spacing, rng)])
        vessels.append(
            grow_tree(root + np.array([side * 2.0, -9.0, 6.0]), ends, rng).segments(calibre, 2.9)
        )
        low = root + np.array([0.0, -11.0, -15.0])
        ends = draw_ends(frame, lung, spacing * 1.15, rng)
        vessels.append(grow_tree(low, ends, rng).segments(calibre, 3.0))
    hollows = join_segments(bronchi)
    hollows = hollows.only(hollows.radius > 1.35)
    walls = Segments(hollows.start, hollows.end, hollows.radius * 1.08 + 0.5)
    return Trees(join_segments(vessels), walls, hollows)


def _root(hilum: tuple[float, float, float], side: float) -> Points:
    """The way from the mediastinum through the hilum into the lung."""
    x, y, z = hilum
    return np.array([[x - side * 8, y, z + 3.0], [x, y, z], [x + side * 9, y + 2, z - 4.0]])

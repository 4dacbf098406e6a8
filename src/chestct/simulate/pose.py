"""Where the body lies in the scanner: the way between the model's space and the scan's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from chestct.simulate.anatomy import Anatomy
from chestct.simulate.fields import Frame
from chestct.simulate.tubes import Segments
from chestct.volume import Grid


@dataclass(frozen=True)
class Pose:
    """Where the body lies in the scanner: turned, shifted, and bent along its axis.

    Attributes:
        anatomy: Holds turn, kyphosis and scoliosis.
        shift_mm: Shift (x, y) of the whole body.
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

"""Building blocks of the simulated patient: signed distances in mm and random fields.

Every organ is a signed distance on one coarse grid, negative inside. Distances of smooth shapes
interpolate well, so a 2.5 mm grid is enough to cut a 1.5 mm bone cortex at the scan's resolution.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64
from scipy import ndimage

from chestct.arrays import Shape, Spacing

Field = Float32[np.ndarray, "depth height width"]
Plane = Float32[np.ndarray, "rows columns"]
AnyField = Float32[np.ndarray, "_ _ _"]
"""A field whose shape has nothing to do with that of others, or of one plane or line."""
Number = float | int
Place = tuple[Number, Number, Number]
"""A position or size (x, y, z) in mm."""
Points = Float64[np.ndarray, "_ 3"]
"""Patient positions (x to the left, y to the back, z to the head) in mm."""


@dataclass(frozen=True)
class Frame:
    """The coarse grid on which anatomy is described, axes (depth, height, width).

    Attributes:
        low_mm: Position (z, y, x) of the first voxel centre.
        shape: Number of voxels.
        step_mm: Voxel size, the same along all axes.
    """

    low_mm: tuple[float, float, float]
    shape: Shape
    step_mm: float

    def _axis(self, axis: int) -> Field:
        wanted = [1, 1, 1]
        wanted[axis] = -1
        line = self.low_mm[axis] + self.step_mm * np.arange(self.shape[axis])
        return line.astype(np.float32).reshape(wanted)

    @cached_property
    def z(self) -> Field:
        """Heights in mm, shape (depth, 1, 1)."""
        return self._axis(0)

    @cached_property
    def y(self) -> Field:
        """Distances to the back in mm, shape (1, height, 1)."""
        return self._axis(1)

    @cached_property
    def x(self) -> Field:
        """Distances to the patient's left in mm, shape (1, 1, width)."""
        return self._axis(2)

    @cached_property
    def radius(self) -> Field:
        """Distance from the body's axis in mm, shape (1, height, width)."""
        return np.asarray(np.hypot(self.x, self.y), dtype=np.float32)

    @cached_property
    def angle(self) -> Field:
        """Angle from the back, 0 to 180 degrees at the front, shape (1, height, width)."""
        return np.asarray(np.degrees(np.arctan2(np.abs(self.x), self.y)), dtype=np.float32)

    def full(self, value: float) -> Field:
        """A field of one value."""
        return np.full(self.shape, value, dtype=np.float32)

    def noise(self, rng: np.random.Generator, scale_mm: float) -> Field:
        """A smooth random field of unit standard deviation, details of about `scale_mm`."""
        return smooth_noise(rng, self.shape, (self.step_mm,) * 3, scale_mm)


def smooth_noise(
    rng: np.random.Generator, shape: Shape, spacing_mm: Spacing, scale_mm: float
) -> Field:
    """A Gaussian random field of unit standard deviation on any (depth, height, width) grid.

    Drawn on a lattice of a third of `scale_mm` at most and interpolated, so that it looks the same
    at any voxel spacing and costs little when details are large. `scale_mm` is twice the standard
    deviation of the Gaussian that correlates it.
    """
    lattice_mm = [max(step, scale_mm / 3.2) for step in spacing_mm]
    small = tuple(
        min(n, int(np.ceil(n * s / lattice)) + 2)
        for n, s, lattice in zip(shape, spacing_mm, lattice_mm, strict=True)
    )
    values = rng.standard_normal(small, dtype=np.float32)
    values = ndimage.gaussian_filter(
        values, [scale_mm / 2 / mm for mm in lattice_mm], mode="wrap", truncate=2.5
    )
    values = _stretch(values, (shape[0], shape[1], shape[2]))
    deviation = max(float(values.std()), 1e-6)
    values -= values.mean()
    values /= deviation
    return values


def _stretch(field: AnyField, shape: Shape) -> AnyField:
    """Interpolate a field linearly onto a grid of another size, first to first, last to last."""
    for axis, wanted in enumerate(shape):
        size = field.shape[axis]
        if size == wanted:
            continue
        at = np.linspace(0, size - 1, wanted)
        low = np.minimum(at.astype(np.intp), max(size - 2, 0))
        high = np.minimum(low + 1, size - 1)
        weight = (at - low).astype(np.float32)
        weight = weight.reshape([-1 if a == axis else 1 for a in range(3)])
        lower = np.take(field, low, axis=axis)
        field = np.take(field, high, axis=axis)
        field -= lower
        field *= weight
        field += lower
    return field


def smooth_union(first: Field, second: Field, width_mm: float) -> Field:
    """Union of two shapes whose common edge is rounded over `width_mm`."""
    # In place, as most of the time would go into new memory for fields of two million voxels.
    blend = first - second
    np.abs(blend, out=blend)
    np.subtract(width_mm, blend, out=blend)
    np.maximum(blend, 0, out=blend)
    blend /= width_mm
    blend *= blend
    blend *= width_mm / 4
    union: Field = np.minimum(first, second)
    union -= blend
    return union


def smooth_overlap(first: Field, second: Field, width_mm: float) -> Field:
    """Intersection of two shapes whose common edge is rounded over `width_mm`."""
    return -smooth_union(-first, -second, width_mm)


def ellipsoid(
    frame: Frame,
    centre: Place,
    semi_axes: Place,
    turn_degrees: float = 0.0,
) -> Field:
    """Signed distance, nearly, from an ellipsoid.

    Centre and half lengths are (x, y, z) in mm, before it is turned about z, from x towards y.
    """
    turn = np.radians(turn_degrees)
    reach = np.array([max(semi_axes[:2]), max(semi_axes[:2]), semi_axes[2]]) + 25.0
    box = _box(frame, np.asarray(centre) - reach, np.asarray(centre) + reach)
    x, y = frame.x[:, :, box[2]] - centre[0], frame.y[:, box[1]] - centre[1]
    z = (frame.z[box[0]] - centre[2]) / semi_axes[2]
    along = (x * np.cos(turn) + y * np.sin(turn)) / semi_axes[0]
    across = (y * np.cos(turn) - x * np.sin(turn)) / semi_axes[1]
    in_plane = along * along + across * across
    steep = (along / semi_axes[0]) ** 2 + (across / semi_axes[1]) ** 2
    # First-order distance f / |grad f|, which is exact at the surface, where it matters.
    slope = np.sqrt(steep + (z / semi_axes[2]) ** 2) + 1e-4
    field = frame.full(60.0)
    field[box] = np.clip((in_plane + z * z - 1) / (2 * slope), -60, 60)
    return field


def tube_distance(frame: Frame, path: Iterable[Place], radii: Iterable[Number]) -> Field:
    """Signed distance from a tube along a path, exact within 25 mm of it.

    The path's corners are (x, y, z), its radii at each of them, all in mm.
    """
    field = frame.full(25.0)
    corners = [np.asarray(point, dtype=np.float64) for point in path]
    sizes = list(radii)
    for start, end, first, last in zip(corners, corners[1:], sizes, sizes[1:], strict=False):
        margin = max(first, last) + 25.0
        box = _box(frame, np.minimum(start, end) - margin, np.maximum(start, end) + margin)
        x, y, z = frame.x[:, :, box[2]], frame.y[:, box[1]], frame.z[box[0]]
        along = end - start
        length = float(along @ along) + 1e-6
        x, y, z = x - start[0], y - start[1], z - start[2]
        # In place, as most of the time would go into new memory.
        share = x * along[0] + y * along[1] + z * along[2]
        share /= length
        np.clip(share, 0, 1, out=share)
        distance = _squared_gap(x, share, along[0])
        distance += _squared_gap(y, share, along[1])
        distance += _squared_gap(z, share, along[2])
        np.sqrt(distance, out=distance)
        share *= last - first
        share += first
        distance -= share
        np.minimum(field[box], distance.astype(np.float32), out=field[box])
    return field


def _squared_gap(
    place: Float64[np.ndarray, "_ _ _"], share: Float64[np.ndarray, "_ _ _"], along: float
) -> Float64[np.ndarray, "_ _ _"]:
    """Squared distance on one axis from the point at each `share` of a line from 0 to `along`."""
    gap = share * along
    np.subtract(place, gap, out=gap)
    gap *= gap
    return gap


def _box(
    frame: Frame, low: Float64[np.ndarray, " 3"], high: Float64[np.ndarray, " 3"]
) -> tuple[slice, slice, slice]:
    """Slices (depth, height, width) of the grid that cover a box given in (x, y, z)."""
    slices = []
    for axis in range(3):
        first = (low[2 - axis] - frame.low_mm[axis]) / frame.step_mm
        last = (high[2 - axis] - frame.low_mm[axis]) / frame.step_mm
        size = frame.shape[axis]
        slices.append(slice(int(np.clip(first, 0, size)), int(np.clip(last + 2, 0, size))))
    return slices[0], slices[1], slices[2]

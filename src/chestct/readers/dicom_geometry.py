"""Where the slices of a series lie, and the regular grid they are put on (PS3.3 C.7.6.2).

Slices are ordered by their position along the slice normal, never by file names, instance numbers
or z alone. Three departures from a regular grid are told apart: slices that are missing, uneven
spacing, and a stack that leans (a tilted gantry, whose table still moves along z).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Float64

from chestct.errors import ReadError
from chestct.readers.dicom_headers import Fields
from chestct.readers.files import UnreadableFileError
from chestct.readers.misfits import permission
from chestct.volume import Grid

_MAX_TILT_DEGREES = 1.0
"""Lean of the stack that is mended without being asked."""
_MAX_UNEVENNESS = 0.02
"""Distance of a slice from its regular place, in slices, that is not worth resampling for."""
_ROUNDED_MM = 0.101
"""The same in mm where positions are written with one decimal, those of the ends too."""
SAME_PLACE_MM = 0.01
"""Slices closer than this are at the same position."""
_MAX_GAP = 2.5
"""Distance between neighbours, in slices, from which more than one slice is missing."""
_MAX_DRIFT_PIXELS = 0.5
"""Sideways drift of the stack that is not worth resampling for."""

_MAX_SLICES = 20_000
"""Most slices of a volume."""

_SPACING_RANGE_MM = (0.05, 20.0)
"""Pixel spacings believed."""
_MAX_POSITION_MM = 1e5
"""Farthest slice position believed."""

_UNIT_VECTOR_TOLERANCE = 0.01

_Offsets = Float64[np.ndarray, " slices"]
_Tap = tuple[int, int, float]
"""An output slice: the slices below and above it, and the share of the one above."""


@dataclass(frozen=True)
class Plane:
    """Where one slice lies.

    Attributes:
        position_mm: Patient position (x, y, z) of the centre of the first pixel.
        across: Unit vector along a row, the way in which columns count (width).
        down: Unit vector along a column, the way in which rows count (height).
        spacing_mm: Distance between rows and between columns, (height, width).
        shape: Rows and columns.
        thickness_mm: Nominal slice thickness; 0 when unknown.
    """

    position_mm: tuple[float, float, float]
    across: tuple[float, float, float]
    down: tuple[float, float, float]
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    thickness_mm: float = 0.0

    @cached_property
    def normal(self) -> tuple[float, float, float]:
        """Unit vector along which slices are stacked, right-handed with the row and column."""
        (ax, ay, az), (dx, dy, dz) = self.across, self.down
        return ay * dz - az * dy, az * dx - ax * dz, ax * dy - ay * dx

    @cached_property
    def along_mm(self) -> float:
        """Position along the slice normal."""
        return sum(p * n for p, n in zip(self.position_mm, self.normal, strict=True))


@dataclass(frozen=True, eq=False)
class StackPlan:
    """How slices, sorted along their normal, become a volume.

    Attributes:
        grid: The volume's grid.
        taps: For each slice of the volume, which slices it is made of.
        shifts: Place of each slice's first pixel in the volume's planes, (rows, columns).
        warnings: What was mended, where and how much.
    """

    grid: Grid
    taps: tuple[_Tap, ...]
    shifts: tuple[tuple[float, float], ...] | None
    warnings: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        """Whether every slice of the volume is a slice as it was read, in its order."""
        whole = all(low == high == i for i, (low, high, _) in enumerate(self.taps))
        return whole and self.shifts is None


def plane_of(frame: Fields, shape: tuple[int, int]) -> Plane:
    """Where a frame of so many rows and columns lies.

    Raises:
        UnreadableFileError: It does not say so, or what it says is impossible.
    """
    position, spacing = frame.numbers("position", 3), frame.numbers("pixel_spacing", 2)
    cosines = frame.numbers("orientation", 6)
    if position is None or spacing is None or cosines is None:
        raise UnreadableFileError("has a slice without position, orientation or pixel spacing")
    low, high = _SPACING_RANGE_MM
    if (
        max(map(abs, position)) > _MAX_POSITION_MM
        or not low <= min(spacing) <= max(spacing) <= high
    ):
        raise UnreadableFileError("has an impossible slice position or pixel spacing")
    across, down = _axes(cosines)
    thickness = frame.numbers("slice_thickness_mm", 1) or (0.0,)
    return Plane(
        position_mm=(position[0], position[1], position[2]),
        across=across,
        down=down,
        spacing_mm=(spacing[0], spacing[1]),
        shape=shape,
        thickness_mm=max(thickness[0], 0.0),
    )


@lru_cache(maxsize=64)
def _axes(
    cosines: tuple[float, ...],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Unit vectors along a row and a column, exactly perpendicular; slices mostly share them.

    Raises:
        UnreadableFileError: They are far from that.
    """
    across, down = np.array(cosines[:3]), np.array(cosines[3:])
    sizes = np.array([across @ across, down @ down, 1 + across @ down])
    if np.abs(sizes - 1).max() > _UNIT_VECTOR_TOLERANCE:
        raise UnreadableFileError("has an orientation that is not two perpendicular unit vectors")
    across = across / np.linalg.norm(across)
    down = down - across * (across @ down)
    down = down / np.linalg.norm(down)
    return (
        (float(across[0]), float(across[1]), float(across[2])),
        (float(down[0]), float(down[1]), float(down[2])),
    )


def plan_stack(planes: list[Plane], allow: Collection[str]) -> StackPlan:
    """Plan a regular grid for slices sorted along their normal, no two at the same place.

    Args:
        planes: Where the slices lie; all of one size, pixel spacing and orientation.
        allow: Departures that are mended although they are large: "gap", "tilt".

    Raises:
        ReadError: More than one slice is missing in a row, or the stack leans too much.
        GridError: The grid would be too large.
    """
    along = np.array([plane.along_mm for plane in planes])
    spacing_mm, taps, warnings = _depth(along, planes[0].thickness_mm, "gap" in allow)
    shifts, drift_warnings = _drift(planes, along, "tilt" in allow)
    grid = _grid(planes, len(taps), spacing_mm, shifts)
    return StackPlan(grid, taps, shifts, (*warnings, *drift_warnings))


def _depth(
    along: _Offsets, thickness_mm: float, allows_gap: bool
) -> tuple[float, tuple[_Tap, ...], list[str]]:
    """Slice spacing, what each slice of the volume is made of, and warnings."""
    num = len(along)
    if num == 1:
        return _single_slice(thickness_mm)
    regular = np.arange(num)
    spacing = float((along[-1] - along[0]) / (num - 1))
    if _fits(along, regular, spacing):
        return spacing, tuple((i, i, 0.0) for i in range(num)), []
    steps = np.diff(along)
    usual = float(np.median(steps))
    if steps.max() > _MAX_GAP * usual and not allows_gap:
        msg = f"{_gaps(along, usual)} One slice missing in a row is interpolated, no more."
        raise ReadError(msg + permission("gap"))
    places = np.concatenate([[0], np.cumsum(np.maximum(1, np.rint(steps / usual)))])
    spacing = float((along[-1] - along[0]) / places[-1])
    if _fits(along, places, spacing):
        warning = f"{_gaps(along, usual)} They were interpolated linearly between their neighbours."
        return spacing, _taps(along, spacing, int(places[-1]) + 1), [warning]
    count = max(2, round(float(along[-1] - along[0]) / usual) + 1)
    spacing = float((along[-1] - along[0]) / (count - 1))
    widest = int(steps.argmax())
    warning = (
        f"The slices are unevenly spaced, {steps.min():.2f} to {steps.max():.2f} mm apart (widest"
        f" from {along[widest]:.1f} to {along[widest + 1]:.1f} mm along the slice normal); {num}"
        f" slices were interpolated linearly to {count}, {spacing:.2f} mm apart."
    )
    return spacing, _taps(along, spacing, count), [warning]


def _single_slice(thickness_mm: float) -> tuple[float, tuple[_Tap, ...], list[str]]:
    """A volume of one slice, its thickness for a spacing."""
    warning = "There is 1 slice only, not a whole scan."
    if thickness_mm <= 0:
        warning += " Its thickness is unknown and was taken as 1 mm."
    return thickness_mm if thickness_mm > 0 else 1.0, ((0, 0, 0.0),), [warning]


def _fits(along: _Offsets, places: np.ndarray, spacing: float) -> bool:
    """Whether slices lie at the given places of a regular grid, as near as matters."""
    departure = float(np.abs(along - along[0] - places * spacing).max())
    return departure <= _tolerance(along, spacing)


def _tolerance(along: _Offsets, spacing: float) -> float:
    """Distance in mm of a slice from its regular place that is not worth resampling for."""
    has_one_decimal = np.allclose(along, np.round(along, 1), rtol=0, atol=1e-6)
    return max(_MAX_UNEVENNESS * spacing, _ROUNDED_MM if has_one_decimal else 0.0)


def _taps(along: _Offsets, spacing: float, count: int) -> tuple[_Tap, ...]:
    """For each regular place, the slices around it; a slice that is near enough stands alone."""
    tolerance = _tolerance(along, spacing)
    if count > _MAX_SLICES:
        raise ReadError(f"The slices would be interpolated to {count}, over {_MAX_SLICES}.")
    taps: list[_Tap] = []
    for place in along[0] + spacing * np.arange(count):
        nearest = int(np.abs(along - place).argmin())
        if abs(along[nearest] - place) <= tolerance:
            taps.append((nearest, nearest, 0.0))
            continue
        high = int(np.clip(np.searchsorted(along, place), 1, len(along) - 1))
        share = float((place - along[high - 1]) / (along[high] - along[high - 1]))
        taps.append((high - 1, high, min(max(share, 0.0), 1.0)))
    return tuple(taps)


def _gaps(along: _Offsets, usual: float) -> str:
    """Where slices are missing, and how many."""
    steps = np.diff(along)
    gaps = np.flatnonzero(steps > 1.5 * usual)
    missing = sum(round(float(steps[i] / usual)) - 1 for i in gaps)
    worst = int(steps.argmax())
    return (
        f"{missing} slice(s) are missing in {len(gaps)} place(s): the largest gap is"
        f" {steps[worst]:.1f} mm, from {along[worst]:.1f} to {along[worst + 1]:.1f} mm along the"
        f" slice normal, where slices are {usual:.1f} mm apart."
    )


def _drift(
    planes: list[Plane], along: _Offsets, allows_tilt: bool
) -> tuple[tuple[tuple[float, float], ...] | None, list[str]]:
    """Sideways shift of each slice in pixels; None when the stack is upright."""
    positions = np.array([plane.position_mm for plane in planes])
    spacing = np.array(planes[0].spacing_mm)
    sideways = positions @ np.array([planes[0].down, planes[0].across]).T
    shifts = (sideways - sideways.min(axis=0)) / spacing
    if len(planes) == 1 or shifts.max() <= _MAX_DRIFT_PIXELS:
        return None, []
    centred = along - along.mean()
    lean = centred @ (sideways - sideways.mean(axis=0)) / float(centred @ centred)
    degrees = math.degrees(math.atan(float(np.linalg.norm(lean))))
    largest = float((shifts * spacing).max())
    if degrees > _MAX_TILT_DEGREES and not allows_tilt:
        msg = (
            f"The gantry was tilted: the slices are stacked {degrees:.1f} degrees off their normal"
            f" ({largest:.1f} mm sideways from end to end), at most {_MAX_TILT_DEGREES:g} degree"
            " was expected."
        )
        raise ReadError(msg + permission("tilt"))
    warning = (
        f"The stack of slices leans by {degrees:.1f} degrees; slices were shifted by up to"
        f" {largest:.1f} mm within their planes, interpolated linearly, to stand upright."
    )
    return tuple((float(down), float(across)) for down, across in shifts), [warning]


def _grid(
    planes: list[Plane],
    count: int,
    spacing_mm: float,
    shifts: tuple[tuple[float, float], ...] | None,
) -> Grid:
    """The volume's grid: the slices' own, or one that holds all shifted slices whole."""
    first = planes[0]
    down, across = np.array(first.down), np.array(first.across)
    origin = np.array(first.position_mm)
    rows, columns = first.shape
    if shifts is not None:
        origin = origin - first.spacing_mm[0] * shifts[0][0] * down
        origin = origin - first.spacing_mm[1] * shifts[0][1] * across
        rows += math.ceil(max(shift[0] for shift in shifts))
        columns += math.ceil(max(shift[1] for shift in shifts))
    return Grid(
        shape=(count, rows, columns),
        spacing_mm=(spacing_mm, *first.spacing_mm),
        origin_mm=_triple(origin),
        direction=(first.normal, first.down, first.across),
    )


def _triple(vector: np.ndarray) -> tuple[float, float, float]:
    """Three plain floats."""
    return float(vector[0]), float(vector[1]), float(vector[2])

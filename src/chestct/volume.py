"""A scan in memory: a voxel grid in the patient, and what is on it.

Geometry is kept apart from voxels because most steps (cropping, resampling, mapping a heat-map
back) only change the grid, and a grid is cheap to reason about and to test.

Patient coordinates are DICOM's (PS3.3 C.7.6.2): x grows to the patient's left, y to the back,
z to the head, in mm. They appear only in `Grid.origin_mm` and `Grid.direction`; every array axis
and every spacing is in the order (depth, height, width).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Num, Shaped

from chestct.arrays import Matrix4, Shape, Spacing, Voxels
from chestct.errors import GridError

MAX_VOXELS = 2**30
SMALLER = "Have thicker slices reconstructed, or crop it to the chest."
"""What to do about a scan of more voxels."""
"""Largest grid made or read: 2 GiB as 16-bit values, four times a 512 x 512 x 1024 scan."""

AIR_HU = -1024
"""Value of air, used where a scan has no data."""

CANONICAL_DIRECTION = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
"""Depth to the head, height to the back, width to the left: a supine axial scan as displayed."""

_DIRECTION_TOLERANCE = 1e-3

Unit = Literal["HU", "windowed"]


@dataclass(frozen=True)
class Grid:
    """A regular voxel grid in the patient.

    Attributes:
        shape: Voxels along (depth, height, width).
        spacing_mm: Distance between voxel centres along (depth, height, width).
        origin_mm: Patient position (x, y, z) of the centre of voxel (0, 0, 0).
        direction: Three unit vectors (x, y, z), the ways in which depth, height and width grow.
            Orthogonal, but not necessarily right-handed: a reader keeps the file's order.

    Raises:
        GridError: An empty or too large shape, a spacing that is not positive, a direction that
            is not orthonormal.
    """

    shape: Shape
    spacing_mm: Spacing
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[tuple[float, float, float], ...] = CANONICAL_DIRECTION

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GridError(
                f"A voxel grid needs three axes of at least one voxel, not {self.shape}."
            )
        if self.num_voxels > MAX_VOXELS:
            msg = f"A grid of {self.shape} has {self.num_voxels} voxels, {MAX_VOXELS} are allowed. "
            msg += SMALLER
            raise GridError(msg)
        if not (np.isfinite(self.spacing_mm).all() and min(self.spacing_mm) > 0):
            raise GridError(f"Voxel spacing must be positive in mm, not {self.spacing_mm}.")
        if not np.isfinite(self.origin_mm).all():
            raise GridError(f"The grid's origin must be finite, not {self.origin_mm}.")
        axes = np.asarray(self.direction, dtype=np.float64)
        is_orthonormal = axes.shape == (3, 3) and np.allclose(
            axes @ axes.T, np.eye(3), atol=_DIRECTION_TOLERANCE
        )
        if not is_orthonormal:
            raise GridError(f"The grid's axes must be orthonormal, not {self.direction}.")

    @property
    def num_voxels(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def extent_mm(self) -> Spacing:
        """Edge lengths of the box the voxels fill, along (depth, height, width)."""
        depth, height, width = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return depth, height, width

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    @property
    def index_to_patient(self) -> Matrix4:
        """Homogeneous matrix from (depth, height, width) index to patient (x, y, z) in mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(self.direction).T * np.asarray(self.spacing_mm)
        matrix[:3, 3] = self.origin_mm
        return matrix

    @property
    def patient_to_index(self) -> Matrix4:
        """Homogeneous matrix from patient (x, y, z) in mm to (depth, height, width) index."""
        return np.linalg.inv(self.index_to_patient)

    def to_patient(
        self, indices: Float64[np.ndarray, "*points 3"]
    ) -> Float64[np.ndarray, "*points 3"]:
        """Patient positions (x, y, z) in mm of voxel indices (depth, height, width)."""
        matrix = self.index_to_patient
        return np.asarray(indices @ matrix[:3, :3].T + matrix[:3, 3])

    def to_index(
        self, points_mm: Float64[np.ndarray, "*points 3"]
    ) -> Float64[np.ndarray, "*points 3"]:
        """Fractional indices (depth, height, width) of patient positions (x, y, z) in mm."""
        matrix = self.patient_to_index
        return np.asarray(points_mm @ matrix[:3, :3].T + matrix[:3, 3])

    def moved(self, start: Spacing, step: Spacing, shape: Shape) -> Grid:
        """The grid whose voxel i lies at index `start + i * step` of this one.

        Crops, flips (negative steps), resamplings and resizes are all of this form.

        Args:
            start: Index, possibly fractional, of the new first voxel, (depth, height, width).
            step: Index distance between new voxels; negative reverses an axis.
            shape: New number of voxels.
        """
        origin = self.to_patient(np.asarray(start, dtype=np.float64))
        depth, height, width = (
            tuple(float(x * np.sign(n)) for x in axis)
            for axis, n in zip(self.direction, step, strict=True)
        )
        spacing = tuple(abs(n) * s for n, s in zip(step, self.spacing_mm, strict=True))
        return Grid(
            shape=shape,
            spacing_mm=(spacing[0], spacing[1], spacing[2]),
            origin_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
            direction=(depth, height, width),  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class ScanSource:
    """Where a volume came from, in technical facts only: never a name, birth date or patient ID.

    Attributes:
        format: "dicom", "nifti", "itk", "tiff" or "simulated".
        series_uid: DICOM SeriesInstanceUID as written in the file, or None.
        slice_uids: SOPInstanceUID per slice along depth, empty strings where a file has none.
        instance_numbers: InstanceNumber per slice along depth as text; empty strings where a file
            has none, or holds several slices.
        facts: Acquisition facts that may be shown, such as {"kernel": "D40s", "kvp": "110"}.
        left_out: What was in the folder and not used, counted: {"localizer": 2}.
        unused: Numbers of the series' slices, from 0 along their normal, that do not belong to it.
    """

    format: str
    series_uid: str | None = None
    slice_uids: tuple[str, ...] = ()
    instance_numbers: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    unused: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """Voxels on a grid.

    Attributes:
        grid: Where the voxels lie in the patient.
        voxels: Array of the grid's shape. Marked read-only: stages make new volumes.
        unit: "HU", or "windowed" for 8-bit and RGB exports whose values mean nothing absolute.
        source: Where it was read from.
        warnings: What a reader noticed and mended, each saying what, where and how much.
    """

    grid: Grid
    voxels: Voxels
    unit: Unit = "HU"
    source: ScanSource = field(default_factory=lambda: ScanSource(format="array"))
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.voxels.shape != self.grid.shape:
            msg = f"Voxels of shape {self.voxels.shape} do not fit a grid of {self.grid.shape}."
            raise ValueError(msg)
        view = self.voxels.view()
        view.flags.writeable = False
        object.__setattr__(self, "voxels", view)

    def __repr__(self) -> str:
        """Size, spacing, unit and format on one line."""
        size = " x ".join(str(voxels) for voxels in self.grid.shape)
        spacing = " x ".join(f"{each:.3g}" for each in self.grid.spacing_mm)
        return f"<Volume {size} voxels of {spacing} mm, {self.unit}, {self.source.format}>"

    def with_voxels(self, voxels: Voxels, grid: Grid | None = None) -> Volume:
        """The same scan with other voxels, on another grid if one is given."""
        return replace(self, voxels=voxels, grid=grid or self.grid)


def canonical_axes(grid: Grid) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How to turn a grid's axes into depth to the head, height to the back, width to the left.

    Returns:
        For each canonical axis, the grid's axis that lies closest to it, and whether that axis
        has to be reversed. Oblique grids get the nearest axes; no resampling is implied.
    """
    # Rows: the grid's axes; columns: patient z, y, x, the canonical depth, height, width.
    closeness = np.asarray(grid.direction)[:, ::-1]
    order = [-1, -1, -1]
    for _ in range(3):
        taken = np.abs(closeness)
        taken[[axis for axis in order if axis >= 0], :] = -1
        taken[:, [i for i, axis in enumerate(order) if axis >= 0]] = -1
        axis, wanted = np.unravel_index(int(taken.argmax()), (3, 3))
        order[int(wanted)] = int(axis)
    reverse = [bool(closeness[order[i], i] < 0) for i in range(3)]
    return (order[0], order[1], order[2]), (reverse[0], reverse[1], reverse[2])


def to_canonical(volume: Volume) -> Volume:
    """Turn a volume's axes into depth to the head, height to the back, width to the left.

    Only permutes and reverses axes: the voxels are a view, every voxel keeps its place in the
    patient. DICOM's usual axial supine series comes back unchanged.
    """
    order, reverse = canonical_axes(volume.grid)
    if order == (0, 1, 2) and not any(reverse):
        return volume
    slices = tuple(slice(None, None, -1 if r else 1) for r in reverse)
    return volume.with_voxels(volume.voxels.transpose(order)[slices], canonical_grid(volume.grid))


def to_own_axes(
    voxels: Voxels, grid: Grid
) -> (
    Num[np.ndarray, "own_depth own_height own_width"]
    | Bool[np.ndarray, "own_depth own_height own_width"]
):
    """Voxels on canonical axes, such as a mask, as a view on the axes of the scan's own grid."""
    order, reverse = canonical_axes(grid)
    turned = voxels[tuple(slice(None, None, -1 if r else 1) for r in reverse)]
    return turned.transpose(tuple(int(i) for i in np.argsort(order)))


def canonical_grid(grid: Grid) -> Grid:
    """The grid of `to_canonical`."""
    order, reverse = canonical_axes(grid)
    turned = replace(
        grid,
        shape=tuple(grid.shape[a] for a in order),  # type: ignore[arg-type]
        spacing_mm=tuple(grid.spacing_mm[a] for a in order),  # type: ignore[arg-type]
        direction=tuple(grid.direction[a] for a in order),
    )
    if not any(reverse):
        return turned
    start = tuple(float(n - 1) if r else 0.0 for n, r in zip(turned.shape, reverse, strict=True))
    step = tuple(-1.0 if r else 1.0 for r in reverse)
    return turned.moved(start, step, turned.shape)  # type: ignore[arg-type]


def hash_voxels(volume: Volume) -> str:
    """SHA-256 of the voxels and where they lie, whatever format and axis order stored them.

    The axes are made canonical; for the rest see `as_stored` and `place_text`.
    """
    canonical = to_canonical(volume)
    voxels = as_stored(canonical.voxels)
    digest = hashlib.sha256(place_text(canonical.grid, canonical.unit).encode())
    digest.update(voxels.dtype.str.encode())
    digest.update(voxels.data)
    return digest.hexdigest()


def as_stored(values: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """Values as they are hashed: in one piece and little-endian, in 16 bits where those hold them.

    Formats keep whole numbers as integers of many sizes, or as floats.
    """
    if values.dtype != np.int16 and _fits_int16(values):
        values = values.astype(np.int16)
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))


def place_text(grid: Grid, unit: Unit) -> str:
    """Where a canonical grid lies, as it is hashed, and the unit of what is on it.

    Formats keep positions with different precision: a hundredth of a millimetre is no other grid.
    """
    axes = np.asarray(grid.direction).round(4) + 0.0
    numbers = np.round([*grid.spacing_mm, *grid.origin_mm], 2)
    return f"{grid.shape} {numbers.tolist()} {axes.tolist()} {unit}"


def _fits_int16(values: Shaped[np.ndarray, "*shape"]) -> bool:
    low, high = values.min(), values.max()
    fits = bool(low >= -32768 and high <= 32767)
    return fits and bool((values == np.trunc(values)).all())

"""Simulate one patient's chest CT, from one generator: a body with its disease, and its scan.

A scan is a body that lies somewhere, its tissues painted slice by slice, and what the scanner
adds: blur, correlated noise, table, clothing and field of view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16
from scipy import fft

from chestct.arrays import Mask, Shape
from chestct.errors import GridError
from chestct.labels import THREE_CLASSES
from chestct.lookup import look_up
from chestct.simulate.anatomy import Anatomy, draw_anatomy
from chestct.simulate.body import Layers, Model, build_model
from chestct.simulate.fields import Field, Frame, Plane
from chestct.simulate.lesions import add_disease
from chestct.simulate.trees import Segments, fill_tubes
from chestct.volume import AIR_HU, Grid, ScanSource, Volume

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

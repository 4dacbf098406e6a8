"""Simulate one patient's chest CT: anatomy, vessels, lesions, scanner; all from one generator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from chestct.arrays import Mask
from chestct.errors import GridError
from chestct.labels import THREE_CLASSES
from chestct.lookup import look_up
from chestct.simulate.anatomy import Anatomy, draw_anatomy
from chestct.simulate.body import Model, build_model
from chestct.simulate.lesions import add_disease
from chestct.simulate.scanner import (
    KERNELS,
    Kernel,
    Pose,
    Scanner,
    compose,
    draw_scanner,
    square_grid,
)
from chestct.volume import Grid, ScanSource, Volume

_SPACING_ODDS = (0.12, 0.12, 0.12, 0.28, 0.1, 0.1, 0.03, 0.13)
"""How often each slice spacing is drawn."""


@dataclass(frozen=True)
class ThoraxSettings:
    """What may be fixed about a simulated scan; None means drawn from the generator.

    Attributes:
        rows: Rows and columns of a slice.
        slice_spacing_mm: Distance between slices; None draws one from 1 to 5 mm.
        field_of_view_mm: Edge length of a slice; None draws one around the body.
        kernel: Name in `scanner.KERNELS`; None draws one.
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
    """A simulated scan with its truth.

    Attributes:
        volume: Scan in HU, int16, canonical axes.
        lungs: Both lungs with everything in them, without trachea and main bronchi.
        lesions: Voxels of disease (or, in a normal patient, of dependent density).
        label: "CAP", "COVID-19" or "normal".
        anatomy: The numbers behind the body.
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


def _with_settings(scanner: Scanner, kernel: Kernel | None, noise_hu: float | None) -> Scanner:
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

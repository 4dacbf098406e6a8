"""What the scanner adds: blur, correlated noise, table, clothing, field of view."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32
from scipy import fft

from chestct.arrays import Shape
from chestct.simulate.fields import Plane

_TWO_PI = 2 * np.pi


@dataclass(frozen=True)
class Kernel:
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


KERNELS: dict[str, Kernel] = {
    "B30f": Kernel("B30f", 0.62, 0.0, 0.25, 0.40, 0.75),
    "D40s": Kernel("D40s", 0.48, 0.0, 0.1, 0.50, 1.25),
    "B50f": Kernel("B50f", 0.42, 0.25, 0.4, 0.60, 1.6),
    "B60f": Kernel("B60f", 0.38, 0.45, 0.6, 0.68, 2.0),
    "B70f": Kernel("B70f", 0.34, 0.75, 0.8, 0.80, 2.8),
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

    kernel: Kernel
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
        has_clothing=bool(rng.random() < 0.6),
        is_padded=bool(rng.random() < 0.4),
    )


def blur_plane(plane: Plane, kernel: Kernel, pixel_mm: float) -> Plane:
    """Apply the kernel's point spread, with overshoot for sharp ones."""
    sigma = max(kernel.blur_mm / pixel_mm, 0.2)
    soft = cv2.GaussianBlur(plane, (0, 0), sigma)
    if kernel.edge:
        soft = soft + kernel.edge * (soft - cv2.GaussianBlur(soft, (0, 0), 1.8 * sigma + 0.5))
    return np.asarray(soft, dtype=np.float32)


def scan_noise(
    rng: np.random.Generator,
    shape: Shape,
    spacing_mm: tuple[float, float, float],
    kernel: Kernel,
    streaks: Float32[np.ndarray, " depth"],
) -> Float32[np.ndarray, "depth height width"]:
    """Noise of unit standard deviation with the kernel's spectrum.

    Args:
        rng: Where the randomness comes from.
        shape: The scan's grid.
        spacing_mm: Its spacing.
        kernel: Shape of the spectrum.
        streaks: Per slice, strength of the sideways streaks that broad shoulders cause.
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


def table_plane(
    scanner: Scanner, x: Float32[np.ndarray, "1 columns"], y: Float32[np.ndarray, "rows 1"]
) -> Plane | None:
    """Attenuation above air of the patient table, the same in all slices.

    Args:
        scanner: Which table, and where.
        x: Positions to the patient's left in mm, shape (1, width).
        y: Positions to the back in mm, shape (height, 1).
    """
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


def clothing_lines(
    rng: np.random.Generator,
    body: Plane,
    x: Float32[np.ndarray, "1 columns"],
    pixel_mm: float,
) -> Plane:
    """Attenuation above air of thin folds of cloth near the skin in front of one slice.

    Args:
        rng: Draws the folds; pass one with the same state for slices that should look alike.
        body: Signed distance from the skin in mm, positive outside.
        x: Positions to the patient's left in mm, shape (1, width).
        pixel_mm: Width of a pixel.
    """
    plane = np.zeros_like(body)
    for _ in range(2):
        lift = float(rng.uniform(1, 16))
        wave = lift * (1 + 0.7 * np.sin(x / float(rng.uniform(25, 90)) + float(rng.uniform(0, 6))))
        wave = wave + float(rng.uniform(0, 4)) * np.sin(x / float(rng.uniform(8, 20)))
        # Cloth shows only where it lies across the slice.
        seen = np.clip(np.sin(x / float(rng.uniform(20, 70)) + float(rng.uniform(0, 6))), 0, 1)
        line = np.exp(-(((body - np.maximum(wave, 0.5)) / (0.8 * pixel_mm)) ** 2))
        plane += float(rng.uniform(30, 130)) * seen * line
    return plane

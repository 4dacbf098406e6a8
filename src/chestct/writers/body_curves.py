"""Curves along the body, laid out beside head-up pictures of the same height."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64

from chestct.explain.explanation import PeakSlice
from chestct.pictures import Scene, analysed_rows
from chestct.writers.wording import count

Ticks = tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class AreaCurve:
    """The lung-area curve along the body axis, head up, in per cent of the panel's edges.

    Attributes:
        path: SVG path of the filled area.
        top: Upper edge of the analysed slices.
        bottom: Their lower edge.
        ticks: Horizontal positions and their labels.
        first: Number of the lowest analysed slice, counted from 1 at the feet.
        last: Number of the highest one.
        is_whole: Whether every slice was analysed.
        alt: The curve in words.
    """

    path: str
    top: float
    bottom: float
    ticks: Ticks
    first: int
    last: int
    is_whole: bool
    alt: str


@dataclass(frozen=True)
class EvidenceCurve:
    """The evidence curve, in the same panel as `AreaCurve`.

    Attributes:
        path: SVG path of the line, with gaps where nothing is known; empty where nothing is.
        ticks: Horizontal positions and their labels.
        peaks: Horizontal and vertical position and slice number of each peak.
        alt: The curve in words.
    """

    path: str
    ticks: Ticks
    peaks: tuple[tuple[float, float, int], ...]
    alt: str


def area_curve(
    lung_area: Float64[np.ndarray, " slices"], analysed: tuple[int, int], scene: Scene
) -> AreaCurve:
    """Lay out the lung share of every slice beside a head-up picture of the same height."""
    total = len(lung_area)
    largest = float(lung_area.max(initial=0.0))
    end, ticks = _scale(largest, "%")
    rows = _rows(total)
    points = " ".join(f"L{x:.2f} {y:.2f}" for x, y in zip(lung_area / end * 100, rows, strict=True))
    top, bottom = analysed_rows(scene, 10_000)
    first, last = analysed
    return AreaCurve(
        path=f"M0 100 {points} L0 0 Z",
        top=top / 100,
        bottom=bottom / 100,
        ticks=ticks,
        first=first + 1,
        last=last + 1,
        is_whole=last - first + 1 == total,
        alt=(
            f"Lung share of each of {count(total, 'slice')}: largest {largest * 100:.0f} % "
            f"in slice {int(lung_area.argmax()) + 1}; "
            f"slices {first + 1} to {last + 1} were analysed."
        ),
    )


def evidence_curve(
    by_slice: Float64[np.ndarray, " slices"], peaks: tuple[PeakSlice, ...]
) -> EvidenceCurve:
    """Lay out the heat in the lungs of every slice, from the feet, NaN where unknown."""
    largest = float(np.nanmax(by_slice, initial=0.0))
    end, ticks = _scale(largest, "")
    rows = _rows(len(by_slice))
    across = by_slice / end * 100
    if largest > 0.0:
        alt = f"Evidence of each slice: largest {largest:.2f} in slice {np.nanargmax(by_slice) + 1}"
    else:
        alt = "Evidence of each slice: none"
    unknown = int(np.isnan(by_slice).sum())
    if unknown:
        alt += f"; {count(unknown, 'slice')} without lung or not analysed"
    return EvidenceCurve(
        path=" ".join(
            "M" + " L".join(f"{across[i]:.2f} {rows[i]:.2f}" for i in range(*run))
            for run in _runs(~np.isnan(by_slice))
        ),
        ticks=ticks,
        peaks=tuple(
            (float(peak.evidence / end * 100), float(rows[peak.index]), peak.index + 1)
            for peak in peaks
        ),
        alt=f"{alt}.",
    )


def _rows(total: int) -> Float64[np.ndarray, " slices"]:
    """Height of the middle of each slice, from the top, in per cent."""
    return (total - 0.5 - np.arange(total)) / total * 100


def _scale(largest: float, unit: str) -> tuple[float, Ticks]:
    """The panel's right edge, and ticks at round numbers."""
    step = next((step for step in (0.02, 0.05, 0.1) if largest <= 3 * step), 0.2)
    end = max(step, float(np.ceil(largest / step - 1e-9)) * step)
    shares = np.arange(1, round(end / step) + 1) * step
    words = (f"{share * 100:.0f} %" if unit else f"{share:.2g}" for share in shares)
    return end, tuple(zip((shares / end * 100).tolist(), words, strict=True))


def _runs(known: Bool[np.ndarray, " slices"]) -> list[tuple[int, int]]:
    """First and one past the last index of each run of known slices."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in list(pairwise(edges.tolist()))[::2]]

"""Draw the pictures of simulated patients for docs/simulated_patients.md.

Run from the repository root: python scripts/draw_simulated_patients.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from confusing_patients import ConfusingSettings, simulate_confusing_patient

from chestct.labels import CAP, COVID19, NORMAL
from chestct.simulate import (
    SimulatedPatient,
    ThoraxSettings,
    simulate_patient,
)

LUNG_WINDOW = (-600.0, 1500.0)
SOFT_WINDOW = (40.0, 400.0)
TILE = 224
SETTINGS = ThoraxSettings(rows=384, slice_spacing_mm=2.0)
CLOSE = ThoraxSettings(
    rows=448, slice_spacing_mm=1.5, field_of_view_mm=350.0, kernel="D40s", noise_hu=16.0
)


def show(plane: np.ndarray, window: tuple[float, float], height: int = TILE) -> np.ndarray:
    """Grey values of a slice, scaled to a tile of the given height."""
    centre, width = window
    grey = np.clip((plane.astype(np.float32) - centre) / width + 0.5, 0, 1) * 255
    return cv2.resize(grey, (TILE, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


CONFUSING = (
    ConfusingSettings(rows=128, view="whole body", airway="open", arms="down", pattern="normal"),
    ConfusingSettings(rows=128, view="chest", stomach="food", raised="left", pattern="normal"),
    ConfusingSettings(rows=128, view="chest and abdomen", colon="gas", pattern="effusion"),
    ConfusingSettings(rows=128, view="chest", pattern="airless lung", metal="pacemaker"),
    ConfusingSettings(rows=128, view="upper chest and head", airway="tracheostomy"),
)
COLOURS = {1: (80, 200, 80), 2: (220, 150, 40), 3: (60, 60, 235)}
"""Outlines of right lung (green), left lung (blue), other gas (red)."""


def axial(patient: SimulatedPatient, level: int, window: tuple[float, float]) -> np.ndarray:
    """One axial slice as it is looked at: front up, right side left."""
    return show(patient.volume.voxels[level], window)


def upright(patient: SimulatedPatient, axis: int, share: float) -> np.ndarray:
    """One coronal (axis 1) or sagittal (axis 2) slice, head up."""
    grid = patient.volume.grid
    plane = np.take(patient.volume.voxels, int(share * grid.shape[axis]), axis=axis)[::-1]
    height = round(TILE * grid.extent_mm[0] / grid.extent_mm[3 - axis])
    tile = show(plane, LUNG_WINDOW, height)[:TILE]
    return np.pad(tile, ((0, TILE - tile.shape[0]), (0, 0)))


def outlined(patient: SimulatedPatient, level: int) -> np.ndarray:
    """A slice in colour with the true lungs' outline and the lesions."""
    tile = cv2.cvtColor(axial(patient, level, LUNG_WINDOW), cv2.COLOR_GRAY2BGR)
    for mask, colour in ((patient.lungs, (80, 200, 80)), (patient.lesions, (60, 60, 235))):
        small = cv2.resize(mask[level].astype(np.uint8), (TILE, TILE))
        lines, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, lines, -1, colour, 1)
    return tile


def levels(patient: SimulatedPatient, shares: tuple[float, ...]) -> list[int]:
    """Slices at given shares of the way from the lungs' bottom to their top."""
    used = np.flatnonzero(patient.lungs.any(axis=(1, 2)))
    return [int(used[0] + share * (used[-1] - used[0])) for share in shares]


def worst(patient: SimulatedPatient) -> int:
    """The slice with most disease."""
    return int(patient.lesions.sum(axis=(1, 2)).argmax())


def main() -> None:
    """Draw four pictures: a body, the three patterns, the variety, confusing patients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    body = simulate_patient(np.random.default_rng(22), CLOSE, pattern=NORMAL)
    wanted = levels(body, (0.15, 0.4, 0.6, 0.85))
    rows = [np.hstack([axial(body, level, LUNG_WINDOW) for level in wanted])]
    rows.append(np.hstack([axial(body, level, SOFT_WINDOW) for level in wanted]))
    views = [
        upright(body, axis, share) for axis, share in ((1, 0.45), (1, 0.6), (2, 0.3), (2, 0.5))
    ]
    rows.append(np.hstack(views))
    write(out / "simulated_body.png", np.vstack(rows))
    write(
        out / "simulated_patterns.png", np.vstack([pattern_row(p) for p in (COVID19, CAP, NORMAL)])
    )
    write(out / "simulated_variety.png", variety())
    write(out / "simulated_confusing.png", confusing())


def pattern_row(pattern: str) -> np.ndarray:
    """Two slices of each of two patients with a pattern, the second with its outlines."""
    tiles = []
    for seed in (7, 24):
        patient = simulate_patient(np.random.default_rng(seed), SETTINGS, pattern=pattern)
        level = worst(patient) if pattern != NORMAL else levels(patient, (0.35,))[0]
        plain = cv2.cvtColor(axial(patient, level, LUNG_WINDOW), cv2.COLOR_GRAY2BGR)
        tiles += [plain, outlined(patient, level)]
    return np.hstack(tiles)


def variety() -> np.ndarray:
    """Eight patients of any pattern, one slice each, everything drawn."""
    tiles = []
    for seed in range(8):
        settings = ThoraxSettings(rows=256)
        patient = simulate_patient(np.random.default_rng(300 + seed), settings)
        level = levels(patient, (0.42,))[0]
        tiles.append(axial(patient, level, LUNG_WINDOW))
    return np.vstack([np.hstack(tiles[:4]), np.hstack(tiles[4:])])


def confusing() -> np.ndarray:
    """A coronal and an axial slice of confusing patients, with their labels."""
    columns = []
    for seed, settings in enumerate(CONFUSING):
        patient = simulate_confusing_patient(np.random.default_rng(40 + seed), settings)
        voxels, labels, grid = patient.volume.voxels, patient.labels, patient.volume.grid
        busiest = int((labels > 0).sum(axis=(0, 2)).argmax())
        level = int((labels == 3).sum(axis=(1, 2)).argmax())
        upright = coloured(voxels[::-1, busiest], labels[::-1, busiest], grid.spacing_mm[::2])
        columns.append(np.vstack([upright, coloured(voxels[level], labels[level], (1.0, 1.0))]))
    return np.hstack(columns)


def coloured(plane: np.ndarray, labels: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """One slice with the outlines of its labels, in a square tile."""
    extent = np.array(plane.shape) * spacing
    rows, columns = (TILE * extent / extent.max()).astype(int)
    grey = np.clip((plane.astype(np.float32) + 500) / 1600 + 0.5, 0, 1) * 255
    grey = cv2.resize(grey.astype(np.uint8), (int(columns), int(rows)))
    tile = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    for label, colour in COLOURS.items():
        mask = cv2.resize((labels == label).astype(np.uint8), (int(columns), int(rows)))
        lines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, lines, -1, colour, 1)
    return np.pad(tile, ((0, TILE - int(rows)), (0, TILE - int(columns)), (0, 0)))


def write(path: Path, picture: np.ndarray) -> None:
    """Write a picture; fewer grey levels keep noise from filling the file."""
    coarse = (picture // 6 * 6 + 3).astype(np.uint8)
    cv2.imwrite(str(path), coarse, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{path}: {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()

"""A small set of drawn scans with a manifest and settings, quick enough to train on in a test."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from phantoms import LUNG_HU, chest

from chestct.writers.nifti import write_nifti

LABELS = ("COVID-19", "normal")
SICK_HU = -650
SETTINGS = """
labels: [COVID-19, normal]
network: {name: roi_resnet18, settings: {width: 2, gating: all, head_units: 4}}
recipe:
  name: roi_resnet_recommended
  overrides: {input_shape: [40, 36, 44], spacing_mm: [10.0, 10.0, 10.0], lungs: published}
training: {epochs: 2, batch_size: 4, learning_rate: 0.003, seed: 3}
"""


def write_scans(folder: Path, num_per_class: int) -> Path:
    """Draw chests with dense and with clear lungs, no two alike; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    plain = chest()
    rows = []
    for number in range(2 * num_per_class):
        label = LABELS[number % 2]
        dense = np.where(plain.voxels == LUNG_HU, SICK_HU, plain.voxels)
        clean = dense if label == "COVID-19" else plain.voxels
        noise = rng.normal(0, 8, clean.shape)
        voxels = np.clip(clean + noise, -1024, 3000).round().astype(np.int16)
        name = f"scan{number:02d}.nii.gz"
        write_nifti(folder / name, voxels, plain.grid)
        site = "east" if number % 4 < 2 else "west"
        rows.append({"scan": name, "patient": f"p{number:02d}", "label": label, "site": site})
    return write_rows(folder / "manifest.csv", rows)


def write_empty_chest(path: Path) -> None:
    """A chest without lungs, which no classifier should judge."""
    volume = chest(has_lungs=False)
    noise = np.random.default_rng(99).integers(-8, 8, volume.voxels.shape)
    write_nifti(path, (volume.voxels + noise).clip(-1024).astype(np.int16), volume.grid)


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write a manifest."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read any CSV back."""
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))

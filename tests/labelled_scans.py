"""Small scans on disk, and manifests of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from phantoms import chest, chest_grid

from chestct.datasets.manifest import Manifest, ManifestRow

COARSE = ((24, 24, 28), (15.0, 13.5, 13.5))


def make_rows(
    counts: dict[str, int], scans_per_patient: int = 1, prefix: str = ""
) -> list[ManifestRow]:
    """So many patients per class, each with so many scans; no files."""
    return [
        ManifestRow(f"{prefix}{label}-{number:03d}-{scan}", f"{prefix}{label}-{number:03d}", label)
        for label, count in counts.items()
        for number in range(count)
        for scan in range(scans_per_patient)
    ]


def make_manifest(rows: Sequence[ManifestRow], folder: Path | None = None) -> Manifest:
    return Manifest(tuple(rows), folder=folder or Path("/nowhere"), name="scans.csv")


def write_scan(path: Path, seed: int = 0, *, is_reversed: bool = False) -> Path:
    """A coarse chest as NIfTI, with noise of its own; written upside down if wanted."""
    volume = chest(chest_grid(*COARSE))
    noise = np.random.default_rng(seed).integers(-20, 20, volume.voxels.shape)
    voxels = np.asarray(volume.voxels + noise, dtype=np.int16).transpose(2, 1, 0)
    affine = np.diag([-13.5, -13.5, 15.0, 1.0])
    affine[:3, 3] = (180.0, 160.0, -170.0)
    if is_reversed:
        voxels, affine = voxels[:, :, ::-1], affine @ np.diag([1.0, 1.0, -1.0, 1.0])
        affine[2, 3] += 15.0 * (voxels.shape[2] - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path

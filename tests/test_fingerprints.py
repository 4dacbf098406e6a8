"""A scan has one digest, whatever stored it, and it stays what results and caches hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phantoms import chest

from chestct.datasets.scans import ScanFacts
from chestct.fingerprints import hash_voxels
from chestct.readers import read_volume
from chestct.simulate import write_dicom_series
from chestct.volume import Grid, Volume
from chestct.writers.nifti import write_nifti


def whole_hu(volume: Volume) -> Volume:
    return volume.with_voxels(volume.voxels.round().astype(np.int16))


def test_the_same_patient_has_one_hash_in_every_format_and_order(tmp_path: Path) -> None:
    volume = whole_hu(chest())
    write_dicom_series(volume, tmp_path / "dicom")
    write_nifti(tmp_path / "scan.nii.gz", volume.voxels, volume.grid)
    reversed_grid = volume.grid.moved(
        (float(volume.grid.shape[0] - 1), 0.0, 0.0), (-1.0, 1.0, 1.0), volume.grid.shape
    )
    reversed_volume = volume.with_voxels(volume.voxels[::-1], reversed_grid)
    as_floats = volume.with_voxels(volume.voxels.astype(np.float32))
    hashes = {
        hash_voxels(volume),
        hash_voxels(reversed_volume),
        hash_voxels(as_floats),
        hash_voxels(read_volume(tmp_path / "dicom")),
        hash_voxels(read_volume(tmp_path / "scan.nii.gz")),
    }
    assert len(hashes) == 1


def test_any_change_of_voxels_or_place_changes_the_hash() -> None:
    volume = whole_hu(chest())
    voxels = volume.voxels.copy()
    voxels[3, 4, 5] += 1
    moved = replace(volume.grid, origin_mm=(0.0, 0.0, 0.1))
    others = [
        volume.with_voxels(voxels),
        volume.with_voxels(volume.voxels, moved),
        volume.with_voxels(volume.voxels.astype(np.float32) + 0.25),
        volume.with_voxels(volume.voxels.astype(np.int32) + 40_000),
    ]
    hashes = [hash_voxels(volume), *(hash_voxels(other) for other in others)]
    assert len(set(hashes)) == len(hashes)


def counted(values: np.ndarray) -> Volume:
    return Volume(Grid((2, 3, 4), (2.0, 1.0, 0.5), (1.0, 2.0, 3.0)), values.reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("values", "sha256", "pixels"),
    [
        (np.arange(24, dtype=np.int16), "55247615a993", "43e442b05ca7"),
        (np.arange(24, dtype=np.float64), "55247615a993", "43e442b05ca7"),
        (np.arange(24, dtype=np.float32) + 0.5, "79bd403331a1", "afdce6dbde7f"),
        (np.arange(24, dtype=np.float32) + 40_000, "01d6637206cf", "9a7af74873ed"),
        (np.array([np.nan] + 23 * [1], dtype=np.float32), "bfcc33b449c7", "5420293fc2eb"),
    ],
)
def test_digests_are_those_that_earlier_results_and_caches_hold(
    values: np.ndarray, sha256: str, pixels: str
) -> None:
    volume = counted(values)
    assert hash_voxels(volume)[:12] == sha256
    assert ScanFacts.of(volume, Path("scan")).pixels[:12] == pixels

"""Every pattern of disease keeps the same promises, in a scan as plain as can be."""

from __future__ import annotations

import numpy as np
import pytest

from chestct.labels import THREE_CLASSES
from chestct.simulate.lesions import PATTERNS, insert_lesions
from chestct.volume import Grid, Volume


@pytest.fixture(scope="module")
def scan() -> tuple[Volume, np.ndarray]:
    """Two ellipsoids of lung in a block of muscle, with noise."""
    z, y, x = np.ogrid[-1:1:50j, -1:1:64j, -1:1:96j]
    lungs = (z / 0.9) ** 2 + (y / 0.75) ** 2 + ((np.abs(x) - 0.47) / 0.38) ** 2 < 1
    hu = np.where(lungs, -850.0, 45.0)
    hu += np.random.default_rng(0).normal(0, 15, hu.shape)
    return Volume(Grid(lungs.shape, (5.0, 3.2, 3.2)), hu.astype(np.int16)), lungs


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", range(3))
def test_disease_stays_in_the_lungs_and_only_adds_density(scan, pattern: str, seed: int) -> None:
    volume, lungs = scan
    changed, lesions = insert_lesions(volume, lungs, pattern, np.random.default_rng(seed))
    assert changed.grid == volume.grid
    assert changed.voxels.dtype == volume.voxels.dtype
    assert lesions.shape == lungs.shape
    assert not (lesions & ~lungs).any()
    assert lesions.any() or pattern == "normal"
    difference = changed.voxels.astype(float) - volume.voxels
    assert difference[lungs].mean() >= -1
    assert np.percentile(difference, 1) > -60


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_seed_gives_the_same_disease(scan, pattern: str) -> None:
    volume, lungs = scan
    first, second = (
        insert_lesions(volume, lungs, pattern, np.random.default_rng(9)) for _ in range(2)
    )
    assert np.array_equal(first[0].voxels, second[0].voxels)
    assert np.array_equal(first[1], second[1])


def test_patterns_are_the_classes() -> None:
    assert sorted(PATTERNS) == sorted(THREE_CLASSES)

"""What the lungs network sees of a scan."""

from __future__ import annotations

import numpy as np
import pytest

from chestct.preprocess.lungs import NetworkLungs, find_lungs
from chestct.preprocess.lungs.network import lungs_input
from chestct.volume import Grid, Volume


def _volume(shape=(20, 24, 28), spacing_mm=(3.0, 2.0, 2.0)) -> Volume:
    """A smooth body with a trend along each axis."""
    axes = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    voxels = (-800 + 300 * axes[0] + 500 * axes[1] + 400 * axes[2]).astype(np.int16)
    return Volume(Grid(shape, spacing_mm, (5.0, -7.0, 90.0)), voxels)


@pytest.mark.parametrize(
    "spacing_mm", [(0.5, 0.6, 0.6), (3.0, 2.0, 2.0), (8.0, 0.8, 0.8), (10.0, 7.0, 1.0)]
)
def test_any_spacing_becomes_about_four_millimetres_over_the_same_box(spacing_mm) -> None:
    volume = _volume((40, 48, 56), spacing_mm)
    values, grid = lungs_input(volume)
    assert values.shape == grid.shape
    assert values.dtype == np.float32
    assert np.allclose(grid.extent_mm, volume.grid.extent_mm)
    assert np.allclose(grid.spacing_mm, 4.0, rtol=0.15)
    corners = np.array([[-0.5] * 3, [n - 0.5 for n in volume.grid.shape]])
    ends = np.array([[-0.5] * 3, [n - 0.5 for n in grid.shape]])
    assert np.allclose(volume.grid.to_patient(corners), grid.to_patient(ends))


def test_values_are_means_clipped_and_scaled() -> None:
    volume = _volume((8, 8, 8), (2.0, 2.0, 2.0))
    values, _ = lungs_input(volume)
    mean = volume.voxels[:2, :2, :2].mean()
    assert values[0, 0, 0] == pytest.approx((mean + 1024) / 812 - 1, abs=1e-5)
    extreme = np.where(np.arange(8) < 4, -3000, 3000).astype(np.float64)
    scaled, _ = lungs_input(volume.with_voxels(np.broadcast_to(extreme, (8, 8, 8)).copy()))
    assert scaled.min() == -1.0
    assert scaled.max() == 1.0


@pytest.mark.parametrize("blank_hu", [-2000, -1024, 0])
@pytest.mark.parametrize("spacing_mm", [1.0, 8.0])
def test_blank_slices_at_an_end_change_nothing(blank_hu: int, spacing_mm: float) -> None:
    volume = _volume(spacing_mm=(spacing_mm, 2.0, 2.0))
    values, grid = lungs_input(volume)
    voxels = np.pad(volume.voxels, ((1, 2), (0, 0), (0, 0)), constant_values=blank_hu)
    padded = Volume(volume.grid.moved((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0), voxels.shape), voxels)
    again, same_grid = lungs_input(padded)
    assert np.array_equal(again, values)
    assert np.allclose(same_grid.origin_mm, grid.origin_mm)


@pytest.mark.parametrize("blank_hu", [-2000, -1024, 0])
def test_a_blank_slice_amid_the_scan_is_filled_from_its_neighbours(blank_hu: int) -> None:
    volume = _volume(spacing_mm=(5.0, 2.0, 2.0))
    voxels = volume.voxels.copy()
    voxels[9] = blank_hu
    values, _ = lungs_input(volume)
    filled, _ = lungs_input(volume.with_voxels(voxels))
    assert np.abs(filled - values).max() < 0.02


def test_a_scan_without_an_image_keeps_its_extent_and_is_not_changed() -> None:
    volume = _volume()
    empty = volume.with_voxels(np.full(volume.grid.shape, -1024, dtype=np.int16))
    values, grid = lungs_input(empty)
    assert (values == -1.0).all()
    assert np.allclose(grid.extent_mm, empty.grid.extent_mm)
    assert (empty.voxels == -1024).all()


def _network_lungs(lung: np.ndarray) -> NetworkLungs:
    """Two halves of a lung probability, right and left, background elsewhere."""
    is_left = np.arange(lung.shape[2]) >= lung.shape[2] // 2
    probabilities = np.stack([1 - lung, lung * ~is_left, lung * is_left, 0 * lung])
    grid = Grid(lung.shape, (4.0, 4.0, 4.0))
    return NetworkLungs(probabilities.astype(np.float32), np.zeros(lung.shape, np.float32), grid)


def test_volumes_and_doubt_come_from_the_probabilities() -> None:
    plain = np.zeros((20, 20, 20))
    plain[5:15, 5:15, 2:16] = 1.0
    found = _network_lungs(plain)
    assert found.right_ml == pytest.approx(10 * 10 * 8 * 0.064)
    assert found.left_ml == pytest.approx(10 * 10 * 6 * 0.064)
    assert found.other_gas_ml == 0.0
    assert found.doubtful_share == 0.0
    doubted = np.where(np.arange(20)[:, None, None] < 10, plain, 0.5 * plain)
    assert _network_lungs(doubted).doubtful_share > 1.0
    assert _network_lungs(0 * plain).doubtful_share == 0.0


def test_methods_without_a_network_say_nothing_of_one() -> None:
    found = find_lungs(_volume(), "published")
    assert found.network is None
    assert found.mask.shape == _volume().grid.shape

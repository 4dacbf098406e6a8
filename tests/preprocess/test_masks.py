import numpy as np
import pytest

from chestct.preprocess.resample import bounding_box, grown, mask_on_grid


@pytest.fixture
def mask():
    mask = np.zeros((20, 22, 24), dtype=bool)
    mask[5:12, 6:16, 7:9] = True
    return mask


def test_bounding_box_holds_every_true_voxel(mask):
    assert bounding_box(mask) == (slice(5, 12), slice(6, 16), slice(7, 9))


def test_empty_mask_has_no_box():
    assert bounding_box(np.zeros((3, 4, 5), dtype=bool)) is None


def test_mask_on_its_own_grid_stays_as_it_is(mask):
    same = mask_on_grid(mask, bounding_box(mask), ((0, 0, 0), (1, 1, 1), mask.shape))
    np.testing.assert_array_equal(same, mask)


def test_mask_on_a_finer_grid_keeps_its_volume(mask):
    fine = mask_on_grid(mask, bounding_box(mask), ((-0.25,) * 3, (0.5,) * 3, (40, 44, 48)))
    assert fine.sum() / 8 == pytest.approx(mask.sum(), rel=0.05)


def test_empty_mask_stays_empty():
    empty = np.zeros((3, 4, 5), dtype=bool)
    assert not mask_on_grid(empty, None, ((0, 0, 0), (1, 1, 1), (6, 7, 8))).any()


def test_grown_mask_is_every_voxel_within_the_ellipsoid():
    point = np.zeros((15, 15, 15), dtype=bool)
    point[7, 7, 7] = True
    z, y, x = np.indices(point.shape) - 7
    expected = (z / 2.5) ** 2 + (y / 3.2) ** 2 + (x / 4.0) ** 2 <= 1
    np.testing.assert_array_equal(grown(point, (2.5, 3.2, 4.0)), expected)


def test_growing_by_less_than_a_voxel_changes_nothing(mask):
    np.testing.assert_array_equal(grown(mask, (0.9, 0.0, 0.5)), mask)


def test_growing_stops_at_the_edge_of_the_grid_and_does_not_mutate():
    full = np.zeros((4, 5, 6), dtype=bool)
    full[0] = True
    before = full.copy()
    assert grown(full, (9.0, 1.0, 1.0)).all()
    np.testing.assert_array_equal(full, before)

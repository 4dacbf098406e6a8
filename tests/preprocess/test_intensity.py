from dataclasses import replace

import numpy as np
import pytest

from chestct.preprocess.placement import _value_reader, finished_values
from chestct.preprocess.recipes import RECIPES
from chestct.volume import Grid, Volume

EVERYTHING = (slice(0, 3), slice(0, 20), slice(0, 25))


@pytest.fixture
def volume():
    voxels = np.random.default_rng(0).integers(-1024, 1500, (3, 20, 25)).astype(np.int16)
    return Volume(Grid((3, 20, 25), (1.0, 1.0, 1.0)), voxels)


def finished(volume, recipe, mask=None):
    return finished_values(_value_reader(volume, recipe, mask)(*EVERYTHING), recipe, volume.unit)


def test_minmax_sends_the_lowest_voxel_to_zero_and_the_highest_to_one(volume):
    values = finished(volume, RECIPES["roi_resnet_paper"])
    v = volume.voxels.astype(float)
    np.testing.assert_allclose(values, (v - v.min()) / (v.max() - v.min()), atol=1e-6)


def test_contrast_saturates_one_percent_of_each_slice_at_each_end(volume):
    values = finished(volume, RECIPES["roi_resnet_published"])
    for plane in values:
        assert 0 < (plane == 0).mean() <= 0.012
        assert 0 < (plane == 1).mean() <= 0.012


def test_contrast_of_a_block_is_that_of_its_whole_slices(volume):
    reader = _value_reader(volume, RECIPES["roi_resnet_published"], None)
    block = (slice(1, 2), slice(3, 9), slice(10, 20))
    np.testing.assert_array_equal(reader(*block), reader(*EVERYTHING)[block])


def test_voxels_outside_the_mask_get_the_background(volume):
    mask = np.zeros(volume.grid.shape, dtype=bool)
    mask[1, 5:9, 5:9] = True
    values = _value_reader(volume, RECIPES["roi_resnet_paper"], mask)(*EVERYTHING)
    assert not values[~mask].any()
    assert values[mask].any()


def test_mask_without_a_background_keeps_everything(volume):
    recipe = replace(RECIPES["roi_resnet_paper"], background=None)
    nothing = np.zeros(volume.grid.shape, dtype=bool)
    assert _value_reader(volume, recipe, nothing)(*EVERYTHING).any()


def test_window_sends_its_ends_to_zero_and_one(volume):
    values = finished(volume, RECIPES["roi_resnet_recommended"])
    expected = np.clip((volume.voxels.astype(float) + 1350) / 1500, 0, 1)
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_before_resampling_zero_is_air(volume):
    block = _value_reader(volume, RECIPES["roi_resnet_recommended"], None)(*EVERYTHING)
    np.testing.assert_array_equal(block, volume.voxels.astype(np.float32) + 1024)


def test_windowed_export_is_taken_as_a_window_already(volume):
    grey = np.random.default_rng(1).integers(0, 256, volume.grid.shape).astype(np.uint8)
    export = replace(volume, voxels=grey, unit="windowed")
    for name in ("roi_resnet_recommended", "maseres_published"):
        np.testing.assert_allclose(finished(export, RECIPES[name]), grey / 255.0, atol=1e-6)


def test_eight_bit_window_takes_256_values(volume):
    values = finished(volume, RECIPES["maseres_published"])
    np.testing.assert_allclose(values * 255, np.rint(values * 255), atol=1e-4)
    assert values.max() == 1


def test_eight_bit_window_cuts_what_the_spline_overshoots():
    recipe = RECIPES["maseres_published"]
    overshot = np.array([[[-3.0, 10.4, 258.0]]], dtype=np.float32)
    np.testing.assert_allclose(
        finished_values(overshot, recipe, "HU"), [[[0, 10 / 255, 1]]], rtol=1e-6
    )


def test_zscore_has_mean_zero_and_deviation_one(volume):
    values = finished(volume, RECIPES["maseres_paper"])
    assert values.mean() == pytest.approx(0, abs=1e-5)
    assert values.std() == pytest.approx(1, abs=1e-5)


def test_zscore_of_a_constant_scan_is_zero(volume):
    flat = volume.with_voxels(np.zeros(volume.grid.shape, dtype=np.int16))
    assert not finished(flat, RECIPES["maseres_paper"]).any()


def test_negative_overshoot_is_cut_where_the_recipe_says_so():
    values = np.array([[[-0.1, 1.1]]], dtype=np.float32)
    cut = finished_values(values.copy(), RECIPES["roi_resnet_published"], "HU")
    kept = finished_values(
        values.copy(), replace(RECIPES["roi_resnet_published"], clip_negatives=False), "HU"
    )
    np.testing.assert_allclose(cut, [[[0.0, 1.1]]])
    np.testing.assert_allclose(kept, values)


@pytest.mark.parametrize("name", RECIPES)
def test_reading_values_does_not_mutate_the_scan(volume, name):
    before = volume.voxels.copy()
    finished(volume, RECIPES[name])
    np.testing.assert_array_equal(volume.voxels, before)

from dataclasses import replace

import numpy as np
import pytest
from phantoms import chest, chest_grid, lungs_of

from chestct.errors import GridError, UnknownNameError
from chestct.preprocess.prepare import _draw_factors, prepare
from chestct.preprocess.recipes import RECIPES
from chestct.volume import Grid

SPACING_MM = 3.0
PHYSICAL = replace(
    RECIPES["roi_resnet_recommended"], spacing_mm=(SPACING_MM,) * 3, input_shape=(112, 112, 112)
)
PUBLISHED = replace(RECIPES["roi_resnet_published"], input_shape=(40, 56, 56))


@pytest.fixture(scope="module")
def scan():
    return chest()


def as_windowed(volume):
    grey = (np.clip((volume.voxels.astype(np.float32) + 1350) / 1500, 0, 1) * 255).astype(np.uint8)
    return replace(volume, voxels=grey, unit="windowed")


def test_physical_input_has_the_recipes_spacing_around_the_lungs(scan):
    prepared = prepare(scan, PHYSICAL, lungs=lungs_of())
    assert prepared.grid.spacing_mm == pytest.approx((SPACING_MM,) * 3)
    inside = np.argwhere(prepared.lungs)
    middle = (inside.min(axis=0) + inside.max(axis=0)) / 2
    np.testing.assert_allclose(middle, (np.array(prepared.lungs.shape) - 1) / 2, atol=2.5)


def test_physical_spacing_and_shape_are_free(scan):
    recipe = replace(PHYSICAL, spacing_mm=(4.0, 3.5, 3.0), input_shape=(78, 76, 120))
    prepared = prepare(scan, recipe, lungs=lungs_of())
    assert prepared.input.shape == (1, 78, 76, 120)
    assert prepared.grid.spacing_mm == pytest.approx((4.0, 3.5, 3.0))
    assert ["mask that was given" in warning for warning in prepared.warnings] == [True]


def test_lungs_that_do_not_fit_are_shrunk_by_one_factor_and_said_so(scan):
    recipe = replace(PHYSICAL, spacing_mm=(2.0, 2.0, 2.0), input_shape=(100, 120, 130))
    prepared = prepare(scan, recipe)
    shrink = np.array(prepared.grid.spacing_mm) / 2.0
    assert shrink[0] > 1.1
    np.testing.assert_allclose(shrink, shrink[0])
    assert any("shrunk to" in warning for warning in prepared.warnings)
    rim = prepared.lungs.copy()
    rim[1:-1, 1:-1, 1:-1] = False
    assert not rim.any()


def test_beyond_the_lungs_and_their_margin_lies_the_background(scan):
    prepared = prepare(scan, PHYSICAL, lungs=lungs_of())
    narrow = prepare(scan, replace(PHYSICAL, mask_margin_mm=0.0), lungs=lungs_of())
    assert (narrow.input[0][~narrow.lungs] == 0).all()
    rim = (prepared.input[0] > 0) & ~prepared.lungs
    assert 0 < rim.sum() < 0.4 * prepared.lungs.sum()


def test_darkest_lung_is_above_the_threshold_of_the_papers_mask(scan):
    prepared = prepare(scan, PHYSICAL, lungs=lungs_of())
    assert prepared.input[0][prepared.lungs].min() > 0.1


def test_beyond_the_scan_lies_air():
    narrow = chest(chest_grid(shape=(72, 50, 76)))
    recipe = replace(RECIPES["maseres_recommended"], window_hu=(-1124.0, 150.0))
    corner = prepare(narrow, recipe).input[0][0, 0, 0]
    assert corner == pytest.approx(100 / 1274, abs=1e-5)


def test_threshold_limits_a_physical_input_to_the_salient_slices(scan):
    prepared = prepare(scan, replace(PHYSICAL, salient_threshold=0.8))
    first, last = prepared.salient
    assert 0 < first < last < scan.grid.shape[0] - 1
    depth_mm = (last - first + 1) * scan.grid.spacing_mm[0]
    covered = np.flatnonzero(prepared.lungs.any(axis=(1, 2)))
    covered_mm = (covered[-1] - covered[0] + 1) * SPACING_MM
    assert covered_mm == pytest.approx(depth_mm, abs=2 * SPACING_MM)


def test_without_a_threshold_the_whole_scan_is_analysed(scan):
    assert prepare(scan, PHYSICAL).salient == (0, scan.grid.shape[0] - 1)


def test_published_keeps_the_span_of_slices_with_large_lungs(scan):
    prepared = prepare(scan, PUBLISHED)
    reaching = np.flatnonzero(prepared.lung_area >= 0.8 * prepared.lung_area.max())
    assert np.abs(np.array(prepared.salient) - reaching[[0, -1]]).max() <= 1


def test_lower_threshold_keeps_more_slices(scan):
    spans = [
        np.subtract(*prepare(scan, replace(PUBLISHED, salient_threshold=t)).salient[::-1])
        for t in (0.6, 0.7, 0.8, 1.0)
    ]
    assert spans == sorted(spans, reverse=True)
    assert spans[0] > spans[2]


def test_published_without_a_threshold_keeps_all_slices(scan):
    prepared = prepare(scan, replace(PUBLISHED, salient_threshold=None))
    assert prepared.salient == (0, scan.grid.shape[0] - 1)


def test_paper_area_is_counted_on_the_mask(scan):
    recipe = replace(RECIPES["roi_resnet_paper"], input_shape=(40, 56, 56))
    prepared = prepare(scan, recipe)
    reaching = np.flatnonzero(prepared.lung_area >= 0.8 * prepared.lung_area.max())
    assert prepared.salient[0] == reaching[0]
    assert prepared.salient[1] == reaching[0] + len(reaching) - 1


def test_large_slice_steps_still_find_a_slice(scan):
    recipe = replace(
        RECIPES["roi_resnet_paper"], input_shape=(8, 56, 56), slice_step=16.0, salient_threshold=1.0
    )
    assert np.isfinite(prepare(scan, recipe).input).all()


def test_crop_through_the_lungs_is_warned_of(scan):
    prepared = prepare(scan, replace(PUBLISHED, central_crop=0.5))
    assert any("central crop cut off" in warning for warning in prepared.warnings)
    assert prepare(scan, PUBLISHED).warnings == ()


def test_training_draws_the_factors_from_their_ranges(scan):
    drawn = _draw_factors(PUBLISHED, np.random.default_rng(3))
    assert 1.7 <= drawn.in_plane_step <= 2.3
    assert 0.45 <= drawn.slice_step <= 0.65
    assert 0.75 <= drawn.central_crop <= 1.0
    assert drawn != PUBLISHED


def test_training_input_is_reproduced_by_its_generator_and_by_its_recipe(scan):
    first = prepare(scan, PUBLISHED, rng=np.random.default_rng(3))
    second = prepare(scan, PUBLISHED, rng=np.random.default_rng(3))
    other = prepare(scan, PUBLISHED, rng=np.random.default_rng(4))
    np.testing.assert_array_equal(first.input, second.input)
    np.testing.assert_array_equal(first.input, prepare(scan, first.recipe).input)
    assert not np.array_equal(first.input, other.input)


def test_recipe_without_ranges_draws_nothing(scan):
    assert _draw_factors(PHYSICAL, np.random.default_rng(0)) == PHYSICAL


def test_use_time_recipe_is_the_one_given(scan):
    assert prepare(scan, PHYSICAL).recipe is PHYSICAL


def test_factors_that_make_a_huge_grid_are_refused(scan):
    fine = replace(PUBLISHED, in_plane_step=0.1, slice_step=0.05)
    with pytest.raises(GridError):
        prepare(scan, fine)


def test_unknown_lung_method_is_refused(scan):
    with pytest.raises(UnknownNameError, match="recommended"):
        prepare(scan, replace(PHYSICAL, lungs="recomended"))


def test_lung_volume_is_that_of_the_mask_on_the_scan(scan):
    prepared = prepare(scan, PHYSICAL, lungs=lungs_of())
    litres = prepared.scan_lungs.voxels.sum() * scan.grid.voxel_ml / 1000
    assert prepared.lung_volume_l == pytest.approx(litres)
    assert 4.0 < litres < 5.5


def test_lungs_at_the_input_have_the_volume_of_the_scans(scan):
    prepared = prepare(scan, PHYSICAL, lungs=lungs_of())
    litres = prepared.lungs.sum() * prepared.grid.voxel_ml / 1000
    assert litres == pytest.approx(prepared.lung_volume_l, rel=0.02)


def test_windowed_scan_is_segmented_by_the_method_that_needs_no_units(scan):
    prepared = prepare(as_windowed(scan), RECIPES["maseres_published"])
    assert any("not in Hounsfield units" in warning for warning in prepared.warnings)
    assert prepared.lungs.any()
    assert prepared.unsuitable_reasons == ()


def test_windowed_scan_gives_the_input_of_the_scan_it_was_made_from(scan):
    recipe = RECIPES["maseres_published"]
    difference = prepare(as_windowed(scan), recipe).input - prepare(scan, recipe).input
    assert np.abs(difference).max() <= 2.1 / 255


def test_scan_without_lungs_is_prepared_and_called_unsuitable():
    for name in ("roi_resnet_recommended", "roi_resnet_published", "maseres_paper"):
        prepared = prepare(chest(has_lungs=False), RECIPES[name])
        assert np.isfinite(prepared.input).all()
        assert prepared.unsuitable_reasons


@pytest.mark.parametrize("shape", [(1, 72, 84), (2, 72, 84), (72, 3, 4)])
def test_scans_of_very_few_voxels_are_prepared_and_called_unsuitable(shape):
    tiny = chest(chest_grid(shape=shape))
    for recipe in RECIPES.values():
        prepared = prepare(tiny, replace(recipe, input_shape=(16, 18, 20)))
        assert np.isfinite(prepared.input).all()
        assert prepared.unsuitable_reasons


def test_several_channels_hold_the_same_values(scan):
    prepared = prepare(scan, replace(PHYSICAL, num_channels=3))
    assert prepared.input.shape[0] == 3
    np.testing.assert_array_equal(prepared.input[0], prepared.input[2])


def test_scan_lungs_lie_on_the_scans_own_axes(scan):
    turned = scan.with_voxels(
        scan.voxels.transpose(2, 0, 1)[:, ::-1],
        replace_axes(scan.grid),
    )
    ours = prepare(turned, PHYSICAL).scan_lungs
    assert ours.grid == turned.grid
    np.testing.assert_array_equal(
        ours.voxels, prepare(scan, PHYSICAL).scan_lungs.voxels.transpose(2, 0, 1)[:, ::-1]
    )


def replace_axes(grid):
    """The grid of `voxels.transpose(2, 0, 1)[:, ::-1]`."""
    order = (2, 0, 1)
    turned = Grid(
        tuple(grid.shape[a] for a in order),
        tuple(grid.spacing_mm[a] for a in order),
        grid.origin_mm,
        tuple(grid.direction[a] for a in order),
    )
    return turned.moved((0.0, turned.shape[1] - 1.0, 0.0), (1.0, -1.0, 1.0), turned.shape)

"""What every recipe promises, whatever it does."""

from dataclasses import replace
from functools import cache
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phantoms import CANONICAL_DIRECTION, chest, chest_grid, turned_grid

from chestct.contracts import PROMISES, RecipeCase
from chestct.preprocess.prepare import prepare
from chestct.preprocess.recipes import RECIPES
from chestct.volume import Grid, Volume, to_canonical

EVERY_RECIPE = pytest.mark.parametrize("name", RECIPES)
ORIENTATIONS = list(product(permutations(range(3)), product((False, True), repeat=3)))
LANDMARKS = [(-80.0, 25.0, 15.0), (85.0, 40.0, -10.0), (-85.0, -35.0, 5.0)]
"""Patient positions (x, y, z) well inside the phantom's lungs and its salient slices."""
COARSE = ((60, 60, 70), (6.0, 5.4, 5.4))
SCAN = chest(chest_grid(*COARSE))


def small(name):
    """The recipe with a quick input size, its physical extent kept."""
    recipe = RECIPES[name]
    shape = (56, 52, 60)
    spacing = tuple(
        n * s / m for n, s, m in zip(recipe.input_shape, recipe.spacing_mm, shape, strict=True)
    )
    return replace(recipe, input_shape=shape, spacing_mm=spacing)


def stored_as(volume, order, reverse):
    """The same patient, its axes in another order and direction in memory and geometry."""
    grid = volume.grid
    turned = Grid(
        tuple(grid.shape[a] for a in order),
        tuple(grid.spacing_mm[a] for a in order),
        grid.origin_mm,
        tuple(grid.direction[a] for a in order),
    )
    start = tuple(n - 1.0 if r else 0.0 for n, r in zip(turned.shape, reverse, strict=True))
    step = tuple(-1.0 if r else 1.0 for r in reverse)
    voxels = volume.voxels.transpose(order)[tuple(slice(None, None, int(s)) for s in step)]
    return Volume(turned.moved(start, step, turned.shape), np.ascontiguousarray(voxels))


@EVERY_RECIPE
def test_input_is_laid_out_as_networks_take_it(name):
    recipe = RECIPES[name]
    prepared = prepare(SCAN, name, lungs=prepared_phantom(name).scan_lungs)
    assert prepared.input.shape == (recipe.num_channels, *recipe.input_shape)
    assert prepared.input.dtype == np.float32
    assert prepared.input.flags.c_contiguous
    assert prepared.lungs.shape == prepared.grid.shape == recipe.input_shape


@cache
def case_of(name):
    return RecipeCase(name, small(name), SCAN)


@EVERY_RECIPE
@pytest.mark.parametrize("promise", PROMISES["recipe"], ids=lambda promise: promise.__name__)
def test_every_recipe_keeps_its_promises(name, promise):
    promise(case_of(name))


def prepared_phantom(name):
    return case_of(name).prepared


@EVERY_RECIPE
@given(orientation=st.sampled_from(ORIENTATIONS))
@settings(max_examples=5, deadline=None)
def test_same_patient_in_any_orientation_gives_the_same_input(name, orientation):
    expected = prepared_phantom(name)
    turned = stored_as(SCAN, *orientation)
    ours = prepare(turned, small(name))
    np.testing.assert_array_equal(ours.input, expected.input)
    np.testing.assert_array_equal(ours.lungs, expected.lungs)
    places = (ours.grid.index_to_patient, expected.grid.index_to_patient)
    np.testing.assert_allclose(*places, atol=1e-6)
    assert ours.salient == expected.salient
    np.testing.assert_array_equal(
        to_canonical(ours.scan_lungs).voxels, to_canonical(expected.scan_lungs).voxels
    )


SOURCES = {
    "axial": SCAN.grid,
    "axial, head to feet": stored_as(SCAN, (0, 1, 2), (True, False, False)).grid,
    "sagittal, reversed": stored_as(SCAN, (2, 0, 1), (True, True, False)).grid,
    "coronal": stored_as(SCAN, (1, 2, 0), (False, False, True)).grid,
    "oblique about x": chest_grid(*COARSE, turned_grid(12.0, 0).direction),
    "oblique about y": chest_grid(*COARSE, turned_grid(-15.0, 1).direction),
    "oblique about z": chest_grid(*COARSE, turned_grid(20.0, 2).direction),
}


@cache
def drawn(source, *blobs):
    return chest(SOURCES[source], blobs=blobs)


@cache
def found_lungs(source, method):
    """The lungs of the plain chest; recipes that find them alike ask once."""
    name = next(name for name, recipe in RECIPES.items() if recipe.lungs == method)
    return prepare(drawn(source), small(name)).scan_lungs


def centre_of_change(before, after):
    """Index of the centre of what changed by more than half of the largest change."""
    change = np.abs(after - before)
    change[change < 0.5 * change.max()] = 0.0
    profiles = [change.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    return np.array([np.average(np.arange(p.size), weights=p) for p in profiles])


@EVERY_RECIPE
@pytest.mark.parametrize("source", SOURCES)
def test_landmark_in_the_input_maps_back_to_half_a_voxel(name, source):
    recipe = small(name)
    # A network that finds lungs may see more in a blob than a dot; where things lie is asked here.
    lungs = found_lungs(source, recipe.lungs)
    plain = prepare(drawn(source), recipe, lungs=lungs)
    coarsest = np.maximum(plain.grid.spacing_mm, to_canonical(drawn(source)).grid.spacing_mm)
    for landmark in LANDMARKS[: 1 if source != "axial" else None]:
        marked = prepare(drawn(source, landmark), recipe, lungs=lungs)
        assert marked.grid == plain.grid
        found = centre_of_change(plain.input[0], marked.input[0])
        expected = marked.grid.to_index(np.array(landmark))
        error_mm = np.abs(found - expected) * marked.grid.spacing_mm
        assert (error_mm <= coarsest / 2).all(), (landmark, error_mm)
        nearest = tuple(np.rint(expected).astype(int))
        assert marked.lungs[nearest]


@EVERY_RECIPE
def test_lungs_of_input_and_scan_agree_in_the_patient(name):
    prepared = prepared_phantom(name)
    indices = np.argwhere(prepared.lungs)[::97].astype(np.float64)
    in_scan = np.rint(prepared.scan_grid.to_index(prepared.grid.to_patient(indices))).astype(int)
    agree = prepared.scan_lungs.voxels[tuple(in_scan.T)]
    assert agree.mean() > 0.93


@EVERY_RECIPE
def test_windowed_scan_is_used_or_refused_as_the_recipe_says(name):
    grey = (np.clip((SCAN.voxels.astype(np.float32) + 1350) / 1500, 0, 1) * 255).astype(np.uint8)
    prepared = prepare(Volume(SCAN.grid, grey, unit="windowed"), small(name))
    assert bool(prepared.unsuitable_reasons) == RECIPES[name].requires_hu
    assert np.isfinite(prepared.input).all()


@EVERY_RECIPE
def test_decimal_voxels_give_the_input_of_whole_ones(name):
    decimal = SCAN.with_voxels(SCAN.voxels.astype(np.float32))
    difference = prepare(decimal, small(name)).input - prepared_phantom(name).input
    assert np.abs(difference).max() < 1e-5


def test_canonical_direction_of_the_phantom_is_the_packages():
    assert chest_grid().direction == CANONICAL_DIRECTION

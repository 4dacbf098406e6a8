"""A map of the input, laid over the scan: where it lies, and where there is nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from phantoms import chest, chest_grid, lungs_of, turned_grid

from chestct.explain.back_to_scan import back_to_scan, map_on_body
from chestct.preprocess.oblique import on_body
from chestct.preprocess.prepare import PreparedScan, prepare
from chestct.preprocess.recipes import RECIPES, Recipe
from chestct.volume import CANONICAL_DIRECTION, Grid, Volume

SHAPE, SPACING_MM = (48, 48, 56), (7.5, 6.75, 6.75)
INPUT_SHAPE = (30, 28, 32)
LANDMARK = (-80.0, 25.0, 15.0)
"""A patient position (x, y, z) well inside a lung and the salient slices of every recipe."""


def stored_grid(order: tuple[int, int, int], reverse: tuple[bool, bool, bool]) -> Grid:
    """The phantom's grid with its axes stored in another order and direction."""
    directions = [CANONICAL_DIRECTION[axis] for axis in order]
    turned = tuple(
        (x * sign, y * sign, z * sign)
        for (x, y, z), sign in zip(directions, (-1.0 if r else 1.0 for r in reverse), strict=True)
    )
    shape, spacing = (tuple(each[axis] for axis in order) for each in (SHAPE, SPACING_MM))
    return chest_grid(shape, spacing, turned)


def oblique_grid(degrees: float, axis: int) -> Grid:
    return chest_grid(SHAPE, SPACING_MM, turned_grid(degrees, axis).direction)


SOURCES = {
    "axial": chest_grid(SHAPE, SPACING_MM),
    "axial, head to feet": stored_grid((0, 1, 2), (True, False, False)),
    "all axes reversed": stored_grid((0, 1, 2), (True, True, True)),
    "sagittal, reversed": stored_grid((2, 0, 1), (True, True, False)),
    "coronal": stored_grid((1, 2, 0), (False, False, True)),
    "oblique about x": oblique_grid(12.0, axis=0),
    "oblique about y, turned": oblique_grid(-15.0, axis=1),
    "oblique about z": oblique_grid(100.0, axis=2),
}
EVERY_RECIPE = pytest.mark.parametrize("name", RECIPES)
HARDEST = ("all axes reversed", "sagittal, reversed", "oblique about y, turned", "oblique about z")
PAIRS = [(name, source) for name in RECIPES for source in HARDEST] + [
    ("roi_resnet_published", source) for source in SOURCES if source not in HARDEST
]


def small(name: str) -> Recipe:
    recipe = RECIPES[name]
    spacing = tuple(
        n * s / m
        for n, s, m in zip(recipe.input_shape, recipe.spacing_mm, INPUT_SHAPE, strict=True)
    )
    return replace(recipe, input_shape=INPUT_SHAPE, spacing_mm=spacing)


@cache
def prepared_phantom(name: str, source: str) -> PreparedScan:
    return prepare(chest(SOURCES[source]), small(name), lungs=lungs_of(SOURCES[source]))


@cache
def patient_positions(source: str) -> np.ndarray:
    grid = SOURCES[source]
    return grid.to_patient(np.stack(np.indices(grid.shape), axis=-1).astype(np.float64))


def analysed_by_definition(prepared: PreparedScan, source: str) -> np.ndarray:
    """In the box of the input and on a salient slice, voxel by voxel."""
    indices = prepared.grid.to_index(patient_positions(source))
    faces = np.asarray(prepared.grid.shape) - 0.5
    in_box = ((indices >= -0.5 - 1e-6) & (indices <= faces + 1e-6)).all(axis=-1)
    slices = prepared.body_grid.to_index(patient_positions(source))[..., 0]
    first, last = prepared.salient
    return in_box & (slices > first - 0.5) & (slices < last + 0.5)


@pytest.mark.parametrize(("name", "source"), PAIRS)
def test_the_way_back_is_the_exact_inverse_for_every_voxel(name: str, source: str) -> None:
    prepared = prepared_phantom(name, source)
    expected = prepared.grid.to_index(patient_positions(source))
    analysed = analysed_by_definition(prepared, source)
    assert 0 < analysed.mean() <= 1
    for axis, size in enumerate(INPUT_SHAPE):
        # A map that holds each voxel's own index tells where each scan voxel was taken from.
        indices = np.indices(INPUT_SHAPE, dtype=np.float32)[axis]
        found = back_to_scan(indices, prepared)
        assert found.grid == SOURCES[source]
        assert found.voxels.dtype == np.float32
        np.testing.assert_array_equal(np.isfinite(found.voxels), analysed)
        inside = np.clip(expected[..., axis], 0, size - 1)
        np.testing.assert_allclose(found.voxels[analysed], inside[analysed], atol=1e-3)


@EVERY_RECIPE
@pytest.mark.parametrize("source", ["axial, head to feet", "oblique about y, turned"])
def test_a_nodule_seen_in_the_input_comes_back_to_its_place_in_the_patient(
    name: str, source: str
) -> None:
    grid = SOURCES[source]
    plain = prepared_phantom(name, source)
    marked = prepare(chest(grid, blobs=[LANDMARK]), small(name), lungs=lungs_of(grid))
    assert marked.grid == plain.grid
    change = np.abs(marked.input[0] - plain.input[0])
    change[change < 0.5 * change.max()] = 0.0
    back = np.nan_to_num(back_to_scan(change, marked).voxels)
    found = [
        np.average(np.arange(size), weights=back.sum(axis=tuple({0, 1, 2} - {axis})))
        for axis, size in enumerate(grid.shape)
    ]
    expected = grid.to_index(np.array(LANDMARK))
    own_axes = np.abs(np.asarray(grid.direction) @ np.asarray(marked.grid.direction).T).argmax(1)
    coarsest = np.maximum(grid.spacing_mm, np.asarray(marked.grid.spacing_mm)[own_axes])
    error_mm = np.abs(found - expected) * grid.spacing_mm
    assert (error_mm <= coarsest / 2).all(), error_mm


def test_slices_outside_the_salient_range_are_not_analysed_rather_than_zero() -> None:
    prepared = prepared_phantom("roi_resnet_paper", "axial, head to feet")
    first, last = prepared.salient
    assert 0 < first < last < SHAPE[0] - 1
    by_slice = np.isfinite(back_to_scan(np.zeros(INPUT_SHAPE, np.float32), prepared).voxels)
    seen = np.flatnonzero(by_slice.any(axis=(1, 2)))
    # The scan is stored from head to feet, salient slices are counted from the feet.
    assert SHAPE[0] - 1 - last <= seen[0] <= SHAPE[0] - last
    assert SHAPE[0] - 2 - first <= seen[-1] <= SHAPE[0] - 1 - first


def test_nothing_is_analysed_where_input_and_salient_range_do_not_meet() -> None:
    prepared = prepared_phantom("roi_resnet_recommended", "axial")
    far = replace(prepared, grid=replace(prepared.grid, origin_mm=(5000.0, 0.0, 0.0)))
    assert np.isnan(back_to_scan(np.ones(INPUT_SHAPE, np.float32), far).voxels).all()


def test_the_map_of_the_input_is_not_changed() -> None:
    prepared = prepared_phantom("maseres_published", "coronal")
    heat = np.random.default_rng(1).random(INPUT_SHAPE, dtype=np.float32)
    before = heat.copy()
    found = back_to_scan(heat, prepared)
    assert np.nanmin(found.voxels) >= 0
    assert np.nanmax(found.voxels) <= 1
    np.testing.assert_array_equal(heat, before)


@pytest.mark.parametrize("source", SOURCES)
def test_slices_across_any_axis_hold_the_same_values_to_the_bit(source: str) -> None:
    prepared = prepared_phantom("roi_resnet_recommended", source)
    heat = np.random.default_rng(2).random(INPUT_SHAPE, dtype=np.float32)
    found = back_to_scan(heat, prepared)
    turned = map_on_body(found)
    volume = on_body(Volume(found.grid, found.voxels, "windowed"), beyond=np.nan)
    assert turned.grid == volume.grid
    for made, whole in ((found, found.voxels), (turned, volume.voxels)):
        for axis, size in enumerate(made.grid.shape):
            for index in range(size):
                np.testing.assert_array_equal(
                    made.cut(axis, index), np.take(whole, index, axis=axis)
                )


def test_a_map_of_another_size_is_refused() -> None:
    prepared = prepared_phantom("maseres_published", "coronal")
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) does not fit"):
        back_to_scan(np.zeros((2, 3, 4), np.float32), prepared)

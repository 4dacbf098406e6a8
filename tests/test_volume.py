"""Grid and Volume: every voxel keeps its place in the patient, whatever is done to the axes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chestct.errors import GridError
from chestct.volume import (
    CANONICAL_DIRECTION,
    MAX_VOXELS,
    Grid,
    ScanSource,
    Volume,
    canonical_axes,
    to_canonical,
)

SMALL = st.integers(1, 6)
shapes = st.tuples(SMALL, SMALL, SMALL)
sizes_mm = st.floats(0.25, 8.0)
spacings = st.tuples(sizes_mm, sizes_mm, sizes_mm)
places_mm = st.floats(-500, 500)
origins = st.tuples(places_mm, places_mm, places_mm)


@st.composite
def directions(draw: st.DrawFn, max_tilt: float = 3.2) -> tuple[tuple[float, float, float], ...]:
    """Any three orthonormal vectors, of either handedness."""
    matrix = np.eye(3)
    for first, second in [(0, 1), (1, 2), (0, 2)]:
        angle = draw(st.floats(-max_tilt, max_tilt))
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    order = draw(st.permutations([0, 1, 2]))
    rows = (matrix[order] * np.array(signs)[:, None]).tolist()
    return tuple((row[0], row[1], row[2]) for row in rows)


# The parts of a Grid. It is made in the test: beartype draws random items of a long tuple to check,
# and hypothesis wants no randomness but its own inside a strategy.
grid_parts = st.tuples(shapes, spacings, origins, directions())


def numbered(grid: Grid) -> Volume:
    """Every voxel a number of its own, by which it is found again."""
    return Volume(grid, np.arange(grid.num_voxels, dtype=np.int32).reshape(grid.shape))


def position_of_every_number(volume: Volume) -> np.ndarray:
    """Patient positions, row i that of the voxel with number i."""
    indices = np.indices(volume.grid.shape).reshape(3, -1).T.astype(np.float64)
    positions = volume.grid.to_patient(indices)
    return positions[np.argsort(volume.voxels.reshape(-1))]


@given(grid_parts)
def test_canonical_volumes_keep_every_voxel_in_its_place(parts: tuple) -> None:
    grid = Grid(*parts)
    volume = numbered(grid)
    canonical = to_canonical(volume)
    np.testing.assert_allclose(
        position_of_every_number(canonical), position_of_every_number(volume), atol=1e-9
    )


@given(grid_parts)
def test_canonical_axes_point_to_head_back_and_left(parts: tuple) -> None:
    grid = Grid(*parts)
    turned = to_canonical(numbered(grid)).grid
    order, _ = canonical_axes(grid)
    assert sorted(order) == [0, 1, 2]
    towards = [np.dot(turned.direction[i], CANONICAL_DIRECTION[i]) for i in range(3)]
    assert min(towards) >= 0


@given(st.tuples(shapes, spacings, origins, directions(max_tilt=0.7)))
def test_an_axis_close_to_the_body_axis_becomes_depth(parts: tuple) -> None:
    grid = Grid(*parts)
    order, _ = canonical_axes(grid)
    closeness = np.abs(np.asarray(grid.direction)[:, 2])
    if np.sort(closeness)[-1] > np.sqrt(0.5) + 1e-6:
        assert order[0] == int(closeness.argmax())


@given(grid_parts)
def test_turning_twice_is_turning_once(parts: tuple) -> None:
    grid = Grid(*parts)
    once = to_canonical(numbered(grid))
    assert to_canonical(once) is once


ORIENTATIONS = list(
    itertools.product(itertools.permutations(range(3)), itertools.product([1.0, -1.0], repeat=3))
)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_all_48_orientations_of_one_patient_become_the_same_volume(
    order: tuple[int, int, int], signs: tuple[float, float, float]
) -> None:
    expected = numbered(Grid((2, 3, 4), (2.0, 0.7, 0.8), (10.0, 20.0, 30.0)))
    axes = expected.grid.index_to_patient[:3, :3].T
    origin = np.array(expected.grid.origin_mm)
    voxels = expected.voxels.transpose(order)
    for position, axis in enumerate(order):
        if signs[position] < 0:
            voxels = np.flip(voxels, position)
            origin = origin + axes[axis] * (expected.grid.shape[axis] - 1)
    grid = Grid(
        voxels.shape,
        tuple(expected.grid.spacing_mm[a] for a in order),
        tuple(origin.tolist()),
        tuple(
            tuple(s * x for x in expected.grid.direction[a])
            for a, s in zip(order, signs, strict=True)
        ),
    )
    canonical = to_canonical(Volume(grid, voxels))
    np.testing.assert_array_equal(canonical.voxels, expected.voxels)
    assert canonical.grid.shape == expected.grid.shape
    assert canonical.grid.spacing_mm == expected.grid.spacing_mm
    assert canonical.grid.origin_mm == pytest.approx(expected.grid.origin_mm)
    assert np.array_equal(canonical.grid.direction, expected.grid.direction)


def test_the_usual_axial_scan_comes_back_as_it_is() -> None:
    volume = numbered(Grid((2, 3, 4), (2.0, 0.7, 0.8)))
    assert to_canonical(volume) is volume


def test_to_canonical_neither_copies_nor_changes_its_argument() -> None:
    grid = Grid((2, 3, 4), (2.0, 0.7, 0.8), direction=((0, 0, -1.0), (0, 1.0, 0), (1.0, 0, 0)))
    volume = numbered(grid)
    before = volume.voxels.copy()
    canonical = to_canonical(volume)
    assert np.shares_memory(canonical.voxels, volume.voxels)
    assert volume.grid is grid
    np.testing.assert_array_equal(volume.voxels, before)
    np.testing.assert_array_equal(canonical.voxels, before[::-1])


def test_to_canonical_keeps_unit_source_and_warnings() -> None:
    grid = Grid((1, 1, 1), (1.0, 1.0, 1.0), direction=((0, 0, -1.0), (0, 1.0, 0), (1.0, 0, 0)))
    volume = Volume(grid, np.zeros((1, 1, 1)), "windowed", ScanSource("tiff"), ("a warning",))
    canonical = to_canonical(volume)
    assert (canonical.unit, canonical.source, canonical.warnings) == (
        "windowed",
        ScanSource("tiff"),
        ("a warning",),
    )


@given(grid_parts, st.lists(st.tuples(places_mm, places_mm, places_mm), min_size=1, max_size=5))
def test_index_and_patient_positions_are_inverse(parts: tuple, points: list) -> None:
    grid = Grid(*parts)
    points_mm = np.array(points, dtype=np.float64)
    np.testing.assert_allclose(grid.to_patient(grid.to_index(points_mm)), points_mm, atol=1e-6)
    np.testing.assert_allclose(grid.index_to_patient @ grid.patient_to_index, np.eye(4), atol=1e-9)


@given(grid_parts)
def test_first_voxel_is_at_the_origin_and_steps_are_the_spacing(parts: tuple) -> None:
    grid = Grid(*parts)
    np.testing.assert_allclose(grid.to_patient(np.zeros(3)), grid.origin_mm, atol=1e-9)
    for axis in range(3):
        step = grid.to_patient(np.eye(3)[axis]) - grid.to_patient(np.zeros(3))
        assert np.linalg.norm(step) == pytest.approx(grid.spacing_mm[axis])
        np.testing.assert_allclose(step / grid.spacing_mm[axis], grid.direction[axis], atol=1e-9)


steps = st.floats(0.1, 4.0) | st.floats(-4.0, -0.1)
starts = st.floats(-10.0, 10.0)


@given(
    grid_parts,
    st.tuples(starts, starts, starts),
    st.tuples(steps, steps, steps),
    shapes,
    st.tuples(starts, starts, starts),
)
def test_a_moved_grid_has_voxel_i_at_start_plus_i_steps(
    parts: tuple, start: tuple, step: tuple, shape: tuple, index: tuple
) -> None:
    grid = Grid(*parts)
    moved = grid.moved(start, step, shape)
    assert moved.shape == shape
    new_index = np.array(index, dtype=np.float64)
    old_index = np.array(start) + new_index * np.array(step)
    np.testing.assert_allclose(moved.to_patient(new_index), grid.to_patient(old_index), atol=1e-8)
    np.testing.assert_allclose(grid.to_index(moved.to_patient(new_index)), old_index, atol=1e-6)


@given(grid_parts, st.tuples(starts, starts, starts), st.tuples(steps, steps, steps))
def test_moving_there_and_back_is_no_move(parts: tuple, start: tuple, step: tuple) -> None:
    grid = Grid(*parts)
    there = grid.moved(start, step, grid.shape)
    back = there.moved(
        tuple(-a / b for a, b in zip(start, step, strict=True)),
        tuple(1 / b for b in step),
        grid.shape,
    )
    np.testing.assert_allclose(back.index_to_patient, grid.index_to_patient, atol=1e-7)


def test_moving_does_not_change_the_grid_it_starts_from() -> None:
    grid = Grid((4, 4, 4), (1.0, 1.0, 1.0))
    grid.moved((1.0, 1.0, 1.0), (-2.0, 1.0, 1.0), (2, 2, 2))
    assert grid == Grid((4, 4, 4), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("shape", "step"), [((2, 2, 2), (0.0, 1.0, 1.0)), ((0, 2, 2), (1.0, 1.0, 1.0))]
)
def test_an_impossible_move_is_refused(shape: tuple, step: tuple) -> None:
    with pytest.raises(GridError):
        Grid((4, 4, 4), (1.0, 1.0, 1.0)).moved((0.0, 0.0, 0.0), step, shape)


def test_sizes_of_a_grid() -> None:
    grid = Grid((10, 20, 30), (2.0, 0.5, 0.25))
    assert grid.num_voxels == 6000
    assert grid.extent_mm == (20.0, 10.0, 7.5)
    assert grid.voxel_ml == pytest.approx(0.00025)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": (0, 1, 1)}, "at least one voxel"),
        ({"shape": (2**11, 2**11, 2**9)}, f"{MAX_VOXELS} are allowed"),
        ({"shape": (2**40, 2**40, 2**40)}, f"{MAX_VOXELS} are allowed"),
        ({"spacing_mm": (0.0, 1.0, 1.0)}, "positive in mm"),
        ({"spacing_mm": (1.0, -1.0, 1.0)}, "positive in mm"),
        ({"spacing_mm": (1.0, 1.0, float("nan"))}, "positive in mm"),
        ({"spacing_mm": (1.0, 1.0, float("inf"))}, "positive in mm"),
        ({"origin_mm": (0.0, float("nan"), 0.0)}, "origin must be finite"),
        ({"direction": ((1.0, 0, 0), (1.0, 0, 0), (0, 0, 1.0))}, "orthonormal"),
        ({"direction": ((2.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0))}, "orthonormal"),
        ({"direction": ((1.0, 0, 0), (0, 1.0, 0))}, "orthonormal"),
        ({"direction": ((float("nan"), 0, 0), (0, 1.0, 0), (0, 0, 1.0))}, "orthonormal"),
    ],
)
def test_impossible_grids_are_refused(fields: dict, message: str) -> None:
    usual: dict = {"shape": (2, 2, 2), "spacing_mm": (1.0, 1.0, 1.0)}
    with pytest.raises(GridError, match=message):
        Grid(**(usual | fields))


def test_the_largest_grid_is_allowed() -> None:
    assert Grid((2**10, 2**10, 2**10), (1.0, 1.0, 1.0)).num_voxels == MAX_VOXELS


def test_voxels_that_do_not_fit_the_grid_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 3\) do not fit a grid of \(2, 2, 2\)"):
        Volume(Grid((2, 2, 2), (1.0, 1.0, 1.0)), np.zeros((2, 2, 3)))


def test_voxels_of_a_volume_are_read_only_and_the_given_array_is_not() -> None:
    values = np.zeros((2, 2, 2))
    volume = Volume(Grid((2, 2, 2), (1.0, 1.0, 1.0)), values)
    with pytest.raises(ValueError, match="read-only"):
        volume.voxels[0, 0, 0] = 1
    values[0, 0, 0] = 1
    assert volume.voxels.shape == (2, 2, 2)


def test_other_voxels_keep_the_scan_they_belong_to() -> None:
    grid = Grid((2, 2, 2), (1.0, 1.0, 1.0))
    volume = Volume(grid, np.zeros((2, 2, 2)), "windowed", ScanSource("nifti"), ("a warning",))
    same_grid = volume.with_voxels(np.ones((2, 2, 2)))
    assert same_grid.grid is grid
    smaller = volume.with_voxels(
        np.ones((1, 2, 2)), grid.moved((1.0, 0, 0), (1.0, 1, 1), (1, 2, 2))
    )
    assert smaller.grid.origin_mm == (0.0, 0.0, 1.0)
    assert (smaller.unit, smaller.source.format, smaller.warnings) == (
        "windowed",
        "nifti",
        ("a warning",),
    )


def test_a_scan_of_more_voxels_than_are_held_says_what_to_do() -> None:
    with pytest.raises(GridError, match=r"are allowed\. Have thicker slices reconstructed"):
        Grid(shape=(1100, 1024, 1024), spacing_mm=(0.3, 0.3, 0.3))

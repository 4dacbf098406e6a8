from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chestct.errors import ReadError
from chestct.readers.dicom_geometry import Plane, plan_stack
from chestct.readers.dicom_series import _shifted
from chestct.readers.dicom_slices import _same_plane_kind

PLANE = Plane(
    position_mm=(-10.0, -20.0, 0.0),
    across=(1.0, 0.0, 0.0),
    down=(0.0, 1.0, 0.0),
    spacing_mm=(0.5, 0.75),
    shape=(8, 9),
    thickness_mm=2.0,
)


def planes_at(heights: list[float], lean: tuple[float, float] = (0.0, 0.0)) -> list[Plane]:
    return [
        replace(PLANE, position_mm=(-10.0 + lean[0] * z, -20.0 + lean[1] * z, z)) for z in heights
    ]


def test_normal_is_right_handed_with_row_and_column() -> None:
    assert PLANE.normal == (0.0, 0.0, 1.0)
    assert replace(PLANE, across=(-1.0, 0.0, 0.0)).normal[2] == -1.0


def test_even_stack_is_taken_as_it_is() -> None:
    plan = plan_stack(planes_at([1.0, 3.0, 5.0]), ())
    assert plan.is_exact
    assert plan.warnings == ()
    assert plan.grid.spacing_mm == (2.0, 0.5, 0.75)
    assert plan.grid.origin_mm == (-10.0, -20.0, 1.0)


@given(
    spacing=st.sampled_from([0.6, 0.625, 0.7, 1.0, 1.25, 2.5, 5.0]),
    num=st.integers(2, 400),
    start=st.floats(-500, 500),
)
def test_positions_rounded_to_a_tenth_of_a_mm_count_as_even(
    spacing: float, num: int, start: float
) -> None:
    heights = [round(start + i * spacing, 1) for i in range(num)]
    plan = plan_stack(planes_at(heights), ())
    assert plan.is_exact
    assert plan.grid.shape[0] == num
    assert math.isclose(plan.grid.spacing_mm[0], spacing, abs_tol=0.11 / (num - 1))


def test_one_missing_slice_is_interpolated_with_a_warning() -> None:
    plan = plan_stack(planes_at([0.0, 2.0, 6.0, 8.0]), ())
    assert plan.taps == ((0, 0, 0.0), (1, 1, 0.0), (1, 2, 0.5), (2, 2, 0.0), (3, 3, 0.0))
    assert plan.grid.spacing_mm[0] == 2.0
    (warning,) = plan.warnings
    assert "1 slice(s) are missing in 1 place(s)" in warning
    assert "4.0 mm, from 2.0 to 6.0 mm" in warning
    assert "interpolated linearly" in warning


def test_two_missing_slices_in_a_row_are_refused_with_the_option() -> None:
    with pytest.raises(ReadError, match=r"2 slice\(s\) are missing .* 6.0 mm, from 2.0 to 8.0 mm"):
        plan_stack(planes_at([0.0, 2.0, 8.0, 10.0, 12.0]), ())
    with pytest.raises(ReadError, match="--allow-gap"):
        plan_stack(planes_at([0.0, 2.0, 8.0, 10.0, 12.0]), {"tilt"})


def test_two_missing_slices_in_a_row_are_interpolated_when_allowed() -> None:
    plan = plan_stack(planes_at([0.0, 2.0, 8.0, 10.0, 12.0]), {"gap"})
    assert plan.grid.shape[0] == 7
    low, high, share = plan.taps[2]
    assert (low, high) == (1, 2)
    assert math.isclose(share, 1 / 3)
    assert "2 slice(s) are missing" in plan.warnings[0]


def test_several_single_gaps_are_counted() -> None:
    plan = plan_stack(planes_at([0.0, 2.0, 6.0, 8.0, 12.0, 14.0, 16.0]), ())
    assert "2 slice(s) are missing in 2 place(s)" in plan.warnings[0]


def test_uneven_stack_is_interpolated_with_a_warning() -> None:
    plan = plan_stack(planes_at([0.0, 2.0, 4.0, 6.5, 8.0, 10.0]), ())
    assert plan.grid.shape[0] == 6
    assert not plan.is_exact
    (warning,) = plan.warnings
    assert "unevenly spaced, 1.50 to 2.50 mm apart (widest from 4.0 to 6.5 mm" in warning
    low, high, share = plan.taps[3]
    assert (low, high) == (2, 3)
    assert math.isclose(share, 0.8)


@given(
    gaps=st.lists(st.floats(1.0, 2.4), min_size=2, max_size=30),
    slope=st.floats(-5, 5),
)
@example(gaps=[1.0, 1.0, 1.3], slope=1.0)
def test_interpolation_keeps_what_is_linear_in_height(gaps: list[float], slope: float) -> None:
    heights = np.concatenate([[0.0], np.cumsum(gaps)])
    plan = plan_stack(planes_at(list(heights)), {"gap"})
    values = heights * slope
    found = [values[low] * (1 - share) + values[high] * share for low, high, share in plan.taps]
    places = np.arange(len(plan.taps)) * plan.grid.spacing_mm[0]
    # A slice nearer than the tolerance to its place stands there as it is; where positions have
    # one decimal, they are rounded.
    rounding_mm = 0.101 if np.allclose(heights, np.round(heights, 1), rtol=0, atol=1e-6) else 0.0
    tolerance_mm = max(rounding_mm, 0.02 * plan.grid.spacing_mm[0])
    assert np.abs(np.array(found) - places * slope).max() <= abs(slope) * tolerance_mm + 1e-6
    assert math.isclose(places[-1], heights[-1], rel_tol=1e-9)


def test_single_slice_takes_its_thickness_for_a_spacing() -> None:
    plan = plan_stack([PLANE], ())
    assert plan.grid.spacing_mm[0] == 2.0
    assert plan.warnings == ("There is 1 slice only, not a whole scan.",)
    unknown = plan_stack([replace(PLANE, thickness_mm=0.0)], ())
    assert "thickness is unknown" in unknown.warnings[0]


def test_absurd_number_of_interpolated_slices_is_refused() -> None:
    heights = [0.0, 0.02, 0.04, 5000.0]
    with pytest.raises(ReadError, match="would be interpolated to"):
        plan_stack(planes_at(heights), {"gap"})


def test_tilt_is_refused_with_its_degrees_and_the_option() -> None:
    planes = planes_at([0.0, 2.0, 4.0], lean=(0.0, math.tan(math.radians(18.5))))
    with pytest.raises(ReadError, match=r"18.5 degrees .*--allow-tilt"):
        plan_stack(planes, {"gap"})


def test_tilt_is_measured_whatever_way_the_stack_leans() -> None:
    slope = math.tan(math.radians(10.0)) / math.sqrt(2)
    with pytest.raises(ReadError, match=r"10\.0 degrees"):
        plan_stack(planes_at([0.0, 2.0, 4.0], lean=(slope, -slope)), ())


def test_tilt_that_is_allowed_shifts_slices_within_their_planes() -> None:
    plan = plan_stack(planes_at([0.0, 2.0, 4.0], lean=(0.0, 0.5)), {"tilt"})
    assert plan.shifts == ((0.0, 0.0), (2.0, 0.0), (4.0, 0.0))
    assert plan.grid.shape == (3, 12, 9)
    assert plan.grid.origin_mm == (-10.0, -20.0, 0.0)
    assert "leans by 26.6 degrees" in plan.warnings[0]


def test_stack_that_leans_backwards_starts_where_its_last_slice_does() -> None:
    plan = plan_stack(planes_at([0.0, 2.0, 4.0], lean=(0.0, -0.5)), {"tilt"})
    assert plan.shifts == ((4.0, 0.0), (2.0, 0.0), (0.0, 0.0))
    assert plan.grid.origin_mm == (-10.0, -22.0, 0.0)


def test_drift_below_one_degree_is_mended_with_a_warning() -> None:
    plan = plan_stack(planes_at([i * 10.0 for i in range(10)], lean=(0.01, 0.0)), ())
    assert plan.shifts is not None
    assert "shifted by up to 0.9 mm" in plan.warnings[0]


def test_drift_below_half_a_pixel_is_left_alone() -> None:
    plan = plan_stack(planes_at([i * 2.0 for i in range(10)], lean=(0.01, 0.0)), ())
    assert plan.is_exact


def test_oblique_stack_along_its_normal_does_not_count_as_tilted() -> None:
    cos, sin = math.cos(0.3), math.sin(0.3)
    oblique = replace(PLANE, down=(0.0, cos, -sin))
    planes = [replace(oblique, position_mm=(0.0, sin * i, cos * i)) for i in range(5)]
    plan = plan_stack(planes, ())
    assert plan.is_exact
    assert np.allclose(plan.grid.direction[0], (0.0, sin, cos))


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ({}, True),
        ({"position_mm": (5.0, 5.0, 5.0)}, True),
        ({"spacing_mm": (0.5001, 0.75)}, True),
        ({"spacing_mm": (0.51, 0.75)}, False),
        ({"shape": (9, 8)}, False),
        ({"across": (0.0, 1.0, 0.0), "down": (0.0, 0.0, -1.0)}, False),
        ({"down": (0.0, math.cos(0.001), math.sin(0.001))}, True),
        ({"down": (0.0, math.cos(0.02), math.sin(0.02))}, False),
    ],
)
def test_planes_are_of_one_kind_by_size_spacing_and_orientation(changed, is_same: bool) -> None:
    assert _same_plane_kind(PLANE, replace(PLANE, **changed)) is is_same


def test_whole_shift_moves_values_exactly_and_leaves_air() -> None:
    slab = np.arange(6, dtype=np.int16).reshape(2, 3)
    moved = _shifted(slab, (1.0, 2.0), (4, 5))
    assert np.array_equal(moved[1:3, 2:5], slab)
    assert (moved[0] == -1024).all()
    assert moved.dtype == np.int16


@given(down=st.floats(0, 3), across=st.floats(0, 3))
def test_shift_keeps_what_is_linear_within_a_plane(down: float, across: float) -> None:
    row, column = np.mgrid[:10, :12].astype(np.float32)
    slab = 3 * row - 2 * column
    moved = _shifted(slab, (down, across), (13, 15))
    inside = moved[5:9, 5:9]
    row, column = np.mgrid[5:9, 5:9]
    assert np.allclose(inside, 3 * (row - down) - 2 * (column - across), atol=1e-3)


def test_shift_does_not_change_its_argument() -> None:
    slab = np.arange(6, dtype=np.int16).reshape(2, 3)
    before = slab.copy()
    _shifted(slab, (0.5, 0.5), (3, 4))
    assert np.array_equal(slab, before)

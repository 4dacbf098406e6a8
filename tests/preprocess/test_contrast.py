"""Contrast limits: order statistics, and what `imadjust` makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from chestct.preprocess.contrast import (
    StretchLimits,
    saturation_limits,
    slice_limits,
    volume_limits,
)
from chestct.preprocess.placement import _stretched

FULL = StretchLimits(-1024.0, 3071.0)


def test_of_a_hundred_values_one_saturates_at_each_end() -> None:
    values = np.arange(1, 101, dtype=np.int16)[None, None]
    limits = saturation_limits(values, full_range=FULL)
    assert (limits.low, limits.high) == (2.0, 99.0)


def test_a_share_between_two_values_saturates_fewer_rather_than_more() -> None:
    values = np.arange(991, dtype=np.int16)[None, None]
    limits = saturation_limits(values, full_range=FULL)
    assert (limits.low, limits.high) == (9.0, 981.0)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
def test_counting_16_bit_values_and_sorting_others_agree(dtype: type) -> None:
    values = np.random.default_rng(0).integers(0, 255, (3, 20, 30))
    assert saturation_limits(values.astype(dtype), full_range=FULL) == saturation_limits(
        values.astype(np.int16), full_range=FULL
    )


def test_the_whole_range_of_16_bits_is_counted() -> None:
    values = np.array([-32768, -1, 0, 32767], dtype=np.int16).reshape(1, 2, 2)
    limits = saturation_limits(values, 0.0, full_range=FULL)
    assert (limits.low, limits.high) == (-32768.0, 32767.0)


def test_a_slice_of_one_value_keeps_its_min_max_scaled_value() -> None:
    voxels = np.zeros((2, 4, 4), dtype=np.int16)
    voxels[1] = np.arange(16).reshape(4, 4)
    limits = slice_limits(voxels)
    assert limits[0] == volume_limits(voxels)
    assert np.all(_stretched(voxels, limits)[0] == 0.0)


def test_a_constant_scan_scales_to_zero() -> None:
    voxels = np.full((2, 3, 4), 7, dtype=np.int16)
    assert np.all(volume_limits(voxels).apply(voxels) == 0.0)


def test_stretched_values_run_from_zero_to_one_and_are_cut_off() -> None:
    stretched = StretchLimits(0.0, 100.0).apply(np.array([-5, 0, 25, 100, 400], dtype=np.int16))
    assert stretched.dtype == np.float32
    np.testing.assert_allclose(stretched, [0.0, 0.0, 0.25, 1.0, 1.0], atol=1e-6)


def test_each_slice_is_stretched_between_its_own_limits_and_the_scan_stays_as_it_was() -> None:
    voxels = np.random.default_rng(1).integers(-1000, 1000, (3, 40, 50)).astype(np.int16)
    before = voxels.copy()
    stretched = _stretched(voxels, slice_limits(voxels))
    assert np.array_equal(voxels, before)
    for plane in stretched:
        assert plane.min() == 0.0
        assert plane.max() == 1.0
        assert 0.005 < np.mean(plane == 0.0) < 0.012

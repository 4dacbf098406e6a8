import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chestct.preprocess.resample import (
    _keys_cubic,
    block_reader,
    factor_map,
    grid_map,
    resample,
    resize_map,
    spline_map,
)


def textbook_cubic_convolution(samples: np.ndarray, position: float) -> float:
    """Keys 1981 in its own words: four samples, one beyond each end extrapolated by Eq. 19, 25."""
    extended = np.concatenate(
        [
            [3 * samples[0] - 3 * samples[1] + samples[2]],
            samples,
            [3 * samples[-1] - 3 * samples[-2] + samples[-3]],
        ]
    )
    k = min(int(np.floor(position)), len(samples) - 2)
    s = position - k
    before, at, after, beyond = extended[k : k + 4]
    return float(
        before * (-(s**3) + 2 * s**2 - s) / 2
        + at * (3 * s**3 - 5 * s**2 + 2) / 2
        + after * (-3 * s**3 + 4 * s**2 + s) / 2
        + beyond * (s**3 - s**2) / 2
    )


def test_published_grid_of_the_papers_example_is_257_by_257_by_294():
    assert factor_map(512, 2.0, "inclusive").new_size == 257
    assert factor_map(176, 0.6, "inclusive").new_size == 294


def test_paper_grid_of_the_papers_example_is_256_by_256_by_293():
    assert factor_map(512, 2.0, "whole_steps").new_size == 256
    assert factor_map(176, 0.6, "whole_steps").new_size == 293


@given(
    size=st.integers(4, 40),
    factor=st.floats(0.3, 2.5),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_factor_grid_is_the_textbook_kernel(size, factor, seed):
    samples = np.random.default_rng(seed).uniform(-1, 1, size)
    axis = factor_map(size, factor, "inclusive")
    ours = axis.weights @ samples
    for i in range(axis.new_size):
        position = i * factor
        is_inside = position <= size - 1 + 1e-9
        expected = textbook_cubic_convolution(samples, position) if is_inside else 0.0
        assert ours[i] == pytest.approx(expected, abs=1e-5)


def test_published_grid_holds_zero_past_the_last_voxel():
    ours = factor_map(5, 0.6, "inclusive").weights @ np.ones(5)
    np.testing.assert_allclose(ours, [1, 1, 1, 1, 1, 1, 1, 0, 0], atol=1e-6)


def test_paper_grid_repeats_the_last_voxel():
    axis = factor_map(5, 0.6, "whole_steps")
    assert (axis.weights @ np.arange(5.0))[-1] == pytest.approx(4.0)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_axes_keep_a_constant(size):
    for axis in (
        factor_map(size, 0.5, "whole_steps"),
        resize_map(size, 7),
        spline_map(size, 7),
        grid_map(size, size / 14 - 0.5, size / 7, 7, is_mask=True),
    ):
        np.testing.assert_allclose(axis.weights.sum(axis=1), 1.0, atol=1e-6)


def test_cubic_kernel_is_one_at_zero_and_zero_at_the_other_voxels():
    np.testing.assert_allclose(_keys_cubic(np.array([-2.0, -1.0, 0.0, 1.0, 2.0])), [0, 0, 1, 0, 0])


@pytest.mark.parametrize(("size", "new_size"), [(40, 224), (257, 224), (90, 13), (10, 10)])
def test_resize_keeps_a_ramp_where_it_was(size, new_size):
    axis = resize_map(size, new_size)
    ours = axis.weights @ np.arange(size, dtype=np.float64)
    positions = axis.start + axis.step * np.arange(new_size)
    margin = int(np.ceil(3 * max(1.0, new_size / size)))
    # A widened kernel is not exact on a ramp, only unbiased to a few hundredths of a voxel.
    tolerance = 1e-3 if new_size >= size else 0.05
    np.testing.assert_allclose(ours[margin:-margin], positions[margin:-margin], atol=tolerance)


def test_resize_keeps_the_outer_faces_in_place():
    axis = resize_map(100, 40)
    assert axis.start - axis.step / 2 == pytest.approx(-0.5)
    assert axis.start + 39.5 * axis.step == pytest.approx(99.5)


def test_spline_keeps_the_centres_of_the_end_voxels():
    axis = spline_map(100, 40)
    assert axis.start == 0.0
    assert axis.start + 39 * axis.step == pytest.approx(99.0)


def test_coarse_grid_averages_noise_instead_of_sampling_it():
    noise = np.random.default_rng(0).normal(size=4000)
    spread = {
        step: (grid_map(4000, 2.0, step, int(3900 / step)).weights @ noise).std()
        for step in (1.0, 4.0)
    }
    # White noise averaged over four voxels falls to half.
    assert spread[4.0] < 0.6 * spread[1.0]


def test_grid_beyond_the_scan_holds_zero():
    axis = grid_map(10, -5.0, 1.0, 20)
    held = axis.weights @ np.full(10, 7.0)
    np.testing.assert_allclose(held[5:15], 7.0, rtol=1e-6)
    assert not held[:5].any()
    assert not held[15:].any()


@pytest.mark.parametrize("step", [0.4, 1.0, 2.7])
def test_mask_weights_are_shares(step):
    weights = grid_map(30, 3.3, step, 9, is_mask=True).weights
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)


def test_map_of_a_part_reads_only_that_part():
    axis = resize_map(10, 4).within(slice(20, 30), 50)
    assert axis.weights.shape == (4, 50)
    assert axis.used == slice(20, 30)
    assert axis.start == resize_map(10, 4).start + 20


def test_map_of_an_axis_with_zeros_skips_them():
    axis = resize_map(50, 50).only(slice(12, 20))
    assert axis.used == slice(12, 20)


def test_map_without_weights_still_reads_a_voxel():
    assert resize_map(10, 4).only(slice(3, 3)).used == slice(0, 1)


def test_three_maps_are_applied_each_to_its_own_axis():
    values = np.random.default_rng(1).normal(size=(20, 9, 11)).astype(np.float32)
    maps = (resize_map(20, 6), spline_map(9, 12), grid_map(11, 1.0, 0.7, 8))
    expected = np.einsum(
        "dhw,zd,yh,xw->zyx", values, maps[0].weights, maps[1].weights, maps[2].weights
    )
    np.testing.assert_allclose(resample(block_reader(values), maps), expected, atol=1e-5)


def test_resampling_does_not_mutate_what_it_reads():
    values = np.random.default_rng(2).normal(size=(8, 9, 10)).astype(np.float32)
    before = values.copy()
    resample(block_reader(values), (resize_map(8, 4), resize_map(9, 4), resize_map(10, 4)))
    np.testing.assert_array_equal(values, before)

"""Noise, blur, table and clothing."""

from __future__ import annotations

import numpy as np
import pytest

from chestct.simulate.thorax import (
    KERNELS,
    Scanner,
    _blur_plane,
    _clothing_lines,
    _scan_noise,
    _table_plane,
    draw_scanner,
)

SPACING = (2.0, 0.7, 0.7)


def _noise(kernel: str, streak: float = 0.0) -> np.ndarray:
    streaks = np.full(6, streak, dtype=np.float32)
    rng = np.random.default_rng(0)
    return _scan_noise(rng, (6, 128, 128), SPACING, KERNELS[kernel], streaks)


def _along(noise: np.ndarray, axis: int) -> float:
    first = np.take(noise, range(noise.shape[axis] - 1), axis=axis)
    second = np.take(noise, range(1, noise.shape[axis]), axis=axis)
    return float((first * second).mean() / noise.var())


@pytest.mark.parametrize("kernel", KERNELS)
def test_noise_has_unit_deviation_and_no_mean(kernel: str) -> None:
    noise = _noise(kernel)
    assert abs(noise.mean()) < 0.05
    assert noise.std() == pytest.approx(1, abs=0.05)


def test_noise_is_correlated_as_in_a_real_scan() -> None:
    """Two real scans (D40s, 2 mm): 0.35 to 0.5 between pixels, 0.23 to 0.29 between slices."""
    noise = _noise("D40s")
    assert 0.3 < _along(noise, 2) < 0.6
    assert 0.15 < _along(noise, 0) < 0.35


def test_sharp_kernels_make_finer_noise() -> None:
    smooth, sharp = _along(_noise("B30f"), 2), _along(_noise("B70f"), 2)
    assert sharp < smooth - 0.2


def test_shoulders_streak_sideways() -> None:
    noise = _noise("D40s", streak=6.0)
    assert _along(noise, 2) > _along(noise, 1) + 0.15


@pytest.mark.parametrize("kernel", ["B30f", "B70f"])
def test_blur_keeps_the_mean_and_only_sharp_kernels_overshoot(kernel: str) -> None:
    edge = np.full((64, 64), -1000, dtype=np.float32)
    edge[:, 32:] = 0
    blurred = _blur_plane(edge, KERNELS[kernel], 0.7)
    assert blurred[:, 20:44].mean() == pytest.approx(edge[:, 20:44].mean(), abs=5)
    assert (blurred.max() > 20) == (kernel == "B70f")


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_the_table_lies_behind_the_patient(kind: int) -> None:
    x = np.arange(-250, 250, 1.0, dtype=np.float32)[None]
    y = np.arange(-200, 250, 1.0, dtype=np.float32)[:, None]
    plane = _table_plane(Scanner(KERNELS["B30f"], 10.0, 120.0, kind, False, False), x, y)
    assert plane is not None
    assert plane[:, 250].max() > 400
    # Its edges rise beside the patient; behind the back it stays behind.
    assert plane[: 200 + 100, 200:300].max() < 60


def test_a_scanner_without_table_adds_nothing() -> None:
    line = np.zeros((1, 4), dtype=np.float32)
    scanner = Scanner(KERNELS["B30f"], 10.0, None, 0, False, False)
    assert _table_plane(scanner, line, line.T) is None


def test_cloth_lies_outside_the_skin() -> None:
    body = np.broadcast_to(np.arange(-40, 40, dtype=np.float32)[:, None], (80, 100)).copy()
    x = np.arange(100, dtype=np.float32)[None]
    plane = _clothing_lines(np.random.default_rng(1), body, x, 1.0)
    assert plane[body > 0].max() > 10
    assert plane[body < -4].max() < 1


def test_scanners_differ() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_scanner(rng, 100.0) for _ in range(40)]
    assert {scanner.kernel.name for scanner in drawn} == set(KERNELS)
    assert {scanner.table_kind for scanner in drawn} == {0, 1, 2}
    assert {scanner.is_padded for scanner in drawn} == {True, False}
    assert 8 <= min(s.noise_hu for s in drawn) < max(s.noise_hu for s in drawn) <= 45

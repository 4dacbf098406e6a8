from __future__ import annotations

import numpy as np

from chestct.writers.preview import _PANEL_PX, _picture_of_heat


def drawn(heat: np.ndarray) -> np.ndarray:
    slice_values = np.full((8, 8), 0.5, dtype=np.float32)
    return np.asarray(_picture_of_heat(slice_values, heat, "Grad-CAM for CAP."))


def test_cold_pixels_stay_grey_and_hot_ones_are_painted_only_on_the_right() -> None:
    heat = np.zeros((8, 8), dtype=np.float32)
    heat[:4, :4] = 1
    picture = drawn(heat)
    left, right = picture[:_PANEL_PX, :_PANEL_PX], picture[:_PANEL_PX, _PANEL_PX:]
    assert np.abs(left.astype(int) - 127.5).max() < 1
    assert np.array_equal(right[-1, -1], left[-1, -1])
    red, _, blue = right[2, 2].astype(int).tolist()
    assert red > blue + 50


def test_a_caption_stands_below_both_panels() -> None:
    picture = drawn(np.zeros((8, 8), dtype=np.float32))
    assert picture.shape[1] == 2 * _PANEL_PX
    assert picture[_PANEL_PX:].max() > 200


def test_a_map_of_zeros_leaves_both_panels_alike() -> None:
    picture = drawn(np.zeros((8, 8), dtype=np.float32))
    assert np.array_equal(picture[:_PANEL_PX, :_PANEL_PX], picture[:_PANEL_PX, _PANEL_PX:])

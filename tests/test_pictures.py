from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analyses import SALIENT, SHAPE, make_analysis, make_unsuitable

from chestct.pictures import (
    ANALYSED_COLOR,
    Scene,
    _to_gray,
    draw_slice,
    fullest_slice,
    spread_slices,
)
from chestct.volume import Volume


def test_the_window_maps_its_ends_to_black_and_white() -> None:
    gray = _to_gray(np.array([[-2000.0, -1200.0, -500.0, 200.0, 3000.0]]), -1200.0, 200.0)
    assert gray.tolist() == [[0, 0, 128, 255, 255]]


def test_slices_are_spread_over_the_whole_range_without_repeats() -> None:
    assert spread_slices(0, 100, 3) == [4, 50, 96]
    assert spread_slices(5, 7, 8) == [5, 6, 7]
    assert spread_slices(9, 9, 8) == [9]


def test_the_fullest_slice_holds_most_lung() -> None:
    lungs = np.zeros((6, 7, 8), dtype=bool)
    lungs[4, 2, 1:5] = True
    assert fullest_slice(lungs, "axial") == 4
    assert fullest_slice(lungs, "coronal") == 2
    assert fullest_slice(np.zeros((6, 7, 8), dtype=bool), "coronal") == 3


def test_pictures_have_square_millimetres() -> None:
    scene = Scene.of_scan(make_analysis())
    whole = replace(scene, box=tuple((0, size) for size in SHAPE))
    assert whole.picture_height("axial", 800) == 600
    assert whole.picture_height("coronal", 240) == 160
    assert draw_slice(whole, "sagittal", 40, 180).shape == (160, 180, 3)


def test_pictures_are_cropped_to_the_chest() -> None:
    scene = Scene.of_scan(make_analysis())
    (first_slice, past_slice), (top, bottom), (left, right) = scene.box
    filled = [np.flatnonzero(scene.lungs.any(axis=axes)) for axes in ((0, 2), (0, 1))]
    assert (first_slice, past_slice) == (0, SHAPE[0])
    assert (top, bottom) == (filled[0][0] - 10, filled[0][-1] + 11)
    assert left == max(0, filled[1][0] - 11)
    assert right == min(SHAPE[2], filled[1][-1] + 12)


def test_the_head_is_up_in_coronal_pictures() -> None:
    analysis = make_analysis()
    voxels = np.full(SHAPE, -1000, dtype=np.int16)
    voxels[-5:] = 500
    bright_head = replace(analysis, volume=analysis.volume.with_voxels(voxels))
    picture = draw_slice(Scene.of_scan(bright_head), "coronal", 30, 100)
    assert picture[2].mean() > picture[-3].mean() + 50


def test_lungs_are_outlined_in_color_on_a_gray_slice() -> None:
    scene = Scene.of_scan(make_analysis())
    picture = draw_slice(scene, "axial", 20, 200).astype(int)
    bare = draw_slice(replace(scene, lungs=np.zeros(SHAPE, dtype=bool)), "axial", 20, 200)
    assert (np.ptp(bare, axis=2) == 0).all()
    is_blue = picture[:, :, 2] - picture[:, :, 0] > 60
    # Two ellipses of about 40 mm by 100 mm on a picture of 2.2 mm per pixel: their rims, no more.
    assert 100 < is_blue.sum() < 0.1 * is_blue.size


def test_the_analysed_slices_lie_between_two_lines() -> None:
    scene = Scene.of_scan(make_analysis())
    assert scene.analysed == SALIENT
    picture = draw_slice(scene, "coronal", fullest_slice(scene.lungs, "coronal"), 160)
    top, bottom = scene.analysed_rows(picture.shape[0])
    marked = np.flatnonzero((picture == ANALYSED_COLOR).all(axis=(1, 2)))
    assert marked.min() == top
    assert marked.max() == bottom - 1
    depth, height_px = SHAPE[0], picture.shape[0]
    assert top == round((depth - 1 - SALIENT[1]) / depth * height_px)
    assert bottom == round((depth - SALIENT[0]) / depth * height_px)


def test_axial_pictures_show_analysed_slices_with_lung_only() -> None:
    analysis = make_analysis()
    scene = replace(Scene.of_scan(analysis), analysed=(0, SHAPE[0] - 1))
    with_lung = np.flatnonzero(scene.lungs.any(axis=(1, 2)))
    assert scene.shown_slices == (with_lung[0], with_lung[-1])
    without = Scene.of_scan(make_unsuitable())
    assert without.shown_slices == without.analysed


def test_any_storage_order_gives_the_same_picture() -> None:
    analysis = make_analysis()
    turned = _reversed(analysis.volume)
    lungs = _reversed(analysis.prepared.scan_lungs)
    again = replace(analysis, volume=turned, prepared=replace(analysis.prepared, scan_lungs=lungs))
    expected = draw_slice(Scene.of_scan(analysis), "axial", 20, 120)
    np.testing.assert_array_equal(draw_slice(Scene.of_scan(again), "axial", 20, 120), expected)


def test_a_windowed_scan_is_shown_over_its_own_range() -> None:
    analysis = make_analysis()
    bytes_only = np.clip(analysis.volume.voxels // 8 + 128, 0, 255).astype(np.uint8)
    windowed = replace(analysis.volume, voxels=bytes_only, unit="windowed")
    scene = Scene.of_scan(replace(analysis, volume=windowed))
    assert scene.shown_range == (float(bytes_only.min()), float(bytes_only.max()))


def test_a_constant_scan_can_be_drawn() -> None:
    analysis = make_unsuitable()
    constant = np.full(SHAPE, 7, dtype=np.uint8)
    flat = replace(analysis, volume=replace(analysis.volume, voxels=constant, unit="windowed"))
    assert draw_slice(Scene.of_scan(flat), "axial", 3, 50).max() == 0


def test_the_network_input_is_drawn_on_its_own_grid() -> None:
    prepared = make_analysis().prepared
    scene = Scene.of_input(prepared)
    depth, height, width = prepared.input.shape[1:]
    assert scene.analysed == (0, depth - 1)
    assert scene.box == ((0, depth), (0, height), (0, width))
    assert draw_slice(scene, "axial", 5, 90).shape[1] == 90


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_drawing_does_not_change_the_scan(plane: str) -> None:
    analysis = make_analysis()
    before = analysis.volume.voxels.copy()
    draw_slice(Scene.of_scan(analysis), plane, 10, 64)
    np.testing.assert_array_equal(analysis.volume.voxels, before)


def _reversed(volume: Volume) -> Volume:
    """The same patient with depth and width stored the other way round."""
    start = (float(SHAPE[0] - 1), 0.0, float(SHAPE[2] - 1))
    grid = volume.grid.moved(start, (-1.0, 1.0, -1.0), SHAPE)
    return volume.with_voxels(volume.voxels[::-1, :, ::-1], grid)

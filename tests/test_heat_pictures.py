from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analyses import SHAPE, make_analysis
from explained import HOT_SLICE, THRESHOLD, make_explained, scan_heat

from chestct.explain.explanation import HeatMap
from chestct.pictures import (
    _LINE_COLOR,
    HEAT_LEVELS,
    LINE_LEVELS,
    Scene,
    draw_heat,
    draw_slice,
    heat_color,
    heat_palette,
)
from chestct.writers.pages import _tick_planes

# Machado, Oliveira and Fernandes 2009, severity 1.0: what the colour-blind see, linear RGB.
COLOR_VISION = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    "full": np.eye(3).tolist(),
}


def by_place() -> np.ndarray:
    """The palette as (outside or inside the lungs, heat, line, channel)."""
    return heat_palette().reshape(2, HEAT_LEVELS, LINE_LEVELS, 4).astype(float)


def test_a_palette_fits_into_a_png() -> None:
    assert heat_palette().shape[0] <= 256


def test_opacity_rises_with_heat_and_is_fainter_outside_the_lungs() -> None:
    outside, inside = by_place()[:, :, 0, 3]
    assert inside[0] == outside[0] == 0
    assert (np.diff(inside) >= 0).all()
    assert (outside <= inside).all()
    assert outside[-1] < 0.5 * inside[-1]
    # Never so opaque that the lung beneath cannot be seen.
    assert inside[-1] < 0.7 * 255


@pytest.mark.parametrize("vision", COLOR_VISION)
def test_hotter_is_lighter_for_every_kind_of_color_vision(vision: str) -> None:
    color = by_place()[1, :, 0, :3] / 255
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(COLOR_VISION[vision]).T).clip(0, 1)
    light = seen @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > -0.002).all()
    assert light[-1] > 5 * light[0]


def test_the_legend_shows_the_colors_of_the_palette() -> None:
    assert heat_color(0.0)[3] == 0.0
    red, green, blue, opacity = heat_color(1.0)
    np.testing.assert_allclose([red, green, blue, opacity * 255], by_place()[1, -1, 0])


def test_the_layer_is_hot_where_the_heat_is() -> None:
    scene = Scene.of_scan(make_explained())
    layer = draw_heat(scene, "axial", HOT_SLICE, 200, THRESHOLD)
    assert layer.hottest == pytest.approx(1.0, abs=0.02)
    steps = (layer.levels // LINE_LEVELS) % HEAT_LEVELS
    rows, columns = np.nonzero(steps > 0.9 * HEAT_LEVELS)
    (top, bottom), (left, right) = scene.box[1:]
    per_voxel = 200 / (right - left)
    assert rows.mean() / per_voxel + top == pytest.approx((SHAPE[1] - 1) / 2, abs=1.0)
    assert columns.mean() / per_voxel + left == pytest.approx(0.7 * (SHAPE[2] - 1), abs=1.0)
    assert bottom > top


def test_the_highlighted_share_is_of_the_lung_in_the_slice() -> None:
    scene = Scene.of_scan(make_explained())
    layer = draw_heat(scene, "axial", HOT_SLICE, 200, THRESHOLD)
    lungs = scene.lungs[HOT_SLICE]
    expected = (scan_heat()[HOT_SLICE][lungs] >= THRESHOLD).mean()
    assert layer.highlighted == pytest.approx(expected)


def test_a_white_line_runs_around_the_hot_lung_only() -> None:
    scene = Scene.of_scan(make_explained())
    has_line = draw_heat(scene, "axial", HOT_SLICE, 400, THRESHOLD).levels % LINE_LEVELS > 0
    assert 100 < has_line.sum() < 0.05 * has_line.size
    without = replace(scene, lungs=np.zeros(SHAPE, dtype=bool))
    assert not (draw_heat(without, "axial", HOT_SLICE, 400, THRESHOLD).levels % LINE_LEVELS).any()
    layer = draw_heat(scene, "axial", HOT_SLICE, 400, THRESHOLD)
    outlined = layer.over(np.zeros((*has_line.shape, 3), dtype=np.uint8))
    assert outlined[has_line].max(axis=0).tolist() == pytest.approx(_LINE_COLOR, abs=30)


def test_what_was_not_analysed_has_no_color_and_is_hatched() -> None:
    scene = Scene.of_scan(make_explained())
    layer = draw_heat(scene, "axial", 2, 200, THRESHOLD)
    picture = draw_slice(scene, "axial", 2, 200)
    bare = draw_slice(Scene.of_scan(make_analysis()), "axial", 2, 200)
    assert heat_palette()[layer.levels][:, :, 3].max() == 0
    assert (layer.hottest, layer.highlighted) == (0.0, 0.0)
    # Lines over the air around the body, which is black without them.
    in_air = bare[:, :, 0] == 0
    is_line = (picture[:, :, 0] > 0) & in_air
    assert 0.05 < is_line.sum() / in_air.sum() < 0.5


def test_coronal_pictures_are_hatched_above_and_below_the_analysed_slices() -> None:
    scene = Scene.of_scan(make_explained())
    picture = draw_slice(scene, "coronal", SHAPE[1] // 2, 200).astype(int)
    bare = draw_slice(
        replace(scene, heat=HeatMap.of(scene.volume.grid, scan_heat() * 0)), "coronal", 30, 200
    ).astype(int)
    free = replace(scene, heat=HeatMap.of(scene.volume.grid, np.zeros(SHAPE, dtype=np.float32)))
    clean = draw_slice(free, "coronal", SHAPE[1] // 2, 200).astype(int)
    changed = (picture != clean).any(axis=2).mean(axis=1)
    assert (changed[: len(changed) // 5] > 0.5).all()
    assert changed[len(changed) // 2] == 0
    assert bare.shape == picture.shape


def test_a_scene_without_heat_has_no_layer() -> None:
    scene = Scene.of_scan(make_analysis())
    with pytest.raises(ValueError, match="no heat-map"):
        draw_heat(scene, "axial", 20, 100, THRESHOLD)


def test_ticks_stand_where_the_other_planes_cross() -> None:
    scene = Scene.of_scan(make_analysis())
    slices = {"axial": 30, "coronal": 30, "sagittal": 20}
    for plane, row_plane, column_plane in (
        ("axial", "coronal", "sagittal"),
        ("coronal", "axial", "sagittal"),
        ("sagittal", "axial", "coronal"),
    ):
        picture = np.zeros((200, 300, 3), dtype=np.uint8)
        _tick_planes(picture, scene, plane, slices)
        axes = {"axial": 0, "coronal": 1, "sagittal": 2}
        shares = []
        for crossing in (row_plane, column_plane):
            start, stop = scene.box[axes[crossing]]
            share = (slices[crossing] + 0.5 - start) / (stop - start)
            shares.append(1 - share if crossing == "axial" else share)
        rows = np.flatnonzero(picture[:, 0, 0])
        columns = np.flatnonzero(picture[0, :, 0])
        assert rows.mean() == pytest.approx(shares[0] * 200, abs=1.5)
        assert columns.mean() == pytest.approx(shares[1] * 300, abs=1.5)
        assert picture[100, 150].max() == 0


def test_drawing_does_not_change_the_map() -> None:
    analysis = make_explained()
    before = analysis.explanation.heat.voxels.copy()
    draw_heat(Scene.of_scan(analysis), "sagittal", 50, 120, THRESHOLD)
    np.testing.assert_array_equal(analysis.explanation.heat.voxels, before)

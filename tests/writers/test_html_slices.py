"""Which slices are shown, and where the curves run."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from analyses import SALIENT, SHAPE, make_analysis, make_unsuitable
from explained import HOT_SLICE, make_explained, make_explanation

from chestct.explain.explanation import HeatMap, PeakSlice
from chestct.pictures import Scene, fullest_slice
from chestct.writers.evidence import (
    evidence_by_slice,
    evidence_peaks,
    strip_slices,
    telling_slices,
)
from chestct.writers.pages import _evidence_curve

PEAK = PeakSlice(HOT_SLICE, "1.2.3", 0.4)


def test_the_telling_slices_run_through_the_hot_spot() -> None:
    analysis = make_explained()
    chosen = telling_slices(analysis, Scene.of_scan(analysis))
    assert chosen["axial"] == HOT_SLICE
    assert chosen["coronal"] == pytest.approx(SHAPE[1] / 2, abs=3)
    # 0.4 of the way from the middle to the left side.
    assert chosen["sagittal"] == pytest.approx((1 + 0.4) / 2 * SHAPE[2], abs=3)


def test_without_heat_the_fullest_slices_are_shown() -> None:
    for analysis in (make_analysis(), make_explained(strength=0.0), make_unsuitable()):
        scene = Scene.of_scan(analysis)
        chosen = telling_slices(analysis, scene)
        assert chosen == {plane: fullest_slice(scene.lungs, plane) for plane in chosen}


def test_heat_outside_the_lungs_is_shown_where_there_is_no_other() -> None:
    analysis = make_explained()
    explained = make_explanation()
    heat = np.zeros_like(explained.explanation.heat)
    heat[3, 0, 5] = 1.0
    summary = replace(explained.summary, peaks=(), hottest_mm=None)
    outside = replace(
        explained, explanation=replace(explained.explanation, heat=heat), summary=summary
    )
    chosen = telling_slices(replace(analysis, explanation=outside), Scene.of_scan(analysis))
    assert chosen == {"axial": SALIENT[0] + 3, "coronal": 0, "sagittal": 10}


def test_the_strip_holds_the_peaks_and_fills_the_widest_gaps() -> None:
    assert strip_slices((0, 100), (PeakSlice(50, "", 1.0),), 3) == [4, 50, 96]
    many = tuple(PeakSlice(i, "", 1.0) for i in (10, 20, 30, 40, 50))
    strip = strip_slices((0, 100), many, 8)
    assert len(strip) == 8
    assert set(strip) >= {10, 20, 30, 40}
    assert strip == sorted(set(strip))
    assert max(np.diff([0, *strip, 100])) <= 20


def test_a_short_strip_repeats_no_slice() -> None:
    assert strip_slices((7, 9), (), 8) == [7, 8, 9]
    assert strip_slices((7, 7), (PeakSlice(7, "", 1.0),), 8) == [7]


def test_slices_are_counted_from_the_feet_however_they_are_stored() -> None:
    explained, prepared = make_explanation(), make_analysis().prepared
    assert evidence_peaks(explained, prepared) == explained.summary.peaks
    turned = replace(
        prepared,
        scan_grid=prepared.scan_grid.moved((39.0, 0.0, 0.0), (-1.0, 1.0, 1.0), SHAPE),
    )
    assert evidence_peaks(explained, turned)[0].index == SHAPE[0] - 1 - HOT_SLICE
    np.testing.assert_array_equal(
        evidence_by_slice(explained, turned), explained.summary.by_slice[::-1]
    )


def test_slices_that_do_not_follow_the_body_get_a_curve_along_it() -> None:
    """A scan stored as coronal slices: depth and height have changed places."""
    explained, analysis = make_explanation(), make_analysis()
    grid = analysis.volume.grid
    turned_grid = replace(
        grid,
        shape=(SHAPE[1], SHAPE[0], SHAPE[2]),
        spacing_mm=(grid.spacing_mm[1], grid.spacing_mm[0], grid.spacing_mm[2]),
        direction=(grid.direction[1], grid.direction[0], grid.direction[2]),
    )
    lungs = analysis.prepared.scan_lungs
    prepared = replace(
        analysis.prepared,
        scan_grid=turned_grid,
        scan_lungs=lungs.with_voxels(lungs.voxels.swapaxes(0, 1), turned_grid),
    )
    turned = replace(
        explained,
        heat=HeatMap.of(turned_grid, explained.heat.voxels.swapaxes(0, 1)),
    )
    np.testing.assert_allclose(
        evidence_by_slice(turned, prepared), explained.summary.by_slice, rtol=1e-5
    )
    (peak,) = evidence_peaks(turned, prepared)
    assert (peak.index, peak.uid) == (HOT_SLICE, "")
    nothing = replace(turned, heat=HeatMap.of(turned_grid, turned.heat.voxels * 0))
    assert evidence_peaks(nothing, prepared) == ()


def test_the_evidence_curve_has_gaps_where_nothing_is_known() -> None:
    by_slice = np.array([np.nan, 0.1, 0.4, np.nan, np.nan, 0.2, 0.2, np.nan])
    curve = _evidence_curve(by_slice, (PeakSlice(2, "", 0.4),))
    assert curve["path"].count("M") == 2
    points = np.array(re.findall(r"([\d.]+) ([\d.]+)", curve["path"]), dtype=float)
    rows = (7.5 - np.array([1, 2, 5, 6])) / 8 * 100
    np.testing.assert_allclose(points[:, 1], rows, atol=0.006)
    np.testing.assert_allclose(points[:, 0], [25, 100, 50, 50])
    assert curve["peaks"] == ((100.0, pytest.approx(68.75), 3),)
    assert "0.40 in slice 3" in curve["alt"]
    assert "4 slices without lung or not analysed" in curve["alt"]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_curve_of_nothing_is_called_none(value: float) -> None:
    curve = _evidence_curve(np.full(5, value), ())
    assert curve["alt"].startswith("Evidence of each slice: none")
    assert (curve["path"] == "") == np.isnan(value)

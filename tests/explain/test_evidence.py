"""Where the evidence lies: sides, thirds, slices, on scans stored in any way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analyses import SALIENT, SHAPE, lung_mask, make_analysis, make_prepared, make_volume
from explained import make_explanation
from phantoms import chest, chest_grid, turned_grid

from chestct.explain.explanation import (
    HeatMap,
    _lung_regions,
    outside_warning,
    share_outside,
    summarise_evidence,
)
from chestct.preprocess.prepare import PreparedScan
from chestct.volume import CANONICAL_DIRECTION, Grid, Volume, to_canonical

UIDS = tuple(f"1.2.3.{i}" for i in range(SHAPE[0]))


def scan_with(lungs: np.ndarray, grid: Grid | None = None) -> PreparedScan:
    volume = make_volume()
    grid = grid or volume.grid
    return replace(make_prepared(volume), scan_lungs=Volume(grid, lungs), scan_grid=grid)


def heat_on(prepared: PreparedScan, values: np.ndarray) -> HeatMap:
    return HeatMap.of(prepared.scan_grid, values.astype(np.float32))


def test_shares_are_of_the_lung_volume_of_each_region() -> None:
    lungs = lung_mask()
    prepared = scan_with(lungs)
    inside = np.flatnonzero(lungs.any(axis=(1, 2)))
    top = np.arange(SHAPE[0]) >= inside[0] + 2 * (inside[-1] - inside[0]) / 3
    left = np.arange(SHAPE[2]) >= SHAPE[2] // 2
    heat = np.zeros(SHAPE)
    heat[np.ix_(top, np.arange(SHAPE[1]), left)] = 0.5
    summary = summarise_evidence(heat_on(prepared, heat), prepared, UIDS)
    shares = summary.shares
    assert shares["left upper third"] == 1.0
    assert shares["upper third"] == pytest.approx(0.5, abs=0.02)
    assert shares["left lung"] == pytest.approx(2 * shares["lungs"], rel=0.02)
    assert shares["lungs"] == np.count_nonzero(heat[lungs]) / np.count_nonzero(lungs)
    for name in ("right lung", "middle third", "lower third", "right upper third"):
        assert shares[name] == 0.0
    assert len(shares) == 12
    assert summary.involved_ml == pytest.approx(np.count_nonzero(heat[lungs]) * 36 / 1000)


def test_the_threshold_says_from_which_heat_a_voxel_is_involved() -> None:
    prepared = scan_with(lung_mask())
    heat = heat_on(prepared, np.full(SHAPE, 0.3))
    assert summarise_evidence(heat, prepared, UIDS).shares["lungs"] == 0.0
    low = summarise_evidence(heat, prepared, UIDS, threshold=0.25)
    assert low.shares["lungs"] == 1.0
    assert low.threshold == 0.25


def test_lung_that_was_not_analysed_counts_nowhere() -> None:
    prepared = scan_with(lung_mask())
    heat = np.full(SHAPE, 1.0)
    heat[:, :, : SHAPE[2] // 2] = np.nan
    heat[:8] = np.nan
    summary = summarise_evidence(heat_on(prepared, heat), prepared, UIDS)
    assert summary.shares["lungs"] == summary.shares["left lung"] == 1.0
    assert not any(name.startswith("right") for name in summary.shares)
    assert np.isnan(summary.by_slice[:8]).all()
    lungs = lung_mask()
    analysed = np.count_nonzero(lungs[20, :, SHAPE[2] // 2 :])
    largest = np.count_nonzero(lungs, axis=(1, 2)).max()
    assert summary.by_slice[20] == pytest.approx(analysed / largest)


def test_evidence_by_slice_is_the_heat_in_the_lungs_in_parts_of_the_largest_section() -> None:
    lungs = lung_mask()
    prepared = scan_with(lungs)
    values = np.random.default_rng(0).random(SHAPE)
    summary = summarise_evidence(heat_on(prepared, values), prepared, UIDS)
    largest = np.count_nonzero(lungs, axis=(1, 2)).max()
    assert summary.by_slice[17] == pytest.approx(values[17][lungs[17]].sum() / largest, rel=1e-5)
    assert np.isnan(summary.by_slice[0])
    assert summary.by_slice.shape == (SHAPE[0],)


def test_peaks_are_separate_hills_strongest_first_with_their_uids() -> None:
    prepared = scan_with(lung_mask())
    curve = np.zeros(SHAPE[0])
    curve[12:17] = (0.3, 0.5, 0.6, 0.5, 0.3)
    curve[26:29] = (0.6, 0.9, 0.8)
    summary = summarise_evidence(
        heat_on(prepared, np.broadcast_to(curve[:, None, None], SHAPE)), prepared, UIDS
    )
    assert [peak.index for peak in summary.peaks] == [27, 14]
    assert [peak.uid for peak in summary.peaks] == [UIDS[27], UIDS[14]]
    assert [peak.evidence for peak in summary.peaks] == summary.by_slice[[27, 14]].tolist()


def test_a_level_stretch_has_one_peak_and_scans_without_uids_get_empty_ones() -> None:
    lungs = np.zeros(SHAPE, dtype=bool)
    lungs[5:35, 10:50, 20:60] = True
    prepared = scan_with(lungs)
    heat = np.zeros(SHAPE)
    heat[15:18] = 0.4
    (peak,) = summarise_evidence(heat_on(prepared, heat), prepared, ()).peaks
    assert peak.index == 15
    assert peak.uid == ""


def test_a_slice_with_hardly_any_lung_stays_behind_a_full_one_with_less_heat() -> None:
    lungs = lung_mask()
    edge = int(np.flatnonzero(lungs.any(axis=(1, 2)))[0])
    heat = np.zeros(SHAPE)
    heat[edge] = 1.0
    heat[27] = 0.1
    prepared = scan_with(lungs)
    peaks = summarise_evidence(heat_on(prepared, heat), prepared, UIDS).peaks
    assert [peak.index for peak in peaks] == [27, edge]


def test_a_map_of_zeros_has_no_peaks_and_no_involvement() -> None:
    prepared = scan_with(lung_mask())
    summary = summarise_evidence(heat_on(prepared, np.zeros(SHAPE)), prepared, UIDS)
    assert summary.peaks == ()
    assert summary.involved_ml == 0
    assert set(summary.shares.values()) == {0.0}


def test_a_scan_without_lungs_has_no_regions() -> None:
    prepared = scan_with(np.zeros(SHAPE, dtype=bool))
    summary = summarise_evidence(heat_on(prepared, np.ones(SHAPE)), prepared, UIDS)
    assert summary.shares == {}
    assert summary.peaks == ()
    assert np.isnan(summary.by_slice).all()


def test_lungs_that_cannot_be_taken_apart_have_thirds_and_no_sides() -> None:
    lungs = np.zeros(SHAPE, dtype=bool)
    lungs[5:35, 10:50, 20:60] = True
    prepared = scan_with(lungs)
    summary = summarise_evidence(heat_on(prepared, np.ones(SHAPE)), prepared, UIDS)
    assert set(summary.shares) == {"lungs", "upper third", "middle third", "lower third"}


def test_a_map_on_another_grid_is_refused() -> None:
    prepared = scan_with(lung_mask())
    other = HeatMap.of(Grid(SHAPE, (1.0, 1.0, 1.0)), np.zeros(SHAPE, dtype=np.float32))
    with pytest.raises(ValueError, match="own grid"):
        summarise_evidence(other, prepared, UIDS)


def upside_down() -> Grid:
    head_to_feet, back, left = (0.0, 0.0, -1.0), *CANONICAL_DIRECTION[1:]
    return chest_grid(direction=(head_to_feet, back, left))


@pytest.mark.parametrize(
    "grid", [chest_grid(), upside_down(), turned_grid(20.0, 0), turned_grid(-110.0, 1)]
)
def test_regions_follow_the_patient_however_the_scan_is_stored(grid: Grid) -> None:
    scan = to_canonical(chest(grid))
    lungs = scan.voxels == -850
    regions = dict(_lung_regions(lungs, scan.grid))
    x, _, z = scan.grid.to_patient(np.argwhere(lungs).astype(np.float64)).T
    assert ((x > 0) == regions["left lung"]).mean() > 0.99
    third = (z.max() - z.min()) / 3
    assert ((z > z.max() - third) == regions["upper third"]).mean() > 0.99
    assert ((z < z.min() + third) == regions["lower third"]).mean() > 0.99
    total = sum(
        regions[name].astype(int) for name in ("upper third", "middle third", "lower third")
    )
    assert (total == 1).all()
    both = regions["right lung"] & regions["lower third"]
    np.testing.assert_array_equal(regions["right lower third"], both)


def test_heat_outside_the_lungs_is_warned_of_beyond_a_third() -> None:
    prepared, explained = make_analysis().prepared, make_explanation()
    heat = np.zeros(prepared.lungs.shape, dtype=np.float32)
    inside, outside = np.argwhere(prepared.lungs)[0], np.argwhere(~prepared.lungs)[0]
    heat[tuple(inside)] = 0.7
    heat[tuple(outside)] = 0.3
    mostly_inside = replace(explained.explanation, heat=heat)
    assert share_outside(mostly_inside, prepared) == pytest.approx(0.3)
    assert outside_warning(mostly_inside, prepared) == ()
    heat[tuple(outside)] = 0.5
    (warning,) = outside_warning(mostly_inside, prepared)
    assert warning.startswith("42% of the heat-map lies outside the lungs")
    empty = replace(explained.explanation, heat=np.zeros_like(heat))
    assert outside_warning(empty, prepared) == ()


def test_the_hottest_place_is_the_hottest_voxel_of_lung_wherever_most_of_it_lies() -> None:
    explained, prepared = make_explanation(), make_analysis().prepared
    values = np.nan_to_num(explained.heat.voxels) * 0.5
    place = tuple(np.argwhere(lung_mask()[SALIENT[0] + 1])[0])
    values[(SALIENT[0] + 1, *place)] = 0.9
    values[0, 0, 0] = 1.0
    found = summarise_evidence(HeatMap.of(explained.heat.grid, values), prepared, ())
    assert found.hottest_mm is not None
    index = prepared.scan_grid.to_index(np.array(found.hottest_mm))
    np.testing.assert_allclose(index, (SALIENT[0] + 1, *place), atol=1e-6)
    cold = summarise_evidence(HeatMap.of(explained.heat.grid, 0 * values), prepared, ())
    assert cold.hottest_mm is None

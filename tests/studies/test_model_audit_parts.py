from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from audited_networks import MASKED, RECIPE, as_model, healthy_chest, own_lungs, sick_chest
from torch import nn

from chestct.preprocess.prepare import prepare
from chestct.preprocess.recipes import RECIPES
from chestct.studies.model_audit import (
    CHANGES,
    _changed_scan,
    _find_paint,
    _lungs_with_rim,
    _mirrored,
    _painted_scans,
    _parts_of,
    _redraw,
    _spearman,
    _structural_similarity,
)
from chestct.studies.model_audit_findings import (
    STABILITY,
    MapTest,
    Probe,
    ScanAudit,
    WeightStage,
    _as_markdown,
    _worst_severity,
    judge_scan_audit,
)

RNG = np.random.default_rng(0)


def test_paint_of_a_fixed_scale_stands_for_hounsfield_units() -> None:
    paint = _find_paint(prepare(healthy_chest(), RECIPE), "HU")
    assert paint.healthy == pytest.approx((-850 + 1350) / 1500)
    assert paint.tissue == pytest.approx((40 + 1350) / 1500)
    assert paint.air == pytest.approx((-1024 + 1350) / 1500)


def test_paint_of_other_scales_is_taken_from_the_scan() -> None:
    recipe = replace(RECIPES["maseres_paper"], input_shape=(24, 24, 24))
    prepared = prepare(sick_chest()[0], recipe)
    paint = _find_paint(prepared, "HU")
    inside = prepared.input[0][prepared.lungs]
    assert paint.air == prepared.input.min()
    assert inside.min() <= paint.healthy < np.median(inside) + 1e-3
    assert paint.healthy < paint.tissue <= prepared.input.max()


def test_painting_changes_the_part_that_is_named_and_nothing_else() -> None:
    prepared = prepare(sick_chest()[0], RECIPE, lungs=own_lungs())
    before = prepared.input.copy()
    lungs = _lungs_with_rim(prepared)
    for name, painted in _painted_scans(prepared, None, _find_paint(prepared, "HU")):
        part = lungs if name.startswith("lungs") else ~lungs
        assert np.ptp(painted.input[0][part]) == 0, name
        np.testing.assert_array_equal(painted.input[0][~part], before[0][~part])
    np.testing.assert_array_equal(prepared.input, before)


def test_a_recipes_own_background_is_what_surroundings_are_made() -> None:
    prepared = prepare(sick_chest()[0], MASKED, lungs=own_lungs())
    painted = dict(_painted_scans(prepared, prepared.lungs, _find_paint(prepared, "HU")))
    assert set(painted) == {"lesion", "lungs-healthy", "lungs-tissue", "outside-background"}
    lungs = _lungs_with_rim(prepared)
    assert (painted["outside-background"].input[0][~lungs] == 0).all()


def test_a_moved_patient_is_the_same_patient_further_left() -> None:
    volume = healthy_chest()
    moved = _changed_scan(volume, CHANGES["shift-left"], RNG)
    np.testing.assert_array_equal(moved.voxels[:, :, 1:], volume.voxels[:, :, :-1])
    assert (moved.voxels[:, :, 0] == -1024).all()
    back = _changed_scan(volume, CHANGES["shift-back"], RNG)
    np.testing.assert_array_equal(back.voxels[:, 1:], volume.voxels[:, :-1])


def test_noise_has_the_spread_that_is_said() -> None:
    volume = healthy_chest()
    noisy = _changed_scan(volume, CHANGES["noise"], np.random.default_rng(1))
    difference = noisy.voxels.astype(float) - volume.voxels
    assert noisy.voxels.dtype == volume.voxels.dtype
    assert difference.std() == pytest.approx(20, rel=0.02)
    assert abs(difference.mean()) < 0.2


def test_kernels_smooth_and_sharpen_within_slices() -> None:
    fine = replace(healthy_chest().grid, spacing_mm=(5.0, 1.0, 1.0))
    volume = healthy_chest().with_voxels(healthy_chest().voxels, fine)

    def roughness(name: str) -> float:
        found = _changed_scan(volume, CHANGES[name], RNG).voxels if name else volume.voxels
        return float(np.abs(np.diff(found.astype(float), axis=2)).mean())

    assert roughness("smooth") < 0.9 * roughness("") < roughness("sharp")


def test_thick_slices_are_means_at_their_middle() -> None:
    thin = replace(healthy_chest().grid, spacing_mm=(2.0, 9.0, 9.0))
    volume = healthy_chest().with_voxels(healthy_chest().voxels.astype(np.float32), thin)
    thick = _changed_scan(volume, CHANGES["thick"], RNG)
    assert thick.grid.spacing_mm == (4.0, 9.0, 9.0)
    assert thick.grid.shape[0] == 18
    assert thick.grid.origin_mm[2] == pytest.approx(thin.origin_mm[2] + 1.0)
    np.testing.assert_allclose(thick.voxels[3], volume.voxels[6:8].mean(axis=0), rtol=1e-5)


def test_an_export_without_a_scale_is_moved_in_its_own_black() -> None:
    voxels = (healthy_chest().voxels.clip(-1350, 150) + 1350).astype(np.float32) / 1500 * 255
    export = replace(healthy_chest(), voxels=voxels, unit="windowed")
    moved = _changed_scan(export, CHANGES["shift-left"], RNG)
    assert (moved.voxels[:, :, 0] == voxels.min()).all()
    noisy = _changed_scan(export, CHANGES["noise"], np.random.default_rng(1))
    assert (noisy.voxels - voxels).std() == pytest.approx(4, rel=0.02)


def test_no_change_touches_the_scan_itself() -> None:
    volume = sick_chest()[0]
    before = volume.voxels.copy()
    for change in CHANGES.values():
        _changed_scan(volume, change, RNG)
    np.testing.assert_array_equal(volume.voxels, before)


def test_a_mirrored_scan_has_its_left_on_the_right() -> None:
    prepared = prepare(sick_chest()[0], RECIPE)
    found = _mirrored(prepared)
    np.testing.assert_array_equal(found.input, prepared.input[..., ::-1])
    np.testing.assert_array_equal(found.lungs, prepared.lungs[..., ::-1])


def test_rank_correlation_looks_inside_the_mask_only() -> None:
    first = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[:, :4] = True
    second = np.where(mask, first**2, 1 - first).astype(np.float32)
    assert _spearman(first, second, mask) == pytest.approx(1.0)
    assert _spearman(first, second, ~mask) == pytest.approx(-1.0)
    assert _spearman(first, np.zeros_like(first), mask) == 0.0


def test_structural_similarity_is_one_for_the_same_and_small_for_other_maps() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 16, 16, 16)).astype(np.float32)
    mask = np.ones((16, 16, 16), dtype=bool)
    assert _structural_similarity(first, first, mask) == pytest.approx(1.0, abs=1e-5)
    assert _structural_similarity(first, second, mask) < 0.1


def test_new_weights_have_the_scale_of_the_old_ones_and_nothing_else() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(4, 16, 3), nn.BatchNorm3d(16))
    nn.init.normal_(network[0].weight, 0.0, 0.3)
    nn.init.uniform_(network[1].weight, 0.5, 1.5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for learned in _parts_of(network).values():
        _redraw(learned, torch.Generator().manual_seed(1))
    after = network.state_dict()
    kernels = (before["0.weight"], after["0.weight"])
    assert kernels[1].std() == pytest.approx(0.3, rel=0.1)
    assert abs(torch.corrcoef(torch.stack([k.flatten() for k in kernels]))[0, 1]) < 0.1
    assert not torch.equal(after["1.weight"], before["1.weight"])
    assert torch.equal(after["1.weight"].sort().values, before["1.weight"].sort().values)
    assert torch.equal(after["1.num_batches_tracked"], before["1.num_batches_tracked"])


def scan_audit(**changes: object) -> ScanAudit:
    audit = ScanAudit("scan", "", "COVID-19", {"COVID-19": 0.9, "normal": 0.1})
    return replace(audit, **changes)


def probe(name: str, share: float, group: str = "blanking") -> Probe:
    decision = "COVID-19" if share > 0.5 else "normal"
    shares = {"COVID-19": share, "normal": 1 - share}
    is_same = decision == "COVID-19"
    return Probe(group, name, name, shares, decision, share, share - 0.9, is_same)


def test_a_map_alike_by_rank_alone_is_notable() -> None:
    stages = (WeightStage("whole network", 0.8, 0.3), WeightStage("whole network", 0.9, 0.4))
    test = MapTest("gradcam", "COVID-19", True, whole=stages)
    assert (test.spearman, test.ssim) == pytest.approx((0.85, 0.35))
    (finding,) = judge_scan_audit(scan_audit(map_test=test))
    assert finding.severity == "notable"
    assert "random networks" in finding.sentence


def test_empty_maps_of_random_networks_prove_nothing() -> None:
    same, empty = WeightStage("whole network", 1.0, 1.0), WeightStage("whole network", None, None)
    test = MapTest("gradcam", "COVID-19", True, whole=(empty, same, empty))
    assert (test.spearman, test.num_compared) == (1.0, 1)
    audit = scan_audit(map_test=test)
    assert judge_scan_audit(audit)[0].severity == "serious"
    assert "| whole network | empty map | empty map |" in _as_markdown(as_model(audit))
    assert MapTest("gradcam", "COVID-19", True, whole=(empty,)).spearman == 0.0


def test_a_decision_that_stays_with_any_lungs_but_not_its_probability_is_notable() -> None:
    audit = scan_audit(probes=(probe("lungs-healthy", 0.95), probe("lungs-tissue", 0.6)))
    (finding, *_) = judge_scan_audit(audit)
    assert (finding.severity, finding.check) == ("notable", "lungs")
    assert "0.90 before, 0.95 and 0.60 after" in finding.sentence


def test_a_map_of_zeros_is_notable() -> None:
    test = MapTest("gradcam", "COVID-19", has_evidence=False)
    (finding,) = judge_scan_audit(scan_audit(map_test=test))
    assert finding.severity == "notable"
    assert "zero everywhere" in finding.sentence


def test_surroundings_that_change_a_decision_that_rests_on_the_lungs_are_notable() -> None:
    probes = (
        probe("lungs-healthy", 0.1),
        probe("lungs-tissue", 0.9),
        probe("outside-air", 0.2),
        probe("outside-tissue", 0.9),
    )
    audit = scan_audit(probes=probes)
    found = {each.check: each for each in judge_scan_audit(audit)}
    assert found["outside"].severity == "notable"
    assert "matters to the decision" in found["outside"].sentence
    model = as_model(replace(audit, findings=judge_scan_audit(audit)))
    assert model.verdict.startswith("No serious findings; notable ones on 1 of 1")


def test_a_probability_that_moves_without_the_surroundings_is_notable() -> None:
    audit = scan_audit(probes=(probe("outside-background", 0.6),))
    (finding, *_) = judge_scan_audit(audit)
    assert (finding.severity, finding.check) == ("notable", "outside")


def test_exchanged_sides_are_no_more_than_a_remark() -> None:
    (finding, *_) = [
        each
        for each in judge_scan_audit(scan_audit(probes=(probe("mirror", 0.2, STABILITY),)))
        if each.check == "stability"
    ]
    assert finding.severity == "remark"


def test_a_changed_scan_that_is_unsuitable_counts_as_unstable() -> None:
    gone = Probe(STABILITY, "thick", "thick slices", {}, "unsuitable", None, None, False)
    findings = judge_scan_audit(scan_audit(probes=(gone,)))
    assert [each.severity for each in findings if each.check == "stability"] == ["notable"]
    assert "| thick slices |  |  | unsuitable |" in _as_markdown(
        as_model(scan_audit(probes=(gone,), findings=findings))
    )


def test_without_findings_all_is_fine() -> None:
    assert _worst_severity([]) == "fine"
    assert as_model(scan_audit()).verdict == "Nothing serious or notable was found on 1 scans."
    assert "| scan | unknown | COVID-19 | 0.900 |" in _as_markdown(as_model(scan_audit()))

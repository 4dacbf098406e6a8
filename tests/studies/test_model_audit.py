from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from audited_networks import (
    FOUND,
    GRID,
    MASKED,
    Mean,
    NoCells,
    SameMap,
    as_model,
    crafted,
    healthy_chest,
    own_lungs,
    sick_chest,
    write_scan,
)
from phantoms import chest
from torch import nn

from chestct.classifier import Classifier
from chestct.engines import make_engine
from chestct.errors import ReadError
from chestct.labels import COVID19, NORMAL, UNSUITABLE
from chestct.preprocess.prepare import prepare
from chestct.studies.model_audit import (
    CHANGES,
    Auditor,
    Subject,
    _Paint,
    _painted_scans,
    audit_model,
    audit_scan,
    read_subjects,
    simulated_subjects,
)
from chestct.studies.model_audit_findings import (
    BLANKING,
    DENSE,
    GIVEN_LESIONS,
    HEAT_MAP,
    JSON_FILE,
    STABILITY,
    TRUE_LESIONS,
    WORDS,
    Probe,
    ScanAudit,
    _as_markdown,
    judge_scan_audit,
    write_model_audit,
)
from chestct.writers.nifti import write_nifti


@pytest.fixture(autouse=True)
def _one_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparing a changed scan takes longer than all the rest."""
    monkeypatch.setattr("chestct.studies.model_audit.CHANGES", {"smooth": CHANGES["smooth"]})


def auditor_of(network: nn.Module, classifier: Classifier | None = None) -> Auditor:
    asked = classifier or crafted(network)
    return Auditor(asked, make_engine(asked, "torch"))


def sick(source: str = TRUE_LESIONS) -> Subject:
    volume, lesions = sick_chest()
    if source != TRUE_LESIONS:
        return Subject("sick", volume)
    return Subject("sick", volume, lesions, TRUE_LESIONS, COVID19)


@cache
def audit_of_lung_network() -> ScanAudit:
    torch.manual_seed(0)
    return audit_scan(auditor_of(Mean(0.42, is_inside=True)), sick())


@cache
def audit_of_outside_network() -> ScanAudit:
    torch.manual_seed(0)
    network = Mean(0.35, is_inside=False)
    return audit_scan(auditor_of(network, crafted(network, FOUND)), sick())


def severities(audit: ScanAudit, check: str) -> set[str]:
    return {finding.severity for finding in audit.findings if finding.check == check}


def sentence(audit: ScanAudit, check: str) -> str:
    return " ".join(each.sentence for each in audit.findings if each.check == check)


def test_a_network_that_decides_outside_the_lungs_is_told_so() -> None:
    audit = audit_of_outside_network()
    assert audit.decision == COVID19
    assert severities(audit, "lungs") == {"serious"}
    assert severities(audit, "outside") == {"serious"}
    assert "outside the lungs, such as the table" in sentence(audit, "outside")
    assert "decides on what lies outside the lungs" in as_model(audit).verdict


def test_a_network_that_decides_outside_the_lungs_does_not_mind_a_missing_lesion() -> None:
    audit = audit_of_outside_network()
    assert severities(audit, "lesion") == {"serious"}
    assert audit.probe("lesion").change == pytest.approx(0, abs=0.02)


def test_a_network_that_decides_on_the_lungs_passes() -> None:
    audit = audit_of_lung_network()
    assert audit.decision == COVID19
    for check in ("lungs", "outside", "lesion"):
        assert severities(audit, check) == {"fine"}, check
    assert "decides on what lies outside" not in as_model(audit).verdict


def test_lungs_painted_healthy_or_solid_answer_as_such() -> None:
    audit = audit_of_lung_network()
    assert audit.probe("lungs-healthy").decision == NORMAL
    assert audit.probe("lungs-tissue").decision == COVID19
    assert audit.probe("lesion").decision == NORMAL


def test_a_healthy_decision_that_rests_on_the_lungs_passes_too() -> None:
    torch.manual_seed(0)
    auditor = auditor_of(Mean(0.42, is_inside=True))
    audit = audit_scan(auditor, Subject("healthy", healthy_chest()))
    assert audit.decision == NORMAL
    assert severities(audit, "lungs") == {"fine"}
    assert severities(audit, "lesion") == set()


def test_a_disease_seen_in_evenly_healthy_lungs_is_notable() -> None:
    class Middle(Mean):
        """COVID-19 unless the lungs are solid."""

        def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
            return super().forward(batch, lungs).flip(1)

    torch.manual_seed(0)
    audit = audit_scan(auditor_of(Middle(0.6, is_inside=True)), sick())
    assert severities(audit, "lungs") == {"notable"}
    assert "outline is enough" in sentence(audit, "lungs")


def test_every_change_is_answered_and_harmless_ones_change_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chestct.studies.model_audit.CHANGES", CHANGES)
    torch.manual_seed(0)
    audit = audit_scan(auditor_of(Mean(0.42, is_inside=True)), sick())
    probes = {probe.name: probe for probe in audit.probes if probe.group == STABILITY}
    assert set(probes) == {
        *("shift-left", "shift-back", "noise", "smooth", "sharp", "thick", "mirror")
    }
    assert probes["mirror"].change == pytest.approx(0, abs=1e-4)
    assert abs(probes["shift-back"].change) < 0.1


def test_an_unstable_answer_is_notable(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rough(Mean):
        """COVID-19 where neighbours differ."""

        def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
            rough = (batch[..., 1:] - batch[..., :-1]).abs().mean(dim=(1, 2, 3, 4))
            score = 1e4 * (rough - self.limit) + 0 * self.cells(batch).mean()
            return torch.stack([score, -score], dim=1)

    monkeypatch.setattr("chestct.studies.model_audit.CHANGES", {"noise": CHANGES["noise"]})
    network, subject = Rough(0.0, is_inside=True), sick()
    values = prepare(subject.volume, crafted(network).recipe).input
    network.limit = float(np.abs(np.diff(values, axis=-1)).mean()) + 1e-4
    audit = audit_scan(auditor_of(network), subject)
    assert audit.decision == NORMAL
    assert severities(audit, "stability") == {"notable"}
    assert "noise of 20 HU added, it becomes COVID-19" in sentence(audit, "stability")


def test_a_map_that_no_weight_changes_is_caught() -> None:
    audit = audit_scan(auditor_of(SameMap()), sick())
    assert audit.map_test.spearman == pytest.approx(1.0)
    assert audit.map_test.ssim == pytest.approx(1.0, abs=1e-4)
    assert severities(audit, "weights") == {"serious"}


def test_a_map_that_weights_change_passes() -> None:
    audit = audit_of_lung_network()
    assert audit.map_test.has_evidence
    assert audit.map_test.spearman < 0.7
    assert severities(audit, "weights") == {"fine"}


def test_a_network_without_cells_is_asked_all_the_rest() -> None:
    torch.manual_seed(0)
    audit = audit_scan(auditor_of(NoCells()), sick())
    assert audit.map_test is None
    assert severities(audit, "weights") == {"remark"}
    assert audit.probe("lungs-tissue") is not None
    assert audit.probe("mirror").is_same


def test_a_recipe_that_blanks_the_surroundings_itself_is_asked_once() -> None:
    torch.manual_seed(0)
    classifier = crafted(Mean(0.4, is_inside=True), MASKED)
    audit = audit_scan(auditor_of(classifier.network, classifier), sick())
    assert audit.probe("outside-background").is_same
    assert audit.probe("outside-air") is None
    assert severities(audit, "outside") == {"fine"}


def test_without_a_mask_the_lesion_is_where_the_map_is_hot_and_that_is_said() -> None:
    audit = audit_scan(auditor_of(SameMap()), sick(source=""))
    assert audit.lesion_source == HEAT_MAP
    assert 0 < audit.lesion_share <= 1
    assert "heat-map region" in _as_markdown(as_model(audit))


def test_a_chest_without_lungs_is_not_asked_about() -> None:
    volume = chest(GRID, has_lungs=False)
    audit = audit_scan(auditor_of(SameMap()), Subject("empty", volume))
    assert audit.decision == UNSUITABLE
    assert audit.probes == ()
    assert as_model(audit).verdict.startswith("No scan could be asked about")


def test_an_audit_changes_neither_network_nor_scan() -> None:
    torch.manual_seed(0)
    classifier = crafted(Mean(0.4, is_inside=True))
    before = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    subject = sick()
    voxels = subject.volume.voxels.copy()
    audit_scan(auditor_of(classifier.network, classifier), subject)
    after = classifier.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    np.testing.assert_array_equal(subject.volume.voxels, voxels)


def test_what_is_written_holds_every_answer_and_the_verdict(tmp_path: Path) -> None:
    audit = as_model(audit_of_outside_network(), audit_of_lung_network())
    files = write_model_audit(audit, tmp_path / "out")
    assert {path.name for path in files} == {"model-audit.json", "model-audit.md"}
    document = json.loads((tmp_path / "out" / JSON_FILE).read_text())
    assert document["schema_version"] == 1
    assert document["severity"] == "serious"
    assert document["scans"][0]["probes"][0]["name"] == "lesion"
    text = (tmp_path / "out" / "model-audit.md").read_text()
    assert "On 1 of 2 scans the model decides on what lies outside the lungs" in text
    assert text.count("## sick") == 2
    assert "lungs filled with healthy lung" in text


def test_lesions_on_another_grid_are_refused() -> None:
    volume, lesions = sick_chest()
    smaller = replace(lesions.grid, shape=(36, 36, 41))
    moved = lesions.with_voxels(lesions.voxels[..., 1:], smaller)
    subject = Subject("sick", volume, moved, GIVEN_LESIONS)
    with pytest.raises(ReadError, match="draw them on this very scan"):
        audit_scan(auditor_of(SameMap()), subject)


def test_scans_and_a_mask_are_read_from_disk(tmp_path: Path) -> None:
    lesions = write_scan(tmp_path / "scan.nii.gz")
    write_nifti(tmp_path / "mask.nii.gz", lesions.voxels, lesions.grid)
    (subject,) = read_subjects([tmp_path / "scan.nii.gz"], tmp_path / "mask.nii.gz")
    assert subject.lesion_source == GIVEN_LESIONS
    assert np.count_nonzero(subject.lesions.voxels) == np.count_nonzero(lesions.voxels)


def test_one_mask_for_two_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="belongs to one scan"):
        list(read_subjects([tmp_path / "a", tmp_path / "b"], tmp_path / "mask.nii.gz"))


def test_a_simulated_patient_comes_with_class_and_lesions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chestct.studies.model_audit._ROWS", 32)
    monkeypatch.setattr("chestct.studies.model_audit._SLICE_SPACING_MM", 10.0)
    (subject,) = simulated_subjects([0], ("CAP", "normal"))
    assert (subject.name, subject.truth) == ("simulated-1-cap", "CAP")
    (of_others,) = simulated_subjects([0], ("clear", "emphysema"))
    assert (of_others.name, of_others.truth) == ("simulated-1", "")
    assert subject.lesion_source == TRUE_LESIONS
    assert subject.lesions.voxels.any()
    assert subject.lesions.grid == subject.volume.grid


def test_every_scan_of_a_call_is_in_the_audit() -> None:
    classifier = crafted(NoCells())
    told: list[str] = []
    auditor = replace(auditor_of(classifier.network, classifier), listener=told.append)
    audit = audit_model(
        auditor,
        [
            audit_scan(auditor, each)
            for each in (sick(), Subject("empty", chest(GRID, has_lungs=False)))
        ],
    )
    assert [scan.name for scan in audit.scans] == ["sick", "empty"]
    assert audit.classifier == "crafted"
    assert "sick: lungs filled with soft tissue" in told


def test_an_answer_that_follows_a_dense_piece_is_told_unless_a_lesion_is_known() -> None:
    probe = Probe(BLANKING, DENSE, WORDS[DENSE], {NORMAL: 0.94}, NORMAL, 0.06, -0.92, is_same=False)
    audit = ScanAudit("p", "", COVID19, {COVID19: 0.98, NORMAL: 0.02}, probes=(probe,))
    found = [each for each in judge_scan_audit(audit) if each.check == "outside"]
    assert [each.severity for each in found] == ["notable"]
    assert "an organ outside them" in found[0].sentence
    assert not [
        each
        for each in judge_scan_audit(replace(audit, lesion_source=TRUE_LESIONS))
        if each.check == "outside"
    ]


def test_a_large_dense_piece_is_painted_and_vessels_are_not() -> None:
    recipe = crafted(Mean(0.4, is_inside=True)).recipe
    prepared = prepare(sick_chest()[0], recipe, lungs=own_lungs())
    values = np.full_like(prepared.input, 0.1)
    paint = _Paint(healthy=0.1, tissue=0.9, air=0.0)
    assert DENSE not in dict(_painted_scans(replace(prepared, input=values), None, paint))
    of_one_side = np.arange(prepared.lungs.shape[2]) < prepared.lungs.shape[2] // 2
    values[0][prepared.lungs & of_one_side] = 0.9
    painted = dict(_painted_scans(replace(prepared, input=values), None, paint))
    assert painted[DENSE].input.max() == np.float32(0.1)

"""`chestct audit-model` in process, on a tiny classifier of drawn weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audited_networks import write_scan
from tiny import save_tiny_classifier

from chestct.cli import main
from chestct.studies.model_audit import CHANGES
from chestct.studies.model_audit_findings import JSON_FILE, MARKDOWN_FILE
from chestct.writers.nifti import write_nifti

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited")
    lesions = write_scan(folder / "scan.nii.gz")
    write_nifti(folder / "lesions.nii.gz", lesions.voxels, lesions.grid)
    save_tiny_classifier(folder / "classifier")
    return folder


def audit(folder: Path, *more: str) -> int:
    given = ["--classifier", str(folder / "classifier"), "--engine", "torch"]
    return main(["audit-model", *given, *more])


def test_a_scan_is_audited_shown_and_written(
    folder: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"thick": CHANGES["thick"]}
    monkeypatch.setattr("chestct.studies.model_audit.CHANGES", few)
    scan, mask = str(folder / "scan.nii.gz"), str(folder / "lesions.nii.gz")
    assert audit(folder, scan, "--lesions", mask, "--out", str(tmp_path / "out")) == 0
    shown = capsys.readouterr().out
    assert "lungs filled with soft tissue" in shown
    assert "Not a medical device" in shown
    document = json.loads((tmp_path / "out" / JSON_FILE).read_text())
    assert document["scans"][0]["lesion_source"] == "given lesions"
    assert document["verdict"] in " ".join(shown.split())
    assert "random weights" in (tmp_path / "out" / MARKDOWN_FILE).read_text()


def test_nothing_to_ask_about_is_wrong_use(folder: Path, capsys: Output) -> None:
    assert audit(folder) == 2
    assert "--simulated 3" in capsys.readouterr().err


def test_an_unknown_explanation_is_refused_before_anything_is_read(
    folder: Path, capsys: Output
) -> None:
    assert audit(folder, "--simulated", "1", "--explanation", "gradcan") == 2
    assert "gradcam" in capsys.readouterr().err


def test_a_mask_that_is_not_there_is_refused(folder: Path, capsys: Output) -> None:
    scan = str(folder / "scan.nii.gz")
    assert audit(folder, scan, "--lesions", str(folder / "none.nii.gz")) == 2
    assert "does not exist" in capsys.readouterr().err

"""`chestct audit-model` in process, on a tiny classifier of drawn weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from audited_networks import write_scan
from here import work_here
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


def test_scans_that_workers_ask_about_have_the_same_audit(
    folder: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chestct.studies.model_audit.CHANGES", {"thick": CHANGES["thick"]})
    monkeypatch.setattr("chestct.studies.model_audit._ROWS", 32)
    monkeypatch.setattr("chestct.studies.model_audit._SLICE_SPACING_MM", 10.0)
    work_here(monkeypatch)
    here, there = tmp_path / "here", tmp_path / "there"
    asked = (str(folder / "scan.nii.gz"), "--simulated", "1")
    assert audit(folder, *asked, "--out", str(here)) == 0
    assert audit(folder, *asked, "--out", str(there), "--workers", "1") == 0
    first, second = capsys.readouterr().out.split("Classifier trained on:")[:2]
    assert "simulated-1" in first
    assert "simulated-1" in second
    for name in (JSON_FILE, MARKDOWN_FILE):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert {path.name for path in there.iterdir()} == {JSON_FILE, MARKDOWN_FILE}


def test_an_audit_by_workers_goes_on_with_the_scan_that_failed(
    folder: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chestct.studies.model_audit.CHANGES", {})
    work_here(monkeypatch)
    other, out = tmp_path / "other.nii.gz", tmp_path / "out"
    other.write_bytes(b"no scan")
    asked = (str(folder / "scan.nii.gz"), str(other), "--out", str(out), "--workers", "1")
    assert audit(folder, *asked) == 2
    assert "1 of 2 scans were not done" in capsys.readouterr().err
    assert not (out / JSON_FILE).exists()
    shutil.copy(folder / "scan.nii.gz", other)
    from chestct.cluster import judging

    done: list[object] = []
    ask = judging.audit_scan
    monkeypatch.setattr(judging, "audit_scan", lambda *said: done.append(said) or ask(*said))
    assert audit(folder, *asked) == 0
    assert len(done) == 1
    assert len(json.loads((out / JSON_FILE).read_text())["scans"]) == 2
    assert not (out / ".batch").exists()


def test_workers_of_an_audit_need_a_folder(folder: Path, capsys: Output) -> None:
    assert audit(folder, str(folder / "scan.nii.gz"), "--workers", "2") == 2
    assert "name --out DIR" in capsys.readouterr().err


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

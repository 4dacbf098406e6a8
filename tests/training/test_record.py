from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from chestct.errors import ReadError, TrainingError, WriteError
from chestct.storage import write_text
from chestct.training.plan import Plan, _git_state, begin_record, program_versions
from chestct.training.settings import RunSettings


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "scans.csv"
    path.write_text("scan,patient,label\n")
    return path


def settings(**training: object) -> RunSettings:
    return RunSettings.model_validate(
        {
            "labels": ["a", "b"],
            "network": {"name": "voxcnn"},
            "recipe": {"name": "maseres_paper"},
            "training": training,
        }
    )


def test_a_record_grows_by_one_session_each_time(tmp_path: Path, manifest: Path) -> None:
    run = tmp_path / "run"
    begin_record(Plan(settings(), manifest, run))
    begin_record(Plan(settings(workers=4, checkpoint_every_s=1), manifest, run))
    record = json.loads((run / "run.json").read_text())
    assert len(record["sessions"]) == 2
    assert record["sessions"][0]["versions"] == program_versions()


@pytest.mark.parametrize(
    ("change", "folds", "words"),
    [
        ({"learning_rate": 0.5}, None, r"training\.learning_rate was 0\.001, is 0\.5"),
        ({}, 5, "folds was None, is 5"),
    ],
)
def test_a_run_with_other_settings_is_not_gone_on_with(
    tmp_path: Path, manifest: Path, change: dict[str, object], folds: int | None, words: str
) -> None:
    run = tmp_path / "run"
    begin_record(Plan(settings(), manifest, run))
    with pytest.raises(TrainingError, match=words):
        begin_record(Plan(settings(**change), manifest, run, folds))


def test_a_run_begun_with_weights_that_were_replaced_is_not_gone_on_with(
    tmp_path: Path, manifest: Path
) -> None:
    run, weights = tmp_path / "run", tmp_path / "weights.pth"
    network = {"name": "roi_resnet18", "pretrained": str(weights)}
    begun = RunSettings.model_validate({**settings().model_dump(), "network": network})
    weights.write_bytes(b"first")
    begin_record(Plan(begun, manifest, run))
    begin_record(Plan(begun, manifest, run))
    weights.write_bytes(b"second")
    with pytest.raises(TrainingError, match=r"the file of network\.pretrained was"):
        begin_record(Plan(begun, manifest, run))


def without(run: Path, name: str) -> None:
    """Take a setting out of a record, as a version wrote it that did not know it yet."""
    record = json.loads((run / "run.json").read_text())
    del record["settings"]["training"][name]
    (run / "run.json").write_text(json.dumps(record))


def test_a_setting_that_came_later_had_its_default_before(tmp_path: Path, manifest: Path) -> None:
    run = tmp_path / "run"
    begin_record(Plan(settings(), manifest, run))
    without(run, "batch_norm_warm_up")
    with pytest.raises(TrainingError, match="batch_norm_warm_up was False, is True"):
        begin_record(Plan(settings(batch_norm_warm_up=True), manifest, run))
    begin_record(Plan(settings(), manifest, run))


def test_a_setting_that_is_no_longer_known_is_said(tmp_path: Path, manifest: Path) -> None:
    run = tmp_path / "run"
    begin_record(Plan(settings(), manifest, run))
    record = json.loads((run / "run.json").read_text())
    record["settings"]["training"]["of_old"] = 3
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(TrainingError, match=r"another version.*of_old.*new folder"):
        begin_record(Plan(settings(), manifest, run))


def test_a_run_on_other_scans_is_not_gone_on_with(tmp_path: Path, manifest: Path) -> None:
    run = tmp_path / "run"
    begin_record(Plan(settings(), manifest, run))
    manifest.write_text("scan,patient,label\nx,y,a\n")
    with pytest.raises(TrainingError, match="another manifest"):
        begin_record(Plan(settings(), manifest, run))


@pytest.mark.parametrize("content", ["{", "[]", '{"folds": 3}'])
def test_a_damaged_record_is_said(tmp_path: Path, manifest: Path, content: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(content)
    with pytest.raises(ReadError, match=r"run\.json in run is damaged"):
        begin_record(Plan(settings(), manifest, run))


def test_the_git_state_names_the_commit_and_says_whether_files_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        name = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *name, *arguments], check=True)

    assert _git_state(tmp_path) is None
    (tmp_path / "__init__.py").write_text("")
    git("init", "-q")
    assert _git_state(tmp_path) is None
    git("add", ".")
    git("commit", "-q", "-m", "first")
    clean = _git_state(tmp_path)
    assert clean is not None
    assert len(str(clean["commit"])) == 40
    assert clean["is_changed"] is False
    (tmp_path / "__init__.py").write_text("x = 1\n")
    assert _git_state(tmp_path) == {**clean, "is_changed": True}


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"run\.json cannot be written"):
        write_text(tmp_path / "file" / "run.json", "{}")

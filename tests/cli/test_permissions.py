"""What commands leave is for its owner alone, in other processes too, unless it is shared."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_scans import SETTINGS, read_rows, write_rows, write_scans
from labelled_scans import write_scan
from safetensors.numpy import save_file

from chestct.cli import main
from chestct.preprocess.recipes import RECIPES
from chestct.storage import make_folder, write_text, write_whole_with
from chestct.studies.model_audit import CHANGES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")

OWN = {0o600, 0o700}
EVERYBODYS = {0o644, 0o755}
PARTS = ("training", "validation", "test")
SMALL = replace(
    RECIPES["maseres_recommended"],
    input_shape=(32, 32, 32),
    spacing_mm=(10.0, 10.0, 10.0),
    lungs="published",
)


@pytest.fixture(autouse=True)
def usual_permissions() -> Iterator[None]:
    """New files may be read by everybody, as on most machines."""
    before = os.umask(0o022)
    yield
    assert os.umask(before) == 0o022


def modes(folder: Path) -> set[int]:
    """Permissions of all that is below a folder, and of itself."""
    return {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of inputs that take no time to prepare."""
    monkeypatch.setitem(RECIPES, "small", SMALL)


@pytest.mark.parametrize(("more", "wanted"), [((), OWN), (("--shared",), EVERYBODYS)])
def test_results_are_for_their_owner_alone_unless_they_are_shared(
    scan: Path,
    tiny: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    wanted: set[int],
) -> None:
    monkeypatch.setattr("chestct.studies.model_audit.CHANGES", {"thick": CHANGES["thick"]})
    made = tmp_path / "made"
    classify = ["classify", str(scan), "--classifier", tiny, "--engine", "torch"]
    written = ["--explain", "--write", "json,html,nifti,dicom_sr,dicom_sc"]
    assert main([*classify, *written, "--out", str(made / "results"), *more]) == 0
    prepare = ["prepare", str(scan), "--recipe", "small"]
    assert main([*more, *prepare, "--out", str(made / "prepared")]) == 0
    audit = ["audit-model", "--classifier", tiny, str(scan), "--out", str(made / "audit")]
    assert main([*audit, "--engine", "torch", *more]) in (0, 1)
    assert (made / "audit").is_dir()
    assert modes(made) == wanted


@pytest.mark.parametrize(("more", "wanted"), [((), OWN), (("--shared",), EVERYBODYS)])
def test_data_sets_are_for_their_owner_alone_unless_they_are_shared(
    tmp_path: Path, more: tuple[str, ...], wanted: set[int]
) -> None:
    for number, label in enumerate(("covid", "normal", "covid", "normal")):
        write_scan(tmp_path / "set" / label / f"{label}-{number}.nii.gz", seed=number)
    made = tmp_path / "made"
    scans, cache = str(made / "scans.csv"), ["--cache", str(made / "cache")]
    assert main(["dataset", "scan", str(tmp_path / "set"), "--out", scans, *more]) == 0
    assert main(["dataset", "split", scans, "--folds", "2", *more]) == 0
    quick = ["--processes", "1", *more]
    report = ["--out", str(made / "report.json")]
    assert main(["dataset", "check", scans, *cache, *report, *quick]) in (0, 1)
    # In another process, which has to do as this one does.
    prepare = ["prepare", scans, "--recipe", "small", *cache, "--processes", "1"]
    assert main(["dataset", *prepare, *more]) == 0
    for form in ("nifti", "tiff16"):
        out = ["--to", form, "--out", str(made / form)]
        assert main(["dataset", "export", scans, *out, *quick]) == 0
    assert main(["dataset", "flow", scans, "--out", str(made / "flow.csv"), *more]) == 0
    assert modes(made) == wanted


@pytest.mark.parametrize(("more", "wanted"), [((), OWN), (("--shared",), EVERYBODYS)])
def test_trainings_are_for_their_owner_alone_unless_they_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], wanted: set[int]
) -> None:
    monkeypatch.setattr("chestct.evaluation.report.draw_evaluation", lambda *_arguments: {})
    rows = read_rows(write_scans(tmp_path / "scans", 3))
    rows = [{**row, "split": PARTS[number // 2]} for number, row in enumerate(rows)]
    table = write_rows(tmp_path / "scans" / "split.csv", rows)
    made, config = tmp_path / "made", tmp_path / "settings.yaml"
    config.write_text(f'{SETTINGS}data: {{cache: "{made / "cache"}"}}\n')
    train = ["train", str(config), "--data", str(table), "--out", str(made / "run")]
    assert main([*train, "--processes", "1", *more]) == 0
    evaluate = ["evaluate", str(made / "run" / "classifier"), str(table), "--processes", "1"]
    assert main([*evaluate, "--out", str(made / "evaluation"), *more]) == 0
    rates = ["lr-range", str(config), "--data", str(table), "--out", str(made / "rates")]
    assert main([*rates, "--steps", "3", "--processes", "1", *more]) == 0
    assert modes(made) == wanted


def test_a_folder_that_was_there_keeps_its_permissions(scan: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    command = ["prepare", str(scan), "--recipe", "small", "--out", str(tmp_path)]
    assert main(command) == 0
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_caller_from_python_has_the_permissions_of_his_system(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "made")
    write_text(folder / "file", "words")
    # This library makes its files for their owner alone.
    write_whole_with(folder / "numbers", lambda aside: save_file({"a": np.zeros(3)}, aside))
    assert modes(folder) == EVERYBODYS

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from labelled_scans import make_manifest, make_rows, write_scan

from chestct.cli import main
from chestct.cli.dataset import _progress_bar
from chestct.datasets.manifest import Manifest, read_manifest, write_manifest
from chestct.datasets.workers import Progress
from chestct.preprocess.recipes import RECIPES

Output = pytest.CaptureFixture[str]

TINY = replace(
    RECIPES["roi_resnet_recommended"], input_shape=(12, 12, 12), spacing_mm=(28.0, 28.0, 28.0)
)
QUICK = replace(TINY, lungs="published")
"""The same with lungs that no network has to find."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two coarse chests of each of two classes, one folder per class."""
    for number, label in enumerate(("covid", "normal", "covid", "normal")):
        write_scan(tmp_path / "set" / label / f"{label}-{number}.nii.gz", seed=number)
    return tmp_path / "set"


def run(*arguments: object) -> int:
    return main(["dataset", *map(str, arguments)])


def printed(capsys: Output) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_from_a_folder_to_prepared_inputs(
    folder: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, cache = tmp_path / "scans.csv", tmp_path / "cache"
    assert run("scan", folder, "--out", manifest) == 0
    said = printed(capsys)
    assert "4 scans of 4 patients: 2 COVID-19, 2 normal (layout folder_per_class)" in said
    assert "Every scan is taken for another patient" in said

    assert run("split", manifest, "--folds", "2") == 0
    assert "fold 1 1 1 2" in printed(capsys)
    assert read_manifest(manifest).folds == (1, 2)

    report = tmp_path / "report.json"
    arguments = ("--processes", "1", "--cache", cache, "--out", report)
    assert run("check", manifest, *arguments) == 0
    said = printed(capsys)
    assert "Only 2 scan(s) are COVID-19" in said
    assert "file format 0.50" in said
    assert json.loads(report.read_text())["may_be_trained_on"] is True

    monkeypatch.setitem(RECIPES, "tiny", TINY)
    wanted = ("--recipe", "tiny", "--cache", cache, "--processes", "1", "--storage", "uint8")
    assert run("prepare", manifest, *wanted) == 0
    assert "4 prepared, 0 were there, 0 failed" in printed(capsys)
    assert run("prepare", manifest, *wanted) == 0
    assert "0 prepared, 4 were there" in printed(capsys)


def test_folders_may_be_named_after_classes_of_ones_own(tmp_path: Path, capsys: Output) -> None:
    for name in ("Emphysema/a.nii.gz", "Emphysema/b.nii.gz", "clear/c.nii.gz"):
        write_scan(tmp_path / "scans" / name)
    out = ("--out", tmp_path / "m.csv")
    assert run("scan", tmp_path / "scans", *out) == 2
    assert "(or as --classes says)" in capsys.readouterr().err
    assert run("scan", tmp_path / "scans", *out, "--classes", "clear,emphysema") == 0
    assert "3 scans of 3 patients: 1 clear, 2 emphysema" in printed(capsys)
    assert read_manifest(tmp_path / "m.csv").labels == ("clear", "emphysema")


def test_a_leak_is_refused_with_exit_1(folder: Path, tmp_path: Path, capsys: Output) -> None:
    write_scan(folder / "normal" / "copy.nii.gz", seed=1, is_reversed=True)
    manifest = tmp_path / "scans.csv"
    assert run("scan", folder, "--out", manifest) == 0
    capsys.readouterr()
    assert run("check", manifest, "--processes", "1") == 1
    assert "✗ Rows 4 and 5 hold the same pixels" in printed(capsys)


def test_a_quick_check_reads_no_scan(tmp_path: Path, capsys: Output) -> None:
    rows = [replace(row, site=row.label) for row in make_rows({"COVID-19": 30, "normal": 30})]
    for row in rows:
        (tmp_path / row.scan).touch()
    write_manifest(make_manifest(rows, tmp_path), tmp_path / "scans.csv")
    assert run("check", tmp_path / "scans.csv", "--quick") == 0
    said = printed(capsys)
    assert "The scans were not read" in said
    assert "Class and site are the same variable" in said
    assert "the class itself" in said


def test_a_check_without_anything_to_say_says_so(tmp_path: Path, capsys: Output) -> None:
    rows = make_rows({"COVID-19": 30, "normal": 30})
    rows = [replace(row, split="training" if n % 2 else "test") for n, row in enumerate(rows)]
    for row in rows:
        (tmp_path / row.scan).touch()
    write_manifest(make_manifest(rows, tmp_path), tmp_path / "scans.csv")
    assert run("check", tmp_path / "scans.csv", "--quick") == 0
    said = printed(capsys)
    assert "No leaks and no confounders were found" in said
    assert "training 15 15 30" in said


def test_a_split_goes_where_it_is_wanted(tmp_path: Path, capsys: Output) -> None:
    manifest, out = tmp_path / "scans.csv", tmp_path / "divided.csv"
    write_manifest(make_manifest(make_rows({"COVID-19": 20, "normal": 10}), tmp_path), manifest)
    before = manifest.read_text()
    said = ("--hold-out", "0.2", "--validation", "0.1", "--seed", "3", "--out", out)
    assert run("split", manifest, *said) == 0
    assert manifest.read_text() == before
    sides = [row.split for row in read_manifest(out, needs_files=False).rows]
    assert (sides.count("test"), sides.count("validation")) == (6, 3)
    assert "test 4 2 6" in printed(capsys)
    assert run("split", manifest, "--maseres-paper", "--out", out) == 0
    sides = [row.split for row in read_manifest(out, needs_files=False).rows]
    assert (sides.count("test"), sides.count("validation")) == (3, 3)


def other_classes(folder: Path) -> Path:
    """A manifest of 20 scans that are severe or mild, and one that is left out; empty files."""
    rows = make_rows({"severe": 10, "mild": 10})
    rows.append(replace(rows[0], scan="blurred", excluded="blurred"))
    for row in rows:
        (folder / row.scan).touch()
    return write_manifest(Manifest(tuple(rows), ("severe", "mild"), folder), folder / "scans.csv")


NAMED = ("--labels", "severe, mild")


def test_other_classes_are_divided_checked_and_counted_when_named(
    tmp_path: Path, capsys: Output
) -> None:
    manifest = other_classes(tmp_path)
    assert run("split", manifest, "--folds", "2", *NAMED) == 0
    assert "severe mild Patients fold 1 5 5 10" in printed(capsys)
    assert run("check", manifest, "--quick", *NAMED) == 0
    assert "20 scans of 20 patients: 10 severe, 10 mild" in printed(capsys)
    assert run("flow", manifest, *NAMED) == 0
    assert "excluded: blurred" in printed(capsys)


def test_classes_of_ones_own_need_no_name_and_may_come_from_a_file(
    tmp_path: Path, capsys: Output
) -> None:
    manifest = other_classes(tmp_path)
    assert run("check", manifest, "--quick") == 0
    assert "20 scans of 20 patients: 10 mild, 10 severe" in printed(capsys)
    file = tmp_path / "labels.yaml"
    file.write_text("labels:\n- {name: severe, wording: Severe disease}\n- {name: mild}\n")
    assert run("check", manifest, "--quick", "--labels", file) == 0
    assert "10 severe, 10 mild" in printed(capsys)


def test_scans_of_other_classes_are_prepared_and_copied_when_named(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, here: None
) -> None:
    write_scan(tmp_path / "a.nii.gz")
    (tmp_path / "m.csv").write_text("scan,patient,label\na.nii.gz,p,severe\n")
    monkeypatch.setitem(RECIPES, "tiny", QUICK)
    wanted = ("--recipe", "tiny", "--cache", tmp_path / "cache", "--processes", "1")
    assert run("prepare", tmp_path / "m.csv", *wanted, *NAMED) == 0
    assert "1 prepared" in printed(capsys)
    wanted = ("--to", "nifti", "--out", tmp_path / "shared", "--processes", "1")
    assert run("export", tmp_path / "m.csv", *wanted, *NAMED) == 0
    copies = read_manifest(tmp_path / "shared" / "scans.csv", ("severe", "mild"))
    assert [row.label for row in copies.rows] == ["severe"]


READERS = {
    "check": ["--quick"],
    "split": ["--folds", "2"],
    "prepare": ["--recipe", "maseres_paper", "--cache", "c"],
    "export": ["--to", "nifti", "--out", "o"],
    "flow": [],
}
"""Commands that read a manifest, with the options they need."""


@pytest.mark.parametrize("command", READERS)
def test_classes_that_were_not_named_are_refused_with_the_option(
    command: str, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = other_classes(tmp_path)
    # One that the papers know beside others: it may be misspelt, or one of the user's own.
    manifest.write_text(manifest.read_text().replace("mild", "normal"))
    assert run(command, manifest, *READERS[command]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "row 2: There is no label 'severe'" in said
    assert "name all its classes: --labels A,B" in said
    assert run(command, tmp_path / "scans.csv", *READERS[command], "--labels", "severe,mld") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "There is no label 'normal'. Known: severe, mld." in said
    assert "name all its classes" not in said


def test_other_errors_of_a_manifest_do_not_speak_of_classes(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "m.csv").write_text("scan,patient,label\nnone,p,CAP\n")
    assert run("check", tmp_path / "m.csv") == 2
    assert "--labels" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["split", "m.csv", "--folds", "3", "--labels", "A,"], "--labels 'A,' has an empty name"),
        (["split", "m.csv", "--folds", "3", "--labels", ""], "--labels '' has an empty name"),
        (["flow", "m.csv", "--labels", "A,B,A"], "--labels 'A,B,A' names 'A' twice"),
        (["flow", "m.csv", "--labels", "none.yaml"], "there is no file none.yaml"),
        (["scan", ".", "--out", "m.csv", "--sheet", "A"], "--sheet is about a table of labels"),
        (["prepare", "m.csv"], "Give --settings CONFIG"),
        (["prepare", "m.csv", "--recipe", "maseres_paper", "--cache", "c", "--set", "a=1"], "Give"),
        (
            ["prepare", "m.csv", "--settings", "maseres_paper", "--recipe", "maseres_paper"],
            "Leave --recipe out, or --set recipe.name=maseres_paper.",
        ),
        (["split", "m.csv"], "Give one of --folds"),
        (["split", "m.csv", "--folds", "3", "--maseres-paper"], "Give one of --folds"),
        (["split", "m.csv", "--folds", "3", "--validation", "0.1"], "goes with --hold-out"),
        (["check", "m.csv"], "m.csv cannot be read as a manifest"),
        (["scan", "none", "--out", "m.csv"], "There is no folder none"),
        (["scan", ".", "--out", "m.csv", "--spacing-mm", "1,1"], "--order"),
        (["prepare", "m.csv", "--recipe", "maseres_papr", "--cache", "c"], "maseres_paper"),
        (["prepare", "m.csv"], "--recipe"),
        (["chekc"], "chekc"),
    ],
)
def test_wrong_use_is_said_once_with_exit_2(
    arguments: list[str],
    words: str,
    capsys: Output,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("chestct: ") == 1


def test_a_storage_that_does_not_exist_is_said(
    folder: Path, tmp_path: Path, capsys: Output
) -> None:
    run("scan", folder, "--out", tmp_path / "m.csv")
    arguments = ("--recipe", "maseres_paper", "--cache", tmp_path / "c", "--storage", "uint9")
    assert run("prepare", tmp_path / "m.csv", *arguments) == 2
    assert "Did you mean 'uint8'" in capsys.readouterr().err


def test_failures_and_unsuitable_scans_are_listed(
    folder: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, here: None
) -> None:
    import nibabel
    import numpy as np

    (folder / "covid" / "covid-0.nii.gz").write_bytes(b"broken")
    noise = np.random.default_rng(0).integers(-1000, 400, (28, 24, 24)).astype(np.int16)
    image = nibabel.Nifti1Image(noise, np.diag([13.5, 13.5, 15.0, 1.0]))
    nibabel.save(image, folder / "covid" / "covid-2.nii.gz")
    monkeypatch.setitem(RECIPES, "tiny", QUICK)
    run("scan", folder, "--out", tmp_path / "m.csv")
    arguments = ("--recipe", "tiny", "--cache", tmp_path / "c", "--processes", "1")
    assert run("prepare", tmp_path / "m.csv", *arguments) == 1
    said = printed(capsys)
    assert "3 prepared, 0 were there, 1 failed" in said
    assert "row 2: covid-0.nii.gz" in said
    assert "row 3 is unsuitable" in said
    table = tmp_path / "c" / "m-failures.csv"
    assert str(table) in said
    lines = table.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "row,scan,reason"
    assert lines[1].startswith("2,covid-0.nii.gz,")
    assert not list((tmp_path / "c").glob(".preparing*")), "the job ends with its work"
    shutil.copy(folder / "covid" / "covid-2.nii.gz", folder / "covid" / "covid-0.nii.gz")
    assert run("prepare", tmp_path / "m.csv", *arguments) == 0
    assert not table.exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--executor", "slrum"), "Did you mean 'slurm'?"),
        (("--executor-option", "address"), "--executor-option is KEY=VALUE"),
        (("--executor-option", "partition=gpu"), "'local' has no option 'partition'"),
    ],
)
def test_who_cannot_prepare_is_said(
    more: tuple[str, ...], words: str, folder: Path, tmp_path: Path, capsys: Output
) -> None:
    run("scan", folder, "--out", tmp_path / "m.csv")
    wanted = ("--recipe", "maseres_paper", "--cache", tmp_path / "c")
    assert run("prepare", tmp_path / "m.csv", *wanted, *more) == 2
    assert words in capsys.readouterr().err


# submitit leaves the processes of its local executor to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_jobs_of_a_cluster_prepare_the_same_inputs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setitem(RECIPES, "tiny", QUICK)
    run("scan", folder, "--out", tmp_path / "m.csv")
    slurm = ("--executor", "slurm", "--workers", "1", "--executor-option", "cluster=local")
    for cache, more in (("here", ("--workers", "1")), ("there", slurm)):
        wanted = ("--recipe", "tiny", "--cache", tmp_path / cache, *more)
        assert run("prepare", tmp_path / "m.csv", *wanted) == 0
    here, there = (
        {each.name: each.read_bytes() for each in (tmp_path / cache).rglob("*.safetensors")}
        for cache in ("here", "there")
    )
    assert len(here) == 4
    assert here == there


def test_how_slices_lie_is_kept_in_the_manifest(tmp_path: Path) -> None:
    for label in ("covid1", "normal1"):
        place = tmp_path / "set" / label / label / "SR_2"
        place.mkdir(parents=True)
        (place / "1.tif").touch()
    said = ("--spacing-mm", "2,0.7,0.7", "--order", "ascending", "--slope", "1")
    assert (
        run("scan", tmp_path / "set", "--out", tmp_path / "m.csv", *said, "--intercept", -1024) == 0
    )
    row = read_manifest(tmp_path / "m.csv").rows[0]
    assert row.others["spacing_mm"] == "2 0.7 0.7"
    assert row.others["intercept"] == "-1024.0"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from chestct.cli import main; main(['dataset', '--help']); "
        "heavy = {'torch', 'scipy', 'sklearn', 'numpy', 'cv2', 'pydicom'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or None)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_bar_takes_every_step() -> None:
    with _progress_bar("reading", 3) as report:
        report(Progress(1, 3, 100.0))
        report(Progress(3, 3, 300.0))

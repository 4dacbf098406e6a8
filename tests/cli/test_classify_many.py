"""`chestct classify` of many scans: the same answers as one by one, whoever is killed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from phantoms import chest, chest_grid

from chestct.cli import main
from chestct.cluster import EXECUTORS
from chestct.errors import ChestCTError
from chestct.lookup import load_entry

Output = pytest.CaptureFixture[str]
NUM = 12


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen tiny scans, one that is none, and one that is not there."""
    import nibabel

    folder = tmp_path_factory.mktemp("many")
    volume = chest(chest_grid((72, 36, 42), (5.0, 9.0, 9.0)))
    for each in range(NUM):
        voxels = np.transpose((volume.voxels + each).astype(np.int16), (2, 1, 0))
        image = nibabel.Nifti1Image(voxels, np.diag([-9.0, -9.0, 5.0, 1.0]))
        image.to_filename(folder / f"s{each:02d}.nii.gz")
    (folder / "bad.nii.gz").write_bytes(b"no scan")
    names = [f"s{each:02d}.nii.gz" for each in range(NUM)] + ["bad.nii.gz", "gone.nii.gz"]
    file = folder / "scans.csv"
    file.write_text("\n".join(["scan", *names]) + "\n", encoding="utf-8")
    return file


DOUBTS_ALL = {
    "abstain_below": 1.0,
    "wished_error": 0.1,
    "level": 0.9,
    "coverage": 0.5,
    "risk": 0.05,
    "risk_bound": 0.1,
    "num_scans": 20,
}


def said(manifest: Path, tiny: str, out: Path, *more: str) -> list[str]:
    return ["classify", "--manifest", str(manifest), "--out", str(out), *how(tiny), *more]


def how(tiny: str) -> tuple[str, ...]:
    return ("--classifier", tiny, "--engine", "torch")


def rows_in(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def kill_a_worker(driver: int) -> None:
    """The driver's other child keeps what processes share."""
    workers = [
        each
        for each in psutil.Process(driver).children()
        if "spawn_main" in " ".join(each.cmdline())
    ]
    workers[0].send_signal(signal.SIGKILL)


def let_claims_run_out(out: Path) -> None:
    """As if the minute were over for which a killed process's claims hold."""
    for claim in (out / ".batch" / "claims").glob("*.[0-9]"):
        os.utime(claim, (0, 0))


def test_killed_workers_and_drivers_leave_one_row_per_scan_as_one_by_one(
    manifest: Path, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    single = [str(manifest.parent / f"s{each:02d}.nii.gz") for each in (0, 5)]
    assert main(["classify", *single, "--json", *how(tiny)]) == 0
    alone = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    out = tmp_path / "out"
    command = [sys.executable, "-m", "chestct", *said(manifest, tiny, out, "--workers", "2")]
    command += ["--shard", "2"]
    driver = subprocess.Popen(command)
    for num_parts in (1, 4):
        while driver.poll() is None and len(list(out.glob(".batch/parts/*"))) < num_parts:
            time.sleep(0.05)
        if driver.poll() is None and num_parts == 1:
            kill_a_worker(driver.pid)
            let_claims_run_out(out)
        elif driver.poll() is None:
            driver.kill()
            driver.wait()
            let_claims_run_out(out)
            driver = subprocess.Popen(command)
    assert driver.wait() == 1
    rows = rows_in(out / "answers.csv")
    assert [row["path"] for row in rows[:NUM]] == [f"s{each:02d}.nii.gz" for each in range(NUM)]
    assert len(rows) == NUM + 2
    for index, answer in zip((0, 5), alone, strict=True):
        assert rows[index]["decision"] == answer["decision"]
        for label, share in answer["probabilities"].items():
            assert float(rows[index][f"probability_{label}"]) == pytest.approx(share, abs=1e-6)
    failures = {row["path"]: row["reason"] for row in rows_in(out / "failures.csv")}
    assert set(failures) == {"bad.nii.gz", "gone.nii.gz"}
    assert "does not exist" in failures["gone.nii.gz"]
    assert not list(out.glob("s*")), "a folder per scan was not asked for"
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count('<section class="patient">') == NUM + 2
    assert page.count("No answer.") == 2
    assert f"{NUM + 2} scans" in page
    assert "report.html" not in page


def test_folders_per_scan_are_written_where_they_are_asked_for(
    manifest: Path, tiny: str, tmp_path: Path, here: None
) -> None:
    few = manifest.with_name("few.csv")
    few.write_text("scan\ns00.nii.gz\ns01.nii.gz\n", encoding="utf-8")
    card = shutil.copytree(tiny, manifest.with_name("doubting")) / "card.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "abstention": DOUBTS_ALL}))
    doubting = str(card.parent)
    assert main(said(few, doubting, tmp_path, "--write", "json,html")) == 0
    found = json.loads((tmp_path / "s01" / "result.json").read_text(encoding="utf-8"))
    assert found["scan"] == "s01.nii.gz"
    (row,) = (row for row in rows_in(tmp_path / "answers.csv") if row["scan"] == found["scan"])
    assert row["decision"] == found["decision"]
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'href="s00/report.html"' in page
    assert 'href="s01/report.html"' in page
    assert row["doubt"] == "uncertain"
    assert page.count("; uncertain</dd>") == 2
    before = (tmp_path / "answers.csv").read_bytes()
    assert main(said(few, doubting, tmp_path, "--write", "json,html")) == 0
    assert (tmp_path / "answers.csv").read_bytes() == before


NEVER_RETURNS = """
import threading


def read_forever(path, options):
    threading.Event().wait()
"""


def test_a_reader_that_never_returns_costs_its_scan_alone(
    manifest: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "forever-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: forever\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[chestct.readers]\nforever = forever:read_forever\n")
    (info.parent / "forever.py").write_text(NEVER_RETURNS)
    monkeypatch.syspath_prepend(str(info.parent))
    (tmp_path / "b.forever").touch()
    for name in ("a.nii.gz", "c.nii.gz"):
        (tmp_path / name).symlink_to(manifest.with_name("s00.nii.gz"))
    few = tmp_path / "few.csv"
    few.write_text("scan\na.nii.gz\nb.forever\nc.nii.gz\n", encoding="utf-8")
    more = ("--workers", "1", "--shard", "3", "--scan-timeout", "5")
    assert main(said(few, tiny, tmp_path / "out", *more)) == 1
    (failure,) = rows_in(tmp_path / "out" / "failures.csv")
    assert failure["path"] == "b.forever"
    assert "longer than 5 s, alone too" in failure["reason"]
    assert [bool(row["decision"]) for row in rows_in(tmp_path / "out" / "answers.csv")] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--json",), "--json prints single answers"),
        (("--executor", "slrum"), "Did you mean 'slurm'?"),
        (("--executor-option", "address"), "--executor-option is KEY=VALUE"),
        (("--executor-option", "partition=gpu"), "'local' has no option 'partition'"),
        (("--executor-option", "gpus=first"), "Expected numbers: gpus=0,1"),
        (("--lungs", "mask.nii"), "Name masks in the manifest's column 'lungs'"),
        (("other.nii",), "Name scans or a --manifest, not both"),
        (("--executor", "ray", "--executor-option", "adress=a:1"), "no option 'adress'"),
        (("--executor", "ray", "--executor-option", "address=head"), "is HOST:PORT"),
        (("--executor", "ray", "--executor-option", "address=127.0.0.1:1"), "No Ray cluster"),
    ],
)
def test_what_cannot_be_is_said_before_work_starts(
    words: tuple[str, ...],
    answer: str,
    manifest: Path,
    tiny: str,
    tmp_path: Path,
    capsys: Output,
) -> None:
    assert main(said(manifest, tiny, tmp_path / "out", *words)) == 2
    assert answer in capsys.readouterr().err


def test_a_batch_needs_scans_and_a_folder(manifest: Path, tiny: str, capsys: Output) -> None:
    assert main(["classify"]) == 2
    assert "--manifest CSV" in capsys.readouterr().err
    assert main(["classify", "--manifest", str(manifest), "--classifier", tiny]) == 2
    assert "Name one: --out DIR" in capsys.readouterr().err


def test_another_classifier_for_the_same_results_is_refused(
    manifest: Path, tiny: str, tmp_path: Path
) -> None:
    from chestct.classifier import load_classifier
    from chestct.cluster.classifying import ClassifyWork

    settings = ClassifyWork.settings(load_classifier(tiny), Path(tiny))
    with pytest.raises(ChestCTError, match="same classifier and the same chestct"):
        ClassifyWork({**settings, "identity": "0" * 64}, tmp_path)


def test_every_executor_is_a_class_that_starts_and_stops_workers() -> None:
    for name in EXECUTORS:
        crew = load_entry(EXECUTORS, name, kind="executor")
        assert {"start", "ended", "stop"} <= set(dir(crew))

"""What goes wrong with one scan of a call stays with that scan."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from phantoms import chest

from chestct.cli import main, options
from chestct.errors import ReadError
from chestct.readers import read_volume
from chestct.simulate import write_dicom_series
from chestct.volume import Volume

Output = pytest.CaptureFixture[str]


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A scan that `fail_with` makes fail."""
    folder = tmp_path / "bad"
    folder.mkdir()
    return folder


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reader fail with what is not in the family of our errors, for one scan."""

    def read(path: Path, **said: object) -> Volume:
        if path.name == "bad":
            raise error
        return read_volume(path, **said)  # type: ignore[arg-type]

    monkeypatch.setattr("chestct.readers.read_volume", read)


def classify(*arguments: str | Path, tiny: str) -> int:
    return main(["classify", *map(str, arguments), "--classifier", tiny, "--engine", "torch"])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Doe^Jane"), "internal error (RuntimeError)"),
        (MemoryError("Unable to allocate 9 GiB"), "not enough memory (Unable to allocate 9 GiB)"),
        (MemoryError(), "Free some"),
        (OSError(errno.EIO, "Input/output error", "Doe^Jane.dcm"), "(OSError: Input/output error)"),
        (ValueError("bad value"), "--debug"),
    ],
)
def test_an_error_of_the_program_over_one_scan_does_not_stop_the_others(
    error: Exception,
    words: str,
    bad: Path,
    scan: Path,
    tiny: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    fail_with(error, monkeypatch)
    assert classify(scan, bad, scan, "--json", tiny=tiny) == 1
    printed = capsys.readouterr()
    assert [json.loads(line)["scan"] for line in printed.out.splitlines()] == ["p07", "p07"]
    assert printed.err.startswith(f"chestct: {bad}: ")
    assert printed.err.count("chestct: ") == 1
    assert words in printed.err
    assert "Traceback" not in printed.err
    assert "Doe" not in printed.err


def test_an_error_of_the_program_over_the_only_scan_has_its_traceback_on_request(
    bad: Path, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    fail_with(RuntimeError("gone"), monkeypatch)
    assert classify(bad, tiny=tiny) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert classify(bad, "--debug", tiny=tiny) == 2
    assert "Traceback" in capsys.readouterr().err


def test_too_little_memory_for_the_only_scan_is_said_with_its_remedy(
    bad: Path, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    fail_with(MemoryError(), monkeypatch)
    assert classify(bad, tiny=tiny) == 2
    assert "Free some" in capsys.readouterr().err


def test_an_answer_that_cannot_be_printed_ends_the_call(
    scan: Path, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def refuse(_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("chestct.cli.classify.typer.echo", refuse)
    assert classify(scan, scan, "--json", tiny=tiny) == 2
    assert capsys.readouterr().err.count("No space left") == 1


def test_a_name_that_is_not_text_is_classified_like_any_other(
    scan: Path, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    odd = tmp_path / os.fsdecode(b"M\xfcller")
    odd.symlink_to(scan)
    out = tmp_path / "out"
    assert classify(odd, scan, "--json", "--out", out, tiny=tiny) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["scan"] for line in lines] == ["M\ufffdller", "p07"]
    assert sorted(path.name for path in out.iterdir()) == ["M\ufffdller", "p07"]
    assert (out / "M\ufffdller" / "report.html").is_file()


@pytest.mark.parametrize("num_scans", [1, 2])
def test_results_in_a_folder_whose_name_is_not_text_are_shown(
    num_scans: int, scan: Path, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / os.fsdecode(b"\xfcbersicht")
    scans = [scan] * num_scans
    assert classify(*scans, "--write", "json", "--out", out, tiny=tiny) == 0
    assert "\ufffdbersicht" in capsys.readouterr().out.replace("\n", "")


def test_results_of_a_path_that_ends_in_dots_stay_below_out(
    scan: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p08" / "below").mkdir(parents=True)
    (tmp_path / "p08" / "dicom").symlink_to(scan)
    monkeypatch.chdir(tmp_path / "p08" / "below")
    out = tmp_path / "results" / "out"
    assert classify("..", "--write", "json", "--out", out, tiny=tiny) == 0
    (found,) = tmp_path.rglob("result.json")
    assert found == out / "p08" / "result.json"
    assert json.loads(found.read_text())["scan"] == "p08"


def test_the_folder_of_another_scan_is_refused_whatever_is_written(
    scan: Path, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    volume = chest()
    lower = volume.with_voxels((volume.voxels.round() - 7).clip(-1024).astype(np.int16))
    write_dicom_series(lower, tmp_path / "other" / "p07")
    command = ("--write", "html", "--out", tmp_path / "out")
    assert classify(scan, *command, tiny=tiny) == 0
    report = tmp_path / "out" / "p07" / "report.html"
    before = report.read_bytes()
    capsys.readouterr()
    assert classify(tmp_path / "other" / "p07", *command, tiny=tiny) == 2
    assert "result of another scan" in capsys.readouterr().err
    assert report.read_bytes() == before


def test_objects_of_an_earlier_run_do_not_stay_beside_a_new_answer(
    scan: Path, tiny: str, tmp_path: Path
) -> None:
    assert classify(scan, "--write", "dicom_sr,dicom_seg", "--out", tmp_path, tiny=tiny) == 0
    assert len(list((tmp_path / "p07").glob("*.dcm"))) == 2
    assert classify(scan, "--out", tmp_path, tiny=tiny) == 0
    names = {path.name for path in (tmp_path / "p07").iterdir()}
    assert names == {"preview.png", "report.html", "result.json"}


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENAMETOOLONG])
def test_a_path_that_cannot_be_looked_for_is_said(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, whom no permission stops.
    def refuse(self: Path) -> bool:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(ReadError, match=f"p07 cannot be looked for: {os.strerror(code).lower()}"):
        options.require_exists(Path("p07"))


def test_too_long_a_name_is_said_and_the_others_are_classified(
    scan: Path, tiny: str, capsys: Output
) -> None:
    assert classify("x" * 5000, scan, "--json", tiny=tiny) == 1
    printed = capsys.readouterr()
    assert "file name too long" in printed.err
    assert "internal error" not in printed.err
    assert len(printed.out.splitlines()) == 1
    assert classify("x" * 5000, tiny=tiny) == 2
    assert "internal error" not in capsys.readouterr().err


def test_every_scan_below_a_folder_is_classified_and_named_by_its_path(
    scan: Path, tiny: str, tmp_path: Path, capsys: Output
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "scans" / "results"
    (scans / "b").mkdir(parents=True)
    (scans / "b" / "p07").symlink_to(scan)
    (scans / "a.nii.gz").write_bytes(b"no scan")
    said = ("--recursive", "--write", "json,preview", "--out", out)
    assert classify(scans, *said, tiny=tiny) == 1
    assert "a.nii.gz" in capsys.readouterr().err
    rows = list(csv.DictReader((out / "answers.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["scan"] for row in rows] == ["a.nii.gz", "b-p07"]
    assert "a.nii.gz" in rows[0]["no_answer_because"]
    assert rows[0]["decision"] == ""
    result = json.loads((out / "b-p07" / "result.json").read_text(encoding="utf-8"))
    assert (result["scan"], result["decision"]) == ("b-p07", rows[1]["decision"])
    page = (out / "index.html").read_text(encoding="utf-8")
    assert 'src="b-p07/preview.png"' in page
    assert (out / "answers.csv").stat().st_mode & 0o077 == 0
    # Results that lie among the scans are no scans.
    assert classify(scans, *said, tiny=tiny) == 1
    assert len((out / "answers.csv").read_text(encoding="utf-8").splitlines()) == 3


def test_recursion_into_what_holds_no_scan_is_refused(
    tiny: str, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "scan.nii.gz").touch()
    assert classify(tmp_path / "scan.nii.gz", "--recursive", tiny=tiny) == 2
    assert "--recursive takes folders" in capsys.readouterr().err
    assert classify(tmp_path / "empty", "--recursive", tiny=tiny) == 2
    assert "No scan lies in" in capsys.readouterr().err

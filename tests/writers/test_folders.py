from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from analyses import make_analysis, make_unsuitable

from chestct.errors import UnknownNameError, WriteError
from chestct.writers import choose_writers
from chestct.writers.folders import check_folder, folder_names, write_outputs
from chestct.writers.options import NothingToWriteError, WriteOptions


def test_folders_are_named_after_the_scans() -> None:
    scans = [Path("a/P001"), Path("b/P001"), Path("c/x.nii.gz"), Path("d/y.ZIP"), Path("e/P001/")]
    assert folder_names(scans) == ["P001", "P001-2", "x", "y", "P001-3"]


def test_the_current_folder_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_names([Path()]) == [tmp_path.name]


def test_a_name_that_is_only_an_ending_is_kept() -> None:
    assert folder_names([Path("a/.zip")]) == [".zip"]


def test_results_never_go_into_the_scan_itself(tmp_path: Path) -> None:
    scan = tmp_path / "P001"
    scan.mkdir()
    with pytest.raises(WriteError, match="scan's own folder"):
        check_folder(tmp_path / "P001", scan)
    with pytest.raises(WriteError, match="scan's own folder"):
        check_folder(scan / "results" / "P001", scan)
    check_folder(tmp_path / "results" / "P001", scan)
    # Nothing is left behind for a scan that then cannot be read.
    assert list((tmp_path / "results").iterdir()) == []


def test_a_folder_that_may_not_be_written_to_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(WriteError, match="may not be written to"):
        check_folder(tmp_path / "results" / "P001", tmp_path / "P001")


def test_every_writer_that_was_asked_for_leaves_its_file(tmp_path: Path) -> None:
    written = write_outputs(make_analysis(), tmp_path / "p07")
    assert {name: path.name for name, path in written.files.items()} == {
        "json": "result.json",
        "html": "report.html",
        "preview": "preview.png",
    }
    assert written.skipped == {}
    assert sorted(path.name for path in (tmp_path / "p07").iterdir()) == sorted(
        path.name for path in written.files.values()
    )


def test_all_writes_what_the_scan_allows_and_says_why_not_the_rest(tmp_path: Path) -> None:
    analysis = make_analysis()
    volume = replace(analysis.volume, source=replace(analysis.volume.source, format="nifti"))
    options = WriteOptions(names=choose_writers(["all"]), skips_impossible=True)
    written = write_outputs(replace(analysis, volume=volume), tmp_path, options)
    assert set(written.files) == {"json", "html", "preview", "nifti"}
    assert set(written.skipped) == {"dicom_seg", "dicom_parametric_map", "dicom_sr"}
    assert "read from nifti" in written.skipped["dicom_seg"]


def test_an_output_asked_for_by_name_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NothingToWriteError, match="no explanation was asked for"):
        write_outputs(make_analysis(), tmp_path, WriteOptions(names=("dicom_parametric_map",)))


def test_a_scan_found_unsuitable_gets_the_outputs_that_it_can_have(tmp_path: Path) -> None:
    options = WriteOptions(names=("json", "dicom_parametric_map"))
    written = write_outputs(make_unsuitable(), tmp_path, options)
    assert set(written.files) == {"json"}
    assert "not classified" in written.skipped["dicom_parametric_map"]


def test_an_unknown_writer_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'dicom_seg'"):
        write_outputs(make_analysis(), tmp_path / "out", WriteOptions(names=("json", "dicom_sag")))
    assert not (tmp_path / "out").exists()


def test_results_of_the_same_scan_are_replaced(tmp_path: Path) -> None:
    analysis = make_analysis()
    write_outputs(analysis, tmp_path)
    again = replace(analysis, result=replace(analysis.result, lung_volume_l=2.0))
    path = write_outputs(again, tmp_path).files["json"]
    assert '"lung_volume_l": 2.0' in path.read_text()


def test_results_of_another_scan_are_kept(tmp_path: Path) -> None:
    analysis = make_analysis()
    before = write_outputs(analysis, tmp_path).files["json"].read_bytes()
    provenance = replace(analysis.result.provenance, pixel_sha256="ef" * 32)
    other = replace(analysis, result=replace(analysis.result, provenance=provenance))
    with pytest.raises(WriteError, match="result of another scan"):
        write_outputs(other, tmp_path)
    assert (tmp_path / "result.json").read_bytes() == before


def test_a_foreign_result_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("[1, 2]")
    with pytest.raises(WriteError, match="not a result of chestct"):
        write_outputs(make_analysis(), tmp_path)
    assert (tmp_path / "result.json").read_text() == "[1, 2]"

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from analyses import make_analysis, make_unsuitable
from dicom_scans import analysed, small_scan
from explained import make_explained
from pydicom.uid import CTImageStorage, ParametricMapStorage

from chestct.analysis import ScanAnalysis
from chestct.errors import UnknownNameError, WriteError
from chestct.explain.explanation import HeatMap
from chestct.lookup import load_entry
from chestct.readers import read_volume
from chestct.writers import OUTPUTS, WRITERS, WriteOptions, choose_writers
from chestct.writers.dicom_objects import Subject
from chestct.writers.folders import (
    _results_in,
    check_folder,
    folder_names,
    foresee_missing,
    write_outputs,
)

AXES_MADE = {"json": set(), "html": {0, 1, 2}, "preview": {0, 1, 2}}
"""Axes that an output's slices of the heat-map lie across; depth where none are named."""


def test_folders_are_named_after_the_scans() -> None:
    scans = ["P001", "P001", "x.nii.gz", "y.ZIP", "P001"]
    assert folder_names(scans) == ["P001", "P001-2", "x", "y", "P001-3"]


@pytest.mark.parametrize("name", [".zip", "..zip", "...zip", "...nii.gz"])
def test_a_name_that_would_be_nothing_or_dots_without_its_ending_keeps_it(name: str) -> None:
    assert folder_names([name]) == [name]


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


def test_an_output_asked_for_by_name_that_cannot_be_is_named_and_the_others_are_written(
    tmp_path: Path,
) -> None:
    options = WriteOptions(names=("html", "dicom_parametric_map", "preview"))
    written = write_outputs(make_analysis(), tmp_path, options)
    assert list(written.files) == ["json", "html", "preview"]
    assert list(written.failed) == ["dicom_parametric_map"]
    assert "no explanation was asked for" in written.failed["dicom_parametric_map"]
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["not_written"] == written.failed
    told = "dicom_parametric_map could not be written. There is no heat-map"
    assert any(told in warning for warning in document["warnings"])
    assert told in (tmp_path / "report.html").read_text()
    assert any(told in warning for warning in written.analysis.result.warnings)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (WriteError("heat-map.nii.gz cannot be written: full."), "cannot be written: full."),
        (KeyError("Secret^Name"), "Internal error (KeyError)"),
        (OSError(28, "No space left on device", "Secret^Name"), "no space left on device"),
        (MemoryError("Secret^Name"), "not enough memory"),
    ],
)
def test_whatever_one_writer_does_every_other_output_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def half(analysis: ScanAnalysis, folder: Path, _: WriteOptions) -> Path:
        (folder / "lungs.nii.gz").write_bytes(b"half")
        raise error

    monkeypatch.setattr("chestct.writers.nifti.write_nifti_maps", half)
    options = WriteOptions(names=("json", "html", "preview", "nifti"))
    written = write_outputs(make_analysis(), tmp_path, options)
    assert set(contents(tmp_path)) == {"result.json", "report.html", "preview.png"}
    assert words in written.failed["nifti"]
    assert all(b"Secret" not in content for content in contents(tmp_path).values())


def test_a_report_that_failed_is_named_in_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Path:
        raise RuntimeError

    monkeypatch.setattr("chestct.writers.pages.write_html", fail)
    write_outputs(make_analysis(), tmp_path)
    assert set(json.loads((tmp_path / "result.json").read_text())["not_written"]) == {"html"}


def test_a_report_does_not_point_at_an_object_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Path:
        raise RuntimeError

    monkeypatch.setattr("chestct.writers.dicom_images.write_segmentation", fail)
    analysis = analysed(small_scan(tmp_path / "scan"))
    options = WriteOptions(names=("dicom_seg", "dicom_parametric_map", "dicom_sr"))
    written = write_outputs(analysis, tmp_path / "out", options)
    assert set(written.failed) == {"dicom_seg"}
    report = pydicom.dcmread(written.files["dicom_sr"])
    named = {
        item.ReferencedSOPClassUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert named == {CTImageStorage, ParametricMapStorage}


def test_missing_identifiers_are_foreseen_before_the_long_work(tmp_path: Path) -> None:
    path = small_scan(tmp_path / "scan")
    for file in path.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = ""
        dataset.save_as(file)
    volume = read_volume(path)
    options = WriteOptions(names=choose_writers(["all"]))
    foreseen = foresee_missing(volume, path, options)
    assert set(foreseen) == {"dicom_seg", "dicom_parametric_map", "dicom_sr"}
    assert all("--make-uids" in reason for reason in foreseen.values())
    assert foresee_missing(volume, path, replace(options, makes_uids=True)) == {}
    assert foresee_missing(volume, path, WriteOptions()) == {}
    with pytest.raises(WriteError, match="--make-uids"):
        foresee_missing(volume, path, WriteOptions(names=("dicom_sr",)))


def test_no_output_makes_a_slice_of_the_heat_map_twice(tmp_path: Path) -> None:
    analysis = analysed(small_scan(tmp_path / "scan"))
    explained = analysis.explanation
    assert explained is not None
    cut, made = explained.heat.cut, Counter[tuple[int, int]]()

    def counting(axis: int, index: int) -> np.ndarray:
        made[axis, index] += 1
        return cut(axis, index)

    explained = replace(explained, heat=HeatMap(explained.heat.grid, counting))
    analysis = replace(analysis, explanation=explained)
    # The map's hash, which identifiers of all DICOM objects hang on, is a pass of its own.
    Subject.of(analysis, WriteOptions())
    assert set(made.values()) == {1}
    for name in WRITERS:
        made.clear()
        write = load_entry(WRITERS, name, kind="writer")
        write(analysis, tmp_path, WriteOptions(names=(name,)))
        assert set(made.values()) <= {1}, name
        assert {axis for axis, _ in made} == AXES_MADE.get(name, {0})


def test_a_file_that_goes_missing_while_it_is_put_in_place_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Path.replace

    def overseen(path: Path, target: Path) -> Path:
        moved = move(path, target)
        # Another program tidies up what has just been put there.
        if target == tmp_path / "preview.png":
            target.unlink()
        return moved

    monkeypatch.setattr(Path, "replace", overseen)
    with pytest.raises(WriteError, match="changed or removed by another program"):
        write_outputs(make_analysis(), tmp_path)


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
    with pytest.raises(WriteError, match="result of another scan"):
        write_outputs(of_another_scan(analysis), tmp_path)
    assert (tmp_path / "result.json").read_bytes() == before


def of_another_scan(analysis: ScanAnalysis) -> ScanAnalysis:
    provenance = replace(analysis.result.provenance, pixel_sha256="ef" * 32)
    return replace(analysis, result=replace(analysis.result, provenance=provenance))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["html", "preview", "nifti"])
def test_results_of_another_scan_are_kept_whatever_was_written(tmp_path: Path, name: str) -> None:
    options = WriteOptions(names=(name,))
    write_outputs(make_analysis(), tmp_path, options)
    before = contents(tmp_path)
    with pytest.raises(WriteError, match="result of another scan"):
        write_outputs(of_another_scan(make_analysis()), tmp_path, options)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["report.html", "segmentation.dcm", "overlays/0001.dcm"])
def test_results_that_nobody_owns_are_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / "overlays").mkdir()
    (tmp_path / name).write_bytes(b"of whom?")
    with pytest.raises(WriteError, match=r"no result\.json that says which scan"):
        write_outputs(make_analysis(), tmp_path)
    assert contents(tmp_path) == {name: b"of whom?"}


def test_whose_results_they_are_is_written_unasked(tmp_path: Path) -> None:
    written = write_outputs(make_analysis(), tmp_path, WriteOptions(names=("preview",)))
    assert list(written.files) == ["json", "preview"]
    assert set(contents(tmp_path)) == {"result.json", "preview.png"}


def older_run(folder: Path) -> None:
    """What an earlier run about the scan of `make_analysis` left, and what somebody put beside."""
    write_outputs(make_explained(), folder, WriteOptions(names=("html", "nifti")))
    (folder / "overlays").mkdir()
    for name in ("report.dcm", "segmentation.dcm", "heat-map.dcm", "overlays/0001.dcm"):
        (folder / name).write_bytes(b"of another answer")
    (folder / "notes.txt").write_bytes(b"seen by two readers")
    (folder / "other.dcm").write_bytes(b"not ours")


def test_what_an_earlier_run_wrote_and_this_one_does_not_is_removed(tmp_path: Path) -> None:
    older_run(tmp_path)
    write_outputs(make_analysis(), tmp_path)
    assert set(contents(tmp_path)) == {
        "notes.txt",
        "other.dcm",
        "preview.png",
        "report.html",
        "result.json",
    }
    assert not (tmp_path / "overlays").exists()


def test_what_this_scan_cannot_have_is_removed_too(tmp_path: Path) -> None:
    older_run(tmp_path)
    options = WriteOptions(names=("json", "dicom_parametric_map"))
    written = write_outputs(make_unsuitable(), tmp_path, options)
    assert set(written.skipped) == {"dicom_parametric_map"}
    assert set(contents(tmp_path)) == {"notes.txt", "other.dcm", "result.json"}


def test_files_of_others_among_the_overlays_are_kept(tmp_path: Path) -> None:
    older_run(tmp_path)
    (tmp_path / "overlays" / "mine.dcm").write_bytes(b"not ours")
    write_outputs(make_analysis(), tmp_path)
    assert [path.name for path in (tmp_path / "overlays").iterdir()] == ["mine.dcm"]


@pytest.mark.parametrize("error", [WriteError("full"), RuntimeError("gone")])
def test_where_the_owners_file_cannot_be_written_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    older_run(tmp_path)
    before = contents(tmp_path)

    def fail(*_: object) -> Path:
        raise error

    monkeypatch.setattr("chestct.writers.json_report.write_json", fail)
    with pytest.raises(type(error)):
        write_outputs(make_analysis(), tmp_path)
    assert contents(tmp_path) == before
    with pytest.raises(type(error)):
        write_outputs(make_analysis(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_in_the_place_of_a_file_is_said_before_anything_is_removed(
    tmp_path: Path,
) -> None:
    older_run(tmp_path)
    (tmp_path / "preview.png").mkdir()
    before = contents(tmp_path)
    with pytest.raises(WriteError, match=r"preview\.png is a folder"):
        write_outputs(make_analysis(), tmp_path)
    assert contents(tmp_path) == before


def test_wherever_the_last_step_is_cut_short_all_files_are_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Path.replace
    for num_moves in range(3):
        folder = tmp_path / str(num_moves)
        write_outputs(make_explained(), folder, WriteOptions(names=("html", "nifti", "preview")))
        old, moved = contents(folder), []

        def cut(
            path: Path,
            target: Path,
            limit: int = num_moves,
            moved: list = moved,
            folder: Path = folder,
        ) -> Path:
            # Writers rename as well, inside the folder of what is not in its place yet.
            if target.parent == folder:
                if len(moved) == limit:
                    raise PermissionError(13, "Permission denied")
                moved.append(target.name)
            return move(path, target)

        monkeypatch.setattr(Path, "replace", cut)
        with pytest.raises(WriteError, match=r"cannot be replaced: permission denied"):
            write_outputs(make_analysis(), folder)
        monkeypatch.undo()
        there = contents(folder)
        is_old = [there[name] == old.get(name) for name in there]
        assert "result.json" in there
        assert all(is_old) or not any(is_old)
        # The folder still has an owner: the same scan may be written again.
        write_outputs(make_analysis(), folder)


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "p07").write_text("a file")
    with pytest.raises(WriteError, match="is a file and a folder is needed"):
        write_outputs(make_analysis(), tmp_path / "p07")
    assert (tmp_path / "p07").read_text() == "a file"


def test_every_writer_leaves_what_the_table_says_and_nothing_else(tmp_path: Path) -> None:
    assert list(OUTPUTS) == list(WRITERS)
    analysis = analysed(small_scan(tmp_path / "scan"))
    options = WriteOptions(names=tuple(WRITERS))
    write_outputs(analysis, tmp_path / "out", options)
    found = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(_results_in(tmp_path / "out")) == found
    for name, patterns in OUTPUTS.items():
        for pattern in patterns:
            assert list((tmp_path / "out").glob(pattern)), (name, pattern)
    # And all of it goes when the next run writes none of it.
    write_outputs(analysis, tmp_path / "out", WriteOptions(names=("json",)))
    assert set(contents(tmp_path / "out")) == {"result.json"}


def test_a_foreign_result_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("[1, 2]")
    with pytest.raises(WriteError, match="not a result of chestct"):
        write_outputs(make_analysis(), tmp_path)
    assert (tmp_path / "result.json").read_text() == "[1, 2]"

"""Copies for sharing: the same voxels, new names, nothing else of the original."""

from __future__ import annotations

import gzip
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from phantoms import chest, chest_grid, turned_grid

from chestct.cli import main
from chestct.datasets import sharing as exporting
from chestct.datasets.manifest import Manifest, ManifestRow, read_manifest, write_manifest
from chestct.datasets.sharing import (
    _KEY_BYTES,
    _MARKER,
    _RECORDS,
    ExportSettings,
    _copy_scan,
    _drawn_pseudonyms,
    _find_scale,
    _key_check,
    _keyed_pseudonyms,
    _Marker,
    _read_marker,
    _write_marker,
    export_scans,
    read_or_make_key,
)
from chestct.errors import ChestCTError, UnknownNameError, WriteError
from chestct.readers import read_volume
from chestct.readers.hounsfield import Rescale
from chestct.simulate import write_dicom_series
from chestct.volume import Volume, to_canonical
from chestct.writers.nifti import write_nifti

SMALL = ((7, 20, 22), (40.0, 16.0, 16.0))
PLANTED = (
    "Zanzibar", "Quixote", "MRN-778812", "19991231", "19510203", "Hospital of Nowhere", "ACC-4711",
    "STATION-9", "Dr. Referrer", "comment-xyzzy", "private-plugh", "description-frobozz",
)  # fmt: skip


def write_patient(folder: Path, volume: Volume) -> Path:
    """A DICOM series with identifiers in many places, in a folder with the patient's name."""
    for path in write_dicom_series(volume, folder, uid_seed=folder.name):
        dataset = pydicom.dcmread(path)
        dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = "19991231"
        dataset.AcquisitionDate = "19991231"
        dataset.PatientName = "Zanzibar^Quixote"
        dataset.PatientID = dataset.OtherPatientIDs = "MRN-778812"
        dataset.PatientBirthDate = "19510203"
        dataset.PatientAge, dataset.PatientSex = "048Y", "F"
        dataset.InstitutionName = "Hospital of Nowhere"
        dataset.AccessionNumber, dataset.StationName = "ACC-4711", "STATION-9"
        dataset.ReferringPhysicianName = "Dr. Referrer"
        dataset.PatientComments = "comment-xyzzy"
        dataset.StudyDescription = dataset.SeriesDescription = "description-frobozz"
        dataset.KVP, dataset.SliceThickness = "110", "40"
        dataset.XRayTubeCurrent = str(100 + dataset.InstanceNumber)
        block = dataset.private_block(0x0029, "private-plugh", create=True)
        block.add_new(0x01, "LO", "private-plugh")
        dataset.save_as(path)
    return folder


@pytest.fixture(scope="module")
def light(original: Manifest) -> Manifest:
    """The two NIfTI scans, of two patients."""
    return original.choose(lambda row: row.scan != "Quixote")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Three scans of two patients: a DICOM series full of identifiers, and NIfTI, one oblique."""
    folder = tmp_path_factory.mktemp("Zanzibar")
    write_patient(folder / "Quixote", chest(chest_grid(*SMALL)))
    noisy = chest(chest_grid(*SMALL))
    shift = np.random.default_rng(1).integers(0, 9, noisy.voxels.shape)
    (folder / "two").mkdir()
    write_nifti(folder / "two" / "scan.nii.gz", noisy.voxels + shift.astype(np.int16), noisy.grid)
    turned = chest(replace(turned_grid(9.0, 0), shape=SMALL[0], spacing_mm=SMALL[1]))
    write_nifti(folder / "three.nii.gz", turned.voxels, turned.grid)
    rows = (
        ManifestRow("Quixote", "MRN-778812", "COVID-19", site="Hospital of Nowhere", split="test"),
        ManifestRow("two", "MRN-778812", "COVID-19", site="Elsewhere"),
        ManifestRow("three.nii.gz", "healthy one", "normal", age=93.0, sex="M"),
    )
    return Manifest(rows, folder=folder, name="scans.csv")


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of an export by its path, and what gzip holds."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            packed = path.suffix == ".gz"
            found[str(path.relative_to(folder))] = content + (
                gzip.decompress(content) if packed else b""
            )
    return found


def done(manifest: Manifest, out: Path, kind: str = "tiff16", **settings: object) -> Manifest:
    """Export in this process, and the export's table."""
    result = export_scans(manifest, out, ExportSettings(kind, **settings), processes=1)  # type: ignore[arg-type]
    assert result.failed == {}
    assert result.table is not None
    return read_manifest(result.table)


@pytest.mark.parametrize("kind", ["tiff16", "nifti"])
def test_copies_are_read_back_to_the_same_voxels_bit_for_bit(
    original: Manifest, tmp_path: Path, kind: str
) -> None:
    table = done(original, tmp_path / "out", kind)
    wanted = [to_canonical(read_volume(original.path(row), allow=())) for row in original.rows]
    found = [read_volume(table.path(row)) for row in table.rows]
    assert len(found) == 3
    for volume in wanted:
        equal = [copy for copy in found if np.array_equal(to_canonical(copy).voxels, volume.voxels)]
        assert len(equal) == 1
        assert equal[0].voxels.dtype == volume.voxels.dtype
        assert equal[0].grid.spacing_mm == pytest.approx(volume.grid.spacing_mm, abs=1e-4)


def test_blank_slices_at_the_ends_are_not_copied_to_tiff(tmp_path: Path) -> None:
    scan = chest(chest_grid((14, 40, 44), (20.0, 8.0, 8.0)))
    voxels = scan.voxels.copy()
    voxels[[0, -1]] = -1000
    scan = scan.with_voxels(voxels)
    (tmp_path / "a").mkdir()
    write_nifti(tmp_path / "a" / "scan.nii.gz", scan.voxels, scan.grid)
    rows = (ManifestRow("a", "someone", "normal"),)
    table = done(Manifest(rows, folder=tmp_path, name="scans.csv"), tmp_path / "out")
    copy = read_volume(table.path(table.rows[0]))
    assert np.array_equal(to_canonical(copy).voxels, to_canonical(scan).voxels[1:-1])


def test_nifti_keeps_place_and_angle(light: Manifest, tmp_path: Path) -> None:
    table = done(light, tmp_path / "out", "nifti")
    wanted = to_canonical(read_volume(light.path(light.rows[1])))
    (row,) = [row for row in table.rows if row.label == "normal"]
    found = to_canonical(read_volume(table.path(row)))
    assert np.allclose(found.grid.index_to_patient, wanted.grid.index_to_patient, atol=1e-3)


@pytest.mark.parametrize("kind", ["tiff16", "nifti"])
def test_planted_names_identifiers_and_dates_are_nowhere_in_the_export(
    original: Manifest, tmp_path: Path, kind: str
) -> None:
    done(original, tmp_path / "out", kind, period="month")
    found = bytes_of(tmp_path / "out")
    assert len(found) >= 5
    uid = pydicom.dcmread(next(original.path(original.rows[0]).iterdir())).SeriesInstanceUID
    for word in (*PLANTED, str(uid), "healthy one", str(original.folder.resolve())):
        for name, content in found.items():
            assert word.lower() not in name.lower()
            assert word.lower().encode() not in content.lower(), f"{word} in {name}"


def test_the_planted_words_would_be_found(original: Manifest) -> None:
    content = b"".join(bytes_of(original.folder).values())
    assert [word for word in PLANTED if word.encode() not in content] == []


def test_tiff_tags_hold_the_layout_of_the_pixels_only(original: Manifest, tmp_path: Path) -> None:
    done(original, tmp_path / "out")
    allowed = {
        "ImageWidth", "ImageLength", "BitsPerSample", "Compression", "PhotometricInterpretation",
        "StripOffsets", "SamplesPerPixel", "RowsPerStrip", "StripByteCounts", "XResolution",
        "YResolution", "ResolutionUnit", "Predictor", "SampleFormat", "NewSubfileType",
    }  # fmt: skip
    paths = list((tmp_path / "out").rglob("*.tif"))
    assert len(paths) == 21
    for path in paths:
        with tifffile.TiffFile(path) as file:
            assert {tag.name for tag in file.pages.first.tags} <= allowed


def test_the_table_tells_what_the_data_set_s_paper_tells(
    original: Manifest, tmp_path: Path
) -> None:
    table = done(original, tmp_path / "out", period="month")
    first = next(row for row in table.rows if row.age == 48)
    known = dict(first.others)
    assert (first.sex, first.label, first.split, first.site) == ("F", "COVID-19", "test", "site 2")
    assert known["period"] == "1999-12"
    assert (known["kv"], known["ma"], known["slice_thickness_mm"]) == ("110", "104", "40")
    assert (known["num_slices"], known["unit"]) == ("7", "HU")
    assert next(row for row in table.rows if row.label == "normal").age == 90
    patients = {row.patient for row in table.rows}
    assert len(patients) == 2
    assert {row.scan.split("/")[1] for row in table.rows} == patients


def test_a_period_can_be_left_out_or_be_a_year(original: Manifest, tmp_path: Path) -> None:
    without = done(original, tmp_path / "none", period="none")
    years = done(original, tmp_path / "year", names_sites=True)
    assert all("period" not in row.others or not row.others["period"] for row in without.rows)
    assert "1999" in {row.others["period"] for row in years.rows}
    assert "Elsewhere" in {row.site for row in years.rows}


def test_keyed_pseudonyms_are_the_same_in_every_export_and_drawn_ones_are_not(
    light: Manifest, tmp_path: Path
) -> None:
    key = bytes(range(32))
    names = [
        {row.patient for row in done(light, tmp_path / name, kind, key=secret).rows}
        for name, kind, secret in (
            ("a", "tiff16", key),
            ("b", "nifti", key),
            ("c", "nifti", key[::-1]),
            ("d", "nifti", None),
            ("e", "nifti", None),
        )
    ]
    assert names[0] == names[1]
    assert len(set().union(*names)) == 8


def test_a_finished_export_is_verified_and_nothing_is_made_again(
    light: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = done(light, tmp_path / "out")
    monkeypatch.setattr(exporting, "read_volume", None)
    monkeypatch.setattr("chestct.readers.read_volume", None)
    again = export_scans(light, tmp_path / "out", ExportSettings("tiff16"), processes=1)
    assert (again.num_made, again.num_found) == (0, 2)
    slice_path = next(table.path(table.rows[0]).glob("*.tif"))
    slice_path.write_bytes(slice_path.read_bytes()[:-1] + b"!")
    with pytest.raises(ChestCTError, match="1 of 2 copies"):
        export_scans(light, tmp_path / "out", ExportSettings("tiff16"), processes=1)


def test_a_stopped_export_goes_on_with_the_same_pseudonyms(
    original: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    calls: list[Path] = []

    def stopping(path: Path, **options: object) -> Volume:
        calls.append(path)
        # Each copy is read back: the third scan is the fifth to be read.
        if len(calls) == 5:
            raise KeyboardInterrupt
        return read_volume(path)

    monkeypatch.setattr(exporting, "read_volume", stopping)
    monkeypatch.setattr("chestct.readers.read_volume", stopping)
    with pytest.raises(KeyboardInterrupt):
        export_scans(original, out, ExportSettings("nifti"), processes=1)
    marker = _read_marker(out)
    assert marker is not None
    assert not marker.is_complete
    assert len(marker.pseudonyms) == 2
    assert not list(out.rglob("*.part.*"))
    result = export_scans(original, out, ExportSettings("nifti"), processes=1)
    assert (result.num_made, result.num_found) == (1, 2)
    finished = _read_marker(out)
    assert finished is not None
    assert finished.is_complete
    assert finished.pseudonyms == ()
    assert not (out / _RECORDS).exists()
    assert {place.split("/")[1] for place in finished.copies} == set(marker.pseudonyms)


def test_a_damaged_copy_of_a_stopped_export_is_made_again(
    original: Manifest, tmp_path: Path
) -> None:
    row = original.rows[0]
    task = (tmp_path, "tiff16", "year", (row, original.path(row), "scans/pabc/scan1"))
    assert _copy_scan(*task).record is not None
    assert _copy_scan(*task).was_there
    next((tmp_path / "scans/pabc/scan1").glob("*.tif")).unlink()
    again = _copy_scan(*task)
    assert again.record is not None
    assert not again.was_there
    (tmp_path / _RECORDS / "scans-pabc-scan1.json").write_text("[]")
    assert not _copy_scan(*task).was_there


def test_files_do_not_tell_the_order_in_which_they_were_written(
    light: Manifest, tmp_path: Path
) -> None:
    done(light, tmp_path / "out", "nifti")
    times = {path.stat().st_mtime for path in (tmp_path / "out" / "scans").rglob("*")}
    assert len(times) == 1


def test_another_manifest_format_or_key_is_refused(light: Manifest, tmp_path: Path) -> None:
    done(light, tmp_path / "out", "nifti", key=b"k" * 20)
    fewer = light.choose(lambda row: row.label == "normal")
    for manifest, settings in (
        (fewer, ExportSettings("nifti", b"k" * 20)),
        (light, ExportSettings("tiff16", b"k" * 20)),
        (light, ExportSettings("nifti", b"x" * 20)),
        (light, ExportSettings("nifti")),
        (light, ExportSettings("nifti", b"k" * 20, period="none")),
    ):
        with pytest.raises(ChestCTError, match="another manifest"):
            export_scans(manifest, tmp_path / "out", settings, processes=1)


def test_a_folder_with_other_files_is_refused(original: Manifest, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ChestCTError, match="holds other files"):
        export_scans(original, tmp_path, ExportSettings("nifti"), processes=1)
    (tmp_path / _MARKER).write_text("{}")
    with pytest.raises(ChestCTError, match="damaged or of another version"):
        export_scans(original, tmp_path, ExportSettings("nifti"), processes=1)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_folder_within_a_scan_or_around_one_is_refused(original: Manifest) -> None:
    for place in (original.folder, original.folder / "two" / "export"):
        with pytest.raises(ChestCTError, match="in one another"):
            export_scans(original, place, ExportSettings("nifti"), processes=1)


def test_unknown_formats_and_periods_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="nifti"):
        ExportSettings("nifty")
    with pytest.raises(UnknownNameError, match="year"):
        ExportSettings("nifti", period="years")


def test_a_scan_that_cannot_be_read_is_named_and_the_others_are_copied(
    light: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "broken.nii").write_bytes(b"nothing")
    broken = ManifestRow(str(tmp_path / "broken.nii"), "p9", "normal")
    mixed = Manifest((light.rows[0], broken), folder=light.folder)
    result = export_scans(mixed, tmp_path / "out", ExportSettings("nifti"), processes=1)
    assert result.num_made == 1
    assert list(result.failed) == [broken.number or 3]
    assert result.table is None


def test_an_oblique_scan_loses_its_angle_in_a_tiff_stack_and_that_is_said(
    light: Manifest, tmp_path: Path
) -> None:
    result = export_scans(light, tmp_path / "a", ExportSettings("tiff16"), processes=1)
    assert {row: "9.0 degrees" in notes[0] for row, notes in result.notes.items()} == {4: True}


def test_values_that_are_no_measurement_become_air_and_that_is_said() -> None:
    volume = chest(chest_grid(*SMALL))
    voxels = np.array(volume.voxels)
    voxels[0, 0, :2] = -2000
    padded = volume.with_voxels(voxels)
    found, notes = exporting._cleaned(padded)
    assert found.voxels[0, 0, :2].tolist() == [-1024, -1024]
    assert "2 voxels" in notes[0]
    assert padded.voxels[0, 0, 0] == -2000


def test_a_copy_that_differs_when_read_back_does_not_count(
    original: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_as_stored", lambda voxels, scale: voxels.astype(np.uint16))
    row = original.rows[0]
    task = (tmp_path, "tiff16", "year", (row, original.path(row), "scans/pabc/scan1"))
    outcome = _copy_scan(*task)
    assert outcome.record is None
    assert outcome.error
    assert not list((tmp_path / "scans").rglob("*.tif"))


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -1024.0), (0.9765, -1000.25), (2.5, -999)])
def test_values_on_a_scanner_s_steps_come_back_exactly(slope: float, intercept: float) -> None:
    stored = np.random.default_rng(2).integers(0, 1500, (3, 30, 30))
    voxels = (stored * slope + intercept).astype(np.float32)
    scale = _find_scale(voxels)
    back = np.rint((voxels.astype(np.float64) - scale.intercept) / scale.slope)
    assert np.array_equal((back * scale.slope + scale.intercept).astype(np.float32), voxels)


def test_whole_values_keep_slope_one() -> None:
    voxels = np.array([[[-1024, 3071]]], dtype=np.int16)
    assert _find_scale(voxels) == Rescale(1.0, -1024.0)
    assert _find_scale(voxels - np.int16(4000)) == Rescale(1.0, -32768.0)


def test_values_without_steps_are_refused_with_the_remedy() -> None:
    voxels = np.random.default_rng(3).normal(0, 100, (2, 20, 20)).astype(np.float32)
    with pytest.raises(ChestCTError, match="--to nifti"):
        _find_scale(voxels)


def test_a_windowed_scan_stays_windowed(tmp_path: Path) -> None:
    values = np.random.default_rng(4).integers(0, 256, (4, 16, 16)).astype(np.uint8)
    source = tmp_path / "pictures"
    source.mkdir()
    for number, pixels in enumerate(values):
        tifffile.imwrite(source / f"{number}.tif", pixels)
    others = {"spacing_mm": "2 1 1", "order": "descending", "unit": "windowed"}
    row = ManifestRow("pictures", "p", "normal", others=others)
    table = done(Manifest((row,), folder=tmp_path), tmp_path / "out")
    found = read_volume(table.path(table.rows[0]))
    assert found.unit == "windowed"
    assert np.array_equal(found.voxels, values[::-1])


def test_excluded_scans_are_not_exported(light: Manifest, tmp_path: Path) -> None:
    rows = [
        replace(row, excluded="other lesions" if row.label == "normal" else "")
        for row in light.rows
    ]
    table = done(light.with_rows(rows), tmp_path / "out", "nifti")
    assert [row.label for row in table.rows] == ["COVID-19"]


def test_the_command_makes_a_key_and_says_what_it_did(
    light: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_manifest(light, tmp_path / "scans.csv")
    key, out = tmp_path / "secret.key", tmp_path / "out"
    words = ["dataset", "export", str(path), "--to", "nifti", "--out", str(out)]
    words += ["--key", str(key), "--processes", "1"]
    assert main(words) == 0
    assert "2 copied, 0 were there, 0 failed" in capsys.readouterr().out
    assert os.stat(key).st_mode & 0o077 == 0
    assert json.loads((out / _MARKER).read_text())["is_keyed"] is True
    assert main(words) == 0
    assert "0 copied, 2 were there" in capsys.readouterr().out


def test_the_command_refuses_a_key_inside_the_export_and_says_which_rows_failed(
    light: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.nii").write_bytes(b"nothing")
    broken = ManifestRow(str(tmp_path / "broken.nii"), "p9", "normal")
    path = write_manifest(
        Manifest((*light.rows, broken), folder=light.folder), tmp_path / "scans.csv"
    )
    words = ["dataset", "export", str(path), "--to", "tiff16", "--out", str(tmp_path / "out")]
    assert main([*words, "--key", str(tmp_path / "out" / "k")]) == 2
    assert "must not lie in" in capsys.readouterr().err
    assert main([*words, "--processes", "1"]) == 1
    shown = capsys.readouterr().out
    assert "✗ row 4" in shown
    assert "! row 3" in shown


@pytest.mark.slow
def test_a_real_scan_comes_back_bit_for_bit(data_folder: Path, tmp_path: Path) -> None:
    source = data_folder / "covid_ct_md" / "P001"
    whole = to_canonical(read_volume(source))
    part = replace(
        whole,
        voxels=whole.voxels[60:66],
        grid=replace(whole.grid, shape=(6, *whole.grid.shape[1:])),
    )
    for name, (ending, write) in exporting._COPY_FORMATS.items():
        place = tmp_path / f"{name}{ending}"
        write(part, place)
        exporting._verify_copy(part, place)
        assert np.array_equal(to_canonical(read_volume(place)).voxels, part.voxels)


def test_drawn_pseudonyms_follow_the_generator() -> None:
    from chestct.datasets.sharing import _drawn_pseudonyms

    names = _drawn_pseudonyms(["a", "b", "a"], random.Random(1))
    assert names == _drawn_pseudonyms(["a", "b"], random.Random(1))
    assert len(set(names.values())) == 2
    assert all(name.isalnum() and len(name) == 10 for name in names.values())


def test_a_place_that_cannot_be_written_is_an_error_with_its_reason(
    light: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "scans").write_text("in the way")
    row = light.rows[0]
    task = (tmp_path, "nifti", "year", (row, light.path(row), "scans/pabc/scan1"))
    assert "cannot be copied" in _copy_scan(*task).error
    with pytest.raises(WriteError, match="cannot be written"):
        _write_marker(
            tmp_path / "scans", _Marker(manifest="digest", format="nifti", is_keyed=False)
        )
    _write_marker(tmp_path, exporting._marker_of(light, ExportSettings("nifti")))
    with pytest.raises(ChestCTError, match="marker is damaged"):
        export_scans(light, tmp_path, ExportSettings("nifti"), processes=1)


def test_a_key_is_made_once_and_then_read(tmp_path: Path) -> None:
    key = read_or_make_key(tmp_path / "key")
    assert len(key) == _KEY_BYTES
    assert read_or_make_key(tmp_path / "key") == key
    assert read_or_make_key(tmp_path / "other") != key


@pytest.mark.parametrize("length", [0, 15, 4097])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "key").write_bytes(b"x" * length)
    with pytest.raises(ChestCTError, match="were expected"):
        read_or_make_key(tmp_path / "key")


def test_a_key_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ChestCTError, match="no such file"):
        read_or_make_key(tmp_path / "nowhere" / "key")


def test_the_same_key_and_patient_give_the_same_name_and_blanks_do_not_matter() -> None:
    key = b"a key of sixteen"
    names = _keyed_pseudonyms(["MRN-1", "MRN-2"], key)
    assert _keyed_pseudonyms([" MRN-1 "], key)[" MRN-1 "] == names["MRN-1"]
    assert names["MRN-1"] != names["MRN-2"]
    assert _keyed_pseudonyms(["MRN-1"], b"another of sixteen")["MRN-1"] != names["MRN-1"]


def test_two_patients_with_one_name_are_refused() -> None:
    with pytest.raises(ChestCTError, match="same pseudonym"):
        _keyed_pseudonyms(["MRN-1", "MRN-1 "], b"a key of sixteen")


def test_a_name_that_was_drawn_is_not_drawn_again() -> None:
    class Stuck(random.Random):
        def __init__(self) -> None:
            super().__init__(0)
            self.calls = 0

        def randbytes(self, n: int) -> bytes:
            self.calls += 1
            return bytes([self.calls // 3] * n)

    assert len(set(_drawn_pseudonyms(["a", "b", "c"], Stuck()).values())) == 3


def test_the_check_of_a_key_tells_keys_apart() -> None:
    assert _key_check(b"1" * 16) == _key_check(b"1" * 16) != _key_check(b"2" * 16)

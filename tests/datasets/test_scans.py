from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from labelled_scans import COARSE, write_scan
from phantoms import chest, chest_grid

from chestct.datasets.manifest import Manifest, ManifestError, ManifestRow
from chestct.datasets.scans import (
    FACTS,
    ScanFacts,
    _known_facts,
    _read_facts,
    _source_key,
    gather_facts,
    read_options,
)
from chestct.readers import ReadOptions
from chestct.simulate import write_dicom_series
from chestct.volume import Volume

OPTIONS = ReadOptions()


def test_a_scan_that_runs_backwards_has_the_same_content(tmp_path: Path) -> None:
    first = _read_facts(write_scan(tmp_path / "a.nii.gz", 1), OPTIONS)
    second = _read_facts(write_scan(tmp_path / "b.nii", 1, is_reversed=True), OPTIONS)
    other = _read_facts(write_scan(tmp_path / "c.nii.gz", 2), OPTIONS)
    assert first.content == second.content
    assert first.pixels == second.pixels
    assert first.content != other.content
    assert len(first.slices) == COARSE[0][0]


def test_the_order_of_slices_does_not_matter_and_where_they_lie_does_for_the_cache() -> None:
    volume = chest(chest_grid(*COARSE))
    reversed_volume = volume.with_voxels(volume.voxels[::-1])
    here, there = Path("a"), Path("b")
    assert ScanFacts.of(volume, here).content == ScanFacts.of(reversed_volume, there).content
    assert ScanFacts.of(volume, here).pixels != ScanFacts.of(reversed_volume, there).pixels
    moved = Volume(chest_grid(COARSE[0], (14.0, 13.5, 13.5)), volume.voxels)
    assert ScanFacts.of(volume, here).content == ScanFacts.of(moved, here).content
    assert ScanFacts.of(volume, here).pixels != ScanFacts.of(moved, here).pixels


def test_the_same_values_in_another_type_are_the_same_scan() -> None:
    volume = chest(chest_grid(*COARSE))
    as_float = volume.with_voxels(volume.voxels.astype(np.float32))
    shifted = volume.with_voxels(as_float.voxels + np.float32(0.5))
    assert ScanFacts.of(volume, Path("a")) == ScanFacts.of(as_float, Path("a"))
    assert ScanFacts.of(volume, Path("a")).content != ScanFacts.of(shifted, Path("a")).content


def test_slices_of_one_value_are_no_evidence() -> None:
    grid = chest_grid(*COARSE)
    empty = Volume(grid, np.full(grid.shape, -1024, dtype=np.int16))
    assert ScanFacts.of(empty, Path("a")).slices == ()


def test_facts_come_back_from_json_and_none_where_it_is_damaged(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "a.nii.gz")
    facts = ScanFacts.of(chest(chest_grid(*COARSE)), scan)
    facts.store(tmp_path, scan, OPTIONS)
    assert ScanFacts.stored(tmp_path, scan, OPTIONS) == facts
    (kept,) = (tmp_path / "facts").iterdir()
    for damaged in ("{}", "[]", "nonsense", '{"pixels": 1, "content": 2}'):
        kept.write_text(damaged)
        assert ScanFacts.stored(tmp_path, scan, OPTIONS) is None


def write_series(folder: Path, **header: str) -> Path:
    for path in write_dicom_series(chest(chest_grid(*COARSE)), folder):
        dataset = pydicom.dcmread(path)
        for name, value in header.items():
            setattr(dataset, name, value)
        dataset.save_as(path)
    return folder


def test_age_sex_and_month_are_read_and_nothing_that_names_a_patient(tmp_path: Path) -> None:
    folder = write_series(
        tmp_path / "scan", PatientAge="063Y", PatientSex="F", StudyDate="20200321", KVP="110",
        PatientName="Secret^Name", PatientID="4711", Manufacturer="Maker", SliceThickness="5",
    )  # fmt: skip
    (folder / "notes.txt").write_text("no DICOM")
    facts = _read_facts(folder, OPTIONS).acquisition
    assert facts["age"] == "63"
    assert facts["sex"] == "F"
    assert facts["date"] == "2020-03"
    assert facts["scanner"].startswith("Maker")
    assert facts["slice_spacing_mm"] == "15.00"
    assert set(facts) <= set(FACTS)
    assert not any(secret in str(facts) for secret in ("Secret", "4711", "20200321"))


def test_a_header_with_nonsense_is_no_trouble(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", PatientAge="999Y", PatientSex="X")
    facts = _read_facts(folder, OPTIONS)
    assert facts.error == ""
    assert not {"age", "sex"} & set(facts.acquisition)


def test_a_scan_that_cannot_be_read_gives_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"no scan")
    facts = _read_facts(tmp_path / "a.nii", OPTIONS)
    assert "a.nii" in facts.error
    assert facts.slices == ()


def test_columns_say_how_a_scan_is_read() -> None:
    others = {
        "series": "1.2.3", "allow": "gap tilt", "spacing_mm": "2 0.7 0.7", "order": "ascending",
        "unit": "HU", "slope": "1", "intercept": "-1024", "kvp": "110",
    }  # fmt: skip
    options = read_options(ManifestRow("a", "p", "CAP", others=others), Path())
    assert (options.series, options.allow) == ("1.2.3", ("gap", "tilt"))
    assert options.tiff is not None
    assert options.tiff.spacing_mm == (2.0, 0.7, 0.7)
    assert options.tiff.intercept == -1024
    assert read_options(ManifestRow("a", "p", "CAP"), Path()) == ReadOptions(allow=())


@pytest.mark.parametrize(
    "others", [{"spacing_mm": "2 x 2"}, {"order": "ascending"}, {"slope": "one"}]
)
def test_columns_that_say_something_impossible_are_refused_with_the_row(
    others: dict[str, str],
) -> None:
    with pytest.raises(ManifestError, match="row 7 says how its slices lie"):
        read_options(ManifestRow("a", "p", "CAP", others=others, number=7), Path())


def test_facts_are_kept_until_a_file_changes(
    scans: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = gather_facts(scans, cache, processes=1)
    monkeypatch.setattr(
        "chestct.datasets.scans._read_facts", lambda *_: pytest.fail("the scan was read again")
    )
    assert gather_facts(scans, cache, processes=1) == first
    monkeypatch.undo()
    write_scan(scans.path(scans.rows[0]), seed=9)
    again = gather_facts(scans, cache, processes=1)
    assert again[0].content != first[0].content
    assert again[1:] == first[1:]


def test_damaged_facts_are_read_again_and_failures_are_not_kept(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "a.nii.gz")
    task = (scan, OPTIONS)
    facts = _known_facts(tmp_path, task)
    (tmp_path / "facts" / f"{_source_key(scan, OPTIONS)}.json").write_text("{")
    assert ScanFacts.stored(tmp_path, *task) is None
    assert _known_facts(tmp_path, task) == facts
    (tmp_path / "bad.nii").write_bytes(b"no scan")
    bad = (tmp_path / "bad.nii", OPTIONS)
    assert _known_facts(tmp_path, bad).error
    assert len(list((tmp_path / "facts").iterdir())) == 1


def test_facts_are_found_for_folders_too(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan")
    before = _source_key(folder, OPTIONS)
    assert before == _source_key(folder, OPTIONS)
    assert before != _source_key(folder, ReadOptions(series="1.2"))
    (folder / "slice_0000.dcm").touch()
    assert before != _source_key(folder, OPTIONS)

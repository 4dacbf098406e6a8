"""A table of scans becomes a list of work; a bad row costs itself alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from chestct.cluster.listing import list_manifest, list_scans, reading_of
from chestct.datasets.manifest import ManifestError
from chestct.readers import ReadOptions
from chestct.readers.pictures import TiffGeometry


def manifest(folder: Path, *lines: str) -> Path:
    (folder / "p1").mkdir(exist_ok=True)
    file = folder / "scans.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_one_column_is_enough_and_others_say_how_a_scan_is_read(tmp_path: Path) -> None:
    file = manifest(
        tmp_path,
        "scan,series,allow,spacing_mm,order,unit,note",
        "p1,1.2.3,gap,,,,a",
        'p2,,,"5 1 1",ascending,windowed,b',
    )
    first, second = list_manifest(file, ReadOptions(allow=("tilt",)))
    assert (first["name"], first["shown"], first["problem"]) == ("p1", "p1", "")
    assert first["path"] == str(tmp_path / "p1")
    assert reading_of(first) == ReadOptions("1.2.3", ("tilt", "gap"))
    assert isinstance(reading_of(second).tiff, TiffGeometry)
    assert reading_of(json.loads(json.dumps(second))) == reading_of(second)


def test_thirty_bad_rows_of_many_stay_in_the_list_with_their_reasons(tmp_path: Path) -> None:
    rows = [f"s{each},,,," for each in range(2000)]
    (tmp_path / "s7").mkdir()
    for each in range(10):
        rows[100 * each] = ",gap,,,"
        rows[100 * each + 1] = f"t{each},,far apart,ascending,windowed"
        rows[100 * each + 2] = f"s{100 * each + 3},,,,"
    file = manifest(tmp_path, "scan,allow,spacing_mm,order,unit", *rows)
    listed = list_manifest(file, ReadOptions())
    problems = [each["problem"] for each in listed if each["problem"]]
    assert (len(listed), len(problems)) == (2000, 30)
    assert len({each["folder"] for each in listed}) == 2000
    assert problems[0] == "scans.csv: row 2: the column 'scan' is empty."
    assert "row 3 says how its slices lie" in problems[1]
    assert "Row 5 is the same scan as row 4" in problems[2]


def test_rows_that_are_excluded_are_left_out(tmp_path: Path) -> None:
    file = manifest(tmp_path, "scan,excluded", "p1,", "p2,moved")
    assert [each["shown"] for each in list_manifest(file, ReadOptions())] == ["p1"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["scan", "p8", "p9"], "2 scans and not one of them is there"),
        (["path", "p1"], "no column scan"),
        (["scan"], "0 scans"),
    ],
)
def test_a_table_of_which_nothing_can_be_used_is_refused(
    lines: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=words):
        list_manifest(manifest(tmp_path, *lines), ReadOptions())


def test_a_path_that_is_no_text_comes_back_as_it_was(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"M\xfcller")
    (listed,) = list_scans([odd], ["M\ufffdller"], ReadOptions(lungs=Path("mask.nii")))
    again = json.loads(json.dumps(listed))
    assert Path(again["path"]) == odd
    assert again["shown"] == str(tmp_path / "M\ufffdller")
    assert reading_of(again).lungs == Path("mask.nii").absolute()

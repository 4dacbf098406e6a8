from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from labelled_scans import make_manifest

from chestct.datasets.manifest import (
    ManifestError,
    ManifestRow,
    parse_age,
    read_manifest,
    write_manifest,
)
from chestct.errors import WriteError


def read_text(folder: Path, text: str, encoding: str = "utf-8") -> tuple[ManifestRow, ...]:
    path = folder / "scans.csv"
    path.write_bytes(text.encode(encoding))
    return read_manifest(path, needs_files=False).rows


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = (
        ManifestRow("a", "p, q", "CAP", "Sari", 63.0, "F", "training", 2, {"kvp": "110"}, 2),
        ManifestRow("b", "r", "normal", others={"kvp": ""}, number=3),
    )
    manifest = replace(make_manifest(rows, tmp_path), name="out.csv")
    path = write_manifest(manifest, tmp_path / "deep" / "out.csv")
    back = read_manifest(path, needs_files=False)
    assert [replace(row, scan=Path(row.scan).name) for row in back.rows] == list(rows)
    assert back.path(back.rows[0]).resolve() == (tmp_path / "a").resolve()
    assert sorted(each.name for each in path.parent.iterdir()) == ["out.csv"]


def test_scans_below_the_manifest_are_written_relative_to_it(tmp_path: Path) -> None:
    manifest = make_manifest([ManifestRow(str(tmp_path / "x" / "a"), "p", "CAP")], Path("/"))
    path = write_manifest(manifest, tmp_path / "m.csv")
    assert path.read_text() == "scan,patient,label\nx/a,p,CAP\n"


def test_what_spreadsheets_write_is_read(tmp_path: Path) -> None:
    (row,) = read_text(
        tmp_path,
        "Scan;PATIENT; label ;Age;sex;split;Notes\r\na;p;CAP;063Y;female;Train;late\r\n;;;;;;\r\n",
        "utf-8-sig",
    )
    assert row == ManifestRow(
        "a", "p", "CAP", age=63.0, sex="F", split="training", others={"Notes": "late"}, number=2
    )


def test_empty_columns_without_a_name_and_row_numbers_are_ignored(tmp_path: Path) -> None:
    text = ",scan,patient,,label,,\n0,a,p,,CAP,,\n1,b,q, ,normal\n"
    assert read_text(tmp_path, text) == (
        ManifestRow("a", "p", "CAP", number=2),
        ManifestRow("b", "q", "normal", number=3),
    )


@pytest.mark.parametrize("cells", ["p,CAP,,late", "p,CAP,,late,", '"p",CAP, ,"late, again"'])
def test_a_cell_in_a_column_without_a_name_is_refused_with_both_numbers(
    tmp_path: Path, cells: str
) -> None:
    text = f"scan,patient,label,,,\na,q,normal,,,\nb,{cells}\n"
    with pytest.raises(ManifestError, match=r"row 3: column 5 has no name but a cell.*row 1"):
        read_text(tmp_path, text)


def test_short_rows_are_filled_up(tmp_path: Path) -> None:
    (row,) = read_text(tmp_path, "scan,patient,label,fold\na,p,CAP\n")
    assert row.fold is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column scan"),
        ("scan,label\na,CAP\n", "no column patient. Its first row"),
        ("scan,patient,label\n", "lists no scans"),
        ("scan,patient,label,label\na,p,CAP,CAP\n", "column 'label' twice"),
        ("scan,patient,label\na,p,CAP,x\n", "row 2: 4 cells under 3 columns"),
        ("scan,patient,label,\na,p,CAP,,x\n", "row 2: 4 cells under 3 columns"),
        ("scan,patient,label,age\na,p,CAP,old\n", "row 2: age must be years"),
        ("scan,patient,label,age\na,p,CAP,200\n", "row 2: age must be years"),
        ("scan,patient,label,sex\na,p,CAP,x\n", "row 2: sex must be F, M, O"),
        ("scan,patient,label,split\na,p,CAP,tset\n", "row 2: .*Did you mean 'test'"),
        ("scan,patient,label,fold\na,p,CAP,0\n", "row 2: fold must be a whole number"),
        ('scan,patient,label\n"a,p,CAP\n', "not a well-formed CSV"),
        ("scan,patient,label\na,p,CAP\nb,q,nrmal\n", "row 3: .*Did you mean 'normal'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_row_and_remedy(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ManifestError, match=words):
        read_text(tmp_path, text)


def test_files_that_are_no_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read as a manifest"):
        read_manifest(tmp_path / "none.csv")
    (tmp_path / "scans.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="UTF-8"):
        read_manifest(tmp_path / "scans.csv")


def test_scans_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "scans.csv").write_text("scan,patient,label\na,p,CAP\n")
    with pytest.raises(ManifestError, match="row 2: a"):
        read_manifest(tmp_path / "scans.csv")


def test_other_labels_are_taken_when_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "scans.csv").write_text("scan,patient,label\na,p,mild\n")
    manifest = read_manifest(tmp_path / "scans.csv", ("severe", "mild"), needs_files=False)
    assert manifest.label_indices == [1]


def test_a_place_that_cannot_be_written_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "m.csv").mkdir()
    with pytest.raises(
        WriteError, match=r"m\.csv cannot be written: is a directory.*choose another --out"
    ):
        write_manifest(make_manifest([ManifestRow("a", "p", "CAP")]), tmp_path / "m.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


@pytest.mark.parametrize(
    ("text", "age"), [("", None), ("63", 63.0), ("018M", 1.5), ("063Y", 63.0), ("1461D", 4.0)]
)
def test_ages_are_read_as_dicom_and_people_write_them(text: str, age: float | None) -> None:
    assert parse_age(text) == age

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from labelled_scans import make_manifest, make_rows

from chestct.cli import main
from chestct.datasets.manifest import (
    Manifest,
    ManifestError,
    ManifestRow,
    _require_files,
    describe_rows,
    parse_age,
    read_manifest,
    write_manifest,
)
from chestct.datasets.splits import SplitSettings, hold_out
from chestct.errors import WriteError


def test_labels_are_those_that_occur_in_the_order_of_the_package() -> None:
    assert make_manifest(make_rows({"normal": 1, "CAP": 1})).labels == ("CAP", "normal")
    rows = make_rows({"mild": 1, "severe": 1})
    assert Manifest(tuple(rows), ("severe", "mild")).label_indices == [1, 0]


def test_rows_get_the_numbers_a_spreadsheet_shows() -> None:
    manifest = make_manifest(make_rows({"CAP": 2, "normal": 1}))
    assert [row.number for row in manifest.rows] == [2, 3, 4]
    assert [row.number for row in manifest.choose(lambda row: row.label == "normal").rows] == [4]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (ManifestRow("", "p", "CAP"), "row 2: the column 'scan' is empty"),
        (ManifestRow("s", " ", "CAP"), "Give every scan its patient"),
        (ManifestRow("s", "p", ""), "the column 'label' is empty"),
        (ManifestRow("s", "p", "covid19"), "row 2: There is no label 'covid19'"),
    ],
)
def test_an_impossible_row_is_refused_with_its_number(row: ManifestRow, words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        make_manifest([row])


def test_an_unknown_label_is_refused_with_the_nearest_one_and_their_number() -> None:
    rows = [ManifestRow(str(i), str(i), "Covid-19") for i in range(3)]
    with pytest.raises(ManifestError, match=r"Did you mean 'COVID-19'\?.*3 rows in all"):
        make_manifest(rows)


def test_a_scan_under_two_rows_is_refused_unless_the_series_differ() -> None:
    rows = [ManifestRow(f"{way}scan", "p", "CAP") for way in ("", "./")]
    with pytest.raises(ManifestError, match=r"rows 2 and 3 are the same scan \(scan\)"):
        make_manifest(rows)
    series = [ManifestRow("scan", "p", "CAP", others={"series": uid}) for uid in ("1.2", "1.3")]
    assert len(make_manifest(series)) == 2


def test_a_manifest_without_scans_is_refused() -> None:
    with pytest.raises(ManifestError, match="lists no scans"):
        make_manifest([])


def test_missing_files_are_refused_with_row_and_path(tmp_path: Path) -> None:
    rows = make_rows({"CAP": 7})
    (tmp_path / rows[0].scan).touch()
    with pytest.raises(ManifestError, match="6 of 7 scans that are not there") as caught:
        _require_files(make_manifest(rows, tmp_path))
    assert "row 3: CAP-001-0" in str(caught.value)
    assert "and 1 more" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_one_class_only_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"All 2 scans .*rows 2 and 3.* are CAP"):
        make_manifest(make_rows({"CAP": 2})).require_classes()


def test_a_class_without_scans_is_refused() -> None:
    manifest = make_manifest(make_rows({"CAP": 1, "COVID-19": 1, "normal": 1}))
    chosen = manifest.choose(lambda row: row.label != "normal")
    with pytest.raises(ManifestError, match=r"No scan of the part 'training' of scans\.csv is nor"):
        chosen.require_classes("training")


def test_rows_are_named_briefly() -> None:
    rows = make_manifest(make_rows({"CAP": 9})).rows
    assert describe_rows(rows[:1]) == "row 2"
    assert describe_rows(rows[:3]) == "rows 2, 3 and 4"
    assert describe_rows(rows) == "rows 2, 3, 4, 5, 6 and 4 more"


def test_a_patient_belongs_to_the_class_of_most_scans() -> None:
    rows = [ManifestRow(str(i), "p", label) for i, label in enumerate(("CAP", "normal", "normal"))]
    rows.append(ManifestRow("9", "q", "CAP"))
    assert make_manifest(rows).patients_by_label == {"CAP": ["q"], "normal": ["p"]}


def test_cases_and_patients_are_counted() -> None:
    manifest = make_manifest(make_rows({"CAP": 2, "normal": 1}, scans_per_patient=3))
    assert manifest.cases == {"CAP": 6, "normal": 3}
    assert manifest.num_patients == 3
    assert len(manifest) == 9


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


TABLE = """scan,patient,label,excluded
a,p1,COVID-19,
b,p2,normal,image quality
c,p3,normal,
d,p4,COVID-19,too little radiation
e,p5,,image quality
"""


def table(folder: Path) -> Path:
    path = folder / "scans.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def test_excluded_rows_are_no_rows_and_need_neither_file_nor_label(tmp_path: Path) -> None:
    for name in "ac":
        (tmp_path / name).mkdir()
    manifest = read_manifest(table(tmp_path))
    _require_files(manifest)
    assert [row.scan for row in manifest.rows] == ["a", "c"]
    assert [row.excluded for row in manifest.excluded] == [
        "image quality", "too little radiation", "image quality",
    ]  # fmt: skip
    assert (len(manifest), manifest.num_patients, manifest.cases) == (
        2, 2, {"COVID-19": 1, "normal": 1},
    )  # fmt: skip


def test_writing_keeps_excluded_rows_where_they_stood(tmp_path: Path) -> None:
    manifest = read_manifest(table(tmp_path), needs_files=False)
    again = write_manifest(manifest, tmp_path / "again.csv")
    assert again.read_text() == TABLE


def test_a_split_leaves_excluded_rows_nowhere_and_keeps_them(tmp_path: Path) -> None:
    rows = make_rows({"COVID-19": 5, "normal": 5})
    rows[0] = replace(rows[0], excluded="other lesions")
    divided = hold_out(make_manifest(rows), SplitSettings(test_share=0.4))
    assert len(divided) == 9
    assert all(row.split for row in divided.rows)
    assert [row.split for row in divided.excluded] == [""]
    path = write_manifest(divided, tmp_path / "divided.csv")
    found = read_manifest(path, needs_files=False)
    assert (len(found), len(found.excluded)) == (9, 1)


def test_choosing_rows_keeps_the_excluded_ones_counted() -> None:
    rows = make_rows({"COVID-19": 2, "normal": 2})
    rows[3] = replace(rows[3], excluded="image quality")
    chosen = make_manifest(rows).choose(lambda row: row.label == "COVID-19")
    assert (len(chosen), len(chosen.excluded)) == (2, 1)


def test_a_manifest_of_which_nothing_is_left_is_refused() -> None:
    row = ManifestRow("a", "p", "normal", excluded="image quality")
    with pytest.raises(ManifestError, match="excludes all its 1 scans"):
        Manifest((row,))


def test_the_flow_counts_scans_patients_and_labels_by_reason(tmp_path: Path) -> None:
    flow = read_manifest(table(tmp_path), needs_files=False).flow()
    assert flow.columns == ("step", "scans", "patients", "COVID-19", "normal", "no label")
    assert flow.rows == (
        ("listed", "5", "5", "2", "2", "1"),
        ("excluded: image quality", "2", "2", "0", "1", "1"),
        ("excluded: too little radiation", "1", "1", "1", "0", "0"),
        ("used", "2", "2", "1", "1", "0"),
    )
    assert "| used | 2 | 2 | 1 | 1 | 0 |" in flow.as_markdown()


@pytest.mark.parametrize("ending", ["csv", "md"])
def test_the_command_shows_and_writes_the_flow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    out = tmp_path / f"flow.{ending}"
    assert main(["dataset", "flow", str(table(tmp_path)), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "| excluded: image quality | 2 |" in shown
    line = "excluded: image quality,2,2,0,1,1\n"
    assert (out.read_text() + "\n" in shown) if ending == "md" else (line in out.read_text())


def test_the_command_refuses_another_kind_of_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset", "flow", str(table(tmp_path)), "--out", str(tmp_path / "flow.txt")]
    assert main(words) == 2
    assert "neither .csv nor .md" in capsys.readouterr().err
    assert main(words[:3]) == 0

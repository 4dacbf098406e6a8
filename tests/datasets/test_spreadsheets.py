"""Labels from tables as people have them: separators, encodings, workbooks, and what can be wrong.

The scans are empty files: nothing here reads one.
"""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from chestct.datasets.manifest import Manifest, ManifestError
from chestct.datasets.public import scans_below
from chestct.datasets.spreadsheets import (
    Columns,
    _Spreadsheet,
    join_labels,
    read_spreadsheet,
)
from chestct.extras import MissingExtraError
from chestct.labels import ClassLabel, LabelSet

OWN = LabelSet(
    (
        ClassLabel("clear", negative=True, values=("no", "0")),
        ClassLabel("emphysema", values=("yes", "1")),
    )
)
HEADER = ("Patient", "Emphysema")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Patients p1 with two scans and p2 with one, a mask beside it, and a folder of results."""
    folder = tmp_path / "scans"
    for name in ("p1/before.nii.gz", "p1/after.nii.gz", "group/p2/ct.nii"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    mask = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    nibabel.save(mask, folder / "group" / "p2" / "lungs.nii.gz")
    results = folder / "results"
    results.mkdir()
    (results / "result.json").touch()
    (results / "heat-map.nii.gz").touch()
    return folder


def table(*rows: tuple[str, ...], header: tuple[str, ...] = HEADER) -> _Spreadsheet:
    return _Spreadsheet("labels.csv", header, dict(enumerate(rows, start=2)))


def join(folder: Path, *rows: tuple[str, ...], **said: object) -> tuple[Manifest, tuple[str, ...]]:
    header = said.pop("header", HEADER)
    columns = said.pop("columns", Columns(label="emphysema"))
    return join_labels(folder, table(*rows, header=header), columns, OWN, **said)  # type: ignore[arg-type]


def test_scans_are_found_below_a_folder_without_masks_and_results(scans: Path) -> None:
    found, masks = scans_below(scans)
    assert [path.relative_to(scans).as_posix() for path in found] == [
        "group/p2/ct.nii",
        "p1/after.nii.gz",
        "p1/before.nii.gz",
    ]
    assert [path.name for path in masks] == ["lungs.nii.gz"]


def test_a_folder_of_slices_is_one_scan(tmp_path: Path) -> None:
    for name in ("p1/series/1", "p2/1.tif", "p2/2.tif", "notes/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0" * 128 + b"DICM" if name.endswith("/1") else b"x")
    assert scans_below(tmp_path)[0] == [tmp_path / "p1" / "series", tmp_path / "p2"]


def test_a_patients_label_goes_to_all_scans_of_the_patient(scans: Path) -> None:
    header = ("Patient", "Emphysema", "Age", "Ward", "label")
    rows = (("p1", "YES", "63", "A", "x"), ("p2", "0", "", "B", "y"))
    manifest, notes = join(scans, *rows, header=header)
    assert [(row.scan[-15:], row.patient, row.label, row.age) for row in manifest.rows] == [
        ("p1/after.nii.gz", "p1", "emphysema", 63.0),
        ("1/before.nii.gz", "p1", "emphysema", 63.0),
        ("group/p2/ct.nii", "p2", "clear", None),
    ]
    assert manifest.labels == ("clear", "emphysema")
    assert manifest.rows[2].others == {"Ward": "B", "label of labels.csv": "y"}
    assert notes == ("1 NIfTI files of 8 bits were taken for masks and left out.",)


@pytest.mark.parametrize(
    "names",
    [
        ("p1/before.nii.gz", "p1/after", "group/p2/ct.nii"),
        ("before", "after.nii.gz", "p2"),
        ("./p1/before", "p1\\after.nii.gz", "group/p2"),
    ],
)
def test_a_scan_is_named_by_its_path_or_name_with_or_without_ending(
    scans: Path, names: tuple[str, str, str]
) -> None:
    rows = [(name, "yes" if number else "no") for number, name in enumerate(names)]
    columns = Columns(label="emphysema", scan="file")
    manifest, notes = join(scans, *rows, header=("File", "Emphysema"), columns=columns)
    assert [Path(row.scan).name for row in manifest.rows] == [
        "before.nii.gz",
        "after.nii.gz",
        "ct.nii",
    ]
    assert [row.label for row in manifest.rows] == ["clear", "emphysema", "emphysema"]
    assert "Every scan is taken for another patient" in notes[-1]


GOOD = (("p1", "yes"), ("p2", "no"))


@pytest.mark.parametrize(
    ("rows", "said", "words"),
    [
        (GOOD[:1], {}, r"1 of 3 scans in .* have no row: group/p2/ct.nii\. .*--matched-only"),
        ((*GOOD, ("p3", "no")), {}, r"1 of 3 rows name no scan in .*: row 4\."),
        ((("p1", "yes"), ("p2", "")), {}, r"1 of 2 rows have no label: row 3\."),
        ((("p1", "maybe"), GOOD[1]), {}, r"row 2: 'maybe' stands for no class\. Expected 'clear'"),
        ((*GOOD, ("p1", "yes")), {}, r"rows 2 and 4 are the same patient \('p1'\)"),
        (GOOD, {"columns": Columns(label="emphysma")}, "Did you mean 'Emphysema'"),
        (GOOD, {"columns": Columns()}, r"no column 'label'. It has Patient, Emphysema"),
        (GOOD, {"header": ("Who", "Emphysema")}, r"neither a column 'scan' nor 'patient'"),
        (
            GOOD,
            {"columns": Columns(label="emphysema", scan="patient")},
            r"row 2: 'p1' in the column 'Patient' fits 2 scans: p1/after.nii.gz, p1/before",
        ),
        (
            (("p1", "yes", "old"), ("p2", "no", "")),
            {"header": (*HEADER, "age")},
            "labels.csv, row 2: age must be years",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_row_and_remedy(
    scans: Path, rows: tuple[tuple[str, ...], ...], said: dict[str, object], words: str
) -> None:
    with pytest.raises(ManifestError, match=words):
        join(scans, *rows, **said)


def test_half_of_the_labels_are_taken_when_that_is_asked_for_and_the_rest_is_counted(
    scans: Path,
) -> None:
    rows = (("p1", "yes"), ("p3", "no"))
    manifest, notes = join(scans, *rows, takes_matched_only=True)
    assert [row.label for row in manifest.rows] == ["emphysema", "emphysema"]
    assert any("1 of 3 scans" in note for note in notes)
    assert any("row 3" in note for note in notes)
    with pytest.raises(ManifestError, match=r"No row of labels\.csv has both"):
        join(scans, ("p9", "yes"), takes_matched_only=True)


def test_without_named_classes_the_columns_own_are_taken_but_not_yes_and_no(scans: Path) -> None:
    columns = Columns(label="emphysema")
    rows = table(("p1", "severe"), ("p2", "mild"))
    manifest, notes = join_labels(scans, rows, columns)
    assert manifest.labels == ("mild", "severe")
    assert any("named as the negative one" in note for note in notes)
    with pytest.raises(ManifestError, match=r"(?s)holds no, yes, .*values: \[yes, 1\]") as refusal:
        join_labels(scans, table(*GOOD), columns)
    assert "negative: true" in str(refusal.value)


ROWS = "Patient{0}Befund\nMüller{0}ja\n"


@pytest.mark.parametrize("delimiter", [";", ",", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_a_csv_file_of_any_separator_and_encoding_is_read(
    tmp_path: Path, delimiter: str, encoding: str
) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(ROWS.format(delimiter).encode(encoding))
    assert read_spreadsheet(file) == _Spreadsheet(
        "labels.csv", ("Patient", "Befund"), {2: ["Müller", "ja"]}
    )


def test_rows_keep_the_numbers_that_a_spreadsheet_shows(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text('sep=;\nPatient;Note\n\np1;"a;b"\n;;\np2\n')
    assert read_spreadsheet(file).rows == {4: ["p1", "a;b"], 6: ["p2", ""]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"Patient,label\n", "has no rows"),
        (b"Patient,label,label\np1,a,b\n", "has the column 'label' twice"),
        (b"Patient,label\np1,a,b\n", "row 2: 'b' in column 3 stands under no name"),
        (b"\0\0\0\0", "it is no text"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(content)
    with pytest.raises(ManifestError, match=words):
        read_spreadsheet(file)
    with pytest.raises(ManifestError, match=r"none\.csv cannot be read: No such file"):
        read_spreadsheet(tmp_path / "none.csv")
    with pytest.raises(ManifestError, match="has no sheets"):
        read_spreadsheet(file, "Sheet1")


def workbook(file: Path, **sheets: list[list[object]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(file)
    return file


def test_a_workbook_is_read_with_numbers_as_they_are_shown(tmp_path: Path) -> None:
    rows: list[list[object]] = [["Patient", "Emphysema", "Age"], [7.0, True, 63.5], [8, None, None]]
    file = workbook(tmp_path / "labels.xlsx", Labels=rows, Empty=[])
    found = read_spreadsheet(file)
    assert found.header == ("Patient", "Emphysema", "Age")
    assert found.rows == {2: ["7", "True", "63.5"], 3: ["8", "", ""]}


def test_of_two_sheets_one_has_to_be_named(tmp_path: Path) -> None:
    rows: list[list[object]] = [["Patient", "label"], ["p1", "a"]]
    file = workbook(tmp_path / "labels.xlsx", First=rows, Second=[*rows, ["p2", "b"]])
    with pytest.raises(ManifestError, match=r"2 sheets \(First, Second\).*--sheet 'First'"):
        read_spreadsheet(file)
    assert len(read_spreadsheet(file, "Second").rows) == 2
    with pytest.raises(ManifestError, match="Did you mean 'Second'"):
        read_spreadsheet(file, "Seconds")


def test_what_is_no_workbook_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    file = tmp_path / "labels.xlsx"
    file.write_text("Patient,label\n")
    with pytest.raises(ManifestError, match="it is no Excel workbook"):
        read_spreadsheet(file)


def test_a_workbook_without_openpyxl_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "labels.xlsx"
    file.touch()
    monkeypatch.setattr("chestct.extras.is_installed", lambda _package: False)
    with pytest.raises(MissingExtraError, match=re.escape("chestct[excel]")):
        read_spreadsheet(file)

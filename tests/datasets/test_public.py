"""Each layout on a tiny folder that is laid out like the data set, and lists of slices."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from drawn_slices import draw_folder, draw_slice
from PIL import Image

from chestct.datasets.checks import find_patient_leaks
from chestct.datasets.manifest import Manifest, ManifestError, read_manifest, write_manifest
from chestct.datasets.public import (
    _MAX_FOLDERS,
    _UNKNOWN_PATIENTS,
    LAYOUTS,
    _class_folders,
    _folders_under,
    read_table,
    scan_folder,
    scan_slice_folder,
    stem,
)
from chestct.errors import ReadError, UnknownNameError


def lay_out(root: Path, *paths: str) -> Path:
    """Empty files at the given places."""
    for path in paths:
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    return root


def summary(manifest: Manifest) -> list[tuple[str, str, str]]:
    """Scan, patient and label of every row, paths relative to the folder."""
    return [
        (Path(row.scan).relative_to(manifest.folder).as_posix(), row.patient, row.label)
        for row in manifest.rows
    ]


@pytest.mark.parametrize(
    ("covid", "cap", "normal"),
    [
        ("COVID-19 subjects", "Cap subjects", "Normal subjects"),
        ("COVID-19 Cases", "CAP Cases", "Normal Cases"),
        ("covid19_subjects", "cap", "NORMAL"),
        ("COVID-19 subjects/COVID-19 subjects", "Cap subjects/Cap subjects", "Normal subjects"),
        ("COVID-CT-MD/COVID-19 subjects", "COVID-CT-MD/Cap", "COVID-CT-MD/Normal"),
        (".", ".", "."),
    ],
)
def test_covid_ct_md_is_known_in_any_spelling(
    tmp_path: Path, covid: str, cap: str, normal: str
) -> None:
    lay_out(
        tmp_path, f"{covid}/P001/IM0001.dcm", f"{covid}/P002/IM0001.dcm",
        f"{cap}/cap001/IM0001.dcm", f"{normal}/normal001/IM0001.dcm", "Index.csv",
    )  # fmt: skip
    (tmp_path / covid / "P099").mkdir()
    manifest, layout, notes = scan_folder(tmp_path)
    assert layout == "covid_ct_md"
    assert sorted((patient, label) for _, patient, label in summary(manifest)) == [
        ("P001", "COVID-19"), ("P002", "COVID-19"), ("cap001", "CAP"), ("normal001", "normal"),
    ]  # fmt: skip
    assert {row.others["dataset"] for row in manifest.rows} == {"COVID-CT-MD"}
    assert notes == ()


def test_covid_ct_md_takes_age_and_sex_from_the_clinical_table(tmp_path: Path) -> None:
    lay_out(tmp_path, "Cap subjects/cap001/1.dcm", "Normal subjects/normal001/1.dcm")
    (tmp_path / "Radiologist.csv").write_text("Patient ID,Opinion\ncap001,agrees\n")
    (tmp_path / "Clinical-data.csv").write_text(
        "Patient ID,Patient Gender,Patient Age,Weight\ncap001,M,045Y,80\nnormal001,?,unknown,70\n",
        encoding="utf-8-sig",
    )
    manifest, _, _ = scan_folder(tmp_path)
    assert [(row.age, row.sex) for row in manifest.rows] == [(45.0, "M"), (None, "")]


def test_folders_that_contradict_the_names_are_no_covid_ct_md(tmp_path: Path) -> None:
    lay_out(tmp_path, "Normal/P001/1.dcm", "Covid/P002/1.dcm")
    manifest, layout, _ = scan_folder(tmp_path)
    assert layout == "folder_per_class"
    assert [row.label for row in manifest.rows if row.patient == "P001"] == ["normal"]


@pytest.mark.parametrize("folder", ["Test-1", "SPGC-COVID/Test1", "."])
def test_spgc_takes_labels_from_its_tables(tmp_path: Path, folder: str) -> None:
    lay_out(tmp_path, *(f"{folder}/T1-00{n}/IM1.dcm" for n in (1, 2, 3, 4)))
    (tmp_path / "test1_labels.csv").write_text(
        "T1-001,COVID-19\n'T1_002',normal\nT1-003,cap\nT1-009,normal\n", encoding="utf-8-sig"
    )
    manifest, layout, notes = scan_folder(tmp_path)
    assert layout == "spgc"
    assert [(patient, label) for _, patient, label in summary(manifest)] == [
        ("T1-001", "COVID-19"), ("T1-002", "normal"), ("T1-003", "CAP"),
    ]  # fmt: skip
    assert manifest.rows[0].others == {"dataset": "SPGC-COVID T1"}
    assert notes == (
        "1 studies stand in no label file and were left out.",
        "1 studies of the label files have no folder.",
    )


@pytest.mark.parametrize("root", ["studies", "COVID19_1110/studies", "."])
def test_mosmed_takes_severity_for_class(tmp_path: Path, root: str) -> None:
    lay_out(
        tmp_path, f"{root}/CT-0/study_0001.nii.gz", f"{root}/CT-1/study_0255.nii",
        f"{root}/CT-4/study_1110.nii.gz", "masks/study_0255_mask.nii.gz",
    )  # fmt: skip
    manifest, layout, notes = scan_folder(tmp_path)
    assert layout == "mosmed"
    assert [(patient, label) for _, patient, label in summary(manifest)] == [
        ("study_0001", "normal"), ("study_0255", "COVID-19"), ("study_1110", "COVID-19"),
    ]  # fmt: skip
    assert manifest.rows[2].others["severity"] == "CT-4"
    assert "not laboratory tests" in notes[0]


def test_covid_ctset_has_several_sequences_of_a_patient(tmp_path: Path) -> None:
    lay_out(
        tmp_path, "covid1/patient1/SR_2/1.tif", "covid1/patient1/SR_3/1.tif",
        "covid2/patient50/SR_4/1.tif", "normal1/patient1/SR_2/1.tif",
    )  # fmt: skip
    manifest, layout, notes = scan_folder(tmp_path)
    assert layout == "covid_ctset"
    assert summary(manifest) == [
        ("covid1/patient1/SR_2", "COVID-19 patient1", "COVID-19"),
        ("covid1/patient1/SR_3", "COVID-19 patient1", "COVID-19"),
        ("covid2/patient50/SR_4", "COVID-19 patient50", "COVID-19"),
        ("normal1/patient1/SR_2", "normal patient1", "normal"),
    ]
    assert "--spacing-mm" in notes[0]
    assert manifest.rows[0].site == "Negin"


def test_how_slices_lie_is_put_on_every_row_and_then_not_asked_for(tmp_path: Path) -> None:
    lay_out(tmp_path, "covid1/patient1/SR_2/1.tif", "normal1/patient2/SR_2/1.tif")
    reading = {"spacing_mm": "2 0.7 0.7", "order": "ascending"}
    manifest, _, notes = scan_folder(tmp_path, "covid_ctset", reading)
    assert all(row.others["spacing_mm"] == "2 0.7 0.7" for row in manifest.rows)
    assert notes == ()


def test_how_slices_lie_is_not_put_on_scans_of_other_formats(tmp_path: Path) -> None:
    lay_out(tmp_path, "CAP/a.nii.gz", "normal/b/1.tif")
    manifest, _, _ = scan_folder(tmp_path, "folder_per_class", {"spacing_mm": "2 0.7 0.7"})
    assert [row.others.get("spacing_mm") for row in manifest.rows] == [None, "2 0.7 0.7"]


@pytest.mark.parametrize("root", ["COVID-MAH-CT 3D", "COVID-MAH-CT/3D", "COVID-MAH-CT-3D/COVID-19"])
def test_covid_mah_ct_is_all_covid(tmp_path: Path, root: str) -> None:
    lay_out(tmp_path, *(f"{root}/{n}/slice1.tif" for n in (1, 2, 10)))
    manifest, layout, notes = scan_folder(tmp_path)
    assert layout == "covid_mah_ct_3d"
    assert {(row.patient, row.label) for row in manifest.rows} == {
        ("1", "COVID-19"), ("2", "COVID-19"), ("10", "COVID-19"),
    }  # fmt: skip
    assert "class and source are the same variable" in notes[1]


def test_covid_mah_ct_is_known_from_the_named_folder_itself(tmp_path: Path) -> None:
    lay_out(tmp_path / "covid_mah_ct-3D volumes", "1/slice1.tif", "2/slice1.tif")
    manifest, layout, _ = scan_folder(tmp_path / "covid_mah_ct-3D volumes")
    assert (layout, manifest.cases) == ("covid_mah_ct_3d", {"COVID-19": 2})


@pytest.mark.parametrize(
    "root",
    ["mahdi/ct", "COVID-MAH-CT/ct", "sets/mahan", "COVID-MAH-CT", "COVID-MAH-CT/COVID-MAH-CT"],
)
def test_normal_scans_are_never_taken_for_covid_mah_ct(tmp_path: Path, root: str) -> None:
    scans = [f"{label}/{n}/a.dcm" for label in ("COVID-19", "normal") for n in (1, 2)]
    lay_out(tmp_path / root, *scans)
    manifest, layout, _ = scan_folder(tmp_path / root)
    assert (layout, manifest.cases) == ("folder_per_class", {"COVID-19": 2, "normal": 2})


def test_covid_mah_ct_is_not_looked_for_above_the_named_folder(tmp_path: Path) -> None:
    lay_out(tmp_path / "COVID-MAH-CT 3D" / "other", "1/slice1.tif", "2/slice1.tif")
    assert LAYOUTS["covid_mah_ct_3d"](tmp_path / "COVID-MAH-CT 3D" / "other").rows == []
    assert len(LAYOUTS["covid_mah_ct_3d"](tmp_path / "COVID-MAH-CT 3D").rows) == 2


def test_a_folder_of_another_class_is_no_covid_mah_ct(tmp_path: Path) -> None:
    lay_out(tmp_path / "normal" / "COVID-MAH-CT", "1/slice1.tif")
    assert LAYOUTS["covid_mah_ct_3d"](tmp_path / "normal" / "COVID-MAH-CT").rows == []
    assert LAYOUTS["covid_mah_ct_3d"](tmp_path / "normal").rows == []


def test_a_plain_folder_per_class_is_known(tmp_path: Path) -> None:
    lay_out(
        tmp_path, "covid/1/a.dcm", "covid/2.nii.gz", "covid/readme.txt", "Healthy/1/deep/a.dcm",
        "Pneumonia/x.zip", "covid/.hidden/a.dcm",
    )  # fmt: skip
    (tmp_path / "covid" / "empty").mkdir()
    manifest, layout, notes = scan_folder(tmp_path)
    assert layout == "folder_per_class"
    assert sorted(summary(manifest)) == [
        ("Healthy/1", "normal 1", "normal"),
        ("Pneumonia/x.zip", "CAP x", "CAP"),
        ("covid/1", "COVID-19 1", "COVID-19"),
        ("covid/2.nii.gz", "COVID-19 2", "COVID-19"),
    ]
    assert "another patient" in notes[0]


def test_a_table_of_labels_is_taken_as_simulate_writes_it(tmp_path: Path) -> None:
    lay_out(tmp_path, "patient-001/dicom/a.dcm", "patient-002/dicom/a.dcm")
    (tmp_path / "labels.csv").write_text(
        "patient,scan,label\npatient-001,patient-001/dicom,CAP\n"
        "patient-002,patient-002/dicom,normal\n,,\n"
    )
    manifest, layout, notes = scan_folder(tmp_path)
    assert layout == "labels_csv"
    assert summary(manifest) == [
        ("patient-001/dicom", "patient-001", "CAP"),
        ("patient-002/dicom", "patient-002", "normal"),
    ]
    assert notes == ()


def test_rows_of_a_table_without_scan_or_label_are_counted(tmp_path: Path) -> None:
    lay_out(tmp_path, "a/1.dcm", "b/1.dcm", "c/1.dcm")
    (tmp_path / "labels.csv").write_text("scan,label\na,CAP\nb,\n,normal\n,\nc,normal\n")
    manifest, _, notes = scan_folder(tmp_path)
    assert [row.patient for row in manifest.rows] == ["a", "c"]
    assert notes == ("2 row(s) of labels.csv have no scan or no label and were left out.",)


def test_a_relative_folder_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "sets/covid/1/a.dcm", "sets/normal/2/a.dcm")
    monkeypatch.chdir(tmp_path)
    manifest, _, _ = scan_folder("sets")
    assert all(manifest.path(row).is_dir() for row in manifest.rows)


def test_a_folder_without_labelled_scans_is_refused_with_the_remedy(tmp_path: Path) -> None:
    lay_out(tmp_path, "things/a.txt")
    with pytest.raises(ManifestError, match="one folder per class"):
        scan_folder(tmp_path)
    with pytest.raises(ManifestError, match="There is no folder"):
        scan_folder(tmp_path / "none")
    with pytest.raises(UnknownNameError, match="Did you mean 'mosmed'"):
        scan_folder(tmp_path, "mosmet")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_finds_scans_in_an_empty_folder(tmp_path: Path, layout: str) -> None:
    assert LAYOUTS[layout](tmp_path).rows == []


def test_nested_class_folders_count_once(tmp_path: Path) -> None:
    lay_out(tmp_path, "covid/covid/normal1/a.dcm")
    assert _class_folders(tmp_path) == [(tmp_path / "covid" / "covid", "COVID-19")]


def test_too_many_folders_and_unreadable_ones_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path, "a/b/c.txt")
    assert _MAX_FOLDERS > 10_000
    monkeypatch.setattr("chestct.datasets.public._MAX_FOLDERS", 1)
    with pytest.raises(ManifestError, match="more than 1 folders"):
        list(_folders_under(tmp_path, 3))
    with pytest.raises(ReadError, match="cannot be read"):
        list(_folders_under(tmp_path / "none", 1))


def test_tables_that_are_none_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\xfa")
    assert read_table(tmp_path / "a.csv") == []
    assert read_table(tmp_path / "none.csv") == []
    (tmp_path / "b.csv").write_text("a;b\n1;2\n")
    assert read_table(tmp_path / "b.csv") == [["a", "b"], ["1", "2"]]
    assert stem(Path("x/scan.nii.gz")) == "scan"


def test_the_real_sample_is_known(data_folder: Path) -> None:
    manifest, layout, _ = scan_folder(data_folder / "covid_ct_md")
    assert layout == "covid_ct_md"
    assert [(row.patient, row.label) for row in manifest.rows] == [
        ("P001", "COVID-19"), ("normal001", "normal"),
    ]  # fmt: skip


def test_linked_scans_are_found_under_their_own_names(tmp_path: Path) -> None:
    lay_out(tmp_path, "store/x/a.dcm", "store/y/a.dcm")
    for label, name in (("covid", "x"), ("normal", "y")):
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "scan").symlink_to(tmp_path / "store" / name)
    manifest, _, _ = scan_folder(tmp_path / "set")
    path = write_manifest(manifest, tmp_path / "scans.csv")
    assert [row.scan for row in read_manifest(path).rows] == ["set/covid/scan", "set/normal/scan"]


def make_covid_ct(folder: Path) -> Path:
    """COVID-CT's layout, its names with their blanks and percent signs among them."""
    numbers = {"train": 0, "val": 1, "test": 2}
    for kind, images in (("COVID", "CT_COVID"), ("NonCOVID", "CT_NonCOVID")):
        lists = folder / "Data-split" / kind
        lists.mkdir(parents=True)
        (folder / "Images-processed" / images).mkdir(parents=True)
        for split, number in numbers.items():
            names = [f"2020.01.24 p{number}-5{end}%2.png" for end in (1, 2)]
            for name in names:
                picture = draw_slice(number, is_ill=kind == "COVID")
                Image.fromarray(picture).save(folder / "Images-processed" / images / name)
            (lists / f"{split}CT_{kind}.txt").write_text("\r\n".join(names) + "\n\n")
    return folder


def test_folders_of_pictures_that_are_no_class_are_named(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path, patients=2, slices=3)
    shutil.copytree(next(each for each in folder.iterdir() if each.is_dir()), folder / "unclear")
    notes = " ".join(scan_slice_folder(folder).notes)
    assert "left out: unclear" in notes


def test_pictures_in_class_folders_take_their_patient_from_the_folder_between(
    tmp_path: Path,
) -> None:
    found = scan_slice_folder(draw_folder(tmp_path, patients=2, slices=3))
    rows = found.manifest.rows
    assert found.notes == ()
    assert found.manifest.cases == {"COVID-19": 6, "normal": 6}
    assert {row.patient for row in rows} == {"COVID-19 00", "COVID-19 01", "normal 00", "normal 01"}
    assert all(not row.split for row in rows)


def test_without_patients_each_picture_is_its_own_and_that_is_said(tmp_path: Path) -> None:
    for label in ("covid", "normal"):
        (tmp_path / label).mkdir()
        for number in range(2):
            Image.fromarray(draw_slice(number, is_ill=False)).save(
                tmp_path / label / f"p{number}.jpg"
            )
    found = scan_slice_folder(tmp_path)
    assert found.notes == (_UNKNOWN_PATIENTS,)
    assert found.manifest.num_patients == 4
    named = scan_slice_folder(tmp_path, patient_pattern="(p[0-9])")
    assert named.manifest.rows[0].patient == "COVID-19 p0"


def test_covid_cts_own_lists_give_label_and_split(tmp_path: Path) -> None:
    found = scan_slice_folder(make_covid_ct(tmp_path), patient_pattern=" (p[0-9]+)-")
    rows = found.manifest.rows
    assert len(rows) == 12
    sides = {(row.label, row.split): row.patient for row in rows}
    assert sides["COVID-19", "test"] == "COVID-19 p2"
    assert sides["normal", "validation"] == "normal p1"
    assert len(found.notes) == 1
    assert "not COVID-19" in found.notes[0]


def test_a_copy_of_covid_ct_with_a_table_of_patients_leaves_no_patient_on_two_sides(
    tmp_path: Path,
) -> None:
    for kind in ("COVID", "NonCOVID"):
        (tmp_path / kind).mkdir()
        for split in ("train", "val"):
            names = [f"{kind}_{split}_{number}.png" for number in range(3)]
            for number, name in enumerate(names):
                picture = draw_slice(number, is_ill=kind == "COVID")
                Image.fromarray(picture).save(tmp_path / kind / name)
            (tmp_path / f"{split}_{kind}.txt").write_text("\n".join(names))
    lines = "COVID_train_0.png,p1\nCOVID_train_1.png,p2\nCOVID_val_0.png,p2\nCOVID_val_1.png,p3\n"
    (tmp_path / "patients_COVID.csv").write_text(f"File name,Group\n{lines}")
    found = scan_slice_folder(tmp_path)
    manifest = found.manifest
    assert len(manifest) == 11
    (left_out,) = manifest.excluded
    assert (Path(left_out.scan).name, left_out.patient) == ("COVID_train_1.png", "COVID-19 p2")
    assert left_out.excluded == "its patient is also in the validation part"
    assert "1 slices are listed for one part and their patients for another" in found.notes[0]
    named = {Path(row.scan).name: row.patient for row in manifest.rows}
    assert named["COVID_val_0.png"] == "COVID-19 p2"
    assert named["COVID_val_2.png"] == "COVID-19 COVID_val_2.png"
    assert find_patient_leaks(manifest) == []


def test_the_real_slices_are_listed_with_their_official_split_and_patients(
    data_folder: Path,
) -> None:
    found = scan_slice_folder(data_folder / "covid_ct_slices").manifest
    sides = Counter((row.label, row.split) for row in found.rows)
    assert sides == {
        ("COVID-19", "training"): 188,
        ("normal", "training"): 234,
        ("COVID-19", "validation"): 60,
        ("normal", "validation"): 58,
    }
    assert (found.num_patients, len(found.excluded)) == (344, 3)
    assert find_patient_leaks(found) == []


def test_a_first_split_kept_beside_the_second_is_left_alone(tmp_path: Path) -> None:
    make_covid_ct(tmp_path)
    old = tmp_path / "Data-split" / "COVID" / "old_split"
    old.mkdir()
    (old / "trainCT_COVID.txt").write_text("another.png\n")
    assert len(scan_slice_folder(tmp_path).manifest) == 12


def test_a_list_that_names_missing_pictures_is_refused_with_list_and_names(tmp_path: Path) -> None:
    make_covid_ct(tmp_path)
    names = "\n".join(f"gone {number}.png" for number in range(7))
    (tmp_path / "Data-split" / "NonCOVID" / "valCT_NonCOVID.txt").write_text(names)
    with pytest.raises(ManifestError) as refusal:
        scan_slice_folder(tmp_path)
    message = str(refusal.value)
    assert "valCT_NonCOVID.txt names 7 of 7 pictures" in message
    assert "gone 4.png\n  and 2 more" in message
    assert "--images" in message


@pytest.mark.parametrize(
    ("text", "split", "label", "file"),
    [
        ("test:COVID-19=a.txt", "test", "COVID-19", "a.txt"),
        ("covid=b/c.txt", "", "COVID-19", "b/c.txt"),
        ("training:ground glass=d.txt", "training", "ground glass", "d.txt"),
    ],
)
def test_a_list_on_the_command_line_is_understood(
    text: str, split: str, label: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draw_slice(1, is_ill=True)).save("p1.png")
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text("p1.png\n")
    (row,) = scan_slice_folder(tmp_path, lists=[text]).manifest.rows
    assert (row.scan, row.label, row.split) == (str(tmp_path / "p1.png"), label, split)


@pytest.mark.parametrize("text", ["a.txt", "test:=a.txt", "normal=", "tets:normal=a.txt"])
def test_a_list_that_is_not_understood_is_refused_with_an_example(
    text: str, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=r"test:COVID-19=testCT_COVID.txt"):
        scan_slice_folder(tmp_path, lists=[text])


@pytest.mark.parametrize("name", ["/etc/hosts.png", "../outside.png"])
def test_a_list_cannot_name_what_lies_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(name)
    with pytest.raises(ManifestError, match="outside"):
        scan_slice_folder(tmp_path, lists=[f"normal={tmp_path / 'list.txt'}"])


def test_an_empty_or_unreadable_list_is_named(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("\n \n")
    binary.write_bytes(b"\xff\xfe\xfa")
    for file, said in (
        (empty, "names no pictures"),
        (binary, "UTF-8"),
        (tmp_path / "no.txt", "no"),
    ):
        with pytest.raises(ManifestError, match=f"{file.name}.*{said}"):
            scan_slice_folder(tmp_path, lists=[f"normal={file}"])


def test_a_folder_without_pictures_and_one_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="one folder per class"):
        scan_slice_folder(tmp_path)
    with pytest.raises(ManifestError, match="There is no folder"):
        scan_slice_folder(tmp_path / "gone")


@pytest.mark.parametrize(("pattern", "said"), [("(p[", "is wrong"), ("(q+)", "finds no patient")])
def test_a_pattern_that_finds_nothing_is_refused(pattern: str, said: str, tmp_path: Path) -> None:
    draw_folder(tmp_path, patients=1, slices=1)
    with pytest.raises(ManifestError, match=said):
        scan_slice_folder(tmp_path, patient_pattern=pattern)

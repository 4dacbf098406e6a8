from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from drawn_slices import draw_folder, draw_slice
from PIL import Image

from chestct.datasets.manifest import ManifestError
from chestct.datasets.slice_lists import (
    UNKNOWN_PATIENTS,
    _SliceList,
    parse_list,
    read_lists,
    scan_slice_folder,
)


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
    assert found.notes == (UNKNOWN_PATIENTS,)
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
    text: str, split: str, label: str, file: str, tmp_path: Path
) -> None:
    assert parse_list(text, tmp_path) == _SliceList(Path(file), label, split, tmp_path)


@pytest.mark.parametrize("text", ["a.txt", "test:=a.txt", "normal=", "tets:normal=a.txt"])
def test_a_list_that_is_not_understood_is_refused_with_an_example(
    text: str, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=r"test:COVID-19=testCT_COVID.txt"):
        parse_list(text, tmp_path)


@pytest.mark.parametrize("name", ["/etc/hosts.png", "../outside.png"])
def test_a_list_cannot_name_what_lies_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(name)
    with pytest.raises(ManifestError, match="outside"):
        read_lists([_SliceList(tmp_path / "list.txt", "normal", "", tmp_path)], tmp_path)


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
            read_lists([_SliceList(file, "normal", "", tmp_path)], tmp_path)


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

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from drawn_slices import draw_folder, draw_slice, mark
from PIL import Image

from chestct.card import PictureForm
from chestct.datasets.checks import CheckReport, LeakError, refuse_leaks
from chestct.datasets.manifest import Manifest
from chestct.datasets.slice_checks import check_slices
from chestct.datasets.slice_lists import SHARES_PATIENTS, SLICE_SPLITS, scan_slice_folder
from chestct.datasets.slice_store import gather_slices
from chestct.datasets.splits import SplitSettings

SHARES = SplitSettings(test_share=0.2, validation_share=0.2)


def checked(folder: Path, split: str = "patient", size: int = 64) -> CheckReport:
    """Divide the slices of a folder and check them."""
    manifest = SLICE_SPLITS[split](scan_slice_folder(folder).manifest, SHARES)
    return report_on(manifest, folder, split, size)


def report_on(manifest: Manifest, folder: Path, split: str = "patient", size: int = 64):
    cache = folder.with_name("cache")
    store = gather_slices(manifest, PictureForm(size=32), cache, processes=1)
    return check_slices(manifest, store.by_row, size=size, shares_patients=split == SHARES_PATIENTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "drawn")


def said(report: CheckReport, severity: str) -> str:
    return "\n".join(f.sentence for f in report.findings if f.severity == severity)


def test_sound_slices_are_left_alone(folder: Path) -> None:
    report = checked(folder)
    assert report.findings == ()
    assert report.sides["test"] == {"COVID-19": 3, "normal": 3}
    refuse_leaks(report)


def test_a_patient_on_two_sides_is_refused(folder: Path) -> None:
    manifest = scan_slice_folder(folder).manifest
    divided = SLICE_SPLITS[SHARES_PATIENTS](manifest, SHARES)
    report = report_on(divided, folder)
    with pytest.raises(LeakError, match="scans of one patient on two sides"):
        refuse_leaks(report)


def test_the_papers_split_is_allowed_by_its_name_and_says_what_it_is(folder: Path) -> None:
    report = checked(folder, SHARES_PATIENTS)
    refuse_leaks(report)
    warning = said(report, "warning")
    assert "of 10 patients have slices on several sides" in warning
    assert "how well it remembers" in warning
    assert "data.split: patient" in warning


def test_coloured_marks_are_said_by_file_and_class(folder: Path) -> None:
    mark(folder / "COVID-19" / "01" / "2.png")
    warning = said(checked(folder), "warning")
    assert "1 slices have coloured pixels (1 COVID-19, 0 normal), such as 2.png" in warning
    assert "Take these rows out" in warning


def test_small_pictures_are_said_with_the_smallest(folder: Path) -> None:
    tiny = draw_slice(99, is_ill=False, shape=(61, 70))
    Image.fromarray(tiny).save(folder / "normal" / "00" / "0.png")
    warning = said(checked(folder, size=130), "warning")
    assert "1 slices have less than half the 130 rows" in warning
    assert "0.png, has 61 x 70 pixels" in warning


def test_the_same_picture_on_two_sides_is_refused(folder: Path) -> None:
    manifest = SLICE_SPLITS["patient"](scan_slice_folder(folder).manifest, SHARES)
    normal = [row for row in manifest.rows if row.label == "normal"]
    tested = next(row for row in normal if row.split == "test")
    learned = next(row for row in normal if row.split == "training")
    shutil.copy(tested.scan, learned.scan)
    refusal = said(report_on(manifest, folder), "refuse")
    assert "the same picture on two sides of the split" in refusal
    assert "keep one row of each" in refusal


def test_the_same_picture_under_two_labels_is_refused_and_twice_is_said(folder: Path) -> None:
    shutil.copy(folder / "normal" / "00" / "0.png", folder / "COVID-19" / "00" / "0.png")
    shutil.copy(folder / "normal" / "01" / "0.png", folder / "normal" / "01" / "1.png")
    report = checked(folder)
    assert "under two labels" in said(report, "refuse")
    assert "it counts twice" in said(report, "warning")


def test_files_that_cannot_be_read_are_refused_by_name(folder: Path) -> None:
    (folder / "normal" / "03" / "1.png").write_bytes(b"broken")
    refusal = said(checked(folder), "refuse")
    assert "1 slices cannot be read" in refusal
    assert "1.png is not a readable PNG slice" in refusal


def test_a_kind_of_file_that_gives_the_class_away_is_said(folder: Path) -> None:
    for path in (folder / "normal").rglob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    warning = said(checked(folder), "warning")
    assert "Class and kind of file are the same variable" in warning
    assert ".jpg of 8 bits, 72 x 80: normal" in warning

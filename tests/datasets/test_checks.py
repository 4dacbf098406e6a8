from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from drawn_slices import draw_folder, draw_slice, mark
from labelled_scans import make_manifest, make_rows, write_scan
from PIL import Image

from chestct.card import PictureForm
from chestct.datasets.checks import (
    CheckReport,
    check_manifest,
    check_slices,
)
from chestct.datasets.confounders import Confounder
from chestct.datasets.manifest import Manifest, ManifestError
from chestct.datasets.pictures import gather_slices
from chestct.datasets.public import scan_slice_folder
from chestct.datasets.scans import ScanFacts, gather_facts
from chestct.datasets.splits import SHARES_PATIENTS, SLICE_SPLITS, SplitSettings

QUICK = 19
"""Random labellings that a figure is held against."""


def confounder(**changes: object) -> Confounder:
    found = Confounder(
        variable="age", auc=0.83, chance_auc=0.58, p_value=0.01, is_same_as_class=False,
        num_patients=209, num_unknown=4, values={"A": {"CAP": 3}, "B": {"normal": 2}},
    )  # fmt: skip
    return replace(found, **changes)  # type: ignore[arg-type]


def test_a_renamed_reversed_copy_in_the_test_part_is_refused(scans: Manifest) -> None:
    folder = scans.folder
    write_scan(folder / "copy.nii", seed=0, is_reversed=True)
    rows = [
        replace(row, split="training" if number < 2 else "test")
        for number, row in enumerate(scans.rows)
    ]
    rows.append(replace(rows[2], scan="copy.nii", patient="another", number=6))
    manifest = scans.with_rows(rows)
    report = check_manifest(manifest, gather_facts(manifest, processes=1), QUICK)
    (refusal,) = report.refusals
    assert (refusal.kind, refusal.rows) == ("leak", (2, 6))
    with pytest.raises(ManifestError, match="Rows 2 and 6 hold the same pixels") as caught:
        report.refuse_leaks()
    assert "another" not in str(caught.value)


def test_sound_scans_are_not_refused(scans: Manifest) -> None:
    report = check_manifest(scans, gather_facts(scans, processes=1), QUICK)
    assert report.refusals == ()
    report.refuse_leaks()
    assert report.has_pixels
    assert report.cases == {"COVID-19": 2, "normal": 2}
    (few,) = report.warnings
    assert "Only 2 scan(s) are COVID-19" in few.sentence
    assert "34% to 100 %" in few.sentence


def test_an_unreadable_scan_is_refused(scans: Manifest) -> None:
    scans.path(scans.rows[1]).write_bytes(b"broken")
    report = check_manifest(scans, gather_facts(scans, processes=1), QUICK)
    assert [finding.kind for finding in report.refusals] == ["unreadable"]


def test_one_class_only_is_refused() -> None:
    report = check_manifest(make_manifest(make_rows({"CAP": 40})), None, QUICK)
    assert [finding.kind for finding in report.refusals] == ["classes"]


def test_a_named_class_without_scans_is_refused_by_its_name() -> None:
    manifest = make_manifest(make_rows({"CAP": 40, "normal": 40}))
    report = check_manifest(replace(manifest, labels=("CAP", "COVID-19", "normal")), None, QUICK)
    (refusal,) = report.refusals
    assert "No scan is COVID-19" in refusal.sentence
    assert "at least two" not in refusal.sentence


def test_class_and_source_being_one_variable_is_said_as_a_reviewer_would() -> None:
    rows = [
        replace(row, site="Sari" if row.label == "COVID-19" else "Tehran")
        for row in make_rows({"COVID-19": 133, "normal": 76})
    ]
    report = check_manifest(make_manifest(rows), None, QUICK)
    (finding,) = report.warnings
    assert finding.kind == "confounder"
    for words in (
        "Class and site are the same variable",
        "Sari: 133 COVID-19; Tehran: 76 normal",
        "cross-validation included",
        "no evidence that the disease is recognised",
    ):
        assert words in finding.sentence
    assert report.refusals == ()


def test_what_predicts_the_class_is_said_with_its_figure() -> None:
    said = confounder().meaning
    assert said is not None
    assert "AUC of 0.83 (209 patients; 4 of them not known; 95 %" in said
    assert "stay below 0.58" in said


@pytest.mark.parametrize(
    "changes", [{"auc": 0.6}, {"p_value": 0.2}, {"auc": None}, {"p_value": None}]
)
def test_what_may_be_chance_is_not_said(changes: dict[str, object]) -> None:
    assert confounder(**changes).meaning is None


def test_many_values_are_named_briefly() -> None:
    values = {f"v{i}": {"CAP": 1} for i in range(7)}
    said = confounder(is_same_as_class=True, values=values).meaning
    assert said is not None
    assert "v3: 1 CAP; 3 more values" in said


def test_the_gravest_comes_first_and_json_holds_everything() -> None:
    rows = make_rows({"CAP": 4, "normal": 4})
    rows[1] = replace(rows[1], patient=rows[0].patient, split="test")
    rows[0] = replace(rows[0], split="training")
    report = check_manifest(make_manifest(rows), None, QUICK)
    order = [finding.severity for finding in report.findings]
    assert order == sorted(order, key=["refuse", "warning", "note"].index)
    document = json.loads(report.as_json())
    assert document["schema"] == 1
    assert document["may_be_trained_on"] is False
    assert document["sides"] == {
        "test": {"CAP": 1, "normal": 0}, "training": {"CAP": 1, "normal": 0},
    }  # fmt: skip
    assert {each["variable"] for each in document["confounders"]} >= {"site", "age", "scanner"}
    assert rows[0].patient not in json.dumps(document)


def test_what_could_not_be_asked_is_said() -> None:
    report = check_manifest(make_manifest(make_rows({"CAP": 40, "normal": 40})), None, QUICK)
    sentences = " ".join(finding.sentence for finding in report.findings)
    assert "Could not be asked: site" in sentences
    assert "The scans were not read" in sentences


def test_facts_of_other_rows_are_a_mistake_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not belong"):
        check_manifest(make_manifest(make_rows({"CAP": 2})), [ScanFacts()], QUICK)


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
    report.refuse_leaks()


def test_a_patient_on_two_sides_is_refused(folder: Path) -> None:
    manifest = scan_slice_folder(folder).manifest
    divided = SLICE_SPLITS[SHARES_PATIENTS](manifest, SHARES)
    report = report_on(divided, folder)
    with pytest.raises(ManifestError, match="scans of one patient on two sides"):
        report.refuse_leaks()


def test_the_papers_split_is_allowed_by_its_name_and_says_what_it_is(folder: Path) -> None:
    report = checked(folder, SHARES_PATIENTS)
    report.refuse_leaks()
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
    assert "JPEG of 8 bits, 72 x 80: normal" in warning


def test_a_kind_of_file_that_only_one_class_has_is_said_whatever_its_name(folder: Path) -> None:
    for path in sorted((folder / "normal").rglob("*.png"))[:9]:
        Image.open(path).save(path, format="JPEG")
    warning = said(checked(folder), "warning")
    assert "9 slices are not what their names say: JPEG files named .png" in warning
    assert "(0 COVID-19, 9 normal)" in warning
    assert "JPEG files of 8 bits are of one class alone: 9 slices, all normal" in warning
    assert "PNG files" not in warning


def test_a_few_files_of_another_kind_are_no_confounder(folder: Path) -> None:
    for path in sorted(folder.rglob("0.png"))[3:7]:
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    assert checked(folder).findings == ()

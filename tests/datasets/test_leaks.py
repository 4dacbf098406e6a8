from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from analyses import make_volume
from labelled_scans import make_manifest

from chestct.datasets.checks import (
    _class_in_path,
    _find_identity_leaks,
    _find_label_conflicts,
    _find_unreadable,
    find_patient_leaks,
    find_pixel_leaks,
)
from chestct.datasets.manifest import Manifest, ManifestRow
from chestct.datasets.scans import ScanFacts, _read_facts
from chestct.labels import class_of
from chestct.readers import ReadOptions
from chestct.simulate import write_dicom_series


def facts(*slices: str) -> ScanFacts:
    return ScanFacts(pixels="1", content="".join(sorted(slices)), slices=tuple(sorted(slices)))


def two_rows(**changes: dict[str, str]) -> Manifest:
    """Two CAP rows of two patients, with changes to `first` and `second`."""
    first = ManifestRow("a", "Ann", "CAP")
    second = ManifestRow("b", "Bob", "CAP")
    return make_manifest(
        [
            replace(first, **changes.get("first", {})),  # type: ignore[arg-type]
            replace(second, **changes.get("second", {})),  # type: ignore[arg-type]
        ]
    )


SAME = [facts("x", "y"), facts("y", "x")]


def test_a_patient_on_two_sides_is_found_by_row_and_not_by_name() -> None:
    manifest = two_rows(first={"split": "training"}, second={"split": "test", "patient": "Ann"})
    (finding,) = find_patient_leaks(manifest)
    assert (finding.severity, finding.rows) == ("refuse", (2, 3))
    assert "test and training" in finding.sentence
    assert "Ann" not in finding.sentence


def test_patients_on_one_side_are_fine() -> None:
    manifest = two_rows(first={"split": "test"}, second={"split": "test", "patient": "Ann"})
    assert find_patient_leaks(manifest) == []


def test_the_same_pixels_on_two_sides_are_a_leak() -> None:
    manifest = two_rows(first={"split": "training"}, second={"split": "test"})
    (finding,) = find_pixel_leaks(manifest, SAME)
    assert (finding.kind, finding.severity, finding.rows) == ("leak", "refuse", (2, 3))
    assert "Rows 2 and 3 hold the same pixels (2 of 2 slices) on two sides" in finding.sentence


def test_a_shortened_copy_is_found_too() -> None:
    shorter = [facts("a", "b", "c", "d"), facts("c", "b")]
    (finding,) = find_pixel_leaks(two_rows(), shorter)
    assert "hold the same pixels (2 of 2 slices)" in finding.sentence


def test_the_same_pixels_under_two_patients_would_leak_when_divided() -> None:
    (finding,) = find_pixel_leaks(two_rows(), SAME)
    assert (finding.kind, finding.severity) == ("leak", "refuse")
    assert "give both the same patient" in finding.sentence


def test_the_same_pixels_under_two_patients_are_refused_on_one_side_too() -> None:
    manifest = two_rows(first={"split": "test"}, second={"split": "test"})
    (finding,) = find_pixel_leaks(manifest, SAME)
    assert (finding.kind, finding.severity, finding.rows) == ("leak", "refuse", (2, 3))
    assert "under two patients" in finding.sentence


def test_the_same_pixels_of_one_patient_only_count_twice() -> None:
    for side in ("", "test"):
        same = two_rows(first={"split": side}, second={"split": side, "patient": "Ann"})
        (finding,) = find_pixel_leaks(same, SAME)
        assert (finding.kind, finding.severity) == ("duplicate", "warning")


def test_the_same_pixels_with_two_labels_are_refused() -> None:
    (finding,) = find_pixel_leaks(two_rows(second={"label": "normal"}), SAME)
    assert (finding.kind, finding.severity) == ("label", "refuse")
    assert "labelled CAP and normal" in finding.sentence


def test_different_pixels_are_fine() -> None:
    assert find_pixel_leaks(two_rows(), [facts("a"), facts("b")]) == []


def test_unreadable_scans_are_listed_with_their_reason() -> None:
    (finding,) = _find_unreadable(two_rows(), [facts("a"), ScanFacts(error="It is broken.")])
    assert finding.sentence == "Row 3 cannot be read: It is broken."
    assert finding.rows == (3,)


def test_a_label_that_contradicts_the_path_is_said() -> None:
    manifest = two_rows(first={"scan": "Normal subjects/P001"}, second={"scan": "cap/1"})
    (finding,) = _find_label_conflicts(manifest)
    assert finding.rows == (2,)
    assert "labelled CAP, but its path says normal" in finding.sentence


def test_a_patient_with_two_labels_is_said() -> None:
    (finding,) = _find_label_conflicts(two_rows(second={"patient": "Ann", "label": "normal"}))
    assert finding.severity == "warning"
    assert "CAP and normal" in finding.sentence


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("COVID-19 subjects", "COVID-19"), ("Covid19_Cases", "COVID-19"), ("covid3", "COVID-19"),
        ("covid-19", "COVID-19"), ("Cap subjects", "CAP"), ("cap012", "CAP"),
        ("Community Acquired Pneumonia", "CAP"), ("Normal Subjects", "normal"),
        ("normal001", "normal"), ("Healthy", "normal"), ("COVID-CT-MD", None),
        ("non-covid", None), ("covid negative", None), ("P001", None), ("escape", None),
    ],
)  # fmt: skip
def test_names_of_folders_are_understood_as_a_whole(name: str, label: str | None) -> None:
    assert class_of(name) == label


def test_the_part_of_a_path_nearest_to_the_scan_counts() -> None:
    assert _class_in_path("covid/normal/scan.nii.gz") == "normal"
    assert _class_in_path("a\\Cap subjects\\x") == "CAP"
    assert _class_in_path("a/b") is None


# --- the same PatientID -----------------------------------------------------------------------


def test_the_same_patient_id_under_two_manifest_patients_is_a_leak_that_is_named(
    tmp_path: Path,
) -> None:
    for name in ("a", "b", "c"):
        patient_id = "PAT-7" if name != "c" else "PAT-8"
        write_dicom_series(make_volume(), tmp_path / name, patient_id=patient_id)
    found = [_read_facts(tmp_path / name, ReadOptions()) for name in ("a", "b", "c")]
    rows = [
        ManifestRow(name, who, "CAP") for name, who in (("a", "Ann"), ("b", "Bob"), ("c", "Cy"))
    ]
    (finding,) = _find_identity_leaks(make_manifest(rows), found)
    assert (finding.kind, finding.severity, finding.rows) == ("leak", "refuse", (2, 3))
    assert "Rows 2 and 3 have the same PatientID" in finding.sentence
    found[0].store(tmp_path / "kept", tmp_path / "a", ReadOptions())
    (kept,) = (tmp_path / "kept").rglob("*.json")
    assert "PAT-7" not in finding.sentence + kept.read_text()
    assert ScanFacts.stored(tmp_path / "kept", tmp_path / "a", ReadOptions()) == found[0]


def test_patient_id_of_one_manifest_patient_is_no_leak() -> None:
    same = [ScanFacts(identity="x"), ScanFacts(identity="x")]
    assert _find_identity_leaks(two_rows(second={"patient": "Ann"}), same) == []
    assert _find_identity_leaks(two_rows(), [ScanFacts(), ScanFacts()]) == []


def test_patient_id_that_a_de_identifier_wrote_for_everyone_is_no_leak() -> None:
    rows = [ManifestRow(name, name, "CAP") for name in "abc"]
    assert _find_identity_leaks(make_manifest(rows), [ScanFacts(identity="x")] * 3) == []

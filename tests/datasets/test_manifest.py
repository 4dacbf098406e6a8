from __future__ import annotations

from pathlib import Path

import pytest
from labelled_scans import make_manifest, make_rows

from chestct.datasets.manifest import (
    Manifest,
    ManifestError,
    ManifestRow,
    _require_files,
    describe_rows,
    patients_by_label,
    require_classes,
)


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
        require_classes(make_manifest(make_rows({"CAP": 2})))


def test_a_class_without_scans_is_refused() -> None:
    manifest = make_manifest(make_rows({"CAP": 1, "COVID-19": 1, "normal": 1}))
    chosen = manifest.choose(lambda row: row.label != "normal")
    with pytest.raises(ManifestError, match=r"No scan of the part 'training' of scans\.csv is nor"):
        require_classes(chosen, "training")


def test_rows_are_named_briefly() -> None:
    rows = make_manifest(make_rows({"CAP": 9})).rows
    assert describe_rows(rows[:1]) == "row 2"
    assert describe_rows(rows[:3]) == "rows 2, 3 and 4"
    assert describe_rows(rows) == "rows 2, 3, 4, 5, 6 and 4 more"


def test_a_patient_belongs_to_the_class_of_most_scans() -> None:
    rows = [ManifestRow(str(i), "p", label) for i, label in enumerate(("CAP", "normal", "normal"))]
    rows.append(ManifestRow("9", "q", "CAP"))
    assert patients_by_label(make_manifest(rows)) == {"CAP": ["q"], "normal": ["p"]}


def test_cases_and_patients_are_counted() -> None:
    manifest = make_manifest(make_rows({"CAP": 2, "normal": 1}, scans_per_patient=3))
    assert manifest.cases == {"CAP": 6, "normal": 3}
    assert manifest.num_patients == 3
    assert len(manifest) == 9

"""Several findings per scan: tables of them, their split, and what is refused of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled_scans import make_manifest, write_scan

from chestct.datasets.checks import check_manifest
from chestct.datasets.manifest import (
    Manifest,
    ManifestError,
    ManifestRow,
    UnknownLabelError,
    read_manifest,
    write_manifest,
)
from chestct.datasets.splits import SplitSettings, hold_out, k_fold
from chestct.datasets.spreadsheets import Columns, join_labels, read_spreadsheet
from chestct.labels import ClassLabel, LabelSet

NAMES = ("emphysema", "nodule", "effusion")


def row_of(number: int, **findings: bool | None) -> ManifestRow:
    return ManifestRow(f"s{number}", f"p{number}", "", findings=findings)


def many(num: int = 60) -> Manifest:
    """Two scans per patient; emphysema in half of the patients, effusion in one of ten."""
    rows = [
        ManifestRow(
            f"s{n}-{scan}",
            f"p{n}",
            "",
            findings={
                "emphysema": n % 2 == 0,
                "nodule": None if n % 7 == 0 else n % 3 == 0,
                "effusion": n % 10 == 1,
            },
        )
        for n in range(num)
        for scan in range(2)
    ]
    return make_manifest(rows)


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_scan(tmp_path / f"{name}.nii")
    text = "scan,patient,site,finding_emphysema,finding_nodule,ward\n"
    (tmp_path / "scans.csv").write_text(f"{text}a.nii,1,A,1.0,No,W\nb.nii,2,A,,true,W\n")
    manifest = read_manifest(tmp_path / "scans.csv")
    assert manifest.are_findings
    assert manifest.labels == ("emphysema", "nodule")
    assert [row.findings for row in manifest.rows] == [
        {"emphysema": True, "nodule": False},
        {"emphysema": None, "nodule": True},
    ]
    assert manifest.cases == {"emphysema": 1, "nodule": 1}
    assert np.array_equal(manifest.truths, [[1, 0], [np.nan, 1]], equal_nan=True)
    again = read_manifest(write_manifest(manifest, tmp_path / "again.csv"))
    assert again.rows == manifest.rows
    assert again.rows[0].others == {"ward": "W"}
    assert manifest.flow().columns == ("step", "scans", "patients", "emphysema", "nodule")


@pytest.mark.parametrize(
    ("cells", "labels", "words"),
    [
        ("maybe,no", (), "scans.csv, row 2, column 'finding_emphysema': 'maybe' is neither"),
        (",", (), "row 2: nothing is known of any finding (emphysema, nodule). Take the row out."),
        ("1,0", ("emphysema", "nodul"), "no column 'finding_nodul'. There is no finding 'nodul'."),
    ],
)
def test_what_does_not_fit_is_said_with_its_row_and_column(
    tmp_path: Path, cells: str, labels: tuple[str, ...], words: str
) -> None:
    table = tmp_path / "scans.csv"
    table.write_text(f"scan,patient,finding_emphysema,finding_nodule\na,1,{cells}\n")
    with pytest.raises(ManifestError) as error:
        read_manifest(table, labels, needs_files=False)
    assert words in str(error.value)


def test_classes_and_findings_are_not_taken_for_each_other(tmp_path: Path) -> None:
    table = tmp_path / "scans.csv"
    table.write_text("scan,patient,finding_emphysema\na,1,1\n")
    with pytest.raises(ManifestError, match="are classes, of which a scan has one"):
        read_manifest(table, ("A", "B"), needs_files=False, are_findings=False)
    table.write_text("scan,patient,label\na,1,A\n")
    with pytest.raises(ManifestError, match="are findings, of which a scan has any number"):
        read_manifest(table, ("A", "B"), needs_files=False, are_findings=True)


def test_one_finding_is_a_manifest_of_two_classes_of_the_scans_where_it_is_known() -> None:
    manifest = make_manifest(
        [row_of(1, a=True, b=None), row_of(2, a=False, b=True), row_of(3, a=None, b=False)]
    )
    view = manifest.of_finding("a")
    assert not view.are_findings
    assert view.labels == ("no a", "a")
    assert [(row.scan, row.label) for row in view.rows] == [("s1", "a"), ("s2", "no a")]


def test_folds_keep_patients_together_and_share_every_finding_out() -> None:
    dealt = k_fold(many(), SplitSettings(folds=5))
    folds_of: dict[str, set[int | None]] = {}
    for row in dealt.rows:
        folds_of.setdefault(row.patient, set()).add(row.fold)
    assert all(len(folds) == 1 for folds in folds_of.values())
    for name in NAMES:
        for is_there in (True, False):
            counts = [
                len({r.patient for r in dealt.rows if r.fold == f and r.findings[name] is is_there})
                for f in dealt.folds
            ]
            # What does not divide by five is spread; no fold lacks what the rarest have six of.
            assert max(counts) - min(counts) <= 2
            assert min(counts) >= 1


def test_a_split_is_the_same_for_any_order_of_the_rows_and_another_for_another_seed() -> None:
    manifest = many()
    settings = SplitSettings(test_share=0.2, validation_share=0.2)
    first = {row.scan: row.split for row in hold_out(manifest, settings).rows}
    turned = manifest.with_rows(reversed(manifest.rows))
    assert {row.scan: row.split for row in hold_out(turned, settings).rows} == first
    other = hold_out(manifest, SplitSettings(test_share=0.2, validation_share=0.2, seed=2))
    assert {row.scan: row.split for row in other.rows} != first
    assert sorted(first.values()).count("test") == pytest.approx(24, abs=6)


def test_a_finding_that_all_or_none_have_cannot_be_learned() -> None:
    rows = [row_of(1, a=True, b=False), row_of(2, a=False, b=False), row_of(3, a=True, b=None)]
    with pytest.raises(ManifestError, match=r"No scan of scans\.csv has 'b'"):
        make_manifest(rows).require_classes()
    refused = check_manifest(make_manifest(rows), permutations=0).refusals
    assert [each.sentence.split(".")[0] for each in refused] == ["No scan has 'b'"]


def test_a_check_counts_what_is_not_known() -> None:
    report = check_manifest(many(), permutations=0)
    notes = [each.sentence for each in report.findings if each.kind == "classes"]
    assert "Not known, of 120 scans: 18 nodule. Nothing is learned from these" in "".join(notes)


def test_a_variable_is_told_with_the_finding_that_it_tells_best() -> None:
    rows = [
        ManifestRow(
            f"s{n}",
            f"p{n}",
            "",
            "A" if n % 2 else "B",
            findings={
                "a": n % 2 == 0,
                "b": n % 3 == 0,
            },
        )
        for n in range(60)
    ]
    report = check_manifest(make_manifest(rows), permutations=19)
    site = next(each for each in report.confounders if each.variable == "site")
    assert site.auc == pytest.approx(1.0)
    assert site.note == "of 'a'"


FINDINGS = LabelSet((ClassLabel("emphysema"), ClassLabel("nodule", values=("Lung nodule",))), True)


def joined(tmp_path: Path, text: str, **options: bool) -> Manifest:
    for name in ("v1", "v2"):
        if not (tmp_path / "scans" / f"{name}.nii.gz").exists():
            write_scan(tmp_path / "scans" / f"{name}.nii.gz")
    (tmp_path / "table.csv").write_text(text)
    table = read_spreadsheet(tmp_path / "table.csv")
    columns = Columns(scan="VolumeName")
    return join_labels(tmp_path / "scans", table, columns, FINDINGS, takes_matched_only=True)[0]


def test_a_table_of_zeros_and_ones_becomes_a_manifest(tmp_path: Path) -> None:
    text = "VolumeName,Patient,Emphysema,lung nodule,Age\nv1.nii.gz,1,1,0,60\nv2.nii.gz,2,,1,70\n"
    manifest = joined(tmp_path, text)
    assert [row.findings for row in manifest.rows] == [
        {"emphysema": True, "nodule": False},
        {"emphysema": None, "nodule": True},
    ]
    assert [(row.patient, row.age) for row in manifest.rows] == [("1", 60), ("2", 70)]


def test_a_row_that_says_nothing_counts_as_one_without_a_label(tmp_path: Path) -> None:
    text = "VolumeName,Emphysema,nodule\nv1.nii.gz,1,0\nv2.nii.gz,,\n"
    assert len(joined(tmp_path, text)) == 1


def test_an_unknown_finding_is_named_before_a_scan_is_read(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as error:
        joined(tmp_path, "VolumeName,Emphysma,nodule\nv1.nii.gz,1,0\n")
    assert "table.csv has no column for the finding 'emphysema'" in str(error.value)
    assert "Did you mean 'Emphysma'?" in str(error.value)
    with pytest.raises(ManifestError, match="row 2, column 'Emphysema': '2' is neither"):
        joined(tmp_path, "VolumeName,Emphysema,nodule\nv1.nii.gz,2,0\n")


def test_equal_scans_with_contradicting_findings_are_refused(tmp_path: Path) -> None:
    from chestct.datasets.scans import gather_facts

    for name in ("a", "b"):
        write_scan(tmp_path / f"{name}.nii")
    rows = [
        ManifestRow("a.nii", "1", "", findings={"x": True, "y": None}),
        ManifestRow("b.nii", "1", "", findings={"x": False, "y": True}),
    ]
    manifest = Manifest(tuple(rows), folder=tmp_path, name="scans.csv")
    report = check_manifest(manifest, gather_facts(manifest, processes=1), permutations=0)
    said = [each.sentence for each in report.refusals if each.kind == "label"]
    assert "one of them has 'x' while the other has not" in said[0]


def test_a_finding_cannot_be_negative_and_unknown_labels_stay_errors() -> None:
    with pytest.raises(ValueError, match="'clear' is a finding and cannot be negative"):
        LabelSet((ClassLabel("clear", negative=True), ClassLabel("x")), are_findings=True)
    with pytest.raises(ValueError, match="no finding can be called 'a; b'"):
        LabelSet.of_names(("a; b", "c"), are_findings=True)
    with pytest.raises(UnknownLabelError):
        make_manifest([row_of(1, a=True), row_of(2, b=True)])

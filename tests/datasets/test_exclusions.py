"""Excluded scans stay in the file, are counted, and are used for nothing."""

from __future__ import annotations

import csv
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
    read_manifest,
    write_manifest,
)
from chestct.datasets.sharing import exclude, flow_csv, flow_markdown, flow_of
from chestct.datasets.splits import SPLITTERS, SplitSettings

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
    divided = SPLITTERS["hold_out"](make_manifest(rows), SplitSettings(test_share=0.4))
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
    steps = flow_of(read_manifest(table(tmp_path), needs_files=False))
    assert [(step.step, step.num_scans, step.num_patients) for step in steps] == [
        ("listed", 5, 5),
        ("excluded: image quality", 2, 2),
        ("excluded: too little radiation", 1, 1),
        ("used", 2, 2),
    ]
    assert steps[0].cases == {"COVID-19": 2, "normal": 2, "": 1}
    lines = list(csv.DictReader(flow_csv(steps).splitlines()))
    assert lines[1] == {
        "step": "excluded: image quality", "scans": "2", "patients": "2", "COVID-19": "0",
        "normal": "1", "no label": "1",
    }  # fmt: skip
    assert "| used | 2 | 2 | 1 | 1 | 0 |" in flow_markdown(steps)


def test_scans_are_excluded_by_their_path() -> None:
    manifest = make_manifest(make_rows({"COVID-19": 2, "normal": 2}))
    scan = manifest.rows[1].scan
    left = exclude(manifest, {scan: " other lesions "})
    assert len(left) == 3
    assert [(row.scan, row.excluded) for row in left.excluded] == [(scan, "other lesions")]
    assert len(manifest) == 4


@pytest.mark.parametrize(
    ("reasons", "message"),
    [({"nowhere": "x", "else": "y"}, "2 such scans"), ({"COVID-19-000-0": " "}, "has no reason")],
)
def test_unknown_scans_and_empty_reasons_are_refused(reasons: dict[str, str], message: str) -> None:
    manifest = make_manifest(make_rows({"COVID-19": 2, "normal": 2}))
    with pytest.raises(ManifestError, match=message):
        exclude(manifest, reasons)


@pytest.mark.parametrize("ending", ["csv", "md"])
def test_the_command_shows_and_writes_the_flow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    out = tmp_path / f"flow.{ending}"
    assert main(["dataset", "flow", str(table(tmp_path)), "--out", str(out)]) == 0
    assert "| excluded: image quality | 2 |" in capsys.readouterr().out
    assert "too little radiation" in out.read_text()


def test_the_command_refuses_another_kind_of_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset", "flow", str(table(tmp_path)), "--out", str(tmp_path / "flow.txt")]
    assert main(words) == 2
    assert "neither .csv nor .md" in capsys.readouterr().err
    assert main(words[:3]) == 0

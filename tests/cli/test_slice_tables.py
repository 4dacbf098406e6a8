"""`chestct slices list` and `extract`: tables of slices, without any network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn_slices import draw_folder
from labelled_scans import write_scan

from chestct.cli import main
from chestct.datasets.manifest import read_manifest


def test_a_folder_becomes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = draw_folder(tmp_path / "drawn", patients=2, slices=1)
    table = tmp_path / "slices.csv"
    assert main(["slices", "list", str(folder), "--out", str(table)]) == 0
    assert "4 slices of 4 patients (2 COVID-19, 2 normal)" in capsys.readouterr().out
    assert len(read_manifest(table)) == 4


def test_lists_become_a_table_and_missing_pictures_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draw_folder(tmp_path / "drawn", patients=1, slices=2)
    listed = tmp_path / "test.txt"
    listed.write_text("00/0.png\n00/1.png\n")
    table = tmp_path / "slices.csv"
    command = ["slices", "list", str(folder), "--out", str(table)]
    command += ["--list", f"test:COVID-19={listed}"]
    images = ["--images", str(folder / "COVID-19")]
    assert main([*command, *images]) == 0
    assert {row.split for row in read_manifest(table).rows} == {"test"}
    assert main(command) == 2
    assert "names 2 of 2 pictures" in capsys.readouterr().err


def test_slices_of_scans_are_taken_out_with_the_data_sets_own_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scan(tmp_path / "P001.nii.gz")
    write_scan(tmp_path / "normal001.nii.gz", seed=1)
    scans = tmp_path / "scans.csv"
    scans.write_text(
        "scan,patient,label\nP001.nii.gz,P001,COVID-19\nnormal001.nii.gz,normal001,normal\n"
    )
    labels = np.zeros((1, 30))
    labels[0, [3, 4]] = 1
    np.save(tmp_path / "Slice-level-labels.npy", labels)
    (tmp_path / "Index.csv").write_text("Label Index,Folder/ID\n0,P001\n")
    out = tmp_path / "pictures"
    command = ["slices", "extract", str(scans), "--out", str(out), "--every", "1"]
    given = ["--labels", str(tmp_path / "Slice-level-labels.npy")]
    index = ["--index", str(tmp_path / "Index.csv")]
    assert main([*command, *given]) == 2
    assert "belong together" in capsys.readouterr().err
    assert main([*command, *given, *index]) == 0
    found = read_manifest(out / "slices.csv")
    assert found.cases == {"COVID-19": 2, "normal": 24}
    assert found.rows[0].scan == "scan-0002/slice-0003.png"
    assert main([*command, *given, *index]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("beside", ["whole", "=a.csv", "whole="])
def test_predictions_without_a_name_are_refused(
    beside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["slices", "evaluate", str(tmp_path), str(tmp_path / "t.csv"), "--out", "x"]
    assert main([*command, "--beside", beside]) == 2
    assert "NAME=predictions.csv" in capsys.readouterr().err

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chestct.datasets.manifest import ManifestError
from chestct.datasets.slice_extract import (
    _cut_to_scan,
    _find_labels,
    read_slice_labels,
)

HEADER = "Label Index,Diagnosis,Folder/ID,Relative Path\n"


def write(folder: Path, values: np.ndarray, lines: str) -> tuple[Path, Path]:
    np.save(folder / "Slice-level-labels.npy", values)
    (folder / "Index.csv").write_text(HEADER + lines)
    return folder / "Slice-level-labels.npy", folder / "Index.csv"


def test_numbers_of_the_index_are_rows_of_the_array(tmp_path: Path) -> None:
    values = np.zeros((3, 6))
    values[0, 2] = values[2, 4] = 1
    files = write(tmp_path, values, "2,CAP,cap001,x\n0,COVID-19,P001,x\n")
    found = read_slice_labels(*files)
    assert np.flatnonzero(found["P001"]).tolist() == [2]
    assert np.flatnonzero(found["cap001"]).tolist() == [4]


def test_a_number_that_was_skipped_moves_the_rows_after_it(tmp_path: Path) -> None:
    """The published index leaves a number out and the array has no row for it."""
    values = np.eye(3, 5)
    files = write(tmp_path, values, "0,c,P001,x\n2,c,P002,x\n3,c,P003,x\n")
    found = read_slice_labels(*files)
    assert [np.flatnonzero(found[f"P00{n}"]).tolist() for n in (1, 2, 3)] == [[0], [1], [2]]


def test_labels_are_found_by_any_of_a_scans_names() -> None:
    marks = np.array([True])
    assert _find_labels({"P001": marks}, "another", "p001") is marks
    assert _find_labels({"P001": marks}, "P002") is None


def test_labels_are_cut_to_the_scan_and_must_not_reach_beyond_it() -> None:
    marks = np.array([False, True, False, False])
    assert _cut_to_scan(marks, 3, "P001").tolist() == [False, True, False]
    with pytest.raises(ManifestError, match=r"P001 has 1 slices.*up to slice 2"):
        _cut_to_scan(marks, 1, "P001")
    with pytest.raises(ManifestError, match=r"P001 has 5 slices; its labels are for 4"):
        _cut_to_scan(marks, 5, "P001")


@pytest.mark.parametrize(
    ("values", "lines", "said"),
    [
        (np.zeros((2, 4)), "0,c,P001,x\n7,c,P002,x\n8,c,P003,x\n", "lists 3 patients"),
        (np.full((2, 4), 3), "0,c,P001,x\n", "other values than 0 and 1"),
        (np.zeros(4), "0,c,P001,x\n", "no table of numbers"),
        (np.zeros((2, 4)), "0,c,P001,x\n0,c,P002,x\n", "a patient or a number twice"),
        (np.zeros((2, 4)), "zero,c,P001,x\n", "no whole number"),
        (np.zeros((2, 4)), "", "lists no patients"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    values: np.ndarray, lines: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=said):
        read_slice_labels(*write(tmp_path, values, lines))


def test_a_file_that_would_run_code_is_refused_unread(tmp_path: Path) -> None:
    labels, index = write(tmp_path, np.zeros((1, 2)), "0,c,P001,x\n")
    np.save(labels, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ManifestError, match="cannot be read"):
        read_slice_labels(labels, index)


def test_an_index_without_its_columns_is_refused_with_their_names(tmp_path: Path) -> None:
    labels, index = write(tmp_path, np.zeros((1, 2)), "")
    index.write_text("name,label\nP001,0\n")
    with pytest.raises(ManifestError, match="label index"):
        read_slice_labels(labels, index)

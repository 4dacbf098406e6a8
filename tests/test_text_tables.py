from __future__ import annotations

import csv
import io

import pytest

from chestct.text_tables import as_csv, from_cell

RUN = ("=1+1", "+A1", "-cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-x", "-p07")
KEPT = ("p07", "", "-0.25", "+1e-05", "-inf", "nan", "'quoted'", "a=b", "2024-01-01")


@pytest.mark.parametrize("cell", RUN)
def test_a_cell_that_a_spreadsheet_would_run_is_escaped_and_comes_back(cell: str) -> None:
    (_, (written,)) = csv.reader(io.StringIO(as_csv(["x"], [[cell]]), newline=""))
    assert written == f"'{cell}"
    assert from_cell(written) == cell


@pytest.mark.parametrize("cell", KEPT)
def test_numbers_and_other_texts_stay_as_they_are(cell: str) -> None:
    (_, row) = csv.reader(io.StringIO(as_csv(["x", "y"], [[cell, "z"]]), newline=""))
    assert row == [cell, "z"]
    assert from_cell(cell) == cell


def test_headings_are_escaped_too_and_none_is_an_empty_cell() -> None:
    assert as_csv(["=x"], [[None], [0.5]]) == '\'=x\n""\n0.5\n'

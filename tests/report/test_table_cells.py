from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from chestct.datasets.manifest import ManifestError, read_manifest
from chestct.datasets.public import read_table
from chestct.evaluation.predictions import PredictionsError, read_predictions
from chestct.report import as_csv, from_cell, read_plain_text

RUN = (
    *("=1+1", "+A1", "-cmd|' /C calc'!A0", "@SUM(A1)", "-p07"),
    *("\t=1", "\r=1", "\n=1", "\tp07", "\rp07", "\np07", "\n\n@x", " =1", "\u00a0=1"),
    *("＝1+1", "＋A1", "－1+1", "＠SUM(A1)", "\u3000＝1"),
    *(",=1", ";=1+1", "|+A1", '"=1', '"",＝1', "; -x", "'=1", "''-x", "'\np07", "';@x"),
)
KEPT = (
    *("p07", "", "-0.25", "+1e-05", "-inf", "nan", "'quoted'", '"quoted"', "a=b", "2024-01-01"),
    *(";p07", "p07\n=1", " p07", "a＝b"),
)


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


def test_a_nul_in_a_text_is_found_wherever_tables_are_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("scan,patient\np0\x001,1\n")
    with pytest.raises(UnicodeDecodeError, match="a NUL at character"):
        read_plain_text(path)
    with pytest.raises(ManifestError, match="is not text in UTF-8"):
        read_manifest(path)
    with pytest.raises(PredictionsError, match="NUL"):
        read_predictions(path)
    assert read_table(path) == []

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from analyses import make_analysis, make_unsuitable

from chestct.writers.index_page import IndexEntry, write_index


def test_the_index_links_every_report_and_says_what_was_simulated(tmp_path: Path) -> None:
    found = make_analysis().result
    missed = replace(found, scan="p08", decision="normal")
    entries = [
        IndexEntry(found, "COVID-19", "results/p07"),
        IndexEntry(missed, "CAP", "results/p08"),
        IndexEntry(make_unsuitable().result, "normal", "results/p09"),
    ]
    page = write_index(entries, tmp_path).read_text(encoding="utf-8")
    for folder in ("results/p07", "results/p08", "results/p09"):
        assert f'href="{folder}/report.html"' in page
        assert f'src="{folder}/preview.png"' in page
    assert page.count("(differs)") == 2
    assert found.notice in page
    assert found.provenance.trained_on in page


def test_an_index_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        write_index([], tmp_path)

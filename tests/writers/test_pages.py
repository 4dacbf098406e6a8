from __future__ import annotations

import base64
import csv
import io
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from analyses import SALIENT, SHAPE, make_analysis, make_unsuitable
from page_reader import PageReader, read_page
from PIL import Image

from chestct.pictures import Scene
from chestct.writers.pages import (
    IndexHead,
    IndexRow,
    _area_curve,
    _render_report,
    answers_csv,
    write_html,
    write_index,
)

NUM_ROWS = 6_000


@pytest.fixture(scope="module")
def page() -> PageReader:
    return read_page(_render_report(make_analysis()))


def test_the_page_says_what_was_found_and_how_sure(page: PageReader) -> None:
    for words in ("COVID-19 pneumonia", "90.0 %", "7.0 %", "3.0 %", "1.25", "11–30", "of 40"):
        assert words in page.text


def test_the_page_carries_warnings_facts_provenance_and_notice(page: PageReader) -> None:
    result = make_analysis().result
    for words in (
        result.warnings[0],
        result.notice,
        result.provenance.pixel_sha256,
        result.provenance.trained_on,
        "torch float32",
        "Kernel",
        "1.25 s",
    ):
        assert words in page.text


def test_the_page_loads_nothing(page: PageReader) -> None:
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "object", "form"} & set(tags)
    for _, attributes in page.tags:
        assert "href" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:image/jpeg;base64,") or (
            "src" not in attributes
        )
        assert not any(name.startswith("on") for name in attributes)
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_every_picture_has_a_text_and_its_true_size(page: PageReader) -> None:
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 10
    for attributes in pictures:
        assert attributes["alt"]
        jpeg = base64.b64decode((attributes["src"] or "").split(",")[1])
        width, height = Image.open(io.BytesIO(jpeg)).size
        assert (attributes["width"], attributes["height"]) == (str(width), str(height))
    assert any(tag == "svg" and attributes["aria-label"] for tag, attributes in page.tags)


def test_the_bars_are_as_long_as_the_probabilities(page: PageReader) -> None:
    styles = [attributes.get("style") or "" for _, attributes in page.tags]
    widths = [style.split(":")[1] for style in styles if style.startswith("width:")]
    assert widths == ["7.00%", "90.00%", "3.00%"]


def test_uncalibrated_probabilities_are_called_so(page: PageReader) -> None:
    assert "Not calibrated" in page.text
    assert "none fitted" in page.text


def test_calibrated_probabilities_say_with_which_temperature() -> None:
    analysis = make_analysis()
    provenance = replace(analysis.result.provenance, temperature=1.53)
    calibrated = replace(analysis, result=replace(analysis.result, provenance=provenance))
    text = read_page(_render_report(calibrated)).text
    assert "Calibrated with a temperature of 1.53" in text
    assert "Not calibrated" not in text


def test_the_page_says_what_the_network_was_given(page: PageReader) -> None:
    for words in ("20 × 30 × 40", "4 × 6 × 6", "5–36 of 40", "wholly inside the scan"):
        assert words in page.text


def test_lungs_that_leave_the_scan_are_told_with_the_end() -> None:
    analysis = make_analysis()
    area = analysis.prepared.lung_area.copy()
    area[0] = 0.1
    cut_off = replace(analysis, prepared=replace(analysis.prepared, lung_area=area))
    assert "reach the end of the scan towards the feet" in _render_report(cut_off)


def test_words_from_a_file_cannot_become_markup() -> None:
    analysis = make_analysis()
    hostile = "<script>alert(1)</script>"
    result = replace(analysis.result, scan=hostile, warnings=(hostile,))
    page = _render_report(replace(analysis, result=result))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_an_unsuitable_scan_says_why_and_shows_no_probability() -> None:
    page = read_page(_render_report(make_unsuitable()))
    assert "Not classified" in page.text
    assert "No lungs were found." in page.text
    assert not any(attributes.get("class") == "bars" for _, attributes in page.tags)
    assert "calibrated" not in page.text
    assert "no lungs found" in page.text
    assert "no lungs found" in next(a for t, a in page.tags if t == "img")["alt"]


def test_the_page_is_light_enough_to_send(tmp_path: Path) -> None:
    path = write_html(make_analysis(), tmp_path)
    assert path.name == "report.html"
    assert path.stat().st_size < 2_000_000


def test_the_page_is_the_same_every_time() -> None:
    assert _render_report(make_analysis()) == _render_report(make_analysis())


def test_the_curve_lies_at_the_height_of_the_pictures() -> None:
    analysis = make_analysis()
    curve = _area_curve(analysis.prepared.lung_area, SALIENT, Scene.of_scan(analysis))
    first, last = SALIENT
    assert curve["top"] == pytest.approx((SHAPE[0] - 1 - last) / SHAPE[0] * 100)
    assert curve["bottom"] == pytest.approx((SHAPE[0] - first) / SHAPE[0] * 100)
    points = np.array(re.findall(r"L([\d.]+) ([\d.]+)", curve["path"]), dtype=float)[:-1]
    rows = (SHAPE[0] - 0.5 - np.arange(SHAPE[0])) / SHAPE[0] * 100
    np.testing.assert_allclose(points[:, 1], rows, atol=0.006)
    area = analysis.prepared.lung_area
    np.testing.assert_allclose(points[:, 0] / points[:, 0].max(), area / area.max(), atol=2e-4)
    assert points[:, 0].max() <= 100


def test_the_curve_of_a_scan_without_lungs_is_flat() -> None:
    analysis = make_unsuitable()
    whole = (0, SHAPE[0] - 1)
    curve = _area_curve(analysis.prepared.lung_area, whole, Scene.of_scan(analysis))
    assert set(re.findall(r"L([\d.]+) ", curve["path"])) == {"0.00", "0"}


def test_the_index_links_every_report_and_says_what_was_simulated(tmp_path: Path) -> None:
    found = make_analysis().result
    missed = replace(found, scan="p08", decision="normal")
    rows = [
        IndexRow.of(found, "results/p07", "COVID-19"),
        IndexRow.of(missed, "results/p08", "CAP"),
        IndexRow.of(make_unsuitable().result, "results/p09", "normal"),
    ]
    head = IndexHead(3, found.notice, found.provenance.trained_on, True, "simulated patients")
    folders = ("results/p07", "results/p08", "results/p09")
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        for name in ("report.html", "preview.png"):
            (tmp_path / folder / name).touch()
    page = write_index(rows, head, tmp_path).read_text(encoding="utf-8")
    assert "Simulated patients, classified" in page
    for folder in folders:
        assert f'href="{folder}/report.html"' in page
        assert f'src="{folder}/preview.png"' in page
    assert page.count("(differs)") == 2
    assert found.notice in page
    assert found.provenance.trained_on in page


def test_an_index_of_patients_scans_says_nothing_of_simulation_and_links_what_is_there(
    tmp_path: Path,
) -> None:
    found = make_analysis().result
    (tmp_path / "p07").mkdir()
    (tmp_path / "p07" / "preview.png").touch()
    head = IndexHead(1, found.notice, found.provenance.trained_on)
    page = write_index([IndexRow.of(found, "p07")], head, tmp_path).read_text(encoding="utf-8")
    assert 'href="p07/preview.png"' in page
    assert "report.html" not in page
    assert "imulated" not in page.replace(found.provenance.trained_on, "")
    assert "(differs)" not in page
    assert "; uncertain" not in page
    doubted = replace(found, is_uncertain=True)
    page = write_index([IndexRow.of(doubted, "p07")], head, tmp_path).read_text(encoding="utf-8")
    assert "; uncertain</dd>" in page


def test_an_index_of_very_many_scans_is_written_row_by_row(tmp_path: Path) -> None:
    seen = 0

    def rows() -> Iterator[IndexRow]:
        nonlocal seen
        for number in range(NUM_ROWS):
            seen = number
            yield IndexRow(f"scan {number}", "Normal", "90 %")

    tracemalloc.start()
    page = write_index(rows(), IndexHead(NUM_ROWS, "Not for use", "nothing"), tmp_path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == NUM_ROWS - 1
    assert page.read_text(encoding="utf-8").count("Normal, 90 %") == NUM_ROWS
    assert peak_bytes < page.stat().st_size / 2


def test_the_table_of_answers_names_every_scan_also_those_without_an_answer() -> None:
    found = make_analysis().result
    paths = {"p07": "scans/p07", "p08": "scans/p08", "p09": "scans/p09"}
    unsuitable = replace(make_unsuitable().result, scan="p09")
    text = answers_csv([found, unsuitable], paths, {"p08": "p08 is no scan."})
    rows = list(csv.DictReader(text.splitlines()))
    assert [(row["scan"], row["decision"]) for row in rows] == [
        ("p07", "COVID-19"),
        ("p08", ""),
        ("p09", "unsuitable"),
    ]
    assert rows[0]["probability_COVID-19"] == "0.900000"
    assert rows[1]["no_answer_because"] == "p08 is no scan."
    assert rows[2]["no_answer_because"] == "No lungs were found."
    assert rows[2]["probability_normal"] == ""
    assert [row["path"] for row in rows] == [*paths.values()]

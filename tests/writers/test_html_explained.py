"""The report of a scan whose answer is explained."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from analyses import SALIENT, SHAPE, make_analysis, make_result
from explained import HOT_SLICE, make_explained, make_explanation
from page_reader import PageReader, read_page
from PIL import Image

from chestct.analysis import ScanAnalysis
from chestct.explain.explanation import HeatMap
from chestct.pictures import instance_numbers
from chestct.writers.pages import _render_report, _share_table, write_html


@pytest.fixture(scope="module")
def page() -> PageReader:
    return read_page(_render_report(make_explained()))


def pictures(page: PageReader) -> list[dict[str, str | None]]:
    return [attributes for tag, attributes in page.tags if tag == "img"]


def decoded(attributes: dict[str, str | None]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode((attributes["src"] or "").split(",")[1])))


def test_the_page_says_how_the_map_was_made_and_for_which_class(page: PageReader) -> None:
    assert "Heat-map for “COVID-19 pneumonia”, by Grad-CAM at stages.3." in page.text
    assert "1 stands for 0.25" in page.text


def test_the_page_says_what_the_map_means_and_what_it_does_not(page: PageReader) -> None:
    for words in (
        "raised the network’s score for “COVID-19 pneumonia”",
        "of all heat lies outside the lungs",
        "It is no outline of disease.",
        "closer than about 32 mm",
        "learned from simulated disease",
        "Hatched parts were not given to the network",
    ):
        assert words in page.text
    assert "most probable class" not in page.text


def test_every_picture_has_a_see_through_map_of_its_size_and_words_for_it(
    page: PageReader,
) -> None:
    shown = pictures(page)
    layers = [attributes for attributes in shown if attributes.get("class") == "heat"]
    assert len(layers) == 3 + 8
    # The large picture stands there a second time, with nothing over it.
    assert len(shown) == 2 * len(layers) + 1
    (alone,) = [i for i, one in enumerate(shown) if i == 2]
    assert decoded(shown[alone]).size == decoded(shown[0]).size
    covered = [one for i, one in enumerate(shown) if i != alone]
    for below, layer in zip(covered[::2], covered[1::2], strict=True):
        assert below["alt"]
        assert (layer["alt"] or "").startswith("Heat-map over it:")
        assert decoded(below).size == decoded(layer).size
        assert decoded(layer).format == "PNG"
        assert np.asarray(decoded(layer).convert("RGBA"))[:, :, 3].max() < 256
    assert any("what was not analysed is hatched" in (each["alt"] or "") for each in shown)


def test_the_hottest_slice_is_shown_large_and_has_the_most_opaque_map(page: PageReader) -> None:
    axial, layer = pictures(page)[:2]
    assert f"Axial slice {HOT_SLICE + 1} of {SHAPE[0]}" in (axial["alt"] or "")
    opacity = np.asarray(decoded(layer).convert("RGBA"))[:, :, 3].astype(int)
    # The hot spot lies in the patient's left lung, which is on the right of the picture.
    middle = opacity.shape[1] // 2
    assert opacity[:, middle:].sum() > 10 * opacity[:, :middle].sum()


def test_the_strip_holds_the_peak_and_numbers_its_slices(page: PageReader) -> None:
    words = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert f"Slice {HOT_SLICE + 1}, z = −212.0 mm, evidence " in words
    assert ", peak 1" in words


def test_the_table_gives_the_shares_of_sides_and_thirds(page: PageReader) -> None:
    shares = make_explanation().summary.shares
    assert f"{shares['left lung'] * 100:.1f} %" in page.text
    for words in ("62.0 %", "< 0.1 %", "31.0 %", "Upper third", "Whole lung"):
        assert words in page.text
    assert any(attributes.get("aria-label") == "unknown" for _, attributes in page.tags)


def test_the_table_puts_every_region_in_its_place() -> None:
    rows = ("upper third", "middle third", "lower third", "lung")
    names = [f"{side}{row}" for row in rows for side in ("right ", "left ", "")]
    names[-1] = "lungs"
    shares = {name: number / 100 for number, name in enumerate(names)}
    table = _share_table(shares)
    assert [heading for heading, _ in table] == [
        "Upper third",
        "Middle third",
        "Lower third",
        "Whole lung",
    ]
    numbers = [cells for _, cells in table]
    assert numbers == (np.arange(12.0) / 100).reshape(4, 3).tolist()


def test_the_highlighted_share_stands_among_the_figures(page: PageReader) -> None:
    share = make_explanation().summary.shares["lungs"]
    assert f"{share * 100:.1f} % of the lungs" in " ".join(page.text.split())


def test_slices_that_were_not_analysed_are_not_drawn_as_zero(page: PageReader) -> None:
    paths = [attributes["d"] or "" for tag, attributes in page.tags if tag == "path"]
    evidence = next(path for path in paths if not path.startswith("M0 100"))
    first, last = SALIENT
    assert evidence.count("M") == 1
    assert evidence.count("L") == last - first
    hatched = [a for _, a in page.tags if a.get("class") == "unknown"]
    assert len(hatched) == 2


def test_the_map_can_be_hidden_without_a_script(page: PageReader) -> None:
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags
    assert tags.count("input") == 1
    assert any(tag == "label" and a["for"] == "show-heat" for tag, a in page.tags)


def test_an_empty_map_is_called_empty() -> None:
    page = read_page(_render_report(make_explained(strength=0.0)))
    assert "No voxel spoke for “COVID-19 pneumonia”: the map is empty." in page.text
    assert "peak" not in page.text
    assert all(
        attributes["alt"] == "Heat-map over it: empty."
        for attributes in pictures(page)
        if attributes.get("class") == "heat"
    )


def test_a_map_of_another_class_and_of_a_normal_scan_is_told_so() -> None:
    text = read_page(_render_report(make_explained(label="normal"))).text
    assert "It was asked for “No pneumonia”, which is not the most probable class." in text
    assert "green lung is not diseased lung" in text
    for words in ("Lung inside the white line", "The white line", "Highlighted", "59 ml"):
        assert words not in text


def test_the_three_planes_go_through_the_hottest_place_and_say_where_they_lie(
    page: PageReader,
) -> None:
    x, y, z = make_explanation().summary.hottest_mm or (0.0, 0.0, 0.0)
    text = page.text.replace("−", "-")
    assert f"Axial, slice {HOT_SLICE + 1}, z = {z:.1f} mm" in text
    assert f"Coronal, y = {y:.1f} mm" in text
    assert f"Sagittal, x = {x:.1f} mm" in text
    assert "The same without heat-map" in text


def test_the_instance_number_stands_beside_the_slice_from_the_feet() -> None:
    analysis = make_explained()
    numbers = tuple(str(100 + index) for index in range(SHAPE[0]))
    source = replace(analysis.volume.source, instance_numbers=numbers)
    told = replace(analysis, volume=replace(analysis.volume, source=source))
    text = read_page(_render_report(told)).text
    assert f"slice {HOT_SLICE + 1}, z = −212.0 mm, InstanceNumber {100 + HOT_SLICE}" in text
    grid = analysis.volume.grid.moved((39.0, 0.0, 0.0), (-1.0, 1.0, 1.0), SHAPE)
    assert instance_numbers(replace(told.volume, grid=grid)) == numbers[::-1]


@pytest.mark.parametrize("method", ["strongest_channel", "attention"])
def test_a_map_that_is_the_same_for_every_class_claims_none(method: str) -> None:
    explained = make_explanation(label="CAP")
    changed = replace(explained.explanation, method=method)
    analysis = replace(make_analysis(), explanation=replace(explained, explanation=changed))
    text = read_page(_render_report(analysis)).text
    assert ", whatever the class. 1 is the hottest" in text
    assert "It does not say which class it speaks for." in text
    assert "raised the network’s score" not in text
    assert "Heat-map for" not in text


def test_training_is_called_simulated_only_where_the_card_says_so() -> None:
    analysis = make_explained()
    provenance = replace(make_result().provenance, trained_on="4000 scans of 3 hospitals")
    trained = replace(analysis, result=replace(analysis.result, provenance=provenance))
    assert "simulated disease" not in _render_report(trained)


def test_a_hostile_layer_name_cannot_become_markup() -> None:
    explained = make_explanation()
    hostile = replace(explained.explanation, layer="<script>", method="<b>")
    analysis = replace(make_analysis(), explanation=replace(explained, explanation=hostile))
    page = _render_report(analysis)
    assert "<script" not in page
    assert "&lt;b&gt; at &lt;script&gt;" in page


def test_the_page_is_light_and_the_same_every_time(tmp_path: Path) -> None:
    analysis = make_explained()
    path = write_html(analysis, tmp_path)
    assert path.stat().st_size < 3_000_000
    assert path.read_text(encoding="utf-8") == _render_report(analysis)


def test_a_scan_stored_from_the_head_gives_the_same_pictures() -> None:
    stored = make_explained()
    explained = stored.explanation
    assert explained is not None
    summary = replace(
        explained.summary,
        by_slice=explained.summary.by_slice[::-1].copy(),
        peaks=tuple(replace(p, index=SHAPE[0] - 1 - p.index) for p in explained.summary.peaks),
    )
    turned = _turned(stored, replace(explained, summary=summary))
    assert read_page(_render_report(turned)).text == read_page(_render_report(stored)).text


def _turned(analysis: ScanAnalysis, explained: object) -> ScanAnalysis:
    """The same patient with slices stored from the head to the feet."""
    grid = analysis.volume.grid.moved((SHAPE[0] - 1.0, 0.0, 0.0), (-1.0, 1.0, 1.0), SHAPE)
    lungs, heat = analysis.prepared.scan_lungs, analysis.explanation.heat
    prepared = replace(
        analysis.prepared, scan_grid=grid, scan_lungs=lungs.with_voxels(lungs.voxels[::-1], grid)
    )
    return replace(
        analysis,
        volume=analysis.volume.with_voxels(analysis.volume.voxels[::-1], grid),
        prepared=prepared,
        explanation=replace(explained, heat=HeatMap.of(grid, heat.voxels[::-1])),
    )


def test_a_slice_about_which_nothing_is_known_says_so() -> None:
    analysis = make_explained()
    explained = make_explanation()
    unknown = replace(explained.summary, by_slice=np.full(SHAPE[0], np.nan), peaks=())
    page = _render_report(replace(analysis, explanation=replace(explained, summary=unknown)))
    assert page.count(", not analysed or no lung</figcaption>") == 8

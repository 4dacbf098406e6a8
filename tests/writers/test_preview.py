from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from analyses import SHAPE, make_analysis, make_unsuitable
from explained import make_explained
from PIL import Image, ImageDraw, ImageFont

from chestct.pictures import LUNG_COLOR, Scene
from chestct.writers.preview import _Words, _write_input_preview, _write_words, write_preview


def test_the_preview_shows_outlined_slices_and_words(tmp_path: Path) -> None:
    path = write_preview(make_analysis(), tmp_path)
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert path.name == "preview.png"
    assert picture.shape[1] > picture.shape[0] > 300
    is_outline = np.abs(picture - LUNG_COLOR).max(axis=2) < 30
    assert is_outline.any()
    # The title is in the band above the tiles, the notice in the one below.
    assert picture[:90].max() > 200
    assert picture[-60:].max() > 120


def test_the_answer_is_part_of_the_picture(tmp_path: Path) -> None:
    classified = np.asarray(Image.open(write_preview(make_analysis(), tmp_path / "a")))
    unsuitable = np.asarray(Image.open(write_preview(make_unsuitable(), tmp_path / "b")))
    assert (classified[:90, :600] != unsuitable[:90, :600]).any()


def test_the_picture_of_a_refused_scan_does_not_say_that_it_was_analysed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []

    def draw(scene: Scene, words: _Words, shown: object) -> np.ndarray:
        said.append(words)
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr("chestct.writers.preview._draw_montage", draw)
    write_preview(make_unsuitable(), tmp_path)
    write_preview(make_analysis(), tmp_path)
    assert said[0].remark.startswith("Slices 11 to 30 of 40 prepared. ")
    assert "analysed" not in "".join((said[0].title, said[0].remark, said[0].heat))
    assert said[1].remark.startswith("Slices 11 to 30 of 40 analysed. ")


def test_a_network_input_has_a_preview_too(tmp_path: Path) -> None:
    path = _write_input_preview(make_analysis().prepared, "p07", tmp_path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000


def test_an_explained_scan_is_shown_under_its_heat(tmp_path: Path) -> None:
    explained = np.asarray(Image.open(write_preview(make_explained(), tmp_path / "a"))).astype(int)
    plain = np.asarray(Image.open(write_preview(make_analysis(), tmp_path / "b"))).astype(int)
    assert explained.shape == plain.shape

    def warm(picture: np.ndarray) -> int:
        return int((picture[95:-70, :, 0] - picture[95:-70, :, 2] > 40).sum())

    # Without a map only the two orange lines of each coronal and sagittal slice are warm.
    assert warm(explained) > 2 * warm(plain) + 1000


def test_the_legend_stands_beside_the_scan_name(tmp_path: Path) -> None:
    picture = np.asarray(Image.open(write_preview(make_explained(), tmp_path))).astype(int)
    head = picture[:90, picture.shape[1] // 2 :]
    is_warm = head[:, :, 0] - head[:, :, 2] > 40
    columns = np.flatnonzero(is_warm.any(axis=0))
    assert 80 < len(columns) <= 160
    assert 10 <= is_warm.any(axis=1).sum() <= 20


def test_the_preview_of_two_slices_is_no_wider_than_that_of_a_scan(tmp_path: Path) -> None:
    analysis = make_analysis()
    with Image.open(write_preview(analysis, tmp_path / "whole")) as picture:
        usual = picture.size
    two = np.s_[10:12]
    grid = analysis.volume.grid.moved((10.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2, *SHAPE[1:]))
    volume = replace(analysis.volume, grid=grid, voxels=analysis.volume.voxels[two])
    lungs = volume.with_voxels(analysis.prepared.scan_lungs.voxels[two])
    prepared = replace(
        analysis.prepared,
        scan_lungs=lungs,
        scan_grid=grid,
        salient=(0, 1),
        lung_area=analysis.prepared.lung_area[two],
    )
    thin = replace(analysis, volume=volume, prepared=prepared)
    with Image.open(write_preview(thin, tmp_path / "two")) as picture:
        assert picture.width <= 2 * usual[0]
        assert picture.height <= 2 * usual[1]


@pytest.mark.parametrize("num_words", [3, 16, 20, 22])
def test_a_remark_of_up_to_220_characters_ends_before_the_name_of_the_program(
    num_words: int,
) -> None:
    canvas = Image.new("RGB", (1600, 300))
    _write_words(canvas, _Words("", "", "uncertain " * num_words, "", is_disease=True))
    name_px = ImageDraw.Draw(canvas).textlength("chestct", ImageFont.load_default(20))
    written = np.asarray(canvas)[-60:].max(axis=(0, 2)) > 0
    name_from = np.flatnonzero(written)[-1] - int(name_px)
    assert written[name_from:].any()
    assert written[: name_from - 30].any()
    assert not written[name_from - 20 : name_from - 4].any()

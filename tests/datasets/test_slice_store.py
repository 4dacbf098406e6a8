from __future__ import annotations

import errno
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_slices import draw_folder, mark
from PIL import Image

from chestct.card import PictureForm
from chestct.datasets.manifest import Manifest
from chestct.datasets.slice_lists import scan_slice_folder
from chestct.datasets.slice_store import LabelledSlices, gather_slices
from chestct.datasets.workers import Progress
from chestct.errors import WriteError

FORM = PictureForm(size=48, interpolation="linear")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = draw_folder(tmp_path_factory.mktemp("drawn"), patients=2, slices=2)
    return scan_slice_folder(folder).manifest


def test_slices_are_volumes_of_depth_one_with_a_mask_of_ones(
    manifest: Manifest, tmp_path: Path
) -> None:
    examples = LabelledSlices(gather_slices(manifest, FORM, tmp_path, processes=1), manifest)
    assert len(examples) == 8
    picture, lungs, label = examples[5]
    assert picture.shape == lungs.shape == (1, 1, 48, 48)
    assert picture.dtype == torch.float32
    assert float(lungs.min()) == 1
    assert label == examples.labels[5] == 1
    with pytest.raises(IndexError):
        examples[8]


def test_kept_values_are_those_of_the_pictures_to_1_in_4096(
    manifest: Manifest, tmp_path: Path
) -> None:
    store = gather_slices(manifest, FORM, tmp_path, processes=1)
    stored = Image.open(manifest.path(manifest.rows[3])).convert("F").resize((48, 48), 2)
    expected = np.clip(np.asarray(stored) / 255, 0, 1)
    assert np.abs(store.pictures[3].astype(np.float32) - expected).max() <= 1 / 4096 + 1e-6


def test_a_second_call_reads_no_picture(manifest: Manifest, tmp_path: Path) -> None:
    told: list[Progress] = []
    first = gather_slices(manifest, FORM, tmp_path, processes=1, progress=told.append)
    assert told[-1].done == 8
    told.clear()
    second = gather_slices(manifest, FORM, tmp_path, processes=1, progress=told.append)
    assert told == []
    assert second.facts == first.facts
    assert np.array_equal(second.pictures, first.pictures)


def test_another_form_or_a_changed_picture_is_read_anew(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "drawn", patients=1, slices=1)
    drawn = scan_slice_folder(folder).manifest
    cache = tmp_path / "cache"
    first = gather_slices(drawn, FORM, cache, processes=1)
    other = gather_slices(drawn, FORM.model_copy(update={"size": 40}), cache, processes=1)
    assert other.pictures.shape == (2, 40, 40)
    mark(drawn.path(drawn.rows[0]))
    changed = gather_slices(drawn, FORM, cache, processes=1)
    assert first.facts[0].coloured_share == 0
    assert changed.facts[0].coloured_share > 0.03
    assert changed.facts[0].digest != first.facts[0].digest


def test_a_picture_that_cannot_be_read_is_a_fact_and_stops_nothing(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "drawn", patients=1, slices=2)
    drawn = scan_slice_folder(folder).manifest
    drawn.path(drawn.rows[1]).write_bytes(b"broken")
    drawn.path(drawn.rows[2]).unlink()
    facts = gather_slices(drawn, FORM, tmp_path / "cache", processes=1).facts
    assert [bool(each.error) for each in facts] == [False, True, True, False]
    assert "1.png" in facts[1].error


def test_copies_have_one_digest_whatever_their_format(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "drawn", patients=1, slices=1)
    drawn = scan_slice_folder(folder).manifest
    Image.open(drawn.path(drawn.rows[0])).convert("RGBA").save(drawn.path(drawn.rows[1]))
    facts = gather_slices(drawn, FORM, tmp_path / "cache", processes=1).facts
    assert facts[0].digest == facts[1].digest


def test_a_folder_that_cannot_be_written_is_said(manifest: Manifest, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(WriteError, match=r"cannot be written: .*choose another folder"):
        gather_slices(manifest, FORM, blocked, processes=1)


class FullDisk(io.FileIO):
    """A file on a disk with room for two slices."""

    def write(self, content: bytes) -> int:  # type: ignore[override]
        if self.tell() + len(content) > 10_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


def test_a_full_disk_is_said_with_the_setting_and_leaves_nothing_half_written(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Path.open

    def open_file(self: Path, mode: str = "r", **named: object) -> object:
        return FullDisk(self, mode) if mode == "wb" else usual(self, mode, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_file)
        with pytest.raises(WriteError, match=r"no space left on device\. Free .* data\.cache"):
            gather_slices(manifest, FORM, tmp_path, processes=1)
    assert list(tmp_path.iterdir()) == []
    assert gather_slices(manifest, FORM, tmp_path, processes=1).pictures.shape == (8, 48, 48)

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelled_scans import COARSE
from phantoms import chest, chest_grid

from chestct.datasets.manifest import Manifest, ManifestError
from chestct.datasets.scans import read_options
from chestct.datasets.store import (
    Cache,
    CacheError,
    LabelledScans,
    _DamagedEntryError,
    _make_room,
    decode,
    encode,
    prepare_all,
)
from chestct.datasets.workers import Progress
from chestct.errors import ReadError, UnknownNameError
from chestct.preprocess.prepare import PreparedScan, prepare
from chestct.preprocess.recipes import RECIPES
from chestct.readers import read_volume
from chestct.writers.nifti import write_nifti

TINY = replace(
    RECIPES["roi_resnet_recommended"], input_shape=(14, 15, 17), spacing_mm=(25.0, 25.0, 25.0)
)
QUICK = replace(TINY, lungs="published")
"""The same with lungs that no network has to find, for what is kept whatever is in it."""


@pytest.fixture(scope="module")
def prepared() -> PreparedScan:
    return prepare(chest(chest_grid(*COARSE)), TINY)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", QUICK)


def entries(cache: Cache) -> list[Path]:
    return sorted(cache.folder.glob("??/*.safetensors"))


@pytest.mark.parametrize(("storage", "bound"), [("float16", 1 / 4096), ("uint8", 1 / 510)])
def test_an_input_comes_back_within_the_stated_error(
    prepared: PreparedScan, storage: str, bound: float
) -> None:
    content = encode(prepared, storage)
    back = decode(content)
    error = np.abs(back.input - prepared.input).max()
    assert 0 < error <= bound + 1e-7
    assert back.max_error == pytest.approx(error)
    assert np.array_equal(back.lungs, prepared.lungs)
    assert np.array_equal(back.input == 0, prepared.input == 0)
    assert back.warnings == prepared.warnings
    assert len(content) <= Cache(Path(), TINY, storage).entry_bytes


@pytest.mark.parametrize("storage", ["float16", "uint8"])
def test_values_outside_zero_to_one_are_kept_too(prepared: PreparedScan, storage: str) -> None:
    values = (prepared.input - np.float32(0.3)) * 7
    back = decode(encode(replace(prepared, input=values), storage))
    assert np.abs(back.input - values).max() <= 7 / 510 + 1e-6
    flat = np.full_like(values, -2.5)
    assert np.array_equal(decode(encode(replace(prepared, input=flat), storage)).input, flat)


def test_channels_are_kept_once_and_come_back(prepared: PreparedScan) -> None:
    three = np.repeat(prepared.input, 3, axis=0)
    content = encode(replace(prepared, input=three), "uint8")
    assert decode(content).input.shape == three.shape
    assert abs(len(content) - len(encode(prepared, "uint8"))) < 200


def test_values_that_cannot_be_kept_are_refused(prepared: PreparedScan) -> None:
    with pytest.raises(CacheError, match="not all numbers"):
        encode(replace(prepared, input=prepared.input * np.float32("nan")), "uint8")
    with pytest.raises(CacheError, match="Use the storage 'uint8'"):
        encode(replace(prepared, input=prepared.input * np.float32(1e6)), "float16")


def test_every_damage_is_noticed(prepared: PreparedScan) -> None:
    content = encode(prepared, "uint8")
    rng = np.random.default_rng(0)
    for place in (0, 9, 60, *rng.integers(8, len(content), 40), len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 0x11
        with pytest.raises(_DamagedEntryError):
            decode(bytes(damaged))
    for length in (0, 7, 100, len(content) - 1):
        with pytest.raises(_DamagedEntryError):
            decode(content[:length])


def test_a_scan_is_prepared_once(
    cache: Cache, scans: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scans.path(scans.rows[0])
    first = cache.get(path)
    expected = prepare(read_volume(path), QUICK)
    assert np.abs(first.input - expected.input).max() <= 1 / 4096 + 1e-7
    assert np.array_equal(first.lungs, expected.lungs)
    monkeypatch.setattr("chestct.readers.read_volume", lambda *_, **__: pytest.fail("read"))
    second = cache.get(path)
    assert np.array_equal(first.input, second.input)
    assert [path.suffix for path in entries(cache)] == [".safetensors"]


def test_the_same_pixels_elsewhere_use_the_same_entry(cache: Cache, scans: Manifest) -> None:
    path = scans.path(scans.rows[0])
    cache.get(path)
    moved = path.rename(path.with_name("renamed.nii.gz"))
    assert cache.fetch(moved)[1]
    assert len(entries(cache)) == 1


def test_a_mask_of_the_lungs_makes_another_input_and_is_part_of_its_name(
    tmp_path: Path, scans: Manifest
) -> None:
    cache = Cache(tmp_path / "cache", TINY)
    volume = read_volume(scans.path(scans.rows[0]))
    lungs = np.asarray((volume.voxels < -700) & (volume.voxels > -950))
    half = lungs & (np.arange(lungs.shape[2]) < lungs.shape[2] // 2)
    write_nifti(scans.folder / "mask.nii.gz", half, volume.grid)
    row = replace(scans.rows[0], others={"lungs": "mask.nii.gz"})
    options = read_options(row, scans.folder)
    assert options.lungs == scans.folder / "mask.nii.gz"
    plain, given = cache.get(scans.path(row)), cache.get(scans.path(row), options)
    assert given.lungs.sum() < plain.lungs.sum()
    assert len(entries(cache)) == 2
    assert cache.fetch(scans.path(row), options)[1]
    write_nifti(scans.folder / "mask.nii.gz", lungs, volume.grid)
    assert not cache.fetch(scans.path(row), options)[1]
    gone = replace(options, lungs=scans.folder / "gone.nii.gz")
    with pytest.raises(ReadError, match="does not exist"):
        cache.fetch(scans.path(row), gone)


def test_another_recipe_storage_or_code_is_another_entry(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = "ab" * 16
    paths = {
        cache.entry_path(pixels),
        cache.entry_path("cd" * 16),
        cache.entry_path(pixels, variant=1),
        replace(cache, recipe=replace(QUICK, mask_margin_mm=4.0)).entry_path(pixels),
        replace(cache, storage="uint8").entry_path(pixels),
    }
    monkeypatch.setattr("chestct.datasets.store._preparation_code", lambda: "other")
    paths.add(cache.entry_path(pixels))
    assert len(paths) == 6
    assert replace(cache, seed=2).entry_path(pixels) == cache.entry_path(pixels)


def test_a_damaged_entry_is_made_again_and_never_used(
    cache: Cache, scans: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    path = scans.path(scans.rows[0])
    sound = cache.get(path)
    (entry,) = entries(cache)
    content = bytearray(entry.read_bytes())
    content[-5] ^= 0xFF
    entry.write_bytes(content)
    again, was_there = cache.fetch(path)
    assert not was_there
    assert "damaged entry" in caplog.text
    assert np.array_equal(again.input, sound.input)
    assert cache.fetch(path)[1]


def test_variants_draw_the_factors_of_the_paper_and_always_the_same(tmp_path: Path) -> None:
    from labelled_scans import write_scan

    recipe = replace(
        RECIPES["roi_resnet_paper"], input_shape=(12, 12, 12), in_plane_step_range=(1.0, 2.0)
    )
    cache = Cache(tmp_path / "cache", recipe)
    path = write_scan(tmp_path / "a.nii.gz")
    first, second = cache.get(path, variant=1), cache.get(path, variant=2)
    assert not np.array_equal(first.input, second.input)
    for entry in entries(cache):
        entry.unlink()
    assert np.array_equal(cache.get(path, variant=1).input, first.input)


def test_what_was_used_longest_ago_makes_way(tmp_path: Path) -> None:
    folder = tmp_path / "ab"
    folder.mkdir()
    for number in range(4):
        path = folder / f"{number}.safetensors"
        path.write_bytes(b"x" * 10)
        os.utime(path, (1000.0 + number, 1000.0 + number))
    os.utime(folder / "0.safetensors", (2000.0, 2000.0))
    removed = _make_room(tmp_path, needed=5, max_bytes=30)
    assert [path.name for path in removed] == ["1.safetensors", "2.safetensors"]


def test_the_folder_never_outgrows_its_bound(tmp_path: Path, scans: Manifest) -> None:
    cache = Cache(tmp_path / "cache", QUICK, max_bytes=2 * Cache(tmp_path, QUICK).entry_bytes)
    for row in scans.rows:
        cache.get(scans.path(row))
    assert len(entries(cache)) == 2
    cache.get(scans.path(scans.rows[3]))
    assert cache.fetch(scans.path(scans.rows[3]))[1]
    assert not cache.fetch(scans.path(scans.rows[0]))[1]


def test_a_bound_that_holds_too_little_is_refused_before_anything_is_done(
    tmp_path: Path, scans: Manifest
) -> None:
    with pytest.raises(CacheError, match="1 inputs of roi_resnet_recommended take"):
        Cache(tmp_path, TINY, max_bytes=100)
    cache = Cache(tmp_path / "cache", TINY, max_bytes=3 * Cache(tmp_path, TINY).entry_bytes)
    with pytest.raises(CacheError, match="Allow more, or use the storage 'uint8'"):
        prepare_all(cache, scans, processes=1)
    assert not cache.folder.exists()


def test_an_unknown_storage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="float16"):
        Cache(tmp_path, TINY, "float61")


def test_a_folder_that_cannot_be_written_stops_everything(tmp_path: Path, scans: Manifest) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="cannot be written"):
        prepare_all(Cache(tmp_path / "file", TINY), scans, processes=1)


def test_preparing_goes_on_where_it_stopped_and_says_how_far_it_is(
    cache: Cache, scans: Manifest
) -> None:
    cache.get(scans.path(scans.rows[2]))
    seen: list[Progress] = []
    done = prepare_all(cache, scans, processes=1, progress=seen.append)
    assert (done.num_made, done.num_found, done.failed) == (3, 1, {})
    assert 0 < done.max_error <= 1 / 4096
    assert [(each.done, each.total) for each in seen] == [(n, 4) for n in (1, 2, 3, 4)]
    assert prepare_all(cache, scans, processes=1).num_found == 4


def test_a_scan_that_fails_does_not_stop_the_others(cache: Cache, scans: Manifest) -> None:
    scans.path(scans.rows[1]).write_bytes(b"broken")
    done = prepare_all(cache, scans, processes=1)
    assert list(done.failed) == [3]
    assert "scan1.nii.gz" in done.failed[3]
    assert done.num_made == 3


def test_several_processes_give_what_one_gives(scans: Manifest, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", TINY)
    done = prepare_all(cache, scans, processes=2)
    assert (done.num_made, done.num_found) == (4, 0)
    alone = Cache(tmp_path / "alone", TINY)
    prepare_all(alone, scans, processes=1)
    contents = [[path.read_bytes() for path in entries(each)] for each in (cache, alone)]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 4


def test_labelled_scans_are_what_training_wants(cache: Cache, scans: Manifest) -> None:
    labelled = LabelledScans(cache, scans)
    assert len(labelled) == 4
    assert labelled.labels == [0, 1, 0, 1]
    batch, lungs, label = labelled[1]
    assert batch.shape == (1, *TINY.input_shape)
    assert lungs.shape == (1, *TINY.input_shape)
    assert set(lungs.unique().tolist()) <= {0.0, 1.0}
    assert label == 1
    with pytest.raises(IndexError):
        labelled[4]


def test_variants_follow_each_other(cache: Cache, scans: Manifest) -> None:
    labelled = LabelledScans(cache, scans, variants=2)
    assert labelled.labels == [0, 1, 0, 1] * 2
    assert labelled[5][2] == 1
    assert prepare_all(cache, scans, variants=2, processes=1).num_found == 1
    with pytest.raises(ManifestError, match="at least one input"):
        prepare_all(cache, scans, variants=0)


def test_a_scan_that_is_gone_is_said_with_its_row(cache: Cache, scans: Manifest) -> None:
    scans.path(scans.rows[2]).unlink()
    with pytest.raises(ReadError, match=r"scans\.csv, row 4: "):
        LabelledScans(cache, scans)[2]


def test_a_scan_that_is_not_to_be_classified_is_kept_with_the_reasons(
    cache: Cache, tmp_path: Path
) -> None:
    import nibabel

    voxels = np.random.default_rng(0).integers(-1000, 400, (28, 24, 24)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([13.5, 13.5, 15.0, 1.0])), tmp_path / "a.nii")
    first = cache.get(tmp_path / "a.nii")
    assert first.unsuitable_reasons
    assert cache.get(tmp_path / "a.nii").unsuitable_reasons == first.unsuitable_reasons

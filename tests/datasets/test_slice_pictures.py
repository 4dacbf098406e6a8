from __future__ import annotations

import errno
import io
import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tifffile
import torch
from drawn_slices import draw_folder, draw_slice, mark
from labelled_scans import write_scan
from PIL import Image

from chestct.card import PictureForm
from chestct.datasets.manifest import Manifest, ManifestError, ManifestRow
from chestct.datasets.pictures import (
    _WINDOWS,
    Extraction,
    LabelledSlices,
    _cut_to_scan,
    _find_labels,
    _windowed,
    extract_slices,
    fitted,
    gather_slices,
    read_picture,
    read_slice_labels,
)
from chestct.datasets.public import scan_slice_folder
from chestct.datasets.workers import Progress
from chestct.errors import ReadError, UnknownNameError, WriteError
from chestct.labels import CAP, COVID19, NORMAL
from chestct.readers import read_volume
from chestct.volume import to_canonical

GREY = draw_slice(1, is_ill=True)


def saved(path: Path, pixels: np.ndarray) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")
    else:
        Image.fromarray(pixels).save(path)
    return path


def with_alpha(grey: np.ndarray) -> np.ndarray:
    return np.dstack([grey, grey, grey, np.full_like(grey, 128)])


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_rgb_and_rgba_of_eight_bits_give_the_same_values(ending: str, tmp_path: Path) -> None:
    rgb = np.repeat(GREY[..., None], 3, axis=2)
    for name, pixels in {"grey": GREY, "rgb": rgb, "rgba": with_alpha(GREY)}.items():
        found = read_picture(saved(tmp_path / f"{name}.{ending}", pixels))
        np.testing.assert_allclose(found.values, GREY / 255, atol=1e-6)
        assert (found.bits, found.coloured_share, found.is_marked) == (8, 0.0, False)


def test_a_jpeg_of_a_grey_slice_is_close_to_it_and_not_taken_for_coloured(tmp_path: Path) -> None:
    path = tmp_path / "slice.jpg"
    Image.fromarray(np.repeat(GREY[..., None], 3, axis=2)).save(path, quality=95)
    found = read_picture(path)
    assert np.abs(found.values - GREY / 255).mean() < 0.01
    assert not found.is_marked


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "JPEG"), ("b.jpg", "PNG"), ("c.png", "TIFF"), ("d.tif", "JPEG")]
)
def test_a_file_of_another_kind_than_its_name_says_is_read_as_what_it_is(
    name: str, kind: str, tmp_path: Path
) -> None:
    endings = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif"}
    path = saved(tmp_path / f"right{endings[kind]}", GREY)
    expected = read_picture(path)
    found = read_picture(path.rename(tmp_path / name))
    assert found.kind == expected.kind == kind
    assert np.array_equal(found.values, expected.values)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_scaled_by_their_own_range_or_by_the_full_one(
    ending: str, tmp_path: Path
) -> None:
    pixels = GREY.astype(np.uint16) * 8 + 100
    path = saved(tmp_path / f"slice.{ending}", pixels)
    own, full = read_picture(path), read_picture(path, "full_range")
    low, high = int(pixels.min()), int(pixels.max())
    np.testing.assert_allclose(own.values, (pixels - low) / (high - low), atol=1e-6)
    np.testing.assert_allclose(full.values, pixels / 65535, atol=1e-6)
    assert own.bits == 16


def test_signed_hounsfield_units_in_a_tiff_are_scaled_by_their_own_range(tmp_path: Path) -> None:
    pixels = (GREY.astype(np.int16) * 6) - 1000
    found = read_picture(saved(tmp_path / "slice.tif", pixels)).values
    assert found.min() == 0
    assert found.max() == 1
    assert np.corrcoef(found.ravel(), GREY.ravel())[0, 1] > 0.9999


def test_a_picture_of_one_value_is_black(tmp_path: Path) -> None:
    path = saved(tmp_path / "flat.png", np.full((40, 40), 500, dtype=np.uint16))
    assert not read_picture(path).values.any()


def test_a_coloured_mark_is_read_as_grey_and_its_share_is_known(tmp_path: Path) -> None:
    path = saved(tmp_path / "marked.png", GREY)
    mark(path)
    found = read_picture(path)
    assert found.is_marked
    assert found.coloured_share == pytest.approx(300 / GREY.size)
    np.testing.assert_allclose(found.values[12, 12:30], 0.299, atol=1e-4)


@pytest.mark.parametrize("side", [61, 300, 1700])
def test_pictures_from_61_to_1700_pixels_come_to_the_size_asked_for(
    side: int, tmp_path: Path
) -> None:
    path = saved(tmp_path / "slice.png", draw_slice(2, is_ill=False, shape=(side, side + 9)))
    for form in (
        PictureForm(size=64),
        PictureForm(size=64, interpolation="linear", keeps_shape=True),
    ):
        values = fitted(read_picture(path).values, form)
        assert values.shape == (64, 64)
        assert values.dtype == np.float32
        assert 0 <= values.min() < values.max() <= 1
        # The lungs are dark and the body between them is not.
        assert values[32, 18] < 0.3 < 0.5 < values[32, 32]


def test_nearest_takes_pixels_as_they_are_and_linear_averages_them() -> None:
    stripes = np.tile(np.array([0.0, 1.0], dtype=np.float32), (64, 32))
    assert set(np.unique(fitted(stripes, PictureForm(size=32)))) <= {0.0, 1.0}
    averaged = fitted(stripes, PictureForm(size=32, interpolation="linear"))
    np.testing.assert_allclose(averaged[:, 2:-2], 0.5, atol=0.13)


def test_keeping_the_shape_adds_black_margins_instead_of_pulling() -> None:
    wide = np.ones((32, 64), dtype=np.float32)
    kept = fitted(wide, PictureForm(size=64, keeps_shape=True))
    assert not kept[:16].any()
    assert kept[16:48].all()
    assert fitted(wide, PictureForm(size=64)).all()


def test_bringing_a_picture_to_size_leaves_it_as_it_was() -> None:
    values = (GREY / 255).astype(np.float32)
    before = values.copy()
    fitted(values, PictureForm(size=33, interpolation="linear", keeps_shape=True))
    assert np.array_equal(values, before)


@pytest.mark.parametrize(
    ("name", "pixels", "said"),
    [
        ("small.png", np.zeros((31, 200), np.uint8), "31 x 200"),
        ("slice.txt", None, "no picture"),
        ("broken.png", None, "broken.png is not a readable PNG"),
    ],
)
def test_what_is_no_slice_is_refused_by_its_name(
    name: str, pixels: np.ndarray | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if pixels is None:
        path.write_bytes(b"nothing of the kind")
    else:
        saved(path, pixels)
    with pytest.raises(ReadError, match=said):
        read_picture(path)


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"gone.png"):
        read_picture(tmp_path / "gone.png")


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


def test_slices_at_an_address_are_read_once_and_kept_at_another(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    rows = []
    for number, row in enumerate(manifest.rows):
        name = f"/slices/{number}.png"
        system.put_file(str(manifest.path(row)), name)
        rows.append(replace(row, scan=f"memory:/{name}"))
    elsewhere = replace(manifest, rows=tuple(rows))
    on_disk = gather_slices(manifest, FORM, tmp_path / "disk", processes=1)
    told: list[Progress] = []
    for _ in range(2):
        kept = Path("memory://kept")
        found = gather_slices(elsewhere, FORM, kept, processes=1, progress=told.append)
        assert found.facts == on_disk.facts
        assert np.array_equal(found.pictures, on_disk.pictures)
        # Another machine has no copies, and takes what the first one kept.
        shutil.rmtree(tmp_path / "cache")
    assert sum(each.done == len(rows) for each in told) == 1
    system.rm("/slices/0.png")
    gone = gather_slices(replace(elsewhere, rows=(rows[0],)), FORM, tmp_path / "gone", processes=1)
    system.rm("/slices", recursive=True)
    system.rm("/kept", recursive=True)
    assert "memory://slices/0.png is not there" in gone.facts[0].error


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


MARKS = np.isin(np.arange(40), (5, 6, 7))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Three patients of 24 slices: P001 upside down in its file, cap001, normal001."""
    folder = tmp_path_factory.mktemp("scans")
    rows = []
    for seed, (name, label) in enumerate(
        {"P001": COVID19, "cap001": CAP, "normal001": NORMAL}.items()
    ):
        write_scan(folder / f"{name}.nii.gz", seed, is_reversed=name == "P001")
        rows.append(ManifestRow(f"{name}.nii.gz", name, label, split="training"))
    return Manifest(tuple(rows), folder=folder, name="scans.csv")


def test_infected_slices_of_the_ill_and_all_of_the_normal_are_taken(
    scans: Manifest, tmp_path: Path
) -> None:
    told: list[str] = []
    found = extract_slices(scans, Extraction({"p001": MARKS}), tmp_path, told=told.append)
    assert found.cases == {CAP: 0, COVID19: 3, NORMAL: 24}
    assert [row.others["slice"] for row in found.rows[:3]] == ["5", "6", "7"]
    assert found.rows[0].others["patient_label"] == COVID19
    assert found.rows[0].split == "training"
    assert told == ["Row 3 is CAP and has no slice labels: left out."]


def test_a_picture_is_the_windowed_slice_counted_from_the_feet(
    scans: Manifest, tmp_path: Path
) -> None:
    found = extract_slices(scans, Extraction({"P001": MARKS}), tmp_path)
    volume = to_canonical(read_volume(scans.path(scans.rows[0])))
    picture = np.asarray(Image.open(found.path(found.rows[1])))
    assert np.array_equal(picture, _windowed(volume.voxels[6], "lung"))
    names = {path.name for path in tmp_path.rglob("*")}
    assert not any("P001" in name for name in names)


def test_slices_without_infection_can_count_as_normal(scans: Manifest, tmp_path: Path) -> None:
    wanted = Extraction({"P001": MARKS}, uninfected="negative", every=2)
    found = extract_slices(scans, wanted, tmp_path)
    of_ill = [row for row in found.rows if row.patient == "P001"]
    assert [row.label for row in of_ill].count(COVID19) == 1
    assert [row.label for row in of_ill].count(NORMAL) == 11
    assert {row.others["patient_label"] for row in of_ill} == {COVID19}


def test_all_slices_of_scans_nobody_looked_at_are_taken_when_asked_for(
    scans: Manifest, tmp_path: Path
) -> None:
    found = extract_slices(scans, Extraction(without_labels="all", every=8), tmp_path)
    assert found.cases == {CAP: 3, COVID19: 3, NORMAL: 3}


def test_labels_of_another_scan_are_refused_with_both_numbers(
    scans: Manifest, tmp_path: Path
) -> None:
    beyond = MARKS.copy()
    beyond[30] = True
    with pytest.raises(ManifestError, match=r"24 slices.*up to slice 31"):
        extract_slices(scans, Extraction({"P001": beyond}), tmp_path)


def test_nothing_left_is_refused_with_the_remedy(scans: Manifest, tmp_path: Path) -> None:
    ill = scans.choose(lambda row: row.label != NORMAL)
    with pytest.raises(ManifestError, match="--without-labels all"):
        extract_slices(ill, Extraction(), tmp_path)


def test_the_real_patients_slices_are_taken_with_the_radiologists_marks(
    data_folder: Path, tmp_path: Path
) -> None:
    place = data_folder / "covid_ct_md"
    table = np.loadtxt(place / "P001_slice_labels.csv", int, delimiter=",", skiprows=1)
    marks = table[:, 1].astype(bool)
    assert (len(marks), marks.sum()) == (148, 80)
    rows = (ManifestRow(str(place / "P001"), "P001", COVID19),)
    manifest = Manifest(rows, (COVID19, NORMAL), name="one.csv")
    wanted = Extraction({"P001": marks}, uninfected="negative", every=10)
    found = extract_slices(manifest, wanted, tmp_path)
    assert len(found) == 15
    assert found.cases[COVID19] == int(marks[::10].sum())
    picture = np.asarray(Image.open(found.path(found.rows[7])))
    assert picture.shape == (512, 512)
    assert picture.max() == 255
    assert found.rows[7].others["slice"] == "70"


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


HU = np.array([[-1000, -850, -600], [40, 240, 1000]], dtype=np.int16)


def test_a_window_maps_its_ends_to_black_and_white_and_its_middle_to_grey() -> None:
    assert _windowed(np.array([-1350, -600, 150, 3000]), "lung").tolist() == [0, 128, 255, 255]
    assert _windowed(np.array([-160, 40, 240, -1000]), "abdomen").tolist() == [0, 128, 255, 0]


def test_lungs_are_black_in_the_abdomen_view_and_grey_in_the_lung_view() -> None:
    abdomen, lung = _windowed(HU, "abdomen"), _windowed(HU, "lung")
    assert abdomen[0].tolist() == [0, 0, 0]
    assert (lung[0] > 50).all()
    assert lung[1].tolist() == [236, 255, 255]
    assert lung.dtype == abdomen.dtype == np.uint8


def test_the_slice_itself_is_not_changed() -> None:
    before = HU.copy()
    _windowed(HU)
    assert np.array_equal(HU, before)


def test_an_unknown_window_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="lung"):
        _windowed(HU, "lungs")
    assert set(_WINDOWS) == {"lung", "abdomen"}

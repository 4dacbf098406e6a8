"""Reading folders of slices: order, scale and geometry as stated, and every refusal."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from chestct.errors import GridError, ReadError
from chestct.readers import pictures
from chestct.readers.hounsfield import Rescale, gather
from chestct.readers.pictures import (
    TiffGeometry,
    _read_sidecar,
    geometry_from_dict,
    is_slice_folder,
    read_tiff_stack,
)
from chestct.volume import AIR_HU, to_canonical

GEOMETRY = TiffGeometry((2.0, 0.7, 0.8), "ascending", slope=1, intercept=-1024)
WINDOWED = TiffGeometry((2.0, 0.7, 0.8), "ascending", unit="windowed")
SIDECAR = {"spacing_mm": [2.0, 0.7, 0.8], "order": "ascending", "slope": 1, "intercept": -1024}


def stored_slices(num_slices: int = 12) -> np.ndarray:
    """16-bit slices of 4 x 5, no two alike; HU + 1024."""
    values = np.arange(num_slices * 20, dtype=np.uint16).reshape(num_slices, 4, 5)
    return values + np.where(values % 7 == 0, 1000, 24).astype(np.uint16)


def write_slices(folder: Path, slices: np.ndarray, suffix: str = ".tif") -> Path:
    """One file per slice, numbered from 1 without leading zeros."""
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(slices, start=1):
        if suffix == ".tif":
            tifffile.imwrite(folder / f"slice{number}.tif", pixels)
        else:
            Image.fromarray(pixels).save(folder / f"slice{number}{suffix}")
    return folder


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    return write_slices(tmp_path / "stack", stored_slices())


def test_slices_become_hounsfield_units_in_the_natural_order_of_their_names(stack: Path) -> None:
    volume = read_tiff_stack(stack, GEOMETRY)
    np.testing.assert_array_equal(volume.voxels, stored_slices().astype(np.int16) - 1024)
    assert volume.voxels.dtype == np.int16
    assert volume.grid.spacing_mm == (2.0, 0.7, 0.8)
    assert (volume.unit, volume.warnings, volume.source.format) == ("HU", (), "tiff")
    assert volume.source.left_out == {}


def test_first_file_is_at_the_feet_or_the_head_as_the_order_says(stack: Path) -> None:
    ascending = read_tiff_stack(stack, GEOMETRY)
    descending = read_tiff_stack(stack, replace(GEOMETRY, order="descending"))
    assert ascending.grid.direction == ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    assert descending.grid.direction == ((0, 0, -1), (0, 1, 0), (1, 0, 0))
    np.testing.assert_array_equal(
        to_canonical(descending).voxels, to_canonical(ascending).voxels[::-1]
    )


def test_geometry_comes_from_the_sidecar_when_none_is_given(stack: Path) -> None:
    (stack / "chestct.json").write_text(json.dumps(SIDECAR))
    volume = read_tiff_stack(stack, None)
    np.testing.assert_array_equal(volume.voxels, read_tiff_stack(stack, GEOMETRY).voxels)
    assert volume.grid == read_tiff_stack(stack, GEOMETRY).grid
    assert volume.source.left_out == {}


def test_a_given_geometry_goes_before_the_sidecar(stack: Path) -> None:
    (stack / "chestct.json").write_text(json.dumps(SIDECAR | {"spacing_mm": [9, 9, 9]}))
    assert read_tiff_stack(stack, GEOMETRY).grid.spacing_mm == (2.0, 0.7, 0.8)


def test_without_geometry_nothing_is_guessed(stack: Path) -> None:
    with pytest.raises(ReadError, match=r"12 image slices without voxel size .* chestct\.json"):
        read_tiff_stack(stack, None)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", ">i2"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_sixteen_bit_tiff_of_every_kind_reads_exactly(
    tmp_path: Path, dtype: str, compression: str | None
) -> None:
    values = np.array([[-1000, 3000], [40, 1000]]) + (1024 if "u" in dtype else 0)
    byteorder = ">" if dtype[0] == ">" else "<"
    for name in ("1.tif", "2.tif"):
        tifffile.imwrite(
            tmp_path / name, values.astype(dtype), byteorder=byteorder, compression=compression
        )
    geometry = replace(GEOMETRY, intercept=-1024 if "u" in dtype else 0)
    volume = read_tiff_stack(tmp_path, geometry)
    np.testing.assert_array_equal(volume.voxels[1], [[-1000, 3000], [40, 1000]])
    assert volume.voxels.dtype == np.int16


def test_sixteen_bit_png_is_read_like_tiff(tmp_path: Path) -> None:
    write_slices(tmp_path, stored_slices(3), ".png")
    volume = read_tiff_stack(tmp_path, GEOMETRY)
    np.testing.assert_array_equal(volume.voxels, stored_slices(3).astype(np.int16) - 1024)
    assert volume.unit == "HU"


def test_a_fractional_slope_gives_float32(stack: Path) -> None:
    volume = read_tiff_stack(stack, replace(GEOMETRY, slope=0.5))
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(volume.voxels, stored_slices() * 0.5 - 1024)


def test_padding_below_air_becomes_air(tmp_path: Path) -> None:
    values = stored_slices(3) + np.uint16(976)
    values[0, 0, :3] = 0
    volume = read_tiff_stack(write_slices(tmp_path, values), replace(GEOMETRY, intercept=-2000))
    np.testing.assert_array_equal(volume.voxels[0, 0, :3], AIR_HU)
    assert "3 voxels (5.0%) were below -1500 HU" in volume.warnings[0]


def test_a_mapping_that_cannot_be_right_is_refused(stack: Path) -> None:
    with pytest.raises(ReadError, match="slope 1 and intercept 0: no voxel is below -200"):
        read_tiff_stack(stack, replace(GEOMETRY, intercept=0))


def test_sixteen_bit_slices_without_a_scale_are_windowed_as_stored(stack: Path) -> None:
    volume = read_tiff_stack(stack, WINDOWED)
    np.testing.assert_array_equal(volume.voxels, stored_slices())
    assert volume.unit == "windowed"
    assert "Windowed values reach 1238; 0 to 255 was expected" in volume.warnings[0]


GREY = np.arange(60, dtype=np.uint8).reshape(3, 4, 5) * 4


def as_colour(grey: np.ndarray, alpha: int | None = None) -> np.ndarray:
    channels = [grey] * 3 + ([np.full_like(grey, alpha)] if alpha is not None else [])
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("pixels", [GREY, as_colour(GREY), as_colour(GREY, 128)])
def test_eight_bit_and_grey_colour_slices_are_windowed(
    tmp_path: Path, pixels: np.ndarray, suffix: str
) -> None:
    for number, values in enumerate(pixels):
        Image.fromarray(values).save(tmp_path / f"{number}{suffix}")
    volume = read_tiff_stack(tmp_path, WINDOWED)
    np.testing.assert_array_equal(volume.voxels, GREY)
    assert (volume.unit, volume.voxels.dtype) == ("windowed", np.int16)
    assert volume.warnings == ()


def test_grey_with_alpha_and_palettes_are_windowed(tmp_path: Path) -> None:
    Image.fromarray(np.stack([GREY[0], GREY[1]], axis=-1)).save(tmp_path / "1.png")
    Image.fromarray(GREY[1]).convert("P").save(tmp_path / "2.png")
    np.testing.assert_array_equal(read_tiff_stack(tmp_path, WINDOWED).voxels, GREY[:2])
    grey_and_alpha = np.stack([GREY[0], GREY[1]], axis=-1)
    tifffile.imwrite(
        tmp_path / "1.tif",
        grey_and_alpha,
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=["unassalpha"],
    )
    np.testing.assert_array_equal(read_tiff_stack(tmp_path, WINDOWED).voxels, GREY[:1])


def test_jpeg_slices_are_windowed_within_the_rounding_of_jpeg(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 3
    for name in ("1.jpg", "2.JPEG"):
        Image.fromarray(as_colour(ramp)).save(tmp_path / name, "JPEG", quality=95)
    volume = read_tiff_stack(tmp_path, WINDOWED)
    assert np.abs(volume.voxels - ramp.astype(int)).max() <= 3


def test_eight_bit_slices_are_never_hounsfield_units_even_when_told_so(tmp_path: Path) -> None:
    volume = read_tiff_stack(write_slices(tmp_path, GREY), GEOMETRY)
    np.testing.assert_array_equal(volume.voxels, GREY)
    assert volume.unit == "windowed"
    assert volume.warnings == ("8-bit slices have no absolute scale: read as windowed.",)


def test_coloured_slices_are_refused(tmp_path: Path) -> None:
    pixels = as_colour(GREY)
    pixels[1, 0, 0] = (250, 10, 10)
    with pytest.raises(ReadError, match=r"slice2\.tif is coloured \(5.0% of its pixels\)"):
        read_tiff_stack(write_slices(tmp_path, pixels), WINDOWED)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 5), np.float32), "values of type float32; 8-bit or 16-bit"),
        (np.zeros((4, 5), np.int32), "32 bits per pixel"),
        (np.zeros((4, 5), bool), "one bit per pixel"),
        (np.zeros((2, 4, 5), np.uint16), "holds several pages"),
        (np.zeros((4, 5000), np.uint16), "4 x 5000 pixels; 1 to 4096 a side"),
    ],
)
def test_slices_of_another_kind_are_refused_by_name(
    stack: Path, pixels: np.ndarray, message: str
) -> None:
    tifffile.imwrite(stack / "slice5.tif", pixels)
    with pytest.raises(ReadError, match=rf"slice5\.tif.*{message}"):
        read_tiff_stack(stack, GEOMETRY)


def test_pictures_of_unusual_kind_are_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (5, 4)).save(tmp_path / "1.jpg")
    with pytest.raises(ReadError, match="holds pixels of mode CMYK"):
        read_tiff_stack(tmp_path, WINDOWED)
    Image.new("CMYK", (5, 4)).save(tmp_path / "1.tif")
    with pytest.raises(ReadError, match="holds 4 samples per pixel of photometric kind 5"):
        read_tiff_stack(tmp_path, WINDOWED)


def test_a_jpeg_inside_a_tiff_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "1.tif", GREY[0], compression="jpeg")
    with pytest.raises(ReadError, match=r"1\.tif has compression 7 inside"):
        read_tiff_stack(tmp_path, WINDOWED)


def test_a_picture_file_of_impossible_length_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_MAX_PICTURE_BYTES", 20)
    with pytest.raises(ReadError, match=r"bytes; at most 20 are read"):
        read_tiff_stack(write_slices(tmp_path, GREY, ".png"), WINDOWED)


def test_an_animated_png_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels) for pixels in GREY]
    frames[0].save(tmp_path / "1.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ReadError, match=r"1\.png holds several pages"):
        read_tiff_stack(tmp_path, WINDOWED)


@pytest.mark.parametrize("is_imagej", [False, True])
def test_pages_that_hide_behind_one_directory_are_refused(tmp_path: Path, is_imagej: bool) -> None:
    slices = stored_slices(3)
    options = {"imagej": True} if is_imagej else {"truncate": True}
    tifffile.imwrite(tmp_path / "1.tif", slices, photometric="minisblack", **options)
    with pytest.raises(ReadError, match=r"1\.tif holds several pages"):
        read_tiff_stack(tmp_path, GEOMETRY)


@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
def test_sixteen_bit_colour_tiff_is_cut_to_eight_bits(tmp_path: Path, planarconfig: str) -> None:
    pixels = as_colour(GREY[0]).astype(np.uint16) * 256
    stored = pixels if planarconfig == "contig" else np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(tmp_path / "1.tif", stored, photometric="rgb", planarconfig=planarconfig)
    volume = read_tiff_stack(tmp_path, WINDOWED)
    np.testing.assert_array_equal(volume.voxels[0], GREY[0])


def test_a_missing_strip_is_refused_instead_of_filled(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "1.tif", stored_slices()[0], rowsperstrip=2)
    with tifffile.TiffFile(tmp_path / "1.tif") as file:
        tag = file.pages.first.tags["StripByteCounts"]
    content = bytearray((tmp_path / "1.tif").read_bytes())
    content[tag.valueoffset : tag.valueoffset + tag.valuebytecount // 2] = bytes(
        tag.valuebytecount // 2
    )
    (tmp_path / "1.tif").write_bytes(content)
    with pytest.raises(ReadError, match="not all its pixels are in the file"):
        read_tiff_stack(tmp_path, GEOMETRY)


def test_white_as_zero_is_refused(stack: Path) -> None:
    tifffile.imwrite(stack / "slice1.tif", stored_slices()[0], photometric="miniswhite")
    with pytest.raises(ReadError, match="zero is white"):
        read_tiff_stack(stack, GEOMETRY)


@pytest.mark.parametrize("pixels", [np.zeros((4, 6), np.uint16), np.zeros((4, 5), np.uint8)])
def test_slices_of_differing_size_or_depth_are_refused(stack: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(stack / "slice7.tif", pixels)
    message = r"slice7\.tif is 4 x \d at \d+ bits, while slice1\.tif is 4 x 5 at 16 bits"
    with pytest.raises(ReadError, match=message):
        read_tiff_stack(stack, GEOMETRY)


@pytest.mark.parametrize("content", [b"", b"II*\x00", b"no picture"])
def test_a_damaged_slice_is_refused_by_name(stack: Path, content: bytes) -> None:
    (stack / "slice3.tif").write_bytes(content)
    with pytest.raises(ReadError, match=r"slice3\.tif is not a readable TIFF slice"):
        read_tiff_stack(stack, GEOMETRY)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_a_truncated_slice_is_refused(stack: Path, compression: str | None) -> None:
    pixels = np.random.default_rng(1).integers(0, 4000, (64, 64), dtype=np.uint16)
    tifffile.imwrite(stack / "slice3.tif", pixels, compression=compression)
    content = (stack / "slice3.tif").read_bytes()
    (stack / "slice3.tif").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ReadError, match=r"slice3\.tif is (not a readable|cut short)"):
        read_tiff_stack(stack, GEOMETRY)


def test_a_png_that_unpacks_beyond_measure_is_refused(tmp_path: Path) -> None:
    Image.new("L", (14_000, 14_000)).save(tmp_path / "1.png")
    tracemalloc.start()
    with pytest.raises(ReadError, match=r"1\.png"):
        read_tiff_stack(tmp_path, WINDOWED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_other_files_are_left_out_and_counted(stack: Path) -> None:
    (stack / "notes.txt").write_text("a")
    (stack / "labels.csv").write_text("a")
    (stack / "._slice1.tif").write_text("resource fork")
    (stack / "deeper").mkdir()
    Image.new("L", (5, 4)).save(stack / "preview.png")
    volume = read_tiff_stack(stack, GEOMETRY)
    assert volume.source.left_out == {"PNG": 1, "not an image": 2}
    assert volume.warnings == ("Pictures beside the slices were left out: 1 PNG.",)
    np.testing.assert_array_equal(volume.voxels, stored_slices().astype(np.int16) - 1024)


def test_a_jump_in_the_numbers_is_a_warning(stack: Path) -> None:
    (stack / "slice5.tif").unlink()
    (stack / "slice9.tif").unlink()
    (warning,) = read_tiff_stack(stack, GEOMETRY).warnings
    assert warning.startswith("The numbers in the file names jump 2 times, first from 4 to 6")


@pytest.mark.parametrize("names", [["a", "b", "c"], ["1", "1b", "2"], ["2", "4", "6"], ["1", "9"]])
def test_names_without_a_running_number_give_no_warning(tmp_path: Path, names: list[str]) -> None:
    for name, pixels in zip(names, stored_slices(3), strict=False):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels)
    assert read_tiff_stack(tmp_path, GEOMETRY).warnings == ()


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=30, unique=True), st.sampled_from("a-_.")
)
def test_numbered_names_sort_by_their_number(numbers: list[int], separator: str) -> None:
    paths = [Path(f"IM{separator}{number}.tif") for number in numbers]
    ordered = sorted(paths, key=pictures._natural_key)
    found = [int(re.findall("[0-9]+", path.stem)[0]) for path in ordered]
    assert found == sorted(numbers)


def test_a_folder_without_slices_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a")
    assert not is_slice_folder(tmp_path)
    with pytest.raises(ReadError, match="no TIFF, PNG or JPEG slices among its 1 files"):
        read_tiff_stack(tmp_path, GEOMETRY)


def test_a_file_instead_of_a_folder_is_refused(stack: Path) -> None:
    assert is_slice_folder(stack)
    with pytest.raises(ReadError, match="is not a folder"):
        read_tiff_stack(stack / "slice1.tif", GEOMETRY)


def test_a_folder_that_cannot_be_listed_is_refused(
    stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(ReadError, match="cannot be listed: Permission denied"):
        read_tiff_stack(stack, GEOMETRY)


def test_too_many_voxels_are_refused_before_they_are_allocated(
    stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_VOXELS", 100)
    with pytest.raises(ReadError, match="more than the 100 that are read"):
        read_tiff_stack(stack, GEOMETRY)


def test_reading_holds_the_scan_in_memory_only_once(tmp_path: Path) -> None:
    slices = np.random.default_rng(0).integers(0, 1300, (20, 256, 256), dtype=np.uint16)
    write_slices(tmp_path, slices)
    # What the first call of a process loads stays and is no part of a scan.
    read_tiff_stack(tmp_path, GEOMETRY)
    tracemalloc.start()
    volume = read_tiff_stack(tmp_path, GEOMETRY)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * volume.voxels.nbytes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"spacing_mm": (0.0, 1.0, 1.0)}, "three sizes above 0 and up to 50 mm"),
        ({"spacing_mm": (1.0, float("nan"), 1.0)}, "three sizes above 0"),
        ({"order": "upwards"}, 'order must be "ascending" or "descending"'),
        ({"unit": "hu"}, 'unit must be "HU" or "windowed"'),
        ({"unit": "windowed"}, "leave them out"),
        ({"slope": None}, "slope and intercept are needed"),
        ({"slope": 0.0}, "slope not 0"),
        ({"intercept": float("inf")}, "must be finite"),
    ],
)
def test_an_impossible_sidecar_is_refused_with_the_field(
    stack: Path, fields: dict[str, object], message: str
) -> None:
    (stack / "chestct.json").write_text(json.dumps(SIDECAR | fields))
    with pytest.raises(ReadError, match=rf"chestct\.json: .*{message}"):
        _read_sidecar(stack)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable JSON file"),
        (b"\xff\xfe\x00", "not a readable JSON file"),
        ("[" * 60000, "not a readable JSON file"),
        (" " * 70000, "larger than 65536 bytes"),
        ("[1]", "an object with spacing_mm and order was expected"),
        ('{"spacing": 1}', "no field 'spacing'. Did you mean 'spacing_mm'"),
        ('{"spacing_mm": [1, 1, 1]}', "order is missing"),
        ('{"order": "ascending"}', "spacing_mm is missing"),
        ('{"order": "ascending", "spacing_mm": 1}', "spacing_mm must be three numbers"),
        ('{"order": "ascending", "spacing_mm": [1, "a", 1]}', "must be a number, not 'a'"),
        ('{"order": "ascending", "spacing_mm": [1, true, 1]}', "must be a number, not True"),
        ('{"order": ["a"], "spacing_mm": [1, 1, 1]}', "order must be"),
        ('{"order": "ascending", "spacing_mm": [1, 1, 1' + "0" * 400 + "]}", "ordinary size"),
    ],
)
def test_a_malformed_sidecar_is_refused_with_the_reason(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "chestct.json").write_bytes(content)
    with pytest.raises(ReadError, match=rf"chestct\.json.*{message}"):
        _read_sidecar(tmp_path)


def test_a_windowed_sidecar_needs_no_scale() -> None:
    fields = {"spacing_mm": [2, 0.7, 0.8], "order": "ascending", "unit": "windowed", "slope": None}
    assert geometry_from_dict(fields) == WINDOWED


def test_the_sidecar_in_the_users_page_is_valid() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text("utf-8")
    block = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert block is not None
    assert geometry_from_dict(json.loads(block.group(1))).spacing_mm == (2.0, 0.7, 0.7)


def test_the_sidecar_in_the_documentation_of_the_format_is_valid() -> None:
    text = re.search(r"\n    (\{.*?\n    \})", pictures.__doc__ or "", re.DOTALL)
    assert text is not None
    geometry = geometry_from_dict(json.loads(text.group(1)))
    assert (geometry.slope, geometry.intercept, geometry.order) == (1, -1024, "ascending")
    assert geometry_from_dict(json.loads(pictures._EXAMPLE)).unit == "HU"


@given(
    st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]),
    st.sampled_from([(1.0, 0.0), (1.0, -1024.0), (2.0, 1.0), (0.25, 0.5), (1.0, 1e12)]),
    st.permutations([0, 1, 2]),
)
def test_gathered_voxels_equal_the_rescaled_stored_ones(
    dtype: type, scale: tuple[float, float], axes: list[int]
) -> None:
    stored = np.arange(24).reshape(2, 3, 4).astype(dtype)
    order = (axes[0], axes[1], axes[2])
    expected = np.transpose(stored.astype(np.float64) * scale[0] + scale[1], np.argsort(order))
    gathered = gather(stored, expected.shape, order, Rescale(*scale))
    np.testing.assert_allclose(gathered.voxels, expected, rtol=1e-6)
    assert (gathered.lowest, gathered.highest) == (expected.min(), expected.max())
    assert gathered.voxels.flags.c_contiguous


def test_an_empty_grid_is_no_volume() -> None:
    with pytest.raises(GridError):
        pictures._grid(GEOMETRY, (0, 4, 5))


# --- slices that do not fit -------------------------------------------------------------------


def layered_slices(num: int = 12) -> np.ndarray:
    """16-bit slices of a body that changes from one to the next, in noise; HU + 1024."""
    k, j, i = np.mgrid[:num, :32, :32]
    body = (i - 16) ** 2 + (j - 16) ** 2 < (9 + 4.8 * k / num) ** 2
    noise = np.random.default_rng(0).normal(0, 10, body.shape)
    return np.round(np.where(body, 1064, 24) + noise).clip(0, 4095).astype(np.uint16)


def eight_bits(slices: np.ndarray) -> np.ndarray:
    return (slices / 1400.0 * 255).clip(0, 255).astype(np.uint8)


BAD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "blank": lambda slices: np.full((32, 32), 24),
    "noise": lambda slices: np.random.default_rng(1).integers(0, 1400, (32, 32)),
    "shifted": lambda slices: np.roll(slices[5], 6, axis=1),
    "written twice": lambda slices: slices[4],
}


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("kind", BAD)
def test_picture_that_does_not_fit_its_neighbours_is_refused_or_interpolated(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    right = layered_slices()
    wrong = right.copy()
    wrong[5] = BAD[kind](right)
    if suffix == ".png":
        right, wrong = eight_bits(right), eight_bits(wrong)
    geometry = GEOMETRY if suffix == ".tif" else WINDOWED
    write_slices(tmp_path, wrong, suffix)
    with pytest.raises(ReadError, match=r"slice 6 of 12 .*--allow-bad-slices"):
        read_tiff_stack(tmp_path, geometry)
    volume = read_tiff_stack(tmp_path, geometry, {"bad-slices"})
    planes = right.astype(float) - (1024 if suffix == ".tif" else 0)
    assert np.array_equal(np.delete(volume.voxels, 5, 0), np.delete(planes, 5, 0))
    assert np.abs(volume.voxels[5] - (planes[4] + planes[6]) / 2).max() <= 1
    assert "slice 6 of 12" in volume.warnings[-1]


def test_pictures_whose_names_are_in_no_order_are_refused(tmp_path: Path) -> None:
    mixed = np.random.default_rng(0).permutation(24)
    write_slices(tmp_path, layered_slices(24)[mixed])
    with pytest.raises(ReadError, match="lie in no order: "):
        read_tiff_stack(tmp_path, GEOMETRY)


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_blank_pictures_at_the_ends_are_left_out_with_a_word(tmp_path: Path, order: str) -> None:
    slices = layered_slices()
    blank = np.full((1, 32, 32), 24, np.uint16)
    geometry = replace(GEOMETRY, order=order)
    write_slices(tmp_path / "all", np.concatenate([blank, blank, slices, blank]))
    volume = read_tiff_stack(tmp_path / "all", geometry)
    alone = read_tiff_stack(write_slices(tmp_path / "alone", slices), geometry)
    assert np.array_equal(volume.voxels, alone.voxels)
    assert volume.warnings == ("3 blank slice(s) at the ends of the scan were left out.",)
    assert volume.source.left_out == {"blank slice at an end": 3}
    first_mm = volume.grid.to_patient(np.zeros(3)) - alone.grid.to_patient(np.zeros(3))
    assert first_mm.tolist() == [0, 0, 4 if order == "ascending" else -4]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_pictures_of_a_real_scan_fit(
    data_folder: Path, tmp_path: Path, suffix: str, every: int
) -> None:
    image: Any = nibabel.load(data_folder / "real_scans" / "LIDC-IDRI-1011_ct.nii.gz")
    stored = np.asarray(image.dataobj).T[::every, ::2, ::2].clip(-1024, 3000) + 1024
    slices = stored.astype(np.uint16)
    write_slices(tmp_path, slices if suffix == ".tif" else eight_bits(slices), suffix)
    geometry = GEOMETRY if suffix == ".tif" else WINDOWED
    volume = read_tiff_stack(tmp_path, geometry)
    assert (len(volume.voxels), volume.warnings) == (len(slices), ())
    for number, path in enumerate(np.random.default_rng(0).permutation(sorted(tmp_path.iterdir()))):
        path.rename(tmp_path / f"mixed{number}{suffix}")
    with pytest.raises(ReadError, match="lie in no order"):
        read_tiff_stack(tmp_path, geometry)

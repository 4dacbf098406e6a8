from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from drawn_slices import draw_slice, mark
from PIL import Image

from chestct.card import PictureForm
from chestct.datasets.slice_store import fitted, read_picture
from chestct.errors import ReadError

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

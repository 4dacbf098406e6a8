"""Our resampling against SciPy, Pillow and SimpleITK, where the definitions coincide."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK
from phantoms import chest, turned_grid
from PIL import Image
from scipy import ndimage

from chestct.preprocess.prepare import prepare
from chestct.preprocess.recipes import RECIPES
from chestct.preprocess.resample import block_reader, grid_map, resample, resize_map, spline_map
from chestct.volume import Volume


def smooth_noise(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("new_shape", [(16, 16, 16), (40, 9, 25), (22, 31, 27)])
def test_spline_is_scipys_zoom(new_shape):
    values = smooth_noise((22, 31, 27))
    factors = [new / old for new, old in zip(new_shape, values.shape, strict=True)]
    theirs = ndimage.zoom(values.astype(np.float64), factors, order=3)
    maps = tuple(spline_map(old, new) for old, new in zip(values.shape, new_shape, strict=True))
    np.testing.assert_allclose(resample(block_reader(values), maps), theirs, atol=1e-5)


def test_published_maseres_input_is_scipys_zoom_of_the_8_bit_scan():
    scan = chest()
    recipe = replace(RECIPES["maseres_published"], input_shape=(32, 32, 32))
    low, high = recipe.window_hu
    share = np.clip((scan.voxels.astype(np.float64) - low) / (high - low), 0, 1)
    grey = np.rint(share * 255).astype(np.uint8)
    theirs = ndimage.zoom(grey, [32 / size for size in grey.shape]) / 255
    ours = prepare(scan, recipe).input[0]
    # A value on the edge between two greys may round either way.
    assert (np.abs(ours - theirs) < 1e-6).mean() > 0.999
    assert np.abs(ours - theirs).max() < 1.01 / 255


@pytest.mark.parametrize(("size", "new_size"), [(40, 100), (100, 40), (257, 224), (61, 61)])
def test_cubic_resize_is_pillows_away_from_the_ends(size, new_size):
    values = smooth_noise((size, 7))
    theirs = np.asarray(Image.fromarray(values).resize((7, new_size), Image.Resampling.BICUBIC))
    ours = resize_map(size, new_size).weights @ values
    # Pillow drops the kernel's part beyond the ends where MATLAB mirrors the values.
    margin = int(np.ceil(2 * max(1.0, new_size / size)))
    np.testing.assert_allclose(ours[margin:-margin], theirs[margin:-margin], atol=1e-5)


@pytest.mark.parametrize("step", [0.37, 0.8, 1.0])
def test_linear_shares_are_simpleitks_on_a_finer_grid(step):
    values = smooth_noise((12, 14, 16))
    start, shape = (1.3, 2.1, 0.6), (9, 10, 11)
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetInterpolator(SimpleITK.sitkLinear)
    resampler.SetSize(shape[::-1])
    resampler.SetOutputOrigin(start[::-1])
    resampler.SetOutputSpacing((step,) * 3)
    theirs = SimpleITK.GetArrayFromImage(resampler.Execute(SimpleITK.GetImageFromArray(values)))
    maps = tuple(
        grid_map(n, a, step, m, is_mask=True)
        for n, a, m in zip(values.shape, start, shape, strict=True)
    )
    np.testing.assert_allclose(resample(block_reader(values), maps), theirs, atol=1e-5)


def as_simpleitk(volume: Volume, values: np.ndarray) -> SimpleITK.Image:
    """The volume's voxels as an image in the patient; SimpleITK is x, y, z throughout."""
    image = SimpleITK.GetImageFromArray(values)
    grid = volume.grid
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(np.asarray(grid.direction)[::-1].T.ravel().tolist())
    return image


@pytest.mark.parametrize("name", ["roi_resnet_recommended", "maseres_published"])
def test_input_lies_where_simpleitk_resamples_the_scan_to(name):
    """Geometry end to end: the scan resampled by SimpleITK onto the grid we say we used."""
    scan = chest(turned_grid(17.0, axis=1))
    recipe = replace(RECIPES[name], background=None, num_channels=1, input_shape=(64, 64, 64))
    prepared = prepare(scan, replace(recipe, spacing_mm=(5.0, 5.0, 5.0)))
    on_grid = SimpleITK.Resample(
        as_simpleitk(scan, scan.voxels.astype(np.float32)),
        as_simpleitk(
            replace(scan, grid=prepared.grid, voxels=prepared.input[0]), prepared.input[0]
        ),
        SimpleITK.Transform(),
        SimpleITK.sitkLinear,
        -1024.0,
    )
    low, high = recipe.window_hu
    theirs = np.clip((SimpleITK.GetArrayFromImage(on_grid) - low) / (high - low), 0, 1)
    inner = (slice(4, -4),) * 3
    # Linear against cubic: they part at edges only, and a shift of half a voxel would show.
    assert np.abs(prepared.input[0] - theirs)[inner].mean() < 0.02
    shifted = np.abs(prepared.input[0][1:] - theirs[:-1])[inner].mean()
    assert np.abs(prepared.input[0] - theirs)[inner].mean() < 0.5 * shifted

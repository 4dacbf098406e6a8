"""The two slice-by-slice methods, against scikit-image on the same slices."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.segmentation import clear_border
from thorax_phantom import Thorax, make_thorax

from chestct.errors import UnknownNameError
from chestct.preprocess.contrast import saturation_limits, slice_limits, volume_limits
from chestct.preprocess.lungs import LUNG_METHODS, segment_lungs
from chestct.volume import Grid, Volume


@pytest.fixture(scope="module")
def thorax() -> Thorax:
    return make_thorax(spacing_mm=(16.0, 2.5, 2.5))


def _by_scikit_image(voxels: np.ndarray, limits) -> np.ndarray:
    from scipy.ndimage import binary_fill_holes

    slices = []
    for plane, limit in zip(voxels, limits, strict=True):
        stretched = np.clip((plane - limit.low) / (limit.high - limit.low), 0, 1)
        slices.append(binary_fill_holes(clear_border(~(stretched > 0.50196))))
    return np.stack(slices)


def test_published_equals_the_same_steps_in_scikit_image(thorax: Thorax) -> None:
    voxels = thorax.volume.voxels
    expected = _by_scikit_image(voxels, slice_limits(voxels))
    assert expected.any()
    assert np.array_equal(segment_lungs(thorax.volume, "published"), expected)


def test_paper_takes_its_contrast_limits_from_the_whole_scan(thorax: Thorax) -> None:
    voxels = thorax.volume.voxels
    limits = saturation_limits(voxels, full_range=volume_limits(voxels))
    expected = _by_scikit_image(voxels, [limits] * len(voxels))
    assert expected.any()
    assert np.array_equal(segment_lungs(thorax.volume, "paper"), expected)


def test_paper_and_published_differ_where_slices_differ_in_contrast() -> None:
    # The same 25-pixel hollow at -350 HU: dark beside bone, not beside soft tissue alone.
    voxels = np.full((2, 40, 40), 50, dtype=np.int16)
    voxels[:, :5] = -1000
    voxels[1, 10:20] = 1000
    voxels[:, 25:30, 25:30] = -350
    volume = Volume(Grid(voxels.shape, (2.0, 1.0, 1.0)), voxels)
    published, paper = segment_lungs(volume, "published"), segment_lungs(volume, "paper")
    assert published.sum(axis=(1, 2)).tolist() == [0, 25 + 0]
    assert paper.sum(axis=(1, 2)).tolist() == [25, 25]


def test_published_keeps_the_trachea_and_bowel_gas_as_the_script_does(thorax: Thorax) -> None:
    mask = segment_lungs(thorax.volume, "published")
    assert mask[thorax.airways].mean() > 0.9
    assert mask[thorax.bowel].mean() > 0.9


@pytest.mark.parametrize("method", ["published", "paper"])
def test_diagonal_contact_with_the_border_clears_and_diagonal_gaps_do_not_leak(method: str) -> None:
    voxels = np.full((1, 12, 12), 100, dtype=np.int16)
    voxels[0, 0, 0] = voxels[0, 1, 1] = -1000  # touches the border through a corner
    ring = np.zeros((5, 5), dtype=bool)
    ring[0, 1:4] = ring[4, 1:4] = ring[1:4, 0] = ring[1:4, 4] = True  # closed by corners only
    voxels[0, 5:10, 5:10][ring] = -1000
    volume = Volume(Grid(voxels.shape, (1.0, 1.0, 1.0)), voxels)
    mask = segment_lungs(volume, method)
    assert not mask[0, 1, 1]
    assert mask[0, 7, 7]
    assert mask.sum() == 21


@pytest.mark.parametrize("method", sorted(LUNG_METHODS))
def test_a_scan_is_not_changed_and_the_mask_is_contiguous(method: str, thorax: Thorax) -> None:
    before = thorax.volume.voxels.copy()
    mask = segment_lungs(thorax.volume, method)
    assert np.array_equal(thorax.volume.voxels, before)
    assert mask.shape == thorax.volume.grid.shape
    assert mask.flags.c_contiguous


def test_an_unknown_method_is_answered_with_the_known_ones() -> None:
    volume = Volume(Grid((1, 2, 2), (1.0, 1.0, 1.0)), np.zeros((1, 2, 2), dtype=np.int16))
    with pytest.raises(UnknownNameError, match="recommended"):
        segment_lungs(volume, "recomended")

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from chestct.datasets.augment import (
    SLICE_AUGMENTATIONS,
    _draw_maps,
    _SliceAugmentation,
    _vary_slices,
    find_augmentation,
    vary_batch,
)
from chestct.errors import TrainingError

STILL = _SliceAugmentation(0.0, 0.0, 0.0, 0.0, 0.0)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def smooth_batch(num: int = 3, height: int = 40, width: int = 56) -> torch.Tensor:
    noise = np.random.default_rng(0).random((num, height, width))
    blurred = np.stack([ndimage.gaussian_filter(each, 4) for each in noise])
    return torch.from_numpy(blurred.astype(np.float32))[:, None, None]


def test_the_published_numbers_stand_in_the_table() -> None:
    published = SLICE_AUGMENTATIONS["maseres_slices_published"]
    assert published == _SliceAugmentation(40.0, 0.2, 0.2, 0.2, 0.5)


def test_without_any_range_a_batch_stays_as_it_is() -> None:
    batch = smooth_batch()
    torch.testing.assert_close(_vary_slices(batch, STILL, seeded()), batch)


def test_the_published_shear_moves_a_pixel_by_less_than_half_a_pixel_at_224() -> None:
    only_shear = _SliceAugmentation(0.0, 0.0, 0.2, 0.0, 0.0)
    maps = _draw_maps(200, (224, 224), only_shear, seeded())
    moved = 112 * (maps[:, :, :2] - torch.eye(2)).abs().sum(dim=2).max()
    assert float(moved) < 0.5
    assert 112 * math.sin(math.radians(0.2)) < 0.5


@pytest.mark.parametrize("seed", range(4))
def test_a_map_is_that_of_keras_rotation_shift_shear_zoom_about_the_middle(seed: int) -> None:
    """Against SciPy, with Keras's matrices in pixels of (row, column)."""
    chosen = _SliceAugmentation(40.0, 0.2, 20.0, 0.2, 0.0)
    batch = smooth_batch(1)
    height, width = batch.shape[3:]
    generator = torch.Generator().manual_seed(seed)

    def draw(limit: float, count: int) -> list[float]:
        drawn = torch.rand(1, count, generator=generator)
        return [float(value) for value in (drawn * 2 - 1)[0] * limit]

    (angle,) = draw(40.0, 1)
    shift = np.array(draw(0.4, 2)) * [height / 2, width / 2]
    (shear,) = draw(20.0, 1)
    zoom = 1 + np.array(draw(0.2, 2))
    turn, slant = np.radians(angle), np.radians(shear)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shearing = np.array([[1, -np.sin(slant)], [0, np.cos(slant)]])
    matrix = rotation @ shearing @ np.diag(zoom)
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = middle + rotation @ shift - matrix @ middle
    expected = ndimage.affine_transform(
        batch[0, 0, 0].numpy(), matrix, offset, order=1, mode="nearest"
    )
    found = _vary_slices(batch, chosen, torch.Generator().manual_seed(seed))
    np.testing.assert_allclose(found[0, 0, 0].numpy(), expected, atol=2e-4)


def test_what_lies_outside_takes_the_nearest_pixel() -> None:
    moved = _vary_slices(
        torch.full((8, 1, 1, 20, 20), 0.7),
        SLICE_AUGMENTATIONS["maseres_slices_published"],
        seeded(),
    )
    torch.testing.assert_close(moved, torch.full_like(moved, 0.7))


def test_half_of_the_slices_are_mirrored() -> None:
    flips = _SliceAugmentation(0.0, 0.0, 0.0, 0.0, 0.5)
    batch = smooth_batch(200, 8, 8)
    moved = _vary_slices(batch, flips, seeded())
    is_flipped = ((moved - batch.flip(4)).abs().amax(dim=(1, 2, 3, 4)) < 1e-5).float()
    is_same = ((moved - batch).abs().amax(dim=(1, 2, 3, 4)) < 1e-5).float()
    assert float((is_flipped + is_same).min()) == 1
    assert 0.4 < float(is_flipped.mean()) < 0.6


def test_the_same_generator_gives_the_same_slices_and_the_batch_stays() -> None:
    batch, lungs = smooth_batch(), torch.ones(3, 1, 1, 40, 56)
    before = batch.clone()
    chosen = _SliceAugmentation()
    first, same_lungs = vary_batch(batch, lungs, chosen, seeded())
    second, _ = vary_batch(batch, lungs, chosen, seeded())
    assert torch.equal(first, second)
    assert torch.equal(batch, before)
    assert same_lungs is lungs
    assert not torch.equal(first, batch)


def test_a_setting_is_overridden_by_name() -> None:
    found = find_augmentation("recommended", {"zoom": 0.3}, SLICE_AUGMENTATIONS)
    assert isinstance(found, _SliceAugmentation)
    assert found.zoom == 0.3


def test_an_impossible_range_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"zoom must be from 0 to 0.9"):
        _SliceAugmentation(zoom=1.5)

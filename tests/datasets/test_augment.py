from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from chestct.datasets.augment import (
    AUGMENTATIONS,
    SLICE_AUGMENTATIONS,
    _augment_batch,
    _Augmentation,
    _draw_maps,
    _draw_transforms,
    _SliceAugmentation,
    _turn_batch,
    _Turns,
    _vary_slices,
    find_augmentation,
    vary_batch,
)
from chestct.errors import TrainingError, UnknownNameError

UNCHANGED = _Augmentation(0, 0, 0, 0, 0, 0, 0)


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(2, 1, 8, 10, 12, generator=generator)
    return batch, (batch > 0.5).float()


def test_no_variation_leaves_batch_and_lungs_as_they_are() -> None:
    batch, lungs = make_batch()
    varied, varied_lungs = _augment_batch(batch, lungs, UNCHANGED, torch.Generator())
    torch.testing.assert_close(varied, batch, atol=2e-4, rtol=0)
    assert torch.equal(varied_lungs, lungs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("channels", [1, 3])
def test_slices_then_depth_give_what_one_interpolation_in_3d_gives(
    channels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = torch.rand(3, channels, 9, 14, 11, generator=generator)
    lungs = (torch.rand(3, 1, 9, 14, 11, generator=generator) > 0.5).float()
    strong = _Augmentation(25, 0.3, 0.3, 0.5, 0, 0, 0)
    varied, moved = _augment_batch(batch, lungs, strong, torch.Generator().manual_seed(seed))
    transforms = _draw_transforms(3, (9, 14, 11), strong, torch.Generator().manual_seed(seed))
    grid = F.affine_grid(transforms, [*batch.shape], align_corners=False)
    expected = F.grid_sample(batch, grid, align_corners=False)
    torch.testing.assert_close(varied, expected, atol=2e-4, rtol=0)
    expected_lungs = F.grid_sample(lungs, grid, mode="nearest", align_corners=False)
    assert torch.equal(moved, expected_lungs)


def test_mirroring_reverses_width_of_batch_and_lungs_alike() -> None:
    batch, lungs = make_batch()
    mirror = _Augmentation(0, 0, 0, 1, 0, 0, 0)
    varied, varied_lungs = _augment_batch(batch, lungs, mirror, torch.Generator())
    torch.testing.assert_close(varied, batch.flip(-1), atol=2e-4, rtol=0)
    assert torch.equal(varied_lungs, lungs.flip(-1))


def test_a_turn_keeps_a_ball_a_ball_on_a_grid_that_is_not_square() -> None:
    d, h, w = torch.meshgrid(torch.arange(9), torch.arange(31), torch.arange(61), indexing="ij")
    ball = (((d - 4) ** 2 + (h - 15) ** 2 + (w - 30) ** 2) < 81).float()[None, None]
    turn = _Augmentation(90, 0, 0, 0, 0, 0, 0)
    varied, _ = _augment_batch(ball, ball, turn, torch.Generator().manual_seed(3))
    assert (varied - ball).abs().sum() < 0.05 * ball.sum()


def test_the_same_generator_state_gives_the_same_batch_and_another_does_not() -> None:
    batch, lungs = make_batch()
    first, second, third = (
        _augment_batch(batch, lungs, _Augmentation(), torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("seed", range(3))
def test_background_stays_zero_and_values_stay_in_range(seed: int) -> None:
    batch, lungs = make_batch()
    batch[:, :, :, :4] = 0
    still = _Augmentation(0, 0, 0, 0, 0.2, 0.1, 0.1)
    varied, _ = _augment_batch(batch, lungs, still, torch.Generator().manual_seed(seed))
    assert (varied[:, :, :, :4] == 0).all()
    assert 0 <= float(varied.min()) <= float(varied.max()) <= 1


def test_the_arguments_are_not_changed() -> None:
    batch, lungs = make_batch()
    copies = batch.clone(), lungs.clone()
    _augment_batch(batch, lungs, _Augmentation(), torch.Generator())
    assert torch.equal(batch, copies[0])
    assert torch.equal(lungs, copies[1])


def test_standardised_inputs_keep_their_range_and_their_background() -> None:
    batch, lungs = make_batch()
    batch = (batch - 0.5) * 6
    batch[:, :, :, :4] = 0
    still = _Augmentation(0, 0, 0, 0, 0.2, 0.1, 0.1)
    varied, _ = _augment_batch(batch, lungs, still, torch.Generator().manual_seed(0))
    assert (varied[:, :, :, :4] == 0).all()
    assert float(varied.min()) < -2
    assert float(varied.max()) > 2
    assert float(varied.abs().max()) <= 3
    assert (varied - batch)[:, :, :, 4:].abs().mean() > 0.05


def test_an_elastic_deformation_moves_smoothly_and_the_lungs_with_it() -> None:
    ramp = torch.linspace(0.05, 0.95, 24).expand(2, 1, 16, 20, 24).contiguous()
    lungs = (ramp > 0.5).float()
    elastic = _Augmentation(0, 0, 0, 0, 0, 0, 0, elastic=0.1)
    varied, moved = _augment_batch(ramp, lungs, elastic, torch.Generator().manual_seed(0))
    inner = (slice(None), slice(None), slice(3, -3), slice(4, -4), slice(4, -4))
    change = (varied - ramp)[inner].abs()
    assert 0.005 < float(change.mean()) < 0.1
    assert float(varied[inner].diff(dim=3).abs().max()) < 0.15
    is_far_from_the_edge = (varied[inner] - 0.5).abs() > 0.05
    agrees = moved[inner].bool() == (varied[inner] > 0.5)
    assert agrees[is_far_from_the_edge].all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_batch_is_varied_where_it_lies() -> None:
    batch, lungs = make_batch()
    here = _Augmentation(noise=0.0, elastic=0.05)
    expected = _augment_batch(batch, lungs, here, torch.Generator().manual_seed(1))[0]
    varied, moved = _augment_batch(
        batch.cuda(), lungs.cuda(), here, torch.Generator().manual_seed(1)
    )
    assert varied.is_cuda
    assert moved.is_cuda
    assert varied.shape == expected.shape


def _noisy_lungs(num: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise inside a box of lungs, nothing outside."""
    lungs = torch.zeros(num, 1, 20, 24, 28)
    lungs[..., 4:16, 4:20, 4:24] = 1
    noise = torch.rand(lungs.shape, generator=torch.Generator().manual_seed(0))
    return (0.2 + 0.6 * noise) * lungs, lungs


def test_blur_smooths_the_lungs_and_leaves_background_and_rim_alone() -> None:
    batch, lungs = _noisy_lungs()
    still = _Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, blur=2.0)
    varied, moved = _augment_batch(batch, lungs, still, torch.Generator().manual_seed(1))
    assert torch.equal(moved, lungs)
    assert (varied[lungs == 0] == 0).all()
    inside = lungs[0, 0] > 0
    for before, after in zip(batch[:, 0], varied[:, 0], strict=True):
        assert after[inside].std() < before[inside].std()
        # Background took no part: a rim that it had darkened would lower the mean.
        assert after[inside].mean() == pytest.approx(float(before[inside].mean()), abs=0.01)


def test_a_cut_view_ends_inside_the_lungs_at_one_end_of_one_axis() -> None:
    batch, lungs = _noisy_lungs(24)
    cut = _Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, cut_probability=1.0)
    varied, moved = _augment_batch(batch, lungs, cut, torch.Generator().manual_seed(2))
    kept = moved.flatten(1).sum(1) / lungs.flatten(1).sum(1)
    assert kept.min() < 0.8
    assert kept.min() > 0.3
    assert ((varied == 0) | (moved > 0)).all()
    for example in moved[:, 0]:
        places = example.nonzero()
        low, high = places.amin(0), places.amax(0) + 1
        # What is left is still a box.
        assert example.sum() == (high - low).prod()


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_every_augmentation_varies_batches_of_its_shape(name: str) -> None:
    found = find_augmentation(name, {})
    assert found is not None
    batch = torch.rand(3, 1, 8, 10, 12)
    varied, lungs = vary_batch(batch, torch.ones_like(batch), found, torch.Generator())
    assert varied.shape == lungs.shape == batch.shape
    assert not torch.equal(varied, batch)
    assert torch.isfinite(varied).all()


def test_fields_can_be_changed_and_lists_stand_for_tuples() -> None:
    assert find_augmentation("recommended", {"noise": 0}) == _Augmentation(noise=0.0)
    changed = find_augmentation("maseres_paper", {"angles_deg": [0, 5], "plane": "slice-row"})
    assert changed == _Turns((0.0, 5.0), plane="slice-row")


def test_none_is_none() -> None:
    assert find_augmentation("none", {}) is None
    with pytest.raises(TrainingError, match="no fields to override"):
        find_augmentation("none", {"noise": 0.1})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"noise": "much"}, "'noise' must be a number, not 'much'"),
        ({"noise": True}, "'noise' must be a number"),
    ],
)
def test_a_wrong_field_is_named(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        find_augmentation("recommended", overrides)


def test_a_tuple_field_takes_no_single_number_and_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(TrainingError, match="'angles_deg' must be numbers from -180 to 180"):
        find_augmentation("maseres_paper", {"angles_deg": 3})
    with pytest.raises(TrainingError, match="'plane' must be 'axial' or 'slice-row', not 3"):
        find_augmentation("maseres_paper", {"plane": 3})
    with pytest.raises(UnknownNameError, match="Did you mean 'noise'"):
        find_augmentation("recommended", {"nois": 0.1})
    with pytest.raises(UnknownNameError, match="Did you mean 'maseres_paper'"):
        find_augmentation("maseres_papr", {})


def smooth_batch(num: int = 2, shape: tuple[int, int, int] = (20, 28, 24)) -> torch.Tensor:
    rng = np.random.default_rng(0)
    scans = [ndimage.gaussian_filter(rng.normal(size=shape), 2.0) for _ in range(num)]
    return torch.tensor(np.array(scans)[:, None] * 10, dtype=torch.float32)


def turned(batch: torch.Tensor, turns: _Turns, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    lungs = (batch > 0).float()
    return _turn_batch(batch, lungs, turns, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("plane", "axes"), [("axial", (3, 4)), ("slice-row", (2, 3))])
@pytest.mark.parametrize("degrees", [20.0, -10.0, 90.0])
def test_a_turn_is_the_authors_in_angle_sense_and_plane(
    plane: str, axes: tuple[int, int], degrees: float
) -> None:
    batch = smooth_batch(shape=(24, 24, 24))
    found, _ = turned(batch, _Turns((degrees,), plane))
    expected = torch.tensor(
        ndimage.rotate(batch.numpy(), degrees, axes=axes[::-1], reshape=False, order=3)
    )
    inner = (slice(None), slice(None), *[slice(5, -5)] * 3)
    assert (found - expected)[inner].abs().max() < 0.05 * batch.abs().max()
    wrong = torch.tensor(
        ndimage.rotate(batch.numpy(), -degrees, axes=axes[::-1], reshape=False, order=3)
    )
    assert (found - wrong)[inner].abs().max() > 0.3 * batch.abs().max()


def test_a_turn_of_an_oblong_plane_keeps_angles_and_zeros_come_in() -> None:
    batch = torch.zeros(1, 1, 3, 21, 41)
    batch[..., 10, 20:26] = 1.0
    found, _ = turned(batch, _Turns((90.0,)))
    column = found[0, 0, 1, :, 20]
    assert column.sum() == pytest.approx(6, abs=0.5)
    assert found[0, 0, 1, 10, 24:].abs().max() < 0.1


def test_no_turn_and_no_flip_leave_a_batch_as_it_is() -> None:
    batch = smooth_batch()
    found, lungs = turned(batch, _Turns((0.0,)))
    assert torch.allclose(found, batch, atol=1e-4)
    assert torch.equal(lungs, (batch > 0).float())


def test_a_flip_changes_front_and_back_of_scan_and_lungs_alike() -> None:
    batch = smooth_batch()
    found, lungs = turned(batch, _Turns((0.0,), flip_probability=1.0))
    assert torch.allclose(found, batch.flip(3), atol=1e-4)
    assert torch.equal(lungs, (batch > 0).float().flip(3))


def test_the_same_seed_gives_the_same_turns_and_the_argument_stays() -> None:
    batch = smooth_batch(6)
    before = batch.clone()
    turns = _Turns((-12.0, 0.0, 12.0), flip_probability=0.5)
    first, second, other = (turned(batch, turns, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(batch, before)


def test_masks_stay_masks() -> None:
    _, lungs = turned(smooth_batch(), _Turns((7.0,)))
    assert set(lungs.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"angles_deg": ()}, "angles_deg"),
        ({"angles_deg": (500.0,)}, "angles_deg"),
        ({"angles_deg": (1.0,), "plane": "coronal"}, "plane"),
        ({"angles_deg": (1.0,), "flip_probability": 1.5}, "flip_probability"),
    ],
)
def test_impossible_turns_are_refused_by_field(fields: dict[str, object], named: str) -> None:
    with pytest.raises(TrainingError, match=named):
        find_augmentation("maseres_paper", fields)


STILL = _SliceAugmentation(0.0, 0.0, 0.0, 0.0, 0.0)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def smooth_slices(num: int = 3, height: int = 40, width: int = 56) -> torch.Tensor:
    noise = np.random.default_rng(0).random((num, height, width))
    blurred = np.stack([ndimage.gaussian_filter(each, 4) for each in noise])
    return torch.from_numpy(blurred.astype(np.float32))[:, None, None]


def test_the_published_numbers_stand_in_the_table() -> None:
    published = SLICE_AUGMENTATIONS["maseres_slices_published"]
    assert published == _SliceAugmentation(40.0, 0.2, 0.2, 0.2, 0.5)


def test_without_any_range_a_batch_stays_as_it_is() -> None:
    batch = smooth_slices()
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
    batch = smooth_slices(1)
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
    batch = smooth_slices(200, 8, 8)
    moved = _vary_slices(batch, flips, seeded())
    is_flipped = ((moved - batch.flip(4)).abs().amax(dim=(1, 2, 3, 4)) < 1e-5).float()
    is_same = ((moved - batch).abs().amax(dim=(1, 2, 3, 4)) < 1e-5).float()
    assert float((is_flipped + is_same).min()) == 1
    assert 0.4 < float(is_flipped.mean()) < 0.6


def test_greys_of_slices_are_varied_about_their_mean_from_black_to_white_at_most() -> None:
    batch = smooth_slices(60).clamp(0, 1)
    brighter = _vary_slices(batch, replace(STILL, brightness=0.3), seeded())
    shifts = (brighter - batch).flatten(1)
    inside = ((brighter > 0) & (brighter < 1)).flatten(1)
    for shift, is_inside in zip(shifts, inside, strict=True):
        assert float(shift[is_inside].max() - shift[is_inside].min()) < 1e-5
    assert 0.15 < float(shifts.abs().max()) <= 0.3 + 1e-6
    flatter = _vary_slices(batch, replace(STILL, contrast=0.5), seeded())
    ratios = flatter.flatten(1).std(1) / batch.flatten(1).std(1)
    assert 0.5 <= float(ratios.min()) < 0.6
    assert float(ratios.max()) <= 1.5
    for varied in (brighter, flatter):
        assert float(varied.min()) >= 0
        assert float(varied.max()) <= 1


def test_the_same_generator_gives_the_same_slices_and_the_batch_stays() -> None:
    batch, lungs = smooth_slices(), torch.ones(3, 1, 1, 40, 56)
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
    with pytest.raises(TrainingError, match=r"'zoom' must be a number from 0 to 0\.9"):
        find_augmentation("recommended", {"zoom": 1.5}, SLICE_AUGMENTATIONS)

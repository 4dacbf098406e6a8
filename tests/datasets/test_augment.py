from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from chestct.datasets.augment import _augment_batch, _Augmentation, _draw_transforms

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

from __future__ import annotations

import pytest
import torch

from chestct.datasets.augment import Augmentation, augment_batch

UNCHANGED = Augmentation(0, 0, 0, 0, 0, 0, 0)


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(2, 1, 8, 10, 12, generator=generator)
    return batch, (batch > 0.5).float()


def test_no_variation_leaves_batch_and_lungs_as_they_are() -> None:
    batch, lungs = make_batch()
    varied, varied_lungs = augment_batch(batch, lungs, UNCHANGED, torch.Generator())
    torch.testing.assert_close(varied, batch, atol=2e-4, rtol=0)
    assert torch.equal(varied_lungs, lungs)


def test_mirroring_reverses_width_of_batch_and_lungs_alike() -> None:
    batch, lungs = make_batch()
    mirror = Augmentation(0, 0, 0, 1, 0, 0, 0)
    varied, varied_lungs = augment_batch(batch, lungs, mirror, torch.Generator())
    torch.testing.assert_close(varied, batch.flip(-1), atol=2e-4, rtol=0)
    assert torch.equal(varied_lungs, lungs.flip(-1))


def test_a_turn_keeps_a_ball_a_ball_on_a_grid_that_is_not_square() -> None:
    d, h, w = torch.meshgrid(torch.arange(9), torch.arange(31), torch.arange(61), indexing="ij")
    ball = (((d - 4) ** 2 + (h - 15) ** 2 + (w - 30) ** 2) < 81).float()[None, None]
    turn = Augmentation(90, 0, 0, 0, 0, 0, 0)
    varied, _ = augment_batch(ball, ball, turn, torch.Generator().manual_seed(3))
    assert (varied - ball).abs().sum() < 0.05 * ball.sum()


def test_the_same_generator_state_gives_the_same_batch_and_another_does_not() -> None:
    batch, lungs = make_batch()
    first, second, third = (
        augment_batch(batch, lungs, Augmentation(), torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("seed", range(3))
def test_background_stays_zero_and_values_stay_in_range(seed: int) -> None:
    batch, lungs = make_batch()
    batch[:, :, :, :4] = 0
    still = Augmentation(0, 0, 0, 0, 0.2, 0.1, 0.1)
    varied, _ = augment_batch(batch, lungs, still, torch.Generator().manual_seed(seed))
    assert (varied[:, :, :, :4] == 0).all()
    assert 0 <= float(varied.min()) <= float(varied.max()) <= 1


def test_the_arguments_are_not_changed() -> None:
    batch, lungs = make_batch()
    copies = batch.clone(), lungs.clone()
    augment_batch(batch, lungs, Augmentation(), torch.Generator())
    assert torch.equal(batch, copies[0])
    assert torch.equal(lungs, copies[1])

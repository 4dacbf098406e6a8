from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from chestct.datasets.augment import _turn_batch, _Turns
from chestct.errors import TrainingError


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
        _Turns(**fields)  # type: ignore[arg-type]

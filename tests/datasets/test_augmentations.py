from __future__ import annotations

import pytest
import torch

from chestct.datasets.augment import (
    AUGMENTATIONS,
    _Augmentation,
    _Turns,
    find_augmentation,
    vary_batch,
)
from chestct.errors import TrainingError, UnknownNameError


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
        ({"nois": 0.1}, "Did you mean 'noise'"),
        ({"noise": "much"}, "'noise' must be a number, not 'much'"),
        ({"noise": True}, "'noise' must be a number"),
    ],
)
def test_a_wrong_field_is_named(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        find_augmentation("recommended", overrides)


def test_a_tuple_field_takes_no_single_number_and_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(TrainingError, match="'angles_deg' must be a list of numbers"):
        find_augmentation("maseres_paper", {"angles_deg": 3})
    with pytest.raises(TrainingError, match="'plane' must be text"):
        find_augmentation("maseres_paper", {"plane": 3})
    with pytest.raises(UnknownNameError, match="Did you mean 'maseres_paper'"):
        find_augmentation("maseres_papr", {})

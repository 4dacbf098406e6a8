"""The examples that the lungs network learns from: what is drawn keeps the truth true."""

from __future__ import annotations

import lungs_augment as augment
import numpy as np


def box_chest():
    """Two boxes of lung in a box of tissue."""
    values = np.full((24, 32, 40), -1000.0, dtype=np.float32)
    values[:, 4:28, 4:36] = 40
    labels = np.zeros(values.shape, dtype=np.uint8)
    labels[4:20, 8:24, 7:17] = augment.RIGHT
    labels[4:20, 8:24, 23:33] = augment.LEFT
    values[labels > 0] = -850
    return augment.Example(values, labels, augment.find_body(values, labels))


def test_disease_fills_air_and_only_fluid_takes_the_place_of_lung() -> None:
    for seed in range(6):
        example = box_chest()
        before = example.values.copy(), example.labels.copy()
        augment.add_disease(example, np.random.default_rng(seed))
        changed = example.labels != before[1]
        assert (example.labels[changed] == 0).all()
        assert (example.values[changed] > -100).all()
        assert not (example.values < before[0] - 200)[~example.lungs].any()


def test_bowel_stays_outside_the_lungs_and_its_gas_is_labelled() -> None:
    gas_seen = 0
    for seed in range(6):
        example = box_chest()
        before = example.values.copy()
        augment.add_bowel(example, np.random.default_rng(seed))
        changed = example.values != before
        assert not (changed & example.lungs).any()
        gas = changed & (example.values < -400)
        assert (example.labels[gas] == augment.GAS).all()
        gas_seen += int(gas.sum())
    assert gas_seen > 0


def test_a_flipped_chest_keeps_its_right_lung_at_the_right() -> None:
    example = box_chest()
    for seed in range(6):
        _, labels = augment.place(example, (24, 32, 40), np.random.default_rng(seed))
        right, left = (np.nonzero(labels == side)[2] for side in (augment.RIGHT, augment.LEFT))
        if right.size > 300 and left.size > 300:
            assert right.mean() < left.mean()


def test_crops_have_the_wanted_size_and_the_networks_range() -> None:
    example = box_chest()
    for seed in range(6):
        values, labels = augment.augment(example, (16, 24, 24), np.random.default_rng(seed))
        assert values.shape == labels.shape == (16, 24, 24)
        assert values.min() >= -1024
        assert values.max() <= 600
        assert set(np.unique(labels)) <= {0, 1, 2, 3, augment.UNJUDGED}


def test_the_body_holds_the_lungs_and_not_the_room() -> None:
    example = box_chest()
    assert example.body[example.lungs].all()
    assert not example.body[:, :3].any()

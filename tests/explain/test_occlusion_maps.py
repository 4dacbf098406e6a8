"""Occlusion: what the score really loses, patch by patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import MeanOfChannels, ask

from chestct.explain.maps import occlusion_map
from chestct.explain.question import Question

HEAD = [[8.0], [-8.0], [0.0]]


def bright_corner() -> Question:
    """A scan of zeros with a bright box of 2 x 2 x 2 in one corner; the score is 8 x its mean."""
    batch = torch.zeros(1, 1, 4, 4, 4)
    batch[..., :2, :2, :2] = 3.0
    return ask(MeanOfChannels([1.0], HEAD), batch)


def test_the_map_is_the_loss_of_the_score() -> None:
    found = occlusion_map(bright_corner(), patch=(2, 2, 2), stride=(2, 2, 2))
    expected = np.zeros((4, 4, 4), dtype=np.float32)
    # Blanked to the lungs' median, 0: 8 voxels of 3 out of 64 are lost, times 8.
    expected[:2, :2, :2] = 8 * 8 * 3 / 64
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert found.cell == (2.0, 2.0, 2.0)
    assert found.layer == ""


def test_overlapping_patches_are_averaged() -> None:
    found = occlusion_map(bright_corner(), patch=(4, 4, 2), stride=(1, 1, 1))
    # Along width, patches begin at 0, 1 and 2 and lose 3, 1.5 and 0.
    np.testing.assert_allclose(found.values[0, 0], [3.0, 2.25, 0.75, 0.0], rtol=1e-6)


def test_what_speaks_against_the_class_counts_as_no_loss() -> None:
    question = bright_corner()
    against = ask(question.network, question.batch, target=1)
    assert not occlusion_map(against, patch=(2, 2, 2)).values.any()


def test_only_patches_that_change_something_are_run_and_each_is_told_of() -> None:
    told: list[tuple[int, int]] = []
    question = bright_corner()
    listening = ask(
        question.network, question.batch, listener=lambda done, total: told.append((done, total))
    )
    occlusion_map(listening, patch=(2, 2, 2), stride=(1, 1, 1))
    # Of 27 patches the 8 that touch the bright corner.
    assert told[-1] == (8, 8)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_batches_of_patches_give_what_single_ones_give(monkeypatch: pytest.MonkeyPatch) -> None:
    together = occlusion_map(bright_corner(), patch=(2, 2, 2), stride=(1, 1, 1))
    monkeypatch.setattr("chestct.explain.maps._MOST_AT_ONCE", 1)
    singly = occlusion_map(bright_corner(), patch=(2, 2, 2), stride=(1, 1, 1))
    np.testing.assert_allclose(together.values, singly.values, rtol=1e-6)


def test_lungs_are_blanked_to_their_median_and_the_rest_to_the_lowest_value() -> None:
    batch = torch.zeros(1, 1, 1, 1, 6)
    batch[0, 0, 0, 0] = torch.tensor([5.0, 1.0, 2.0, 2.0, 4.0, 9.0])
    lungs = torch.zeros_like(batch)
    lungs[..., 1:5] = 1.0
    question = ask(MeanOfChannels([1.0], HEAD), batch, lungs=lungs)
    found = occlusion_map(question, patch=(1, 1, 1), stride=(1, 1, 1))
    # Lung: 1 and 4 against the median 2; outside: 5 and 9 against the lowest, 1.
    np.testing.assert_allclose(
        found.values[0, 0] * 6 / 8, [4.0, 0.0, 0.0, 0.0, 2.0, 8.0], rtol=1e-6
    )


def test_patches_larger_than_the_scan_cover_it_whole() -> None:
    found = occlusion_map(bright_corner(), patch=(9, 9, 9))
    np.testing.assert_allclose(found.values, 3.0, rtol=1e-6)

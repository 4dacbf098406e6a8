"""The attention map of MASERes against the matrix it is the mean of."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from chestct.errors import ExplanationError
from chestct.explain.maps import _output_of, attention_map
from chestct.explain.question import Question
from chestct.networks import build_network


@cache
def question(shape: tuple[int, int, int] = (14, 15, 21)) -> Question:
    torch.manual_seed(2)
    network = build_network("maseres", 1, 3, {"input_shape": list(shape)}).eval()
    with torch.no_grad():
        network.attention.query.weight *= 20
    batch = torch.rand(1, 1, *shape)
    return Question(network, batch, torch.ones_like(batch))


def test_a_position_gets_the_column_mean_of_the_attention_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chestct.explain.maps._QUERIES_AT_ONCE", 5)
    found = attention_map(question())
    attention = question().network.attention
    with torch.no_grad():
        positions = _output_of(question(), "pool")[0].flatten(2).transpose(1, 2)
        q, k = attention.query(positions)[0], attention.key(positions)[0]
        alpha = torch.stack([(q[:, [h]] @ k[:, [h]].T).softmax(dim=1) for h in range(3)])
    expected = alpha.mean(dim=(0, 1)) * 12
    np.testing.assert_allclose(found.values.ravel(), expected, rtol=1e-5)
    assert found.values.mean() == pytest.approx(1.0, rel=1e-5)
    assert np.ptp(found.values) > 0.01


def test_the_map_lies_where_the_pool_of_seven_voxels_lies() -> None:
    found = attention_map(question())
    assert found.values.shape == (2, 2, 3)
    assert found.start == (3.0, 3.0, 3.0)
    assert found.step == (7.0, 7.0, 7.0)
    assert found.layer == "attention"


def test_a_single_position_has_nothing_to_attend_to() -> None:
    with pytest.raises(ExplanationError, match="single position"):
        attention_map(question((8, 9, 10)))

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from chestct.explain.maps import slice_gradcam

SIZE = 32


class TwoChannels(nn.Module):
    """Features: brightness on the left and on the right; the head weighs them by hand."""

    def __init__(self, weights: list[list[float]]) -> None:
        super().__init__()
        head = nn.Linear(2, len(weights), bias=False)
        head.weight.data = torch.tensor(weights)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)

    def features(self, batch: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(batch.squeeze(2), 4)
        half = small.shape[-1] // 2
        left, right = small.clone(), small.clone()
        left[..., half:] = 0
        right[..., :half] = 0
        return torch.cat([left, right], dim=1)


def test_the_map_is_the_one_computed_by_hand() -> None:
    """Logit 0 is the left mean times two: the weight of the left channel is 2 less 0, over n."""
    picture = np.linspace(0, 1, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    network = TwoChannels([[2.0, 0.0], [0.0, 1.0]])
    small = picture.reshape(8, 4, 8, 4).mean(axis=(1, 3))
    # The second logit counts against the first: the right channel's weight is negative, cut off.
    expected = np.where(np.arange(8) < 4, 2 * small, -small).clip(0)
    enlarged = nn.functional.interpolate(
        torch.from_numpy(expected)[None, None], size=(SIZE, SIZE), mode="bilinear"
    )[0, 0].numpy()
    heat = slice_gradcam(network, picture, 0)
    np.testing.assert_allclose(heat, enlarged / enlarged.max(), atol=1e-5)


def test_each_class_lights_up_its_own_side() -> None:
    network = TwoChannels([[1.0, 0.0], [0.0, 1.0]])
    picture = np.ones((SIZE, SIZE), dtype=np.float32)
    left, right = (slice_gradcam(network, picture, label) for label in (0, 1))
    assert left[:, :8].min() == 1
    assert left[:, -8:].max() == 0
    np.testing.assert_allclose(left, right[:, ::-1], atol=1e-6)


def test_what_speaks_for_no_class_gives_an_empty_map() -> None:
    heat = slice_gradcam(TwoChannels([[-1.0, -1.0], [1.0, 1.0]]), np.ones((SIZE, SIZE), "f4"), 0)
    assert not heat.any()


def test_neither_picture_nor_weights_are_changed() -> None:
    network = TwoChannels([[1.0, 0.0], [0.0, 1.0]])
    picture = np.random.default_rng(0).random((SIZE, SIZE)).astype(np.float32)
    before = picture.copy()
    slice_gradcam(network, picture, 1)
    assert np.array_equal(picture, before)
    assert all(parameter.grad is None for parameter in network.parameters())

"""Grad-CAM, Grad-CAM++ and LayerCAM of a network of six weights, worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from chestct.explain.maps import gradcam_map, gradcam_plus_plus_map, layercam_map
from chestct.explain.question import Question

KERNEL = (1.0, -2.0)
HEAD = ((4.0, 8.0), (-4.0, 8.0), (0.0, -2.0))
INPUT = np.array([[[1.0, 2.0], [0.0, 3.0]]], dtype=np.float32)
"""Four voxels. Channel 1 is the input, channel 2 is -2 times it, and both means enter the head.

The gradient of class c at every voxel of channel k is head[c][k] / 4.
"""


class SixWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Conv3d(1, 2, 1, bias=False)
        self.head = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            self.cells.weight.copy_(torch.tensor(KERNEL).reshape(2, 1, 1, 1, 1))
            self.head.weight.copy_(torch.tensor(HEAD))

    def forward(self, batch: torch.Tensor, lungs: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.cells(batch).mean(dim=(2, 3, 4)))


def question(target: int) -> Question:
    batch = torch.from_numpy(INPUT.copy())[None, None]
    return Question(SixWeights().eval(), batch, torch.ones_like(batch), target=target)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # 1 * x + 2 * (-2 x) = -3 x: nothing speaks for class 0.
        (0, 0.0 * INPUT),
        # -1 * x + 2 * (-2 x) = -5 x: nor for class 1.
        (1, 0.0 * INPUT),
        # 0 * x - 0.5 * (-2 x) = x.
        (2, INPUT),
    ],
)
def test_gradcam_is_the_rectified_sum_of_channels_times_mean_gradients(
    target: int, expected: np.ndarray
) -> None:
    found = gradcam_map(question(target))
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.layer == "cells"
    assert found.target == target


def test_gradcam_plus_plus_weighs_each_gradient_by_its_share() -> None:
    # Class 0: channel 1 has gradient 1 everywhere, its activations sum to 6:
    # share 1 / (2 + 6) = 1/8 a voxel, weight 4/8. Channel 2 has gradient 2 and sum -12:
    # share 4 / (8 - 12 * 8) = -1/22, weight 4 * 2 * (-1/22) = -4/11.
    # x / 2 + (-2 x) (-4/11) = x (1/2 + 8/11) = 27/22 x.
    found = gradcam_plus_plus_map(question(0))
    np.testing.assert_allclose(found.values, 27 / 22 * INPUT, rtol=1e-6)


def test_layercam_keeps_what_has_a_positive_gradient_of_its_own() -> None:
    # Class 1: the gradient of channel 1 is negative and dropped, 2 * (-2 x) is negative.
    np.testing.assert_array_equal(layercam_map(question(1)).values, 0 * INPUT)
    # A negated input makes channel 2 positive: 2 * 2 x = 4 x.
    negated = question(1)
    negated.batch.neg_()
    np.testing.assert_allclose(layercam_map(negated).values, 4 * INPUT, rtol=1e-6)


def test_of_two_classes_the_difference_of_the_logits_is_explained() -> None:
    two = question(0)
    two.network.head.weight = nn.Parameter(torch.tensor(((0.0, 0.0), (-4.0, 0.0))))
    # logit 0 - logit 1 = 4 * mean(x): gradient 1, though logit 0 alone is a constant.
    np.testing.assert_allclose(gradcam_map(two).values, INPUT, rtol=1e-6)

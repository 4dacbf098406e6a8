"""Our Grad-CAM and Grad-CAM++ against MONAI's, on copies of the same networks."""

from __future__ import annotations

import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from tiny_classifiers import settle_batch_norm

from chestct.explain.maps import gradcam_map, gradcam_plus_plus_map
from chestct.explain.question import Question
from chestct.networks import build_network

with warnings.catch_warnings():
    # MONAI's imports warn of what other packages will change.
    warnings.simplefilter("ignore")
    from monai.visualize import GradCAM, GradCAMpp

CASES = [
    ("roi_resnet18", {"width": 8, "gating": "all"}, (64, 72, 96), "layer4"),
    ("roi_resnet18", {"width": 8, "gating": "none"}, (64, 72, 96), "layer2"),
    ("roi_resnet50", {"width": 4, "gating": "figure"}, (64, 72, 96), "layer3"),
    ("maseres", {"attention": "paper", "input_shape": [14, 15, 21]}, (14, 15, 21), "block3"),
    ("alexnet3d", {"input_shape": [51, 51, 59], "dense_units": 8}, (51, 51, 59), "features.2"),
]


def question_about(
    name: str, settings: dict[str, object], shape: tuple[int, ...], layer: str, target: int
) -> Question:
    torch.manual_seed(5)
    network = build_network(name, 1, 3, settings)
    settle_batch_norm(network, torch.rand(2, 1, *shape))
    batch = torch.rand(1, 1, *shape)
    lungs = torch.zeros_like(batch)
    lungs[..., 4:-4, 4:-4, 5:-6] = 1.0
    return Question(network.eval(), batch, lungs, target=target, layer=layer)


def map_of(monais: type[GradCAM], question: Question) -> np.ndarray:
    with warnings.catch_warnings():
        # Its hooks warn where no gradient is asked for in front of the layer.
        warnings.simplefilter("ignore")
        cam = monais(deepcopy(question.network), question.layer)
        found = cam.compute_map(question.batch, class_idx=question.target, lungs=question.lungs)
    return found[0, 0].detach().numpy()


@pytest.mark.parametrize(("name", "settings", "shape", "layer"), CASES)
@pytest.mark.parametrize("target", [0, 2])
def test_gradcam_equals_monais(
    name: str, settings: dict[str, object], shape: tuple[int, ...], layer: str, target: int
) -> None:
    question = question_about(name, settings, shape, layer, target)
    found, expected = gradcam_map(question).values, map_of(GradCAM, question)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert expected.max() > 0
    np.testing.assert_allclose(found / found.max(), expected / expected.max(), atol=1e-5, rtol=1e-5)


def test_gradcam_plus_plus_equals_monais_where_the_gradient_is_the_same_everywhere() -> None:
    # In front of the average pool it is. Elsewhere the paper's Eq. 19 multiplies the sum of the
    # activations with the cube of each gradient, and MONAI sums products of both.
    question = question_about(*CASES[1][:3], "layer4", target=1)
    # MONAI adds 1e-7 to a divisor of squared gradients and a factor exp(logit) to the map: a steep
    # last layer makes the first small, and a logit of about 0 and a relative map undo the second.
    head = question.network.fc2
    with torch.no_grad():
        head.weight *= 1e4
        head.bias.zero_()
        head.bias -= question.network(question.batch, question.lungs)[0]
    found, expected = gradcam_plus_plus_map(question).values, map_of(GradCAMpp, question)
    assert expected.max() > 0
    np.testing.assert_allclose(found / found.max(), expected / expected.max(), atol=1e-5)

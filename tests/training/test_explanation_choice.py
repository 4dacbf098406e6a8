"""A training names how its classifier's answers are explained: fine cells where nothing is said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chestct.errors import ExplanationError, TrainingError
from chestct.networks import build_network
from chestct.preprocess.recipes import RECIPES
from chestct.training.plan import explanation_of, find_parts
from chestct.training.settings import ExplanationSection, RunSettings

RECIPE = RECIPES["maseres_recommended"]
DEFAULT = ExplanationSection()


def resnet() -> nn.Module:
    with torch.device("meta"):
        return build_network("roi_resnet18", 1, 3, {"width": 2, "gating": "all"}).eval()


@pytest.mark.parametrize(
    ("edge_mm", "layer"), [(0.7, "layer4"), (1.5, "layer3"), (3.0, "layer2"), (6.0, "layer1")]
)
def test_the_deepest_layer_with_cells_of_25_mm_is_chosen(edge_mm: float, layer: str) -> None:
    found = explanation_of(resnet(), RECIPE, DEFAULT, (edge_mm, edge_mm, edge_mm))
    assert found == f"gradcam++:{layer}"


def test_the_longest_edge_of_a_cell_counts() -> None:
    assert explanation_of(resnet(), RECIPE, DEFAULT, (3.0, 1.0, 1.0)) == "gradcam++:layer2"


def test_larger_cells_may_be_wanted() -> None:
    chosen = ExplanationSection(method="layercam", cell_mm=100)
    assert explanation_of(resnet(), RECIPE, chosen, (3.0, 3.0, 3.0)) == "layercam:layer4"


def test_where_all_cells_are_larger_it_is_the_last_of_the_finest() -> None:
    found = explanation_of(resnet(), RECIPE, DEFAULT, (40.0, 40.0, 40.0))
    coarser = explanation_of(resnet(), RECIPE, DEFAULT, (6.0, 6.0, 6.0))
    assert found.startswith("gradcam++:")
    assert found != coarser


def test_methods_without_a_layer_are_named_alone_and_refuse_one() -> None:
    spacing = (3.0, 3.0, 3.0)
    chosen = ExplanationSection(method="occlusion")
    assert explanation_of(resnet(), RECIPE, chosen, spacing) == "occlusion"
    with pytest.raises(ExplanationError, match="leave out 'layer2'"):
        explanation_of(
            resnet(), RECIPE, ExplanationSection(method="occlusion", layer="layer2"), spacing
        )


def test_a_network_without_cells_is_explained_by_covering() -> None:
    class Mean(nn.Module):
        def forward(self, batch: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
            return batch.mean(dim=(2, 3, 4)).expand(-1, 3)

    assert explanation_of(Mean(), RECIPE, DEFAULT, (3.0, 3.0, 3.0)) == "occlusion"


def test_a_layer_or_method_that_is_not_there_is_refused_before_the_training_begins() -> None:
    values = {
        "labels": ["CAP", "COVID-19", "normal"],
        "network": {"name": "roi_resnet18", "settings": {"width": 2}},
        "recipe": {"name": "roi_resnet_recommended", "overrides": {"input_shape": [40, 36, 44]}},
    }
    wrong = {**values, "explanation": {"layer": "layer9"}}
    with pytest.raises(TrainingError, match=r"'explanation': .*layer9"):
        find_parts(RunSettings.model_validate(wrong))
    unknown = {**values, "explanation": {"method": "gradcamm"}}
    with pytest.raises(TrainingError, match=r"'explanation': .*Did you mean 'gradcam'"):
        find_parts(RunSettings.model_validate(unknown))

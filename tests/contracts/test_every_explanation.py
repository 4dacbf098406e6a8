"""What every explanation promises, on every network: a map, or a reason why there is none."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from tiny_classifiers import saved_classifier, tiny_card, tiny_recipe, tiny_scan

from chestct.classifier import Classifier
from chestct.contracts import PROMISES, ExplanationCase, Promise
from chestct.errors import ClassifierError, ExplanationError
from chestct.explain import EXPLANATIONS
from chestct.explain.explanation import Explanation
from chestct.explain.run import explain
from chestct.networks import NETWORKS
from chestct.preprocess.prepare import PreparedScan

FORMS: dict[str, tuple[dict[str, object], tuple[int, int, int]]] = {
    "roi_resnet18": ({"width": 4, "gating": "all"}, (36, 33, 65)),
    "roi_resnet50": ({"width": 2, "gating": "figure"}, (36, 33, 40)),
    "roi_resnet101": ({"width": 2, "gating": "none"}, (36, 33, 40)),
    "maseres": ({"attention": "paper", "input_shape": [15, 14, 14]}, (15, 14, 14)),
    "maseres published": ({"attention": "published", "input_shape": [15, 14, 14]}, (15, 14, 14)),
    "alexnet3d": ({"input_shape": [51, 51, 51], "dense_units": 8}, (51, 51, 51)),
    "voxcnn": ({"input_shape": [100, 100, 100]}, (100, 100, 100)),
    "lung_lesions": ({"head_units": 8}, (36, 33, 40)),
    "segresnet_encoder": ({"width": 2, "cells": 2}, (36, 33, 40)),
    "merlin_encoder": ({"depth": 50, "width": 2}, (36, 33, 40)),
    "colipri_encoder": ({"width": 12, "depth": 2, "heads": 2}, (24, 16, 32)),
}
"""Settings and an input shape with which each network is quick to run; forms after a space."""

LAST_BLOCKS = {
    "roi_resnet18": "layer4",
    "roi_resnet50": "layer4",
    "roi_resnet101": "layer4",
    "maseres": "block3",
    "maseres published": "block3",
    "alexnet3d": "features",
    "voxcnn": "features.12",
    "lung_lesions": "lesions",
    "segresnet_encoder": "layers",
    "merlin_encoder": "stage4",
    "colipri_encoder": "features",
}
*ONCE, AGAIN = PROMISES["explanation"]
"""Promises about one map, and that it is the same when asked for again."""

WITHOUT_ATTENTION = sorted(set(FORMS) - {"maseres"})
EVERY_PAIR = pytest.mark.parametrize(
    ("method", "form"),
    [
        (method, form)
        for method in EXPLANATIONS
        for form in FORMS
        if method != "attention" or form not in WITHOUT_ATTENTION
    ],
)


@pytest.fixture(scope="module", autouse=True)
def few_patches():
    """One patch per scan: how many there are changes nothing about what is promised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chestct.explain.maps.PATCHES_PER_AXIS", 1)
        yield


@cache
def classifier_of(form: str) -> Classifier:
    settings, shape = FORMS[form]
    card = tiny_card(
        network=form.split()[0],
        network_settings=settings,
        recipe=asdict(tiny_recipe(1, shape)),
    )
    with TemporaryDirectory() as folder:
        classifier = saved_classifier(Path(folder) / form, card, seed=2)
        assert classifier.network is not None  # loaded while the folder is there
    return classifier


@cache
def scan_of(form: str) -> PreparedScan:
    return tiny_scan(classifier_of(form).recipe, seed=4)


def explained(method: str, form: str, **options: object) -> Explanation:
    return explain(classifier_of(form), scan_of(form), method=method, **options)


@cache
def case_of(method: str, form: str) -> ExplanationCase:
    return ExplanationCase(method, classifier_of(form), scan_of(form))


def plain(method: str, form: str) -> Explanation:
    """What comes without any option."""
    return case_of(method, form).explained


@pytest.mark.parametrize("form", WITHOUT_ATTENTION)
def test_networks_without_attention_are_refused_an_attention_map(form: str) -> None:
    with pytest.raises(ExplanationError, match="use 'gradcam'"):
        explained("attention", form)


def test_every_network_has_a_form_here() -> None:
    assert {form.split()[0] for form in FORMS} == set(NETWORKS)


@EVERY_PAIR
@pytest.mark.parametrize("promise", ONCE, ids=lambda promise: promise.__name__)
def test_every_explanation_keeps_its_promises(method: str, form: str, promise: Promise) -> None:
    promise(case_of(method, form))
    found = plain(method, form)
    assert found.method == method
    assert found.heat.shape == FORMS[form][1]
    assert found.heat.dtype == np.float32


@pytest.mark.parametrize("method", EXPLANATIONS)
def test_asking_again_gives_the_same_map_to_the_last_bit(method: str) -> None:
    AGAIN(case_of(method, "maseres"))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_taken_at_the_last_block_unless_told_otherwise(form: str) -> None:
    assert plain("gradcam", form).layer == LAST_BLOCKS[form]


@pytest.mark.parametrize("form", FORMS)
def test_without_a_label_the_most_probable_class_is_explained(form: str) -> None:
    classifier, scan = classifier_of(form), scan_of(form)
    with torch.no_grad():
        lungs = torch.from_numpy(scan.lungs).float()[None, None]
        logits = classifier.network(torch.from_numpy(scan.input)[None], lungs)
    assert plain("gradcam", form).label == classifier.labels[int(logits.argmax())]


@pytest.mark.parametrize("form", ["maseres", "alexnet3d"])
def test_networks_of_one_sigmoid_unit_explain_both_of_their_classes(form: str) -> None:
    settings, shape = FORMS[form]
    card = tiny_card(
        network=form.split()[0],
        network_settings=settings,
        recipe=asdict(tiny_recipe(1, shape)),
        labels=("COVID-19", "normal"),
    )
    with TemporaryDirectory() as folder:
        classifier = saved_classifier(Path(folder) / form, card)
        assert classifier.network is not None
    maps = [
        explain(classifier, tiny_scan(classifier.recipe), method="layercam", label=label)
        for label in card.labels
    ]
    assert all(found.has_evidence for found in maps)
    assert not np.array_equal(maps[0].heat, maps[1].heat)


def test_every_name_of_the_table_has_a_function_that_says_what_it_does() -> None:
    assert all(function.__doc__ for function in EXPLANATIONS.values())


def test_a_scan_of_another_recipe_is_refused() -> None:
    scan = scan_of("maseres")
    other = replace(scan, recipe=replace(scan.recipe, mask_margin_mm=9.0))
    with pytest.raises(ClassifierError, match="prepare it with"):
        explain(classifier_of("maseres"), other)

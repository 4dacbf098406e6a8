"""What every network of the table must do, whatever it is: the promises of `chestct.contracts`."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from chestct.contracts import PROMISES, NetworkCase, Promise
from chestct.errors import NetworkError, UnknownNameError
from chestct.networks import NETWORKS, build_network

SMALL: dict[str, tuple[dict[str, object], tuple[int, int, int]]] = {
    "roi_resnet18": ({"width": 4, "gating": "all"}, (36, 33, 40)),
    "roi_resnet50": ({"width": 2, "gating": "figure"}, (36, 33, 40)),
    "roi_resnet101": ({"width": 2, "gating": "text"}, (36, 33, 40)),
    "maseres": ({"attention": "paper", "input_shape": [22, 14, 28]}, (22, 14, 28)),
    "maseres published": ({"attention": "published", "input_shape": [22, 14, 28]}, (22, 14, 28)),
    "alexnet3d": ({"input_shape": [51, 35, 35], "dense_units": 8}, (51, 35, 35)),
    "lung_lesions": ({"head_units": 8}, (36, 33, 40)),
    "segresnet_encoder": ({"width": 2}, (36, 33, 40)),
    "segresnet_encoder attending": ({"width": 2, "levels": 5, "cells": 2}, (36, 33, 40)),
    # Of the 50 blocks of its ResNet-152, drawn, float32 itself makes errors of 1e-3.
    "merlin_encoder": ({"depth": 50, "width": 2}, (36, 33, 40)),
    "merlin_encoder attending": ({"depth": 50, "width": 2, "cells": 2}, (36, 33, 40)),
    "colipri_encoder": ({"width": 24, "depth": 2, "heads": 2}, (40, 24, 32)),
    "colipri_encoder attending": (
        {"width": 24, "depth": 2, "heads": 2, "axes": "SAR", "cells": 2},
        (40, 24, 32),
    ),
    "voxcnn": ({"input_shape": [100, 100, 100]}, (100, 100, 100)),
}
"""Settings and an input shape with which each network is quick to run; forms after a space."""

INERT = {
    "maseres published": frozenset(
        f"attention.{layer}.{kind}" for layer in ("query", "key") for kind in ("weight", "bias")
    )
}
"""Parameters without influence: the 198 of the published attention, whose softmax is always 1."""

NETWORK_NAMES = sorted(SMALL)


@cache
def small(name: str) -> NetworkCase:
    settings, shape = SMALL[name]
    return NetworkCase(name.split()[0], settings, shape, INERT.get(name, frozenset()))


def test_every_network_has_a_small_form_here() -> None:
    assert {name.split()[0] for name in SMALL} == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORK_NAMES)
@pytest.mark.parametrize("promise", PROMISES["network"], ids=lambda promise: promise.__name__)
def test_every_network_keeps_its_promises(name: str, promise: Promise) -> None:
    promise(small(name))


def test_the_inert_parameters_are_the_198_of_the_published_attention() -> None:
    for name, parameters in INERT.items():
        network = small(name).network
        assert sum(network.get_parameter(parameter).numel() for parameter in parameters) == 198


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_the_logits_that_engines_are_compared_by_are_no_huge_ones(name: str) -> None:
    assert small(name).logits.abs().max() < 10


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_an_input_of_a_wrong_size_is_refused_with_its_size(name: str) -> None:
    with pytest.raises(NetworkError, match=r"\(8, 8, 8\)"):
        small(name).network(torch.zeros(1, 1, 8, 8, 8))


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="roi_resnet18"):
        build_network("resnet18", 1, 3)


@pytest.mark.parametrize(("in_channels", "num_classes"), [(0, 3), (1, 1)])
def test_impossible_numbers_of_channels_and_classes_are_refused(
    in_channels: int, num_classes: int
) -> None:
    with pytest.raises(NetworkError, match="at least one input channel and two classes"):
        build_network("roi_resnet18", in_channels, num_classes)

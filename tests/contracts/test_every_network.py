"""What every network of the table must do, whatever it is.

The small networks are made once and only looked at; what trains one works on a copy.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_classifiers import (
    random_input,
    saved_classifier,
    settle_batch_norm,
    tiny_card,
    tiny_recipe,
)

from chestct.engines import make_engine
from chestct.errors import NetworkError, UnknownNameError
from chestct.networks import NETWORKS, build_network
from chestct.networks.blocks import PooledNetwork, is_in_head

SMALL: dict[str, tuple[dict[str, object], tuple[int, int, int]]] = {
    "roi_resnet18": ({"width": 4, "gating": "all"}, (36, 33, 40)),
    "roi_resnet50": ({"width": 2, "gating": "figure"}, (36, 33, 40)),
    "roi_resnet101": ({"width": 2, "gating": "text"}, (36, 33, 40)),
    "maseres": ({"attention": "paper", "input_shape": [22, 14, 28]}, (22, 14, 28)),
    "maseres published": ({"attention": "published", "input_shape": [22, 14, 28]}, (22, 14, 28)),
    "alexnet3d": ({"input_shape": [51, 35, 35], "dense_units": 8}, (51, 35, 35)),
    "lung_densities": ({"head_units": 8}, (36, 33, 40)),
    "segresnet_encoder": ({"width": 2}, (36, 33, 40)),
    "segresnet_encoder attending": ({"width": 2, "levels": 5, "cells": 2}, (36, 33, 40)),
    "voxcnn": ({"input_shape": [100, 100, 100]}, (100, 100, 100)),
}
"""Settings and an input shape with which each network is quick to run; forms after a space."""

INERT = {
    "maseres published": {
        f"attention.{layer}.{kind}" for layer in ("query", "key") for kind in ("weight", "bias")
    }
}
"""Parameters without influence: the 198 of the published attention, whose softmax is always 1."""

NETWORK_NAMES = sorted(SMALL)


@cache
def build_small(name: str, in_channels: int = 1, num_classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(3)
    network = build_network(name.split()[0], in_channels, num_classes, SMALL[name][0])
    settle_batch_norm(network, torch.rand(2, in_channels, *SMALL[name][1]))
    return network.eval()


@cache
def small_batch(name: str, num_scans: int = 2, in_channels: int = 1) -> tuple[torch.Tensor, ...]:
    scans = [random_input(i, in_channels, SMALL[name][1]) for i in range(num_scans)]
    batch = torch.from_numpy(np.stack([values for values, _ in scans]))
    lungs = torch.from_numpy(np.stack([lungs[None] for _, lungs in scans])).float()
    return batch, lungs


def test_every_network_has_a_small_form_here() -> None:
    assert {name.split()[0] for name in SMALL} == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORK_NAMES)
@pytest.mark.parametrize(("in_channels", "num_classes"), [(1, 3), (3, 2)])
def test_logits_have_one_row_per_scan_and_one_column_per_class(
    name: str, in_channels: int, num_classes: int
) -> None:
    network = build_small(name, in_channels, num_classes)
    with torch.no_grad():
        logits = network(*small_batch(name, 2, in_channels))
    assert logits.shape == (2, num_classes)
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_every_live_parameter_gets_a_finite_gradient(name: str) -> None:
    network = deepcopy(build_small(name)).train()
    loss = torch.nn.functional.cross_entropy(network(*small_batch(name)), torch.tensor([0, 2]))
    loss.backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        is_live = parameter_name not in INERT.get(name, ())
        assert bool(parameter.grad.abs().sum() > 0) == is_live, parameter_name


def test_the_inert_parameters_are_the_198_of_the_published_attention() -> None:
    for name, parameters in INERT.items():
        network = build_small(name)
        assert sum(network.get_parameter(parameter).numel() for parameter in parameters) == 198


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_the_same_input_gives_the_same_logits_to_the_last_bit(name: str) -> None:
    network = build_small(name)
    batch, lungs = small_batch(name)
    with torch.no_grad():
        assert torch.equal(network(batch, lungs), network(batch.clone(), lungs.clone()))


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_a_forward_pass_changes_neither_input_nor_weights(name: str) -> None:
    network = build_small(name)
    batch, lungs = small_batch(name)
    before = (batch.clone(), lungs.clone(), {k: v.clone() for k, v in network.state_dict().items()})
    with torch.no_grad():
        network(batch, lungs)
    assert torch.equal(batch, before[0])
    assert torch.equal(lungs, before[1])
    assert all(torch.equal(value, before[2][k]) for k, value in network.state_dict().items())


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_a_saved_network_gives_the_same_logits_after_loading(name: str, tmp_path: Path) -> None:
    network = build_small(name)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    other = build_network(name.split()[0], 1, 3, SMALL[name][0]).eval()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        assert torch.equal(network(*small_batch(name)), other(*small_batch(name)))


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_a_network_runs_without_a_lung_mask(name: str) -> None:
    network = build_small(name)
    with torch.no_grad():
        assert network(small_batch(name)[0]).isfinite().all()


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_an_input_of_a_wrong_size_is_refused_with_its_size(name: str) -> None:
    network = build_small(name)
    with pytest.raises(NetworkError, match=r"\(8, 8, 8\)"):
        network(torch.zeros(1, 1, 8, 8, 8))


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_an_unknown_setting_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnknownNameError, match="depthh"):
        build_network(name.split()[0], 1, 3, {"depthh": 3})


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_both_engines_agree(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings, shape = SMALL[name]
    recipe = asdict(tiny_recipe(1, shape))
    card = tiny_card(network=name.split()[0], network_settings=settings, recipe=recipe)
    classifier = saved_classifier(tmp_path / "classifier", card)
    values, lungs = random_input(5, 1, shape)
    reference = make_engine(classifier, "torch").logits(values, lungs)
    converted = make_engine(classifier, "openvino", precision="float32").logits(values, lungs)
    assert np.abs(reference).max() < 10
    np.testing.assert_allclose(converted, reference, atol=1e-4)


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="roi_resnet18"):
        build_network("resnet18", 1, 3)


@pytest.mark.parametrize(("in_channels", "num_classes"), [(0, 3), (1, 1)])
def test_impossible_numbers_of_channels_and_classes_are_refused(
    in_channels: int, num_classes: int
) -> None:
    with pytest.raises(NetworkError, match="at least one input channel and two classes"):
        build_network("roi_resnet18", in_channels, num_classes)


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_a_network_s_head_is_what_decides_on_its_pooled_features(name: str) -> None:
    network = deepcopy(build_small(name)).train()
    assert isinstance(network, PooledNetwork)
    with torch.no_grad():
        pooled = network.pooled_features(*small_batch(name))
    network.logits_of(pooled).square().sum().backward()
    decides = {n for n, parameter in network.named_parameters() if parameter.grad is not None}
    assert decides == {n for n, _ in network.named_parameters() if is_in_head(network, n)}
    assert {head for head in network.HEAD if not hasattr(network, head)} == set()

"""Explaining an answer: which class, which layer, and what is said where it cannot be done."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from small_networks import Flat, MeanOfChannels, ask
from tiny_classifiers import SHAPE, saved_classifier, tiny_scan

from chestct.classifier import Classifier
from chestct.errors import EngineError, ExplanationError, UnknownNameError
from chestct.explain.maps import (
    _activation_and_gradient,
    gradcam_map,
    pick_layer,
    strongest_channel_map,
)
from chestct.explain.run import explain, explain_scan
from chestct.preprocess.prepare import PreparedScan
from chestct.volume import ScanSource, Volume


@cache
def classifier() -> Classifier:
    with TemporaryDirectory() as folder:
        loaded = saved_classifier(Path(folder) / "tiny")
        assert loaded.network is not None  # loaded while the folder is there
    return loaded


def scan() -> PreparedScan:
    return tiny_scan(classifier().recipe)


def test_each_class_has_a_map_of_its_own() -> None:
    maps = [explain(classifier(), scan(), label=label) for label in classifier().labels]
    assert [found.label for found in maps] == list(classifier().labels)
    assert not np.array_equal(maps[0].heat, maps[1].heat)


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match=r"no explanation 'grad-cam'.*'gradcam'"):
        explain(classifier(), scan(), method="grad-cam")


def test_an_unknown_class_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match=r"no class 'Covid19'.*CAP, COVID-19"):
        explain(classifier(), scan(), label="Covid19")


def test_an_unknown_layer_is_refused_with_those_there_are() -> None:
    with pytest.raises(ExplanationError, match=r"'layer5'.*mean 'layer\d'.*relu.*layer3, "):
        explain(classifier(), scan(), layer="layer5")


def test_a_layer_without_a_grid_of_cells_is_no_layer_to_look_at() -> None:
    for name in ("fc1", "avgpool", "dropout"):
        with pytest.raises(ExplanationError, match=f"'{name}'"):
            explain(classifier(), scan(), layer=name)


@pytest.mark.parametrize("method", ["occlusion", "attention"])
def test_methods_that_look_at_no_layer_refuse_one(method: str) -> None:
    with pytest.raises(ExplanationError, match="leave out 'layer3'"):
        explain(classifier(), scan(), method=method, layer="layer3")


@pytest.mark.parametrize("layer", ["conv1", "bn1", "relu", "layer2", "layer3.1", "layer4.0.bn1"])
def test_any_layer_with_a_grid_can_be_looked_at(layer: str) -> None:
    found = explain(classifier(), scan(), layer=layer)
    assert found.layer == layer
    assert found.heat.shape == SHAPE


def test_an_input_that_is_not_finite_is_refused() -> None:
    broken = scan()
    values = broken.input.copy()
    values[0, 3, 3, 3] = np.nan
    with pytest.raises(EngineError, match="not finite"):
        explain(classifier(), replace(broken, input=values))


def test_a_network_without_any_grid_is_refused_with_a_way_out() -> None:
    batch = torch.rand(1, 1, 2, 2, 2)
    with pytest.raises(ExplanationError, match="use the method 'occlusion'"):
        gradcam_map(ask(Flat(8), batch))


def test_a_layer_that_overflows_is_refused() -> None:
    question = ask(MeanOfChannels([1e38], [[1.0], [0.0], [0.0]]), torch.full((1, 1, 2, 2, 2), 1e3))
    with pytest.raises(ExplanationError, match=r"'cells' gives values that are not finite"):
        gradcam_map(question)


def test_a_map_of_zeros_is_reported_and_not_divided_by() -> None:
    network = classifier().network
    silent = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        network.load_state_dict(silent)
        for method in ("gradcam", "gradcam++", "layercam", "strongest_channel"):
            found = explain(classifier(), scan(), method=method)
            assert not found.has_evidence
            assert found.scale == 0
            assert not found.heat.any()
        whole = explain_scan(classifier(), scan(), Volume(scan().grid, scan().lungs))
        assert whole.summary.peaks == ()
        assert whole.summary.involved_ml == 0
        assert set(whole.summary.shares.values()) == {0.0}
    finally:
        network.load_state_dict(kept)


def test_training_mode_and_weights_that_ask_for_gradients_are_restored() -> None:
    network = MeanOfChannels([1.0, 2.0], [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    question = ask(network, torch.rand(1, 1, 2, 2, 2))
    network.train()
    network.head.eval()
    network.head.weight.requires_grad_(False)
    with torch.inference_mode():
        _activation_and_gradient(question, pick_layer(question))
    assert [m.training for m in (network, network.cells, network.head)] == [True, True, False]
    assert network.cells.weight.requires_grad
    assert not network.head.weight.requires_grad


def test_a_scan_gets_its_map_its_summary_and_the_uids_of_its_slices() -> None:
    prepared = scan()
    uids = tuple(f"1.2.{i}" for i in range(SHAPE[0]))
    volume = Volume(prepared.grid, prepared.input[0], source=ScanSource("dicom", slice_uids=uids))
    found = explain_scan(classifier(), prepared, volume, layer="layer2")
    assert found.explanation.layer == "layer2"
    np.testing.assert_allclose(found.heat.voxels, found.explanation.heat, atol=1e-6)
    assert found.summary.peaks
    assert all(peak.uid == uids[peak.index] for peak in found.summary.peaks)


def test_the_strongest_channel_is_marked_above_45_percent_of_its_range() -> None:
    # Channel 2 has the larger mean. Scaled, its four cells are 0, 0.4, 0.5 and 1.
    cells = torch.tensor([0.0, 4.0, 5.0, 10.0]).reshape(1, 1, 1, 1, 4)
    network = MeanOfChannels([1.0, 3.0], [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = strongest_channel_map(ask(network, cells))
    np.testing.assert_array_equal(found.values, [[[0, 0, 1, 1]]])
    assert found.unit_scale == pytest.approx(30.0)


def test_the_strongest_channel_takes_no_notice_of_the_class() -> None:
    maps = [
        explain(classifier(), scan(), method="strongest_channel", label=label).heat
        for label in classifier().labels
    ]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert set(np.unique(maps[0])) == {0.0, 1.0}

"""Trainings that begin with given weights: what is kept, what stands still, what learns slower."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from brightness import Brightness
from safetensors.torch import save_file
from tiny_classifiers import drawn_network, saved_classifier, tiny_card
from torch import nn

from chestct.card import Card
from chestct.errors import TrainingError
from chestct.networks import build_network
from chestct.networks.blocks import PooledNetwork
from chestct.training import loop
from chestct.training.loop import _HeadAlone, evaluate, train
from chestct.training.plan import (
    Parts,
    Plan,
    begin_record,
    find_parts,
    find_slice_parts,
    remark_on_given,
)
from chestct.training.run import EpochLog, LabelledSets, _parameter_groups
from chestct.training.settings import RunSettings, SliceRunSettings, TrainingSettings

LABELS = ("COVID-19", "CAP", "normal")
QUICK = TrainingSettings(
    epochs=3, batch_size=4, learning_rate=0.05, workers=0, checkpoint_every_s=0, warmup_epochs=0
)
SETS = LabelledSets(Brightness(14), Brightness(6), num_classes=2)


class Tiny(PooledNetwork):
    """A convolution and a normalisation, then a head with another one."""

    HEAD = ("norm", "dropout", "linear")

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv3d(1, 3, 3)
        self.bn = nn.BatchNorm3d(3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.3)
        self.linear = nn.Linear(3, 2)
        self.num_pooled = 0

    def pooled_features(
        self, batch: torch.Tensor, lungs: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.num_pooled += len(batch)
        return self.bn(self.conv(batch)).relu().mean(dim=(2, 3, 4))

    def logits_of(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropout(self.norm(pooled)))


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before: Mapping[str, torch.Tensor], network: nn.Module) -> set[str]:
    after = network.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def with_settings(**changes: object) -> TrainingSettings:
    return TrainingSettings.model_validate({**QUICK.model_dump(), **changes})


class Stop(Exception):  # noqa: N818 - no error
    pass


def stop(_entry: EpochLog) -> None:
    raise Stop


def run_settings(place: Path, **changes: object) -> RunSettings:
    fields: dict[str, object] = {
        "labels": LABELS,
        "network": {"name": "roi_resnet18", "settings": {"width": 4, "gating": "all"}},
        "recipe": {
            "name": "roi_resnet_recommended",
            "overrides": {"input_shape": [40, 36, 44], "num_channels": 1},
        },
        "training": {"start_from": str(place)},
    }
    return RunSettings.model_validate(fields | changes)


def begun(place: Path, **changes: object) -> Parts:
    return find_parts(run_settings(place, **changes))


def classifier(folder: Path, **changes: object) -> Card:
    card = tiny_card(labels=LABELS, **changes)
    return saved_classifier(folder, card).card


def test_a_classifier_of_the_same_classes_is_begun_with_as_a_whole(tmp_path: Path) -> None:
    card = classifier(tmp_path / "run" / "classifier", licence="CC-BY-4.0")
    for place in (tmp_path / "run", tmp_path / "run" / "classifier"):
        parts = begun(place)
        assert not changed(weights(drawn_network(card)), parts.build_network(5))
        assert parts.beginning is not None
        assert parts.beginning.licence == "CC-BY-4.0"
        said = str(parts.beginning)
        assert said.startswith("Begun with the classifier 'tiny', SHA-256 ")
        assert "The head was taken." in said
        assert "prepared" not in said


def test_with_other_classes_the_head_is_drawn_anew_and_it_is_said(tmp_path: Path) -> None:
    card = classifier(tmp_path / "given")
    parts = begun(tmp_path / "given", labels=("emphysema", "fibrosis", "normal"))
    found = changed(weights(drawn_network(card)), parts.build_network(5))
    assert {"fc1.weight", "fc2.weight"} <= found <= {f"fc{n}.{k}" for n in "12" for k in KINDS}
    said = str(parts.beginning)
    assert "(its classes are COVID-19, CAP, normal)" in said
    assert "The head is drawn anew." in said


KINDS = ("weight", "bias")


def test_scans_that_were_prepared_otherwise_are_said(tmp_path: Path) -> None:
    recipe = {**asdict_of_recipe(), "input_shape": [44, 44, 44]}
    classifier(tmp_path / "given", recipe=recipe)
    assert "prepared by another form of 'roi_resnet_recommended'" in str(
        begun(tmp_path / "given").beginning
    )


def asdict_of_recipe() -> dict[str, object]:
    return dict(tiny_card().recipe)


def test_a_classifier_of_another_network_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    classifier(tmp_path / "given")
    network = {"name": "roi_resnet50", "settings": {"width": 4}}
    with pytest.raises(TrainingError, match=r"'training.start_from': 'tiny' is a classifier of"):
        begun(tmp_path / "given", network=network)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match=r"holds no classifier .* training/best.safetensors"):
        begun(tmp_path / "empty")


def test_slices_are_told_what_they_begin_with() -> None:
    settings = SliceRunSettings.model_validate(
        {
            "labels": ["a", "b"],
            "network": {"name": "vgg19", "weights": "none"},
            "training": {"start_from": "a.pth"},
        }
    )
    with pytest.raises(TrainingError, match=r"'training.start_from' is .* network.weights"):
        find_slice_parts(settings)


def test_weights_that_a_run_on_the_same_manifest_gave_are_remarked_on(tmp_path: Path) -> None:
    scans, others = tmp_path / "scans.csv", tmp_path / "others.csv"
    scans.write_text("scan,patient,label\n")
    others.write_text("scan,patient,label\nx,y,normal\n")
    first = tmp_path / "first"
    begin_record(Plan(run_settings(tmp_path, training={}), scans, first))
    for place in (first, first / "fold-1"):
        classifier(place / "classifier")
        given = begun(place).beginning
        assert given is not None
        remark = remark_on_given(Plan(run_settings(place), scans, tmp_path / "run"), given)
        assert remark is not None
        assert "learned from this very manifest" in remark
        assert remark_on_given(Plan(run_settings(place), others, tmp_path / "run"), given) is None


@pytest.mark.parametrize(("said", "known"), [({}, "not known"), ({"start_licence": "MIT"}, "MIT")])
def test_the_licence_of_a_file_is_what_the_settings_say(
    tmp_path: Path, said: dict[str, str], known: str
) -> None:
    file = tmp_path / "a.safetensors"
    save_file(drawn_network(tiny_card()).state_dict(), file)
    parts = begun(file, training={"start_from": str(file), **said})
    assert parts.beginning is not None
    assert parts.beginning.licence == known


def test_a_linear_probe_trains_on_an_encoder_s_features(tmp_path: Path) -> None:
    network = build_network("segresnet_encoder", 1, 2, {"width": 2, "levels": 2, "cells": 2})
    before = weights(network)
    settings = with_settings(freeze=["backbone"], epochs=1)
    train(network, SETS, settings, tmp_path)
    assert {n.partition(".")[0] for n in changed(before, network)} == {"norm", "attend", "fc"}


def test_run_json_says_what_was_taken(tmp_path: Path) -> None:
    card = classifier(tmp_path / "given")
    manifest = tmp_path / "scans.csv"
    manifest.write_text("scan,patient,label\n")
    parts, settings = begun(tmp_path / "given"), run_settings(tmp_path / "given")
    begin_record(Plan(settings, manifest, tmp_path / "run"), parts.taken)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["pretrained_sha256"] == card.weights_sha256
    tensors = record["pretrained_tensors"]
    assert tensors["taken"]["number"] == len(drawn_network(card).state_dict())
    assert tensors["unused"] == {"number": 0, "first": []}
    assert tensors["has_head"] is True


def test_frozen_parts_neither_learn_nor_move_their_statistics(tmp_path: Path) -> None:
    network = Tiny()
    before = weights(network)
    train(network, SETS, with_settings(freeze=["bn", "linear"], mixup_alpha=0.2), tmp_path)
    found = changed(before, network)
    assert {"conv.weight", "norm.weight", "norm.running_mean"} <= found
    assert not any(name.startswith(("bn.", "linear.")) for name in found)


def test_a_part_s_name_is_no_beginning_of_another_s(tmp_path: Path) -> None:
    network = Tiny()
    before = weights(network)
    train(network, SETS, with_settings(epochs=1, freeze=["nor"]), tmp_path)
    assert "norm.weight" in changed(before, network)


def test_rates_multiply_the_step_and_the_longest_name_counts(tmp_path: Path) -> None:
    rates = {"backbone": 0.5, "conv": 0.25, "conv.bias": 4.0}
    groups = _parameter_groups(Tiny(), rates)
    sizes = {group["factor"]: sum(p.numel() for p in group["params"]) for group in groups}
    assert sizes == {0.25: 81, 4.0: 3, 0.5: 6, 1.0: 14}
    plain, scaled = Tiny(), Tiny()
    before = weights(plain)
    once = {"epochs": 1, "batch_size": 14, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0}
    train(plain, SETS, with_settings(**once), tmp_path / "plain")
    train(scaled, SETS, with_settings(**once, rates=rates), tmp_path / "scaled")
    for name, factor in {"conv.weight": 0.25, "bn.weight": 0.5, "linear.weight": 1.0}.items():
        step, scaled_step = (n.state_dict()[name] - before[name] for n in (plain, scaled))
        torch.testing.assert_close(scaled_step, factor * step, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"freeze": ["conv"], "rates": {"bn": 0.1, "head": 2.0}},
        {"freeze": ["backbone"], "rates": {"linear": 0.5}},
        {"freeze": ["bn"], "optimizer": "sgd"},
    ],
    ids=str,
)
def test_a_run_that_goes_on_ends_with_the_same_weights(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    settings = with_settings(**changes)
    whole, broken, resumed = Tiny(), Tiny(), Tiny()
    train(whole, SETS, settings, tmp_path / "whole")
    with pytest.raises(Stop):
        train(broken, SETS, settings, tmp_path / "broken", after_epoch=stop)
    train(resumed, SETS, settings, tmp_path / "broken")
    assert not changed(weights(whole), resumed)
    assert changed(weights(Tiny()), resumed)


def test_a_run_with_another_part_frozen_is_not_gone_on_with(tmp_path: Path) -> None:
    train(Tiny(), SETS, with_settings(epochs=1, freeze=["conv"]), tmp_path)
    train(Tiny(), SETS, with_settings(epochs=1, freeze=["conv"]), tmp_path)
    with pytest.raises(TrainingError, match=r"freeze was \['conv'\], is \['bn'\]"):
        train(Tiny(), SETS, with_settings(epochs=1, freeze=["bn"]), tmp_path)


def test_a_head_alone_learns_on_features_that_are_worked_out_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_settings(freeze=["backbone"])
    once, each_time = Tiny(), Tiny()
    before = weights(once)
    history = train(once, SETS, settings, tmp_path / "once")
    assert once.num_pooled == 14 + 6
    monkeypatch.setattr(loop, "learns_head_alone", lambda *_arguments: False)
    expected = train(each_time, SETS, settings, tmp_path / "each")
    assert each_time.num_pooled == 3 * (14 + 6)
    for name, value in each_time.state_dict().items():
        torch.testing.assert_close(once.state_dict()[name], value)
    assert [e.validation_loss for e in history] == pytest.approx(
        [e.validation_loss for e in expected], abs=1e-5
    )
    assert {name.partition(".")[0] for name in changed(before, once)} == {"norm", "linear"}


def test_the_network_says_what_its_head_learned() -> None:
    network = Tiny().eval()
    scans = Brightness(5)
    outputs = evaluate(network, scans)
    alone = evaluate(_HeadAlone(network), loop._PooledScans(outputs))
    torch.testing.assert_close(alone.logits, outputs.logits)


def test_mixing_scans_up_takes_them_anew_each_time(tmp_path: Path) -> None:
    network = Tiny()
    train(network, SETS, with_settings(freeze=["backbone"], mixup_alpha=0.2), tmp_path)
    assert network.num_pooled == 3 * (14 + 6)

"""What training does otherwise with findings than with classes; classes stay as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from analyses import make_analysis
from tiny_classifiers import tiny_card
from torch import nn

from chestct.card import Card, FindingThreshold
from chestct.errors import ClassifierError, TrainingError
from chestct.training.loop import Outputs, _as_targets, _findings_loss, _mix_up
from chestct.training.plan import find_parts
from chestct.training.run import class_weights
from chestct.training.settings import (
    LabelSettings,
    RunSettings,
    read_settings_as,
    settings_as_yaml,
)
from chestct.writers.json_report import result_document

NAN = float("nan")
LABELS = torch.tensor([[1.0, 0.0], [0.0, NAN], [1.0, NAN], [NAN, 1.0]])


def test_what_is_not_known_counts_in_no_loss_and_gets_no_gradient() -> None:
    logits = torch.tensor([[0.5, -1.0], [2.0, 3.0], [-1.0, 9.0], [7.0, 0.1]], requires_grad=True)
    loss = _findings_loss(logits, LABELS)
    known = ~LABELS.isnan()
    expected = nn.functional.binary_cross_entropy_with_logits(logits.detach()[known], LABELS[known])
    assert float(loss.detach()) == pytest.approx(float(expected))
    loss.backward()
    assert logits.grad is not None
    assert bool((logits.grad[~known] == 0).all())
    assert bool((logits.grad[known] != 0).all())
    assert float(_findings_loss(logits.detach(), torch.full((4, 2), NAN))) == 0.0


def test_balanced_weights_make_scans_with_a_finding_count_as_much_as_those_without() -> None:
    labels = torch.tensor([[1.0, NAN], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert class_weights(labels, 2).tolist() == [3.0, 0.5]


def test_a_mixed_finding_is_known_where_it_is_known_of_both() -> None:
    scans, lungs = torch.rand(4, 1, 2, 2, 2), torch.ones(4, 1, 2, 2, 2)
    generator = torch.Generator().manual_seed(0)
    _, _, mixed = _mix_up(scans, lungs, _as_targets(LABELS, 2), 0.4, generator)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mixed.isnan(), LABELS.isnan() | LABELS[order].isnan())


def test_outputs_of_findings_have_a_masked_loss_and_share_of_right_calls() -> None:
    outputs = Outputs(torch.tensor([[1.0, -1.0], [1.0, 5.0]]), LABELS[:2], torch.zeros(2, 0))
    assert outputs.accuracy == pytest.approx(2 / 3)
    assert outputs.loss == pytest.approx(float(_findings_loss(outputs.logits, outputs.labels)))


def settings(**changes: object) -> RunSettings:
    fields: dict[str, object] = {
        "labels": ["emphysema", "nodule"],
        "kind": "findings",
        "network": {"name": "roi_resnet18", "settings": {"width": 2}},
        "recipe": {"name": "roi_resnet_recommended", "overrides": {"input_shape": [40, 40, 40]}},
    }
    return RunSettings.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"sampling": "balanced"}}, "'training.sampling': balanced draws classes"),
        (
            {"network": {"name": "voxcnn"}, "recipe": {"name": "maseres_paper"}},
            "'network.name': the network voxcnn gives two labels from one unit",
        ),
        (
            {"kind": "classes", "thresholds": {"wished_sensitivity": 0.9}},
            "'thresholds.wished_sensitivity' is of findings",
        ),
    ],
    ids=str,
)
def test_what_has_no_meaning_for_findings_is_refused(
    changes: dict[str, object], words: str
) -> None:
    assert find_parts(settings()).are_findings
    with pytest.raises(TrainingError) as error:
        find_parts(settings(**changes))
    assert words in str(error.value)


def test_labels_that_cannot_be_findings_are_named_by_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text("kind: findings\nlabels: [{name: clear, negative: true}, {name: nodule}]\n")
    with pytest.raises(TrainingError, match=r"'kind' is 'findings': 'clear' is a finding and"):
        read_settings_as(LabelSettings, file)
    file.write_text("kind: findings\nlabels: [normal, nodule]\n")
    labels = read_settings_as(LabelSettings, file).label_set
    assert (labels.are_findings, labels.negative, labels.assumption) == (True, "", "")


def test_settings_of_findings_are_read_as_they_were_written_and_those_of_classes_lack_them(
    tmp_path: Path,
) -> None:
    wanted = settings(thresholds={"wished_sensitivity": 0.9})
    (tmp_path / "s.yaml").write_text(settings_as_yaml(wanted))
    assert read_settings_as(RunSettings, tmp_path / "s.yaml") == wanted
    of_classes = settings_as_yaml(settings(kind="classes"))
    assert "kind" not in of_classes
    assert "thresholds" not in of_classes
    names = [line.split(":")[0] for line in of_classes.splitlines() if line[0].isalpha()]
    assert names == [
        "labels", "classes", "network", "recipe", "data", "augmentation", "training", "abstention",
        "explanation", "tracking",
    ]  # fmt: skip


def threshold(value: float) -> FindingThreshold:
    return FindingThreshold(
        threshold=value, rule="r", sensitivity=1, specificity=1, num_present=2, num_absent=3
    )


def test_a_card_of_findings_is_read_as_it_was_written(tmp_path: Path) -> None:
    labels = ("a", "b")
    card = tiny_card(labels=labels, findings=(threshold(0.2), threshold(0.7)))
    card.write(tmp_path)
    again = Card.read(tmp_path)
    assert again == card
    assert again.thresholds == {"a": 0.2, "b": 0.7}
    assert again.label_set.are_findings
    with pytest.raises(ValueError, match="there must be one per label"):
        tiny_card(labels=labels, findings=(threshold(0.2),))


def test_cards_and_results_of_classes_have_the_fields_that_they_had(tmp_path: Path) -> None:
    tiny_card().write(tmp_path)
    assert list(json.loads((tmp_path / "card.json").read_text())) == [
        "schema_version", "name", "network", "network_settings", "labels", "classes", "trained_on",
        "results", "versions", "licence", "notice", "weights_sha256", "temperature", "version",
        "recipe", "explanation", "abstention", "familiarity",
    ]  # fmt: skip
    assert not Card.read(tmp_path).label_set.are_findings
    document = json.loads(result_document(make_analysis()).model_dump_json())
    assert document["schema_version"] == "2.3"
    assert "findings" not in document
    assert list(document)[-1] == "classes"


def test_a_classifier_of_classes_is_not_asked_about_findings(tmp_path: Path) -> None:
    from chestct.classifier import Classifier
    from chestct.preprocess.recipes import recipe_from_dict

    card = tiny_card()
    classifier = Classifier(tmp_path, card, recipe_from_dict(card.recipe), "")
    classifier.require_finding(None)
    with pytest.raises(ClassifierError, match="tells one class per scan"):
        classifier.require_finding("nodule")

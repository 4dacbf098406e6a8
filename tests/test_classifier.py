"""Classifier folders: what is written comes back, and whatever is wrong in one is named."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_classifiers import (
    drawn_network,
    saved_classifier,
    tiny_card,
    tiny_recipe,
    tiny_scan,
)

import chestct.classifier
from chestct.card import Abstention, Card
from chestct.classifier import _check_weights, load_classifier, save_classifier
from chestct.engines import make_engine
from chestct.errors import ClassifierError, WriteError
from chestct.labels import NOT_FOR_CLINICAL_USE, THREE_CLASSES
from chestct.storage import file_sha256


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    card = tiny_card()
    save_classifier(tmp_path / "tiny", drawn_network(card), card)
    return tmp_path / "tiny"


def change_card(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    fields = json.loads((folder / "card.json").read_text())
    change(fields)
    (folder / "card.json").write_text(json.dumps(fields))


def change_weights(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], *, keep_hash: bool = False
) -> None:
    tensors = load_file(folder / "weights.safetensors")
    change(tensors)
    save_file(tensors, folder / "weights.safetensors")
    if not keep_hash:
        sha256 = file_sha256(folder / "weights.safetensors")
        change_card(folder, lambda fields: fields.update(weights_sha256=sha256))


def test_a_saved_classifier_comes_back_as_it_was(tmp_path: Path) -> None:
    card = tiny_card()
    network = drawn_network(card)
    save_classifier(tmp_path / "tiny", network, card)
    loaded = load_classifier(tmp_path / "tiny")
    sha256 = file_sha256(tmp_path / "tiny" / "weights.safetensors")
    assert loaded.card == card.model_copy(update={"weights_sha256": sha256})
    assert loaded.weights_sha256 == sha256
    assert loaded.recipe == tiny_recipe()
    assert loaded.labels == THREE_CLASSES
    assert loaded.input_size == (1, 40, 36, 44)
    assert not loaded.network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor)


def test_a_folder_holds_two_files_and_no_pickle(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"card.json", "weights.safetensors"}
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".tiny")] == []


def test_the_card_says_that_it_is_not_for_clinical_use(folder: Path) -> None:
    assert NOT_FOR_CLINICAL_USE in json.loads((folder / "card.json").read_text())["notice"]


def test_probabilities_are_those_of_the_network_in_label_order(folder: Path) -> None:
    classifier = load_classifier(folder)
    scan = tiny_scan(classifier.recipe)
    found = classifier.probabilities(scan, make_engine(classifier, "torch"))
    with torch.no_grad():
        logits = classifier.network(
            torch.from_numpy(scan.input)[None], torch.from_numpy(scan.lungs)[None, None].float()
        )
    assert tuple(found) == THREE_CLASSES
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(list(found.values()), logits.softmax(1)[0].numpy(), atol=1e-5)


def test_a_scan_prepared_with_another_recipe_is_refused(folder: Path) -> None:
    classifier = load_classifier(folder)
    scan = tiny_scan(replace(classifier.recipe, mask_margin_mm=1.0))
    with pytest.raises(ClassifierError, match="its own form"):
        classifier.probabilities(scan, make_engine(classifier, "torch"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f.pop("labels"), "lacks the field 'labels'"),
        (lambda f: f.pop("results"), "lacks the field 'results'"),
        (lambda f: f.pop("schema_version"), "lacks the field 'schema_version'"),
        (lambda f: f.update(schema_version=2), "field 'schema_version' is 2"),
        (lambda f: f.update(labells=["a"]), "no field 'labells'. Did you mean 'labels'"),
        (lambda f: f.update(name=""), "field 'name'"),
        (lambda f: f.update(name=7), "field 'name' is 7"),
        (lambda f: f.update(labels=["CAP"]), "field 'labels'"),
        (lambda f: f.update(labels=["CAP", "CAP"]), "labels must differ"),
        (lambda f: f.update(labels=["CAP", "unsuitable"]), "labels must differ"),
        (lambda f: f.update(classes=[{"name": "CAP"}]), "the names of the labels, in their order"),
        (lambda f: f.update(notice="Safe."), "notice must hold"),
        (lambda f: f.update(trained_on=""), "field 'trained_on'"),
        (lambda f: f.update(weights_sha256="xyz"), "field 'weights_sha256'"),
        (lambda f: f.update(weights_sha256="0" * 64), "not the file its card describes"),
        (lambda f: f.update(weights_sha256=""), "not the file its card describes"),
        (lambda f: f.update(network="roi_resnet19"), "Did you mean 'roi_resnet18'"),
        (lambda f: f.update(network_settings={"widthh": 4}), "Did you mean 'width'"),
        (lambda f: f.update(network_settings={"width": "4"}), "'width' must be a whole number"),
        (
            lambda f: f.update(network_settings={"width": 0}),
            "'width' must be a whole .* from 1",
        ),
        (lambda f: f.update(network_settings={"width": 8}), "the card's network needs"),
        (lambda f: f["recipe"].update(lung="paper"), "field 'recipe'.*Did you mean 'lungs'"),
        (lambda f: f["recipe"].pop("input_shape"), "field 'recipe'.*input_shape"),
        (lambda f: f["recipe"].update(num_channels=3), "the card's network needs"),
        (lambda f: f.update(recipe=[]), "field 'recipe'"),
        (
            lambda f: f.update(results=[{"measure": "accuracy"}]),
            "lacks the field 'results.0.value'",
        ),
    ],
)
def test_a_wrong_card_is_refused_by_field(
    folder: Path, change: Callable[[dict[str, object]], object], named: str
) -> None:
    change_card(folder, change)
    with pytest.raises(ClassifierError, match=named):
        load_classifier(folder)


@pytest.mark.parametrize(
    ("low", "high"), [(0.9, None), (None, 0.9), (0.99, 0.9)], ids=["low", "high", "crossed"]
)
def test_an_interval_has_two_ends_in_order(
    folder: Path, low: float | None, high: float | None
) -> None:
    row = {"measure": "accuracy", "value": 0.95, "num_scans": 300, "scans": "simulated"}
    change_card(folder, lambda fields: fields.update(results=[row | {"low": low, "high": high}]))
    with pytest.raises(ClassifierError, match=r"results\.0\.high"):
        load_classifier(folder)
    change_card(folder, lambda fields: fields.update(results=[row | {"low": 0.9, "high": 0.99}]))
    assert load_classifier(folder).card.results[0].low == 0.9


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"NaN", b" " * (2**20 + 1)])
def test_a_card_that_is_no_card_is_refused(folder: Path, content: bytes) -> None:
    (folder / "card.json").write_bytes(content)
    with pytest.raises(ClassifierError, match=r"card\.json"):
        load_classifier(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("fc2.bias"), "lacks 1 tensors.*'fc2.bias'"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 tensors too many.*'extra'"),
        (lambda t: t.update({"fc2.bias": torch.zeros(4)}), r"'fc2.bias' is torch.float32 \(4,\)"),
        (lambda t: t.update({"fc2.bias": torch.zeros(3).half()}), "'fc2.bias' is F16"),
        (lambda t: t["conv1.weight"].view(-1)[5].fill_(float("nan")), "'conv1.weight'.*not finite"),
        (lambda t: t["bn1.running_var"][0].fill_(float("inf")), "'bn1.running_var'.*not finite"),
    ],
)
def test_wrong_weights_are_refused_by_tensor(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], named: str
) -> None:
    change_weights(folder, change)
    with pytest.raises(ClassifierError, match=named):
        load_classifier(folder)


def test_exchanged_weights_are_noticed(folder: Path) -> None:
    load_classifier(folder)
    change_weights(folder, lambda tensors: tensors["fc2.bias"].add_(1), keep_hash=True)
    with pytest.raises(ClassifierError, match="not the file its card describes"):
        load_classifier(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2**23) + b" " * 2**23,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 6) + b"not js",
        struct.pack("<Q", 64)
        + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,9999999999]}}'.ljust(64),
    ],
)
def test_a_file_that_is_no_weights_file_is_refused(folder: Path, content: bytes) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(content)
    change_card(folder, lambda fields: fields.update(weights_sha256=file_sha256(weights)))
    with pytest.raises(ClassifierError, match=r"weights\.safetensors"):
        load_classifier(folder)


def test_a_missing_weights_file_is_refused(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ClassifierError, match="cannot be read"):
        load_classifier(folder)


def test_a_missing_folder_and_one_without_a_card_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match="There is no folder"):
        load_classifier(tmp_path / "nowhere")
    with pytest.raises(ClassifierError, match=r"card\.json cannot be read"):
        load_classifier(tmp_path)


def test_an_installation_without_default_classifier_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chestct.classifier, "DEFAULT_FOLDER", tmp_path / "default_classifier")
    with pytest.raises(ClassifierError, match="no default classifier"):
        load_classifier()


def test_without_a_name_the_default_classifier_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chestct.classifier, "DEFAULT_FOLDER", folder)
    assert load_classifier().card.name == "tiny"


def test_saving_replaces_a_classifier(folder: Path) -> None:
    card = tiny_card(version="2")
    save_classifier(folder, drawn_network(card, seed=1), card)
    assert load_classifier(folder).card.version == "2"
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["notes.txt", "card.json.bak"])
def test_saving_never_replaces_anything_else(folder: Path, name: str) -> None:
    (folder / name).write_text("dear diary")
    with pytest.raises(WriteError, match="not just a classifier"):
        save_classifier(folder, drawn_network(tiny_card()), tiny_card())
    assert (folder / name).read_text() == "dear diary"
    assert (folder / "card.json").exists()


def test_saving_over_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("unique")
    with pytest.raises(WriteError, match="not just a classifier"):
        save_classifier(tmp_path / "thesis", drawn_network(tiny_card()), tiny_card())
    assert (tmp_path / "thesis").read_text() == "unique"


def test_saving_into_an_empty_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    assert saved_classifier(tmp_path / "new").card.name == "tiny"


def test_saving_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written"):
        save_classifier(tmp_path / "file" / "tiny", drawn_network(tiny_card()), tiny_card())


def test_a_failed_replacement_leaves_the_old_classifier(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    card = tiny_card(version="2")
    with pytest.raises(WriteError, match="no space left on device"):
        save_classifier(folder, drawn_network(card), card)
    assert load_classifier(folder).card.version == "1"


@pytest.mark.parametrize(
    "change",
    [
        {"network_settings": {"width": 8}},
        {"labels": ("COVID-19", "normal")},
        {"recipe": asdict(tiny_recipe(num_channels=3))},
        {"network": "roi_resnet50"},
    ],
)
def test_a_card_that_does_not_fit_the_network_is_not_saved(
    tmp_path: Path, change: dict[str, object]
) -> None:
    with pytest.raises(ClassifierError, match="network"):
        save_classifier(tmp_path / "tiny", drawn_network(tiny_card()), tiny_card(**change))
    assert list(tmp_path.iterdir()) == []


def test_a_network_with_nan_is_not_saved(tmp_path: Path) -> None:
    network = drawn_network(tiny_card())
    with torch.no_grad():
        network.get_parameter("fc1.bias")[0] = float("nan")
    with pytest.raises(ClassifierError, match="not finite"):
        save_classifier(tmp_path / "tiny", network, tiny_card())


def test_saving_does_not_change_the_network(tmp_path: Path) -> None:
    network = drawn_network(tiny_card())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_classifier(tmp_path / "tiny", network, tiny_card())
    assert all(torch.equal(tensor, before[k]) for k, tensor in network.state_dict().items())


def test_classifiers_that_compute_different_things_have_different_identities(
    tmp_path: Path,
) -> None:
    first = saved_classifier(tmp_path / "a")
    other_card = tiny_card(network_settings={"width": 4, "gating": "none"})
    other = saved_classifier(tmp_path / "b", other_card)
    assert first.weights_sha256 == other.weights_sha256
    assert first.identity != other.identity


def test_weights_that_were_found_to_fit_are_not_compared_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def counted(path: Path, network: torch.nn.Module) -> None:
        compared.append(path)
        _check_weights(path, network)

    monkeypatch.setattr(chestct.classifier, "_check_weights", counted)
    for _ in range(2):
        load_classifier(folder)
    assert len(compared) == 1
    change_weights(folder, lambda tensors: tensors["fc2.bias"].add_(1))
    for _ in range(2):
        load_classifier(folder)
    assert len(compared) == 2


def test_a_card_made_in_python_takes_a_recipe_as_asdict_gives_it() -> None:
    card = tiny_card()
    assert card.recipe["input_shape"] == [40, 36, 44]
    assert Card.model_validate_json(card.model_dump_json(), strict=True) == card


def test_a_card_without_a_temperature_is_read_and_an_impossible_one_is_not(folder: Path) -> None:
    change_card(folder, lambda fields: fields.pop("temperature"))
    assert load_classifier(folder).card.temperature == 1.0
    change_card(folder, lambda fields: fields.update(temperature=0))
    with pytest.raises(ClassifierError, match="field 'temperature' is 0"):
        load_classifier(folder)


def test_the_temperature_divides_the_logits_and_changes_no_decision(tmp_path: Path) -> None:
    plain = saved_classifier(tmp_path / "plain")
    warm = saved_classifier(tmp_path / "warm", tiny_card(temperature=2.5))
    logits = np.array([0.5, -1.0, 2.0], dtype=np.float32)
    shares = np.array([*plain.probabilities_of(logits).values()])
    softer = np.array([*warm.probabilities_of(logits).values()])
    np.testing.assert_allclose(np.log(softer[2] / softer[1]), np.log(shares[2] / shares[1]) / 2.5)
    assert softer.argmax() == shares.argmax() == 2
    assert softer.sum() == pytest.approx(1)
    assert warm.weights_sha256 == plain.weights_sha256


def test_a_card_without_an_abstention_threshold_is_read_and_an_impossible_one_is_not(
    folder: Path,
) -> None:
    change_card(folder, lambda fields: fields.pop("abstention"))
    assert load_classifier(folder).card.abstention is None
    promised = {
        "abstain_below": 0.8,
        "wished_error": 0.05,
        "level": 0.95,
        "coverage": 0.7,
        "risk": 0.0,
        "risk_bound": 0.04,
        "num_scans": 90,
    }
    change_card(folder, lambda fields: fields.update(abstention=promised))
    assert load_classifier(folder).card.abstention == Abstention(**promised)
    change_card(folder, lambda fields: fields["abstention"].update(abstain_below=1.2))
    with pytest.raises(ClassifierError, match=r"field 'abstention\.abstain_below' is 1\.2"):
        load_classifier(folder)

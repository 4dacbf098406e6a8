"""An exported classifier says what the classifier says, without chestct."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import asdict, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from phantoms import chest
from tiny_classifiers import random_input, saved_classifier, tiny_card, tiny_recipe

from chestct.card import FindingThreshold
from chestct.classifier import Classifier, load_classifier
from chestct.cli import main
from chestct.engines import make_engine
from chestct.errors import ClassifierError, UnknownNameError, WriteError
from chestct.export.formats import SCRIPT, _config, _pooling_table, export_classifier
from chestct.extras import MissingExtraError
from chestct.networks import NETWORKS
from chestct.preprocess.prepare import prepare
from chestct.readers import read_volume
from chestct.readers.masks import read_lungs
from chestct.writers.nifti import write_nifti
from chestct.writers.preview import write_prepared

SMALL: dict[str, tuple[dict[str, object], tuple[int, int, int]]] = {
    "roi_resnet18": ({"width": 4, "gating": "all"}, (36, 33, 40)),
    "roi_resnet50": ({"width": 2, "gating": "figure"}, (36, 33, 40)),
    "roi_resnet101": ({"width": 2, "gating": "text"}, (36, 33, 40)),
    "maseres": ({"attention": "paper", "input_shape": [22, 14, 28]}, (22, 14, 28)),
    "alexnet3d": ({"input_shape": [51, 35, 35], "dense_units": 8}, (51, 35, 35)),
    "lung_lesions": ({"head_units": 8}, (36, 33, 40)),
    "segresnet_encoder": ({"width": 2, "levels": 5, "cells": 2}, (36, 33, 40)),
    "merlin_encoder": ({"depth": 50, "width": 2, "cells": 2}, (36, 33, 40)),
    "colipri_encoder": ({"width": 12, "depth": 2, "heads": 2, "cells": 2}, (24, 16, 32)),
    "voxcnn": ({"input_shape": [100, 100, 100]}, (100, 100, 100)),
}
"""Settings and an input shape with which each network is quick to export."""

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the packages for ONNX are not installed",
)
ON_NIFTI = pytest.mark.parametrize("to", [pytest.param("onnx", marks=needs_onnx), "openvino"])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """Gated, with a recipe that the standalone script follows: margins, background, a window."""
    recipe = replace(tiny_recipe(), spacing_mm=(9.3, 8.1, 8.7), mask_margin_mm=12.0)
    card = tiny_card(recipe=asdict(recipe), temperature=1.7)
    return saved_classifier(tmp_path_factory.mktemp("classifier") / "tiny", card)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, classifier: Classifier) -> Path:
    """A scan as NIfTI, its lungs beside it, and what `chestct prepare` writes of it."""
    folder = tmp_path_factory.mktemp("patient")
    volume = chest()
    write_nifti(folder / "scan.nii.gz", volume.voxels.round().astype(np.int16), volume.grid)
    lungs = prepare(read_volume(folder / "scan.nii.gz"), classifier.recipe).scan_lungs
    write_nifti(folder / "lungs.nii.gz", lungs.voxels, lungs.grid)
    scan = read_volume(folder / "scan.nii.gz")
    given = prepare(scan, classifier.recipe, lungs=read_lungs(folder / "lungs.nii.gz", scan))
    write_prepared(given, "scan", folder / "prepared")
    return folder


def expected(classifier: Classifier, patient: Path) -> list[float]:
    scan = read_volume(patient / "scan.nii.gz")
    given = read_lungs(patient / "lungs.nii.gz", scan)
    found = prepare(scan, classifier.recipe, lungs=given)
    return list(classifier.probabilities(found, make_engine(classifier, "torch")).values())


@cache
def exported(classifier: Classifier, to: str, folder: Path) -> Path:
    return export_classifier(classifier, to, folder / to)


def run_script(folder: Path, *arguments: object) -> dict[str, float]:
    """Run the script beside an export in a process that cannot import chestct."""
    blocked = "import sys; sys.modules['chestct'] = None; import runpy; sys.argv = sys.argv[1:]; "
    program = f"{blocked}runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", program, str(folder / SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@ON_NIFTI
def test_the_script_says_of_a_scan_what_the_classifier_says(
    classifier: Classifier, patient: Path, to: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = exported(classifier, to, tmp_path_factory.getbasetemp())
    wanted = expected(classifier, patient)
    assert max(wanted) < 0.98
    found = run_script(folder, patient / "scan.nii.gz", "--lungs", patient / "lungs.nii.gz")
    assert tuple(found) == classifier.labels
    np.testing.assert_allclose(list(found.values()), wanted, atol=1e-4)
    found = run_script(folder, "--prepared", patient / "prepared")
    np.testing.assert_allclose(list(found.values()), wanted, atol=1e-4)


def test_the_script_is_short_and_knows_nothing_of_chestct() -> None:
    path = Path(__file__).resolve().parents[1] / "src" / "chestct" / "export" / SCRIPT
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert "import chestct" not in text
    assert "from chestct" not in text


def test_findings_get_a_probability_each(classifier: Classifier) -> None:
    path = Path(__file__).resolve().parents[1] / "src" / "chestct" / "export" / SCRIPT
    script = runpy.run_path(str(path))
    thresholds = tuple(
        FindingThreshold(threshold=0.4, rule="drawn", num_present=1, num_absent=1)
        for _ in classifier.labels
    )
    findings = replace(
        classifier, card=tiny_card(labels=("nodule", "effusion", "cyst"), findings=thresholds)
    )
    logits = np.array([1.5, -2.0, 0.3], dtype=np.float32)
    for each in (classifier, findings):
        found = script["_probabilities_of"](logits, _config(each, "onnx"))
        assert found == pytest.approx(each.probabilities_of(logits))
    assert sum(found.values()) != pytest.approx(1.0)


def test_every_network_has_a_small_form_here() -> None:
    assert set(SMALL) == set(NETWORKS)


@needs_onnx
@pytest.mark.parametrize("name", sorted(SMALL))
def test_onnx_runtime_gives_the_logits_of_every_network(name: str, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    settings, shape = SMALL[name]
    card = tiny_card(network=name, network_settings=settings, recipe=asdict(tiny_recipe(1, shape)))
    classifier = saved_classifier(tmp_path / "classifier", card)
    folder = export_classifier(classifier, "onnx", tmp_path / "export")
    opsets = {each.domain: each.version for each in onnx.load(folder / "model.onnx").opset_import}
    assert opsets[""] == 18
    model = onnxruntime.InferenceSession(folder / "model.onnx")
    values, lungs = random_input(5, 1, shape)
    feeds = {"scan": values[None], "lungs": lungs[None, None].astype(np.float32)}
    given = {each.name: feeds[each.name] for each in model.get_inputs()}
    logits, features = model.run(["logits", "features"], given)
    wanted = make_engine(classifier, "torch").outputs(values, lungs)
    np.testing.assert_allclose(logits[0], wanted.logits, atol=1e-4)
    largest = max(1.0, float(np.abs(wanted.features).max()))
    np.testing.assert_allclose(features[0] / largest, wanted.features / largest, atol=1e-4)


def test_a_folder_for_hugging_face_is_a_classifier_again(
    classifier: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hf"
    command = ["export", str(classifier.folder), "--to", "hf", "--out", str(folder)]
    assert main(command) == 0
    assert main(command) == 0
    again = load_classifier(folder)
    assert again.card == classifier.card
    config = json.loads((folder / "config.json").read_text())
    assert config["labels"] == list(classifier.labels)
    assert config["recipe"] == classifier.card.recipe
    page = (folder / "README.md").read_text()
    assert page.startswith("---\nlicense: apache-2.0\nlibrary_name: chestct\n")
    assert classifier.card.notice in page
    assert "mask_margin_mm" in page


class Hub(ModuleType):
    """Stands in for the hub's package: knows one classifier, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        super().__init__("huggingface_hub")
        self.folder, self.asked = folder, []  # type: ignore[var-annotated]

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        self.asked.append((repo_id, options["revision"]))
        assert "card.json" in options["allow_patterns"]
        if repo_id != "someone/lungs":
            raise OSError("404 Client Error")
        return str(self.folder)


def test_a_classifier_comes_from_the_hub_only_where_it_is_asked_for(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(classifier.folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setattr("chestct.extras.is_installed", lambda _package: True)
    load_classifier(classifier.folder)
    assert hub.asked == []
    found = load_classifier("hf:someone/lungs@v2")
    assert found.card == classifier.card
    assert hub.asked == [("someone/lungs", "v2")]
    with pytest.raises(ClassifierError, match=r"'nobody/lungs'.*404 Client Error"):
        load_classifier(Path("hf:nobody/lungs"))


def test_without_the_hub_s_package_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chestct.extras.is_installed", lambda _package: False)
    with pytest.raises(MissingExtraError, match=r"chestct\[hub\]"):
        load_classifier("hf:someone/lungs")


def test_other_formats_and_other_folders_are_refused(
    classifier: Classifier, tmp_path: Path
) -> None:
    with pytest.raises(UnknownNameError, match="Known: onnx, openvino, hf"):
        export_classifier(classifier, "tensorrt", tmp_path / "new")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WriteError, match="no earlier export"):
        export_classifier(classifier, "hf", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_recipe_that_the_script_does_not_follow_is_named(tmp_path: Path) -> None:
    card = tiny_card(recipe=asdict(replace(tiny_recipe(), salient_threshold=0.5)))
    folder = export_classifier(saved_classifier(tmp_path / "c", card), "openvino", tmp_path / "ir")
    with pytest.raises(AssertionError, match="is not followed here: use chestct prepare"):
        run_script(folder, tmp_path / "scan.nii.gz", "--lungs", tmp_path / "lungs.nii.gz")


@pytest.mark.parametrize(("size", "new_size"), [(36, 3), (33, 3), (40, 3), (3, 2), (5, 5), (2, 3)])
def test_pooling_in_onnx_is_that_of_pytorch(size: int, new_size: int) -> None:
    values = torch.rand(2, size, generator=torch.Generator().manual_seed(size))
    wanted = torch.nn.functional.adaptive_avg_pool1d(values, new_size)
    found = values.numpy() @ _pooling_table(size, new_size)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)

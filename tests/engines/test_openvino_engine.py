"""OpenVINO: converted once, cached, without PyTorch afterwards and without telemetry."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_classifiers import random_input, saved_classifier, tiny_scan

import chestct.engines.openvino_engine as module
from chestct.classifier import Classifier
from chestct.engines import make_engine
from chestct.engines.openvino_engine import CACHE_KIND, OpenVinoEngine, import_openvino
from chestct.errors import EngineError
from chestct.extras import MissingExtraError


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this module's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "chestct" / CACHE_KIND


@pytest.fixture(scope="module")
def classifier(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A classifier that is converted and in the cache."""
    classifier = saved_classifier(tmp_path_factory.mktemp("classifiers") / "tiny")
    make_engine(classifier, "openvino", precision="float32")
    assert len(list(cache.iterdir())) == 1
    return classifier


@pytest.fixture(scope="module")
def converted(classifier: Classifier, cache: Path) -> Any:
    """The classifier's converted network, so that tests of the cache need not convert again."""
    (entry,) = cache.iterdir()
    core = import_openvino().Core()
    return core.read_model((entry / "model.xml").read_bytes(), (entry / "model.bin").read_bytes())


@pytest.fixture
def conversions(converted: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with every conversion, which is only pretended."""
    seen: list[str] = []

    def pretend(model: Classifier) -> Any:
        seen.append(model.weights_sha256)
        return converted

    monkeypatch.setattr(module, "convert", pretend)
    return seen


def float32_logits(classifier: Classifier) -> np.ndarray:
    return OpenVinoEngine(classifier, precision="float32").logits(*random_input(1))


def test_a_converted_network_is_used_again(classifier: Classifier, conversions: list[str]) -> None:
    expected = make_engine(classifier, "torch").logits(*random_input(1))
    np.testing.assert_allclose(float32_logits(classifier), expected, atol=1e-4)
    assert conversions == []


@pytest.mark.parametrize("name", ["model.bin", "model.xml", "digests.json"])
def test_a_damaged_cache_is_made_again(
    classifier: Classifier, cache: Path, conversions: list[str], name: str
) -> None:
    expected = float32_logits(classifier)
    (entry,) = cache.iterdir()
    content = bytearray((entry / name).read_bytes())
    content[len(content) // 2] ^= 0x40
    (entry / name).write_bytes(content)
    np.testing.assert_array_equal(float32_logits(classifier), expected)
    np.testing.assert_array_equal(float32_logits(classifier), expected)
    assert len(conversions) == 1
    assert [path.name for path in cache.iterdir()] == [entry.name]


def test_without_a_place_for_the_cache_it_still_runs(
    classifier: Classifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    conversions: list[str],
) -> None:
    expected = float32_logits(classifier)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    np.testing.assert_allclose(float32_logits(classifier), expected, atol=1e-5)
    assert len(conversions) == 1


def test_other_weights_are_converted_anew(
    classifier: Classifier, tmp_path: Path, conversions: list[str]
) -> None:
    other = saved_classifier(tmp_path / "other", seed=7)
    for model in (other, classifier, other):
        OpenVinoEngine(model, precision="float32")
    assert conversions == [other.weights_sha256]


def test_by_default_the_precision_is_what_the_processor_computes_in(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "computes_in_bf16", lambda core, device: False)
    assert OpenVinoEngine(classifier).name == "openvino float32"
    with pytest.raises(EngineError, match="does not compute in bf16"):
        OpenVinoEngine(classifier, precision="bf16")
    monkeypatch.setattr(module, "computes_in_bf16", lambda core, device: True)
    assert OpenVinoEngine(classifier).name == "openvino bf16"


def test_a_model_that_openvino_cannot_run_is_an_error_of_ours(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: object, core: object) -> object:
        raise RuntimeError("Exception from core:\nunsupported operation")

    monkeypatch.setattr(module, "_converted_model", fail)
    with pytest.raises(EngineError, match=r"unsupported operation\. Use torch"):
        OpenVinoEngine(classifier)


def test_a_run_that_openvino_breaks_off_is_an_error_of_ours(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OpenVinoEngine(classifier, precision="float32")

    class Failing:
        inputs = (None, None)

        def __call__(self, tensors: object) -> object:
            raise RuntimeError("Exception from src/infer.cpp:12:\nnot enough memory\n")

    monkeypatch.setattr(engine, "_compiled", Failing())
    with pytest.raises(EngineError, match=r"float32: not enough memory\. Free memory"):
        classifier.probabilities(tiny_scan(classifier.recipe), engine)


def test_without_openvino_the_extra_is_named(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chestct.extras.is_installed", lambda package: False)
    with pytest.raises(MissingExtraError, match=r"chestct\[openvino\]"):
        make_engine(classifier, "openvino")


CLASSIFY = """
import sys
import numpy as np
from chestct.classifier import load_classifier
from chestct.engines import make_engine
classifier = load_classifier(sys.argv[1])
engine = make_engine(classifier, "auto", device="cpu", precision="float32")
shape = classifier.recipe.input_shape
logits = engine.logits(np.ones((1, *shape), np.float32), np.ones(shape, bool))
names = ("torch", "openvino_telemetry.main")
print(engine.name, logits.size, *(name in sys.modules for name in names))
"""


def test_a_converted_network_runs_without_torch_and_without_telemetry(
    classifier: Classifier, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home)}

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", CLASSIFY, str(classifier.folder)],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        return done.stdout.strip()

    assert run() == "openvino float32 3 False False"
    # OpenVINO's telemetry keeps its consent and client number below the home folder.
    assert list(home.iterdir()) == []

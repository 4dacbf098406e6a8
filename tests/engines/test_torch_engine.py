"""PyTorch: precision, device, and a network of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_classifiers import random_input, saved_classifier, tiny_scan

from chestct.classifier import Classifier
from chestct.engines import make_engine
from chestct.engines.torch_engine import TorchEngine
from chestct.errors import EngineError


@pytest.fixture
def classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Classifier:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return saved_classifier(tmp_path / "tiny")


def test_on_a_cpu_the_default_is_the_reference(classifier: Classifier) -> None:
    assert make_engine(classifier, "torch").name == "torch float32"


def test_bf16_really_is_another_precision(classifier: Classifier) -> None:
    values, lungs = random_input(1)
    exact = TorchEngine(classifier).logits(values, lungs)
    rounded = TorchEngine(classifier, precision="bf16").logits(values, lungs)
    assert 0 < np.abs(exact - rounded).max() < 0.05


def test_an_engine_does_not_touch_the_classifiers_own_network(classifier: Classifier) -> None:
    own = classifier.network.get_parameter("conv1.weight")
    pointer, strides = own.data_ptr(), own.stride()
    TorchEngine(classifier, precision="bf16").logits(*random_input(1))
    assert (own.data_ptr(), own.stride(), own.dtype) == (pointer, strides, torch.float32)


def test_no_gradients_are_kept(classifier: Classifier) -> None:
    engine = make_engine(classifier, "torch")
    with torch.enable_grad():
        engine.logits(*random_input(1))
    assert all(p.grad is None for p in classifier.network.parameters())


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("CUDA out of memory. Tried 2 GiB.\nSee the manual", r"float32: CUDA out .* 2 GiB\. Free"),
        ("", "float32: RuntimeError. Free memory"),
    ],
)
def test_what_pytorch_cannot_do_is_an_error_of_ours(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, message: str, words: str
) -> None:
    engine = TorchEngine(classifier)

    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError(message)

    monkeypatch.setattr(engine, "_network", fail)
    with pytest.raises(EngineError, match=words):
        classifier.probabilities(tiny_scan(classifier.recipe), engine)


def test_a_network_that_does_not_fit_on_the_device_is_an_error_of_ours(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> torch.nn.Module:
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    with pytest.raises(EngineError, match="CUDA out of memory"):
        TorchEngine(classifier)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_probabilities(classifier: Classifier) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    values, lungs = random_input(1)
    expected = make_engine(classifier, "torch").logits(values, lungs)
    exact = make_engine(classifier, "torch", precision="float32", device="cuda")
    np.testing.assert_allclose(exact.logits(values, lungs), expected, atol=1e-3)
    assert make_engine(classifier).name == "torch bf16 cuda"

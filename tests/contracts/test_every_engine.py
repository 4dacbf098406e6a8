"""What every engine of the table must do, whatever it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tiny_classifiers import random_input, saved_classifier, tiny_scan

from chestct.classifier import Classifier
from chestct.engines import (
    ENGINES,
    PRECISIONS,
    Engine,
    check_input,
    checked_outputs,
    make_engine,
)
from chestct.engines.openvino_engine import computes_in_bf16, import_openvino
from chestct.errors import EngineError, UnknownNameError

TOLERANCES = {"float32": 1e-4, "bf16": 0.01}
ENGINE_NAMES = sorted(ENGINES)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    """A small classifier, and a cache of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield saved_classifier(tmp_path_factory.mktemp("classifiers") / "tiny")


def make(classifier: Classifier, name: str, precision: str | None) -> Engine:
    lacks_bf16 = not computes_in_bf16(import_openvino().Core(), "CPU")
    if name == "openvino" and precision == "bf16" and lacks_bf16:
        pytest.skip("this processor does not compute in bf16")
    return make_engine(classifier, name, precision=precision)


def test_there_is_a_tolerance_for_every_precision() -> None:
    assert set(TOLERANCES) == set(PRECISIONS)


@pytest.mark.parametrize("name", ENGINE_NAMES)
@pytest.mark.parametrize("precision", sorted(PRECISIONS))
def test_probabilities_are_those_of_torch_float32(
    classifier: Classifier, name: str, precision: str
) -> None:
    reference, engine = make_engine(classifier, "torch"), make(classifier, name, precision)
    spread = []
    for seed in range(4):
        scan = tiny_scan(classifier.recipe, seed)
        found = list(classifier.probabilities(scan, engine).values())
        expected = list(classifier.probabilities(scan, reference).values())
        np.testing.assert_allclose(found, expected, atol=TOLERANCES[precision])
        spread.append(expected)
    assert np.min(spread) > 0.02  # nothing agrees only because it is saturated
    assert np.max(spread) < 0.98


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_the_same_scan_gives_the_same_logits_to_the_last_bit(
    classifier: Classifier, name: str
) -> None:
    engine = make(classifier, name, None)
    values, lungs = random_input(1)
    first = engine.logits(values, lungs)
    engine.logits(*random_input(2))
    np.testing.assert_array_equal(engine.logits(values, lungs), first)


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_the_lungs_reach_the_network(classifier: Classifier, name: str) -> None:
    engine = make(classifier, name, "float32")
    values, lungs = random_input(1)
    shifted = np.roll(lungs, 8, axis=0)
    assert np.abs(engine.logits(values, lungs) - engine.logits(values, shifted)).max() > 1e-3


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_inputs_are_neither_changed_nor_needed_contiguous(
    classifier: Classifier, name: str
) -> None:
    engine = make(classifier, name, "float32")
    values, lungs = random_input(1)
    kept = values.copy(), lungs.copy()
    first = engine.logits(values, lungs)
    turned = np.asfortranarray(values), np.asfortranarray(lungs)
    np.testing.assert_array_equal(engine.logits(*turned), first)
    np.testing.assert_array_equal(values, kept[0])
    np.testing.assert_array_equal(lungs, kept[1])


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_logits_are_float32_and_the_engine_names_itself(classifier: Classifier, name: str) -> None:
    engine = make(classifier, name, "float32")
    logits = engine.logits(*random_input(1))
    assert logits.dtype == np.float32
    assert logits.shape == (3,)
    assert engine.name == f"{name} float32"


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_an_input_of_another_size_is_refused(classifier: Classifier, name: str) -> None:
    engine = make(classifier, name, "float32")
    values, lungs = random_input(1)
    with pytest.raises(EngineError, match=r"\(1, 40, 36, 44\)"):
        engine.logits(values[:, 1:], lungs[1:])


def test_lungs_on_another_grid_than_the_input_are_refused() -> None:
    with pytest.raises(EngineError, match="recipe"):
        check_input(np.zeros((1, 4, 4, 4)), np.zeros((4, 4, 5)), (1, 4, 4, 4))


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_an_input_that_is_not_a_number_is_refused(classifier: Classifier, name: str) -> None:
    engine = make(classifier, name, "float32")
    values, lungs = random_input(1)
    values[0, 20, 18, 22] = np.nan
    with pytest.raises(EngineError, match="not finite"):
        engine.logits(values, lungs)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(EngineError, match="openvino bf16"):
        checked_outputs(np.array([[0.5, np.inf, 0.0]]), np.zeros((1, 2)), "openvino bf16")


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_a_device_that_is_not_there_is_refused(classifier: Classifier, name: str) -> None:
    device = {"torch": "cuda:63", "openvino": "NPU"}[name]
    with pytest.raises(EngineError, match=device):
        make_engine(classifier, name, device=device)


def test_unknown_engines_and_precisions_are_refused(classifier: Classifier) -> None:
    with pytest.raises(UnknownNameError, match="'torch'"):
        make_engine(classifier, "touch")
    with pytest.raises(UnknownNameError, match="'bf16'"):
        make_engine(classifier, "torch", precision="bf15")

"""How far a scan lies from those a classifier learned from: kept with it, told with each answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_classifiers import drawn_network, tiny_card, tiny_scan

from chestct.classifier import Classifier, load_classifier, save_classifier
from chestct.engines import make_engine
from chestct.errors import ClassifierError
from chestct.familiarity import (
    FAMILIARITY_FILE,
    KEPT_SHARE,
    METHODS,
    Familiarity,
    fit_familiarity,
    separation,
    threshold_of,
)
from chestct.pipeline import _unlikeness_of
from chestct.result import UNLIKE

NUM_FEATURES = 24


def _drawn(seed: int, num: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of two classes that lie in a plane, and `shift` off that plane."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, num)
    directions = np.random.default_rng(0).normal(size=(2, NUM_FEATURES))
    features = rng.normal(size=(num, 2)) @ directions + 3.0 * classes[:, None]
    off = np.random.default_rng(1).normal(size=NUM_FEATURES)
    return features + 0.1 * rng.normal(size=features.shape) + shift * off, classes


def _fitted(method: str) -> Familiarity:
    found = fit_familiarity(*_drawn(2, 200), _drawn(3, 99)[0], method)
    assert found is not None
    return found


@pytest.mark.parametrize("method", METHODS)
def test_scans_off_the_plane_of_training_are_further_than_any_others(method: str) -> None:
    known = _fitted(method)
    near, far = known.distances(_drawn(4, 100)[0]), known.distances(_drawn(5, 50, 4.0)[0])
    assert separation(near, far) > 0.95
    assert (near <= known.threshold).mean() > 0.85
    assert known.percentile(float(far.max())) == 100.0


def test_a_direction_in_which_training_scans_hardly_differ_counts_most() -> None:
    known = _fitted("mahalanobis")
    centre = known.arrays["mean"][0].astype(np.float64)
    along, off = (np.random.default_rng(seed).normal(size=NUM_FEATURES) for seed in (0, 1))
    assert known.distance(centre + off) > 3 * known.distance(centre + along)


@pytest.mark.parametrize(("num", "expected"), [(99, 95), (199, 190), (10, 10), (2, 2)])
def test_the_threshold_is_a_rank_of_conformal_prediction(num: int, expected: int) -> None:
    assert threshold_of(np.arange(1.0, num + 1)) == expected


def test_too_few_scans_or_no_features_give_no_measure() -> None:
    features, classes = _drawn(0, 9)
    assert fit_familiarity(features[:1], classes[:1], features) is None
    assert fit_familiarity(features[:, :0], classes, features[:, :0]) is None
    assert fit_familiarity(features[:4], classes[:4], features) is not None


def test_ties_count_half_in_the_separation() -> None:
    assert separation(np.array([1.0, 2.0]), np.array([2.0])) == 0.75


@pytest.fixture
def knowing(tmp_path: Path) -> Classifier:
    """A classifier that learned from drawn scans of drawn values, and is tested on such."""
    card = tiny_card()
    network = drawn_network(card)
    save_classifier(tmp_path / "plain", network, card)
    plain = load_classifier(tmp_path / "plain")
    engine = make_engine(plain, "torch")
    scans = [tiny_scan(plain.recipe, seed) for seed in range(16)]
    features = np.stack([engine.outputs(s.input, s.lungs).features for s in scans])
    known = fit_familiarity(features[:8], np.arange(8) % 3, features[8:])
    save_classifier(tmp_path / "knowing", network, card, known)
    return load_classifier(tmp_path / "knowing")


def test_a_classifier_keeps_its_measure_and_says_how_far_a_scan_is(knowing: Classifier) -> None:
    engine = make_engine(knowing, "torch")
    scan = tiny_scan(knowing.recipe, 3)
    answer = knowing.answer_of(scan, engine)
    assert answer.probabilities == knowing.probabilities(scan, engine)
    assert answer.distance is not None
    kept = knowing.card.familiarity
    assert kept is not None
    assert (kept.kept_share, kept.num_scans) == (KEPT_SHARE, 8)
    assert _unlikeness_of(knowing.card, answer) == ()
    without_lungs = replace(scan, lungs=np.zeros_like(scan.lungs))
    strange = knowing.answer_of(without_lungs, engine)
    assert strange.percentile == 100.0
    (said,) = _unlikeness_of(knowing.card, strange)
    assert said.startswith(UNLIKE.capitalize())
    assert f"{kept.threshold:.2f}" in said


def test_both_engines_give_the_same_distance(knowing: Classifier) -> None:
    pytest.importorskip("openvino")
    scan = tiny_scan(knowing.recipe, 3)
    first = knowing.answer_of(scan, make_engine(knowing, "torch")).distance
    second = knowing.answer_of(scan, make_engine(knowing, "openvino", precision="float32")).distance
    assert second == pytest.approx(first, rel=0.01)


def test_a_folder_without_it_loads_and_never_calls_a_scan_unlike(knowing: Classifier) -> None:
    card_file = knowing.folder / "card.json"
    fields = json.loads(card_file.read_text())
    del fields["familiarity"]
    card_file.write_text(json.dumps(fields))
    old = load_classifier(knowing.folder)
    answer = old.answer_of(tiny_scan(old.recipe), make_engine(old, "torch"))
    assert (answer.distance, answer.percentile) == (None, None)
    assert _unlikeness_of(old.card, answer) == ()


def test_a_damaged_or_exchanged_file_is_refused(knowing: Classifier) -> None:
    path = knowing.folder / FAMILIARITY_FILE
    arrays = load_file(path)
    save_file({**arrays, "watched": arrays["watched"] + 1}, path)
    with pytest.raises(ClassifierError, match="not the file its card describes"):
        load_classifier(knowing.folder)
    save_file({**arrays, "scale": np.full_like(arrays["scale"], np.nan)}, path)
    with pytest.raises(ClassifierError, match="not finite"):
        load_classifier(knowing.folder)
    save_file({name: array for name, array in arrays.items() if name != "axes"}, path)
    with pytest.raises(ClassifierError, match="lacks 'axes'"):
        load_classifier(knowing.folder)
    save_file({**arrays, "watched": arrays["watched"][:0]}, path)
    with pytest.raises(ClassifierError, match="no validation distances"):
        load_classifier(knowing.folder)
    path.write_bytes(b"\x00")
    with pytest.raises(ClassifierError, match="cannot be read"):
        load_classifier(knowing.folder)


def test_features_of_another_length_are_refused() -> None:
    with pytest.raises(ClassifierError, match="24 features and the network gives 23"):
        _fitted("neighbours").distance(np.zeros(NUM_FEATURES - 1))

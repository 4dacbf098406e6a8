"""The classifier that is shipped: what its card promises, held against its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from chestct.classifier import DEFAULT_FOLDER, load_classifier
from chestct.engines import make_engine
from chestct.explain.mass import grown_by_a_cell, share_inside
from chestct.explain.run import explain
from chestct.labels import THREE_CLASSES
from chestct.preprocess.prepare import prepare
from chestct.readers import read_volume
from chestct.weights import WEIGHTS_FILE

MOST_BYTES = 10_000_000


def test_the_shipped_classifier_is_sound_and_small() -> None:
    classifier = load_classifier()
    assert classifier.labels == THREE_CLASSES
    assert (DEFAULT_FOLDER / WEIGHTS_FILE).stat().st_size < MOST_BYTES
    assert sum(p.numel() for p in classifier.network.parameters()) > 1_000_000


def test_its_card_says_that_the_disease_was_simulated() -> None:
    card = load_classifier().card
    assert card.trained_on.startswith("SIMULATED DISEASE")
    accuracy = next(result for result in card.results if result.measure == "accuracy")
    assert accuracy.num_scans == 300
    assert accuracy.low is not None
    assert accuracy.low < accuracy.value
    assert "simulated" in accuracy.scans


@pytest.mark.parametrize("name", ["P001", "normal001"])
def test_on_real_scans_its_answers_are_those_of_its_card_and_its_maps_lie_at_the_lungs(
    data_folder: Path, name: str
) -> None:
    classifier = load_classifier()
    prepared = prepare(read_volume(data_folder / "covid_ct_md" / name), classifier.recipe)
    shares = classifier.probabilities(prepared, make_engine(classifier, "torch"))
    (reported,) = [r for r in classifier.card.results if r.scans.startswith(name)]
    label = reported.measure.removeprefix("probability of ")
    assert shares[label] == pytest.approx(reported.value, abs=0.01)
    for method in ("gradcam++", "layercam", "gradcam"):
        made = explain(classifier, prepared, method=method, layer="layer2")
        reach = grown_by_a_cell(prepared.lungs, made.cell, cells=1.5)
        assert reach.mean() < 0.9
        assert share_inside(made.heat, reach) >= 0.99

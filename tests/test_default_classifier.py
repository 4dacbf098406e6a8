"""The classifier that is shipped: what its card promises, held against its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from explained import grown_by_a_cell, share_inside

from chestct.classifier import DEFAULT_FOLDER, WEIGHTS_FILE, load_classifier
from chestct.engines import make_engine
from chestct.explain.run import explain
from chestct.familiarity import FAMILIARITY_FILE
from chestct.labels import THREE_CLASSES
from chestct.preprocess.prepare import prepare
from chestct.readers import read_volume

MOST_BYTES = 10_000_000
SCANS = {"P001": "covid_ct_md/P001", "id001": "real_scans/id001_ct.nii.gz"}


def test_the_shipped_classifier_is_sound_and_small() -> None:
    classifier = load_classifier()
    assert classifier.labels == THREE_CLASSES
    size = sum((DEFAULT_FOLDER / name).stat().st_size for name in (WEIGHTS_FILE, FAMILIARITY_FILE))
    assert size < MOST_BYTES
    assert sum(p.numel() for p in classifier.network.parameters()) > 1_000


def test_its_card_says_that_the_disease_was_simulated_and_where_it_was_measured() -> None:
    card = load_classifier().card
    assert card.trained_on.startswith("SIMULATED DISEASE")
    assert "When in doubt it says normal" in card.trained_on
    simulated, left_out = [result for result in card.results if result.measure == "accuracy"]
    assert "simulated chests" in simulated.scans
    assert "left out" in left_out.scans
    for accuracy in (simulated, left_out):
        assert accuracy.low is not None
        assert accuracy.low < accuracy.value


def test_its_card_counts_false_alarms_on_real_scans_that_were_left_out() -> None:
    results = load_classifier().card.results
    (called,) = [result for result in results if result.measure == "called ill"]
    (certain,) = [result for result in results if result.measure == "called ill and certain"]
    assert called.num_scans == certain.num_scans >= 6
    assert certain.value <= called.value


def test_it_knows_what_is_unlike_the_scans_it_learned_from() -> None:
    classifier = load_classifier()
    assert classifier.card.familiarity is not None
    assert classifier.familiarity is not None
    assert classifier.card.familiarity.num_scans == len(classifier.familiarity.watched)


@pytest.mark.parametrize("name", SCANS)
def test_on_real_scans_its_answers_are_those_of_its_card_and_its_maps_lie_in_the_lungs(
    data_folder: Path, name: str
) -> None:
    classifier = load_classifier()
    prepared = prepare(read_volume(data_folder / SCANS[name]), classifier.recipe)
    shares = classifier.probabilities(prepared, make_engine(classifier, "torch"))
    (reported,) = [r for r in classifier.card.results if r.scans.startswith(f"{name},")]
    label = reported.measure.removeprefix("probability of ")
    assert shares[label] == pytest.approx(reported.value, abs=0.01)
    for method in ("gradcam++", "layercam", "gradcam"):
        made = explain(classifier, prepared, method=method, layer="lesions", label="COVID-19")
        reach = grown_by_a_cell(prepared.lungs, made.cell, cells=1.5)
        assert reach.mean() < 0.9
        assert share_inside(made.heat, reach) >= 0.99

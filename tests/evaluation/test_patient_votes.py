from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chestct.errors import UnknownNameError
from chestct.evaluation.intervals import Bootstrap
from chestct.evaluation.predictions import (
    VOTES,
    Predictions,
    PredictionsError,
    VoteSettings,
    assumption,
    fit_votes,
    one_per_patient,
    vote,
)
from chestct.evaluation.report import EvaluationSettings, write_evaluation
from chestct.labels import THREE_CLASSES, TWO_CLASSES

ILL = {"a": [0.9, 0.2, 0.1], "b": [0.1, 0.3], "c": [0.6]}
"""Patient to the probability of COVID-19 in each slice."""
TRUTH = {"a": 0, "b": 1, "c": 0}


def slices_of(
    ill: dict[str, list[float]], truth: dict[str, int], sites: dict[str, str] | None = None
) -> Predictions:
    rows = [(patient, share) for patient, shares in ill.items() for share in shares]
    return Predictions(
        scans=tuple(f"{number}.png" for number in range(len(rows))),
        patients=tuple(patient for patient, _ in rows),
        truth=np.array([truth[patient] for patient, _ in rows]),
        probabilities=np.array([[share, 1 - share] for _, share in rows]),
        labels=TWO_CLASSES,
        sites=None if sites is None else tuple(sites[patient] for patient, _ in rows),
    )


SLICES = slices_of(ILL, TRUTH)


def ill(method: str, settings: VoteSettings | None = None) -> list[float]:
    return vote(SLICES, method, settings).probabilities[:, 0].tolist()


def test_mean_and_max_are_what_they_are_called() -> None:
    assert ill("mean") == pytest.approx([0.4, 0.2, 0.6])
    assert ill("max") == pytest.approx([0.9, 0.3, 0.6])


def test_the_share_is_stretched_so_that_its_cut_lies_at_one_half() -> None:
    third = VoteSettings(slice_threshold=0.5, share_cut=1 / 3)
    assert ill("share", third)[0] == pytest.approx(0.5)
    half = VoteSettings(slice_threshold=0.5, share_cut=0.5)
    assert ill("share", half) == pytest.approx([1 / 3, 0.001, 0.999])
    low = VoteSettings(slice_threshold=0.15, share_cut=0.5)
    assert ill("share", low) == pytest.approx([2 / 3, 0.5, 0.999])


def test_attention_lies_between_mean_and_max_and_reaches_both() -> None:
    assert ill("attention", VoteSettings(sharpness=0)) == pytest.approx(ill("mean"))
    assert ill("attention", VoteSettings(sharpness=1e4)) == pytest.approx(ill("max"))
    between = ill("attention", VoteSettings(sharpness=5))
    assert all(
        low <= value <= high + 1e-12
        for low, value, high in zip(ill("mean"), between, ill("max"), strict=True)
    )
    weights = np.exp(5 * np.array(ILL["a"]))
    assert between[0] == pytest.approx(float(weights @ ILL["a"] / weights.sum()))


def test_votes_are_one_row_per_patient_with_the_patient_as_scan() -> None:
    sites = {"a": "east", "b": "west", "c": "east"}
    found = vote(slices_of(ILL, TRUTH, sites), "mean")
    assert found.scans == found.patients == ("a", "b", "c")
    assert found.truth.tolist() == [0, 1, 0]
    assert found.sites == ("east", "west", "east")


@pytest.mark.parametrize("method", VOTES)
def test_with_three_classes_every_vote_adds_up_to_one_and_keeps_the_kind(method: str) -> None:
    rng = np.random.default_rng(1)
    shares = rng.dirichlet((1, 1, 1), size=40)
    shares[:10] = (0.8, 0.15, 0.05)
    found = vote(
        Predictions(
            scans=tuple(map(str, range(40))),
            patients=("a",) * 10 + ("b",) * 15 + ("c",) * 15,
            truth=np.array([0] * 10 + [1] * 15 + [2] * 15),
            probabilities=shares,
            labels=THREE_CLASSES,
        ),
        method,
    )
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    assert found.decisions[0] == 0


def test_without_a_negative_class_the_last_counts_as_such_and_that_is_said() -> None:
    labels = ("clear", "emphysema")
    slices = replace(slices_of(ILL, TRUTH), labels=labels)
    assumed, named = vote(slices, "max"), vote(slices, "max", negative="clear")
    assert not np.allclose(assumed.probabilities, named.probabilities)
    np.testing.assert_allclose(
        vote(slices, "max", negative="emphysema").probabilities, assumed.probabilities
    )
    assert "take the last, emphysema, for it" in assumption(labels, "")
    assert assumption(labels, "clear") == ""
    assert assumption(TWO_CLASSES, "") == ""


def test_share_without_any_slice_over_the_threshold_is_still_a_distribution() -> None:
    found = vote(slices_of({"a": [0.0, 0.0]}, {"a": 1}), "share")
    assert found.probabilities[0].tolist() == pytest.approx([0.001, 0.999])


def test_a_patients_own_class_wins_over_that_of_the_slices() -> None:
    mixed = Predictions(
        scans=("0", "1"),
        patients=("a", "a"),
        truth=np.array([0, 1]),
        probabilities=np.array([[0.9, 0.1], [0.2, 0.8]]),
        labels=TWO_CLASSES,
    )
    assert vote(mixed, "mean", patient_labels={"a": "COVID-19"}).truth.tolist() == [0]
    with pytest.raises(PredictionsError, match=r"row 1 has slices labelled .*patient_label"):
        vote(mixed, "mean")
    with pytest.raises(PredictionsError, match="'ill', none of COVID-19, normal"):
        vote(mixed, "mean", patient_labels={"a": "ill"})


def test_the_numbers_behind_votes_are_found_on_validation_slices() -> None:
    """One infected slice in ten, and healthy chests with weaker false alarms in two of ten."""
    shares = {f"ill {n}": [0.95, *[0.05] * 9] for n in range(12)}
    shares |= {f"well {n}": [0.6, 0.6, *[0.05] * 8] for n in range(12)}
    truth = {patient: int(patient.startswith("well")) for patient in shares}
    slices = slices_of(shares, truth)
    found = fit_votes(slices)
    assert found.slice_threshold > 0.6
    assert found.sharpness >= 5
    votes = {name: vote(slices, name, found) for name in VOTES}
    assert votes["share"].is_right.all()
    assert not vote(slices, "share").is_right.all()
    assert not votes["mean"].is_right.all()


def test_votes_and_a_scan_level_classifier_stand_in_one_table(tmp_path) -> None:
    scan_level = Predictions(
        scans=("scans/3", "scans/1", "scans/2"),
        patients=("c", "a", "b"),
        truth=np.array([0, 0, 1]),
        probabilities=np.array([[0.7, 0.3], [0.4, 0.6], [0.1, 0.9]]),
        labels=TWO_CLASSES,
    )
    others = {"max": vote(SLICES, "max"), "whole scans": one_per_patient(scan_level)}
    settings = EvaluationSettings(bootstrap=Bootstrap(20), formats=())
    write_evaluation(vote(SLICES, "mean"), tmp_path, settings=settings, others=others)
    table = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "whole scans" in table
    assert "max" in table


def test_a_patient_with_several_scans_cannot_stand_beside_votes() -> None:
    with pytest.raises(PredictionsError, match="several scans"):
        one_per_patient(SLICES)


def test_an_unknown_vote_and_impossible_numbers_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="mean"):
        vote(SLICES, "median")
    with pytest.raises(ValueError, match="share_cut"):
        VoteSettings(share_cut=1.0)

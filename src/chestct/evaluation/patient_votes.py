"""From the slices of a patient to the patient, in four ways.

Slice-level and scan-level classifiers can then stand in one table, with the same statistics. With
q the probability that a slice is not of the negative class (where none is named: of the last one,
which `assumption` says):

- mean: the mean of the slices' probabilities.
- max: those of the slice with the highest q. One wrong slice decides.
- share: the share of slices with q of at least a threshold. A healthy chest has such slices too, so
  a patient is called ill from a cut on, both chosen on validation patients; below and above the cut
  the share is stretched to 0 to 0.5 and 0.5 to 1.
- attention: the mean weighted by exp(sharpness x q), a softmax over the patient's slices with one
  number, chosen on validation patients; 0 is the mean, a large one the maximum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Final

import numpy as np
from jaxtyping import Float64

from chestct.card import SliceCard, VoteSettings
from chestct.evaluation.predictions import Predictions, PredictionsError
from chestct.labels import LabelSet
from chestct.lookup import look_up
from chestct.result import PatientAnswer, SliceAnswer

_THRESHOLDS: Final = (0.3, 0.5, 0.7, 0.9)
_CUTS: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
_SHARPNESSES: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
"""What `fit_votes` chooses from."""

_FLOOR: Final = 1e-3
"""No patient is certain: keeps one slice from making a log-loss infinite."""

_Shares = Float64[np.ndarray, "slice class"]
_Pooled = Float64[np.ndarray, " class"]


def vote(
    slices: Predictions,
    method: str,
    settings: VoteSettings | None = None,
    patient_labels: Mapping[str, str] | None = None,
    negative: str = "",
) -> Predictions:
    """Turn predictions of slices into predictions of patients.

    Args:
        slices: One row per slice.
        method: A name in `VOTES`.
        settings: The numbers behind the method.
        patient_labels: Patient to the class of the whole patient; without it all slices of a
            patient must have the same label.
        negative: The class that means that nothing was found; empty: what plain names say of it,
            or else the last one.

    Returns:
        One row per patient, in the order in which they first come; a row's scan is its patient.

    Raises:
        UnknownNameError: There is no such method.
        PredictionsError: A patient's class is not known.
    """
    rows = _rows_by_patient(slices.patients)
    given = (slices.labels, method, settings, negative)
    pooled = _pooled(slices.probabilities, rows, *given)
    return Predictions(
        scans=tuple(rows),
        patients=tuple(rows),
        truth=np.array([_truth(slices, *each, patient_labels) for each in rows.items()]),
        probabilities=pooled,
        labels=slices.labels,
        # Where each patient's first slice comes from.
        sites=slices.sites and tuple(slices.sites[each[0]] for each in rows.values()),
    )


def _pooled(
    shares: _Shares,
    rows: Mapping[str, list[int]],
    labels: tuple[str, ...],
    method: str,
    settings: VoteSettings | None,
    negative: str,
) -> Float64[np.ndarray, "patient class"]:
    """What the slices of each patient say of the patient.

    Raises:
        UnknownNameError: There is no such method.
    """
    pool = look_up(VOTES, method, kind="vote")
    chosen, background = settings or VoteSettings(), _background_of(labels, negative)
    pooled = [pool(shares[each], background, chosen) for each in rows.values()]
    return np.array(pooled).reshape(len(rows), len(labels))


def answers_on_patients(
    slices: Sequence[SliceAnswer], method: str, card: SliceCard
) -> list[PatientAnswer]:
    """What is said of those patients who are known and have a slice with an answer.

    The card is that of the classifier that gave the answers, with the numbers behind the method.
    One answer per patient, in the order in which they first come.

    Raises:
        UnknownNameError: There is no such method in `VOTES`.
    """
    known = [each for each in slices if each.patient and not each.failure]
    rows = _rows_by_patient([each.patient for each in known])
    shares = np.array([[*each.probabilities.values()] for each in known], dtype=np.float64)
    shares = shares.reshape(len(known), len(card.labels))
    given = (card.labels, method, card.votes, card.label_set.negative)
    pooled = _pooled(shares, rows, *given).tolist()
    failed = Counter(each.patient for each in slices if each.failure)
    return [
        PatientAnswer(patient, dict(zip(card.labels, said, strict=True)), len(own), failed[patient])
        for (patient, own), said in zip(rows.items(), pooled, strict=True)
    ]


def fit_votes(
    validation: Predictions,
    patient_labels: Mapping[str, str] | None = None,
    negative: str = "",
) -> VoteSettings:
    """Choose the numbers behind share and attention on slices of validation patients.

    Each is the one of its few candidates with the lowest log-loss over patients, the first of
    several; with so few numbers to choose from little can be learned by heart.

    Raises:
        PredictionsError: A patient's class is not known.
    """
    best = VoteSettings()
    pairs = product(_THRESHOLDS, _CUTS)
    share = [best.model_copy(update={"slice_threshold": t, "share_cut": c}) for t, c in pairs]
    best = min(share, key=lambda s: _loss(vote(validation, "share", s, patient_labels, negative)))
    attention = [best.model_copy(update={"sharpness": each}) for each in _SHARPNESSES]
    return min(
        attention,
        key=lambda s: _loss(vote(validation, "attention", s, patient_labels, negative)),
    )


def one_per_patient(scans: Predictions) -> Predictions:
    """A scan-level classifier's predictions by patient, to stand beside votes.

    Raises:
        PredictionsError: A patient has several scans.
    """
    if scans.num_patients < len(scans):
        twice = next(p for p, rows in _rows_by_patient(scans.patients).items() if len(rows) > 1)
        row = scans.patients.index(twice) + 1
        raise PredictionsError(
            f"The patient of row {row} has several scans ({scans.num_patients} patients, "
            f"{len(scans)} scans), and slices are voted on by patient. Keep one scan of each."
        )
    return replace(scans, scans=scans.patients)


def _rows_by_patient(patients: Sequence[str]) -> dict[str, list[int]]:
    """Rows of each patient, patients in the order in which they first come."""
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        rows.setdefault(patient, []).append(row)
    return rows


def assumption(labels: tuple[str, ...], negative: str) -> str:
    """What the votes take for granted where no class is the negative one; empty where one is."""
    if _negative_of(labels, negative):
        return ""
    return (
        f"None of the classes {', '.join(labels)} is named as the negative one: the votes max, "
        f"share and attention take the last, {labels[-1]}, for it. Mark one in the labels with "
        "'negative: true'."
    )


def _background_of(labels: tuple[str, ...], negative: str) -> int:
    """Index of the class that means that nothing was found: the negative one, or the last."""
    found = _negative_of(labels, negative)
    return labels.index(found) if found else len(labels) - 1


def _negative_of(labels: tuple[str, ...], negative: str) -> str:
    return negative or LabelSet.of_names(labels).negative


def _mean(shares: _Shares, background: int, settings: VoteSettings) -> _Pooled:
    return np.asarray(shares.mean(axis=0))


def _max(shares: _Shares, background: int, settings: VoteSettings) -> _Pooled:
    return np.asarray(shares[int(shares[:, background].argmin())])


def _share(shares: _Shares, background: int, settings: VoteSettings) -> _Pooled:
    illness = 1 - shares[:, background]
    counts = illness >= settings.slice_threshold
    share, cut = float(counts.mean()), settings.share_cut
    is_below = share < cut
    ill = 0.5 * share / cut if is_below else 0.5 + 0.5 * (share - cut) / (1 - cut)
    ill = min(max(ill, _FLOOR), 1 - _FLOOR)
    # Which illness it is, is said by the slices that counted.
    kinds = (shares[counts] if counts.any() else shares).mean(axis=0)
    kinds[background] = 0
    total = float(kinds.sum())
    others = len(kinds) - 1
    pooled = ill * (kinds / total if total > 0 else np.full(len(kinds), 1 / others))
    pooled[background] = 1 - ill
    return np.asarray(pooled)


def _attention(shares: _Shares, background: int, settings: VoteSettings) -> _Pooled:
    scores = settings.sharpness * (1 - shares[:, background])
    weights = np.exp(scores - scores.max())
    return np.asarray((weights / weights.sum()) @ shares)


VOTES: Final[dict[str, Callable[[_Shares, int, VoteSettings], _Pooled]]] = {
    "mean": _mean,
    "max": _max,
    "share": _share,
    "attention": _attention,
}
"""Vote name to a function of a patient's slices, the background's index and the settings."""


def _truth(
    slices: Predictions, patient: str, rows: list[int], patient_labels: Mapping[str, str] | None
) -> int:
    if patient_labels is not None and patient in patient_labels:
        label = patient_labels[patient]
        if label in slices.labels:
            return slices.labels.index(label)
        msg = f"The patient of row {rows[0] + 1} is '{label}', none of {', '.join(slices.labels)}."
        raise PredictionsError(f"{msg} Correct the column 'patient_label'.")
    found = {int(slices.truth[row]) for row in rows}
    if len(found) > 1:
        named = " and ".join(sorted(slices.labels[index] for index in found))
        raise PredictionsError(
            f"The patient of row {rows[0] + 1} has slices labelled {named}, and nothing says what "
            "the patient is. Add the column 'patient_label' with the class of the whole patient."
        )
    return found.pop()


def _loss(patients: Predictions) -> float:
    """Mean negative log-probability of the truth, with a floor."""
    of_truth = patients.probabilities[np.arange(len(patients)), patients.truth]
    return float(-np.log(np.maximum(of_truth, _FLOOR)).mean())

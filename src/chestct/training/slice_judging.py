"""What a slice network says of slices and, by votes, of their patients, written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chestct.datasets.manifest import Manifest, read_manifest, require_classes
from chestct.datasets.slice_checks import find_marks, find_small, find_unreadable_slices
from chestct.datasets.slice_store import LabelledSlices, gather_slices
from chestct.errors import TrainingError
from chestct.evaluation.comparisons import COMPARISONS, SOUND
from chestct.evaluation.patient_votes import (
    VOTES,
    VoteSettings,
    all_votes,
    one_per_patient,
    vote,
)
from chestct.evaluation.predictions import (
    Predictions,
    PredictionsError,
    align,
    read_predictions,
    write_predictions,
)
from chestct.evaluation.report import write_evaluation
from chestct.evaluation.tables import EvaluationSettings, Summary
from chestct.storage import cache_folder
from chestct.training.components import patient_labels_of
from chestct.training.data import Listener
from chestct.training.loop import evaluate
from chestct.training.results import predictions_of, undecided
from chestct.training.slice_card import SliceClassifier

SLICES_FOLDER: Final = "slices"
PATIENTS_FOLDER: Final = "patients"
MAIN_VOTE: Final = "mean"
"""The vote that others are compared with: the only one without a number to choose."""
BATCH_SIZE: Final = 32

_MOST_NAMED: Final = 3


@dataclass(frozen=True)
class Judged:
    """Slices that were judged.

    Attributes:
        name: What the classifier is called.
        slices: What it says of each.
        votes: The numbers behind the votes on patients.
        patient_labels: Patient to the class of the whole patient, or None.
    """

    name: str
    slices: Predictions
    votes: VoteSettings
    patient_labels: Mapping[str, str] | None


@dataclass(frozen=True, eq=False)
class Found:
    """What an evaluation found, on slices and on their patients by the main vote."""

    slices: Summary
    patients: Summary


def write_judged(
    judged: Judged,
    folder: Path,
    *,
    beside: Mapping[str, Predictions] | None = None,
    logs: Mapping[str, list[dict[str, Any]]] | None = None,
) -> Found:
    """Write predictions and evaluations of slices and of patients.

    Args:
        judged: What a classifier said.
        folder: Gets `predictions.csv` and `evaluation/` in each of `slices` and `patients`.
        beside: Further classifiers of the same patients by name, scan-level ones among them.
        logs: Epochs of the training, for the learning curves.

    Raises:
        PredictionsError: A patient's class is not known, or another classifier judged others.
        WriteError: The folder cannot be written.
    """
    places = {name: folder / name for name in (SLICES_FOLDER, PATIENTS_FOLDER)}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    write_predictions(judged.slices, places[SLICES_FOLDER] / "predictions.csv")
    on_slices = write_evaluation(
        judged.slices,
        places[SLICES_FOLDER] / "evaluation",
        settings=EvaluationSettings(name=f"{judged.name}, slices"),
        logs=logs,
    )
    votes = all_votes(judged.slices, judged.votes, judged.patient_labels)
    others = {f"{judged.name}, {name}": votes[name] for name in VOTES if name != MAIN_VOTE}
    for name, each in votes.items():
        write_predictions(each, places[PATIENTS_FOLDER] / f"predictions_{name}.csv")
    for name, each in (beside or {}).items():
        others[name] = align(votes[MAIN_VOTE], one_per_patient(each))
    on_patients = write_evaluation(
        votes[MAIN_VOTE],
        places[PATIENTS_FOLDER] / "evaluation",
        settings=EvaluationSettings(
            name=f"{judged.name}, {MAIN_VOTE}",
            comparisons=tuple(COMPARISONS) if beside else SOUND,
        ),
        others=others,
    )
    return Found(on_slices, on_patients)


def judge_slices(
    classifier: SliceClassifier, manifest: Manifest, listener: Listener, cache: Path | None = None
) -> Predictions:
    """Classify every slice of a manifest.

    Raises:
        TrainingError: A slice cannot be read; the message names the files.
    """
    form = classifier.card.form
    folder = cache or cache_folder() / "slices"
    store = gather_slices(
        manifest,
        form,
        folder,
        processes=listener.processes,
        progress=listener.watch("reading slices"),
    )
    facts = {row: store.facts[place] for row, place in store.places.items()}
    unreadable = find_unreadable_slices(manifest, facts)
    if unreadable:
        raise TrainingError(unreadable[0].sentence)
    for finding in (*find_marks(manifest, facts), *find_small(manifest, facts, form.size)):
        listener.note(finding.sentence)
    examples = LabelledSlices(store, manifest)
    outputs = evaluate(classifier.network, examples, batch_size=BATCH_SIZE)
    return predictions_of(outputs, manifest, classifier.card.labels, classifier.card.temperature)


def _read_patients_beside(
    files: Mapping[str, Path], classifier: SliceClassifier, manifest: Manifest
) -> dict[str, Predictions]:
    """Other classifiers' predictions by patient, refused before a slice is read where they misfit.

    Args:
        files: Name to a `predictions.csv` with one scan of each patient.
        classifier: What they will stand beside.
        manifest: The slices that it is going to judge.

    Raises:
        PredictionsError: A file cannot be read, is about other patients, labels or truths, or has a
            name that is taken; the message names it.
    """
    taken = {f"{classifier.card.name}, {each}" for each in VOTES}
    slices = undecided(manifest.rows, classifier.card.labels)
    patients = vote(slices, MAIN_VOTE, patient_labels=patient_labels_of(manifest))
    read: dict[str, Predictions] = {}
    for name, path in files.items():
        predictions = read_predictions(path)
        try:
            if name in taken:
                raise PredictionsError("Another classifier has this name: choose another.")
            read[name] = one_per_patient(predictions)
            _require_patients(read[name], manifest)
            align(patients, read[name])
        except PredictionsError as error:
            msg = f"{path.name} ('{name}') cannot stand beside {manifest.name}. {error}"
            raise PredictionsError(msg) from error
    return read


def evaluate_slices(
    classifier: SliceClassifier,
    table: Path,
    folder: Path,
    listener: Listener,
    beside: Mapping[str, Path] | None = None,
) -> Summary:
    """Judge labelled slices with a finished classifier, and their patients; write what was found.

    Args:
        classifier: What judges.
        table: Manifest of slices.
        folder: Where to write to.
        listener: Told how far things are.
        beside: Name to a `predictions.csv` of another classifier on the same patients.

    Returns:
        What was found on the patients.

    Raises:
        ChestCTError: The table, a slice or a file to stand beside is not as it should be.
    """
    manifest = read_manifest(table, classifier.card.labels)
    require_classes(manifest)
    others = _read_patients_beside(beside or {}, classifier, manifest)
    judged = Judged(
        name=classifier.card.name,
        slices=judge_slices(classifier, manifest, listener),
        votes=classifier.card.vote_settings,
        patient_labels=patient_labels_of(manifest),
    )
    return write_judged(judged, folder, beside=others).patients


def _require_patients(other: Predictions, manifest: Manifest) -> None:
    """Refuse predictions that lack patients of the slices; rows are named, as patients are not.

    Raises:
        PredictionsError: Patients are missing.
    """
    known = set(other.patients)
    rows = {row.patient: row.number for row in reversed(manifest.rows) if row.patient not in known}
    if rows:
        first = sorted(rows.values())
        more = f" and {len(first) - _MOST_NAMED} more" if len(first) > _MOST_NAMED else ""
        msg = (
            f"It has no prediction of {len(first)} of the {manifest.num_patients} patients: those "
            f"whose slices begin in row {', '.join(map(str, first[:_MOST_NAMED]))}{more}. Evaluate "
            "both on the same patients, or take the rows of these patients out."
        )
        raise PredictionsError(msg)

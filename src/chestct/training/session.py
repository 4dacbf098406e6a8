"""A training from manifest to classifier: once, or once per fold, with everything written down.

A run folder holds `run.json` (settings, scans, versions, seed, git state), `settings.yaml`,
`check.json` (leaks and confounders), and for each training `training/` (what the loop writes),
`predictions.csv`, `baseline.csv` (what age, sex and scanner alone say), `evaluation/` and
`classifier/`. Started again, finished trainings are kept, and the one that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from chestct.card import CARD_FILE
from chestct.datasets.cache import Cache
from chestct.datasets.confounders import BASELINE
from chestct.datasets.manifest import Manifest, require_classes
from chestct.datasets.manifest_csv import read_manifest
from chestct.evaluation.learning_log import read_log
from chestct.evaluation.predictions import Predictions
from chestct.evaluation.predictions_csv import read_predictions, write_predictions
from chestct.evaluation.report import write_evaluation
from chestct.evaluation.summary import EvaluationSettings, Summary, summarise
from chestct.training.cross_validation import write_folds
from chestct.training.division import Division, divide, divide_fold, with_folds
from chestct.training.files import write_text
from chestct.training.interrupts import memory_explained
from chestct.training.loop import train
from chestct.training.parts import Parts, find_parts
from chestct.training.ready import CheckedScans, Listener, check_scans, make_cache, prepare_scans
from chestct.training.record import begin_record
from chestct.training.results import baseline_beside, judge, pool, scan_key, write_classifier
from chestct.training.run import EpochLog
from chestct.training.sets import labelled_sets
from chestct.training.settings import RunSettings
from chestct.training.settings_file import settings_as_yaml

TRAINING_FOLDER: Final = "training"
CLASSIFIER_FOLDER: Final = "classifier"
EVALUATION_FOLDER: Final = "evaluation"
PREDICTIONS_FILE: Final = "predictions.csv"
BASELINE_FILE: Final = "baseline.csv"

AfterEpoch = Callable[[str, EpochLog], None]
"""Told the training's name and its epoch."""


@dataclass(frozen=True)
class Plan:
    """One call of `chestct train`.

    Attributes:
        settings: All of them.
        manifest: The CSV file of the scans.
        folder: The run folder.
        num_folds: Of a cross-validation, or None.
        listener: Who is told how far things are.
        after_epoch: Who is told of epochs.
    """

    settings: RunSettings
    manifest: Path
    folder: Path
    num_folds: int | None = None
    listener: Listener = field(default_factory=Listener)
    after_epoch: AfterEpoch = lambda _name, _entry: None


@dataclass(frozen=True, eq=False)
class Training:
    """One network to be trained, and what it is called."""

    name: str
    folder: Path
    division: Division


def run_training(plan: Plan) -> Summary:
    """Do everything, or go on where it was stopped.

    Returns:
        What was found on the test part, on the validation part where there is none, or on all
        folds pooled.

    Raises:
        ChestCTError: Settings, manifest, scans or folder are not as they should be, or the run was
            stopped; the message says what to do.
    """
    parts = find_parts(plan.settings)
    manifest = read_manifest(plan.manifest, plan.settings.labels)
    require_classes(manifest)
    manifest, trainings = divided(plan, manifest)
    cache = make_cache(plan.settings.data, parts.recipe)
    begin_record(plan.folder, plan.settings, plan.manifest, plan.num_folds)
    write_text(plan.folder / "settings.yaml", settings_as_yaml(plan.settings))
    divisions = [training.division for training in trainings]
    checked = check_scans(manifest, divisions, cache, plan.folder / "check.json", plan.listener)
    for training in trainings:
        _train_one(plan, parts, cache, checked, training)
    if plan.num_folds is None:
        return summarise(read_predictions(plan.folder / PREDICTIONS_FILE))
    return _pool(plan, trainings)


def divided(plan: Plan, manifest: Manifest) -> tuple[Manifest, list[Training]]:
    """The scans with their folds, and the trainings they are divided for.

    Raises:
        ManifestError: A patient would be on two sides, or a part would lack a class.
        TrainingError: The manifest has another number of folds.
    """
    section = plan.settings.data
    if plan.num_folds is None:
        return manifest, [Training(plan.folder.name, plan.folder, divide(manifest, section))]
    dealt = with_folds(manifest, plan.num_folds, section)
    trainings = [
        Training(f"fold {fold}", plan.folder / f"fold-{fold}", divide_fold(dealt, fold, section))
        for fold in dealt.folds
    ]
    return dealt, trainings


def is_finished(folder: Path) -> bool:
    """Whether a training wrote everything."""
    return (folder / CLASSIFIER_FOLDER / CARD_FILE).is_file()


def _train_one(
    plan: Plan, parts: Parts, cache: Cache, checked: CheckedScans, training: Training
) -> None:
    """Train, judge and keep one network; one that was finished before is left as it is."""
    if is_finished(training.folder):
        plan.listener.note(f"{training.name} was finished before.")
        return
    section = plan.settings.data
    unsuitable = prepare_scans(training.division, section, cache, plan.listener)
    _note_unsuitable(plan.listener, unsuitable)
    division = training.division.without(unsuitable)
    sets = labelled_sets(division, cache, section)
    network = parts.build_network(plan.settings.training.seed)
    with memory_explained(training.folder):
        train(
            network,
            sets,
            plan.settings.training,
            training.folder / TRAINING_FOLDER,
            augmentation=parts.augmentation,
            after_epoch=lambda entry: plan.after_epoch(training.name, entry),
        )
        judged, origin = judge(network, sets, division, parts, training.name)
    write_predictions(judged, training.folder / PREDICTIONS_FILE)
    if checked.has_baseline:
        beside = baseline_beside(judged, division, checked.facts, origin.judged_on)
        write_predictions(beside, training.folder / BASELINE_FILE)
    summary = write_evaluation(
        judged,
        training.folder / EVALUATION_FOLDER,
        settings=EvaluationSettings(name=training.name),
        others=_baseline([training]),
        logs=_logs([training]),
        excluded=_named(training.division.parts[origin.judged_on], unsuitable),
    )
    # Last, as a training that has its classifier is finished.
    write_classifier(training.folder / CLASSIFIER_FOLDER, network, parts, origin, summary)


def _named(manifest: Manifest, reasons: Mapping[int, str]) -> dict[str, str]:
    """Reasons by the scan's name instead of the row's number, of the scans of a manifest."""
    return {scan_key(r): reasons[r.number] for r in manifest.rows if r.number in reasons}


def _note_unsuitable(listener: Listener, unsuitable: Mapping[int, str]) -> None:
    if not unsuitable:
        return
    listed = "; ".join(f"row {row}: {reason}" for row, reason in sorted(unsuitable.items())[:3])
    more = f"; and {len(unsuitable) - 3} more" if len(unsuitable) > 3 else ""
    listener.note(f"Left out as unsuitable: {listed}{more}.")


def _pool(plan: Plan, trainings: list[Training]) -> Summary:
    """Evaluate all folds as one, and each beside the others."""
    found = {each.name: read_predictions(each.folder / PREDICTIONS_FILE) for each in trainings}
    write_folds(found, plan.folder)
    pooled = pool([*found.values()])
    write_predictions(pooled, plan.folder / PREDICTIONS_FILE)
    return write_evaluation(
        pooled,
        plan.folder / EVALUATION_FOLDER,
        settings=EvaluationSettings(name=f"{len(found)} folds of {plan.folder.name}"),
        others=_baseline(trainings),
        logs=_logs(trainings),
        excluded=_excluded(trainings),
    )


def _excluded(trainings: list[Training]) -> dict[str, str]:
    """Scans of all folds that got no decision."""
    texts = [(each.folder / EVALUATION_FOLDER / "metrics.json").read_text() for each in trainings]
    return {scan: why for text in texts for scan, why in json.loads(text)["excluded"].items()}


def _baseline(trainings: list[Training]) -> dict[str, Predictions]:
    """What age, sex and scanner alone say, where that was written down for all trainings."""
    files = [training.folder / BASELINE_FILE for training in trainings]
    if not all(file.is_file() for file in files):
        return {}
    return {", ".join(BASELINE): pool([read_predictions(file) for file in files])}


def _logs(trainings: list[Training]) -> dict[str, list[dict[str, Any]]]:
    return {
        training.name: read_log(training.folder / TRAINING_FOLDER / "log.jsonl")
        for training in trainings
    }

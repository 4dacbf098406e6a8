"""A training from manifest to classifier: once, or once per fold, with everything written down.

Scans and single slices take the same way, a slice being a volume of depth one.

A run folder holds `run.json` (settings, scans, versions, seed, git state), `settings.yaml`,
`check.json` (leaks and confounders), and for each training `training/` (what the loop writes),
`predictions.csv`, `baseline.csv` (what age, sex and scanner alone say), `evaluation/` and
`classifier/`. A run on slices has predictions and evaluation twice, in `slices/` and, by votes, in
`patients/`. Started again, finished trainings are kept, and the one that was stopped goes on.

Where several processes have joined, all of them train and judge; the first one alone checks and
prepares scans, writes, and talks to the listener.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final

from torch import nn

from chestct import __version__
from chestct.card import SliceCard
from chestct.classifier import save_classifier
from chestct.datasets.checks import check_slices
from chestct.datasets.manifest import (
    TEST,
    VALIDATION,
    Manifest,
    read_manifest,
    require_classes,
)
from chestct.datasets.pictures import LabelledSlices
from chestct.datasets.splits import SHARES_PATIENTS
from chestct.datasets.store import Cache
from chestct.evaluation.figures import read_log
from chestct.evaluation.metrics import OVERALL
from chestct.evaluation.patient_votes import fit_votes
from chestct.evaluation.predictions import Predictions, read_predictions, write_predictions
from chestct.evaluation.report import write_evaluation
from chestct.evaluation.tables import EvaluationSettings, Summary, summarise
from chestct.report.tables import as_csv, as_markdown_table
from chestct.storage import write_text
from chestct.training.components import Parts, SliceParts, find_parts, find_slice_parts
from chestct.training.data import (
    BASELINE_FILE,
    CLASSIFIER_FOLDER,
    EVALUATION_FOLDER,
    PREDICTIONS_FILE,
    TRAINING_FOLDER,
    CheckedScans,
    Division,
    Listener,
    Plan,
    Ready,
    SlicePlan,
    Training,
    check_scans,
    conclude_check,
    divide,
    divide_slices,
    divided,
    is_finished,
    labelled_sets,
    make_cache,
    patient_labels_of,
    prepare_scans,
    read_slices,
)
from chestct.training.distributed import current_ranks, from_main, main_first, on_main
from chestct.training.interrupts import memory_explained
from chestct.training.judging import SLICES_AT_ONCE, JudgedSlices, write_judged
from chestct.training.loop import train
from chestct.training.results import (
    BASELINE_NAME,
    Origin,
    answers,
    baseline_beside,
    begin_record,
    describe_scans,
    evaluation_settings,
    judge,
    measured,
    pool,
    program_versions,
    scan_key,
    settled,
    write_classifier,
)
from chestct.training.run import EpochLog, LabelledSets
from chestct.training.settings import SliceRunSettings, settings_as_yaml
from chestct.training.steps import remark_on_start
from chestct.training.tracking import Trackers, check_tracking

FIGURES: Final = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "log_loss")
"""What is told of each fold; intervals are those of the pooled scans, folds are too small."""


def _write_folds(folds: Mapping[str, Predictions], folder: Path) -> None:
    """Write `folds.csv` and `folds.md`: a row per fold, then mean and standard deviation.

    The standard deviation between folds is no interval: their training sets overlap.

    Raises:
        WriteError: They cannot be written.
    """
    header, *rows = _fold_rows(folds)
    write_text(folder / "folds.csv", as_csv(header, rows))
    write_text(folder / "folds.md", as_markdown_table(header, rows) + "\n")


def _fold_rows(folds: Mapping[str, Predictions]) -> list[list[str]]:
    """Header, one row per fold, mean, standard deviation; an undefined figure is an empty cell."""
    columns: dict[str, list[float]] = {name: [] for name in FIGURES}
    rows = [["fold", "scans", "patients", *FIGURES]]
    for fold, predictions in folds.items():
        cells = []
        for name in FIGURES:
            value = OVERALL[name](predictions).value
            cells.append("" if value is None else f"{value:.4f}")
            columns[name] += [] if value is None else [value]
        rows.append([fold, str(len(predictions)), str(predictions.num_patients), *cells])
    sizes = [sum(len(p) for p in folds.values()), sum(p.num_patients for p in folds.values())]
    means = [f"{mean(values):.4f}" if values else "" for values in columns.values()]
    spreads = [f"{stdev(values):.4f}" if len(values) > 1 else "" for values in columns.values()]
    rows.append(["mean", *map(str, sizes), *means])
    rows.append(["standard deviation", "", "", *spreads])
    return rows


__all__ = [
    "BASELINE_FILE",
    "CLASSIFIER_FOLDER",
    "EVALUATION_FOLDER",
    "PREDICTIONS_FILE",
    "TRAINING_FOLDER",
    "Plan",
    "is_finished",
    "run_training",
]


@dataclass(frozen=True, eq=False)
class Trained:
    """A network that was trained, and what it says.

    Attributes:
        network: With its final weights.
        division: What it was trained and judged on.
        unsuitable: Row number to the reason, of scans that were left out.
        judged: Its predictions.
        origin: Where it comes from.
        shown: Who is shown its figures; None in all but the first of several processes.
    """

    network: nn.Module
    division: Division
    unsuitable: Mapping[int, str]
    judged: Predictions
    origin: Origin
    shown: Trackers | None


def run_training(plan: Plan) -> Summary | None:
    """Do everything, or go on where it was stopped.

    Returns:
        What was found on the test part, on the validation part where there is none, or on all
        folds pooled; None in all but the first of several processes.

    Raises:
        ChestCTError: Settings, manifest, scans or folder are not as they should be, or the run was
            stopped; the message says what to do.
    """
    parts, manifest, trainings = main_first(lambda: _found(plan))
    cache = make_cache(plan.settings.data, parts.recipe)
    precision = from_main(on_main(lambda: _begin(plan, parts)))
    training_settings = plan.settings.training.model_copy(update={"precision": precision})
    settings = plan.settings.model_copy(update={"training": training_settings})
    plan = replace(plan, settings=settings)
    divisions = [training.division for training in trainings]
    report = plan.folder / "check.json"
    checked = on_main(lambda: check_scans(manifest, divisions, cache, report, plan.listener))
    for training in trainings:
        _do(plan, parts, cache, checked, training)
    return on_main(lambda: _conclude(plan, trainings))


def _found(plan: Plan) -> tuple[Parts, Manifest, list[Training]]:
    """What settings and manifest name, checked before anything is done."""
    parts = find_parts(plan.settings)
    manifest = read_manifest(plan.manifest, plan.settings.labels)
    require_classes(manifest)
    return parts, *divided(plan, manifest)


def _begin(plan: Plan, parts: Parts) -> str:
    """Write down what the run is begun with, or that it goes on; returns the precision."""
    check_tracking(plan.settings.tracking, plan.listener.note)
    if parts.beginning:
        plan.listener.note(parts.beginning)
    settings = settled(plan.settings, plan.folder, plan.device)
    begin_record(plan.folder, settings, plan.manifest, plan.num_folds, place=plan.place)
    write_text(plan.folder / "settings.yaml", settings_as_yaml(settings))
    return settings.training.precision


def _do(
    plan: Plan, parts: Parts, cache: Cache, checked: CheckedScans | None, training: Training
) -> None:
    """Train, judge and keep one network; one that was finished before is left as it is."""
    if not from_main(is_finished(training.folder)):
        trained = _train_one(plan, parts, cache, training)
        on_main(lambda: _write_one(parts, checked, training, trained))
        on_main(lambda: _note_threshold(plan.listener, trained.origin))
    elif current_ranks().is_main:
        plan.listener.note(f"{training.name} was finished before.")


def _train_one(plan: Plan, parts: Parts, cache: Cache, training: Training) -> Trained:
    """Prepare the scans, train a network and let it judge."""
    unsuitable = _prepare(plan, cache, training)
    division = training.division.without(unsuitable)
    sets = labelled_sets(division, cache, plan.settings.data)
    settings = plan.settings.training
    network = parts.build_network(settings.seed).to(plan.device)
    remark = remark_on_start(network, settings, len(sets.training_labels))
    if remark is not None:
        on_main(lambda: plan.listener.note(remark))
    folder = training.folder / TRAINING_FOLDER
    tags = {"chestct": __version__, "place": plan.place}
    shown = on_main(
        lambda: Trackers(plan.settings, training.name, folder, tags=tags, note=plan.listener.note)
    )

    def show(entry: EpochLog) -> None:
        """Tell the plan's listener and the trackers of an epoch."""
        plan.after_epoch(training.name, entry)
        if shown is not None:
            shown.update()

    with memory_explained(training.folder):
        train(network, sets, settings, folder, augmentation=parts.augmentation, after_epoch=show)
        judged, origin = judge(network, sets, division, parts, training.name, plan.settings)
    return Trained(network, division, unsuitable, judged, origin, shown)


def _prepare(plan: Plan, cache: Cache, training: Training) -> dict[int, str]:
    """Prepare a training's scans in the first process; row number to reason of those left out."""
    listener = plan.listener
    found = on_main(
        lambda: [*prepare_scans(training.division, plan.settings.data, cache, listener).items()]
    )
    unsuitable = {int(row): str(reason) for row, reason in from_main(found)}
    if current_ranks().is_main:
        _note_unsuitable(listener, unsuitable)
    return unsuitable


def _write_one(
    parts: Parts, checked: CheckedScans | None, training: Training, trained: Trained
) -> None:
    """Write what a network says of its scans, and the network as a classifier."""
    judged, division, origin = trained.judged, trained.division, trained.origin
    write_predictions(judged, training.folder / PREDICTIONS_FILE)
    if checked is not None and checked.has_baseline:
        beside = baseline_beside(judged, division, checked.facts, origin.judged_on)
        write_predictions(beside, training.folder / BASELINE_FILE)
    summary = write_evaluation(
        judged,
        training.folder / EVALUATION_FOLDER,
        settings=evaluation_settings(origin),
        others=_baseline([training]),
        logs=_logs([training]),
        excluded=_named(training.division.parts[origin.judged_on], trained.unsuitable),
    )
    if trained.shown is not None:
        trained.shown.finish(summary)
    # Last, as a training that has its classifier is finished.
    write_classifier(training.folder / CLASSIFIER_FOLDER, trained.network, parts, origin, summary)


def _conclude(plan: Plan, trainings: list[Training]) -> Summary:
    """What a single training found, or all folds as one."""
    if plan.num_folds is None:
        return summarise(read_predictions(plan.folder / PREDICTIONS_FILE))
    return _pool(plan, trainings)


def _named(manifest: Manifest, reasons: Mapping[int, str]) -> dict[str, str]:
    """Reasons by the scan's name instead of the row's number, of the scans of a manifest."""
    return {scan_key(r): reasons[r.number] for r in manifest.rows if r.number in reasons}


def _note_unsuitable(listener: Listener, unsuitable: Mapping[int, str]) -> None:
    if not unsuitable:
        return
    listed = "; ".join(f"row {row}: {reason}" for row, reason in sorted(unsuitable.items())[:3])
    more = f"; and {len(unsuitable) - 3} more" if len(unsuitable) > 3 else ""
    listener.note(f"Left out as unsuitable: {listed}{more}.")


def _note_threshold(listener: Listener, origin: Origin) -> None:
    for remark in evaluation_settings(origin).remarks:
        listener.note(remark)


def _pool(plan: Plan, trainings: list[Training]) -> Summary:
    """Evaluate all folds as one, and each beside the others."""
    found = {each.name: read_predictions(each.folder / PREDICTIONS_FILE) for each in trainings}
    _write_folds(found, plan.folder)
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
    return {BASELINE_NAME: pool([read_predictions(file) for file in files])}


def _logs(trainings: list[Training]) -> dict[str, list[dict[str, Any]]]:
    return {
        training.name: read_log(training.folder / TRAINING_FOLDER / "log.jsonl")
        for training in trainings
    }


def ready_scans(plan: Plan) -> Ready[Parts]:
    """Divide, check and prepare scans for one training, in one process.

    Raises:
        ChestCTError: Settings, manifest, scans or folder are not as they should be.
    """
    settings = settled(plan.settings, plan.folder, plan.device)
    parts = find_parts(settings)
    manifest = read_manifest(plan.manifest, settings.labels)
    require_classes(manifest)
    division = divide(manifest, settings.data)
    cache = make_cache(settings.data, parts.recipe)
    begin_record(plan.folder, settings, plan.manifest, place=plan.place)
    check_scans(manifest, [division], cache, plan.folder / "check.json", plan.listener)
    division = division.without(prepare_scans(division, settings.data, cache, plan.listener))
    sets = labelled_sets(division, cache, settings.data)
    return Ready(parts, division, sets, settings.training)


def ready_slices(plan: SlicePlan) -> Ready[SliceParts]:
    """Divide, read and check slices for one training.

    Raises:
        LeakError: A patient or a picture is on two sides, or a slice cannot be read.
        ChestCTError: Settings or manifest are not as they should be.
    """
    settings = plan.settings
    parts = find_slice_parts(settings)
    manifest = read_manifest(plan.manifest, settings.labels)
    require_classes(manifest)
    division = divide_slices(manifest, settings.data)
    begin_record(plan.folder, settings, plan.manifest, place=plan.place)
    write_text(plan.folder / "settings.yaml", settings_as_yaml(settings))
    store = read_slices(division.joined, parts.form, plan.listener, settings.data.cache)
    report = check_slices(
        division.joined,
        store.by_row,
        size=parts.form.size,
        shares_patients=_shares_patients(settings),
    )
    conclude_check(report, plan.folder / "check.json", plan.listener)
    sets = LabelledSets(
        training=LabelledSlices(store, division.training),
        validation=LabelledSlices(store, division.validation),
        num_classes=len(manifest.labels),
        test=None if division.test is None else LabelledSlices(store, division.test),
    )
    return Ready(parts, division, sets, settings.training)


LEAK_STATED: Final = (
    "slice by slice, as in the paper: patients are shared between training and test, and the "
    "figures are no estimate for new patients"
)
BY_PATIENT: Final = "by patient"
_SLICES_IN_WORDS: Final = {
    TEST: "the test part's slices",
    VALIDATION: "the validation part's slices, which the run was watched on: likely too good",
}
_SLICES_LICENCE: Final = (
    "Not stated by whoever trained it; the terms of slices and ImageNet may apply."
)


def run_slice_training(plan: SlicePlan) -> Summary:
    """Do everything, or go on where it was stopped.

    Returns:
        What was found on the patients of the test part, by the mean of their slices.

    Raises:
        ChestCTError: Settings, manifest, slices, weights or folder are not as they should be, or
            the run was stopped; the message says what to do.
    """
    ready = ready_slices(plan)
    parts, division, name = ready.parts, ready.division, plan.folder.name
    network = parts.build_network(ready.training.seed).to(plan.device)
    with memory_explained(plan.folder):
        train(
            network,
            ready.sets,
            ready.training,
            plan.folder / TRAINING_FOLDER,
            augmentation=parts.augmentation,
            after_epoch=lambda entry: plan.after_epoch(name, entry),
        )
        said = answers(network, ready.sets, division, parts.labels, batch_size=SLICES_AT_ONCE)
    patients = patient_labels_of(division.joined)
    votes = fit_votes(said.calibrated, patients)
    judged = JudgedSlices(name, said.judged, votes, patients)
    found = write_judged(judged, plan.folder, logs=_logs([Training(name, plan.folder, division)]))
    card = SliceCard(
        name=name,
        network=parts.network,
        network_settings=parts.network_settings,  # type: ignore[arg-type]
        pictures=parts.form,
        labels=parts.labels,
        backbone_weights=parts.describe_weights(),
        split=LEAK_STATED if _shares_patients(plan.settings) else BY_PATIENT,
        trained_on=describe_scans(division.training),
        results=measured(found.slices, _SLICES_IN_WORDS[said.part]),
        votes=votes,
        temperature=said.temperature,
        versions=program_versions("timm", "torchvision"),
        licence=_SLICES_LICENCE,
    )
    save_classifier(plan.folder / CLASSIFIER_FOLDER, network, card)
    return found.patients


def _shares_patients(settings: SliceRunSettings) -> bool:
    return settings.data.split == SHARES_PATIENTS

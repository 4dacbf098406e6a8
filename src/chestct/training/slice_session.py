"""A training on slices from manifest to classifier, by the loop that trains on scans.

A run folder holds `run.json`, `settings.yaml`, `check.json`, `training/` (what the loop writes),
`slices/` and `patients/` (predictions and evaluation of each) and `classifier/`. Started again,
the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Final

import torch

from chestct.datasets.checks import refuse_leaks, report_json
from chestct.datasets.manifest import TEST, VALIDATION, Manifest, read_manifest, require_classes
from chestct.datasets.slice_checks import check_slices
from chestct.datasets.slice_lists import SHARES_PATIENTS
from chestct.datasets.slice_store import LabelledSlices, SliceStore, gather_slices
from chestct.evaluation.calibration import fit_temperature
from chestct.evaluation.figures import read_log
from chestct.evaluation.patient_votes import VoteSettings, fit_votes
from chestct.evaluation.tables import Summary
from chestct.extras import is_installed
from chestct.networks.slices import SliceNetwork
from chestct.storage import cache_folder, write_text
from chestct.training.components import (
    SliceParts,
    divide_slices,
    find_slice_parts,
    patient_labels_of,
)
from chestct.training.data import Division, Listener
from chestct.training.distributed import CPU, device_in_words
from chestct.training.interrupts import memory_explained
from chestct.training.loop import evaluate, train
from chestct.training.lr_range import RangeTest, note_left_out, range_per_epoch, range_per_step
from chestct.training.results import (
    begin_record,
    describe_scans,
    measured,
    predictions_of,
    program_versions,
)
from chestct.training.run import EpochLog, LabelledSets
from chestct.training.settings import SliceRunSettings, settings_as_yaml
from chestct.training.slice_card import (
    SliceCard,
    pictures_of,
    save_slice_classifier,
    votes_of,
)
from chestct.training.slice_judging import BATCH_SIZE, Judged, write_judged

TRAINING_FOLDER: Final = "training"
CLASSIFIER_FOLDER: Final = "classifier"

LEAK_STATED: Final = (
    "slice by slice, as in the paper: patients are shared between training and test, and the "
    "figures are no estimate for new patients"
)
BY_PATIENT: Final = "by patient"

_IN_WORDS: Final = {
    TEST: "the test part's slices",
    VALIDATION: "the validation part's slices, which the run was watched on: likely too good",
}
_LICENCE: Final = "Not stated by whoever trained it; the terms of slices and ImageNet may apply."


@dataclass(frozen=True)
class SlicePlan:
    """One call of `chestct slices train`.

    Attributes:
        settings: All of them.
        manifest: The CSV file of the slices.
        folder: The run folder.
        listener: Who is told how far things are.
        after_epoch: Who is told of epochs.
        device: Where the network is trained.
    """

    settings: SliceRunSettings
    manifest: Path
    folder: Path
    listener: Listener = field(default_factory=Listener)
    after_epoch: Callable[[EpochLog], object] = lambda _entry: None
    device: torch.device = CPU


@dataclass(frozen=True, eq=False)
class _ReadySlices:
    """Slices that may be trained on."""

    parts: SliceParts
    division: Division
    sets: LabelledSets
    patient_labels: dict[str, str] | None


def run_slice_training(plan: SlicePlan) -> Summary:
    """Do everything, or go on where it was stopped.

    Returns:
        What was found on the patients of the test part, by the mean of their slices.

    Raises:
        ChestCTError: Settings, manifest, slices, weights or folder are not as they should be, or
            the run was stopped; the message says what to do.
    """
    ready = _make_ready(plan)
    network = ready.parts.build_network(plan.settings.training.seed).to(plan.device)
    place = plan.folder / TRAINING_FOLDER
    with memory_explained(plan.folder):
        train(
            network,
            ready.sets,
            plan.settings.training,
            place,
            augmentation=ready.parts.augmentation,
            after_epoch=plan.after_epoch,
        )
        judged, temperature, judged_on = _judge(plan, ready, network)
    logs = {plan.folder.name: read_log(place / "log.jsonl")}
    found = write_judged(judged, plan.folder, logs=logs)
    card = _card(plan, ready, judged.votes, temperature)
    results = measured(found.slices, _IN_WORDS[judged_on])
    card = card.model_copy(update={"results": results})
    save_slice_classifier(plan.folder / CLASSIFIER_FOLDER, network, card)
    return found.patients


def run_slice_range_test(plan: SlicePlan, *, steps: int, epochs: int | None) -> RangeTest:
    """Make the slices ready as for a training, then test learning rates.

    Args:
        plan: As for a training; schedule, rate and number of epochs are the test's own.
        steps: Of the quick form.
        epochs: Of the paper's form, 100 there; None for the quick one.

    Raises:
        ChestCTError: As for a training.
    """
    ready = _make_ready(plan)
    settings = plan.settings.training
    network = ready.parts.build_network(settings.seed).to(plan.device)
    if epochs is None:
        note_left_out(settings, plan.listener.note)
        return range_per_step(
            network, ready.sets, settings, augmentation=ready.parts.augmentation, steps=steps
        )
    return range_per_epoch(
        network,
        ready.sets,
        settings.model_copy(update={"epochs": epochs}),
        plan.folder / TRAINING_FOLDER,
        augmentation=ready.parts.augmentation,
        after_epoch=plan.after_epoch,
    )


def _make_ready(plan: SlicePlan) -> _ReadySlices:
    """Check settings and slices, and read the slices.

    Raises:
        LeakError: A patient or a picture is on two sides, or a slice cannot be read.
        ChestCTError: Settings or manifest are not as they should be.
    """
    settings = plan.settings
    parts = find_slice_parts(settings)
    manifest = read_manifest(plan.manifest, settings.labels)
    require_classes(manifest)
    division = divide_slices(manifest, settings.data)
    begin_record(plan.folder, settings, plan.manifest, place=device_in_words(plan.device))
    write_text(plan.folder / "settings.yaml", settings_as_yaml(settings))
    joined = division.joined
    cache = settings.data.cache
    store = gather_slices(
        joined,
        parts.form,
        Path(cache) if cache else cache_folder() / "slices",
        processes=plan.listener.processes,
        progress=plan.listener.watch("reading slices"),
    )
    _check(plan, joined, store, parts.form.size)
    return _ReadySlices(parts, division, _sets(division, store), patient_labels_of(manifest))


def _slice_versions() -> dict[str, str]:
    """Program to version, of all that has a part in the weights."""
    wanted = [package for package in ("timm", "torchvision") if is_installed(package)]
    return {**program_versions(), **{package: metadata.version(package) for package in wanted}}


def _check(plan: SlicePlan, joined: Manifest, store: SliceStore, size: int) -> None:
    facts = {row: store.facts[place] for row, place in store.places.items()}
    shares = _shares_patients(plan.settings)
    report = check_slices(joined, facts, size=size, shares_patients=shares)
    write_text(plan.folder / "check.json", report_json(report))
    for finding in report.warnings:
        plan.listener.note(finding.sentence)
    refuse_leaks(report)


def _sets(division: Division, store: SliceStore) -> LabelledSets:
    test = None if division.test is None else LabelledSlices(store, division.test)
    return LabelledSets(
        training=LabelledSlices(store, division.training),
        validation=LabelledSlices(store, division.validation),
        num_classes=len(division.training.labels),
        test=test,
    )


def _judge(
    plan: SlicePlan, ready: _ReadySlices, network: SliceNetwork
) -> tuple[Judged, float, str]:
    """Choose temperature and votes on the validation part, and judge the test part.

    Returns:
        What was judged, the temperature, and the part it was judged on.
    """
    division, labels = ready.division, ready.parts.labels
    watched = evaluate(network, ready.sets.validation, batch_size=BATCH_SIZE)
    on_validation = predictions_of(watched, division.validation, labels)
    temperature = fit_temperature(on_validation).temperature
    calibrated = predictions_of(watched, division.validation, labels, temperature)
    votes = fit_votes(calibrated, ready.patient_labels)
    judged = Judged(plan.folder.name, on_validation, votes, ready.patient_labels)
    if division.test is None or ready.sets.test is None:
        return judged, temperature, VALIDATION
    tested = evaluate(network, ready.sets.test, batch_size=BATCH_SIZE)
    slices = predictions_of(tested, division.test, labels, temperature)
    return replace(judged, slices=slices), temperature, TEST


def _card(
    plan: SlicePlan, ready: _ReadySlices, votes: VoteSettings, temperature: float
) -> SliceCard:
    """A trained network's card, without its results."""
    return SliceCard(
        name=plan.folder.name,
        network=ready.parts.network,
        network_settings=ready.parts.network_settings,  # type: ignore[arg-type]
        pictures=pictures_of(ready.parts.form),
        labels=ready.parts.labels,
        backbone_weights=ready.parts.describe_weights(),
        split=LEAK_STATED if _shares_patients(plan.settings) else BY_PATIENT,
        trained_on=describe_scans(ready.division.training),
        results=(),
        votes=votes_of(votes),
        temperature=temperature,
        versions=_slice_versions(),
        licence=_LICENCE,
    )


def _shares_patients(settings: SliceRunSettings) -> bool:
    return settings.data.split == SHARES_PATIENTS

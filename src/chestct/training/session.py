"""A training from manifest to classifier: once, or once per fold, with everything written down.

Scans and single slices take the same way, a slice being a volume of depth one.

A run folder holds `run.json` (settings, scans, versions, seed, git state), `settings.yaml`,
`check.json` (leaks and confounders), and for each training `training/` (what the loop writes),
`scans.csv` (which scans it learned from), `predictions.csv`, `baseline.csv` (what age, sex and
scanner alone say), `evaluation/` and `classifier/`. A run on slices has predictions and evaluation
twice, in `slices/` and, by votes, in `patients/`; where the mean of several networks answers, each
has a `member-N/` with `training/` and `scans.csv`. Started again, finished trainings are kept, and
the one that was stopped goes on.

Where several processes have joined, all of them train and judge; the first one alone checks and
prepares scans, writes, and talks to the listener. A training's figures are shown beside its own
log in TensorBoard, and in MLflow when asked.
"""

from __future__ import annotations

import json
import math
import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

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
    write_manifest,
)
from chestct.datasets.pictures import SliceStore
from chestct.datasets.scans import ScanFacts, read_options
from chestct.datasets.splits import SHARES_PATIENTS
from chestct.datasets.store import Cache
from chestct.errors import TrainingError, WriteError
from chestct.evaluation.figures import read_log
from chestct.evaluation.predictions import (
    AnyPredictions,
    Predictions,
    fit_votes,
    read_any_predictions,
    write_predictions,
)
from chestct.evaluation.report import EvaluationSettings, Summary, summarise, write_evaluation
from chestct.extras import import_extra, is_installed
from chestct.networks.slices import SliceNetwork, mean_of
from chestct.preprocess.prepare import prepare
from chestct.storage import reason_of, write_text
from chestct.training.data import (
    Division,
    Training,
    check_scans,
    conclude_check,
    divide,
    divide_slices,
    divided,
    labelled_sets,
    labelled_slices,
    make_cache,
    members_of,
    patient_labels_of,
    prepare_scans,
    read_slices,
)
from chestct.training.distributed import current_ranks, from_main, main_first, on_main
from chestct.training.judging import SLICES_AT_ONCE, JudgedSlices, write_judged
from chestct.training.loop import Outputs, evaluate, train
from chestct.training.plan import (
    BASELINE_FILE,
    CLASSIFIER_FOLDER,
    EVALUATION_FOLDER,
    PREDICTIONS_FILE,
    SCANS_FILE,
    TRAINING_FOLDER,
    Listener,
    Parts,
    Plan,
    SliceParts,
    SlicePlan,
    begin_record,
    explanation_of,
    find_parts,
    find_slice_parts,
    in_precision,
    is_finished,
    is_whole,
    program_versions,
    remark_on_given,
    settled,
)
from chestct.training.results import (
    BASELINE_NAME,
    Answers,
    Origin,
    answers,
    baseline_beside,
    describe_scans,
    evaluation_settings,
    judge,
    measured,
    pool,
    reasons_by_scan,
    write_classifier,
    write_folds,
)
from chestct.training.run import (
    DivergedError,
    EpochLog,
    LabelledSets,
    memory_explained,
    remark_on_start,
)
from chestct.training.settings import (
    RunSettings,
    SliceRunSettings,
    TrackingSection,
    TrainingSettings,
    flat_settings,
    settings_as_yaml,
)

_TAGS: Final = {
    "training_loss": "loss/training",
    "validation_loss": "loss/validation",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "learning_rate",
    "seconds": "epoch/seconds",
    "gpu_memory_gib": "epoch/gpu_memory_gib",
}
"""Field of `run.EpochLog` to what it is called in TensorBoard; MLflow has the field's own name."""

_VERSION: Final = "brain.Event:2"


class _EventFile:
    """The event file of a training, in the place of earlier sessions'; it holds every epoch."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        self._event, self._checksum = Event, masked_crc32c
        self._folder = folder
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.chestct"
        self._num_written = 0

    def update(self, epochs: Sequence[Mapping[str, Any]]) -> None:
        """Write the epochs, of all that `log.jsonl` has, that are not in it yet.

        Raises:
            WriteError: It cannot be written.
        """
        new = epochs[self._num_written :]
        try:
            if self._num_written == 0:
                self._begin()
            with self._path.open("ab") as file:
                file.write(b"".join(map(self._epoch, new)))
        except OSError as error:
            msg = f"{self._path.name} cannot be written in {self._folder.name}: {reason_of(error)}."
            raise WriteError(f"{msg} Free some space and start the same command again.") from error
        self._num_written = len(epochs)

    def _begin(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._path.write_bytes(self._record(file_version=_VERSION))

    def _epoch(self, figures: Mapping[str, Any]) -> bytes:
        """One event with a value for each figure that there is."""
        values = [
            {"tag": tag, "simple_value": figures[name]}
            for name, tag in _TAGS.items()
            if figures.get(name) is not None
        ]
        return self._record(step=figures["epoch"], summary={"value": values})

    def _record(self, **fields: Any) -> bytes:
        """A TFRecord of an event: length, its checksum, content, its checksum."""
        content: bytes = self._event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(content))
        parts = (each + struct.pack("<I", self._checksum(each)) for each in (length, content))
        return b"".join(parts)


class _MlflowRun:
    """One training in MLflow, its settings logged as parameters.

    The experiment is made when there is none; the run's identifier is kept in the training's
    folder. `note` is told when the server is lost.

    Raises:
        MissingExtraError: The package is not installed.
        TrainingError: The server cannot be reached, or refuses.
    """

    def __init__(
        self,
        uri: str,
        settings: RunSettings,
        name: str,
        folder: Path,
        *,
        tags: Mapping[str, str],
        note: Callable[[str], None],
    ) -> None:
        # MLflow reports its use to its makers unless told not to.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._mlflow = import_extra("mlflow", extra="mlflow")
        self._errors = (self._mlflow.exceptions.MlflowException, OSError)
        self._file, self._note = folder / "mlflow.json", note
        self._experiment = settings.tracking.mlflow_experiment
        self._is_lost = False
        try:
            self._client = self._mlflow.MlflowClient(tracking_uri=uri)
            self._run, self._num_logged = self._kept_run() or self._new_run(settings, name, tags)
        except self._errors as error:
            msg = f"MLflow cannot be used at its tracking URI: {_first_line(error)}. Start its "
            raise TrainingError(msg + "server, or leave tracking.mlflow_uri out.") from error

    def update(self, epochs: Sequence[Mapping[str, Any]]) -> None:
        """Log the epochs that MLflow does not have yet; `epochs` are all that are finished."""
        metrics = [
            self._metric(name, epoch[name], epoch["epoch"])
            for epoch in epochs[self._num_logged :]
            for name in _TAGS
            if epoch.get(name) is not None
        ]
        self._try(lambda: self._client.log_batch(self._run, metrics=metrics))
        if not self._is_lost:
            self._num_logged = len(epochs)
            self._keep()

    def finish(self, figures: Mapping[str, float]) -> None:
        """Log the final figures and end the run."""
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        metrics = [self._metric(name, value, self._num_logged) for name, value in finite.items()]
        self._try(lambda: self._client.log_batch(self._run, metrics=metrics))
        self._try(lambda: self._client.set_terminated(self._run, "FINISHED"))

    def _kept_run(self) -> tuple[str, int] | None:
        """The run that goes on and how many epochs it has; None where there is none."""
        if not self._file.is_file():
            return None
        kept = json.loads(self._file.read_text(encoding="utf-8"))
        if kept["experiment"] != self._experiment:
            return None
        self._client.update_run(kept["run"], status="RUNNING")
        return kept["run"], kept["epochs"]

    def _new_run(
        self, settings: RunSettings, name: str, tags: Mapping[str, str]
    ) -> tuple[str, int]:
        """A new run, without epochs, that knows all settings but places on this machine."""
        found = self._client.get_experiment_by_name(self._experiment)
        number = found.experiment_id if found else self._client.create_experiment(self._experiment)
        run = self._client.create_run(number, run_name=name, tags=dict(tags))
        param, flat = self._mlflow.entities.Param, flat_settings(settings.model_dump(mode="json"))
        params = [param(key, str(value)) for key, value in flat.items() if key not in _PRIVATE]
        self._client.log_batch(run.info.run_id, params=params)
        self._run, self._num_logged = run.info.run_id, 0
        self._keep()
        return self._run, 0

    def _keep(self) -> None:
        kept = {"run": self._run, "experiment": self._experiment, "epochs": self._num_logged}
        write_text(self._file, json.dumps(kept) + "\n")

    def _metric(self, name: str, value: float, step: int) -> object:
        return self._mlflow.entities.Metric(name, float(value), int(time.time() * 1000), step)

    def _try(self, call: Callable[[], object]) -> None:
        """Do it unless the server was lost; a training is worth more than its log."""
        if self._is_lost:
            return
        try:
            call()
        except self._errors as error:
            self._is_lost = True
            why = _first_line(error)
            self._note(f"MLflow was lost ({why}); the training goes on, as does its own log.")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


_URI_VARIABLE: Final = "MLFLOW_TRACKING_URI"
_PRIVATE: Final = ("data.cache", "tracking.mlflow_uri", "training.start_from")
"""Settings that name places on this machine."""


class _Trackers:
    """All that one training's figures, of its folder's `log.jsonl`, go to.

    `tags` tell MLflow where the training comes from.

    Raises:
        MissingExtraError: The settings name an MLflow server and its package is not installed.
        TrainingError: The server cannot be reached.
    """

    def __init__(
        self,
        settings: RunSettings,
        name: str,
        folder: Path,
        *,
        tags: Mapping[str, str],
        note: Callable[[str], None],
    ) -> None:
        self._log = folder / "log.jsonl"
        has_package = is_installed("tensorboardX")
        self._events = _EventFile(folder / "tensorboard") if has_package else None
        uri = _mlflow_uri(settings.tracking)
        self._mlflow = (
            None if uri is None else _MlflowRun(uri, settings, name, folder, tags=tags, note=note)
        )

    def update(self) -> None:
        """Show the epochs that the log has to all of them."""
        epochs = read_log(self._log)
        if self._events:
            self._events.update(epochs)
        if self._mlflow:
            self._mlflow.update(epochs)

    def finish(self, summary: Summary) -> None:
        """Show the final figures to MLflow; beside TensorBoard's they stand in the run folder."""
        overall = summary.figures.overall
        figures = {
            f"final_{name}": each.value for name, each in overall.items() if each.value is not None
        }
        if self._mlflow:
            self._mlflow.finish(figures)


def _check_tracking(section: TrackingSection, note: Callable[[str], None]) -> None:
    """Look before a run begins whether MLflow is there, where it is wanted.

    Raises:
        MissingExtraError: The settings name its server and the package is not installed.
    """
    if section.mlflow_uri is not None:
        import_extra("mlflow", extra="mlflow")
    elif os.environ.get(_URI_VARIABLE) and not is_installed("mlflow"):
        note(f"{_URI_VARIABLE} is set and MLflow is not installed: pip install 'chestct[mlflow]'")


def _mlflow_uri(section: TrackingSection) -> str | None:
    """Where MLflow is to be found: as the settings say, else as the environment does."""
    if section.mlflow_uri is not None:
        return section.mlflow_uri
    named = os.environ.get(_URI_VARIABLE) or None
    return named if is_installed("mlflow") else None


SETTINGS_FILE: Final = "settings.yaml"
"""All settings of a run, in its folder."""
_DIVERGED_FILE: Final = "diverged.json"


@dataclass(frozen=True, eq=False)
class _Trained:
    """A network that was trained, what it says, and row number to reason of scans left out.

    `shown` is None in all but the first of several processes.
    """

    network: nn.Module
    division: Division
    unsuitable: Mapping[int, str]
    judged: AnyPredictions
    origin: Origin
    shown: _Trackers | None


def run_training(
    plan: Plan, *, elsewhere: Callable[[list[str]], object] | None = None
) -> Summary | None:
    """Do everything, or go on where it was stopped.

    `elsewhere` has the folds of these names trained, each by `run_fold`, once all scans are checked
    and prepared; None trains them here.

    Returns:
        What was found on the test part, on the validation part where there is none, or on all
        folds pooled; None in all but the first of several processes.

    Raises:
        ChestCTError: Settings, manifest, scans or folder are not as they should be, or the run was
            stopped; the message says what to do.
    """
    parts, manifest, trainings = main_first(lambda: _found(plan))
    plan = in_precision(plan, from_main(on_main(lambda: _begin(plan, parts))))
    cache, facts = _checked(plan, parts, manifest, trainings)
    if elsewhere is None:
        for training in trainings:
            _do(plan, parts, cache, facts, training)
    else:
        # All scans are in each of the folds, so that no two workers prepare the same one.
        prepare_scans(trainings[0].division, plan.settings.data, cache, plan.listener)
        elsewhere([training.name for training in trainings])
    return on_main(lambda: _conclude(plan, trainings))


def run_fold(plan: Plan, name: str) -> None:
    """Train a fold that `run_training` began and named; a finished one stays.

    The plan is that of the whole run, with the settings that are written in its folder.

    Raises:
        ChestCTError: As `run_training`.
    """
    parts, manifest, trainings = _found(plan)
    # What the check warns of was told when the run was begun.
    told = Listener(processes=plan.listener.processes)
    cache, facts = _checked(replace(plan, listener=told), parts, manifest, trainings)
    for training in trainings:
        if training.name == name:
            _do(plan, parts, cache, facts, training)


def _checked(
    plan: Plan, parts: Parts, manifest: Manifest, trainings: list[Training]
) -> tuple[Cache, Mapping[int, ScanFacts]]:
    """Where inputs are kept, and what is known of the scans, which may be trained on."""
    cache = make_cache(plan.settings.data, parts.recipe)
    divisions = [training.division for training in trainings]
    report = plan.folder / "check.json"
    facts = on_main(lambda: check_scans(manifest, divisions, cache, report, plan.listener))
    return cache, facts or {}


def _found(plan: Plan) -> tuple[Parts, Manifest, list[Training]]:
    """What settings and manifest name, checked before anything is done."""
    parts = find_parts(plan.settings)
    return parts, *divided(plan, _read_manifest(plan))


def _read_manifest(plan: Plan | SlicePlan) -> Manifest:
    settings = plan.settings
    are_findings = settings.kind == "findings"
    manifest = read_manifest(plan.manifest, settings.labels, are_findings=are_findings)
    manifest.require_classes()
    return manifest


def _begin(plan: Plan, parts: Parts) -> str:
    """Write down what the run is begun with, or that it goes on; returns the precision."""
    _check_tracking(plan.settings.tracking, plan.listener.note)
    if parts.beginning is not None:
        plan.listener.note(str(parts.beginning))
        remark = remark_on_given(plan, parts.beginning)
        if remark is not None:
            plan.listener.note(remark)
    own = settled(plan)
    begin_record(own, parts.taken)
    write_text(plan.folder / SETTINGS_FILE, settings_as_yaml(own.settings))
    return own.settings.training.precision


def _do(
    plan: Plan, parts: Parts, cache: Cache, facts: Mapping[int, ScanFacts], training: Training
) -> None:
    """Train, judge and keep one network; one that was finished before is left as it is."""
    if not from_main(is_finished(training.folder)):
        trained = _train_one(plan, parts, cache, training)
        on_main(lambda: _write_one(parts, facts, training, trained))
        on_main(lambda: _note_threshold(plan.listener, trained.origin))
    elif current_ranks().is_main:
        plan.listener.note(f"{training.name} was finished before.")


def _train_one(plan: Plan, parts: Parts, cache: Cache, training: Training) -> _Trained:
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
        lambda: _Trackers(plan.settings, training.name, folder, tags=tags, note=plan.listener.note)
    )

    def show(entry: EpochLog) -> None:
        """Tell the plan's listener and the trackers of an epoch."""
        plan.listener.epoch(training.name, entry)
        if shown is not None:
            shown.update()

    with memory_explained(training.folder):
        train(network, sets, settings, folder, augmentation=parts.augmentation, after_epoch=show)
        judged, origin = judge(network, sets, division, parts, training.name, plan.settings)
    explanation = on_main(lambda: _explanation(plan, parts, network, division))
    origin = replace(origin, explanation=explanation or origin.explanation)
    return _Trained(network, division, unsuitable, judged, origin, shown)


def _explanation(plan: Plan, parts: Parts, network: nn.Module, division: Division) -> str:
    """How the network's answers are explained; the cells' size is that in its first scan."""
    spacing_mm, scans = parts.recipe.spacing_mm, division.training
    if parts.recipe.placement != "physical":
        # What is kept of prepared scans does not say it.
        row = scans.rows[0]
        reading = read_options(row, scans.folder)
        volume = reading.read(scans.path(row))
        prepared = prepare(volume, parts.recipe, lungs=reading.lungs_of(volume))
        spacing_mm = prepared.grid.spacing_mm
    return explanation_of(network, parts.recipe, plan.settings.explanation, spacing_mm)


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
    parts: Parts, facts: Mapping[int, ScanFacts], training: Training, trained: _Trained
) -> None:
    """Write what a network says of its scans, and the network as a classifier."""
    judged, division, origin = trained.judged, trained.division, trained.origin
    write_predictions(judged, training.folder / PREDICTIONS_FILE)
    write_manifest(division.joined, training.folder / SCANS_FILE)
    if facts:
        beside = baseline_beside(judged, division, facts, origin.judged_on)
        write_predictions(beside, training.folder / BASELINE_FILE)
    summary = write_evaluation(
        judged,
        training.folder / EVALUATION_FOLDER,
        settings=evaluation_settings(origin),
        others=_baseline([training]),
        logs=_logs([training]),
        excluded=reasons_by_scan(training.division.parts[origin.judged_on], trained.unsuitable),
    )
    if trained.shown is not None:
        trained.shown.finish(summary)
    # Last, as a training that has its classifier is finished.
    write_classifier(training.folder / CLASSIFIER_FOLDER, trained.network, parts, origin, summary)


def _conclude(plan: Plan, trainings: list[Training]) -> Summary:
    """What a single training found, or all folds as one."""
    if plan.num_folds is None:
        return summarise(read_any_predictions(plan.folder / PREDICTIONS_FILE))
    return _pool(plan, trainings)


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
    found = {each.name: read_any_predictions(each.folder / PREDICTIONS_FILE) for each in trainings}
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


def _baseline(trainings: list[Training]) -> dict[str, AnyPredictions]:
    """What age, sex and scanner alone say, where that was written down for all trainings."""
    files = [training.folder / BASELINE_FILE for training in trainings]
    if not all(file.is_file() for file in files):
        return {}
    return {BASELINE_NAME: pool([read_any_predictions(file) for file in files])}


def _logs(trainings: list[Training]) -> dict[str, list[dict[str, Any]]]:
    return {
        training.name: read_log(training.folder / TRAINING_FOLDER / "log.jsonl")
        for training in trainings
    }


@dataclass(frozen=True, eq=False)
class _Ready:
    """Scans or slices that may be trained on, divided, checked, prepared; the precision settled."""

    parts: Parts | SliceParts
    sets: LabelledSets
    training: TrainingSettings


def checked_scans(plan: Plan) -> tuple[Parts, Division, Cache]:
    """Divide and check the scans of one training, its precision settled, in one process.

    Raises:
        ChestCTError: Settings, manifest, scans or folder are not as they should be.
    """
    section = plan.settings.data
    parts = find_parts(plan.settings)
    manifest = _read_manifest(plan)
    division = divide(manifest, section)
    cache = make_cache(section, parts.recipe)
    begin_record(plan, parts.taken)
    check_scans(manifest, [division], cache, plan.folder / "check.json", plan.listener)
    return parts, division, cache


def _checked_slices(plan: SlicePlan) -> tuple[SliceParts, Division, SliceStore]:
    """Divide, read and check the slices of a run."""
    settings = plan.settings
    parts = find_slice_parts(settings)
    division = divide_slices(_read_manifest(plan), settings.data)
    begin_record(plan)
    write_text(plan.folder / SETTINGS_FILE, settings_as_yaml(settings))
    store = read_slices(division.joined, parts.form, plan.listener, settings.data.cache)
    report = check_slices(
        division.joined,
        store.by_row,
        size=parts.form.size,
        shares_patients=_shares_patients(settings),
    )
    conclude_check(report, plan.folder / "check.json", plan.listener)
    return parts, division, store


def make_ready(plan: Plan | SlicePlan) -> _Ready:
    """Divide, check and prepare scans, or slices, for one training, in one process.

    Raises:
        ManifestError: A patient or a picture is on two sides, or a slice cannot be read.
        ChestCTError: Settings, manifest, scans or folder are not as they should be.
    """
    if isinstance(plan, SlicePlan):
        own, division, store = _checked_slices(plan)
        return _Ready(own, labelled_slices(division, store), plan.settings.training)
    plan = settled(plan)
    section = plan.settings.data
    parts, division, cache = checked_scans(plan)
    division = division.without(prepare_scans(division, section, cache, plan.listener))
    return _Ready(parts, labelled_sets(division, cache, section), plan.settings.training)


LEAK_STATED: Final = (
    "slice by slice, as in the paper: patients are shared between training and test, and the "
    "figures are no estimate for new patients"
)
BY_PATIENT: Final = "by patient"
_SLICES_IN_WORDS: Final = {
    TEST: "the test part's slices",
    VALIDATION: "the validation part's slices, which the run was watched on: likely too good",
}
_WATCHED_BY_MEMBERS: Final = (
    "all slices, each answered by the member that did not learn from it but was watched on it: "
    "likely too good"
)
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
    parts, division, store = _checked_slices(plan)
    name, num = plan.folder.name, plan.settings.num_members
    trainings = members_of(name, plan.folder, division, num, plan.settings.data.split_seed)
    with memory_explained(plan.folder):
        trained = [
            _train_member(plan, parts, each, labelled_slices(each.division, store), number)
            for number, each in enumerate(trainings)
        ]
        network = mean_of([member for member, _ in trained])
        watched = Outputs.joined([outputs for _, outputs in trained])
        tested, inputs = None, labelled_slices(division, store).test
        if inputs is not None:
            tested = evaluate(network, inputs, batch_size=SLICES_AT_ONCE)
        said = answers(watched, tested, _watched_by_members(division, trainings), parts.labels)
    return _write_slices(plan, parts, division, trainings, network, said)


def _write_slices(
    plan: SlicePlan,
    parts: SliceParts,
    division: Division,
    trainings: list[Training],
    network: nn.Module,
    said: Answers[Predictions],
) -> Summary:
    """Write what a network says of slices and patients, and the network as a classifier."""
    is_watched = len(trainings) > 1 and said.part == VALIDATION
    judged_on = _WATCHED_BY_MEMBERS if is_watched else _SLICES_IN_WORDS[said.part]
    remarks = () if said.part == TEST else (f"Judged were {judged_on}.",)
    patients, negative = patient_labels_of(division.joined), plan.settings.label_set.negative
    votes = fit_votes(said.calibrated, patients, negative)
    judged = JudgedSlices(plan.folder.name, said.judged, votes, patients, negative)
    on_slices, on_patients = write_judged(
        judged, plan.folder, logs=_logs(trainings), remarks=remarks
    )
    write_manifest(division.joined, plan.folder / SCANS_FILE)
    learned = division.training if len(trainings) == 1 else trainings[0].division.joined
    card = SliceCard(
        name=plan.folder.name,
        network=parts.network,
        network_settings=parts.network_settings,  # type: ignore[arg-type]
        pictures=parts.form,
        labels=parts.labels,
        classes=parts.classes,
        backbone_weights=parts.describe_weights(),
        split=LEAK_STATED if _shares_patients(plan.settings) else BY_PATIENT,
        trained_on=describe_scans(learned, "slices"),
        results=measured(on_slices, judged_on),
        votes=votes,
        temperature=said.temperature,
        versions=program_versions("timm", "torchvision"),
        licence=plan.settings.training.start_licence or _SLICES_LICENCE,
    )
    save_classifier(plan.folder / CLASSIFIER_FOLDER, network, card)
    return on_patients


def _train_member(
    plan: SlicePlan, parts: SliceParts, training: Training, sets: LabelledSets, number: int
) -> tuple[SliceNetwork, Outputs]:
    """Train the only network or one of several, and run it on what it was watched on."""
    seed = plan.settings.training.seed + number
    network = parts.build_network(seed).to(plan.device)
    if training.folder != plan.folder:
        training.folder.mkdir(exist_ok=True)
        write_manifest(training.division.joined, training.folder / SCANS_FILE)
    train(
        network,
        sets,
        plan.settings.training.model_copy(update={"seed": seed}),
        training.folder / TRAINING_FOLDER,
        augmentation=parts.augmentation,
        after_epoch=lambda entry: plan.listener.epoch(training.name, entry),
    )
    return network, evaluate(network, sets.validation, batch_size=SLICES_AT_ONCE)


def _watched_by_members(division: Division, trainings: list[Training]) -> Division:
    """The division whose validation part is that of all members, one after the other."""
    rows = [row for each in trainings for row in each.division.validation.rows]
    return replace(division, validation=division.validation.with_rows(rows))


def _shares_patients(settings: SliceRunSettings) -> bool:
    return settings.data.split == SHARES_PATIENTS


@runtime_checkable
class TrainAll(Protocol):
    """Has many runs done that need nothing of each other; `train_all` does it here."""

    def __call__(
        self, plans: Sequence[Plan | SlicePlan], *, are_trials: bool = False
    ) -> Mapping[str, str]:
        """Do those that are not whole; the folder's name and why, of those that diverged.

        Of trials nothing is kept to go on from once they are whole, and those that diverged are not
        done again.
        """


def train_all(
    plans: Sequence[Plan | SlicePlan],
    *,
    are_trials: bool = False,
    before: Callable[[str], object] = lambda _name: None,
) -> dict[str, str]:
    """Do runs one after the other, as `TrainAll` says; `before` is told which one comes now.

    Raises:
        ChestCTError: As `run_training`; the same call goes on.
    """
    said = {}
    for plan in plans:
        is_over = is_whole(plan) or (are_trials and (plan.folder / _DIVERGED_FILE).is_file())
        if not is_over:
            before(plan.folder.name)
        said[plan.folder.name] = run_whole(plan, is_trial=are_trials)
    return {name: why for name, why in said.items() if why}


def run_whole(plan: Plan | SlicePlan, *, is_trial: bool = False) -> str:
    """Do one of many runs, unless it is whole.

    Args:
        plan: Of the run, in a folder of its own; its epochs are told with that folder's name.
        is_trial: See `TrainAll`.

    Returns:
        Why it has no result, as its loss is no longer a number; empty where it has one.

    Raises:
        ChestCTError: As `run_training`.
    """
    diverged = plan.folder / _DIVERGED_FILE
    if is_trial and diverged.is_file():
        return str(json.loads(diverged.read_text(encoding="utf-8"))["reason"])
    try:
        if not is_whole(plan):
            _run(plan)
    except DivergedError as error:
        if is_trial:
            write_text(diverged, json.dumps({"reason": str(error)}) + "\n")
        plan.listener.note(f"{plan.folder.name}: {error}")
        return str(error)
    # Three times the size of the classifier.
    for name in ("checkpoint.safetensors", "best.safetensors") if is_trial else ():
        (plan.folder / TRAINING_FOLDER / name).unlink(missing_ok=True)
    return ""


def _run(plan: Plan | SlicePlan) -> None:
    own, told = plan.folder.name, plan.listener.epoch

    def epoch(name: str, entry: EpochLog) -> None:
        """Tell which run the epoch belongs to."""
        told(name if name == own else f"{own} {name}", entry)

    listener = replace(plan.listener, epoch=epoch)
    if isinstance(plan, SlicePlan):
        run_slice_training(replace(plan, listener=listener))
    else:
        run_training(replace(plan, listener=listener))

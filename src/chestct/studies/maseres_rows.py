"""The MASERes paper's two tables of networks, each row a training with the committed settings.

Three networks on volumes (its patient level) and six on slices. The study's record is that of a
table's first network, so that a later call with other changes, or on other data, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from chestct.datasets.manifest import TEST, Manifest, ManifestError, read_manifest, write_manifest
from chestct.datasets.splits import maseres_paper
from chestct.evaluation.predictions import read_predictions
from chestct.studies.scan_rows import record_scans, run_scan_rows
from chestct.studies.study_rows import (
    RECORD_FOLDER,
    ROWS_FOLDER,
    Progress,
    RowResult,
    RowWork,
    StudyError,
    begin_study,
    run_rows,
)
from chestct.training.devices import device_in_words
from chestct.training.parts import find_parts
from chestct.training.plan import CLASSIFIER_FOLDER, PREDICTIONS_FILE, AfterEpoch, Plan
from chestct.training.record import begin_record
from chestct.training.settings import RunSettings
from chestct.training.slice_card import SLICE_CARD_FILE
from chestct.training.slice_judging import MAIN_VOTE, PATIENTS_FOLDER, SLICES_FOLDER
from chestct.training.slice_parts import find_slice_parts
from chestct.training.slice_session import SlicePlan, run_slice_training
from chestct.training.slice_settings import SliceRunSettings

SPLIT_FILE: Final = "split.csv"


@dataclass(frozen=True)
class NetworkRow:
    """One row of a table: a network by our name of it."""

    network: str

    @property
    def name(self) -> str:
        """What the row's folder is called."""
        return self.network


BeforeRow = Callable[[NetworkRow], object]


def run_patients(
    plan: Plan, settings: Mapping[str, RunSettings], *, before_row: BeforeRow
) -> Progress[NetworkRow]:
    """Train the rows on volumes that are neither finished nor under way elsewhere.

    Without folds and without a split in the manifest, the paper's split is drawn and kept in the
    study's folder.

    Args:
        plan: Of the whole study; its settings are those of the table's first network.
        settings: Network to its settings, in the order of the table.
        before_row: Told of each row that is begun or gone on with.

    Raises:
        ChestCTError: Settings, scans or folder are not as they should be, or the study was stopped;
            the same call goes on.
    """
    for each in settings.values():
        find_parts(each)
    drawn = _drawn_split(plan)

    def begin(folder: Path) -> str:
        """Record scans and split once; returns the precision of all rows."""
        settled = record_scans(plan, folder)
        if drawn is not None and not (folder / SPLIT_FILE).is_file():
            write_manifest(drawn, folder / SPLIT_FILE)
        return settled.training.precision

    precision = begin_study(plan.folder, begin)
    scans = plan.manifest if drawn is None else plan.folder / RECORD_FOLDER / SPLIT_FILE
    rows = tuple(NetworkRow(name) for name in settings)
    return run_scan_rows(
        replace(plan, manifest=scans),
        rows,
        lambda row: _in_precision(settings[row.network], precision),
        before_row=before_row,
    )


def split_in_words(plan: Plan) -> str:
    """How the scans of a table are divided.

    Raises:
        ChestCTError: The manifest cannot be read, or cannot be divided as the paper divides.
    """
    if plan.num_folds:
        return (
            f"{plan.num_folds} folds, pooled: every patient is judged once, by a network that was "
            "not trained on them. The paper has one test part."
        )
    if _drawn_split(plan) is not None:
        return (
            "Divided as in the paper: the names of each class sorted as text, shuffled with "
            "Python's Random(1), cut into 80, 10 and 10 %."
        )
    rows = read_manifest(plan.manifest, plan.settings.labels).rows
    own = "Divided by the manifest's own column 'split'"
    if any(row.split == TEST for row in rows):
        return f"{own}."
    return (
        f"{own}, which has no test part: judged on the validation part, which the runs were "
        "watched on. The figures are likely too good."
    )


def run_slices(
    plan: SlicePlan,
    settings: Mapping[str, SliceRunSettings],
    *,
    before_row: BeforeRow,
    after_epoch: AfterEpoch,
) -> Progress[NetworkRow]:
    """Train the rows on slices that are neither finished nor under way elsewhere.

    Args:
        plan: Of the whole study; its settings are those of the table's first network.
        settings: Network to its settings, in the order of the table.
        before_row: Told of each row that is begun or gone on with.
        after_epoch: Told of each row's epochs.

    Raises:
        ChestCTError: Settings, weights, slices or folder are not as they should be, or the study
            was stopped; the same call goes on.
    """
    for each in settings.values():
        find_slice_parts(each)
    place = device_in_words(plan.device)
    begin_study(
        plan.folder, lambda folder: begin_record(folder, plan.settings, plan.manifest, place=place)
    )

    def train(row: NetworkRow, folder: Path) -> None:
        """Train one network in its own folder."""
        own = replace(
            plan,
            settings=settings[row.network],
            folder=folder,
            after_epoch=lambda entry: after_epoch(row.name, entry),
        )
        run_slice_training(own)

    work = RowWork(
        folder=plan.folder,
        train=train,
        last_file=Path(CLASSIFIER_FOLDER, SLICE_CARD_FILE),
        predictions_file=Path(SLICES_FOLDER, PREDICTIONS_FILE),
        note=plan.listener.note,
    )
    return run_rows(work, tuple(NetworkRow(name) for name in settings), before_row=before_row)


def votes_on_patients(
    folder: Path, progress: Progress[NetworkRow]
) -> tuple[RowResult[NetworkRow], ...]:
    """What the finished rows of a study on slices say of patients, by the mean of their slices."""
    file = Path(PATIENTS_FOLDER, f"predictions_{MAIN_VOTE}.csv")
    return tuple(
        RowResult(each.row, read_predictions(folder / ROWS_FOLDER / each.row.name / file))
        for each in progress.results
    )


def _drawn_split(plan: Plan) -> Manifest | None:
    """The manifest divided as the paper divides; None where folds or an own split are used."""
    manifest = read_manifest(plan.manifest, plan.settings.labels)
    if plan.num_folds or any(row.split for row in manifest.rows):
        return None
    try:
        return maseres_paper(manifest)
    except ManifestError as error:
        msg = f"{error} Here: --folds N, or fill in a column 'split' (chestct dataset split)."
        raise StudyError(msg) from error


def _in_precision(settings: RunSettings, precision: str) -> RunSettings:
    """The settings with "auto" settled as for the whole study."""
    if settings.training.precision != "auto":
        return settings
    training = settings.training.model_copy(update={"precision": precision})
    return settings.model_copy(update={"training": training})

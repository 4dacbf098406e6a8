"""Rows of a study that are trainings on scans, each a run folder as `chestct train` writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from chestct.card import CARD_FILE
from chestct.studies.study_rows import Progress, RowT, RowWork, run_rows
from chestct.training.record import begin_record, settled
from chestct.training.run import EpochLog
from chestct.training.session import (
    CLASSIFIER_FOLDER,
    EVALUATION_FOLDER,
    PREDICTIONS_FILE,
    Plan,
    run_training,
)
from chestct.training.settings import RunSettings


def record_scans(plan: Plan, folder: Path) -> RunSettings:
    """Write settings and scans of a study down, or refuse where the folder has others.

    Rows check their own again; this sees to it that they differ in nothing but their columns: in
    precision neither, where they are trained on different devices.

    Returns:
        The settings with their precision settled.
    """
    settings = settled(plan.settings, folder, plan.device)
    begin_record(folder, settings, plan.manifest, plan.num_folds, place=plan.place)
    return settings


def run_scan_rows(
    plan: Plan,
    rows: tuple[RowT, ...],
    settings_of: Callable[[RowT], RunSettings],
    *,
    before_row: Callable[[RowT], object],
) -> Progress[RowT]:
    """Train every row that is neither finished nor under way elsewhere; see `run_rows`.

    Args:
        plan: Of the whole study; its own settings are not looked at.
        rows: Of the table.
        settings_of: A row's settings.
        before_row: Told of each row that is begun or gone on with.
    """
    single = Path(CLASSIFIER_FOLDER, CARD_FILE)
    work = RowWork[RowT](
        folder=plan.folder,
        train=lambda row, folder: run_training(_row_plan(plan, settings_of(row), folder)),
        last_file=Path(EVALUATION_FOLDER, "metrics.json") if plan.num_folds else single,
        predictions_file=Path(PREDICTIONS_FILE),
        note=plan.listener.note,
    )
    return run_rows(work, rows, before_row=before_row)


def _row_plan(plan: Plan, settings: RunSettings, folder: Path) -> Plan:
    """The training of a row; what its epochs are called begins with the row's name."""

    def after_epoch(name: str, entry: EpochLog) -> None:
        """Tell the study's listener which row the epoch belongs to."""
        plan.after_epoch(name if name == folder.name else f"{folder.name} {name}", entry)

    return replace(plan, settings=settings, folder=folder, after_epoch=after_epoch)

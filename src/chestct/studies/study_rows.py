"""The rows of a table of trainings: each a run folder, trained once, shared out between programs.

A stopped study goes on where it was and finished rows are skipped. Several programs may work on
one study at once; each takes rows that no other one has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar, runtime_checkable

from chestct.card import CARD_FILE
from chestct.errors import ChestCTError, WriteError
from chestct.evaluation.predictions import Predictions, read_predictions
from chestct.storage import reason_of
from chestct.training.distributed import require_one_process
from chestct.training.results import begin_record, settled
from chestct.training.run import EpochLog
from chestct.training.session import (
    CLASSIFIER_FOLDER,
    EVALUATION_FOLDER,
    PREDICTIONS_FILE,
    Plan,
    run_training,
)
from chestct.training.settings import RunSettings
from chestct.training.steps import DivergedError


@contextmanager
def claim(file: Path, *, waits: bool = False) -> Iterator[bool]:
    """Hold the lock on a file, which is made when needed and left behind empty.

    Args:
        file: What stands for the thing claimed.
        waits: Wait for whoever holds it, rather than going on without.

    Yields:
        Whether it is ours until the block ends.

    Raises:
        WriteError: The file cannot be made.
    """
    # Only here, as Windows has no such module and needs none of this to import the package.
    import fcntl

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a")
    except OSError as error:
        msg = f"{file.name} cannot be made in {file.parent.name}: {reason_of(error)}."
        msg += " Choose another folder."
        raise WriteError(msg) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


ROWS_FOLDER: Final = "rows"
RECORD_FOLDER: Final = "study"
_CLAIMS_FOLDER: Final = ".claims"


class StudyError(ChestCTError):
    """A study cannot be made as asked for; the message says what to change."""


@runtime_checkable
class NamedRow(Protocol):
    """A row of a table."""

    @property
    def name(self) -> str:
        """What the row's folder is called."""


RowT = TypeVar("RowT", bound=NamedRow)
Began = TypeVar("Began")


@dataclass(frozen=True)
class RowResult(Generic[RowT]):
    """A finished row and what its network said of the inputs it was judged on."""

    row: RowT
    predictions: Predictions


@dataclass(frozen=True)
class Progress(Generic[RowT]):
    """What came of a call.

    Attributes:
        results: The finished rows, in the order of the table.
        missing: Rows that another program has under way.
        diverged: Rows whose loss is no longer a number; they have no result.
    """

    results: tuple[RowResult[RowT], ...]
    missing: tuple[RowT, ...]
    diverged: tuple[RowT, ...] = ()

    @property
    def gaps(self) -> list[str]:
        """Rows that the table lacks, and why, in sentences."""
        reasons = {
            "Not in the table yet, another program works on them": self.missing,
            "Not in the table, their loss is no longer a number": self.diverged,
        }
        return [
            f"{why}: {', '.join(row.name for row in rows)}."
            for why, rows in reasons.items()
            if rows
        ]


@dataclass(frozen=True)
class RowWork(Generic[RowT]):
    """How the rows of a study are trained, and what they leave behind.

    Attributes:
        folder: The study's.
        train: Trains a row in its folder, or goes on.
        last_file: What a row writes last, in its folder.
        predictions_file: What its network said, in its folder.
        note: Told of rows that came to nothing.
    """

    folder: Path
    train: Callable[[RowT, Path], object]
    last_file: Path
    predictions_file: Path
    note: Callable[[str], None]

    def row_folder(self, row: RowT) -> Path:
        """Where a row's run is."""
        return self.folder / ROWS_FOLDER / row.name

    def is_finished(self, row: RowT) -> bool:
        """Whether a row's run, or all its folds, came to an end."""
        return (self.row_folder(row) / self.last_file).is_file()


def begin_study(folder: Path, record: Callable[[Path], Began]) -> Began:
    """Write down what a study is begun with, or refuse where its folder has something else.

    Args:
        folder: The study's.
        record: Writes the record into the folder it is given, or compares it with the one there.

    Returns:
        What `record` returned.

    Raises:
        TrainingError: `torchrun` started several processes.
        StudyError: The folder holds something that is no study.
    """
    require_one_process(
        "The rows of a study are trained in one process each.",
        ", once per GPU, with --device cuda:0, --device cuda:1 and so on",
    )
    with claim(folder / _CLAIMS_FOLDER / "study", waits=True):
        names = {path.name for path in folder.iterdir()} - {_CLAIMS_FOLDER}
        if names and RECORD_FOLDER not in names:
            msg = f"{folder.name} is not empty and holds no study. Choose a new folder."
            raise StudyError(msg)
        return record(folder / RECORD_FOLDER)


def run_rows(
    work: RowWork[RowT],
    rows: tuple[RowT, ...],
    *,
    before_row: Callable[[RowT], object] = lambda _row: None,
) -> Progress[RowT]:
    """Train every row that is neither finished nor under way elsewhere.

    Args:
        work: How a row is trained.
        rows: Of the table.
        before_row: Told of each row that is begun or gone on with.

    Raises:
        ChestCTError: A row cannot be trained as asked for, or the study was stopped; the same call
            goes on.
    """
    diverged = []
    for row in rows:
        with claim(work.folder / _CLAIMS_FOLDER / row.name) as is_ours:
            if is_ours and not work.is_finished(row):
                before_row(row)
                try:
                    work.train(row, work.row_folder(row))
                except DivergedError as error:
                    work.note(f"{row.name}: {error}")
                    diverged.append(row)
    finished = tuple(row for row in rows if work.is_finished(row))
    return Progress(
        results=tuple(
            RowResult(row, read_predictions(work.row_folder(row) / work.predictions_file))
            for row in finished
        ),
        missing=tuple(row for row in rows if row not in (*finished, *diverged)),
        diverged=tuple(diverged),
    )


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

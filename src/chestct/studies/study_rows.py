"""The rows of a table of trainings: each a run folder, trained once, shared out between programs.

A stopped study goes on where it was and finished rows are skipped. Several programs may work on
one study at once; each takes rows that no other one has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar, runtime_checkable

from chestct.errors import ChestCTError
from chestct.evaluation.predictions import Predictions, read_predictions
from chestct.studies.claims import claim
from chestct.training.objective import DivergedError
from chestct.training.ranks import require_one_process

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

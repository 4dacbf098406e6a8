"""The rows of a table of trainings: each a run folder, trained once, shared out between programs.

A stopped study goes on where it was and finished rows are skipped. Several programs may work on
one study at once; each takes rows that no other one has.

Rows are compared by the exact McNemar test on the scans that both judged. All tests of a table
together are one family, and Holm's correction is made over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar, runtime_checkable

from chestct.card import CARD_FILE
from chestct.errors import ChestCTError, WriteError
from chestct.evaluation.comparisons import compare
from chestct.evaluation.intervals import Bootstrap, Figures, estimate_figures
from chestct.evaluation.predictions import Predictions, read_predictions
from chestct.storage import reason_of
from chestct.training.distributed import require_one_process
from chestct.training.plan import (
    CLASSIFIER_FOLDER,
    EVALUATION_FOLDER,
    PREDICTIONS_FILE,
    Plan,
    begin_record,
    settled,
)
from chestct.training.run import EpochLog
from chestct.training.session import run_training
from chestct.training.settings import RunSettings
from chestct.training.steps import DivergedError


@contextmanager
def _claim(file: Path, *, waits: bool = False) -> Iterator[bool]:
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
    with _claim(folder / _CLAIMS_FOLDER / "study", waits=True):
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
        with _claim(work.folder / _CLAIMS_FOLDER / row.name) as is_ours:
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
    own = settled(replace(plan, folder=folder))
    begin_record(own)
    return own.settings


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
    told = plan.listener.epoch

    def epoch(name: str, entry: EpochLog) -> None:
        """Tell the study's listener which row the epoch belongs to."""
        told(name if name == folder.name else f"{folder.name} {name}", entry)

    listener = replace(plan.listener, epoch=epoch)
    return replace(plan, settings=settings, folder=folder, listener=listener)


@dataclass(frozen=True)
class TableRow(Generic[RowT]):
    """One row with its figures."""

    row: RowT
    predictions: Predictions
    figures: Figures


@dataclass(frozen=True)
class RowTest(Generic[RowT]):
    """Two rows that differ in one thing.

    Attributes:
        first: One row.
        second: The other, further down the table.
        column: What they differ in.
        num_scans: Scans that both judged.
        only_first: Scans that only the first got right.
        only_second: Scans that only the second got right.
        p_value: Of the exact McNemar test, two-sided.
        holm: The same after Holm's correction over all tests of the table.
    """

    first: RowT
    second: RowT
    column: str
    num_scans: int
    only_first: int
    only_second: int
    p_value: float
    holm: float


def make_rows(
    results: Sequence[RowResult[RowT]], bootstrap: Bootstrap | None = None
) -> tuple[TableRow[RowT], ...]:
    """Figures of every row, with Wilson's intervals or a bootstrap over patients."""
    return tuple(
        TableRow(each.row, each.predictions, estimate_figures(each.predictions, bootstrap))
        for each in results
    )


def compare_rows(
    pairs: Sequence[tuple[TableRow[RowT], TableRow[RowT], str]],
) -> tuple[RowTest[RowT], ...]:
    """Test pairs of rows, each with the column they differ in, as one family."""
    tested = [_test(*pair) for pair in pairs]
    corrected = holm([each.p_value for each in tested])
    return tuple(
        replace(each, holm=p_value) for each, p_value in zip(tested, corrected, strict=True)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def on_common_scans(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """The rows of both about the scans that both judged, in each one's own order."""
    common = set(first.scans) & set(second.scans)
    one, other = (
        each.choose([i for i, scan in enumerate(each.scans) if scan in common])
        for each in (first, second)
    )
    return one, other


def scans_line(rows: Sequence[TableRow[RowT]], what: str = "scans") -> str:
    """How many inputs of whom the rows judged, in a sentence."""
    sizes = {(len(each.predictions), each.predictions.num_patients) for each in rows}
    if len(sizes) != 1:
        return f"The rows judged different numbers of {what}: some got no decision in a row."
    ((scans, patients),) = sizes
    labels = rows[0].predictions.labels
    cases = rows[0].predictions.cases.tolist()
    counted = ", ".join(f"{num} {label}" for num, label in zip(cases, labels, strict=True))
    return f"Every row judged {scans} {what} of {patients} patients: {counted}."


def guesses_line(rows: Sequence[TableRow[RowT]]) -> str:
    """Name the rows that may have learned nothing: what differs between them says little."""
    names = [each.row.name for each in rows if _is_no_better_than_a_guess(each)]
    if not names:
        return ""
    return (
        f"{len(names)} of {len(rows)} rows are not surely better than naming the most frequent "
        f"class every time, whose share is within their interval or above: {', '.join(names)}."
    )


def _is_no_better_than_a_guess(each: TableRow[RowT]) -> bool:
    low = each.figures.overall["accuracy"].low
    share = float(each.predictions.cases.max()) / max(1, len(each.predictions))
    return low is None or low <= share


def _test(first: TableRow[RowT], second: TableRow[RowT], column: str) -> RowTest[RowT]:
    one, other = on_common_scans(first.predictions, second.predictions)
    (found,) = compare(one, other, "mcnemar")
    aligned = {scan: bool(right) for scan, right in zip(other.scans, other.is_right, strict=True)}
    pairs = [
        (bool(right), aligned[scan]) for scan, right in zip(one.scans, one.is_right, strict=True)
    ]
    p_value = 1.0 if found.p_value is None else found.p_value
    return RowTest(
        first.row,
        second.row,
        column,
        num_scans=len(one),
        only_first=pairs.count((True, False)),
        only_second=pairs.count((False, True)),
        p_value=p_value,
        holm=p_value,
    )

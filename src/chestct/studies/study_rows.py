"""The rows of a table of trainings: each a run folder, trained once, shared out between programs.

A stopped study goes on where it was and finished rows are skipped. Several programs may work on
one study at once; each takes rows that no other one has.

Rows are compared by the exact McNemar test on the scans that both judged. All tests of a table
together are one family, and Holm's correction is made over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from chestct.card import CARD_FILE, SLICE_CARD_FILE
from chestct.datasets.manifest import Manifest, write_manifest
from chestct.errors import ChestCTError, WriteError
from chestct.evaluation.comparisons import compare
from chestct.evaluation.intervals import Bootstrap, Figures, estimate_figures
from chestct.evaluation.predictions import Predictions, align, read_predictions
from chestct.storage import reason_of
from chestct.training.distributed import require_one_process
from chestct.training.judging import SLICES_FOLDER
from chestct.training.plan import (
    CLASSIFIER_FOLDER,
    EVALUATION_FOLDER,
    PREDICTIONS_FILE,
    Plan,
    SlicePlan,
    begin_record,
    find_parts,
    find_slice_parts,
    in_precision,
    settled,
)
from chestct.training.run import EpochLog
from chestct.training.session import run_slice_training, run_training
from chestct.training.settings import RunSettings, SliceRunSettings
from chestct.training.steps import DivergedError

ROWS_FOLDER: Final = "rows"
_RECORD_FOLDER: Final = "study"
SPLIT_FILE: Final = "split.csv"
_CLAIMS_FOLDER: Final = ".claims"


class StudyError(ChestCTError):
    """A study cannot be made as asked for; the message says what to change."""


@dataclass(frozen=True)
class Row:
    """One row of a table: what is trained.

    Attributes:
        network: Name of the network.
        gating: Where the lung mask is applied, a name in `PLACEMENTS`; empty where the table does
            not vary it.
        threshold: t, the share of the largest lung area that a slice has to reach; 0 likewise.
    """

    network: str
    gating: str = ""
    threshold: float = 0.0

    @property
    def name(self) -> str:
        """What the row's folder is called."""
        if not self.gating:
            return self.network
        return f"{self.network}-{self.gating}-t{100 * self.threshold:g}"


Results: TypeAlias = Mapping[Row, Predictions]
"""Finished rows, in the order of the table, and what their networks said of what they judged."""

BeforeRow: TypeAlias = Callable[[Row], object]
"""Told of each row that is begun or gone on with."""


@dataclass(frozen=True)
class Progress:
    """What came of a call.

    Attributes:
        results: The finished rows.
        missing: Rows that another program has under way.
        diverged: Rows whose loss is no longer a number; they have no result.
    """

    results: Results
    missing: tuple[Row, ...]
    diverged: tuple[Row, ...] = ()

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


def run_study(
    plan: Plan,
    settings: Mapping[Row, RunSettings],
    *,
    before_row: BeforeRow = lambda _row: None,
    split: Manifest | None = None,
) -> Progress:
    """Train every row on scans that is neither finished nor under way elsewhere.

    All rows have one precision, also where they are trained on different devices.

    Args:
        plan: Of the whole study; its settings are what its record shows.
        settings: Each row's own, in the order of the table.
        before_row: Told of each row that is begun or gone on with.
        split: Kept in the study's folder and used instead of the plan's manifest.

    Raises:
        ChestCTError: Settings, scans or folder are not as they should be, or the study was stopped;
            the same call goes on.
    """
    for each in settings.values():
        find_parts(each)
    with _beginning(plan.folder) as folder:
        recorded = settled(replace(plan, folder=folder))
        begin_record(recorded)
        if split is not None:
            plan = replace(plan, manifest=folder / SPLIT_FILE)
            if not plan.manifest.is_file():
                write_manifest(split, plan.manifest)
    precision = recorded.settings.training.precision
    plans = {row: replace(plan, settings=each) for row, each in settings.items()}
    for row, own in plans.items():
        if own.settings.training.precision == "auto":
            plans[row] = in_precision(own, precision)
    last = (EVALUATION_FOLDER, "metrics.json") if plan.num_folds else (CLASSIFIER_FOLDER, CARD_FILE)
    return _run_rows(plans, (Path(*last), Path(PREDICTIONS_FILE)), before_row)


def run_slice_study(
    plan: SlicePlan, settings: Mapping[Row, SliceRunSettings], *, before_row: BeforeRow
) -> Progress:
    """Train every row on slices that is neither finished nor under way elsewhere; see `run_study`.

    Raises:
        ChestCTError: Settings, weights, slices or folder are not as they should be, or the study
            was stopped; the same call goes on.
    """
    for each in settings.values():
        find_slice_parts(each)
    with _beginning(plan.folder) as folder:
        begin_record(replace(plan, folder=folder))
    plans = {row: replace(plan, settings=each) for row, each in settings.items()}
    files = Path(CLASSIFIER_FOLDER, SLICE_CARD_FILE), Path(SLICES_FOLDER, PREDICTIONS_FILE)
    return _run_rows(plans, files, before_row)


@contextmanager
def _beginning(folder: Path) -> Iterator[Path]:
    """The folder of a study's record, while no other program looks at it."""
    require_one_process(
        "The rows of a study are trained in one process each.",
        ", once per GPU, with --device cuda:0, --device cuda:1 and so on",
    )
    with _claim(folder / _CLAIMS_FOLDER / "study", waits=True):
        names = {path.name for path in folder.iterdir()} - {_CLAIMS_FOLDER}
        if names and _RECORD_FOLDER not in names:
            raise StudyError(f"{folder.name} is not empty and holds no study. Choose a new folder.")
        yield folder / _RECORD_FOLDER


def _run_rows(
    plans: Mapping[Row, Plan] | Mapping[Row, SlicePlan],
    files: tuple[Path, Path],
    before_row: BeforeRow,
) -> Progress:
    """Train rows by their plans; `files` are what a row writes last, and what its network said."""
    last_file, predictions_file = files
    diverged = []
    finished: dict[Row, Predictions] = {}
    for row, plan in plans.items():
        folder = plan.folder / ROWS_FOLDER / row.name
        with _claim(plan.folder / _CLAIMS_FOLDER / row.name) as is_ours:
            if is_ours and not (folder / last_file).is_file():
                before_row(row)
                try:
                    _train(plan, folder)
                except DivergedError as error:
                    plan.listener.note(f"{row.name}: {error}")
                    diverged.append(row)
    for row, plan in plans.items():
        # Only now, as another program may have finished some in the meantime.
        folder = plan.folder / ROWS_FOLDER / row.name
        if (folder / last_file).is_file():
            finished[row] = read_predictions(folder / predictions_file)
    missing = tuple(row for row in plans if row not in finished and row not in diverged)
    return Progress(finished, missing, tuple(diverged))


def _train(plan: Plan | SlicePlan, folder: Path) -> None:
    """Train a row in its folder, or go on; what its epochs are called begins with its name."""
    told = plan.listener.epoch

    def epoch(name: str, entry: EpochLog) -> None:
        """Tell the study's listener which row the epoch belongs to."""
        told(name if name == folder.name else f"{folder.name} {name}", entry)

    listener = replace(plan.listener, epoch=epoch)
    if isinstance(plan, SlicePlan):
        run_slice_training(replace(plan, folder=folder, listener=listener))
    else:
        run_training(replace(plan, folder=folder, listener=listener))


@contextmanager
def _claim(file: Path, *, waits: bool = False) -> Iterator[bool]:
    """Whether a file, made when needed, is ours to lock until the block ends; or wait for it."""
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


@dataclass(frozen=True)
class TableRow:
    """One row with its figures."""

    row: Row
    predictions: Predictions
    figures: Figures


@dataclass(frozen=True)
class RowTest:
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

    first: Row
    second: Row
    column: str
    num_scans: int
    only_first: int
    only_second: int
    p_value: float
    holm: float


def make_rows(results: Results, bootstrap: Bootstrap | None = None) -> tuple[TableRow, ...]:
    """Figures of every row, with Wilson's intervals or a bootstrap over patients."""
    return tuple(
        TableRow(row, found, estimate_figures(found, bootstrap)) for row, found in results.items()
    )


def compare_rows(
    pairs: Sequence[tuple[TableRow, TableRow, str]],
) -> tuple[RowTest, ...]:
    """Test pairs of rows, each with the column they differ in, as one family."""
    tested = [_test(*pair) for pair in pairs]
    corrected = holm([each.p_value for each in tested])
    return tuple(
        replace(each, holm=p_value) for each, p_value in zip(tested, corrected, strict=True)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    from statsmodels.stats.multitest import multipletests

    corrected = multipletests(list(p_values), method="holm")[1] if p_values else ()
    return [float(p) for p in corrected]


def on_common_scans(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """The rows of both about the scans that both judged, in the order of the first."""
    common = set(first.scans) & set(second.scans)
    one, other = (
        each.choose([i for i, scan in enumerate(each.scans) if scan in common])
        for each in (first, second)
    )
    return one, align(one, other)


def guessing(rows: Sequence[TableRow]) -> list[str]:
    """Rows that may have learned nothing: what differs between them says little."""
    found = []
    for each in rows:
        low = each.figures.overall["accuracy"].low
        share = float(each.predictions.cases.max()) / max(1, len(each.predictions))
        if low is None or low <= share:
            found.append(each.row.name)
    return found


def _test(first: TableRow, second: TableRow, column: str) -> RowTest:
    one, other = on_common_scans(first.predictions, second.predictions)
    (found,) = compare(one, other, "mcnemar")
    p_value = 1.0 if found.p_value is None else found.p_value
    return RowTest(
        first.row,
        second.row,
        column,
        num_scans=len(one),
        only_first=int((one.is_right & ~other.is_right).sum()),
        only_second=int((other.is_right & ~one.is_right).sum()),
        p_value=p_value,
        holm=p_value,
    )

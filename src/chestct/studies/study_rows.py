"""The rows of a table of trainings: each a run folder, trained once.

A stopped study goes on where it was and finished rows are skipped.

Rows are compared by the exact McNemar test on the scans that both judged. All tests of a table
together are one family, and Holm's correction is made over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from chestct.datasets.manifest import Manifest, write_manifest
from chestct.errors import ChestCTError
from chestct.evaluation.comparisons import compare
from chestct.evaluation.intervals import Bootstrap, Figures, estimate_figures
from chestct.evaluation.predictions import Predictions, align, read_predictions
from chestct.training.distributed import require_one_process
from chestct.training.judging import SLICES_FOLDER
from chestct.training.plan import (
    PREDICTIONS_FILE,
    Plan,
    SlicePlan,
    begin_record,
    find_parts,
    find_slice_parts,
    in_precision,
    settled,
)
from chestct.training.session import TrainAll, train_all
from chestct.training.settings import RunSettings, SliceRunSettings

ROWS_FOLDER: Final = "rows"
_RECORD_FOLDER: Final = "study"
SPLIT_FILE: Final = "split.csv"


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


@dataclass(frozen=True)
class Progress:
    """What came of a call.

    Attributes:
        results: The finished rows.
        diverged: Rows whose loss is no longer a number; they have no result.
    """

    results: Results
    diverged: tuple[Row, ...] = ()

    @property
    def gaps(self) -> list[str]:
        """Rows that the table lacks, and why, in sentences; none where it lacks none."""
        names = ", ".join(row.name for row in self.diverged)
        return [f"Not in the table, their loss is no longer a number: {names}."] if names else []


def run_study(
    plan: Plan,
    settings: Mapping[Row, RunSettings],
    *,
    train: TrainAll = train_all,
    split: Manifest | None = None,
) -> Progress:
    """Train every row on scans that is not finished.

    All rows have one precision, also where they are trained on different devices.

    Args:
        plan: Of the whole study; its settings are what its record shows.
        settings: Each row's own, in the order of the table.
        train: Has the rows trained.
        split: Kept in the study's folder and used instead of the plan's manifest.

    Raises:
        ChestCTError: Settings, scans or folder are not as they should be, or the study was stopped;
            the same call goes on.
    """
    for each in settings.values():
        find_parts(each)
    folder = _record_folder(plan.folder)
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
    return _train_rows(plans, Path(PREDICTIONS_FILE), train)


def run_slice_study(
    plan: SlicePlan, settings: Mapping[Row, SliceRunSettings], *, train: TrainAll = train_all
) -> Progress:
    """Train every row on slices that is not finished; see `run_study`.

    Raises:
        ChestCTError: Settings, weights, slices or folder are not as they should be, or the study
            was stopped; the same call goes on.
    """
    for each in settings.values():
        find_slice_parts(each)
    begin_record(replace(plan, folder=_record_folder(plan.folder)))
    plans = {row: replace(plan, settings=each) for row, each in settings.items()}
    return _train_rows(plans, Path(SLICES_FOLDER, PREDICTIONS_FILE), train)


def _record_folder(folder: Path) -> Path:
    """Where a study's record is or will be.

    Raises:
        TrainingError: Several processes were started.
        ChestCTError: The folder holds something else.
    """
    require_one_process("The rows of a study are trained in one process each.", ", with --workers")
    record = folder / _RECORD_FOLDER
    if not record.exists() and folder.is_dir() and any(folder.iterdir()):
        raise ChestCTError(f"{folder.name} is not empty and holds no study. Choose a new folder.")
    return record


def _train_rows(
    plans: Mapping[Row, Plan] | Mapping[Row, SlicePlan], predictions_file: Path, train: TrainAll
) -> Progress:
    """Train rows by their plans, and read what their networks said."""
    folders = {row: plan.folder / ROWS_FOLDER / row.name for row, plan in plans.items()}
    diverged = train([replace(plan, folder=folders[row]) for row, plan in plans.items()])
    results = {
        row: read_predictions(folder / predictions_file)
        for row, folder in folders.items()
        if row.name not in diverged
    }
    return Progress(results, tuple(row for row in plans if row.name in diverged))


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

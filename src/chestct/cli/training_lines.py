"""How a training looks: one line per epoch, a bar while scans are read, a table at the end.

Where nobody is watching (a log file, a pipe) there are no bars and no colours, only the lines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chestct.cli.terminal import scan_progress, show_remark, show_words, stdout_console
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.report.tables import as_terminal_table, p_value_text

if TYPE_CHECKING:
    from rich.table import Table

    from chestct.datasets.workers import Progress as HowFar
    from chestct.evaluation.report import Summary
    from chestct.training.judging import Unlike
    from chestct.training.plan import Listener
    from chestct.training.run import EpochLog
    from chestct.training.search import RangeTest


class EpochLines:
    """Prints one line per finished epoch, with the time that is left at the pace so far.

    There are `num_trainings`, one per fold or member, each of so many epochs at most.
    """

    def __init__(self, epochs: int, num_trainings: int = 1) -> None:
        self._epochs = epochs
        self._num_trainings = num_trainings
        self._started: dict[str, float] = {}
        self._num_done = 0
        self._seconds = 0.0
        self._last = time.perf_counter()

    def show(self, name: str, entry: EpochLog) -> None:
        """Print the line of an epoch of the training `name`."""
        now = time.perf_counter()
        first = name not in self._started
        # Before a training's first epoch its scans are prepared, which is no part of the pace.
        self._seconds += entry.seconds if first else now - self._last
        self._started.setdefault(name, now)
        self._last, self._num_done = now, self._num_done + 1
        later = self._epochs * (self._num_trainings - len(self._started))
        left = self._seconds / self._num_done * (self._epochs - entry.epoch - 1 + later)
        width, memory = len(str(self._epochs)), entry.gpu_memory_gib
        show_words(
            f"{name}  epoch {entry.epoch + 1:{width}d}/{self._epochs}  "
            f"loss {entry.training_loss:.4f}  validation {entry.validation_loss:.4f}  "
            f"accuracy {entry.validation_accuracy:6.1%}  rate {entry.learning_rate:.1e}  "
            f"{in_words(entry.seconds)}  {in_words(left)} left"
            f"{'' if memory is None else f'  GPU {memory:.1f} GiB'}"
        )


def in_words(seconds: float) -> str:
    """A duration as a person says it: 4.2 s, 12 min, 3.1 h."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def listening(
    processes: int | None, lines: EpochLines | None = None, *, is_quiet: bool = False
) -> Iterator[Listener]:
    """A listener that prints notes and shows bars while scans are read, and prints epochs.

    `is_quiet` shows nothing: of several processes one is enough to listen to.
    """
    from chestct.training.plan import Listener

    bars = scan_progress(is_quiet=is_quiet)

    def show(what: str, how_far: HowFar) -> None:
        """Move the bar of this work, or begin one."""
        known = {task.description: task.id for task in bars.tasks if not task.finished}
        if what not in known:
            known[what] = bars.add_task(what)
        bars.update(known[what], completed=how_far.done, total=how_far.total)

    def note(text: str) -> None:
        """Say what should be known, above the bars."""
        if is_quiet:
            return
        show_remark(text)

    with bars:
        told = Listener(note=note, progress=show, processes=processes)
        yield told if lines is None else replace(told, epoch=lines.show)


def show_summary(summary: Summary, folder: Path) -> None:
    """Show the main figures with their intervals, what to beware of, and where all of it is."""
    from chestct.evaluation.report import at_threshold_words

    console = stdout_console()
    console.print()
    console.print(_figures_table(summary))
    if summary.comparisons:
        console.print()
        console.print(_tests_table(summary))
    if any(row.test == "maseres_z" for rows in summary.comparisons.values() for row in rows):
        show_remark(_z_test_words())
    if summary.at_threshold is not None:
        show_words(at_threshold_words(summary.at_threshold))
    for warning in summary.warnings:
        show_remark(warning)
    show_words(NOT_FOR_CLINICAL_USE, "bold")
    show_words(f"Written to {folder}")


def show_unlike(found: Unlike) -> None:
    """Show how well scans of another kind were told from those of the manifest."""
    refused = f", {found.num_refused} of them refused as unsuitable" if found.num_refused else ""
    show_words(
        f"Unlike scans: AUROC of the distance {found.auroc:.3f}; caught at the card's threshold "
        f"{found.num_caught} of {found.num_scans}{refused}; of the manifest's scans "
        f"{found.num_false} of {found.num_familiar} lie beyond it."
    )


def _figures_table(summary: Summary) -> Table:
    """The main figures, those of other classifiers beside them."""
    from chestct.evaluation.report import format_estimate

    shown = [each.figures for each in (summary, *summary.others.values())]
    of_classes = ("accuracy", "balanced_accuracy", "macro_auc", "expected_calibration_error")
    of_findings = ("macro_auc", "macro_auprc", "macro_sensitivity", "macro_specificity")
    of_each = ("sensitivity",) if summary.confusion.size else ("auc", "sensitivity", "specificity")
    lines = [
        [name.replace("_", " "), *(format_estimate(each.overall[name]) for each in shown)]
        for name in (of_classes if summary.confusion.size else of_findings)
    ]
    lines += [
        [f"{name} for {label}", *(format_estimate(each.per_class[label][name]) for each in shown)]
        for label in summary.labels
        for name in of_each
    ]
    scans = f"{summary.num_scans} scans of {summary.num_patients} patients"
    return as_terminal_table((scans, "with 95 % interval", *summary.others), lines)


def _tests_table(summary: Summary) -> Table:
    """Tests against other classifiers; the bootstrap's many rows are left to tables.md."""
    from chestct.evaluation.report import format_difference

    lines = [
        (other, row.test, row.figure, format_difference(row) or "-", p_value_text(row.p_value))
        for other, rows in summary.comparisons.items()
        for row in rows
        if row.test != "patient_bootstrap"
    ]
    return as_terminal_table(("compared with", "test", "figure", "difference", "p"), lines)


def _z_test_words() -> str:
    from chestct.evaluation.comparisons import MASERES_Z_DEFECTS

    defects = "; ".join(MASERES_Z_DEFECTS)
    return f"maseres_z is the MASERes paper's one-sided test, kept for its table only: {defects}."


def show_range_test(found: RangeTest, written: Sequence[Path]) -> None:
    """Show the suggested rate and the rule behind it, or why there is none; where the curve is."""
    from chestct.training.search import RULE

    if found.suggestion is None:
        start, lowest = found.smoothed[0], min(found.smoothed)
        show_remark(
            f"No learning rate is suggested: the curve is flat (smoothed loss {start:.4g} at the "
            f"start, {lowest:.4g} at the lowest). Take more --steps or --epochs."
        )
    else:
        show_words(f"Suggested learning rate: {found.suggestion:.1e}", "bold")
        show_words(f"Rule: {RULE}.")
    for path in written:
        show_words(str(path))

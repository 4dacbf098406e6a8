"""How results, errors, progress and trainings look on a terminal.

Where nobody is watching (a log file, a pipe) there are no bars and no colours, only the lines.
"""

from __future__ import annotations

import codecs
import io
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from chestct.errors import printable, printable_message
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.report import as_terminal_table, p_value_text
from chestct.result import ScanResult
from chestct.writers.wording import count, percent

if TYPE_CHECKING:
    from chestct.datasets.workers import Progress as HowFar
    from chestct.evaluation.report import Summary
    from chestct.training.plan import Listener
    from chestct.training.run import EpochLog

_BAR_CELLS = 30
_MOST_COLUMNS = 92


class _PlainConsole(Console):
    """A console on which texts of others (names, headers, labels) are shown and do nothing else."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich renders it, without control characters in its text."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                lines = (printable(line) for line in segment.text.split("\n"))
                yield segment._replace(text="\n".join(lines))


def speak_any_encoding() -> None:
    """What the terminal's encoding lacks is shown as JSON escapes it, and is no error."""
    codecs.register_error("chestct", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="chestct")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    return "".join(f"\\u{code:04x}" for code in codes), error.end


def show_error(message: object) -> None:
    """Say on stderr, once and plainly, what is wrong; lines after the first are indented."""
    text = printable_message(f"chestct: {message}")
    _PlainConsole(stderr=True, highlight=False, soft_wrap=True).print(Text(text))


def show_line(text: object = "") -> None:
    """Say something on one line of stdout, as it is."""
    typer.echo(printable(str(text)))


def show_document(text: str) -> None:
    """Say many lines on stdout, such as JSON or Markdown."""
    for line in text.split("\n"):
        show_line(line)


def show_words(words: str, style: str = "") -> None:
    """Say something on stdout, above any bars, its lines as long as they are."""
    stdout_console().print(Text(words, style), soft_wrap=True)


def show_remark(words: str) -> None:
    """Say what should be known."""
    show_words(f"! {words}", "yellow")


def stdout_console() -> Console:
    """The console that results go to."""
    return _PlainConsole(highlight=False)


def _stderr_console() -> Console:
    """The console that shows what is going on."""
    return _PlainConsole(stderr=True)


def _text(words: str, style: str = "") -> Text:
    """Words of others or ours on lines of their own."""
    return Text(printable_message(words), style)


def show_result(
    console: Console, result: ScanResult, report: Path | None = None, slices: str = ""
) -> None:
    """Show one scan's answer in full; `slices` are words about its slices."""
    parts: list[RenderableType] = [_headline(result), Text()]
    if result.is_suitable:
        parts += [_bars(result), Text()]
    parts += [_text(f"! {reason}", style="yellow") for reason in result.unsuitable_reasons]
    parts += [_text(f"! {warning}", style="yellow") for warning in result.warnings]
    if slices:
        parts.append(_text(slices, style="dim"))
    parts.append(_text(_numbers(result), style="dim"))
    title = _text(f" {result.scan} ")
    width = min(console.width, _MOST_COLUMNS)
    console.print(
        Panel(Group(*parts), title=title, title_align="left", padding=(1, 2), width=width)
    )
    if report is not None:
        console.print(_text(f"Report: {report}"), soft_wrap=True)


def show_table(console: Console, results: Sequence[ScanResult], truths: Sequence[str] = ()) -> None:
    """Show many scans' answers, one line each; `truths` are the labels of simulated ones."""
    lines: list[list[str | Text]] = []
    for number, result in enumerate(results):
        share = result.probabilities.get(result.decision)
        answer = _text(result.decision, style=_style(result))
        lines.append(
            [
                _text(result.scan),
                *([_text(truths[number])] if truths else []),
                answer.append(" (uncertain)" if result.is_uncertain else "", style="yellow"),
                "" if share is None else percent(share),
                f"{result.lung_volume_l:.2f} l",
                str(len(result.warnings)),
                f"{result.timings_s.total:.1f} s",
            ]
        )
    words = ("Scan", *(["Simulated"] if truths else []), "Answer")
    numbers = ("Probability", "Lungs", "Warnings", "Time")
    right = range(len(words), len(words) + len(numbers))
    console.print(as_terminal_table((*words, *numbers), lines, right=right))


def print_table(columns: Iterable[str], lines: Iterable[Iterable[str]]) -> None:
    """Show a table without lines around it."""
    stdout_console().print(as_terminal_table(columns, lines))


def show_notice(console: Console, result: ScanResult) -> None:
    """Say what must stand beside every answer."""
    console.print()
    console.print(_text(result.notice, style="bold"))
    console.print(_text(f"Classifier trained on: {result.provenance.trained_on}", style="dim"))


def show_written(written: Sequence[Path], remarks: Sequence[str]) -> None:
    """Say which files were written, and what was noticed on the way."""
    console = stdout_console()
    for remark in remarks:
        console.print(_text(f"! {remark}", style="yellow"))
    for path in written:
        console.print(_text(str(path)), soft_wrap=True)


def show_info(known: Mapping[str, Mapping[str, str]]) -> None:
    """Show the tables of an installation, one block each."""
    console = stdout_console()
    for heading, entries in known.items():
        console.print(_text(heading.capitalize(), style="bold"))
        table = Table.grid(padding=(0, 3))
        table.add_column(no_wrap=True)
        table.add_column(style="dim")
        for name, words in entries.items() or [("none", "")]:
            table.add_row(_text(f"  {name}"), _text(words))
        console.print(table)
        console.print()


def scan_progress(*, is_quiet: bool) -> Progress:
    """A progress bar over scans, on stderr, and only where somebody is watching."""
    console = _stderr_console()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=is_quiet or not console.is_terminal,
    )


def _headline(result: ScanResult) -> Text:
    share = result.probabilities.get(result.decision)
    words = result.verdict
    headline = _text(words if share is None else f"{words}  {percent(share)}", style=_style(result))
    return headline.append(f"  {result.doubt}", style="yellow") if result.doubt else headline


def _style(result: ScanResult) -> str:
    return "bold cyan" if result.is_suitable else "bold yellow"


def _bars(result: ScanResult) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(width=_BAR_CELLS)
    table.add_column(justify="right")
    speaks_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    full, empty = ("━", "─") if speaks_unicode else ("#", "-")
    for label, share in result.probabilities.items():
        style = "cyan" if label in result.called else "dim"
        filled = round(share * _BAR_CELLS)
        bar = _text(full * filled, style=style).append(empty * (_BAR_CELLS - filled), style="dim")
        table.add_row(_text(result.label_set.words(label)), bar, percent(share))
    return table


def _numbers(result: ScanResult) -> str:
    seconds = result.timings_s
    return (
        f"Lungs {result.lung_volume_l:.2f} l, {count(len(result.warnings), 'warning')}, "
        f"{seconds.total:.1f} s (read {seconds.read:.1f}, prepare {seconds.prepare:.1f}, "
        f"network {seconds.network:.1f})"
    )


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
            f"{_in_words(entry.seconds)}  {_in_words(left)} left"
            f"{'' if memory is None else f'  GPU {memory:.1f} GiB'}"
        )


def _in_words(seconds: float) -> str:
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

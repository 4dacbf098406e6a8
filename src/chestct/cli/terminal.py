"""How results, errors and progress look on a terminal."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from chestct.report.tables import as_terminal_table
from chestct.result import ScanResult
from chestct.writers.wording import count, percent

if TYPE_CHECKING:
    from chestct.datasets.workers import ProgressCallback

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


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[ProgressCallback]:
    """A bar of one work, on stderr; gives what is to be told how far it is."""
    with scan_progress(is_quiet=False) as bar:
        task = bar.add_task(what, total=total)
        yield lambda progress: bar.update(task, completed=progress.done)


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

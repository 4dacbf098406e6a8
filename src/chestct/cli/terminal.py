"""How results, errors and progress look on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from chestct.result import ScanResult
from chestct.writers.wording import count, percent, verdict_of

_BAR_CELLS = 30
_MOST_COLUMNS = 92


def show_error(message: object) -> None:
    """Say on stderr, once and plainly, what is wrong."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"chestct: {message}"))


def stdout_console() -> Console:
    """The console that results go to."""
    return Console(highlight=False)


def show_result(console: Console, result: ScanResult, report: Path | None = None) -> None:
    """Show one scan's answer in full."""
    parts: list[RenderableType] = [_headline(result), Text()]
    if result.is_suitable:
        parts += [_bars(result), Text()]
    parts += [Text(f"! {reason}", style="yellow") for reason in result.unsuitable_reasons]
    parts += [Text(f"! {warning}", style="yellow") for warning in result.warnings]
    parts.append(Text(_numbers(result), style="dim"))
    title = Text(f" {result.scan} ")
    width = min(console.width, _MOST_COLUMNS)
    console.print(
        Panel(Group(*parts), title=title, title_align="left", padding=(1, 2), width=width)
    )
    if report is not None:
        console.print(Text(f"Report: {report}"), soft_wrap=True)


def show_table(console: Console, results: Sequence[ScanResult], truths: Sequence[str] = ()) -> None:
    """Show many scans' answers, one line each; `truths` are the labels of simulated ones."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("Scan", *(["Simulated"] if truths else []), "Answer"):
        table.add_column(name)
    for name in ("Probability", "Lungs", "Warnings", "Time"):
        table.add_column(name, justify="right")
    for number, result in enumerate(results):
        share = result.probabilities.get(result.decision)
        table.add_row(
            Text(result.scan),
            *([Text(truths[number])] if truths else []),
            Text(result.decision, style=_style(result)),
            "" if share is None else percent(share),
            f"{result.lung_volume_l:.2f} l",
            str(len(result.warnings) + len(result.unsuitable_reasons)),
            f"{result.timings_s.total:.1f} s",
        )
    console.print(table)


def show_notice(console: Console, result: ScanResult) -> None:
    """Say what must stand beside every answer."""
    console.print()
    console.print(Text(result.notice, style="bold"))
    console.print(Text(f"Classifier trained on: {result.provenance.trained_on}", style="dim"))


def show_written(written: Sequence[Path], remarks: Sequence[str]) -> None:
    """Say which files were written, and what was noticed on the way."""
    console = stdout_console()
    for remark in remarks:
        console.print(Text(f"! {remark}", style="yellow"))
    for path in written:
        console.print(Text(str(path)), soft_wrap=True)


def show_info(known: Mapping[str, Mapping[str, str]]) -> None:
    """Show the tables of an installation, one block each."""
    console = stdout_console()
    for heading, entries in known.items():
        console.print(Text(heading.capitalize(), style="bold"))
        table = Table.grid(padding=(0, 3))
        table.add_column(no_wrap=True)
        table.add_column(style="dim")
        for name, words in entries.items() or [("none", "")]:
            table.add_row(Text(f"  {name}"), Text(words))
        console.print(table)
        console.print()


def scan_progress(*, is_quiet: bool) -> Progress:
    """A progress bar over scans, on stderr, and only where somebody is watching."""
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=is_quiet or not console.is_terminal,
    )


def _headline(result: ScanResult) -> Text:
    share = result.probabilities.get(result.decision)
    words = verdict_of(result.decision)
    return Text(words if share is None else f"{words}  {percent(share)}", style=_style(result))


def _style(result: ScanResult) -> str:
    return "bold cyan" if result.is_suitable else "bold yellow"


def _bars(result: ScanResult) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(width=_BAR_CELLS)
    table.add_column(justify="right")
    for label, share in result.probabilities.items():
        style = "cyan" if label == result.decision else "dim"
        filled = round(share * _BAR_CELLS)
        bar = Text("━" * filled, style=style).append("─" * (_BAR_CELLS - filled), style="dim")
        table.add_row(Text(verdict_of(label)), bar, percent(share))
    return table


def _numbers(result: ScanResult) -> str:
    seconds = result.timings_s
    return (
        f"Lungs {result.lung_volume_l:.2f} l, {count(len(result.warnings), 'warning')}, "
        f"{seconds.total:.1f} s (read {seconds.read:.1f}, prepare {seconds.prepare:.1f}, "
        f"network {seconds.network:.1f})"
    )

"""What the commands of `chestct study` share: names between commas, rows and tables on screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from chestct.studies.study_rows import NamedRow, Progress, RowT


def names_in(text: str | None) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def say_row(row: NamedRow) -> None:
    """Say which row is begun or gone on with."""
    typer.echo(f"Row {row.name}")


def say_gaps(progress: Progress[RowT]) -> None:
    """Say which rows the table lacks."""
    for row in progress.missing:
        typer.echo(f"! {row.name} is under way in another program.")
    for row in progress.diverged:
        typer.echo(f"! {row.name}: its loss is no longer a number.")


def print_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Show a table without lines around it."""
    from rich.table import Table
    from rich.text import Text

    from chestct.cli.terminal import stdout_console

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    stdout_console().print(table)

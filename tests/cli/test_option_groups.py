from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from chestct.cli.options import grouped


@dataclass(frozen=True)
class Place:
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called.")]
    depth: Annotated[int, typer.Option("--depth", help="How deep it lies.")] = 3


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(show)
    ended = CliRunner().invoke(app, arguments)
    return ended.exit_code, ended.output


@grouped
def show(
    is_loud: Annotated[bool, typer.Option("--loud", help="In capitals.")],
    place: Place,
    times: Annotated[int, typer.Option("--times")] = 1,
) -> None:
    """Say where something is."""
    text = f"{place.name} at {place.depth}\n" * times
    typer.echo(text.upper() if is_loud else text)


def test_each_field_of_a_group_is_an_option_with_its_own_help() -> None:
    code, shown = run("--help")
    assert code == 0
    for text in ("NAME", "What it is called.", "--depth", "How deep it lies.", "[default: 3]"):
        assert text in shown
    assert "Say where something is." in shown
    assert "place" not in shown.lower()


def test_a_command_gets_its_group_with_what_was_said_and_defaults_for_the_rest() -> None:
    assert run("lung", "--loud", "--depth", "5")[1] == "LUNG AT 5\n\n"
    assert run("lung", "--loud", "--times", "2")[1] == "LUNG AT 3\nLUNG AT 3\n\n"


def test_what_a_group_needs_is_asked_for() -> None:
    code, shown = run("--loud")
    assert code == 2
    assert "NAME" in shown


def test_two_options_of_one_name_are_refused_when_the_command_is_made() -> None:
    def twice(depth: int, place: Place) -> None:
        """Take a depth from two places."""

    with pytest.raises(ValueError, match="duplicate parameter name: 'depth'"):
        grouped(twice)

"""`chestct check-plugin`: does what another package brings do what our own entries do?"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from chestct.cli.terminal import print_table, show_line
from chestct.errors import ChestCTError, UnknownNameError

if TYPE_CHECKING:
    from chestct.lookup import Plugin


def check_plugin(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A package, or one of the entries that it brings."),
    ],
    settings: Annotated[
        str,
        typer.Option("--settings", metavar="JSON", help="Of a network, such as '{\"width\": 4}'."),
    ] = "{}",
    shape: Annotated[
        tuple[int, int, int],
        typer.Option("--shape", metavar="D H W", help="Voxels of a network's input."),
    ] = (40, 36, 44),
    example: Annotated[
        Path | None,
        typer.Option("--example", metavar="SCAN", help="A scan that a reader reads."),
    ] = None,
) -> None:
    """Check what an installed plug-in promises: networks, encoders, recipes, readers, writers."""
    from chestct.contracts import PROMISES, broken

    num_broken = 0
    with TemporaryDirectory() as folder:
        for plugin in _named(name):
            plugin.load()
            case = _case(plugin, _settings(settings), shape, example, Path(folder))
            found = list(broken(PROMISES[plugin.kind], case))
            num_broken += sum(bool(why) for _, why in found)
            rows = [[words, f"broken: {why}" if why else "kept"] for words, why in found]
            show_line(f"{plugin.kind} '{plugin.name}' {plugin.origin}")
            print_table(("promise", "found"), rows)
    if num_broken:
        show_line(f"{num_broken} of these promises are broken.")
        raise typer.Exit(1)


def _named(name: str) -> list[Plugin]:
    """The entry points of that name, or all that a package of that name brings."""
    from chestct.cli.info import every_plugin
    from chestct.lookup import unknown_name_message

    every = every_plugin()
    found = [plugin for plugin in every if name in (plugin.name, plugin.package)]
    if not found:
        known = dict.fromkeys(text for each in every for text in (each.package, each.name))
        raise UnknownNameError(unknown_name_message(name, known, kind="plug-in"))
    return found


def _settings(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ChestCTError(f"--settings {text}: expected JSON such as '{{\"width\": 4}}'.")
    return found


def _case(
    plugin: Plugin,
    settings: dict[str, object],
    shape: tuple[int, int, int],
    example: Path | None,
    folder: Path,
) -> object:
    """Something small to try an entry on."""
    from chestct import contracts

    if plugin.kind in ("network", "encoder"):
        return contracts.NetworkCase(plugin.name, settings, shape)
    if plugin.kind == "reader":
        if example is None:
            msg = f"--example is missing: name a scan that the reader '{plugin.name}' reads."
            raise ChestCTError(msg)
        return contracts.ReaderCase(plugin.name, example)
    return contracts.case_of_patient(plugin.kind, plugin.name, folder)

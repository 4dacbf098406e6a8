"""`chestct info` and `check-plugin`: what this installation can do, and what a plug-in promises.

`info` says it at once and without loading any of it.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from chestct.cli.terminal import print_table, show_document, show_info, show_line
from chestct.errors import ChestCTError, UnknownNameError

if TYPE_CHECKING:
    from chestct.lookup import Plugin

_PACKAGES = ("torch", "openvino", "numpy", "scipy", "pydicom", "imagecodecs", "nibabel")
# Where `chestct.classifier` has it too; that module takes a while to load.
_DEFAULT_CARD = Path(__file__).parents[1] / "default_classifier" / "card.json"


def info(
    is_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """List readers, recipes, networks, engines, classifiers and what other packages add."""
    known = _describe_installation()
    if is_json:
        show_document(json.dumps(known, indent=2))
    else:
        show_info(known)


def _describe_installation() -> dict[str, dict[str, str]]:
    """Every table of the package, name to words, and the versions of what it stands on."""
    from chestct import __version__
    from chestct.cluster import EXECUTORS
    from chestct.engines import ENGINES
    from chestct.explain import EXPLANATIONS
    from chestct.networks import NETWORKS
    from chestct.preprocess.recipes import RECIPES
    from chestct.readers import READERS
    from chestct.training.settings import shipped_folder, shipped_names
    from chestct.writers import WRITERS

    return {
        "versions": {
            "chestct": __version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
        },
        "readers": {name: _in_short(reader) for name, reader in READERS.items()},
        "recipes": {
            name: f"{' × '.join(map(str, recipe.input_shape))}, lungs: {recipe.lungs}"
            for name, recipe in RECIPES.items()
        },
        "networks": {name: network.summary for name, network in NETWORKS.items()},
        "engines": {name: engine.summary for name, engine in ENGINES.items()},
        "explanations": {name: method.summary for name, method in EXPLANATIONS.items()},
        "writers": {name: entry.summary for name, entry in WRITERS.items()},
        "executors": {name: entry.summary for name, entry in EXECUTORS.items()},
        "plugins": {
            f"{plugin.kind} {plugin.name}": f"refused: {plugin.problem}"
            if plugin.problem
            else plugin.origin
            for plugin in _every_plugin()
        },
        "classifiers": _classifiers(),
        "settings": {
            name: _first_line(shipped_folder() / f"{name}.yaml") for name in shipped_names()
        },
    }


def _every_plugin() -> list[Plugin]:
    """All entry points of other packages, none of them imported."""
    from chestct.explain import EXPLANATIONS
    from chestct.lookup import plugins_of
    from chestct.networks import NETWORKS
    from chestct.preprocess.recipes import RECIPES
    from chestct.readers import READERS
    from chestct.writers import WRITERS

    tables: dict[str, Collection[str]] = {
        "network": NETWORKS,
        "encoder": NETWORKS,
        "recipe": RECIPES,
        "reader": READERS,
        "writer": WRITERS,
        "explanation": EXPLANATIONS,
    }
    return [plugin for kind, own in tables.items() for plugin in plugins_of(kind, own).values()]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _in_short(described: object) -> str:
    return re.split(r"[;\n]", (described.__doc__ or "").strip())[0].rstrip(".")


def _first_line(file: Path) -> str:
    """What the comment says that a settings file begins with, without its source."""
    line = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#")
    return re.split(r"[(.]", line)[0].strip()


def _classifiers() -> dict[str, str]:
    """The shipped classifier, read from its card alone."""
    if not _DEFAULT_CARD.is_file():
        return {}
    card = json.loads(_DEFAULT_CARD.read_text(encoding="utf-8"))
    return {"default": f"{card['name']} {card['version']}; trained on {card['trained_on']}"}


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
    from chestct.lookup import unknown_name_message

    every = _every_plugin()
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

"""`chestct info`: what this installation can do, at once and without loading any of it."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chestct.cli.terminal import show_document, show_info

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
            for plugin in every_plugin()
        },
        "classifiers": _classifiers(),
        "settings": {
            name: _first_line(shipped_folder() / f"{name}.yaml") for name in shipped_names()
        },
    }


def every_plugin() -> list[Plugin]:
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

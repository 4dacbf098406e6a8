"""Imports point only downwards: every module of the package, imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "chestct"

LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "arrays",
        "labels",
        "lookup",
        "extras",
        "library_warnings",
        "memory",
        "storage",
        "remote",
    ),
    ("report",),
    ("volume",),
    ("readers", "networks", "result", "simulate"),
    ("engines",),
    ("preprocess",),
    ("card", "familiarity", "classifier"),
    ("explain", "datasets", "evaluation", "analysis", "pictures"),
    ("training", "pipeline", "writers"),
    ("studies", "contracts", "api", "export"),
    ("serve", "node", "cluster"),
    ("cli", "__init__", "__main__"),
)
"""Lowest first. Within a layer a single module may import what stands before it; a package may not.

`__init__` is the package itself: it gives users the public names, so it stands on top; only
`__version__` may be taken from it further down.
"""

Place = tuple[int, int]
PLACES: dict[str, Place] = {
    name: (level, position)
    for level, names in enumerate(LAYERS)
    for position, name in enumerate(names)
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The top-level module or package a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(source: str) -> Iterator[str]:
    """Top-level parts of chestct that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        for name in imported_names(node):
            root, _, rest = name.partition(".")
            if root == "chestct":
                yield rest.split(".")[0] or "__init__"


def imported_names(node: ast.AST) -> list[str]:
    """Dotted names of what one node imports; nothing for nodes that import nothing."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            return ["chestct.a-relative-import"]
        if node.module == "chestct":
            return [f"chestct.{alias.name}" for alias in node.names]
        return [node.module or ""]
    is_dynamic = isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func)
    if is_dynamic and node.args and isinstance(node.args[0], ast.Constant):
        return [str(node.args[0].value)]
    return []


def breaches(source: str, part: str, *, is_package: bool) -> list[str]:
    """Which imports of a source, standing in `part`, do not point downwards."""
    level, position = PLACES[part]
    found = []
    for imported in imported_parts(source):
        if imported in (part, "__version__"):
            continue
        if imported not in PLACES:
            found.append(f"{part} imports {imported}, which belongs to no layer")
            continue
        other_level, other_position = PLACES[imported]
        is_lower = other_level < level
        is_before = other_level == level and other_position < position and not is_package
        if not (is_lower or is_before):
            found.append(f"{part} (layer {level}) imports {imported} (layer {other_level})")
    return found


def test_the_package_is_found_and_not_empty() -> None:
    assert {"errors", "volume", "readers"} <= {part_of(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_belongs_to_a_layer_and_imports_only_lower_ones(path: Path) -> None:
    part = part_of(path)
    assert part in PLACES, f"{part} is in no layer: add it to LAYERS, and to docs"
    is_package = (PACKAGE / part).is_dir()
    assert breaches(path.read_text(encoding="utf-8"), part, is_package=is_package) == []


@pytest.mark.parametrize(
    ("source", "part", "imported"),
    [
        ("import chestct.cli", "volume", "cli"),
        ("from chestct.pipeline import classify_scan", "readers", "pipeline"),
        ("def f():\n    from chestct.networks import roi", "readers", "networks"),
        ("from chestct import classifier", "engines", "classifier"),
        ("from chestct.preprocess import prepare", "engines", "preprocess"),
        ("import_module('chestct.training.loop')", "evaluation", "training"),
        ("importlib.import_module('chestct.serve')", "writers", "serve"),
        ("if TYPE_CHECKING:\n    from chestct.analysis import ScanAnalysis", "engines", "analysis"),
        ("from chestct import RECIPES", "writers", "RECIPES"),
        ("import chestct", "writers", "__init__"),
        ("from . import blocks", "networks", "a-relative-import"),
        ("from chestct.utils import anything", "cli", "utils"),
    ],
)
def test_an_import_upwards_sideways_or_of_an_unknown_part_is_noticed(
    source: str, part: str, imported: str
) -> None:
    (breach,) = breaches(source, part, is_package=True)
    assert f"{part} " in breach
    assert f"imports {imported}" in breach


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("from chestct.errors import ReadError", "readers"),
        ("import chestct.volume\nimport numpy", "readers"),
        ("from chestct.networks.blocks import Stem", "networks"),
        ("from chestct import __version__", "evaluation"),
        ("import chestctools", "readers"),
        ("find('chestct.cli')", "readers"),
    ],
)
def test_an_import_downwards_or_within_the_same_package_is_no_breach(
    source: str, part: str
) -> None:
    assert breaches(source, part, is_package=True) == []


def test_a_single_module_may_import_only_what_stands_before_it_in_its_layer() -> None:
    assert breaches("import chestct.engines", "classifier", is_package=False) == []
    assert breaches("import chestct.classifier", "card", is_package=False) != []

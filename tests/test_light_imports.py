"""Start-up matters: the tables, the readers' dispatcher and the command line load nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chestct.networks import NETWORKS

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "chestct"

HEAVY = (
    *("torch", "scipy", "cv2", "pydicom", "openvino", "matplotlib", "sklearn", "nibabel"),
    *("starlette", "uvicorn", "fsspec", "aiohttp"),
)

LIGHT = (
    "chestct",
    "chestct.cli",
    "chestct.volume",
    "chestct.result",
    "chestct.preprocess.recipes",
    "chestct.networks",
    "chestct.readers",
    "chestct.writers",
    "chestct.engines",
)

TABLES = {
    "chestct.preprocess.recipes": "RECIPES",
    "chestct.preprocess.lungs": "LUNG_METHODS",
    "chestct.networks": "NETWORKS",
    "chestct.readers": "READERS",
    "chestct.writers": "WRITERS",
    "chestct.engines": "ENGINES",
    "chestct.explain": "EXPLANATIONS",
}

# Imports one after the other in a fresh interpreter; says which heavy packages each brought in.
IMPORT_ONE_BY_ONE = """
import json, sys
from importlib import import_module
heavy, brought = set(json.loads(sys.argv[1])), {}
for name in json.loads(sys.argv[2]):
    before = set(sys.modules)
    import_module(name)
    brought[name] = sorted(heavy & {new.split(".")[0] for new in set(sys.modules) - before})
print(json.dumps(brought))
"""

RUN_COMMAND = """
import json, sys
from chestct.cli import main
try:
    status = main(json.loads(sys.argv[2]))
except SystemExit as end:
    status = end.code
heavy = set(json.loads(sys.argv[1])) & {name.split(".")[0] for name in sys.modules}
print()
print(json.dumps([status, sorted(heavy)]))
"""

BUILD_WITHOUT_MEMORY = """
import json, sys
import torch
from chestct.networks import build_network
with torch.device("meta"):
    for name in json.loads(sys.argv[2]):
        build_network(name, 1, 3)
print(json.dumps("torch._dynamo" in sys.modules))
"""


def run_fresh(program: str, argument: list[str]) -> object:
    """What a program prints as its last line, run in a new interpreter."""
    command = [sys.executable, "-c", program, json.dumps(HEAVY), json.dumps(argument)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def package_names() -> list[str]:
    """Every package of chestct, by its folder."""
    folders = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))
    return [".".join(("chestct", *folder.relative_to(PACKAGE).parts)) for folder in folders]


def test_light_modules_and_every_package_import_nothing_heavy() -> None:
    names = list(dict.fromkeys([*LIGHT, *TABLES, *package_names()]))
    assert run_fresh(IMPORT_ONE_BY_ONE, names) == {name: [] for name in names}


def test_heavy_imports_would_be_noticed() -> None:
    assert run_fresh(IMPORT_ONE_BY_ONE, ["scipy.ndimage"]) == {"scipy.ndimage": ["scipy"]}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["classify", "--help"], ["serve", "--help"], ["info", "--json"]]
)
def test_help_and_info_answer_without_loading_anything_heavy(arguments: list[str]) -> None:
    assert run_fresh(RUN_COMMAND, arguments) == [0, []]


def test_networks_without_memory_are_built_without_loading_the_compiler() -> None:
    assert run_fresh(BUILD_WITHOUT_MEMORY, list(NETWORKS)) is False


@pytest.mark.parametrize(("module", "table"), TABLES.items())
def test_tables_are_plain_dicts_of_names(module: str, table: str) -> None:
    from importlib import import_module

    found = getattr(import_module(module), table)
    assert type(found) is dict
    assert found
    assert all(isinstance(name, str) for name in found)

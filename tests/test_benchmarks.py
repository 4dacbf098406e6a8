"""Benchmarks and scripts import what is there; without what they need they end in a sentence."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
PROGRAMS = sorted([*BENCHMARKS.glob("*.py"), *(ROOT / "scripts").glob("*.py")])


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_a_program_imports_from_the_package_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("chestct"):
            module = import_module(str(node.module))
            for name in (alias.name for alias in node.names):
                is_there = hasattr(module, name) or find_spec(f"{node.module}.{name}")
                assert is_there, f"line {node.lineno}: {node.module} has no {name}"


def test_a_benchmark_without_its_scans_says_how_to_name_them(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(BENCHMARKS / "reading.py")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CHESTCT_DATA": str(tmp_path)},
    )
    assert ended.returncode == 1
    assert "CHESTCT_DATA=FOLDER" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_every_benchmark_finds_scans_and_ends_in_the_one_way() -> None:
    for path in BENCHMARKS.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "measuring.py":
            assert 'environ.get("CHESTCT_DATA"' not in text, path.name
            assert 'if __name__ == "__main__":\n    run(' in text, path.name


def test_a_benchmark_without_a_package_names_it_and_the_extra() -> None:
    program = "from measuring import run\nrun(lambda: __import__('skimage_gone'))"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=BENCHMARKS, capture_output=True, text=True, check=False
    )
    assert ended.stderr == (
        "skimage_gone is missing, which this compares with: pip install -e '.[dev]'\n"
    )

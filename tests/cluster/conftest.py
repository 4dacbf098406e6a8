"""Jobs of light work: see `counting`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_PATH = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `counting.py` with arguments; what is left at the end is killed."""
    started = []

    def begin(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("counting.py")), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Workers that are no children of the driver find its work so.
            env={**os.environ, "PYTHONPATH": _PATH, **environment},
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()

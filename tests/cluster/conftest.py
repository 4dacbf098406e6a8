"""Jobs of light work: see `counting`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `counting.py` with arguments; what is left at the end is killed."""
    started = []

    def begin(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        import os

        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("counting.py")), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()

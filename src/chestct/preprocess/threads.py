"""Slices shared out over threads: NumPy, SciPy and OpenCV let go of Python's lock as they work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

_MAX_THREADS: Final = 4
"""More than these gain little: memory is what slices wait for."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def on_threads(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """What `work` makes of each item, in order; the first error raised is raised here."""
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as threads:
        return list(threads.map(work, items))

"""The work of local workers, done in this process: a process of its own costs seconds to start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from chestct.cluster.driver import _WorkerEnd
from chestct.cluster.job import work_on


class _Here:
    """Stands in for `LocalCrew`."""

    def __init__(self, folder: Path, options: Mapping[str, str], num_workers: int) -> None:
        self.folder = folder

    def start(self, num: int) -> None:
        work_on(self.folder)

    def ended(self) -> list[_WorkerEnd]:
        return []

    def stop(self) -> None:
        pass


def work_here(patch: pytest.MonkeyPatch) -> None:
    """For tests of something else than workers."""
    patch.setattr("chestct.cluster.driver.LocalCrew", _Here)

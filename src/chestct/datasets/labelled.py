"""Labelled scans as a training run wants them: prepared all at once, then read one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch.utils.data import Dataset

from chestct.datasets.cache import Cache
from chestct.datasets.entries import CacheError
from chestct.datasets.manifest import Manifest, ManifestError
from chestct.datasets.scans import read_options
from chestct.datasets.workers import ProgressCallback, run_all
from chestct.errors import ChestCTError
from chestct.readers import ReadOptions


@dataclass(frozen=True)
class Preparation:
    """How preparing many scans went.

    Attributes:
        num_made: Inputs prepared.
        num_found: Inputs that were there already.
        failed: Row number to the reason, of scans that could not be read or prepared.
        unsuitable: Row number to the reasons, of scans that should not be classified.
        max_error: Largest error of a stored value.
        seconds: What it took.
    """

    num_made: int
    num_found: int
    failed: Mapping[int, str]
    unsuitable: Mapping[int, tuple[str, ...]]
    max_error: float
    seconds: float


class LabelledScans(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Prepared inputs of a manifest's scans with their labels; made when they are not there yet.

    Attributes:
        cache: Where they are kept.
        manifest: The scans.
        labels: Index of each item's label.
        variants: Inputs per scan; see `Cache.get`. Items are all scans as they are, then all scans
            of the next variant.
    """

    def __init__(self, cache: Cache, manifest: Manifest, variants: int = 1) -> None:
        self.cache = cache
        self.manifest = manifest
        self.variants = variants
        self.labels = manifest.label_indices * variants
        self._options = [read_options(row) for row in manifest.rows]

    def __len__(self) -> int:
        """Number of inputs."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Input (channel, depth, height, width), lungs (1, depth, height, width), label.

        Raises:
            IndexError: There is no such item.
            ChestCTError: The scan cannot be read or prepared; the message names its row.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        variant, number = divmod(index, len(self.manifest))
        row = self.manifest.rows[number]
        try:
            found = self.cache.get(self.manifest.path(row), self._options[number], variant)
        except ChestCTError as error:
            raise type(error)(f"{self.manifest.name}, row {row.number}: {error}") from error
        lungs = torch.from_numpy(found.lungs[None].astype(np.float32))
        return torch.from_numpy(found.input), lungs, self.labels[index]


@dataclass(frozen=True)
class _Task:
    """One input to be prepared, by any process."""

    cache: Cache
    path: Path
    options: ReadOptions
    variant: int
    row: int


@dataclass(frozen=True)
class _Outcome:
    """What became of a task."""

    row: int
    was_there: bool = False
    error: str = ""
    unsuitable_reasons: tuple[str, ...] = ()
    max_error: float = 0.0


def prepare_all(
    cache: Cache,
    manifest: Manifest,
    *,
    variants: int = 1,
    processes: int | None = None,
    progress: ProgressCallback | None = None,
) -> Preparation:
    """Prepare every scan that is not in the cache yet, in all processes at once.

    A call that was interrupted goes on where it stopped. A scan that cannot be read or prepared
    does not stop the others: its reason is returned.

    Args:
        cache: Where inputs are kept.
        manifest: The scans.
        variants: Inputs per scan; see `Cache.get`.
        processes: How many at once; None takes all cores.
        progress: Called after each input.

    Raises:
        ManifestError: A row says something impossible about how its scan is read.
        CacheError: The cache could not hold all of them at once, or cannot be written.
        WorkerError: A process was killed.
    """
    if variants < 1:
        raise ManifestError(f"There must be at least one input per scan, not {variants}.")
    cache.require_room(len(manifest) * variants)
    started = perf_counter()
    tasks = [
        _Task(cache, manifest.path(row), read_options(row), variant, row.number)
        for variant in range(variants)
        for row in manifest.rows
    ]
    outcomes = run_all(_prepare_one, tasks, processes=processes, progress=progress)
    return Preparation(
        num_made=sum(not each.was_there and not each.error for each in outcomes),
        num_found=sum(each.was_there for each in outcomes),
        failed={each.row: each.error for each in outcomes if each.error},
        unsuitable={
            each.row: each.unsuitable_reasons for each in outcomes if each.unsuitable_reasons
        },
        max_error=max((each.max_error for each in outcomes), default=0.0),
        seconds=perf_counter() - started,
    )


def _prepare_one(task: _Task) -> _Outcome:
    try:
        found, was_there = task.cache.fetch(task.path, task.options, task.variant)
    except CacheError:
        # The folder itself is the trouble: it would be with the next scan too.
        raise
    except ChestCTError as error:
        return _Outcome(task.row, error=str(error))
    return _Outcome(
        task.row,
        was_there=was_there,
        unsuitable_reasons=found.unsuitable_reasons,
        max_error=found.max_error,
    )

"""Workers as processes of this machine, which share out its cores among them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from chestct.cluster import WorkerEnd
from chestct.cluster.job import ClusterError
from chestct.datasets.workers import end_with_parent, interrupts_held_back
from chestct.errors import ChestCTError, kind_of
from chestct.library_warnings import rephrase_from_now_on, shows_own_words

_GPUS: Final = "gpus"
_ENDS_WITHIN_S: Final = 30.0


class LocalCrew:
    """Processes, each on its share of the cores and each ending when this one does.

    Args:
        folder: The job's.
        options: `gpus`, numbers with commas: which of CUDA's GPUs the processes see, in turn.
        num_workers: How many there will be at once.

    Raises:
        ClusterError: Another option was given, or no numbers.
    """

    def __init__(self, folder: Path, options: Mapping[str, str], num_workers: int) -> None:
        unknown = next((name for name in options if name != _GPUS), None)
        if unknown is not None:
            msg = f"The executor 'local' has no option '{unknown}'. Known: {_GPUS}."
            raise ClusterError(msg)
        self._gpus = [each.strip() for each in options[_GPUS].split(",")] if options else []
        if not all(each.isdecimal() for each in self._gpus):
            raise ClusterError(f"gpus={options[_GPUS]} names no GPUs. Expected numbers: gpus=0,1.")
        self._folder = folder
        self._shares = _shares_of_cores(num_workers)
        self._running: dict[BaseProcess, tuple[Connection, int]] = {}

    def start(self, num: int) -> None:
        """Start so many processes more."""
        context = get_context("spawn")
        for _ in range(num):
            taken = [share for _, share in self._running.values()]
            share = min(range(len(self._shares)), key=taken.count)
            hearing, telling = context.Pipe(duplex=False)
            gpu = self._gpus[share % len(self._gpus)] if self._gpus else None
            said = (self._folder, self._shares[share], gpu, telling, shows_own_words())
            process = context.Process(target=_work, args=said)
            with interrupts_held_back():
                process.start()
            telling.close()
            self._running[process] = (hearing, share)

    def ended(self) -> list[WorkerEnd]:
        """Those that ended since this was asked last."""
        gone = [process for process in self._running if not process.is_alive()]
        return [_how(process, self._running.pop(process)[0]) for process in gone]

    def stop(self) -> None:
        """End those that are left; what they were at is done by others, or another time."""
        for process in self._running:
            process.terminate()
        # Each gives its shard back first, and a training writes its state.
        until = time.monotonic() + _ENDS_WITHIN_S
        for process in self._running:
            process.join(max(0.0, until - time.monotonic()))
            process.kill()
            process.join()
        self._running.clear()


def _how(process: BaseProcess, hearing: Connection) -> WorkerEnd:
    process.join()
    refusal = None
    if hearing.poll():
        try:
            refusal = hearing.recv()
        except EOFError:
            refusal = None
    hearing.close()
    return WorkerEnd(is_lost=True) if refusal is None else WorkerEnd(str(refusal))


def _work(
    folder: Path, cores: set[int], gpu: str | None, telling: Connection, is_debugging: bool | None
) -> None:
    """The life of a process: work, and say at the end why it would not, or nothing."""
    end_with_parent()
    # A worker that is told to stop lets others have its shard at once.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    rephrase_from_now_on(is_debugging=is_debugging)
    # Before any library looks how many cores there are: each takes as many threads.
    if hasattr(os, "sched_setaffinity") and cores:
        os.sched_setaffinity(0, cores)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    from chestct.cluster.worker import work_on

    try:
        work_on(folder)
        telling.send("")
    except ChestCTError as error:
        telling.send(str(error))
    except Exception as error:
        telling.send(f"internal error ({kind_of(error)})")
        raise


def _shares_of_cores(num_workers: int) -> list[set[int]]:
    """Which cores each of so many workers takes; empty sets where nobody can say."""
    if not hasattr(os, "sched_getaffinity"):
        return [set() for _ in range(num_workers)]
    cores = sorted(os.sched_getaffinity(0))
    if num_workers >= len(cores):
        return [{cores[each % len(cores)]} for each in range(num_workers)]
    return [set(cores[each::num_workers]) for each in range(num_workers)]

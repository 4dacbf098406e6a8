"""Do the same to many scans, in as many processes as there are cores, and say how long it takes.

joblib would not do: the processes of its loky go on working after their parent has ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from typing import Final, TypeVar

from chestct.errors import ChestCTError
from chestct.library_warnings import rephrase_from_now_on, shows_own_words
from chestct.storage import reason_of

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


_PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal that a process gets when its parent ends."""


@dataclass(frozen=True)
class Progress:
    """How many of all scans are finished, and the seconds since the start."""

    done: int
    total: int
    seconds: float


ProgressCallback = Callable[[Progress], None]


def num_cores() -> int:
    """Cores this process may use; fewer than the machine has in a container or a batch job."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def run_all(
    work: Callable[[_Task], _Result],
    tasks: Sequence[_Task],
    *,
    processes: int | None = None,
    progress: ProgressCallback | None = None,
) -> list[_Result]:
    """Call `work` on every task and return the results in the order of the tasks.

    `work` is a function of a module, so that other processes find it; with one process (None takes
    one per core) all is done in this one. `progress` is called here after each task.

    Raises:
        ChestCTError: A process was killed. Work that leaves its results on disk can be taken up.
    """
    count = min(processes or num_cores(), len(tasks))
    started = time.perf_counter()
    results: dict[int, _Result] = {}
    alone = ((index, work(task)) for index, task in enumerate(tasks))
    for index, result in alone if count <= 1 else _together(work, tasks, count):
        results[index] = result
        if progress is not None:
            progress(Progress(len(results), len(tasks), time.perf_counter() - started))
    return [results[index] for index in range(len(tasks))]


def _together(
    work: Callable[[_Task], _Result], tasks: Sequence[_Task], count: int
) -> Iterator[tuple[int, _Result]]:
    # Forking a process that has used torch's threads can hang; a fresh interpreter cannot.
    others = set(active_children())
    try:
        pool = ProcessPoolExecutor(
            count,
            mp_context=get_context("spawn"),
            initializer=_begin,
            initargs=(shows_own_words(),),
        )
    except OSError as error:
        # Locks between processes lie in shared memory, which a container may hold read-only.
        raise ChestCTError(
            f"Processes cannot share memory here: {reason_of(error)}. Make /dev/shm writable, or "
            "work in one process: --processes 1."
        ) from error
    try:
        with interrupts_held_back():
            futures: dict[Future[_Result], int] = {
                pool.submit(work, task): index for index, task in enumerate(tasks)
            }
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise ChestCTError(
            "A process that was working on a scan was ended from outside, most often because "
            f"memory ran out. Start again with fewer than {count} processes."
        ) from error
    except BaseException:
        # Whoever ends this does not wait for scans that are under way, and needs none of them.
        for process in set(active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def end_with_parent() -> None:
    """See to it that this process ends when the one that started it does, however that ends.

    On Linux the kernel does it, at once and whatever this process is doing; elsewhere, and for a
    parent that has ended already, a thread waits for the parent's end of a pipe to close.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _begin(is_debugging: bool | None) -> None:
    end_with_parent()
    rephrase_from_now_on(is_debugging=is_debugging)
    _use_one_thread()


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Processes started inside leave Ctrl-C, which all of a terminal get, to this one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _use_one_thread() -> None:
    """Keep the libraries of a process to one thread: the cores are shared out among processes.

    PyTorch takes a second to load and not all work needs it: it is told where it will look.
    """
    import cv2

    cv2.setNumThreads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)

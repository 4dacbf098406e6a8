"""What starts workers: processes of this machine, jobs of SLURM, actors of Ray."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from chestct.datasets.workers import end_with_parent, interrupts_held_back
from chestct.errors import ChestCTError, kind_of
from chestct.extras import import_extra
from chestct.library_warnings import rephrase_from_now_on, shows_own_words

_ENDS_WITHIN_S: Final = 30.0
_ANSWERS_WITHIN_S: Final = 5.0
_AUTHENTICATION: Final = "RAY_AUTH_MODE"
_SLURM_DEFAULTS: Final = {"timeout_min": 240, "cpus_per_task": 4, "name": "chestct"}
_CLUSTER: Final = "cluster"
"""The option that takes another one of submitit's executors: local, debug."""


@dataclass(frozen=True)
class WorkerEnd:
    """A worker has ended.

    Attributes:
        refusal: Why it will not work, where it said so; another one would say the same.
        is_lost: Whether it ended without a word: it was killed, or its machine vanished.
    """

    refusal: str = ""
    is_lost: bool = False


@runtime_checkable
class Crew(Protocol):
    """Workers on one job; made as `crew(folder, options)`.

    Raises:
        ChestCTError: An option is unknown or impossible, or the cluster cannot be reached.
        MissingExtraError: The package it needs is not installed.
    """

    def start(self, num: int) -> None:
        """Start so many workers more."""

    def ended(self) -> list[WorkerEnd]:
        """Those that ended since this was asked last."""

    def stop(self) -> None:
        """End those that are left."""


def _refuse_unknown(options: Mapping[str, str], executor: str, *known: str) -> None:
    for name in options:
        if name not in known:
            msg = f"The executor '{executor}' has no option '{name}'. Known: {', '.join(known)}."
            raise ChestCTError(msg)


def _refusal_of(folder: Path) -> str:
    """Work, in a worker's process; the reason why it would not, or nothing."""
    from chestct.cluster.worker import work_on

    try:
        work_on(folder)
    except ChestCTError as error:
        return str(error)
    return ""


class LocalCrew:
    """Processes, each on its share of the cores and each ending when this one does.

    Args:
        folder: The job's.
        options: `gpus`, numbers with commas: which of CUDA's GPUs the processes see, in turn.
        num_workers: How many there will be at once.

    Raises:
        ChestCTError: Another option was given, or no numbers.
    """

    def __init__(self, folder: Path, options: Mapping[str, str], num_workers: int) -> None:
        _refuse_unknown(options, "local", "gpus")
        self._gpus = [each.strip() for each in options["gpus"].split(",")] if options else []
        if not all(each.isdecimal() for each in self._gpus):
            raise ChestCTError(f"gpus={options['gpus']} names no GPUs. Expected numbers: gpus=0,1.")
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
            process = context.Process(target=_work_as_process, args=said)
            with interrupts_held_back():
                process.start()
            telling.close()
            self._running[process] = (hearing, share)

    def ended(self) -> list[WorkerEnd]:
        """Those that ended since this was asked last."""
        gone = [process for process in self._running if not process.is_alive()]
        return [_end_of(process, self._running.pop(process)[0]) for process in gone]

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


def _end_of(process: BaseProcess, hearing: Connection) -> WorkerEnd:
    process.join()
    refusal = None
    if hearing.poll():
        try:
            refusal = hearing.recv()
        except EOFError:
            refusal = None
    hearing.close()
    return WorkerEnd(is_lost=True) if refusal is None else WorkerEnd(str(refusal))


def _work_as_process(
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
    try:
        telling.send(_refusal_of(folder))
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


class SlurmCrew:
    """An array of jobs, each one worker; one that runs out of time is queued again.

    Args:
        folder: The job's, on a disk that all nodes see.
        options: submitit's own parameters, such as `timeout_min`, `slurm_partition`, `mem_gb`,
            `gpus_per_node`; see `submitit.AutoExecutor.update_parameters`.
        num_workers: How many there will be at once.

    Raises:
        ChestCTError: An option is unknown, or there is no SLURM here.
        MissingExtraError: submitit is not installed.
    """

    def __init__(self, folder: Path, options: Mapping[str, str], num_workers: int) -> None:
        submitit = import_extra("submitit", extra="slurm")
        said = {**_SLURM_DEFAULTS, **{name: _value(text) for name, text in options.items()}}
        cluster = str(said.pop(_CLUSTER, "slurm"))
        try:
            self._executor = submitit.AutoExecutor(folder / "slurm", cluster=cluster)
            if cluster == "slurm":
                said.setdefault("slurm_array_parallelism", num_workers)
            self._executor.update_parameters(**said)
        except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
            msg = f"Workers cannot be sent to '{cluster}': {str(error).splitlines()[0]}"
            raise ChestCTError(
                f"{msg} Run this where sbatch is, and correct the options."
            ) from error
        self._folder = folder
        self._jobs: list[Any] = []

    def start(self, num: int) -> None:
        """Submit so many jobs more, as one array."""
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(_SlurmWorker(str(self._folder))) for _ in range(num)]
        except Exception as error:
            # submitit has errors of its own for what sbatch says, by version.
            msg = f"SLURM takes no job: {' '.join(str(error).split())[:300]}"
            raise ChestCTError(msg) from error
        self._jobs += jobs

    def ended(self) -> list[WorkerEnd]:
        """Those that ended since this was asked last."""
        gone = [job for job in self._jobs if job.done()]
        self._jobs = [job for job in self._jobs if job not in gone]
        return [
            WorkerEnd(is_lost=True) if job.exception() is not None else WorkerEnd(str(job.result()))
            for job in gone
        ]

    def stop(self) -> None:
        """Cancel those that are left."""
        for job in self._jobs:
            job.cancel()
        self._jobs = []


class _SlurmWorker:
    """What a job runs; submitit stores it with pickle, and it holds one path."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self) -> str:
        """Work; the reason why it would not, or nothing."""
        return _refusal_of(Path(self.folder))

    def checkpoint(self) -> Any:
        """What is queued when the time is up or the job is preempted: the same again."""
        return import_extra("submitit", extra="slurm").helpers.DelayedSubmission(self)


def _value(text: str) -> object:
    """A number where it is one."""
    return int(text) if text.isdecimal() else text


class RayCrew:
    """Actors, each one worker; Ray puts them where CPUs or GPUs are free.

    Ray's token authentication is on and its usage statistics are off. An actor whose node is lost
    ends; its shard goes to others when its lease is over, and another actor is started.

    Args:
        folder: The job's, on a disk that all nodes see.
        options: `address` of the cluster's head (HOST:PORT; without it a cluster of this machine
            alone is started), `cpus` and `gpus` that each actor takes (1 and 0).
        num_workers: How many there will be at once.

    Raises:
        ChestCTError: An option is unknown, or nobody answers at the address.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, folder: Path, options: Mapping[str, str], num_workers: int) -> None:
        _refuse_unknown(options, "ray", "address", "cpus", "gpus")
        address = options.get("address")
        if address is not None:
            _require_answer(address)
        self._ray = _ray_with_tokens()
        self._folder = folder
        try:
            size = {"num_cpus": num_workers} if address is None else {"address": address}
            self._ray.init(
                **size,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                configure_logging=False,
            )
            self._actor = self._ray.remote(_RayWorker).options(
                num_cpus=float(options.get("cpus", 1)), num_gpus=float(options.get("gpus", 0))
            )
        except Exception as error:
            # Ray raises plain exceptions, of all kinds.
            msg = f"Ray cannot be used: {str(error).strip().splitlines()[0]}"
            raise ChestCTError(msg) from error
        self._running: dict[Any, Any] = {}

    def start(self, num: int) -> None:
        """Start so many actors more."""
        for _ in range(num):
            actor = self._actor.remote()
            self._running[actor.work.remote(str(self._folder))] = actor

    def ended(self) -> list[WorkerEnd]:
        """Those that ended since this was asked last."""
        waiting = list(self._running)
        gone, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [self._how(each) for each in gone]

    def stop(self) -> None:
        """End those that are left, and the connection."""
        for actor in self._running.values():
            self._ray.kill(actor)
        self._running = {}
        self._ray.shutdown()

    def _how(self, reference: Any) -> WorkerEnd:
        del self._running[reference]
        try:
            return WorkerEnd(self._ray.get(reference))
        except self._ray.exceptions.RayError:
            return WorkerEnd(is_lost=True)


class _RayWorker:
    """What an actor runs."""

    def work(self, folder: str) -> str:
        """Work; the reason why it would not, or nothing."""
        return _refusal_of(Path(folder))


def _ray_with_tokens() -> Any:
    """Ray, asked for tokens and for no statistics; both are read when it is imported."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if os.environ.setdefault(_AUTHENTICATION, "token") == "disabled":
        msg = (
            f"{_AUTHENTICATION}=disabled lets everybody who reaches the cluster run programs on "
            f"it. Start it with {_AUTHENTICATION}=token, and unset the variable here."
        )
        raise ChestCTError(msg)
    return import_extra("ray", extra="ray")


def _require_answer(address: str) -> None:
    """Refuse an address at which nobody answers; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ChestCTError(f"The address of a Ray cluster is HOST:PORT, not '{address}'.")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS_WITHIN_S).close()
    except OSError as error:
        reason = (error.strerror or str(error) or type(error).__name__).lower()
        msg = (
            f"No Ray cluster answers at {address}: {reason}. Start it there (ray start --head), or "
            "correct the option 'address'."
        )
        raise ChestCTError(msg) from error

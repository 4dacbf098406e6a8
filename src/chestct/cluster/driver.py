"""The driver of a job: starts workers, starts others for those that are lost, puts parts together.

It does nothing to scans itself and keeps nothing in memory but counts, so it can be killed and
called again at any time. A crew is what starts workers: processes of this machine, jobs of SLURM,
actors of Ray.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from chestct.cluster import EXECUTORS
from chestct.cluster.job import DRIVER, FOLDER, Claims, Job, Row
from chestct.datasets.workers import (
    Progress,
    ProgressCallback,
    end_with_parent,
    interrupts_held_back,
    num_cores,
)
from chestct.errors import ChestCTError, kind_of
from chestct.extras import import_extra
from chestct.library_warnings import rephrase_from_now_on, shows_own_words
from chestct.lookup import load_entry
from chestct.report import as_csv
from chestct.storage import write_whole_with

_ENDS_WITHIN_S: Final = 30.0
_ANSWERS_WITHIN_S: Final = 5.0
_AUTHENTICATION: Final = "RAY_AUTH_MODE"
_SLURM_DEFAULTS: Final = {"timeout_min": 240, "cpus_per_task": 4, "name": "chestct"}
_CLUSTER: Final = "cluster"
"""The option that takes another one of submitit's executors: local, debug."""


@dataclass(frozen=True)
class _WorkerEnd:
    """A worker has ended.

    Attributes:
        refusal: Why it will not work, where it said so; another one would say the same.
        is_lost: Whether it ended without a word: it was killed, or its machine vanished.
    """

    refusal: str = ""
    is_lost: bool = False


@runtime_checkable
class _Crew(Protocol):
    """Workers on one job; made as `crew(folder, options)`.

    Raises:
        ChestCTError: An option is unknown or impossible, or the cluster cannot be reached.
        MissingExtraError: The package it needs is not installed.
    """

    def start(self, num: int) -> None:
        """Start so many workers more."""

    def ended(self) -> list[_WorkerEnd]:
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
    from chestct.cluster.job import work_on

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

    def ended(self) -> list[_WorkerEnd]:
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


def _end_of(process: BaseProcess, hearing: Connection) -> _WorkerEnd:
    process.join()
    refusal = None
    if hearing.poll():
        try:
            refusal = hearing.recv()
        except EOFError:
            refusal = None
    hearing.close()
    return _WorkerEnd(is_lost=True) if refusal is None else _WorkerEnd(str(refusal))


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

    def ended(self) -> list[_WorkerEnd]:
        """Those that ended since this was asked last."""
        gone = [job for job in self._jobs if job.done()]
        self._jobs = [job for job in self._jobs if job not in gone]
        return [
            _WorkerEnd(is_lost=True)
            if job.exception() is not None
            else _WorkerEnd(str(job.result()))
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

    def ended(self) -> list[_WorkerEnd]:
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

    def _how(self, reference: Any) -> _WorkerEnd:
        del self._running[reference]
        try:
            return _WorkerEnd(self._ray.get(reference))
        except self._ray.exceptions.RayError:
            return _WorkerEnd(is_lost=True)


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


ANSWERS_FILE: Final = "answers.csv"
FAILURES_FILE: Final = "failures.csv"
Say = Callable[[str], object]

_POLL_S: Final = 0.2
_MOST_LOST: Final = 6
"""Workers that may be lost, beyond two for each, without a shard done in between."""


@dataclass(frozen=True)
class Executor:
    """Who works, and how many.

    Attributes:
        name: Name in `EXECUTORS`.
        workers: How many; None takes one per core of this machine.
        options: What the executor alone knows, such as an address or a partition.
    """

    name: str = "local"
    workers: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Counts:
    """How a batch ended.

    Attributes:
        answered: Scans with an answer.
        failed: Scans without one, in `FAILURES_FILE`.
        incomplete: Scans with an answer that lack an output.
    """

    answered: int
    failed: int
    incomplete: int

    @property
    def exit_code(self) -> int:
        """0 when all was done, 1 when some scans failed or lack an output, 2 when all failed."""
        if self.failed and not self.answered:
            return 2
        return 1 if self.failed or self.incomplete else 0


def run_job(
    job: Job,
    executor: Executor,
    *,
    progress: ProgressCallback | None = None,
    say: Say = lambda _: None,
) -> None:
    """Have all shards of a job done.

    Args:
        job: As `begin_job` gave it; this process holds its claim `DRIVER`.
        executor: Who does them.
        progress: Called now and then with the scans that are done.
        say: Told of workers that will not work, and of lost ones.

    Raises:
        ChestCTError: No worker would work, or they were lost one after the other.
        ChestCTError: The executor cannot be used.
    """
    job.reopen()
    left = job.num_shards - len(job.done())
    if not left:
        return
    num_workers = min(executor.workers or num_cores(), left)
    make_crew = load_entry(EXECUTORS, executor.name, kind="executor")
    crew: _Crew = make_crew(job.folder, executor.options, num_workers)
    try:
        crew.start(num_workers)
        _Watch(job, crew, num_workers, say).run(progress)
    finally:
        crew.stop()
        # Workers that were ended had no time to remove them.
        for clock in (job.folder / "claims").glob("clock-*"):
            clock.unlink(missing_ok=True)


class _Watch:
    """Waits until all is done; lost workers are replaced, those that refuse are not."""

    def __init__(self, job: Job, crew: _Crew, num_workers: int, say: Say) -> None:
        self._job, self._crew, self._num_workers, self._say = job, crew, num_workers, say
        self._started, self._before = time.perf_counter(), job.done()
        self._known, self._alive, self._num_lost = self._before, num_workers, 0
        self._claims = job.claims()
        self._num_late = self._claims.num_late()
        self._refusals: list[str] = []

    def run(self, progress: ProgressCallback | None) -> None:
        """Look again and again, and tell how far the job is."""
        while len(done := self._job.done()) < self._job.num_shards:
            if done != self._known:
                self._known, self._num_lost = done, 0
            if progress is not None:
                progress(self._progress(done))
            for end in self._crew.ended():
                self._alive -= 1
                self._hear_of(end)
            if not self._alive and len(self._job.done()) < self._job.num_shards:
                reasons = "".join(f"\n  {reason}" for reason in dict.fromkeys(self._refusals))
                raise ChestCTError(f"No worker is left and not all is done.{reasons}")
            time.sleep(_POLL_S)

    def _progress(self, done: set[int]) -> Progress:
        total = self._job.num_tasks - self._job.num_done(self._before)
        news = self._job.num_done(done - self._before)
        return Progress(news, total, time.perf_counter() - self._started)

    def _hear_of(self, end: _WorkerEnd) -> None:
        if end.refusal:
            self._refusals.append(end.refusal)
            self._say(f"A worker will not work: {end.refusal}")
        elif end.is_lost:
            is_late = self._claims.num_late() > self._num_late
            self._num_late += is_late
            self._num_lost += not is_late
            if self._num_lost > 2 * self._num_workers + _MOST_LOST:
                raise ChestCTError(
                    f"{self._num_lost} workers ended without a word and no shard was done in "
                    "between. Memory may have run out: take fewer --workers or a smaller --shard. "
                    "What is done stays; the same call goes on."
                )
            said = "A scan took too long, and its worker was ended" if is_late else ""
            self._say(f"{said or 'A worker ended without a word'}; its shard goes to another one.")
            self._crew.start(1)
            self._alive += 1


@contextmanager
def only_driver(out: Path, lease_s: float, say: Say = lambda _: None) -> Iterator[None]:
    """While entered, no other process drives a batch in a folder of results.

    One that was killed holds its claim until its lease is over, which is waited for.

    Args:
        out: The folder of results.
        lease_s: How long a driver may be silent.
        say: Told why this waits.

    Raises:
        ChestCTError: Another one is at work there.
        WriteError: The folder cannot be written.
    """
    claims = Claims(out / FOLDER / "claims", lease_s)
    try:
        first = claims.touched(DRIVER)
        claim = claims.take(DRIVER)
        if claim is None:
            say(
                f"{out} was claimed by a chestct that may have been killed: {lease_s:.0f} s to see."
            )
        while claim is None:
            time.sleep(min(1.0, lease_s / 8))
            if claims.touched(DRIVER) != first:
                msg = f"Another chestct works on {out}. Wait until it is done, end it, or choose"
                raise ChestCTError(f"{msg} another --out.")
            claim = claims.take(DRIVER)
        try:
            with claims.kept(claim):
                yield
        finally:
            claim.file.unlink(missing_ok=True)
    finally:
        claims.close()
        # Where no job was begun there is nothing to go on with.
        with suppress(OSError):
            (out / FOLDER / "claims").rmdir()
            (out / FOLDER).rmdir()


def conclude(job: Job, what: str, *, holds_results: bool = False) -> list[Row]:
    """The rows of a job that holds no longer than its work: it is removed.

    Args:
        job: All of it is done.
        what: What was done, in the plural.
        holds_results: Whether its rows are all there is of what was done, so that it stays where
            some failed.

    Raises:
        ChestCTError: Some were not done; the message says which and why.
    """
    rows = list(job.rows())
    failed = [f"\n  {row.name}: {row.failure}" for row in rows if row.failure]
    if not (failed and holds_results):
        shutil.rmtree(job.folder, ignore_errors=True)
    if failed:
        msg = f"{len(failed)} of {len(rows)} {what} were not done:{''.join(failed)}"
        raise ChestCTError(f"{msg}\n  The same command goes on with these.")
    return rows


def write_tables(job: Job, columns: Sequence[str]) -> _Counts:
    """Write all answers as one table, and those scans that have none as another.

    Args:
        job: A job whose shards are done.
        columns: The columns of the first table.

    Raises:
        WriteError: A table cannot be written.
    """
    counts = {"answered": 0, "failed": 0, "incomplete": 0}

    def count(row: Row) -> Row:
        """Count a row on its way into the table."""
        counts["failed" if row.failure else "answered"] += 1
        counts["incomplete"] += not row.is_complete
        return row

    failures = ((row.name, row.cells[1], row.failure) for row in job.rows() if row.failure)
    _write_table(job.out / FAILURES_FILE, ("scan", "path", "reason"), failures)
    _write_table(job.out / ANSWERS_FILE, columns, (count(row).cells for row in job.rows()))
    return _Counts(**counts)


def _write_table(path: Path, columns: Sequence[str], lines: Iterator[Sequence[str]]) -> None:
    """Write a table line by line: it may be larger than memory."""

    def write(aside: Path) -> None:
        """Heading, then line by line, until the disk has it."""
        with aside.open("w", encoding="utf-8", newline="") as stream:
            stream.write(as_csv(columns, ()))
            for line in lines:
                # A line is written as the first of a table: the cells are the same.
                stream.write(as_csv(line, ()))
            stream.flush()
            os.fsync(stream.fileno())

    write_whole_with(path, write)

"""The driver of a job: starts workers, starts others for those that are lost, puts parts together.

It does nothing to scans itself and keeps nothing in memory but counts, so it can be killed and
called again at any time.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from chestct.cluster import EXECUTORS
from chestct.cluster.crews import Crew, WorkerEnd
from chestct.cluster.job import DRIVER, FOLDER, Claims, Job, Row
from chestct.datasets.workers import Progress, ProgressCallback, num_cores
from chestct.errors import ChestCTError
from chestct.lookup import load_entry
from chestct.report.tables import as_csv
from chestct.storage import write_whole_with

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
class Counts:
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
    crew: Crew = make_crew(job.folder, executor.options, num_workers)
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

    def __init__(self, job: Job, crew: Crew, num_workers: int, say: Say) -> None:
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

    def _hear_of(self, end: WorkerEnd) -> None:
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


def write_tables(job: Job, columns: Sequence[str]) -> Counts:
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
    return Counts(**counts)


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

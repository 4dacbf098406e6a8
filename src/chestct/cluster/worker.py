"""A worker: takes shards of a job until all are done, whoever does them.

It needs nothing but the job's folder. What keeps it from working is raised before it takes a
shard; a scan that fails is a row with its reason.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from chestct.cluster.job import Claim, Claims, ClusterError, Job, Row, open_job
from chestct.storage import write_text

_WAIT_S: Final = 1.0
"""How long another worker may take to write down what it computes with."""


@runtime_checkable
class Work(Protocol):
    """What is done to scans."""

    @property
    def engine(self) -> str:
        """What computes, in words; empty where it makes no difference."""

    def rows(
        self,
        tasks: Sequence[Mapping[str, Any]],
        begin: Callable[[int], None],
        *,
        is_careful: bool,
    ) -> Iterator[Row]:
        """What becomes of scans, in their order; `begin` is told which one comes now."""

    def failed(self, task: Mapping[str, Any], why: str) -> Row:
        """The row of a scan that has no answer."""


def work_on(folder: Path) -> int:
    """Work on a job until all its shards are done.

    Args:
        folder: The job's.

    Returns:
        How many shards this worker did.

    Raises:
        ClusterError: This machine has another chestct, classifier or engine than the job.
        WriteError: It cannot write to the job's folder.
        ChestCTError: The classifier or its engine cannot be loaded.
    """
    job = open_job(folder)
    before = os.umask(job.umask)
    claims = job.claims()
    try:
        work = _load(job)
        _require_engine(job, work.engine)
        num_done = 0
        while len(done := job.done()) < job.num_shards:
            taken = _take(job, claims, done)
            if taken is None:
                # All are taken; one comes free when its lease is over, and no sooner.
                time.sleep(job.lease_s / 4)
                continue
            with claims.kept(taken[1]):
                num_done += _do_shard(job, work, *taken)
        return num_done
    finally:
        claims.close()
        os.umask(before)


def _load(job: Job) -> Work:
    """Make what is done to scans: a classifier is loaded here, once."""
    module, _, name = job.work.partition(":")
    work: Work = getattr(import_module(module), name)(job.settings, job.out)
    return work


def _take(job: Job, claims: Claims, done: set[int]) -> tuple[int, Claim] | None:
    """Claim a shard that is not done; workers begin at different ones."""
    first = secrets.randbelow(job.num_shards)
    for place in range(job.num_shards):
        shard = (first + place) % job.num_shards
        if shard not in done:
            claim = claims.take(f"{shard:05d}")
            if claim is not None and not job.part(shard).exists():
                return shard, claim
    return None


def _do_shard(job: Job, work: Work, shard: int, claim: Claim) -> int:
    """Do what is left to do of a shard; 1 when its rows were written, 0 when it was lost."""
    tasks, rows = job.tasks(shard), job.known(shard)
    for place in claim.gave_up_on() - set(rows):
        why = "Two workers that had begun with this scan ended without a word: it may take more"
        rows[place] = work.failed(tasks[place], f"{why} memory than they have.")
    left = [place for place in range(len(tasks)) if place not in rows]

    def begin(number: int) -> None:
        if claim.is_careful:
            claim.mark(left[number])

    found = work.rows([tasks[place] for place in left], begin, is_careful=claim.is_careful)
    for place, row in zip(left, found, strict=True):
        rows[place] = row
        if claim.is_lost:
            return 0
    job.write_part(shard, [rows[place] for place in range(len(tasks))])
    return 1


def _require_engine(job: Job, engine: str) -> None:
    """Refuse to compute otherwise than the first worker did."""
    file = job.folder / "engine"
    with suppress(FileExistsError), file.open("x", encoding="utf-8") as stream:
        stream.write(engine)
    first = file.read_text(encoding="utf-8")
    if not first:
        # Whoever made it is about to write, or was killed before it did.
        time.sleep(_WAIT_S)
        first = file.read_text(encoding="utf-8") or engine
        write_text(file, first)
    if first != engine:
        msg = (
            f"{socket.gethostname()} would compute with {engine} and the first worker with "
            f"{first}: answers would differ. Say --engine and --precision, or leave this machine "
            "out."
        )
        raise ClusterError(msg)

"""A worker: takes shards of a job until all are done, whoever does them.

It needs nothing but the job's folder. What keeps it from working is raised before it takes a
shard; a scan that fails is a row with its reason.
"""

from __future__ import annotations

import faulthandler
import os
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from chestct.cluster import KINDS
from chestct.cluster.job import Claim, Claims, Job, Row, Suspects, open_job
from chestct.errors import ChestCTError
from chestct.storage import write_text

_SIGNALS: Final = 128
"""Exit codes above this are those of work that was asked to stop: another worker goes on."""
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
        """What becomes of scans, in their order.

        `begin` is told which one comes now, so that one that ends workers is found; work that goes
        on where it was ended does not call it.
        """

    def failed(self, task: Mapping[str, Any], why: str) -> Row:
        """The row of a scan that has no answer."""


class OneByOne(ABC):
    """Work that takes one thing after the other; where one fails, its row says why."""

    engine = ""
    goes_on = False
    """Whether a thing goes on where its last worker ended, so that none is given up."""

    def rows(
        self,
        tasks: Sequence[Mapping[str, Any]],
        begin: Callable[[int], None],
        *,
        is_careful: bool,
    ) -> Iterator[Row]:
        """Do them, in their order."""
        for place, task in enumerate(tasks):
            if not self.goes_on:
                begin(place)
            cells: tuple[str, ...] = ()
            failure = ""
            try:
                cells = self.do(task)
            except ChestCTError as error:
                if error.exit_code > _SIGNALS:
                    raise
                failure = str(error)
            yield Row((task["name"], *cells), task["name"], failure=failure)

    def failed(self, task: Mapping[str, Any], why: str) -> Row:
        """The row of a thing that was not done."""
        return Row((task["name"],), task["name"], failure=why)

    @abstractmethod
    def do(self, task: Mapping[str, Any]) -> tuple[str, ...]:
        """Do one; what its row says beside its name.

        Raises:
            ChestCTError: It cannot be done.
        """


def work_on(folder: Path) -> int:
    """Work on a job until all its shards are done.

    Args:
        folder: The job's.

    Returns:
        How many shards this worker did.

    Raises:
        ChestCTError: This machine has another chestct, classifier or engine than the job.
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
            try:
                with claims.kept(taken[1]):
                    num_done += _do_shard(job, work, *taken)
            except BaseException:
                taken[1].release()
                raise
        return num_done
    finally:
        claims.close()
        os.umask(before)


def _load(job: Job) -> Work:
    """Make what is done to scans: a classifier is loaded here, once."""
    place = KINDS[job.work].place if job.work in KINDS else job.work
    module, _, name = place.partition(":")
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
    tasks, rows, suspects = job.tasks(shard), job.known(shard), claim.suspects()
    for place, why in _given_up(suspects, job.scan_timeout_s).items():
        rows.setdefault(place, work.failed(tasks[place], why))
    left = [place for place in range(len(tasks)) if place not in rows]
    others = [place for place in left if place not in suspects.tried]
    with _time_per_scan(job.scan_timeout_s, claim) as restart:
        for places in (*([place] for place in left if place in suspects.tried), others):
            is_alone = places is not others

            def begin(number: int, places: list[int] = places, is_alone: bool = is_alone) -> None:
                """Say which scans are in work, and that their time begins."""
                # The next one may be read already while this one is done.
                claim.mark(places[number : number + (1 if is_alone else 2)], is_alone=is_alone)
                restart()

            found = work.rows([tasks[place] for place in places], begin, is_careful=is_alone)
            for place, row in zip(places, found, strict=True):
                rows[place] = row
                if claim.is_lost:
                    return 0
    job.write_part(shard, [rows[place] for place in range(len(tasks))])
    return 1


def _given_up(suspects: Suspects, limit_s: float | None) -> dict[int, str]:
    """Scans that are not tried again, by their place in the shard, and why."""
    lost = (
        "Two workers that were alone with this scan ended without a word: it may take more memory "
        "than they have."
    )
    late = (
        f"It took longer than {limit_s or 0:g} s, alone too, and was ended. If it only is slow, "
        "allow more with --scan-timeout."
    )
    return {**dict.fromkeys(suspects.lost, lost), **dict.fromkeys(suspects.late, late)}


@contextmanager
def _time_per_scan(limit_s: float | None, claim: Claim) -> Iterator[Callable[[], None]]:
    """While entered, this process ends when a scan takes too long; gives what starts its time.

    `faulthandler` ends it whatever it is doing, even where nothing else gets a turn, and writes
    into the claim where it was.
    """
    if limit_s is None:
        yield lambda: None
        return
    with claim.file.open("a", encoding="utf-8") as stream:
        try:
            yield lambda: faulthandler.dump_traceback_later(limit_s, file=stream, exit=True)
        finally:
            faulthandler.cancel_dump_traceback_later()


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
        raise ChestCTError(msg)

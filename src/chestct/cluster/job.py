"""A job as a folder on a disk that all workers share, and the worker that goes through it.

    job.json        what is to be done, with what, by which version
    todo/00012.json the scans of shard 12
    claims/         who works on which shard, and since when nothing was heard of whom
    parts/00012.jsonl  the rows of shard 12, which is done when this is there
    before/         rows of an earlier call, of shards in which scans failed

A claim is a file that only one process can make. Its holder touches it; where it has not been
touched for the length of a lease, the shard goes to whoever makes the next file. Times are those
that the disk gives to files, never a machine's own clock. A worker that was only slow finds the
next claim and drops its rows; were both to write them, they would be the same rows in one file.

What a claim says is which scans its holder was at. Whoever comes next tries those alone, one after
the other, and gives up on a scan at which two ended that were alone with it, or one whose time was
over.

A worker takes shards until all are done, whoever does them, and needs nothing but the folder. What
keeps it from working is raised before it takes a shard; a scan that fails is a row with its reason.
"""

from __future__ import annotations

import faulthandler
import json
import os
import secrets
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from chestct import __version__
from chestct.cluster import KINDS
from chestct.errors import ChestCTError, WriteError
from chestct.storage import make_folder, reason_of, text_key, write_text

FOLDER: Final = ".batch"
"""Name of a job's folder inside the folder of results."""
LEASE_S: Final = 60.0
"""How long nothing may be heard of a worker before its shard goes to others."""
DRIVER: Final = "driver"
"""The claim of whoever starts workers and puts the parts together."""

_RECORD: Final = "job.json"
_LIMIT: Final = "scan_timeout_s"
_FORMAT: Final = 1
_ALONE: Final = "alone"
"""Stands in a claim behind the scan with which its holder was alone."""
_TIME_IS_OVER: Final = "Timeout ("
"""What `faulthandler` begins with when it ends a process."""
_MOST_ENDS: Final = 2
"""So many workers may end alone with a scan before it is given up."""
_BEATS: Final = 4
"""How often a claim is touched per lease."""


@dataclass(frozen=True)
class Row:
    """What became of one scan.

    Attributes:
        cells: Its row of the table of answers.
        name: What the scan is called.
        failure: Why it has no answer; empty where it has one.
        is_complete: Whether all that was to be written about it is there.
    """

    cells: tuple[str, ...]
    name: str
    failure: str = ""
    is_complete: bool = True


class _Suspects(NamedTuple):
    """Scans at which earlier workers ended, by their place in the shard.

    Attributes:
        tried: They are to be tried alone.
        lost: Given up: workers ended without a word.
        late: Given up: they took too long, alone too.
    """

    tried: list[int]
    lost: set[int]
    late: set[int]


class _Claim(NamedTuple):
    """A shard, or the whole job, that this process works on.

    Attributes:
        file: Stands for it.
        generation: How many claims of this there were, with this one.
    """

    file: Path
    generation: int

    @property
    def is_lost(self) -> bool:
        """Whether somebody else took over, as nothing was heard of this process."""
        return _generation_file(self.file, self.generation + 1).exists()

    def mark(self, places: Sequence[int], *, is_alone: bool) -> None:
        """Write down which scans of the shard come now."""
        words = [*map(str, places), *([_ALONE] if is_alone else [])]
        # A disk that is away for a while may cost the claim, and no more.
        with suppress(OSError):
            self.file.write_text(f"{' '.join(words)}\n", encoding="utf-8")

    def release(self) -> None:
        """Let others have it at once, as this process stops of its own accord."""
        with suppress(OSError):
            self.file.write_text("", encoding="utf-8")
            os.utime(self.file, (0, 0))

    def suspects(self) -> _Suspects:
        """What earlier workers were at when they ended."""
        begun: dict[int, int] = {}
        late = set()
        for generation in range(1, self.generation):
            with suppress(OSError, ValueError):
                text = _generation_file(self.file, generation).read_text(encoding="utf-8")
                said, _, trace = text.partition("\n")
                is_alone = said.endswith(_ALONE)
                for place in map(int, said.removesuffix(_ALONE).split()):
                    begun[place] = begun.get(place, 0) + is_alone
                    if is_alone and _TIME_IS_OVER in trace:
                        late.add(place)
        lost = {place for place, ends in begun.items() if ends >= _MOST_ENDS} - late
        return _Suspects(sorted(set(begun) - late - lost), lost, late)


class Claims:
    """The claims of one job, as one process sees and makes them.

    Args:
        folder: Where they lie; made where it is missing.
        lease_s: How long a claim holds that is not touched.

    Raises:
        WriteError: Nothing can be written there: a disk may be read-only on one node.
    """

    def __init__(self, folder: Path, lease_s: float) -> None:
        self._folder, self._lease_s = make_folder(folder), lease_s
        self._clock = folder / f"clock-{socket.gethostname()}-{secrets.token_hex(4)}"
        self._now()

    def take(self, name: str) -> _Claim | None:
        """Claim something; None where another process holds it.

        Raises:
            WriteError: Nothing can be written any more.
        """
        first = self._folder / f"{name}.1"
        generation = 1
        while (file := _generation_file(first, generation)).exists():
            if not _generation_file(first, generation + 1).exists() and not self._is_over(file):
                return None
            generation += 1
        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return None
        except OSError as error:
            raise _not_written(file, error) from error
        return _Claim(file, generation)

    @contextmanager
    def kept(self, claim: _Claim) -> Iterator[None]:
        """While entered, a claim is touched often enough to hold."""
        is_over = threading.Event()

        def beat() -> None:
            """Touch it until all is over."""
            while not is_over.wait(self._lease_s / _BEATS):
                # A disk that is away for a while may cost the claim, and no more.
                with suppress(OSError):
                    os.utime(claim.file)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def touched(self, name: str) -> float:
        """When the latest claim of a name was touched; 0 where there is none."""
        file, generation = self._folder / f"{name}.1", 1
        while _generation_file(file, generation + 1).exists():
            generation += 1
        with suppress(OSError):
            return _mtime(_generation_file(file, generation))
        return 0.0

    def num_late(self) -> int:
        """How many workers were ended as the time of a scan was over."""
        return sum(_is_late(file) for file in self._folder.glob("*.[0-9]*"))

    def close(self) -> None:
        """Remove what this process wrote beside the claims."""
        with suppress(OSError):
            self._clock.unlink()

    def _is_over(self, file: Path) -> bool:
        with suppress(FileNotFoundError):
            return self._now() - _mtime(file) > self._lease_s or _is_late(file)
        return True

    def _now(self) -> float:
        """What time it is for the disk."""
        try:
            self._clock.touch()
            return _mtime(self._clock)
        except OSError as error:
            raise _not_written(self._clock, error) from error


def _generation_file(file: Path, generation: int) -> Path:
    return file.with_suffix(f".{generation}")


def _is_late(file: Path) -> bool:
    """Whether its holder was ended, as the time of a scan was over."""
    with suppress(OSError):
        return _TIME_IS_OVER.encode() in file.read_bytes()
    return False


def _mtime(file: Path) -> float:
    # Opened: a disk in the network then asks its server, and does not answer from memory.
    with file.open("rb") as stream:
        return os.fstat(stream.fileno()).st_mtime


def _not_written(file: Path, error: OSError) -> WriteError:
    return WriteError(
        f"{file.parent} cannot be written on {socket.gethostname()}: {reason_of(error)}. Every "
        "machine that works on a batch has to be able to write to its --out."
    )


@dataclass(frozen=True)
class Job:
    """What is to be done to many scans, and how far it is.

    Attributes:
        folder: Where it lies.
        work: What is done to a scan: a name in `KINDS`, or "module:class" of such work.
        settings: What it is made with, plain values: as `class(settings, out)`, once per worker.
        num_tasks: Scans in all.
        shard: Scans per shard.
        lease_s: See `LEASE_S`.
        tasks_sha256: Stands for the list of scans.
        version: Of chestct, which all workers must have.
        umask: Who may not read what is written, as umask(2) has it.
        scan_timeout_s: How long a scan may take before its worker is ended; None for ever.
    """

    folder: Path
    work: str
    settings: Mapping[str, Any]
    num_tasks: int
    shard: int
    lease_s: float = LEASE_S
    tasks_sha256: str = ""
    version: str = __version__
    umask: int = field(default=0o077)
    scan_timeout_s: float | None = None

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return -(-self.num_tasks // self.shard)

    @property
    def out(self) -> Path:
        """The folder of results."""
        return self.folder.parent

    def claims(self) -> Claims:
        """The claims of this job, for this process."""
        return Claims(self.folder / "claims", self.lease_s)

    def tasks(self, shard: int) -> list[dict[str, Any]]:
        """The scans of a shard, as they were listed."""
        text = (self.folder / "todo" / f"{shard:05d}.json").read_text(encoding="utf-8")
        listed: list[dict[str, Any]] = json.loads(text)
        return listed

    def part(self, shard: int) -> Path:
        """The file that a shard ends in."""
        return self.folder / "parts" / f"{shard:05d}.jsonl"

    def done(self) -> set[int]:
        """The shards that are done."""
        return {int(path.stem) for path in (self.folder / "parts").glob("*.jsonl")}

    def num_done(self, shards: set[int]) -> int:
        """How many scans some shards hold."""
        last = self.num_tasks - (self.num_shards - 1) * self.shard
        return sum(last if each == self.num_shards - 1 else self.shard for each in shards)

    def write_part(self, shard: int, rows: Sequence[Row]) -> None:
        """Write the rows of a shard, which is then done.

        Raises:
            WriteError: They cannot be written.
        """
        lines = (json.dumps(asdict(row)) for row in rows)
        write_text(self.part(shard), "".join(f"{line}\n" for line in lines))

    def rows(self) -> Iterator[Row]:
        """The rows of all shards that are done, in order, one shard in memory at a time."""
        for shard in sorted(self.done()):
            yield from _read_rows(self.part(shard))

    def known(self, shard: int) -> dict[int, Row]:
        """Answers of an earlier call, by their place in the shard."""
        file = self.folder / "before" / self.part(shard).name
        if not file.exists():
            return {}
        return {place: row for place, row in enumerate(_read_rows(file)) if not row.failure}

    def reopen(self) -> None:
        """Where all is done, let the scans that failed be done once more."""
        if len(self.done()) < self.num_shards:
            return
        before = make_folder(self.folder / "before")
        for shard in range(self.num_shards):
            if any(row.failure for row in _read_rows(self.part(shard))):
                self.part(shard).replace(before / self.part(shard).name)
                for claim in (self.folder / "claims").glob(f"{shard:05d}.*"):
                    claim.unlink(missing_ok=True)


def _read_rows(part: Path) -> list[Row]:
    lines = part.read_text(encoding="utf-8").splitlines()
    return [Row(**{**(row := json.loads(line)), "cells": tuple(row["cells"])}) for line in lines]


def begin_job(job: Job, tasks: Sequence[Mapping[str, Any]]) -> Job:
    """Write a job down, or go on with the one that is there.

    Args:
        job: What is wanted.
        tasks: Its scans; plain values.

    Returns:
        The job as it is on disk: where one is gone on with, its shards are those it was begun with,
        and the time for a scan is the new one.

    Raises:
        ChestCTError: The folder holds another job; the message says in what they differ.
        WriteError: It cannot be written.
    """
    listed = [json.dumps(task, sort_keys=True) for task in tasks]
    wanted = {**_recorded(job), "tasks_sha256": text_key(*listed)}
    if (job.folder / _RECORD).exists():
        there = _read_record(job.folder)
        _refuse_other(there, wanted, job.out)
        limited = {**there, _LIMIT: job.scan_timeout_s}
        if limited != there:
            write_text(job.folder / _RECORD, json.dumps(limited, indent=1))
        return open_job(job.folder)
    for shard in range(job.num_shards):
        lines = ",\n".join(listed[shard * job.shard : (shard + 1) * job.shard])
        write_text(make_folder(job.folder / "todo") / f"{shard:05d}.json", f"[{lines}]\n")
    make_folder(job.folder / "parts")
    write_text(job.folder / _RECORD, json.dumps(wanted, indent=1))
    return open_job(job.folder)


def open_job(folder: Path) -> Job:
    """The job that lies in a folder.

    Raises:
        ChestCTError: There is none, or it is of another version of chestct than this one.
    """
    record = _read_record(folder)
    if record["version"] != __version__:
        msg = (
            f"The batch in {folder.parent} is chestct {record['version']}'s and "
            f"{socket.gethostname()} has chestct {__version__}. Install the same version on all "
            "machines, or choose another --out."
        )
        raise ChestCTError(msg)
    del record["format"]
    return Job(folder, **record)


def _recorded(job: Job) -> dict[str, Any]:
    fields = asdict(job)
    del fields["folder"]
    return {"format": _FORMAT, **fields}


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        is_ours = record["format"] == _FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "it is damaged"
        msg = f"{folder / _RECORD} cannot be read on {socket.gethostname()}: {reason}."
        raise ChestCTError(f"{msg} Every machine has to see the same --out.") from error
    if not is_ours:
        raise ChestCTError(f"{folder.parent} holds another chestct's batch. Choose another --out.")
    return dict(record)


def _refuse_other(there: Mapping[str, Any], wanted: Mapping[str, Any], out: Path) -> None:
    """Refuse to go on with something else; how it is shared out may differ."""
    # What was written came back from JSON, which knows lists only.
    records = (there, json.loads(json.dumps(wanted)))
    first, second = ({**record["settings"], **record} for record in records)
    free = ("settings", "shard", "lease_s", "umask", _LIMIT)
    names = {"tasks_sha256": "scans", "num_tasks": "scans", "version": "version of chestct"}
    differing = {
        names.get(key, key)
        for key in {*first, *second}
        if key not in free and first.get(key) != second.get(key)
    }
    if differing:
        msg = (
            f"{out} holds a batch that was begun otherwise ({', '.join(sorted(differing))}). "
            "Choose another --out, or begin as before to go on with it."
        )
        raise ChestCTError(msg)


_SIGNALS: Final = 128
"""Exit codes above this are those of work that was asked to stop: another worker goes on."""
_WAIT_S: Final = 1.0
"""How long another worker may take to write down what it computes with."""


@runtime_checkable
class _Work(Protocol):
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


def _load(job: Job) -> _Work:
    """Make what is done to scans: a classifier is loaded here, once."""
    place = KINDS[job.work].place if job.work in KINDS else job.work
    module, _, name = place.partition(":")
    work: _Work = getattr(import_module(module), name)(job.settings, job.out)
    return work


def _take(job: Job, claims: Claims, done: set[int]) -> tuple[int, _Claim] | None:
    """Claim a shard that is not done; workers begin at different ones."""
    first = secrets.randbelow(job.num_shards)
    for place in range(job.num_shards):
        shard = (first + place) % job.num_shards
        if shard not in done:
            claim = claims.take(f"{shard:05d}")
            if claim is not None and not job.part(shard).exists():
                return shard, claim
    return None


def _do_shard(job: Job, work: _Work, shard: int, claim: _Claim) -> int:
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


def _given_up(suspects: _Suspects, limit_s: float | None) -> dict[int, str]:
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
def _time_per_scan(limit_s: float | None, claim: _Claim) -> Iterator[Callable[[], None]]:
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

"""The facts of all scans of a manifest, read in parallel and kept beside the cache.

A scan is decoded once: as long as its files keep their names, sizes and times, the next check and
the cache take its facts from disk.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache as kept
from pathlib import Path
from typing import Final

import chestct.datasets.scans
import chestct.readers
from chestct.datasets.manifest import Manifest
from chestct.datasets.scans import (
    ScanFacts,
    facts_from_json,
    facts_to_json,
    read_facts,
    read_options,
)
from chestct.datasets.workers import ProgressCallback, run_all
from chestct.errors import ChestCTError
from chestct.files import write_text
from chestct.readers import ReadOptions
from chestct.readers.files import folder_files

FACTS_FOLDER: Final = "facts"
"""Folder of the facts inside a cache."""


@dataclass(frozen=True)
class ScanTask:
    """One scan whose facts are wanted.

    Attributes:
        path: Where it lies.
        options: How it is read.
        folder: Where facts are kept, or None.
    """

    path: Path
    options: ReadOptions
    folder: Path | None = None


def gather_facts(
    manifest: Manifest,
    cache: Path | None = None,
    *,
    processes: int | None = None,
    progress: ProgressCallback | None = None,
) -> list[ScanFacts]:
    """The facts of every row's scan, in the order of the rows.

    Args:
        manifest: The scans.
        cache: A cache folder to take facts from and to keep them in.
        processes: How many scans are read at once; None takes all cores.
        progress: Called after each scan.

    Raises:
        ManifestError: A row says something impossible about how its scan is read.
        WorkerError: A process was killed.
    """
    folder = None if cache is None else cache / FACTS_FOLDER
    tasks = [ScanTask(manifest.path(row), read_options(row), folder) for row in manifest.rows]
    return run_all(known_facts, tasks, processes=processes, progress=progress)


def known_facts(task: ScanTask) -> ScanFacts:
    """Facts of a scan, from disk where its files have not changed, else from the scan."""
    if task.folder is None:
        return read_facts(task.path, task.options)
    kept = stored_facts(task)
    if kept is not None:
        return kept
    facts = read_facts(task.path, task.options)
    store_facts(task, facts)
    return facts


def stored_facts(task: ScanTask) -> ScanFacts | None:
    """Facts kept of a scan whose files have not changed since; None where there are none."""
    if task.folder is None:
        return None
    with suppress(OSError, ValueError, ChestCTError):
        path = task.folder / f"{source_key(task.path, task.options)}.json"
        return facts_from_json(path.read_text(encoding="utf-8"))
    return None


def store_facts(task: ScanTask, facts: ScanFacts) -> None:
    """Keep the facts of a scan; of one that could not be read nothing is kept."""
    if task.folder is None or facts.error:
        return
    # Facts can be read again: a full disk is noticed where it matters, by the cache.
    with suppress(OSError, ChestCTError):
        path = task.folder / f"{source_key(task.path, task.options)}.json"
        write_text(path, facts_to_json(facts))


def source_key(path: Path, options: ReadOptions) -> str:
    """What stands for a scan's files: their names, sizes and times, and how they are read.

    Raises:
        OSError: The scan is not there.
        ReadError: Its folder cannot be read.
    """
    place = path.resolve()
    files = [file.path for file in folder_files(place)] if place.is_dir() else [place]
    lines = [reading_code(), str(place), repr(options)]
    for file in files:
        status = file.stat()
        lines.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:40]


def code_digest(*places: Path) -> str:
    """Digest of the source code of packages and modules: what other code made is not used."""
    digest = hashlib.sha256()
    for place in places:
        for source in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(source.name.encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()


@kept
def reading_code() -> str:
    """Digest of the code that reads scans and finds their facts."""
    return code_digest(Path(chestct.readers.__file__).parent, Path(chestct.datasets.scans.__file__))

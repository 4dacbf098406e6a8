"""Prepared inputs on disk: prepared once, used in every epoch of every run.

An entry is named after all that decides what is in it: the scan's voxels and grid, every field of
the recipe, the code of the preparation, the storage and the variant. Several processes may use a
cache at once: an entry is written aside and renamed, so others see all of it or nothing. The
entries used longest ago make way when the folder would grow too large.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

import chestct.preprocess
from chestct.datasets.entries import (
    BYTES_PER_VALUE,
    CachedInput,
    CacheError,
    DamagedEntryError,
    decode,
    encode,
    entry_bytes,
)
from chestct.datasets.gathering import (
    FACTS_FOLDER,
    ScanTask,
    code_digest,
    store_facts,
    stored_facts,
)
from chestct.datasets.scans import facts_of
from chestct.lookup import look_up
from chestct.preprocess.prepare import prepare
from chestct.preprocess.recipe import Recipe
from chestct.readers import ReadOptions, read_volume
from chestct.volume import Volume

logger = logging.getLogger(__name__)

GIB: Final = 2**30

_FORMAT = 1
_ENDING = ".safetensors"
_ABANDONED_AFTER_S = 3600.0


@dataclass(frozen=True)
class Cache:
    """A folder of inputs prepared with one recipe; other recipes may share the folder.

    Attributes:
        folder: Where entries lie; made when the first one is written.
        recipe: How scans are prepared.
        storage: "float16" or "uint8"; see `chestct.datasets.entries.encode` for the errors.
        max_bytes: Most that all entries of the folder may take, those of other recipes included.
        seed: Of the factors that variants draw.

    Raises:
        UnknownNameError: There is no such storage.
        CacheError: Not even one entry would fit.
    """

    folder: Path
    recipe: Recipe
    storage: str = "float16"
    max_bytes: int = 100 * GIB
    seed: int = 1

    def __post_init__(self) -> None:
        look_up(BYTES_PER_VALUE, self.storage, kind="storage")
        self.require_room(1)

    @property
    def entry_bytes(self) -> int:
        """Size of one entry."""
        return entry_bytes(self.recipe, self.storage)

    def require_room(self, num_entries: int) -> None:
        """Refuse a cache that could not hold so many entries at once.

        Raises:
            CacheError: It could not: entries would push each other out before they are used.
        """
        needed = num_entries * self.entry_bytes
        if needed > self.max_bytes:
            msg = (
                f"{num_entries} inputs of {self.recipe.name} take {needed / GIB:.1f} GiB as "
                f"{self.storage}, and the cache may hold {self.max_bytes / GIB:.1f} GiB. Allow "
                "more, or use the storage 'uint8' or a smaller recipe."
            )
            raise CacheError(msg)

    def get(self, path: Path, options: ReadOptions | None = None, variant: int = 0) -> CachedInput:
        """The prepared input of a scan: from disk, or made and kept.

        Args:
            path: The scan.
            options: How it is read.
            variant: 0 prepares the scan as it is. Others draw the factors for which the recipe
                names a range (k1, k2 and crop of the RoI-aware ResNet paper), always the same for
                the same scan, seed and variant: the stored copies that paper trains on.

        Raises:
            ChestCTError: The scan cannot be read or prepared, or the entry cannot be written.
        """
        return self.fetch(path, options, variant)[0]

    def fetch(
        self, path: Path, options: ReadOptions | None = None, variant: int = 0
    ) -> tuple[CachedInput, bool]:
        """As `get`, and whether it was there already."""
        task = ScanTask(path, options or ReadOptions(), self.folder / FACTS_FOLDER)
        facts = stored_facts(task)
        if facts is not None:
            found = self.find(facts.pixels, variant)
            if found is not None:
                return found, True
        reading = task.options
        volume = read_volume(path, series=reading.series, allow=reading.allow, tiff=reading.tiff)
        facts = facts_of(volume, path)
        store_facts(task, facts)
        found = self.find(facts.pixels, variant)
        if found is not None:
            return found, True
        return self._make(volume, facts.pixels, variant), False

    def find(self, pixels: str, variant: int = 0) -> CachedInput | None:
        """A sound entry, or None; a damaged one is removed.

        Args:
            pixels: `ScanFacts.pixels` of the scan.
            variant: See `get`.
        """
        entry = self.entry_path(pixels, variant)
        try:
            found = decode(entry.read_bytes())
            # The time of last use decides what makes way; a read-only cache keeps its order.
            with suppress(OSError):
                os.utime(entry)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (DamagedEntryError, OSError) as error:
            logger.warning("A damaged entry of the cache is made again: %s: %s", entry.name, error)
            with suppress(OSError):
                entry.unlink(missing_ok=True)
            return None
        return found

    def entry_path(self, pixels: str, variant: int = 0) -> Path:
        """Where the entry of a scan lies, whether or not it is there."""
        decisive = {
            "format": _FORMAT,
            "pixels": pixels,
            "recipe": asdict(self.recipe),
            "code": preparation_code(),
            "storage": self.storage,
            "variant": [variant, self.seed] if variant else 0,
        }
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[:40]}{_ENDING}"

    def _make(self, volume: Volume, pixels: str, variant: int) -> CachedInput:
        rng = np.random.default_rng([self.seed, variant, int(pixels, 16)]) if variant else None
        content = encode(prepare(volume, self.recipe, rng=rng), self.storage)
        self._write(self.entry_path(pixels, variant), content)
        return decode(content)

    def _write(self, entry: Path, content: bytes) -> None:
        """Put an entry in its place, whole, after room was made for it."""
        aside = entry.with_name(f".{os.getpid()}.{time.monotonic_ns()}.part")
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            make_room(self.folder, len(content), self.max_bytes)
            aside.write_bytes(content)
            aside.replace(entry)
            # Another process may have written meanwhile.
            make_room(self.folder, 0, self.max_bytes)
        except OSError as error:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            reason = (error.strerror or type(error).__name__).lower()
            msg = (
                f"The cache {self.folder} cannot be written: {reason}. Free space or choose "
                "another folder; what is prepared so far is kept."
            )
            raise CacheError(msg) from error


def make_room(folder: Path, needed: int, max_bytes: int) -> list[Path]:
    """Remove the entries used longest ago until `needed` more bytes fit; returns what was removed.

    Files that a killed process left half-written are removed too, an hour after.
    """
    entries: list[tuple[float, int, Path]] = []
    for path in folder.glob("*/*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            if path.name.endswith(_ENDING):
                entries.append((status.st_mtime, status.st_size, path))
            elif path.name.endswith(".part") and time.time() - status.st_mtime > _ABANDONED_AFTER_S:
                path.unlink(missing_ok=True)
    total = sum(size for _, size, _ in entries)
    removed = []
    for _, size, path in sorted(entries):
        if total + needed <= max_bytes:
            break
        path.unlink(missing_ok=True)
        removed.append(path)
        total -= size
    return removed


@cache
def preparation_code() -> str:
    """Digest of the code that prepares scans."""
    return code_digest(Path(chestct.preprocess.__file__).parent)

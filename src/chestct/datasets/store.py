"""Prepared inputs of a manifest, made once and kept as files that say when they are damaged.

A safetensors file each: the values as 16-bit floats or as bytes, the lung mask as bits, and beside
them a checksum of all of it. Channels hold the same values, so one is kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache as kept
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import Dataset

import chestct.preprocess
from chestct.arrays import Mask, NetworkInput
from chestct.datasets.manifest import Manifest, ManifestError
from chestct.datasets.scans import ScanFacts, read_options
from chestct.datasets.workers import ProgressCallback, run_all
from chestct.errors import ChestCTError, ReadError
from chestct.lookup import look_up
from chestct.preprocess.prepare import PreparedScan, prepare
from chestct.preprocess.recipes import Recipe
from chestct.readers import ReadOptions
from chestct.remote import bring, local_copy, mirror_of, send, stamp_of
from chestct.storage import code_digest, is_address, reason_of, working_folder

_BYTES_PER_VALUE: Final[dict[str, int]] = {"float16": 2, "uint8": 1}
"""Storage to bytes of one value."""

_FIELD = "chestct"
_LEVELS = 255
_LARGEST_FLOAT16 = 65504.0
_HEADER_LENGTH_BYTES = 8
_HEADER_ALLOWANCE = 4096


class CacheError(ChestCTError):
    """Prepared inputs cannot be kept."""


class _DamagedEntryError(CacheError):
    """A file of the cache is not what was written; it has to be made again."""


@dataclass(frozen=True, eq=False)
class _CachedInput:
    """A prepared input, from disk or just made; the same from both.

    `input` is (channel, depth, height, width), the lung mask at its size (depth, height, width);
    `max_error` the largest difference from what the preparation gave.
    """

    input: NetworkInput
    lungs: Mask
    max_error: float
    warnings: tuple[str, ...] = ()
    unsuitable_reasons: tuple[str, ...] = ()


def encode(prepared: PreparedScan, storage: str) -> bytes:
    """A prepared scan as the bytes of an entry.

    "float16" keeps 11 significant bits: an error of at most 1/4096 for values in [0, 1]. "uint8"
    keeps 256 levels between the lowest and the highest value, or between 0 and 1 where all lie
    there: an error of at most 1/510 of that range. The error itself is measured and kept.

    Raises:
        StorageError: The storage cannot hold the values.
    """
    from safetensors.numpy import save

    values = prepared.input[0]
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CacheError("The prepared values are not all numbers, and nothing can keep them.")
    if storage == "float16" and max(-low, high) > _LARGEST_FLOAT16:
        msg = f"Values up to {max(-low, high):g} do not fit 16-bit floats. Use the storage 'uint8'."
        raise CacheError(msg)
    # With these ends 0, the background of most recipes, stays exactly 0.
    low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    stored = _to_bytes(values, low, high) if storage == "uint8" else values.astype(np.float16)
    facts = {
        "storage": storage,
        "low": low,
        "high": high,
        "num_channels": len(prepared.input),
        "max_error": float(np.abs(_dequantised(stored, low, high) - values).max()),
        "warnings": list(prepared.warnings),
        "unsuitable_reasons": list(prepared.unsuitable_reasons),
    }
    tensors = {"input": stored, "lungs": np.packbits(prepared.lungs, axis=-1)}
    text = json.dumps(facts, sort_keys=True)
    # One field: safetensors writes several in any order, and the same input should give one file.
    return bytes(save(tensors, {_FIELD: json.dumps([_checksum(text, tensors), text])}))


def decode(content: bytes) -> _CachedInput:
    """The inverse of `encode`.

    Raises:
        DamagedEntryError: A byte of it has changed, or some are missing.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(content)
        length = int.from_bytes(content[:_HEADER_LENGTH_BYTES], "little")
        header = content[_HEADER_LENGTH_BYTES : _HEADER_LENGTH_BYTES + length]
        metadata = json.loads(header)["__metadata__"]
        checksum, text = json.loads(metadata[_FIELD])
        if checksum != _checksum(text, tensors):
            raise _DamagedEntryError("its checksum does not agree")
        return _as_input(tensors, json.loads(text))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _DamagedEntryError(f"it cannot be read ({type(error).__name__})") from error


def _as_input(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> _CachedInput:
    values = _dequantised(tensors["input"], facts["low"], facts["high"])
    width = values.shape[-1]
    num_channels = int(facts["num_channels"])
    return _CachedInput(
        input=values[None] if num_channels == 1 else np.stack([values] * num_channels),
        lungs=np.unpackbits(tensors["lungs"], axis=-1, count=width).astype(bool),
        max_error=float(facts["max_error"]),
        warnings=tuple(facts["warnings"]),
        unsuitable_reasons=tuple(facts["unsuitable_reasons"]),
    )


def _to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scale = _LEVELS / (high - low) if high > low else 0.0
    return np.rint((values - low) * np.float32(scale)).astype(np.uint8)


def _dequantised(stored: np.ndarray, low: float, high: float) -> np.ndarray:
    if stored.dtype == np.float16:
        return stored.astype(np.float32)
    # Through a table: 256 multiplications instead of one per voxel.
    levels = (np.arange(_LEVELS + 1) * ((high - low) / _LEVELS) + low).astype(np.float32)
    return np.asarray(levels[stored])


def _checksum(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    checksum = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tensor.shape}".encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(tensor).data.cast("B"), checksum)
    return f"{checksum:08x}"


logger = logging.getLogger(__name__)

GIB: Final = 2**30

_FORMAT = 1
_ENDING = ".safetensors"


@dataclass(frozen=True)
class Cache:
    """A folder of inputs prepared with one recipe; other recipes may share the folder.

    Attributes:
        folder: Where entries lie; made when the first one is written.
        recipe: How scans are prepared.
        storage: "float16", with an error of at most 1/4096 for values in [0, 1], or "uint8", with
            one of at most 1/510 of the values' range.
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
        look_up(_BYTES_PER_VALUE, self.storage, kind="storage")
        self.require_room(1)

    @property
    def entry_bytes(self) -> int:
        """Size of one entry, a little more rather than less."""
        depth, height, width = self.recipe.input_shape
        lungs = depth * height * math.ceil(width / 8)
        values = depth * height * width * _BYTES_PER_VALUE[self.storage]
        return values + lungs + _HEADER_ALLOWANCE

    def require_room(self, num_entries: int) -> None:
        """Refuse a cache that could not hold so many entries at once.

        Raises:
            CacheError: It could not: entries would push each other out before they are used.
        """
        needed = num_entries * self.entry_bytes
        if needed > self.max_bytes:
            raise CacheError(
                f"{num_entries} inputs of {self.recipe.name} take {needed / GIB:.1f} GiB as "
                f"{self.storage}, and the cache may hold {self.max_bytes / GIB:.1f} GiB. Allow "
                "more, or use the storage 'uint8' or a smaller recipe."
            )

    def get(self, path: Path, options: ReadOptions | None = None, variant: int = 0) -> _CachedInput:
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
    ) -> tuple[_CachedInput, bool]:
        """As `get`, and whether it was there already."""
        reading = options or ReadOptions()
        facts = ScanFacts.stored(self.folder, path, reading)
        lungs = _digest_of_lungs(reading.lungs)
        if facts is not None:
            found = self.find(facts.pixels, variant, lungs)
            if found is not None:
                return found, True
        with local_copy(path) as place:
            volume = reading.read(place)
            facts = ScanFacts.of(volume, place)
        facts.store(self.folder, path, reading)
        found = self.find(facts.pixels, variant, lungs)
        if found is not None:
            return found, True
        rng = (
            np.random.default_rng([self.seed, variant, int(facts.pixels, 16)]) if variant else None
        )
        prepared = prepare(volume, self.recipe, rng=rng, lungs=reading.lungs_of(volume))
        content = encode(prepared, self.storage)
        self._write(self._entry_name(facts.pixels, variant, lungs), content)
        return decode(content), False

    def find(self, pixels: str, variant: int = 0, lungs: str = "") -> _CachedInput | None:
        """A sound entry of `ScanFacts.pixels`, or None; a damaged one is removed.

        `lungs` is the digest of the mask of its lungs, where one is given.
        """
        entry = self.entry_path(pixels, variant, lungs)
        if is_address(self.folder) and not entry.exists():
            _make_room(mirror_of(self.folder), self.entry_bytes, self.max_bytes)
            bring(self.folder, self._entry_name(pixels, variant, lungs))
        try:
            found = decode(entry.read_bytes())
            # The time of last use decides what makes way; a read-only cache keeps its order.
            with suppress(OSError):
                os.utime(entry)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (_DamagedEntryError, OSError) as error:
            logger.warning("A damaged entry of the cache is made again: %s: %s", entry.name, error)
            with suppress(OSError):
                entry.unlink(missing_ok=True)
            return None
        return found

    def entry_path(self, pixels: str, variant: int = 0, lungs: str = "") -> Path:
        """Where the entry of a scan lies on this machine, whether or not it is there."""
        return mirror_of(self.folder) / self._entry_name(pixels, variant, lungs)

    def _entry_name(self, pixels: str, variant: int, lungs: str) -> str:
        """Where it lies below the folder."""
        decisive = {
            "format": _FORMAT,
            "pixels": pixels,
            "recipe": asdict(self.recipe),
            "code": _preparation_code(),
            "storage": self.storage,
            "lungs": lungs,
            "variant": [variant, self.seed] if variant else 0,
        }
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        return f"{digest[:2]}/{digest[:40]}{_ENDING}"

    def tasks_of(self, manifest: Manifest, variants: int = 1) -> list[InputTask]:
        """The inputs of a manifest's scans, once it is sure that all of them fit.

        Raises:
            ManifestError: A row says something impossible about how its scan is read.
            CacheError: It could not hold all of them at once.
        """
        if variants < 1:
            raise ManifestError(f"There must be at least one input per scan, not {variants}.")
        self.require_room(len(manifest) * variants)
        return [
            InputTask(manifest.path(row), read_options(row, manifest.folder), variant, row.number)
            for variant in range(variants)
            for row in manifest.rows
        ]

    def prepare(self, task: InputTask) -> InputOutcome:
        """Make an input that is not there yet.

        Raises:
            CacheError: It cannot be written: no other input could be kept either.
        """
        try:
            found, was_there = self.fetch(task.path, task.reading, task.variant)
        except CacheError:
            raise
        except ChestCTError as error:
            return InputOutcome(task.row, error=str(error))
        return InputOutcome(
            task.row,
            was_there=was_there,
            unsuitable_reasons=found.unsuitable_reasons,
            max_error=found.max_error,
        )

    def _write(self, name: str, content: bytes) -> None:
        """Put an entry in its place, whole, after room was made for it."""
        folder = mirror_of(self.folder)
        entry = folder / name
        try:
            with working_folder(entry.parent) as working:
                _make_room(folder, len(content), self.max_bytes)
                aside = working / entry.name
                aside.write_bytes(content)
                send(self.folder, name, aside)
                aside.replace(entry)
            # Another process may have written meanwhile.
            _make_room(folder, 0, self.max_bytes)
        except OSError as error:
            raise CacheError(
                f"The cache {folder} cannot be written: {reason_of(error)}. Free space or "
                "choose another folder; what is prepared so far is kept."
            ) from error
        except ChestCTError as error:
            raise CacheError(str(error)) from error


def _digest_of_lungs(path: Path | None) -> str:
    """What stands for a mask of lungs; empty where none is given."""
    if path is None:
        return ""
    if is_address(path):
        return stamp_of(path)
    if not path.exists():
        raise ReadError(f"The mask {path.name} does not exist. Correct the column 'lungs'.")
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _make_room(folder: Path, needed: int, max_bytes: int) -> list[Path]:
    """Remove the entries used longest ago until `needed` bytes more fit; returns which."""
    entries: list[tuple[float, int, Path]] = []
    for path in folder.glob("*/*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            if path.name.endswith(_ENDING):
                entries.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    removed = []
    for _, size, path in sorted(entries):
        if total + needed <= max_bytes:
            break
        path.unlink(missing_ok=True)
        removed.append(path)
        total -= size
    return removed


@kept
def _preparation_code() -> str:
    """Digest of the code that prepares scans."""
    preprocess = Path(chestct.preprocess.__file__).parent
    return code_digest(preprocess, preprocess / "lungs" / "card.json")


@dataclass(frozen=True)
class Preparation:
    """How preparing many scans went, with reasons by row number and the largest error kept.

    `failed` could not be read or prepared, `unsuitable` should not be classified.
    """

    num_made: int
    num_found: int
    failed: Mapping[int, str]
    unsuitable: Mapping[int, tuple[str, ...]]
    max_error: float
    seconds: float

    @classmethod
    def of(cls, outcomes: Sequence[InputOutcome], seconds: float) -> Preparation:
        """How preparing went, of what became of each input."""
        return cls(
            num_made=sum(not each.was_there and not each.error for each in outcomes),
            num_found=sum(each.was_there for each in outcomes),
            failed={each.row: each.error for each in outcomes if each.error},
            unsuitable={
                each.row: each.unsuitable_reasons for each in outcomes if each.unsuitable_reasons
            },
            max_error=max((each.max_error for each in outcomes), default=0.0),
            seconds=seconds,
        )


class LabelledScans(Dataset[tuple[torch.Tensor, torch.Tensor, Any]]):
    """Prepared inputs of a manifest's scans with their labels; made when they are not there yet.

    `labels` are indices; of findings a row of 1, 0 and NaN (not known) each. Items are all scans as
    they are, then all scans of the next variant, as in `Cache.get`.
    """

    def __init__(self, cache: Cache, manifest: Manifest, variants: int = 1) -> None:
        self.cache = cache
        self.manifest = manifest
        self.variants = variants
        self.labels: Any
        if manifest.are_findings:
            self.labels = np.tile(manifest.truths, (variants, 1))
        else:
            self.labels = manifest.label_indices * variants
        self._options = [read_options(row, manifest.folder) for row in manifest.rows]

    def __len__(self) -> int:
        """Number of inputs."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Input (channel, depth, height, width), lungs (1, depth, height, width), label.

        Raises:
            IndexError: There is no such item.
            ChestCTError: The scan cannot be read or prepared; the message names its row.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        variant, number = divmod(index, len(self.manifest))
        row = self.manifest.rows[number]
        try:
            found = self.cache.get(self.manifest.path(row), self._options[number], variant)
        except ChestCTError as error:
            raise type(error)(f"{self.manifest.name}, row {row.number}: {error}") from error
        lungs = torch.from_numpy(found.lungs[None].astype(np.float32))
        return torch.from_numpy(found.input), lungs, self.labels[index]


@dataclass(frozen=True)
class InputTask:
    """One input, of a row of the manifest, to be prepared by any process."""

    path: Path
    reading: ReadOptions
    variant: int
    row: int


@dataclass(frozen=True)
class InputOutcome:
    """What became of a row's task; `error` says why there is no input, empty where there is one."""

    row: int
    was_there: bool = False
    error: str = ""
    unsuitable_reasons: tuple[str, ...] = ()
    max_error: float = 0.0


def prepare_all(
    cache: Cache,
    manifest: Manifest,
    *,
    variants: int = 1,
    processes: int | None = None,
    progress: ProgressCallback | None = None,
) -> Preparation:
    """Prepare every scan that is not in the cache yet, in all processes at once.

    A call that was interrupted goes on where it stopped. A scan that cannot be read or prepared
    does not stop the others: its reason is returned.

    Raises:
        ManifestError: A row says something impossible about how its scan is read.
        CacheError: The cache could not hold all of them at once, or cannot be written.
        ChestCTError: A process was killed.
    """
    started = perf_counter()
    tasks = cache.tasks_of(manifest, variants)
    outcomes = run_all(cache.prepare, tasks, processes=processes, progress=progress)
    return Preparation.of(outcomes, perf_counter() - started)

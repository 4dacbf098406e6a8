"""One prepared input as a file that says when it is damaged.

A safetensors file: the values as 16-bit floats or as bytes, the lung mask as bits, and beside them
a checksum of all of it. Channels hold the same values, so one is kept.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from chestct.arrays import Mask, NetworkInput
from chestct.errors import ChestCTError
from chestct.preprocess.prepared import PreparedScan
from chestct.preprocess.recipe import Recipe

BYTES_PER_VALUE: Final[dict[str, int]] = {"float16": 2, "uint8": 1}
"""Storage to bytes of one value."""

_FIELD = "chestct"
_LEVELS = 255
_LARGEST_FLOAT16 = 65504.0
_HEADER_LENGTH_BYTES = 8
_HEADER_ALLOWANCE = 4096


class CacheError(ChestCTError):
    """Prepared inputs cannot be kept."""


class StorageError(ChestCTError):
    """The values of one prepared scan cannot be stored."""


class DamagedEntryError(CacheError):
    """A file of the cache is not what was written; it has to be made again."""


@dataclass(frozen=True, eq=False)
class CachedInput:
    """A prepared input, from disk or just made; the same from both.

    Attributes:
        input: Network input, (channel, depth, height, width).
        lungs: Lung mask at the input's size, (depth, height, width).
        max_error: Largest difference between `input` and what the preparation gave.
        warnings: What the preparation noticed.
        unsuitable_reasons: Why the scan should not be classified; empty when it may.
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
        raise StorageError("The prepared values are not all numbers, and nothing can keep them.")
    if storage == "float16" and max(-low, high) > _LARGEST_FLOAT16:
        msg = f"Values up to {max(-low, high):g} do not fit 16-bit floats. Use the storage 'uint8'."
        raise StorageError(msg)
    # With these ends 0, the background of most recipes, stays exactly 0.
    low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    stored = _to_bytes(values, low, high) if storage == "uint8" else values.astype(np.float16)
    facts = {
        "storage": storage,
        "low": low,
        "high": high,
        "num_channels": len(prepared.input),
        "max_error": float(np.abs(_decode(stored, low, high) - values).max()),
        "warnings": list(prepared.warnings),
        "unsuitable_reasons": list(prepared.unsuitable_reasons),
    }
    tensors = {"input": stored, "lungs": np.packbits(prepared.lungs, axis=-1)}
    text = json.dumps(facts, sort_keys=True)
    # One field: safetensors writes several in any order, and the same input should give one file.
    return bytes(save(tensors, {_FIELD: json.dumps([_checksum(text, tensors), text])}))


def decode(content: bytes) -> CachedInput:
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
            raise DamagedEntryError("its checksum does not agree")
        return _as_input(tensors, json.loads(text))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedEntryError(f"it cannot be read ({type(error).__name__})") from error


def entry_bytes(recipe: Recipe, storage: str) -> int:
    """Size of an entry, a little more rather than less."""
    depth, height, width = recipe.input_shape
    lungs = depth * height * math.ceil(width / 8)
    return depth * height * width * BYTES_PER_VALUE[storage] + lungs + _HEADER_ALLOWANCE


def _as_input(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> CachedInput:
    values = _decode(tensors["input"], facts["low"], facts["high"])
    width = values.shape[-1]
    num_channels = int(facts["num_channels"])
    return CachedInput(
        input=values[None] if num_channels == 1 else np.stack([values] * num_channels),
        lungs=np.unpackbits(tensors["lungs"], axis=-1, count=width).astype(bool),
        max_error=float(facts["max_error"]),
        warnings=tuple(facts["warnings"]),
        unsuitable_reasons=tuple(facts["unsuitable_reasons"]),
    )


def _to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scale = _LEVELS / (high - low) if high > low else 0.0
    return np.rint((values - low) * np.float32(scale)).astype(np.uint8)


def _decode(stored: np.ndarray, low: float, high: float) -> np.ndarray:
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
